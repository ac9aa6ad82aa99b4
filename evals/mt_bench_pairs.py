"""MT-Bench by comparison (Zheng et al. 2023, section 3.1): is an answer better than another model's to the same question?

``opponent`` is a file of that model's answers in FastChat's form: JSON Lines of question_id and choices[0].turns. As in
FastChat: a judge sees both answers and says [[A]], [[B]] or [[C]] (neither), each turn by itself, once in each order,
because judges favour a place. Only a verdict that holds in both orders is a win or a loss, anything else a tie.

    win_rate = 100 x (wins + ties / 2) / turns judged        order_agreement = 100 x same verdict in both orders / turns judged

A turn without a verdict in both orders is left out and counted (``unrated``). The rest is ``mt_bench.py``'s.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from harness.judge import verdict_key

from ._mt_bench import Conversations, answers, filled

VERDICT = re.compile(r"\[\[([ABC])\]\]")
SCORE = {"model": 1.0, "tie": 0.5, "opponent": 0.0}


@dataclass
class MTBenchPairs(Conversations):
    """Open questions, answers compared with another model's."""

    opponent: str = ""
    """File of the other model's answers; "": none yet."""

    label: ClassVar[str] = "MT-Bench (compared)"
    headline: ClassVar[str] = "win_rate"
    units: ClassVar[dict[str, str]] = {
        "win_rate": "%",
        "win_rate_turn_1": "%",
        "win_rate_turn_2": "%",
        "order_agreement": "%",
        "unrated": "%",
    }
    lower_is_better: ClassVar[tuple[str, ...]] = ("unrated",)
    grading_fields: ClassVar[tuple[str, ...]] = ("judge", "judgings", "opponent")
    prompt_names: ClassVar[tuple[str, str]] = ("pair-v2", "pair-math-v1")

    def pending(self) -> str:
        if not self.opponent:
            return "no opponent given: set opponent: of this eval in the suite's evals: and score again"
        if not Path(self.opponent).is_file():
            return f"opponent: {self.opponent}: no such file"
        try:
            _answers(Path(self.opponent))
        except ValueError as error:
            return f"opponent: {error}"
        return super().pending()

    def grade(self, item, outputs):
        said = [output["texts"][0].strip() for output in outputs]
        theirs = _answers(Path(self.opponent)).get(item["id"], [])
        if len(theirs) < len(said):
            raise ValueError(f"opponent: {self.opponent}: no answer to both turns of question {item['id']}")
        judged = [
            [self._compared(item, said, theirs, turn, k) for k in range(self.judgings)] for turn in range(len(said))
        ]
        known = [pair for turn in judged for pair in turn if None not in pair]
        sums = {"won": sum(map(score, known)), "agreed": sum(a == b for a, b in known), "rated": len(known)}
        keys = [verdict_key(asked(item, said, theirs, turn), 0) for turn in range(len(said))]
        return {"category": item["category"], "judged": judged, **sums, "verdicts": keys}

    def _compared(self, item, said, theirs, turn, k) -> tuple[str | None, str | None]:
        """Who is better by the judge, when the model's answer is shown first and when it is shown second."""
        first = verdict(self._judge.ask(asked(item, said, theirs, turn), k), "model", "opponent")
        return first, verdict(self._judge.ask(asked(item, theirs, said, turn), k), "opponent", "model")

    def aggregate(self, grades):
        turns = [[pair for g in grades for pair in g["judged"][turn]] for turn in (0, 1)]
        known = [[pair for pair in pairs if None not in pair] for pairs in turns]
        every, judged = [pair for pairs in turns for pair in pairs], [pair for pairs in known for pair in pairs]
        return {
            "win_rate": _percent([score(pair) for pair in judged]),
            **{f"win_rate_turn_{n}": _percent([score(pair) for pair in pairs]) for n, pairs in enumerate(known, 1)},
            "order_agreement": _percent([a == b for a, b in judged]),
            "unrated": _percent([None in pair for pair in every]),
        }

    def signatures(self):
        file = Path(self.opponent)
        known = self.opponent and file.is_file()
        against = f"{file.name} (sha256 {hashlib.sha256(file.read_bytes()).hexdigest()[:12]})" if known else "none"
        return {**super().signatures(), "opponent": against}


_answers = functools.cache(answers)  # one file for all items


def asked(item: dict, first: Sequence[str], second: Sequence[str], turn: int) -> list[tuple[str, str]]:
    """The judge's messages about a turn (0 or 1) with these answers in the places A and B."""
    values = {"answer_a": first[0], "answer_b": second[0]}
    for place, said in (("a", first), ("b", second)):
        values |= {f"answer_{place}_{number}": answer for number, answer in enumerate(said, 1)}
    return filled(item, turn, values)


def verdict(text: str, first: str, second: str) -> str | None:
    """``first``, ``second`` or "tie" by the verdict's first [[letter]]; None without one."""
    found = VERDICT.search(text)
    return {"A": first, "B": second, "C": "tie"}[found.group(1)] if found else None


def score(pair: Sequence[str]) -> float:
    """1 where both orders say the model, 0 where both say the opponent, else a half."""
    return SCORE[pair[0]] if pair[0] == pair[1] else SCORE["tie"]


def _percent(values: Sequence[float]) -> float | None:
    return 100.0 * sum(values) / len(values) if values else None
