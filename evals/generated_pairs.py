"""Generated translation: words of an invented language, one for one, scored as translations are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Generate, Reference

from ._generated import GeneratedEval
from ._reference import nats_per_token, reference_counts
from ._translation import corpus_scores, translation_counts, translation_signatures

WORDS = {
    "sun": "sol",
    "moon": "lun",
    "tree": "arb",
    "bird": "avo",
    "sees": "vid",
    "and": "et",
    "old": "vet",
    "new": "nov",
}


@dataclass
class GeneratedPairs(GeneratedEval):
    """Three to five words and their translation."""

    max_tokens: int = 24

    label: ClassVar[str] = "Word pairs (generated)"
    headline: ClassVar[str] = "bleu"
    units: ClassVar[dict[str, str]] = {
        "bleu": "BLEU",
        "chrf": "chrF++",
        "rouge_l": "x 100",
        "reference_nll": "nats/token",
    }
    lower_is_better: ClassVar[tuple[str, ...]] = ("reference_nll",)
    floors: ClassVar[dict[str, float]] = {"bleu": 0.0}

    def item_of(self, draw, number):
        words = draw.choices(tuple(WORDS), k=draw.randint(3, 5))
        context = f"English phrase: {' '.join(words)}\nInvented phrase:"
        return {"context": context, "target": " ".join(WORDS[word] for word in words)}

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
