"""Every basis of a real model at once, from gradients of real training; and the optimizer's work between refreshes."""

from __future__ import annotations

import argparse
import functools
import gc
import importlib.util
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

from harness import assets, data
from harness.loss import SupervisedLogits, loss_sum
from harness.models import find_targets, load_model
from harness.plugins import load_plugin
from methods._projected_adam import ProjectedAdamW
from methods._projector import Builder, Report, side_of
from perf import contest
from perf.projector_spectra import BUILDERS, energies, label, sines, timed


class Gradients:
    """The model's matrices with gradients of the first batch, and of another after some steps of full fine-tuning."""

    def __init__(self, options: argparse.Namespace, device: torch.device):
        self.model, tokenizer = load_model(options.model, None, torch.float32, 0)
        self.model.to(device).requires_grad_(True).train()
        self.matrices = [module.weight for _, module in find_targets(self.model, "all-linear")]
        batches, self.source = batches_of(options, self.model, tokenizer)
        batches = [batch.to(device) for batch in batches]
        with SupervisedLogits(self.model) as logits:
            self.logits = logits
            self.before = self.gradients(batches[0])
            self.train(batches[1:-1])
            self.after = self.gradients(batches[-1])
        self.others = {p: p.grad for p in self.model.parameters() if p.grad is not None}

    def gradients(self, batch: data.MicroBatch) -> list[Tensor]:
        self.model.zero_grad()
        (loss_sum(self.model, batch, self.logits) / batch.tokens).backward()
        return [p.grad for p in self.matrices]

    def train(self, batches: list[data.MicroBatch]) -> None:
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, weight_decay=0.0, fused=True)
        for number, batch in enumerate(batches):
            self.gradients(batch)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            if number % 50 == 49:
                print(f"full fine-tuning, step {number + 1}/{len(batches)}", flush=True)

    def give(self, gradients: list[Tensor]) -> None:
        for p, gradient in zip(self.matrices, gradients, strict=True):
            p.grad = gradient


def batches_of(options: argparse.Namespace, model: nn.Module, tokenizer: object) -> tuple[list, str]:
    """``steps`` + 2 batches of headlines, or of random tokens where these are not prepared; and what they are."""
    count, kind = options.steps + 2, "causal"
    try:
        corpus = load_plugin("corpora", "headlines")
        examples = corpus.examples("train", assets.asset_folder)
    except assets.AssetMissing as error:
        print(f"random tokens instead of headlines: {error}", flush=True)
        made = contest.batches(model.config.vocab_size, options.rows, 64, 16, count)
        return made, f"{options.rows} rows of 64 random tokens, 16 supervised"
    rows = data.encode(examples[: count * options.rows], corpus, tokenizer, kind, 256)
    order = data.order([row.length for row in rows], count, options.rows, 1, 0)
    made = [data.collate([rows[i] for i in chosen], kind, 0) for chosen in order]
    return made, f"{options.rows} sarcasm headlines, {made[-1].tokens} supervised tokens"


class Refreshes:
    """Contestants that make all bases of the model once, from ``after``; warm ones have theirs of ``before``."""

    def __init__(self, found: Gradients, options: argparse.Namespace):
        self.found, self.options = found, options
        self.exact = [exact_basis(G, max(options.ranks)) for G in found.after]
        self.seconds: dict[str, list[float]] = {}
        self.rows: list[dict] = []

    def ours(self, name: str, start: str, rank: int) -> Callable[[], object]:
        """A refresh, as often as asked, each from the same old bases; its quality goes to the rows once."""
        found, builder = self.found, BUILDERS[name]
        optimizer = ProjectedAdamW(found.matrices, [], rank, 1.0, 1e-6, 0.0, 0.0)
        refresh = functools.partial(optimizer.refresh, builder)
        device = found.matrices[0].device
        if start == "warm":
            found.give(found.before)
            refresh(torch.Generator(device).manual_seed(3))
        old = [optimizer.stacks(bucket)["basis"].clone() for bucket in optimizer.buckets]

        def run() -> object:
            for bucket, group, basis in zip(optimizer.buckets, optimizer.param_groups[:-1], old, strict=True):
                optimizer.stacks(bucket)["basis"].copy_(basis)
                group["refreshes"] = int(start == "warm")
            found.give(found.after)
            return timed(lambda: refresh(torch.Generator(device).manual_seed(4)))

        _, report = run()
        self.rows.append({"rank": rank, "builder": name, "start": start, "label": label(name, start)})
        self.rows[-1] |= self.quality(optimizer, report, rank, builder)
        return run

    def quality(self, optimizer: ProjectedAdamW, report: Report, rank: int, builder: Builder) -> dict:
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
            "iterations": float(report.iterations.mean()) / (rank if builder.kind == "sequential" else 1),
            "passes": float(report.passes.mean()),
            "energy": statistics.median(shares),
            "energy_lowest": min(shares),
            "angle": statistics.median(angles),
            "captured": float(report.share.mean()),
        }

    def theirs(self) -> Callable[[], object] | None:
        """galore-torch's projector, which takes the whole SVD whatever the rank; None where it is not installed."""
        if importlib.util.find_spec("galore_torch") is None:
            return None
        from galore_torch.galore_projector import GaLoreProjector

        def run() -> object:
            def refresh() -> None:
                for G in self.found.after:
                    GaLoreProjector(32).get_orthogonal_matrix(G, 32, type=side_of(G.shape))

            return timed(refresh)

        return run

    def alternate(self, contestants: dict[str, Callable[[], object]]) -> None:
        names = list(contestants)
        for number in range(self.options.rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                self.seconds.setdefault(name, []).append(contestants[name]()[0])
            print(f"round {number + 1}/{self.options.rounds}", flush=True)


def exact_basis(G: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(squared singular values, vectors as rows) of the short side, in double."""
    A = (G if side_of(G.shape) == "right" else G.t()).double()
    values, vectors = torch.linalg.eigh(A.t() @ A)
    return values.flip(0)[:rank], vectors.t().flip(0)[:rank]


def contestants(there: Refreshes, options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    made = {"galore-torch": there.theirs()}
    made = {name: run for name, run in made.items() if run}
    if not made:
        made["svd"] = there.ours("svd", "", options.ranks[0])
    ranks = [rank for rank in options.ranks if rank >= 32] or options.ranks
    for rank in ranks:
        for name, start in (("block", "warm"), ("block of 5", "warm"), ("block", "cold"), ("gram", "")):
            made[f"{name} {start} {rank}"] = there.ours(name, start, rank)
        for start in ("warm", "cold"):
            made[f"dynamic {start} {rank}"] = there.ours("dynamic", start, rank)
    return made


# --------------------------------------------------------------------------- a step between refreshes


def steps(found: Gradients, options: argparse.Namespace) -> dict[int, dict[str, list[float]]]:
    """Seconds of the optimizer's work on a step without refresh, ours and galore-torch's, in turn, by rank."""
    seconds: dict[int, dict[str, list[float]]] = {}
    for rank in [rank for rank in options.ranks if rank >= 32] or options.ranks:
        runs = {"ours": our_step(found, rank)}
        if importlib.util.find_spec("galore_torch") is not None:
            runs["galore-torch"] = their_step(found, rank)
        there = seconds.setdefault(rank, {name: [] for name in runs})
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
    optimizer = ProjectedAdamW(found.matrices, others(found), rank, 1.0, 1e-6, 1e-9, 0.0)
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
    optimizer = GaLoreAdamW(groups, lr=1e-9, no_deprecation_warning=True)
    give_all(found)
    optimizer.step()  # the first one makes the bases
    return optimizer.step
