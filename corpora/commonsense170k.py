"""Commonsense-170K (LLM-Adapters, Hu et al. 2023, https://arxiv.org/abs/2304.01933): eight tasks' training rows as one.

One training is scored on all eight. Validation is carved from the rows; LLM-Adapters takes 120 at random. Rows that
overlap with the eight test sets are removed, unless the suite keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Completion, Corpus

from ._commonsense import PROMPT, TASKS, instruction, questions, words
from ._rows import carve, check_split, chosen, read_rows


@dataclass
class Commonsense170k(Corpus):
    """Instruction to "the correct answer is ..."."""

    limit: int = 0
    """Training examples; 0: all."""

    assets: ClassVar[tuple[str, ...]] = (
        "commonsense-170k",
        "commonsense-boolq",
        "commonsense-piqa",
        "commonsense-siqa",
        "commonsense-hellaswag",
        "commonsense-winogrande",
        "commonsense-arc-easy",
        "commonsense-arc-challenge",
        "commonsense-openbookqa",
    )
    evals: ClassVar[tuple[str, ...]] = (
        "commonsense-boolq",
        "commonsense-piqa",
        "commonsense-siqa",
        "commonsense-hellaswag",
        "commonsense-winogrande",
        "commonsense-arc-easy",
        "commonsense-arc-challenge",
        "commonsense-openbookqa",
    )
    label: ClassVar[str] = "Commonsense-170K"
    example: ClassVar[type] = Completion

    def examples(self, split, data):
        check_split(split)
        rows = read_rows(data("commonsense-170k") / "train.jsonl", ("instruction", "output"))
        kept = carve(rows, [row["instruction"] for row in rows], split)
        return [_example(row["instruction"], row["output"]) for row in chosen(kept, split, self.limit)]

    def tests(self, data):
        found = []
        for task in TASKS:
            for _, question in questions(task, data(f"commonsense-{task}")):
                answer = words(task, len(question.answers))[question.gold]
                found.append(_example(instruction(task, question), f"the correct answer is {answer}"))
        return found


def _example(asked: str, answer: str) -> Completion:
    return Completion(PROMPT.format(asked.strip()), f"\n{answer.strip()}")
