"""CIFAR-100 (Krizhevsky 2009): 32 x 32 photographs of a hundred kinds of things.

https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf. The fine labels. Validation is carved from train by the
images' bytes, so that equal images stay on one side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Corpus, Labelled

from ._images import pixels, place
from ._rows import carve, check_split, chosen, read_labelled


@dataclass
class Cifar100(Corpus):
    """A photograph, and which of a hundred things it shows."""

    limit: int = 0
    """Training examples; 0: all."""
    classes: tuple[str, ...] = tuple(str(number) for number in range(100))

    assets: ClassVar[tuple[str, ...]] = ("cifar100",)
    evals: ClassVar[tuple[str, ...]] = ("cifar100",)
    label: ClassVar[str] = "CIFAR-100"
    example: ClassVar[type] = Labelled

    def examples(self, split, data):
        check_split(split)
        path = data("cifar100") / "train.jsonl"
        rows = list(enumerate(read_labelled(path, ("img",), "fine_label", range(len(self.classes))), 1))
        kept = carve(rows, [str(row["img"]) for _, row in rows], split)
        return [
            Labelled(pixels(row["img"], place(path, number, "img")), row["fine_label"])
            for number, row in chosen(kept, split, self.limit)
        ]
