"""Generated mathematics: sums of two digits, generated and extracted as GSM8K's answers are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Generate, Reference

from ._answers import answer_grade, answer_shares
from ._generated import GeneratedEval
from ._reference import nats_per_token, reference_counts


@dataclass
class GeneratedSums(GeneratedEval):
    """A sum to its working and result."""

    max_tokens: int = 24

    label: ClassVar[str] = "Sums (generated)"
    headline: ClassVar[str] = "exact_match_flexible"
    units: ClassVar[dict[str, str]] = {
        "exact_match_flexible": "%",
        "exact_match_strict": "%",
        "reference_nll": "nats/token",
    }
    lower_is_better: ClassVar[tuple[str, ...]] = ("reference_nll",)
    floors: ClassVar[dict[str, float]] = {"exact_match_flexible": 0.0, "exact_match_strict": 0.0}

    def item_of(self, draw, number):
        a, b = draw.randint(0, 9), draw.randint(0, 9)
        return {"context": f"Question: {a}+{b}?\nAnswer:", "answer": f"{a}+{b}={a + b}\n#### {a + b}"}

    def requests(self, item, outputs=()):
        if outputs:
            return []
        return [
            Generate(item["context"], ("Question:",), self.max_tokens),
            Reference(item["context"], " " + item["answer"]),
        ]

    def grade(self, item, outputs):
        generated, reference = outputs
        return {**answer_grade(generated["texts"][0], item["answer"]), **reference_counts(reference)}

    def aggregate(self, grades):
        return {**answer_shares(grades), "reference_nll": nats_per_token(grades)}
