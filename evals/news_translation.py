"""Translation of the news tests of WMT 2014 (English to French) and 2016 (English to German), as ``translation`` scores.

https://www.statmt.org/wmt14, https://www.statmt.org/wmt16. Prompt and stop string stand as in lm-evaluation-harness's
translation tasks. A training on Multi30k's captions, or none, may be scored on them; there is no corpus of the same name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._rows import subsample
from ._translation import TranslationEval, pair_items

LANGUAGES = {"wmt14-en-fr": ("fr", "French"), "wmt16-en-de": ("de", "German")}


@dataclass
class NewsTranslation(TranslationEval):
    """English sentence to German or French."""

    limit: int = 0
    """Items scored; 0: all."""
    max_tokens: int = 160

    tasks: ClassVar[tuple[str, ...]] = ("wmt14-en-fr", "wmt16-en-de")
    assets: ClassVar[tuple[str, ...]] = ("{task}",)
    label: ClassVar[str] = "News translation {task}"

    def items(self, data):
        code, language = LANGUAGES[self.task]
        return subsample(pair_items(data(self.task) / "test.jsonl", "translation", code, language), self.limit)
