"""Corpus scores of translation from counts of single sentences: sacreBLEU's BLEU and chrF++, and rouge_score's ROUGE-L.

BLEU and chrF are no means over sentences: a grade keeps the n-gram counts, and their sums give exactly what sacreBLEU
gives for the whole corpus. ROUGE-L is the mean F-measure; rouge_score's own tokenizer knows only a to z and 0 to 9, so
letters with accents divide words there, as in other published figures of that package.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np


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
