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
        target = self.task.removeprefix("en-")
        rows = read_rows(data("multi30k") / f"{split}.jsonl", ("en", target))
        return [SequenceToSequence(row["en"], row[target]) for row in chosen(rows, split, self.limit)]

    def prompt(self, example):
        return f"English phrase: {example.source}\n{LANGUAGES[self.task.removeprefix('en-')]} phrase:"
