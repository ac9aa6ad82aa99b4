"""Generated images: is the noise tinted red or blue? Classified by a task head."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from harness.contract import Choices

from ._classes import accuracy, class_grade, commonest_class_grades
from ._generated import GeneratedEval

SIDE = 32


@dataclass
class GeneratedImages(GeneratedEval):
    """An image, kept as the seed of its noise, and its tint."""

    label: ClassVar[str] = "Tints (generated)"
    headline: ClassVar[str] = "accuracy"
    units: ClassVar[dict[str, str]] = {"accuracy": "%"}
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

    def grade(self, item, outputs):
        return class_grade(item["label"], outputs[0])

    def aggregate(self, grades):
        return {"accuracy": accuracy(grades)}

    def majority(self, train, items):
        return commonest_class_grades([example.label for example in train], [item["label"] for item in items])
