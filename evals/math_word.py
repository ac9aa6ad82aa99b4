"""AQuA, SVAMP and MAWPS: word problems beside GSM8K's, asked in its words, answered after written reasoning.

AQuA (Ling et al. 2017, https://arxiv.org/abs/1705.04146): 254 problems with five options, the letter counts. SVAMP (Patel et
al. 2021, https://arxiv.org/abs/2103.07191): 300 test problems of the hub's split; LLM-Adapters scores all 1,000. MAWPS
(Koncel-Kedziorski et al. 2016): the hub's test split, whose problems LLM-Adapters' Math10K has among its training rows.
A number is right within 0.001, as LLM-Adapters takes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from corpora._word_problems import problems
from harness.contract import Eval, Generate

from ._answers import STOPS, number
from ._classes import accuracy
from ._rows import subsample

LETTER = re.compile(r"answer is:? *\(?([A-E])\b|\(([A-E])\)|\b([A-E])\b")


@dataclass
class MathWord(Eval):
    """Problem to number, or to a letter (``aqua``)."""

    limit: int = 0
    """Items scored; 0: all."""
    max_tokens: int = 256

    tasks: ClassVar[tuple[str, ...]] = ("aqua", "svamp", "mawps")
    assets: ClassVar[tuple[str, ...]] = ("{task}",)
    label: ClassVar[str] = "{task} (word problems)"
    headline: ClassVar[str] = "accuracy"
    units: ClassVar[dict[str, str]] = {"accuracy": "%", "answered": "%"}

    @property
    def floors(self) -> dict[str, float]:
        """A guess of one option in five; nobody guesses a number."""
        return {"accuracy": 20.0 if self.task == "aqua" else 0.0}

    def items(self, data):
        path = data(self.task) / "test.jsonl"
        items = []
        for line, (question, told) in enumerate(problems(self.task, path), 1):
            gold = _gold(self.task, told)
            if gold is None:
                raise ValueError(f"{path}:{line}: its answer is none: {told!r}")
            items.append({"id": str(line - 1), "context": f"Question: {question}\nAnswer:", "gold": gold})
        return subsample(items, self.limit)

    def requests(self, item, outputs=()):
        return [] if outputs else [Generate(item["context"], STOPS, self.max_tokens)]

    def grade(self, item, outputs):
        text, gold = outputs[0]["texts"][0], item["gold"]
        found = letter(text) if self.task == "aqua" else number(text)
        near = isinstance(found, float) and abs(found - gold) <= 1e-3
        return {
            "gold": gold,
            "predicted": found,
            "answered": int(found is not None),
            "correct": int(near or found == gold),
        }

    def aggregate(self, grades):
        answered = 100.0 * sum(grade["answered"] for grade in grades) / len(grades)
        return {"accuracy": accuracy(grades), "answered": answered}


def letter(text: str) -> str | None:
    """The option that the text names: after the last "answer is", else the last in parentheses or standing alone."""
    found = LETTER.findall(text)
    told = [first for first, _, _ in found if first]
    every = ["".join(groups) for groups in found]
    return (told or every or [None])[-1]


def _gold(task: str, told: str) -> str | float | None:
    """The right letter or number; None where the row has none."""
    if task != "aqua":
        return number(told)
    return told.strip() if told.strip() in ("A", "B", "C", "D", "E") else None
