"""What a step of each method costs, ours and PEFT's: time, memory, parameters, FLOPs, and how far from the floor.

``python -m perf.step_cost`` alternates steps of the contestants in one process on the same weights, batches and labels,
adapters all under fused AdamW, other methods under their own optimizers, and compares times step by step, so that a
drift of the machine hits all alike. Contestants take turns in rounds of at most five, our LoRA in every one, so that few
models are in memory at once.

perf/contestants.py says who they are. ``--family low-rank`` measures the other family. Where a method refreshes a basis,
timed steps have none; steps that do are timed apart, and the difference is the refresh.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness import data
from harness.contract import Method, Run
from harness.device import choose_device
from harness.loop import Trainer, TrainingProbe
from harness.measure import LiveTensors, synchronize
from harness.models import find_targets, load_model
from harness.plugins import find_plugin
from harness.seeds import Streams
from perf import contest, floor, step_report
from perf.contestants import FAMILIES, Entry, chosen, order, rounds
from perf.peers import NEVER

WARM = 2  # blocks that are not timed: memory's first touch, the optimizer's state, a first refresh, SMT's selection
REFRESHES = 3  # steps that are made to refresh, after the timed ones


# --------------------------------------------------------------------------- contestants


class OwnLoss:
    """A bare torch loop: the model's own loss over all positions, labels where the loss looks."""

    def __init__(self, model: nn.Module):
        self.model = model.train()
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizers = [torch.optim.AdamW(self.trained, lr=1e-4, weight_decay=0.0, fused=True)]

    def step(self, batch: data.MicroBatch) -> None:
        self.model(**batch.inputs, labels=contest.labels(batch), use_cache=False).loss.backward()
        self.clip(self.model, 1.0)
        self.optimizers[0].step()
        self.optimizers[0].zero_grad(set_to_none=True)

    def clip(self, model: nn.Module, max_norm: float) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(self.trained, max_norm)


class WatchedProbe(TrainingProbe):
    """Notes the most bytes of weights' gradients that were there at once."""

    most = 0

    def mean_gradients(self, parameters: Sequence[str], count: int, visit: Callable[[str, Tensor], None]) -> None:
        model, seen = self.trainer.model, []

        def watched(name: str, gradient: Tensor) -> None:
            seen.append(weakref.ref(gradient))
            there = [ref() for ref in seen] + [p.grad for p in model.parameters()]
            storages = {id(g.untyped_storage()): g.untyped_storage().nbytes() for g in there if g is not None}
            self.most = max(self.most, sum(storages.values()))
            visit(name, gradient)

        super().mean_gradients(parameters, count, watched)


