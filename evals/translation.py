"""Translation of Multi30k's 2016 test set (Elliott et al. 2016, https://arxiv.org/abs/1605.00459).

Prompt and stop string stand as in lm-evaluation-harness's translation tasks. ``bleu`` and ``chrf`` (chrF++) are
sacreBLEU's, with its signatures in the record; ``rouge_l`` is rouge_score's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from corpora._rows import read_rows
from harness.contract import Eval, Generate, Reference

from ._reference import nats_per_token, reference_counts
from ._rows import subsample
from ._translation import corpus_scores, translation_counts, translation_signatures

LANGUAGES = {"multi30k-en-de": ("de", "German"), "multi30k-en-fr": ("fr", "French")}


@dataclass
class Translation(Eval):
    """English sentence to German or French."""

    limit: int = 0
    """Items scored; 0: all."""
    max_tokens: int = 96

    tasks: ClassVar[tuple[str, ...]] = ("multi30k-en-de", "multi30k-en-fr")
    assets: ClassVar[tuple[str, ...]] = ("multi30k",)
    label: ClassVar[str] = "Translation {task}"
    headline: ClassVar[str] = "bleu"
    units: ClassVar[dict[str, str]] = {
        "bleu": "BLEU",
        "chrf": "chrF++",
        "rouge_l": "x 100",
        "reference_nll": "nats/token",
    }
    lower_is_better: ClassVar[tuple[str, ...]] = ("reference_nll",)
    floors: ClassVar[dict[str, float]] = {"bleu": 0.0}

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

    def requests(self, item, outputs=()):
        if outputs:
            return []
        return [
            Generate(item["context"], ("\n",), self.max_tokens),
            Reference(item["context"], " " + item["target"]),
        ]

    def grade(self, item, outputs):
        generated, reference = outputs
        return {**translation_counts(generated["texts"][0], item["target"]), **reference_counts(reference)}

    def aggregate(self, grades):
        return {**corpus_scores(grades), "reference_nll": nats_per_token(grades)}

    def signatures(self):
        return translation_signatures()
