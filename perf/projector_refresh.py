"""Every basis of a real model at once: seconds beside galore-torch's, and energy; and a step between refreshes."""

from __future__ import annotations

import argparse
import gc
import importlib.util
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from methods._projected_adam import ProjectedAdamW
from methods._projector import Report, side_of
from perf.projector_gradients import Gradients
from perf.projector_spectra import BUILDERS, energies, label, sines, timed

FIRST_RANK_ONLY = ("gram", "dynamic cold")  # the same at any rank, or long
LITTLE = 1e-9  # a learning rate that leaves the model as it is


class Refreshes:
    """Contestants that make all bases of the model once, from ``after``; warm ones have theirs of ``before``.

    Each is timed as galore-torch can be: the optimizer's call with a refresh less its call without.
    """

    def __init__(self, found: Gradients, options: argparse.Namespace):
        self.found, self.options = found, options
        self.exact = [exact_basis(G, max(options.ranks)) for G in found.after]
        self.seconds: dict[str, list[float]] = {}
        self.rows: list[dict] = []

    def ours(self, name: str, start: str, rank: int) -> Callable[[], float]:
        """A refresh, as often as asked, each from the same old bases; its quality goes to the rows once."""
        found, builder = self.found, BUILDERS[name]
        optimizer = ProjectedAdamW(found.matrices, [], rank, 1.0, 1e-6, LITTLE, 0.0)
        device = found.matrices[0].device

        def refresh(gradients: list[Tensor], seed: int) -> Report:
            found.give(gradients)
            return optimizer.refresh(builder, torch.Generator(device).manual_seed(seed))

        if start == "warm":
            refresh(found.before, 3)
        old = [optimizer.stacks(bucket)["basis"].clone() for bucket in optimizer.buckets]

        def as_before() -> None:
            for bucket, group, basis in zip(optimizer.buckets, optimizer.param_groups[:-1], old, strict=True):
                optimizer.stacks(bucket)["basis"].copy_(basis)
                group["refreshes"] = int(start == "warm")
            found.give(found.after)

        def run() -> float:
            as_before()
            generator = torch.Generator(device).manual_seed(4)
            with_refresh, _ = timed(lambda: (optimizer.refresh(builder, generator), optimizer.step()))
            found.give(found.after)
            return with_refresh - timed(lambda: (optimizer.project(), optimizer.step()))[0]

        as_before()
        report = refresh(found.after, 4)
        self.rows.append({"rank": rank, "builder": name, "start": start, "label": label(name, start)})
        self.rows[-1] |= self.quality(optimizer, report, rank if builder.kind == "sequential" else 1)
        return run

    def quality(self, optimizer: ProjectedAdamW, report: Report, vectors_apart: int) -> dict:
        shares, angles = [], []
        for bucket in optimizer.buckets:
            for number, place in enumerate(bucket.places):
                G, (values, vectors) = self.found.after[place], self.exact[place]
                A = (G if bucket.side == "right" else G.t())[None]
                Q = optimizer.stacks(bucket)["basis"][number][None]
                size = Q.shape[1]
                shares.append(float(energies(A.double(), Q.double()) / values[:size].sum()))
                angles.append(float(sines(Q, vectors[None, :size])))
        return {
            "iterations": float(report.iterations.mean()) / vectors_apart,
            "passes": float(report.passes.mean()),
            "energy": statistics.median(shares),
            "energy_lowest": min(shares),
            "angle": statistics.median(angles),
            "captured": float(report.share.mean()),
        }

    def theirs(self) -> Callable[[], float] | None:
        """galore-torch's optimizer, which takes the whole SVD whatever the rank; None where it is not installed."""
        if importlib.util.find_spec("galore_torch") is None:
            return None
        from galore_torch import GaLoreAdamW

        group = {"rank": min(ranks_of(self.options)), "update_proj_gap": 2, "scale": 1.0, "proj_type": "std"}
        groups = [{"params": self.found.matrices, "proj_quant": False, **group}]
        optimizer = GaLoreAdamW(groups, lr=LITTLE, no_deprecation_warning=True)

        def run() -> float:
            self.found.give(self.found.after)
            with_refresh, _ = timed(optimizer.step)
            return with_refresh - timed(optimizer.step)[0]

        return run

    def alternate(self, contestants: dict[str, Callable[[], float]]) -> None:
        names = list(contestants)
        for number in range(self.options.rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                self.seconds.setdefault(name, []).append(contestants[name]())
            print(f"round {number + 1}/{self.options.rounds}", flush=True)


def exact_basis(G: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(squared singular values, vectors as rows) of the short side, in double."""
    A = (G if side_of(G.shape) == "right" else G.t()).double()
    values, vectors = torch.linalg.eigh(A.t() @ A)
    return values.flip(0)[:rank], vectors.t().flip(0)[:rank]


def ranks_of(options: argparse.Namespace) -> list[int]:
    return [rank for rank in options.ranks if rank >= 32] or options.ranks


def contestants(there: Refreshes, options: argparse.Namespace) -> dict[str, Callable[[], float]]:
    made = {"galore-torch": there.theirs()}
    made = {name: run for name, run in made.items() if run}
    if not made:
        made["svd"] = there.ours("svd", "", options.ranks[0])
    for place, rank in enumerate(ranks_of(options)):
        for name, start in (("block", ""), ("block of 4", ""), ("gram", ""), ("dynamic", "warm"), ("dynamic", "cold")):
            if place == 0 or f"{name} {start}".strip() not in FIRST_RANK_ONLY:
                made[f"{name} {start} {rank}"] = there.ours(name, start, rank)
    return made


# --------------------------------------------------------------------------- a step between refreshes


def steps(found: Gradients, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Seconds of the optimizer's work on a step without refresh, ours and galore-torch's, in turn, by rank."""
    seconds: dict[str, dict[str, list[float]]] = {}
    for rank in ranks_of(options):
        runs = {"ours": our_step(found, rank)}
        if importlib.util.find_spec("galore_torch") is not None:
            runs["galore-torch"] = their_step(found, rank)
        there = seconds.setdefault(str(rank), {name: [] for name in runs})
        for number in range(-1, options.step_rounds):
            for name in list(runs)[:: -1 if number % 2 else 1]:
                give_all(found)
                spent, _ = timed(runs[name])
                if number >= 0:
                    there[name].append(spent)
        gc.collect()
    return seconds


def give_all(found: Gradients) -> None:
    for p, gradient in found.others.items():
        p.grad = gradient


def others(found: Gradients) -> list[Tensor]:
    chosen = {id(p) for p in found.matrices}
    return [p for p in found.others if id(p) not in chosen]


def our_step(found: Gradients, rank: int) -> Callable[[], None]:
    optimizer = ProjectedAdamW(found.matrices, others(found), rank, 1.0, 1e-6, LITTLE, 0.0)
    give_all(found)
    generator = torch.Generator(found.matrices[0].device).manual_seed(0)
    optimizer.refresh(BUILDERS["block"], generator)

    def run() -> None:
        optimizer.project()
        optimizer.step()

    return run


def their_step(found: Gradients, rank: int) -> Callable[[], None]:
    from galore_torch import GaLoreAdamW

    group = {"rank": rank, "update_proj_gap": 10**6, "scale": 1.0, "proj_type": "std", "proj_quant": False}
    groups = [{"params": others(found)}, {"params": found.matrices, **group}]
    optimizer = GaLoreAdamW(groups, lr=LITTLE, no_deprecation_warning=True)
    give_all(found)
    optimizer.step()  # the first one makes the bases
    return optimizer.step
