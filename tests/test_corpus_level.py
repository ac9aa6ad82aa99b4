"""Headlines that are no means over items (BLEU, correlations, perplexity): their items' parts give intervals."""

from __future__ import annotations

import random
import statistics

import pytest

from evidence import grades as evidence_grades
from harness import score
from harness.plugins import load_plugin

WORDS = [f"w{number}" for number in range(60)]
COUNT = 150


def translations(draw):
    """Grades of translations of which some words are wrong and some are missing."""
    eval_ = load_plugin("evals", "translation-multi30k-en-de")
    made = []
    for _ in range(COUNT):
        reference = draw.choices(WORDS, k=draw.randint(6, 20))
        said = [word if draw.random() < 0.7 else draw.choice(WORDS) for word in reference if draw.random() < 0.95]
        outputs = ({"texts": [" ".join(said)]}, {"nll": 1.0, "tokens": 3})
        made.append(eval_.grade({"target": " ".join(reference)}, outputs))
    return eval_, made


def acceptability(draw):
    made = [{"gold": int(draw.random() < 0.6), "set": ""} for _ in range(COUNT)]
    for grade in made:
        grade["predicted"] = grade["gold"] if draw.random() < 0.75 else 1 - grade["gold"]
        grade["correct"] = int(grade["predicted"] == grade["gold"])
    return load_plugin("evals", "glue-cola"), made


def similarity(draw):
    made = [{"gold": draw.uniform(0, 5)} for _ in range(COUNT)]
    return load_plugin("evals", "glue-stsb"), [{**g, "predicted": g["gold"] + draw.gauss(0, 1.5)} for g in made]


def perplexity(draw):
    made = []
    for _ in range(COUNT):
        words = draw.randint(50, 400)
        nats = words * draw.gauss(3.3, 0.3)
        made.append({"nll": nats, "words": words, "bytes": 5 * words, "nll_tokens": 1.3 * words})
    return load_plugin("evals", "wikitext-2"), made


@pytest.mark.parametrize("make", [translations, acceptability, similarity, perplexity])
def test_the_parts_mean_is_the_headline_and_their_spread_that_of_resampled_items(make):
    draw = random.Random(3)
    eval_, made = make(draw)
    assert eval_.corpus_level
    parts, value = score.parts(eval_, made), eval_.aggregate(made)[eval_.headline]
    assert statistics.fmean(parts) == pytest.approx(value, rel=1e-9)
    resampled = [eval_.aggregate(draw.choices(made, k=COUNT))[eval_.headline] for _ in range(300)]
    assert statistics.stdev(parts) / COUNT**0.5 == pytest.approx(statistics.stdev(resampled), rel=0.2)
    rows = [{**grade, f"{eval_.headline}_part": part} for grade, part in zip(made, parts, strict=True)]
    columns = evidence_grades.numbers(rows)
    assert evidence_grades.formula(eval_.headline, value, columns).numerator == f"{eval_.headline}_part"


def test_of_a_mean_the_parts_are_the_items_own():
    eval_ = load_plugin("evals", "glue-sst2")
    made = [{"gold": 1, "predicted": int(i % 3 > 0), "correct": int(i % 3 > 0), "set": ""} for i in range(30)]
    assert not eval_.corpus_level
    assert score.parts(eval_, made) == pytest.approx([100.0 * grade["correct"] for grade in made])


def test_equal_grades_are_left_out_once():
    eval_, made = acceptability(random.Random(0))
    calls, aggregate = [], eval_.aggregate
    eval_.aggregate = lambda grades: (calls.append(len(grades)), aggregate(grades))[1]
    score.parts(eval_, made)
    assert sorted(calls) == [COUNT - 1] * 4 + [COUNT]  # gold x predicted
