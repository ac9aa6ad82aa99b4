"""SQuAD 2.0 (Rajpurkar et al. 2018, https://arxiv.org/abs/1806.03822): a passage, a question, a span of it or none.

The answer to a question without one is "unanswerable", as in lm-evaluation-harness. Validation is carved from train, all
questions of an article on one side; the test rows are SQuAD's development set, as its test set is secret.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Completion, Corpus

from ._rows import carve, check_split, chosen
from ._squad import UNANSWERABLE, squad_prompt, squad_rows


@dataclass
class SquadV2(Corpus):
    """Passage and question to answer."""

    limit: int = 0
    """Training examples; 0: all."""

    assets: ClassVar[tuple[str, ...]] = ("squad-v2",)
    evals: ClassVar[tuple[str, ...]] = ("squad-v2",)
    label: ClassVar[str] = "SQuAD 2.0"
    example: ClassVar[type] = Completion

    def examples(self, split, data):
        check_split(split)
        rows = squad_rows(data("squad-v2") / "train.jsonl")
        kept = carve(rows, [row["title"] for row in rows], split)
        return [_example(row) for row in chosen(kept, split, self.limit)]

    def tests(self, data):
        return [_example(row) for row in squad_rows(data("squad-v2") / "validation.jsonl")]


def _example(row: dict) -> Completion:
    return Completion(squad_prompt(row), f" {row['texts'][0] if row['texts'] else UNANSWERABLE}")
