"""Generated running text: sentences of three words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Text

from ._generated import GeneratedCorpus

WHO, DOES, WHAT = ("the sun", "a bird", "the moon"), ("sees", "likes", "finds"), ("a tree", "the sea", "a stone")


@dataclass
class GeneratedText(GeneratedCorpus):
    """Three sentences."""

    evals: ClassVar[tuple[str, ...]] = ("generated-text",)
    label: ClassVar[str] = "Sentences (generated)"
    example: ClassVar[type] = Text

    def example_of(self, draw, number):
        return Text(" ".join(f"{draw.choice(WHO)} {draw.choice(DOES)} {draw.choice(WHAT)}." for _ in range(3)))
