"""What the measurements here share: batches of random tokens, our loop as a contestant, ratios with their intervals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from harness import data
from harness.contract import Method
from harness.loop import Trainer
from harness.loss import SupervisedLogits
from harness.measure import Curve
from harness.seeds import Streams
from harness.suite import PROTOCOL

PROTOCOL = {**PROTOCOL, "steps": 10**6, "warmup_fraction": 0.0, "schedule": "constant"}


def random_rows(vocabulary: int, rows: int, length: int, supervised: int, count: int) -> list[list[data.Row]]:
    """``count`` micro-batches of ``rows`` rows of random tokens whose last ``supervised`` positions carry the loss."""
    generator = np.random.default_rng(0)
    made = []
    for _ in range(count):
        ids = generator.integers(0, vocabulary, (rows, length)).tolist()
        made.append([data.Row(r, [data.IGNORE] * (length - supervised) + r[-supervised:]) for r in ids])
    return made


def batches(vocabulary: int, rows: int, length: int, supervised: int, count: int) -> list[data.MicroBatch]:
    """The same rows, collated."""
    return [data.collate(r, "causal", 0) for r in random_rows(vocabulary, rows, length, supervised, count)]


def labels(batch: data.MicroBatch) -> torch.Tensor:
    """Labels as transformers wants them: the token itself at each supervised place."""
    found = torch.full_like(batch.inputs["input_ids"], data.IGNORE)
    found.flatten()[batch.positions + 1] = batch.targets
    return found


class Ours:
    """A step of our loop, its curve written to a file. ``start`` runs between the trainer's making and its optimizer's."""

    def __init__(
        self,
        model: torch.nn.Module,
        method: Method,
        folder: Path,
        start: Callable[[Trainer], None] = lambda trainer: None,
    ):
        self.model = model.train()
        self.trainer = Trainer(model, method, PROTOCOL, Streams(0), 10**6)
        start(self.trainer)
        self.trainer.build_optimizers()
        self.curve = Curve(folder / "curves.jsonl")
        self.logits = SupervisedLogits(model).__enter__()

    def step(self, batch: data.MicroBatch) -> None:
        self.trainer.step([batch], self.logits, self.curve)
        self.curve.flush()


def ratio(ours: list[float], other: list[float], seed: int = 0) -> tuple[float, float, float]:
    """Median of the blocks' ratios with a 95 % bootstrap interval over blocks."""
    values = np.array(ours) / np.array(other)
    draws = np.random.default_rng(seed).choice(values, (10_000, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)
