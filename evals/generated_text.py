"""Generated running text: how likely a sentence is after its first two words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Reference

from ._generated import GeneratedEval
from ._reference import nats_per_token, reference_counts

WHO, DOES, WHAT = ("the sun", "a bird", "the moon"), ("sees", "likes", "finds"), ("a tree", "the sea", "a stone")


@dataclass
class GeneratedText(GeneratedEval):
    """A sentence, divided behind its subject."""

    label: ClassVar[str] = "Sentences (generated)"
    headline: ClassVar[str] = "reference_nll"
    units: ClassVar[dict[str, str]] = {"reference_nll": "nats/token"}
    lower_is_better: ClassVar[tuple[str, ...]] = ("reference_nll",)

    def item_of(self, draw, number):
        return {"context": draw.choice(WHO), "continuation": f" {draw.choice(DOES)} {draw.choice(WHAT)}."}

    def requests(self, item, outputs=()):
        return [] if outputs else [Reference(item["context"], item["continuation"])]

    def grade(self, item, outputs):
        return reference_counts(outputs[0])

    def aggregate(self, grades):
        return {"reference_nll": nats_per_token(grades)}
