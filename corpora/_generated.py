"""What the generated corpora have in common: a generator of random numbers for each, the same on every machine."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Corpus

from ._rows import check_split

VALIDATION = 32


@dataclass
class GeneratedCorpus(Corpus):
    """Rows made by ``example_of``: shaped like a task, small, learnable by a model of a few thousand parameters."""

    rows: int = 128
    """Training rows; validation has VALIDATION."""

    generated: ClassVar[bool] = True

    def examples(self, split, data):
        check_split(split)
        # Seeded by text, of which `random` takes the SHA-512: the rows do not depend on the hash seed.
        draw = random.Random(f"{type(self).__name__} {split}")
        return [self.example_of(draw, number) for number in range(self.rows if split == "train" else VALIDATION)]

    def example_of(self, draw: random.Random, number: int):
        """Example ``number``, from random numbers of ``draw`` alone."""
        raise TypeError(f"{type(self).__name__} must define example_of(draw, number)")
