"""GSM8K (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168), 1,319 test problems, answers by exact match.

Prompt, stop strings and both extractions are those of lm-evaluation-harness's ``gsm8k``. That task shows five worked
examples by default; here a tuned model is asked without, and ``n_shot`` shows the first so many of the training file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from corpora._rows import read_rows

from ._answers import AnswerEval
from ._rows import subsample


@dataclass
class Gsm8k(AnswerEval):
    """Problem to number, through a written chain of thought."""

    limit: int = 0
    """Items scored; 0: all."""
    n_shot: int = 0
    """Worked examples before the problem."""
    max_tokens: int = 256

    assets: ClassVar[tuple[str, ...]] = ("gsm8k",)
    label: ClassVar[str] = "GSM8K"

    def items(self, data):
        shots = ""
        if self.n_shot:
            shown = read_rows(data("gsm8k") / "train.jsonl", ("question", "answer"))[: self.n_shot]
            shots = "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in shown)
        rows = read_rows(data("gsm8k") / "test.jsonl", ("question", "answer"))
        items = [
            {"id": str(number), "context": f"{shots}Question: {row['question']}\nAnswer:", "answer": row["answer"]}
            for number, row in enumerate(rows)
        ]
        return subsample(items, self.limit)
