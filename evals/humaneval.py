"""HumanEval (Chen et al. 2021, https://arxiv.org/abs/2107.03374): 164 Python functions to write from their docstrings.

Stops and programs as lm-evaluation-harness's ``humaneval``; pass@1 from one greedy program unless ``samples`` and
``temperature`` say otherwise. Three things differ from its runner. The line break that ends a prompt is left to the
model, as in training; ``stock_prompt: true`` gives it, as lm-evaluation-harness does, and many texts are empty then
(docs/lm_eval_parity.md). Three seconds limit a program's CPU time instead of wall time, so that a busy machine changes
no grade. And only the standard library can be imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from corpora._rows import read_rows

from ._programs import COLUMNS, ProgramEval
from ._rows import subsample


@dataclass
class HumanEval(ProgramEval):
    """Function bodies from signature and docstring."""

    limit: int = 0
    """Test problems; 0: all."""
    stock_prompt: bool = False
    """Give the prompt with the line break at its end, to compare with scores of lm-evaluation-harness."""

    assets: ClassVar[tuple[str, ...]] = ("humaneval",)
    label: ClassVar[str] = "HumanEval"

    def items(self, data):
        rows = read_rows(data("humaneval") / "test.jsonl", COLUMNS)
        items = [{"id": row["task_id"], **{name: row[name] for name in COLUMNS[1:]}} for row in rows]
        return subsample(items, self.limit)

    def given(self, item):
        return item["prompt"] if self.stock_prompt else super().given(item)

    def signatures(self):
        return {
            **super().signatures(),
            "prompt": "lm-evaluation-harness's" if self.stock_prompt else "to its last quotes",
        }
