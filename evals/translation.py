"""Translation of Multi30k's 2016 test set (Elliott et al. 2016, https://arxiv.org/abs/1605.00459).

Prompt and stop string stand as in lm-evaluation-harness's translation tasks. ``bleu`` and ``chrf`` (chrF++) are
sacreBLEU's, with its signatures in the record; ``rouge_l`` is rouge_score's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from corpora._rows import read_rows

from ._rows import subsample
from ._translation import TranslationEval

LANGUAGES = {"multi30k-en-de": ("de", "German"), "multi30k-en-fr": ("fr", "French")}


@dataclass
class Translation(TranslationEval):
    """English sentence to German or French."""

    limit: int = 0
    """Items scored; 0: all."""
    max_tokens: int = 96

    tasks: ClassVar[tuple[str, ...]] = ("multi30k-en-de", "multi30k-en-fr")
    assets: ClassVar[tuple[str, ...]] = ("multi30k",)
    label: ClassVar[str] = "Translation {task}"

    def items(self, data):
        column, language = LANGUAGES[self.task]
        items = [
            {
                "id": str(number),
                "context": f"English phrase: {row['en']}\n{language} phrase:",
                "target": row[column],
            }
            for number, row in enumerate(read_rows(data("multi30k") / "test.jsonl", ("en", column)))
        ]
        return subsample(items, self.limit)
