"""CIFAR-100 (Krizhevsky 2009) on its 10,000 test images: accuracy of the fine label, by a task head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from corpora._images import pixels, place
from corpora._rows import read_labelled
from harness.contract import Choices

from ._classes import ClassEval
from ._rows import subsample

CLASSES = tuple(str(number) for number in range(100))


@dataclass
class Cifar100(ClassEval):
    """An image, kept as it came, and its label."""

    limit: int = 0
    """Items scored; 0: all."""

    assets: ClassVar[tuple[str, ...]] = ("cifar100",)
    label: ClassVar[str] = "CIFAR-100"
    floors: ClassVar[dict[str, float]] = {"accuracy": 1.0}

    def items(self, data):
        path = data("cifar100") / "test.jsonl"
        rows = enumerate(read_labelled(path, ("img",), "fine_label", range(len(CLASSES))), 1)
        items = [
            {"id": str(n - 1), "img": row["img"], "where": place(path, n, "img"), "label": row["fine_label"]}
            for n, row in rows
        ]
        return subsample(items, self.limit)

    def requests(self, item, outputs=()):
        return [] if outputs else [Choices("", CLASSES, input=pixels(item["img"], item["where"]))]
