"""MT-Bench (Zheng et al. 2023, https://arxiv.org/abs/2306.05685): 80 questions of two turns, answers rated 1 to 10 by a judge.

Not the Hybrid paper's "MT-Bench", which is a translation score (``translation.py``); beside another model's answers:
``mt_bench_pairs.py``. As in FastChat: single-answer grading, each turn by itself, with GPT-4's reference answers in
mathematics, reasoning and coding; temperatures by category; a rating is the first [[number]], or else [number], of the
verdict, and a verdict without one is left out and counted (``unrated``).
Prompts and references come with the data; ``verdicts`` of the grades hold the hashes of what the judge was asked.

``judge`` names who judges (harness/judge.py); without one, answers are kept and the row says ``judge_pending``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.judge import verdict_key

from ._mt_bench import Conversations, filled

RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))


@dataclass
class MTBench(Conversations):
    """Open questions, answers rated."""

    label: ClassVar[str] = "MT-Bench (judged)"
    headline: ClassVar[str] = "rating"
    units: ClassVar[dict[str, str]] = {
        "rating": "of 10",
        "rating_turn_1": "of 10",
        "rating_turn_2": "of 10",
        "disagreement": "of 10",
        "unrated": "%",
    }
    lower_is_better: ClassVar[tuple[str, ...]] = ("disagreement", "unrated")

    def grade(self, item, outputs):
        said = [output["texts"][0].strip() for output in outputs]
        asked = [messages(item, said, number) for number in range(len(said))]
        ratings = [[rating(self._judge.ask(one, k)) for k in range(self.judgings)] for one in asked]
        keys = [verdict_key(one, 0) for one in asked]
        known = [r for turn in ratings for r in turn if r is not None]
        sums = {"rating_sum": sum(known), "rated": len(known)}
        return {"category": item["category"], "ratings": ratings, **sums, "verdicts": keys}

    def aggregate(self, grades):
        turns = [[r for g in grades for r in g["ratings"][number] if r is not None] for number in (0, 1)]
        every = [r for g in grades for turn in g["ratings"] for r in turn]
        found = {"rating": _mean([r for turn in turns for r in turn])}
        found |= {f"rating_turn_{number}": _mean(turn) for number, turn in enumerate(turns, 1)}
        if self.judgings > 1:
            spans = [_span(turn) for g in grades for turn in g["ratings"]]
            found["disagreement"] = _mean([span for span in spans if span is not None])
        return {**found, "unrated": 100.0 * every.count(None) / len(every)}


def messages(item: dict, said: Sequence[str], number: int) -> list[tuple[str, str]]:
    """What the judge is asked about turn ``number`` (0 or 1)."""
    answers = {f"answer_{turn}": answer for turn, answer in enumerate(said, 1)}
    return filled(item, number, {"answer": said[0], **answers})


def rating(verdict: str) -> float | None:
    """The number that the verdict gives; None where it gives none from 1 to 10."""
    for form in RATINGS:
        if found := form.search(verdict):
            value = float(found.group(1))
            return value if 1 <= value <= 10 else None
    return None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _span(ratings: Sequence[float | None]) -> float | None:
    """Largest less smallest of the judgings of one answer."""
    known = [value for value in ratings if value is not None]
    return max(known) - min(known) if len(known) > 1 else None
