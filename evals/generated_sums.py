"""Generated mathematics: sums of two digits, generated and extracted as GSM8K's answers are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._answers import AnswerEval
from ._generated import GeneratedEval


@dataclass
class GeneratedSums(GeneratedEval, AnswerEval):
    """A sum to its working and result."""

    max_tokens: int = 24

    label: ClassVar[str] = "Sums (generated)"

    def item_of(self, draw, number):
        a, b = draw.randint(0, 9), draw.randint(0, 9)
        return {"context": f"Question: {a}+{b}?\nAnswer:", "answer": f"{a}+{b}={a + b}\n#### {a + b}"}
