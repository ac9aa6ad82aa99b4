"""Word problems: exact match of a worked answer's final number, by the two rules of lm-evaluation-harness's ``gsm8k``.

Strict reads the number after the first "####"; flexible reads the last number of the text, whatever stands around it.
Commas, dollar signs and a final full stop do not count.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Eval, Generate, Reference

from ._reference import nats_per_token, reference_counts

STOPS = ("Question:", "</s>", "<|im_end|>")
NOTHING = "[invalid]"
STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


@dataclass
class AnswerEval(Eval):
    """Items have ``id``, ``context`` (what the model goes on from) and ``answer``, worked, with its number at the end."""

    max_tokens: int = 256
    """Longest worked answer."""

    headline: ClassVar[str] = "exact_match_flexible"
    units: ClassVar[dict[str, str]] = {
        "exact_match_flexible": "%",
        "exact_match_strict": "%",
        "reference_nll": "nats/token",
    }
    lower_is_better: ClassVar[tuple[str, ...]] = ("reference_nll",)
    floors: ClassVar[dict[str, float]] = {"exact_match_flexible": 0.0, "exact_match_strict": 0.0}

    def requests(self, item: dict, outputs: Sequence[dict] = ()) -> list:
        if outputs:
            return []
        return [
            Generate(item["context"], STOPS, self.max_tokens),
            Reference(item["context"], " " + item["answer"]),
        ]

    def grade(self, item: dict, outputs: Sequence[dict]) -> dict:
        generated, reference = outputs
        return {**answer_grade(generated["texts"][0], item["answer"]), **reference_counts(reference)}

    def aggregate(self, grades: Sequence[dict]) -> dict[str, float]:
        return {**answer_shares(grades), "reference_nll": nats_per_token(grades)}


def answer_grade(text: str, reference: str) -> dict:
    """What was extracted from ``text`` by each rule, and whether it equals the reference's number (1 or 0)."""
    gold = _bare(reference)
    strict, flexible = strict_answer(text), flexible_answer(text)
    return {
        "gold": gold,
        "strict_answer": strict,
        "flexible_answer": flexible,
        "strict": int(_bare(strict) == gold),
        "flexible": int(_bare(flexible) == gold),
    }


def strict_answer(text: str) -> str:
    found = STRICT.search(text)
    return found.group(1).strip() if found else NOTHING


def flexible_answer(text: str) -> str:
    found = FLEXIBLE.findall(text)
    return found[-1].strip() if found else NOTHING


def number(text: str) -> float | None:
    """The value of the text's last number: ``-1,234.50`` and ``$12`` are numbers, a full stop is none; None without one."""
    for found in reversed(FLEXIBLE.findall(text)):
        bare = re.sub(r"[,$]", "", found).rstrip(".")
        try:
            return float(bare)
        except ValueError:  # "..." or "1.2.3"
            continue
    return None


def answer_shares(grades: Sequence[dict]) -> dict[str, float]:
    """Exact match by both rules, in percent."""
    return {
        f"exact_match_{rule}": 100.0 * sum(grade[rule] for grade in grades) / len(grades)
        for rule in ("flexible", "strict")
    }


def _bare(answer: str) -> str:
    """An answer without what the comparison ignores: a worked solution before "#### ", commas, dollars, a full stop."""
    answer = re.sub(r"[,$]", "", answer)
    answer = answer.rpartition("#### ")[2]
    return answer.removesuffix(".").lower()
