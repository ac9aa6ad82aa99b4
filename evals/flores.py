"""Translation of FLORES-200's devtest (NLLB Team 2022, https://arxiv.org/abs/2207.04672), as ``translation`` scores.

1,012 sentences of Wikinews, Wikijunior and Wikivoyage, in the pairs of the hub's ``haoranxu/FLORES-200``. Prompt and stop
string stand as in lm-evaluation-harness's translation tasks; sacreBLEU's own tokenizer 13a, so no spBLEU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._rows import subsample
from ._translation import TranslationEval, pair_items

LANGUAGES = {"en-de": ("de", "German"), "en-fr": ("fr", "French")}


@dataclass
class Flores(TranslationEval):
    """English sentence to German or French."""

    limit: int = 0
    """Items scored; 0: all."""
    max_tokens: int = 160

    tasks: ClassVar[tuple[str, ...]] = ("en-de", "en-fr")
    assets: ClassVar[tuple[str, ...]] = ("flores-{task}",)
    label: ClassVar[str] = "FLORES-200 devtest {task}"

    def items(self, data):
        code, language = LANGUAGES[self.task]
        return subsample(pair_items(data(f"flores-{self.task}") / "test.jsonl", self.task, code, language), self.limit)
