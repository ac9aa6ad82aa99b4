"""Generated conversations of two turns: say a word, then say it twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Conversation

from ._generated import GeneratedCorpus

WORDS = ("sun", "moon", "tree", "bird", "sea", "stone")


@dataclass
class GeneratedChat(GeneratedCorpus):
    """User and assistant, two turns each."""

    evals: ClassVar[tuple[str, ...]] = ("generated-chat",)
    label: ClassVar[str] = "Echoes (generated)"
    example: ClassVar[type] = Conversation

    def example_of(self, draw, number):
        word = draw.choice(WORDS)
        asked, answered = (
            (("user", f"say {word}"), ("assistant", word)),
            (("user", "twice"), ("assistant", f"{word} {word}")),
        )
        return Conversation((*asked, *answered))
