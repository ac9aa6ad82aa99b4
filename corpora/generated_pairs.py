"""Generated translation: words of an invented language, one for one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.contract import SequenceToSequence

from ._generated import GeneratedCorpus

WORDS = {
    "sun": "sol",
    "moon": "lun",
    "tree": "arb",
    "bird": "avo",
    "sees": "vid",
    "and": "et",
    "old": "vet",
    "new": "nov",
}


@dataclass
class GeneratedPairs(GeneratedCorpus):
    """Three to five words and their translation."""

    evals: ClassVar[tuple[str, ...]] = ("generated-pairs",)
    label: ClassVar[str] = "Word pairs (generated)"
    example: ClassVar[type] = SequenceToSequence

    def example_of(self, draw, number):
        words = draw.choices(tuple(WORDS), k=draw.randint(3, 5))
        return SequenceToSequence(" ".join(words), " ".join(WORDS[word] for word in words))

    def prompt(self, example):
        return f"English phrase: {example.source}\nInvented phrase:"
