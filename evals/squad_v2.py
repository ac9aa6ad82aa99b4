"""SQuAD 2.0 (Rajpurkar et al. 2018, https://arxiv.org/abs/1806.03822) on its development set: exact match and F1.

The official script's measures: articles, punctuation, case and white space do not count; the best of the gold answers
counts; a question without answer is right if nothing, or "unanswerable", is written. Prompt and stop string are those of
lm-evaluation-harness's ``squadv2``, which reads "unanswerable" from its likelihood as well; here it is written or not.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from corpora._squad import UNANSWERABLE, squad_prompt, squad_rows
from harness.contract import Eval, Generate, Reference

from ._reference import nats_per_token, reference_counts
from ._rows import subsample


@dataclass
class SquadV2(Eval):
    """Passage and question to answer, or to "unanswerable"."""

    limit: int = 0
    """Items scored; 0: all."""
    max_tokens: int = 32

    assets: ClassVar[tuple[str, ...]] = ("squad-v2",)
    label: ClassVar[str] = "SQuAD 2.0"
    headline: ClassVar[str] = "f1"
    units: ClassVar[dict[str, str]] = {
        "f1": "%",
        "exact_match": "%",
        "f1_answerable": "%",
        "exact_match_answerable": "%",
        "no_answer": "%",
        "reference_nll": "nats/token",
    }
    lower_is_better: ClassVar[tuple[str, ...]] = ("reference_nll",)
    floors: ClassVar[dict[str, float]] = {"f1": 0.0, "exact_match": 0.0}

    def items(self, data):
        rows = squad_rows(data("squad-v2") / "validation.jsonl")
        return subsample([{"id": r["id"], "context": squad_prompt(r), "answers": r["texts"]} for r in rows], self.limit)

    def requests(self, item, outputs=()):
        if outputs:
            return []
        first = item["answers"][0] if item["answers"] else UNANSWERABLE
        return [Generate(item["context"], ("\n",), self.max_tokens), Reference(item["context"], f" {first}")]

    def grade(self, item, outputs):
        written = outputs[0]["texts"][0].strip()
        written = "" if words(written) == [UNANSWERABLE] else written
        golds = [gold for gold in item["answers"] if words(gold)] or [""]
        return {
            "answerable": int(bool(item["answers"])),
            "exact": max(int(words(written) == words(gold)) for gold in golds),
            "f1": max(f1(words(written), words(gold)) for gold in golds),
            **reference_counts(outputs[1]),
        }

    def aggregate(self, grades):
        answerable = [grade for grade in grades if grade["answerable"]]
        others = [grade for grade in grades if not grade["answerable"]]
        found = {"f1": _mean(grades, "f1"), "exact_match": _mean(grades, "exact")}
        if answerable:
            found |= {"f1_answerable": _mean(answerable, "f1"), "exact_match_answerable": _mean(answerable, "exact")}
        if others:
            found["no_answer"] = _mean(others, "exact")
        return {**found, "reference_nll": nats_per_token(grades)}


def words(text: str) -> list[str]:
    """The words that are compared: without case, ASCII punctuation and the articles a, an, the."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def f1(written: Sequence[str], gold: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of words; for an empty side 1 if both are empty, else 0."""
    if not written or not gold:
        return float(written == gold)
    common = (Counter(written) & Counter(gold)).total()
    return 2.0 * common / (len(written) + len(gold))


def _mean(grades: Sequence[dict], name: str) -> float:
    return 100.0 * sum(grade[name] for grade in grades) / len(grades)
