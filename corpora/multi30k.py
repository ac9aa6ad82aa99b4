"""Multi30k (Elliott et al. 2016, https://arxiv.org/abs/1605.00459): descriptions of photographs in three languages.

Prompts stand as in lm-evaluation-harness's translation tasks. Validation is the data set's own, which is not its test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Corpus, SequenceToSequence

from ._rows import check_split, chosen, read_rows

LANGUAGES = {"de": "German", "fr": "French"}


@dataclass
class Multi30k(Corpus):
    """English description to German or French."""

    limit: int = 0
    """Training examples; 0: all."""

    tasks: ClassVar[tuple[str, ...]] = ("en-de", "en-fr")
    assets: ClassVar[tuple[str, ...]] = ("multi30k",)
    evals: ClassVar[tuple[str, ...]] = ("translation-multi30k-{task}",)
    label: ClassVar[str] = "Multi30k {task}"
    example: ClassVar[type] = SequenceToSequence

    def examples(self, split, data):
        check_split(split)
        return [self._example(row) for row in chosen(self._rows(split, data), split, self.limit)]

    def tests(self, data):
        return [self._example(row) for row in self._rows("test", data)]

    def _rows(self, split: str, data) -> list[dict]:
        return read_rows(data("multi30k") / f"{split}.jsonl", ("en", self.task.removeprefix("en-")))

    def _example(self, row: dict) -> SequenceToSequence:
        return SequenceToSequence(row["en"], row[self.task.removeprefix("en-")])

    def prompt(self, example):
        return f"English phrase: {example.source}\n{LANGUAGES[self.task.removeprefix('en-')]} phrase:"