class Bench:
    """The base, its batches, and what is measured of each contestant."""

    def __init__(self, base: nn.Module, options: argparse.Namespace, device: torch.device, folder: Path):
        self.base, self.folder = base.to(device), folder  # for curves, which are part of our loop's step
        shape = (base.config.vocab_size, options.rows, options.length, options.supervised, options.batches)
        self.rows = contest.random_rows(*shape)
        self.batches = [batch.to(device) for batch in contest.batches(*shape)]
        self.tokens = options.rows * options.length
        self.results: dict[str, dict] = {}
        self.rounds: list[dict[str, list[float]]] = []  # seconds of each step, by contestant

    def attached(self, entry: Entry) -> tuple[nn.Module, Method, float]:
        """(model, method, seconds of attach)."""
        model = copy.deepcopy(self.base).requires_grad_(False)
        method = entry.make()
        torch.manual_seed(0)
        synchronize()
        start = time.perf_counter()
        with warnings.catch_warnings(action="ignore"):  # PEFT's BOFT says at every layer that it has no CUDA
            method.attach(model, Run(10**6, torch.float32, find_targets))
        synchronize()
        return model, method, time.perf_counter() - start

    def build(self, entry: Entry) -> contest.Ours | OwnLoss:
        """The contestant, ready to step; what its making cost goes to its results."""
        started = entry.ours and "initialize" in find_plugin("methods", entry.method).methods
        if entry.name not in self.results:
            lists = {"attach": [], "prepare": [], "refresh": []}
            self.results[entry.name] = {"entry": entry, **lists, **self._rehearsal(entry, started)}
        made = self.results[entry.name]
        model, method, attach = self.attached(entry)
        made["attach"].append(attach)
        if entry.own_loss:
            made |= counts(model, method)
            return OwnLoss(model)

        def start(trainer: Trainer) -> None:
            before = time.perf_counter()
            method.initialize(model, self._probe(trainer))
            synchronize()
            made["prepare"].append(time.perf_counter() - before)

        return contest.Ours(model, method, self.folder, start if started else lambda trainer: None)

    def _probe(self, trainer: Trainer) -> WatchedProbe:
        return WatchedProbe(
            trainer, lambda number: self.rows[number % len(self.rows)], lambda rows: data.collate(rows, "causal", 0)
        )

    def _rehearsal(self, entry: Entry, started: bool) -> dict[str, int]:
        """Attach once before it is timed, to import what it needs; bytes of a start from data or of a step that selects what
        trains, as following them takes time."""
        model, method, _ = self.attached(entry)
        if "warmup_steps" in entry.fields:
            contestant = contest.Ours(model, method, self.folder)
            with LiveTensors(model, contestant.trainer.optimizers) as live:
                contestant.step(self.batches[0])
            return {"prepare_peak": live.peak}
        if not started:
            return {}
        trainer = Trainer(model, method, contest.PROTOCOL, Streams(0), 10**6)
        probe = self._probe(trainer)
        with LiveTensors(model, []) as live:
            method.initialize(model, probe)
        return {"prepare_gradients": probe.most, "prepare_peak": live.peak}

    def memory(self, contestant: contest.Ours | OwnLoss) -> dict[str, int]:
        """Live tensor bytes of one more step, by kind, at their peak."""
        ours = isinstance(contestant, contest.Ours)
        clipper = contestant.trainer.method if ours else contestant
        optimizers = contestant.trainer.optimizers if ours else contestant.optimizers
        clip, seen = clipper.clip, []

        def noting_clip(model: nn.Module, max_norm: float) -> Tensor:
            seen.append(live.gradient_bytes())
            return clip(model, max_norm)

        clipper.clip = noting_clip  # the one moment when every gradient of the step is there
        with LiveTensors(contestant.model, optimizers) as live:
            contestant.step(self.batches[0])
        del clipper.clip
        return live.split(seen[0])

    def flops(self, contestant: contest.Ours | OwnLoss) -> int:
        with FlopCounterMode(display=False) as counter:
            contestant.step(self.batches[0])
        return counter.get_total_flops()

    def floor_flops(self, entry: Entry) -> int:
        base = floor.base_flops(self.base, self.batches[0], trained=entry.every_weight)
        return base + floor.own_flops(self.base, entry.own, self.tokens) + floor.own_flops(self.base, entry.once, 1)

    def timed(self, contestant: contest.Ours | OwnLoss, number: int) -> float:
        batch = self.batches[number % len(self.batches)]
        synchronize()
        start = time.perf_counter()
        contestant.step(batch)
        synchronize()
        return time.perf_counter() - start

    def round(self, entries: Sequence[Entry], blocks: int, tell: Callable[[int], None]) -> None:
        """Build these contestants, step them in turn, look into one more step of each, and let them go."""
        there = {entry.name: self.build(entry) for entry in entries}
        spent: dict[str, list[float]] = {name: [] for name in there}
        names = list(there)
        for number in range(-WARM, blocks):
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:  # every order in turn
                seconds = self.timed(there[name], number)
                if number >= 0:
                    spent[name].append(seconds)
            tell(number + WARM + 1)
        self._refreshes(there, [entry for entry in entries if entry.refreshes], blocks)
        for entry in entries:
            result, contestant = self.results[entry.name], there.pop(entry.name)
            if not entry.own_loss:
                result |= counts(contestant.model, contestant.trainer.method)
            if "memory" not in result:
                result["memory"] = self.memory(contestant)
                result["flops"], result["floor"] = self.flops(contestant), self.floor_flops(entry)
            del contestant
            gc.collect()
        self.rounds.append(spent)

    def _refreshes(self, there: dict, entries: Sequence[Entry], number: int) -> None:
        """Seconds of steps that refresh a basis, in turn."""
        for _ in range(REFRESHES if entries else 0):
            for entry in entries:
                contestant = there[entry.name]
                refresh_next(contestant, True)
                self.results[entry.name]["refresh"].append(self.timed(contestant, number))
                refresh_next(contestant, False)


