"""What a step of each method costs, ours and PEFT's: time, memory, parameters, FLOPs, and how far from the floor.

``python -m perf.step_cost`` alternates steps of the contestants in one process on the same weights, batches and labels,
all under fused AdamW, and compares times step by step, so that a drift of the machine hits all alike. Contestants take
turns in rounds of at most four, our LoRA in every one, so that few models are in memory at once.

PEFT's adapters run in our loop (method ``peft``), which leaves the difference to the adapters; LoRA runs also in a bare
torch loop with the model's own loss over all positions, as a user of PEFT would write it.
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
from dataclasses import dataclass, field
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
from harness.plugins import find_plugin, load_plugin
from harness.seeds import Streams
from perf import contest, floor, step_report

RANK, BLOCK, FACTORS, BUTTERFLY = 16, 32, 3, 8
MOST = 3  # contestants of a round beside our LoRA
WARM = 2  # blocks that are not timed: memory's first touch, the optimizer's state


@dataclass(frozen=True)
class Entry:
    """A contestant: a method with its fields. ``peer``: the name of its counterpart in PEFT."""

    name: str
    label: str
    method: str
    fields: dict = field(default_factory=dict)
    own: floor.Own | None = floor.nothing  # None: every weight trains
    peer: str = ""
    own_loss: bool = False


_LORA, _BLOCKS = {"rank": RANK, "alpha": 32.0}, {"factors": FACTORS, "block_size": BUTTERFLY}
_REACH = BUTTERFLY << (FACTORS - 1)
OURS = (
    Entry("full", "Full FT", "full", own=None),
    Entry("lora", "LoRA", "lora", _LORA, floor.low_rank(RANK), "peft-lora"),
    Entry("dora", "DoRA", "dora", _LORA, floor.low_rank(RANK), "peft-dora"),
    Entry("oft", "OFT", "oft", {"block_size": BLOCK}, floor.rotation(BLOCK), "peft-oft"),
    Entry("boft", f"BOFT m={FACTORS}", "boft", _BLOCKS, floor.rotation(_REACH), "peft-boft"),
    Entry("lora-ga", "LoRA-GA", "lora-ga", {"rank": RANK}, floor.centred(RANK)),
    Entry("urnn", "uRNN", "urnn"),
    Entry(
        "hybrid", "Hybrid", "hybrid", {"rank": RANK, **_BLOCKS}, floor.both(floor.centred(RANK), floor.rotation(_REACH))
    ),
)


def _peft(name: str, label: str, own: floor.Own, kind: str, own_loss: bool = False, **config: object) -> Entry:
    return Entry(name, label, "peft", {"type": kind, "config": config}, own, own_loss=own_loss)


_PEFT_LORA = {"r": RANK, "lora_alpha": 32}
OWN_LOSS = "peft-lora-own-loss"
THEIRS = (
    _peft("peft-lora", "LoRA (PEFT)", floor.low_rank(RANK), "LORA", **_PEFT_LORA),
    _peft(OWN_LOSS, "LoRA (PEFT, model's loss)", floor.low_rank(RANK), "LORA", own_loss=True, **_PEFT_LORA),
    _peft("peft-dora", "DoRA (PEFT)", floor.low_rank(RANK), "DORA", **_PEFT_LORA),
    _peft("peft-oft", "OFT (PEFT)", floor.rotation(BLOCK), "OFT", oft_block_size=BLOCK),
    _peft("peft-boft", "BOFT m=1 (PEFT)", floor.rotation(BUTTERFLY), "BOFT", boft_block_size=BUTTERFLY),
)
ENTRIES = {entry.name: entry for entry in (*OURS, *THEIRS)}
ORDER = [name for ours in OURS for name in (ours.name, ours.peer, OWN_LOSS if ours.name == "lora" else "") if name]


def chosen(names: Sequence[str]) -> list[Entry]:
    """Our methods of these names, LoRA always, and their counterparts in PEFT."""
    picked = [entry for entry in OURS if entry.name in names or entry.name == "lora"]
    peers = {entry.peer for entry in picked} | {OWN_LOSS}
    return [*picked, *(entry for entry in THEIRS if entry.name in peers)]


def rounds(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Our LoRA with up to three others in each; a method and its counterpart share a round."""
    by_name = {entry.name: entry for entry in entries}
    lora = by_name.pop("lora")
    groups = [[by_name.pop(name) for name in (lora.peer, OWN_LOSS)]]
    for entry in [e for e in entries if e.name in by_name and e.method != "peft"]:
        groups.append([entry, *([by_name[entry.peer]] if entry.peer else [])])
    filled: list[list[Entry]] = []
    for group in sorted(groups, key=len, reverse=True):
        place = next((made for made in filled if len(made) + len(group) <= MOST), None)
        if place is None:
            filled.append(place := [])
        place += group
    return [[lora, *made] for made in filled]


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
        method = load_plugin("methods", entry.method, **entry.fields)
        torch.manual_seed(0)
        synchronize()
        start = time.perf_counter()
        with warnings.catch_warnings(action="ignore"):  # PEFT's BOFT says at every layer that it has no CUDA
            method.attach(model, Run(10**6, torch.float32, find_targets))
        synchronize()
        return model, method, time.perf_counter() - start

    def build(self, entry: Entry) -> contest.Ours | OwnLoss:
        """The contestant, ready to step; what its making cost goes to its results."""
        started = "initialize" in find_plugin("methods", entry.method).methods
        if entry.name not in self.results:
            self.results[entry.name] = {"entry": entry, "attach": [], "prepare": [], **self._rehearsal(entry, started)}
        made = self.results[entry.name]
        model, method, attach = self.attached(entry)
        made["attach"].append(attach)
        raw = sum(p.numel() for p in model.parameters() if p.requires_grad)
        effective = method.effective_parameters(model)
        made |= {"trained": raw, "effective": raw if effective is None else effective}
        if entry.own_loss:
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
        """Attach once before it is timed, to import what it needs; bytes of a start from data, as following them takes time."""
        model, method, _ = self.attached(entry)
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
        base = floor.base_flops(self.base, self.batches[0], trained=entry.own is None)
        return base + (floor.own_flops(self.base, entry.own, self.tokens) if entry.own else 0)

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
        for entry in entries:
            result, contestant = self.results[entry.name], there.pop(entry.name)
            if "memory" not in result:
                result["memory"] = self.memory(contestant)
                result["flops"], result["floor"] = self.flops(contestant), self.floor_flops(entry)
            del contestant
            gc.collect()
        self.rounds.append(spent)


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
    options.out.mkdir(parents=True, exist_ok=True)
    base, _ = load_model(options.model, None, torch.float32, 0)
    plan = rounds(chosen(options.methods))
    for number, entries in enumerate(plan):
        print(f"round {number + 1}/{len(plan)}: {', '.join(entry.label for entry in entries)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(base, options, device, Path(folder))
        rates = floor.product_rates(bench.base, bench.tokens)
        tell = progress(plan, options.blocks)
        for number, entries in enumerate(plan):
            bench.round(entries, options.blocks, functools.partial(tell, number))
    settings = {
        "model": options.model,
        "batch": f"{options.rows} x {options.length} tokens, {options.supervised} supervised a row",
        "device": str(device),
        "threads": f"{options.threads} thread{'s' * (options.threads != 1)}",
        "blocks": options.blocks,
        "rates": rates,
        "torch": torch.__version__,
    }
    found = [bench.results[name] for name in ORDER if name in bench.results]
    step_report.write(step_report.rows(found, bench.rounds, rates), bench.rounds, settings, options.out)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perf.step_cost", description=__doc__.splitlines()[0])
    names = [entry.name for entry in OURS]
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--methods", nargs="+", default=names, choices=names, metavar="METHOD", help=", ".join(names))
    parser.add_argument("--blocks", type=int, default=30, help="timed steps of each contestant")
    parser.add_argument("--batches", type=int, default=4, help="different batches, taken in turn")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--supervised", type=int, default=32, help="tokens of a row that carry loss")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/perf"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
