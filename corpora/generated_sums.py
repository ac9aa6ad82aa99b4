"""Generated mathematics: sums of two digits, with question and answer laid out as in GSM8K."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Completion

from ._generated import GeneratedCorpus


@dataclass
class GeneratedSums(GeneratedCorpus):
    """A sum to its working and result."""

    evals: ClassVar[tuple[str, ...]] = ("generated-sums",)
    label: ClassVar[str] = "Sums (generated)"
    example: ClassVar[type] = Completion

    def example_of(self, draw, number):
        a, b = draw.randint(0, 9), draw.randint(0, 9)
        return Completion(f"Question: {a}+{b}?\nAnswer:", f" {a}+{b}={a + b}\n#### {a + b}")
