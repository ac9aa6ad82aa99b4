"""MT-Bench (Zheng et al. 2023, https://arxiv.org/abs/2306.05685): 80 questions of two turns, answers rated 1 to 10 by a judge.

Not the Hybrid paper's "MT-Bench", which is a translation score (``translation.py``); against another model's answers:
``mt_bench_pairs.py``. As in FastChat: single-answer grading,
each turn by itself, with GPT-4's reference answers in mathematics, reasoning and coding; temperatures by category; a rating
is the first [[number]], or else [number], of the verdict, and a verdict without one is left out and counted (``unrated``).
Prompts and references come with the data; ``verdicts`` of the grades hold the hashes of what the judge was asked.

``judge`` names who judges (harness/judge.py); without one, answers are kept and the row says ``judge_pending``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from corpora._rows import read_rows
from harness.contract import Eval, Generate
from harness.judge import judge, verdict_key

from ._rows import subsample

TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}  # others: greedy
REFERENCED = ("math", "reasoning", "coding")
STOPS = ("<|im_end|>", "\nuser:")
RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))


@dataclass
class MTBench(Eval):
    """Open questions, judged."""

    limit: int = 0
    """Questions asked; 0: all."""
    max_tokens: int = 1024
    judge: str = ""
    """Who judges; "": nobody yet."""
    judgings: int = 1
    """How often each answer is judged."""

    assets: ClassVar[tuple[str, ...]] = ("mt-bench",)
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
    grading_fields: ClassVar[tuple[str, ...]] = ("judge", "judgings")
    prompt_names: ClassVar[tuple[str, str]] = ("single-v1", "single-math-v1")
    """Of the first turn, without and with a reference; the second's end in "-multi-turn"."""

    def __post_init__(self) -> None:
        if self.judgings < 1:
            raise ValueError(f"judgings: {self.judgings}: at least 1")
        self._judge = judge(self.judge) if self.judge else None

    def pending(self) -> str:
        return "" if self.judge else "no judge given: set evals: {mt-bench: {judge: ...}} in the suite and score again"

    def items(self, data):
        folder = data("mt-bench")
        answers = read_rows(folder / "reference_answer_gpt-4.jsonl", ("question_id", "choices"))
        references = {row["question_id"]: row["choices"][0]["turns"] for row in answers}
        prompts = {row["name"]: row for row in read_rows(folder / "judge_prompts.jsonl", ("name", "prompt_template"))}
        items = [
            {
                "id": str(row["question_id"]),
                "category": row["category"],
                "turns": row["turns"],
                "reference": references.get(row["question_id"]) if row["category"] in REFERENCED else None,
            }
            for row in read_rows(folder / "question.jsonl", ("question_id", "category", "turns"))
        ]
        for item in items:
            kind = self.prompt_names[bool(item["reference"])]
            chosen = (prompts[kind], prompts[f"{kind}-multi-turn"])
            item["prompts"] = [[row.get("system_prompt", ""), row["prompt_template"]] for row in chosen]
        return subsample(items, self.limit)

    def requests(self, item, outputs=()):
        if len(outputs) == len(item["turns"]):
            return []
        said = [output["texts"][0].strip() for output in outputs]
        turns = []
        for number, question in enumerate(item["turns"][: len(said) + 1]):
            turns += [("user", question)] + ([("assistant", said[number])] if number < len(said) else [])
        return [Generate.conversation(turns, STOPS, self.max_tokens, TEMPERATURES.get(item["category"], 0.0))]

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

    def signatures(self):
        return {"judge": self.judge or "none", "judgings of each answer": str(self.judgings)}


def messages(item: dict, said: Sequence[str], number: int) -> list[tuple[str, str]]:
    """What the judge is asked about turn ``number`` (0 or 1)."""
    answers = {f"answer_{turn}": answer for turn, answer in enumerate(said, 1)}
    return filled(item, number, {"answer": said[0], **answers})


def filled(item: dict, number: int, values: dict[str, str]) -> list[tuple[str, str]]:
    """The prompt of turn ``number`` with the item's questions and references and these ``values`` in their places."""
    system, template = item["prompts"][number]
    values = {"question": item["turns"][0], **values}
    values |= {f"question_{turn}": question for turn, question in enumerate(item["turns"], 1)}
    values |= {f"ref_answer_{turn}": reference for turn, reference in enumerate(item["reference"] or (), 1)}
    # One pass, so that braces in an answer are text.
    text = re.sub(r"\{(\w+)\}", lambda found: values.get(found.group(1), found.group()), template)
    return [*([("system", system)] if system else []), ("user", text)]


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
