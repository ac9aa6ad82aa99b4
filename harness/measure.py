"""Measurement: phases, curves, peak memory by kind. Each number under its own name, none mixed with another.

Phases are synchronised wall seconds. RSS is the process's, with the interpreter and its libraries; live tensor bytes
are what the training itself holds, split into weights, gradients, optimizer state and activations.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

SAMPLED_ENTRIES = 1 << 22  # of the parameters whose update-to-weight ratio is followed
RATIO_POINTS = 8  # times a training


def rss_bytes() -> int:
    """Resident memory of this process now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class _Open:
    """A phase that is running: its entry of the record, when it began, and the seconds of phases within it so far."""

    def __init__(self, entry: dict):
        self.entry, self.start, self.within = entry, time.perf_counter(), 0.0


class Phases:
    """``with phases("load"):`` — seconds, the highest RSS seen at its ends, device peaks. Phases of one name add up.

    Of phases one within the other, seconds are the inner one's alone; a peak on the device is also the outer one's.
    """

    def __init__(self) -> None:
        self.record: dict[str, dict] = {}
        self._open: list[_Open] = []  # the outermost first

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[dict]:
        cuda = torch.cuda.is_initialized()
        if cuda:
            self._keep_peaks()  # of the phases around this one, before the device forgets them
            torch.cuda.reset_peak_memory_stats()
        synchronize()
        phase = _Open(self.record.setdefault(name, {"seconds": 0.0, "rss_bytes": 0}))
        self._open.append(phase)
        try:
            yield phase.entry
        finally:
            synchronize()
            if cuda:
                self._keep_peaks()
            self._open.pop()
            seconds = time.perf_counter() - phase.start
            phase.entry["seconds"] += seconds - phase.within
            phase.entry["rss_bytes"] = max(phase.entry["rss_bytes"], rss_bytes())
            if self._open:
                self._open[-1].within += seconds

    def so_far(self) -> dict[str, dict]:
        """A copy of the record in which running phases have the seconds that they took until now."""
        record = {name: dict(entry) for name, entry in self.record.items()}
        names = {id(entry): name for name, entry in self.record.items()}
        end = time.perf_counter()
        for phase in reversed(self._open):
            record[names[id(phase.entry)]]["seconds"] += end - phase.start - phase.within
            end = phase.start  # the phase around it has the time before
        return record

    def go_on_from(self, earlier: dict[str, dict]) -> None:
        """Add the record of an interrupted start: seconds add up, of bytes the larger ones stay."""
        for name, entry in earlier.items():
            mine = self.record.setdefault(name, {})
            for key, value in entry.items():
                mine[key] = mine.get(key, 0.0) + value if key == "seconds" else max(mine.get(key, 0), value)

    def _keep_peaks(self) -> None:
        """The device's peaks since it was last reset, into every running phase."""
        for kind in ("allocated", "reserved"):
            peak = getattr(torch.cuda, f"max_memory_{kind}")()
            for phase in self._open:
                phase.entry[f"cuda_{kind}_bytes"] = max(phase.entry.get(f"cuda_{kind}_bytes", 0), peak)


