"""Translation: a sentence in, its translation out; sacreBLEU's BLEU and chrF++, and rouge_score's ROUGE-L.

BLEU and chrF are no means over sentences: a grade keeps the n-gram counts, and their sums give exactly what sacreBLEU
gives for the whole corpus. ROUGE-L is the mean F-measure; rouge_score's own tokenizer knows only a to z and 0 to 9, so
letters with accents divide words there, as in other published figures of that package.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from corpora._rows import read_rows
from harness.contract import Eval, Generate, Reference

from ._reference import nats_per_token, reference_counts


@dataclass
class TranslationEval(Eval):
    """Items have ``id``, ``context`` (what the model goes on from) and ``target``."""

    max_tokens: int = 96
    """Longest translation."""

    headline: ClassVar[str] = "bleu"
    corpus_level: ClassVar[bool] = True
    units: ClassVar[dict[str, str]] = {
        "bleu": "BLEU",
        "chrf": "chrF++",
        "rouge_l": "x 100",
        "reference_nll": "nats/token",
    }
    lower_is_better: ClassVar[tuple[str, ...]] = ("reference_nll",)
    floors: ClassVar[dict[str, float]] = {"bleu": 0.0}

    def requests(self, item: dict, outputs: Sequence[dict] = ()) -> list:
        if outputs:
            return []
        return [
            Generate(item["context"], ("\n",), self.max_tokens),
            Reference(item["context"], " " + item["target"]),
        ]

    def grade(self, item: dict, outputs: Sequence[dict]) -> dict:
        generated, reference = outputs
        return {**translation_counts(generated["texts"][0], item["target"]), **reference_counts(reference)}

    def aggregate(self, grades: Sequence[dict]) -> dict[str, float]:
        return {**corpus_scores(grades), "reference_nll": nats_per_token(grades)}

    def floor_value(self, grades: Sequence[dict]) -> float:
        """0 as long as no four words in a row are right: sacreBLEU's smoothing gives some score even then."""
        counts = np.sum([grade["bleu"] for grade in grades], axis=0).tolist()
        return _metrics()[0]._compute_score_from_stats(counts).score if min(counts[2:6]) > 0 else 0.0

    def signatures(self) -> dict[str, str]:
        return translation_signatures()


def pair_items(path: Path, column: str, code: str, language: str) -> list[dict]:
    """Items of rows whose ``column`` holds a sentence in English ("en") and in another language (``code``).

    Raises ValueError naming file, row and column where one of the two is no text.
    """
    items = []
    for number, row in enumerate(read_rows(path, (column,)), 1):
        pair = row[column]
        if not isinstance(pair, dict) or not all(isinstance(pair.get(name), str) for name in ("en", code)):
            raise ValueError(f"{path}:{number}: column {column} has not both en and {code}: {pair!r}")
        context = f"English phrase: {pair['en']}\n{language} phrase:"
        items.append({"id": str(number - 1), "context": context, "target": pair[code]})
    return items


def translation_counts(hypothesis: str, reference: str) -> dict:
    """Sufficient statistics of one sentence: lengths and n-gram matches (BLEU, chrF++), F-measure (ROUGE-L)."""
    bleu, chrf, rouge = _metrics()
    hypothesis = hypothesis.strip()
    return {
        "bleu": [int(n) for n in bleu._extract_corpus_statistics([hypothesis], [[reference]])[0]],
        "chrf": [int(n) for n in chrf._extract_corpus_statistics([hypothesis], [[reference]])[0]],
        "rouge_l": rouge.score(reference, hypothesis)["rougeL"].fmeasure,
    }


def corpus_scores(grades: Sequence[dict]) -> dict[str, float]:
    """BLEU, chrF++ and ROUGE-L of all sentences, each from 0 to 100."""
    bleu, chrf, _ = _metrics()
    totals = {name: np.sum([grade[name] for grade in grades], axis=0).tolist() for name in ("bleu", "chrf")}
    return {
        "bleu": bleu._compute_score_from_stats(totals["bleu"]).score,
        "chrf": chrf._compute_score_from_stats(totals["chrf"]).score,
        "rouge_l": 100.0 * sum(grade["rouge_l"] for grade in grades) / len(grades),
    }


def translation_signatures() -> dict[str, str]:
    """sacreBLEU's description of how BLEU and chrF++ were computed, version included."""
    bleu, chrf, _ = _metrics()
    for metric in (bleu, chrf):
        metric.corpus_score(["a"], [["a"]])  # the signature knows the number of references only after a score
    return {"bleu": bleu.get_signature().format(), "chrf": chrf.get_signature().format()}


@functools.cache
def _metrics() -> tuple:
    """The three metrics; imported late, because rouge_score takes two seconds."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF

    return BLEU(), CHRF(word_order=2), RougeScorer(["rougeL"])
