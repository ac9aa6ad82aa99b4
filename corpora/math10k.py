"""Math10K (LLM-Adapters, Hu et al. 2023, https://arxiv.org/abs/2304.01933): problems of GSM8K, MAWPS and AQuA, worked out.

Some of its rows are test problems of MAWPS (LLM-Adapters' own notice), so a suite that trains on it and scores MAWPS is
refused; rows that overlap with the tests of GSM8K, AQuA and SVAMP are removed, unless the suite keeps them. LLM-Adapters
wraps each problem in an instruction; here it is asked in the words of the evals. Validation is carved from the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Completion, Corpus

from ._rows import carve, check_split, chosen, read_rows
from ._word_problems import problems


@dataclass
class Math10k(Corpus):
    """Problem to chain of thought and answer."""

    limit: int = 0
    """Training examples; 0: all."""

    assets: ClassVar[tuple[str, ...]] = ("math10k", "gsm8k", "aqua", "svamp")
    evals: ClassVar[tuple[str, ...]] = ("gsm8k", "math-word-aqua", "math-word-svamp")
    leaked: ClassVar[dict[str, str]] = {"math-word-mawps": "Math10K has MAWPS's test problems among its training rows"}
    label: ClassVar[str] = "Math10K"
    example: ClassVar[type] = Completion

    def examples(self, split, data):
        check_split(split)
        rows = read_rows(data("math10k") / "train.jsonl", ("instruction", "output"))
        kept = carve(rows, [row["instruction"] for row in rows], split)
        return [_example(row["instruction"], row["output"]) for row in chosen(kept, split, self.limit)]

    def tests(self, data):
        asked = [row["question"] for row in read_rows(data("gsm8k") / "test.jsonl", ("question",))]
        for task in ("aqua", "svamp"):
            asked += [question for question, _ in problems(task, data(task) / "test.jsonl")]
        return [_example(question, "") for question in asked]


def _example(question: str, answer: str) -> Completion:
    return Completion(f"Question: {question.strip()}\nAnswer:", f" {answer.strip()}")