def rss_peak_bytes() -> int:
    """Highest resident memory of this process so far, as the kernel counts it."""
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def is_sampled(step: int, total: int) -> bool:
    """Whether the update of this step of a training is compared with the weights."""
    return step % max(1, total // RATIO_POINTS) == 0


class Curve:
    """Appends one JSON line a step to ``path`` (None: nowhere), flushed at once on CPU and every tenth step on a device.

    Tensors are kept as they are until the flush, so a step needs no synchronisation.
    """

    def __init__(self, path: Path | None, *, every: int = 1):
        self.file = open(path, "a", encoding="utf-8") if path else None  # noqa: SIM115 (lives as long as the run)
        self.every, self.rows, self.extra = every, [], []
        self.clocked: dict[str, list[float]] = {}  # seconds of each timed part, by name
        self.overhead = 0.0  # seconds spent on writing and sampling
        self.ratio: Tensor | None = None
        self.started = time.perf_counter()

    def position(self) -> int:
        """Bytes written: a checkpoint keeps it, so that a resumed curve goes on there."""
        return self.file.tell() if self.file else 0

    def log(self, name: str, value: Any) -> None:
        self.extra.append((name, value.detach().clone() if isinstance(value, Tensor) else value))

    @contextlib.contextmanager
    def clock(self, name: str) -> Iterator[None]:
        synchronize()
        start = time.perf_counter()
        yield
        synchronize()
        seconds = time.perf_counter() - start
        self.clocked.setdefault(name, []).append(seconds)
        self.log(f"{name}_seconds", seconds)

    @contextlib.contextmanager
    def update_ratio(self, model: nn.Module, step: int, total: int) -> Iterator[None]:
        """Follow ||change|| / ||weight|| of a sample of what trains, at a few steps of the training."""
        if not is_sampled(step, total) or self.file is None:
            yield
            return
        start = time.perf_counter()
        sample, entries = [], 0
        for parameter in model.parameters():
            if parameter.requires_grad and entries + parameter.numel() <= SAMPLED_ENTRIES:
                sample.append((parameter, parameter.detach().clone()))
                entries += parameter.numel()
        self.overhead += time.perf_counter() - start
        yield
        start = time.perf_counter()
        if sample:
            change = torch.stack([(p.detach() - old).float().norm() for p, old in sample]).norm()
            weight = torch.stack([old.float().norm() for _, old in sample]).norm()
            self.ratio = change / weight.clamp_min(1e-30)
        self.overhead += time.perf_counter() - start

    def step(self, index: int, loss: Tensor, rate: float, norm: Tensor, tokens: int) -> None:
        now = time.perf_counter()
        self.rows.append((index, loss, rate, norm, tokens, now - self.started, self.ratio, self.extra))
        self.started, self.extra, self.ratio = now, [], None

    def flush(self, force: bool = False) -> list[tuple[int, float, float]]:
        """Write what is waiting; (step, loss, gradient norm) of each step written."""
        if len(self.rows) < self.every and not force:
            return []
        start = time.perf_counter()
        seen = []
        for index, loss, rate, norm, tokens, seconds, ratio, extra in self.rows:
            loss, norm = float(loss), float(norm)
            seen.append((index, loss, norm))
            row = {"step": index, "loss": loss, "learning_rate": rate, "gradient_norm": norm, "tokens": tokens}
            row |= {"seconds": round(seconds, 6), "rss_bytes": rss_bytes()}
            if ratio is not None:
                row["update_ratio"] = float(ratio)
            self._write(row)
            for name, value in extra:
                self._write_long(index, name, value)
        self.rows = []
        if self.file:
            self.file.flush()
        self.overhead += time.perf_counter() - start
        return seen

    def validation(self, step: int, loss: float) -> None:
        self._write({"step": step, "validation_loss": loss})
        if self.file:
            self.file.flush()
        self.started = time.perf_counter()

    def close(self) -> None:
        if self.file:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            self.file = None

    def _write_long(self, index: int, name: str, value: Any) -> None:
        values = value.flatten().tolist() if isinstance(value, Tensor) and value.numel() > 1 else [float(value)]
        for place, number in enumerate(values):
            layer = {"layer": place} if len(values) > 1 else {}
            self._write({"step": index, "name": name, "value": number, **layer})

    def _write(self, row: dict) -> None:
        if self.file:
            # NaN and infinity are no JSON numbers: written as text, so that any reader can load the line
            plain = {k: str(v) if isinstance(v, float) and v - v != 0 else v for k, v in row.items()}
            self.file.write(json.dumps(plain) + "\n")


def clocks(path: Path) -> dict[str, dict]:
    """How often and for how many seconds in all each part under ``Curve.clock`` ran, from a curve's file."""
    found: dict[str, dict] = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            if '_seconds"' in line:
                row = json.loads(line)
                entry = found.setdefault(row["name"].removesuffix("_seconds"), {"count": 0, "seconds": 0.0})
                entry["count"] += 1
                entry["seconds"] += row["value"]
    return found


class LiveTensors(TorchDispatchMode):
    """Follows live tensor storages: peak bytes in all, and what they were at that peak.

    Kinds are told from the model and the optimizers: parameters and buffers are weights, ``.grad`` is gradients,
    tensors in an optimizer's state, or saved with it, are its state; the rest is activations and work space. CPU and CUDA alike.
    """

    def __init__(self, model: nn.Module, optimizers: list[torch.optim.Optimizer]):
        super().__init__()
        self.model, self.optimizers = model, optimizers
        self.live: dict[int, tuple[weakref.ref, int]] = {}
        self.now = self.peak = 0
        self.gradients_at_peak = 0
        self.rising = False

    def __enter__(self) -> LiveTensors:
        for tensor in [*self._weights(), *self._gradients(), *self._states()]:
            self._follow(tensor)
        return super().__enter__()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple = (), keywords: dict | None = None) -> Any:
        if self.rising and self.now < self.peak:
            self.gradients_at_peak, self.rising = _bytes(self._gradients()), False
        result = function(*arguments, **(keywords or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self._follow(value)
        return result

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.live or tensor.is_meta:
            return
        size = storage.nbytes()
        self.live[key] = (weakref.ref(storage, lambda _: self._gone(key)), size)
        self.now += size
        if self.now > self.peak:
            self.peak, self.rising = self.now, True

    def _gone(self, key: int) -> None:
        self.now -= self.live.pop(key)[1]

    def split(self, gradients: int) -> dict[str, int]:
        """Bytes by kind after a step whose backward left ``gradients`` bytes. Weights, optimizer state, gradients at the
        peak and activations (with work space) add up to the peak; gradients at their largest stand apart."""
        weights, optimizer = _bytes(self._weights()), _bytes(self._states())
        rest = self.peak - weights - optimizer - self.gradients_at_peak
        return {
            "weights": weights,
            "gradients": max(gradients, self.gradients_at_peak),
            "gradients_at_peak": self.gradients_at_peak,
            "optimizer": optimizer,
            "activations": max(0, rest),
            "peak": self.peak,
        }

    def gradient_bytes(self) -> int:
        return _bytes(self._gradients())

    def _weights(self) -> list[Tensor]:
        return [*self.model.parameters(), *self.model.buffers()]

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def _states(self) -> list[Tensor]:
        """State of parameters, and whatever else an optimizer saves, such as sums over steps."""
        return [tensor for optimizer in self.optimizers for tensor in _tensors(optimizer.state_dict())]


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors within nested mappings and sequences."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def _bytes(tensors: list[Tensor]) -> int:
    """Bytes of distinct storages."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors if not t.is_meta}
    return sum(storages.values())
