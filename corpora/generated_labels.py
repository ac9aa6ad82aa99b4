"""Generated classification: is a text made of more "a" or more "b"?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Labelled

from ._generated import GeneratedCorpus


@dataclass
class GeneratedLabels(GeneratedCorpus):
    """Five words of one letter mostly, and that letter."""

    classes: tuple[str, ...] = ("a", "b")

    evals: ClassVar[tuple[str, ...]] = ("generated-labels",)
    label: ClassVar[str] = "Letters (generated)"
    example: ClassVar[type] = Labelled

    def example_of(self, draw, number):
        label = number % 2
        letters = self.classes[label] * 8 + self.classes[1 - label]
        words = ("".join(draw.choices(letters, k=draw.randint(2, 5))) for _ in range(5))
        return Labelled(" ".join(words), label)

    def prompt(self, example):
        return f"{example.input}\nLetter:"
