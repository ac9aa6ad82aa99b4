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
from collections.abc import Iterator
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


class Phases:
    """``with phases("load"):`` — seconds, the highest RSS seen at its ends, device peaks. Phases of one name add up."""

    def __init__(self) -> None:
        self.record: dict[str, dict] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[dict]:
        cuda = torch.cuda.is_initialized()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        synchronize()
        start = time.perf_counter()
        entry = self.record.setdefault(name, {"seconds": 0.0, "rss_bytes": 0})
        try:
            yield entry
        finally:
            synchronize()
            entry["seconds"] += time.perf_counter() - start
            entry["rss_bytes"] = max(entry["rss_bytes"], rss_bytes())
            if cuda:
                for kind in ("allocated", "reserved"):
                    peak = getattr(torch.cuda, f"max_memory_{kind}")()
                    entry[f"cuda_{kind}_bytes"] = max(entry.get(f"cuda_{kind}_bytes", 0), peak)


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
    tensors in an optimizer's state are its state; the rest is activations and work space. CPU and CUDA alike.
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
        return [
            value
            for optimizer in self.optimizers
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]


def _bytes(tensors: list[Tensor]) -> int:
    """Bytes of distinct storages."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors if not t.is_meta}
    return sum(storages.values())