def counts(model: nn.Module, method: Method) -> dict[str, int]:
    """What trains now: entries, and degrees of freedom."""
    raw = sum(p.numel() for p in model.parameters() if p.requires_grad)
    effective = method.effective_parameters(model)
    return {"trained": raw, "effective": raw if effective is None else effective}


def refresh_next(contestant: contest.Ours, on: bool) -> None:
    """Make the coming step refresh, or no step: ours by an interval of which this step is a multiple."""
    method = contestant.trainer.method
    if hasattr(method, "refresh_next"):
        method.refresh_next(on)
    else:
        method.refresh_every = max(1, contestant.trainer.state.step) if on else NEVER


def progress(plan: Sequence[Sequence[Entry]], blocks: int) -> Callable[[int, int], None]:
    """``tell(round, block)`` prints where it is and how long the rest should take, by the steps so far."""
    whole = [len(entries) * (blocks + WARM) for entries in plan]
    started = time.monotonic()

    def tell(number: int, block: int) -> None:
        done = sum(whole[:number]) + block * len(plan[number])
        left = (time.monotonic() - started) / done * (sum(whole) - done)
        if block % 5 == 0 or block == blocks + WARM:
            where = f"round {number + 1}/{len(plan)}, block {block}/{blocks + WARM}"
            print(f"{where}, about {left / 60:.1f} min left", flush=True)

    return tell


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    device = choose_device(options.threads)
    base, _ = load_model(options.model, None, torch.float32, 0)
    entries = chosen(options.family, options.methods or [entry.name for entry in FAMILIES[options.family]])
    for entry in [e for e in entries if not e.ours and e.method.missing()]:
        print(f"{entry.label} left out: {entry.method.missing()}", flush=True)
        entries.remove(entry)
    plan = rounds(entries)
    for number, entries in enumerate(plan):
        print(f"round {number + 1}/{len(plan)}: {', '.join(entry.label for entry in entries)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(base, options, device, Path(folder))
        rates = [floor.product_rates(bench.base, bench.tokens)]
        tell = progress(plan, options.blocks)
        for number, entries in enumerate(plan):
            bench.round(entries, options.blocks, functools.partial(tell, number))
            rates.append(floor.product_rates(bench.base, bench.tokens))
    fastest = {name: max(rate[name] for rate in rates) for name in rates[0]}  # a floor is no slower at a bad moment
    settings = {
        "model": options.model,
        "batch": f"{options.rows} x {options.length} tokens, {options.supervised} supervised a row",
        "device": str(device),
        "threads": f"{options.threads} thread{'s' * (options.threads != 1)}",
        "blocks": options.blocks,
        "rates": fastest,
        "torch": torch.__version__,
    }
    found = [bench.results[name] for name in order(options.family) if name in bench.results]
    step_report.write(
        step_report.rows(found, bench.rounds, fastest), bench.rounds, settings, options.out / options.family
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perf.step_cost", description=__doc__.splitlines()[0])
    names = list(dict.fromkeys(entry.name for family in FAMILIES.values() for entry in family))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--family", default="adapters", choices=list(FAMILIES))
    parser.add_argument("--methods", nargs="+", choices=names, metavar="METHOD", help=", ".join(names))
    parser.add_argument("--blocks", type=int, default=30, help="timed steps of each contestant")
    parser.add_argument("--batches", type=int, default=4, help="different batches, taken in turn")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--supervised", type=int, default=32, help="tokens of a row that carry loss")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/perf"))
    options = parser.parse_args(argv)
    known = [entry.name for entry in FAMILIES[options.family]]
    if unknown := [name for name in options.methods or [] if name not in known]:
        parser.error(f"no {', '.join(unknown)} in the family {options.family}; it has {', '.join(known)}")
    return options


if __name__ == "__main__":
    main()
