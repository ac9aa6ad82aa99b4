"""Generated images: noise of 32 x 32 pixels, tinted red or blue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from harness.contract import Labelled

from ._generated import GeneratedCorpus

SIDE = 32


@dataclass
class GeneratedImages(GeneratedCorpus):
    """An array (32, 32, 3) of uint8, and its tint."""

    classes: tuple[str, ...] = ("red", "blue")

    evals: ClassVar[tuple[str, ...]] = ("generated-images",)
    label: ClassVar[str] = "Tints (generated)"
    example: ClassVar[type] = Labelled

    def example_of(self, draw, number):
        label = number % 2
        pixels = np.frombuffer(draw.randbytes(SIDE * SIDE * 3), np.uint8).reshape(SIDE, SIDE, 3) // 2
        pixels[:, :, 2 * label] += 100
        return Labelled(pixels, label)
