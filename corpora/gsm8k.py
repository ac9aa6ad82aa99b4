"""GSM8K (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168): school problems with worked answers ending "#### n".

Prompt and answer stand as in lm-evaluation-harness's ``gsm8k``. Validation is carved from train.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Completion, Corpus

from ._rows import carve, check_split, chosen, read_rows


@dataclass
class Gsm8k(Corpus):
    """Problem to chain of thought and answer."""

    limit: int = 0
    """Training examples; 0: all."""

    assets: ClassVar[tuple[str, ...]] = ("gsm8k",)
    evals: ClassVar[tuple[str, ...]] = ("gsm8k",)
    label: ClassVar[str] = "GSM8K"
    example: ClassVar[type] = Completion

    def examples(self, split, data):
        check_split(split)
        rows = read_rows(data("gsm8k") / "train.jsonl", ("question", "answer"))
        kept = carve(rows, [row["question"] for row in rows], split)
        return [_example(row) for row in chosen(kept, split, self.limit)]

    def tests(self, data):
        return [_example(row) for row in read_rows(data("gsm8k") / "test.jsonl", ("question", "answer"))]


def _example(row: dict) -> Completion:
    return Completion(f"Question: {row['question']}\nAnswer:", " " + row["answer"])
