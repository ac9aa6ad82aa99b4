"""What the generated evals have in common: items from random numbers that are the same on every machine."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Eval


@dataclass
class GeneratedEval(Eval):
    """Items made by ``item_of``; requests, grades and metrics are those of the eval that they stand in for."""

    rows: int = 16
    """Items scored."""

    generated: ClassVar[bool] = True

    def items(self, data):
        draw = random.Random(f"{type(self).__name__} test")  # `random` takes the text's SHA-512: no hash seed in it
        return [{"id": str(number), **self.item_of(draw, number)} for number in range(self.rows)]

    def item_of(self, draw: random.Random, number: int) -> dict:
        """Item ``number`` without its id, from random numbers of ``draw`` alone."""
        raise TypeError(f"{type(self).__name__} must define item_of(draw, number)")
