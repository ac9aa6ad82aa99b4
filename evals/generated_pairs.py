"""Generated translation: words of an invented language, one for one, scored as translations are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._generated import GeneratedEval
from ._translation import TranslationEval

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
class GeneratedPairs(GeneratedEval, TranslationEval):
    """Three to five words and their translation."""

    max_tokens: int = 24

    label: ClassVar[str] = "Word pairs (generated)"

    def item_of(self, draw, number):
        words = draw.choices(tuple(WORDS), k=draw.randint(3, 5))
        context = f"English phrase: {' '.join(words)}\nInvented phrase:"
        return {"context": context, "target": " ".join(WORDS[word] for word in words)}
