"""Generated classification: is a text made of more "a" or more "b"? The likelier letter, or a task head's class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Choices

from ._classes import ClassEval
from ._generated import GeneratedEval

CLASSES = ("a", "b")


@dataclass
class GeneratedLabels(ClassEval, GeneratedEval):
    """Five words of one letter mostly, and that letter."""

    label: ClassVar[str] = "Letters (generated)"
    floors: ClassVar[dict[str, float]] = {"accuracy": 50.0}

    def item_of(self, draw, number):
        label = number % 2
        letters = CLASSES[label] * 8 + CLASSES[1 - label]
        words = ("".join(draw.choices(letters, k=draw.randint(2, 5))) for _ in range(5))
        return {"text": " ".join(words), "label": label}

    def requests(self, item, outputs=()):
        if outputs:
            return []
        return [Choices(f"{item['text']}\nLetter:", tuple(f" {letter}" for letter in CLASSES), input=item["text"])]
