"""Sarcasm headlines: newspaper headlines, sarcastic or not, as the PyPI wheel ``evals`` ships them.

A stand-in for a classification benchmark where no hub is at hand, under its own name. The file has no split, so a hash
of each headline's words makes one: of ten parts, part 0 is the eval's test, part 1 validation, the rest train. Lines
that differ in case or punctuation only count once and never stand on two sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Corpus, Labelled

from ._rows import bucket, check_split, chosen, normal, read_rows

PARTS = {"validation": (1,), "train": (2, 3, 4, 5, 6, 7, 8, 9)}


@dataclass
class Headlines(Corpus):
    """A headline, with class 1 where it is sarcastic."""

    classes: tuple[str, ...] = ("no", "yes")
    limit: int = 0
    """Training examples; 0: all."""

    assets: ClassVar[tuple[str, ...]] = ("headlines",)
    evals: ClassVar[tuple[str, ...]] = ("headlines",)
    label: ClassVar[str] = "Sarcasm headlines (evals wheel)"
    example: ClassVar[type] = Labelled

    def examples(self, split, data):
        check_split(split)
        labels: dict[str, tuple[str, int]] = {}
        for row in read_rows(data("headlines") / "samples.jsonl", ("input", "ideal")):
            text = row["input"][-1]["content"].strip()
            labels.setdefault(normal(text), (text, int(row["ideal"])))
        kept = [pair for words, pair in labels.items() if bucket(words, 10) in PARTS[split]]
        return [Labelled(text, label) for text, label in chosen(kept, split, self.limit)]

    def prompt(self, example):
        return f"Headline: {example.input}\nQuestion: Is this headline sarcastic?\nAnswer:"
