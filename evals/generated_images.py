"""Generated images: is the noise tinted red or blue? Classified by a task head."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from harness.contract import Choices

from ._classes import ClassEval
from ._generated import GeneratedEval

SIDE = 32


@dataclass
class GeneratedImages(ClassEval, GeneratedEval):
    """An image, kept as the seed of its noise, and its tint."""

    label: ClassVar[str] = "Tints (generated)"
    floors: ClassVar[dict[str, float]] = {"accuracy": 50.0}

    def item_of(self, draw, number):
        return {"seed": draw.getrandbits(32), "label": number % 2}

    def requests(self, item, outputs=()):
        if outputs:
            return []
        noise = random.Random(item["seed"]).randbytes(SIDE * SIDE * 3)
        pixels = np.frombuffer(noise, np.uint8).reshape(SIDE, SIDE, 3) // 2
        pixels[:, :, 2 * item["label"]] += 100
        return [Choices("", ("red", "blue"), input=pixels)]
