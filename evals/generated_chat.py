"""Generated conversations: two turns, the second asked after the model's own first answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Generate

from ._generated import GeneratedEval

WORDS = ("sun", "moon", "tree", "bird", "sea", "stone")
TURNS = 2


@dataclass
class GeneratedChat(GeneratedEval):
    """Say a word, then say it twice."""

    max_tokens: int = 16

    label: ClassVar[str] = "Echoes (generated)"
    headline: ClassVar[str] = "exact_match"
    units: ClassVar[dict[str, str]] = {"exact_match": "%"}
    floors: ClassVar[dict[str, float]] = {"exact_match": 0.0}
    version: ClassVar[int] = 2

    def item_of(self, draw, number):
        return {"word": draw.choice(WORDS)}

    def requests(self, item, outputs=()):
        if len(outputs) == TURNS:
            return []
        turns = [("user", f"say {item['word']}")]
        if outputs:
            turns += [("assistant", outputs[0]["texts"][0].strip()), ("user", "twice")]
        return [Generate.conversation(turns, ("\n",), self.max_tokens)]

    def grade(self, item, outputs):
        first, second = (output["texts"][0].strip() for output in outputs)
        return {"correct": int(first == item["word"]) + int(second == f"{item['word']} {item['word']}"), "turns": TURNS}

    def aggregate(self, grades):
        return {"exact_match": 100.0 * sum(g["correct"] for g in grades) / sum(g["turns"] for g in grades)}
