"""One method against itself: groupings, the rate of false calls and its interval, the section of the page."""

from __future__ import annotations

import types

import fake_results
import numpy as np
import pytest

from evidence import coverage, false_calls, paired
from evidence.cells import EvidenceError
from evidence.collected import Collected

RNG = np.random.default_rng


def answers(seed, seeds=12, items=300, deviation=0.0):
    chance = RNG(seed).beta(2, 2, items) + RNG(seed + 1).normal(0, deviation, (seeds, 1)) / 100
    return 100.0 * (RNG(seed + 2).random((seeds, items)) < np.clip(chance, 0, 1))


def test_groups_are_disjoint_and_pairs_are_all():
    drawn = false_calls.groupings(12, 3, 500, RNG(0))
    assert drawn.shape == (500, 2, 3) and all(len(set(row.ravel())) == 6 for row in drawn)
    assert np.bincount(drawn.ravel(), minlength=12).min() > 200  # no seed is left out
    assert false_calls.groupings(5, 1, 0, RNG(0))[:, :, 0].tolist() == [
        [a, b] for a in range(5) for b in range(a + 1, 5)
    ]


@pytest.mark.parametrize("size", [1, 3])
def test_calls_are_those_of_the_paired_difference(size):
    values = answers(1, deviation=2.0)
    drawn = false_calls.groupings(12, size, 300, RNG(2))
    called = []
    for first, second in drawn:
        found = paired.paired_difference(values[first], values[second])
        called.append(not found.low <= 0 <= found.high)
    rate = false_calls.false_calls(values, size, 300, RNG(2))
    assert rate.called == pytest.approx(np.mean(called)) and rate.groupings == len(drawn)
    assert rate.low <= rate.called <= rate.high


def test_few_are_called_and_intervals_of_items_alone_call_many():
    rates = [false_calls.false_calls(answers(10 * k, deviation=4.0), 3, 1000, RNG(k)) for k in range(12)]
    assert np.mean([rate.called for rate in rates]) < 0.08 < 0.15 < np.mean([rate.alone for rate in rates])


def test_the_interval_knows_that_groupings_share_seeds():
    """The jackknife's error against the scatter of the rate over fresh sets of seeds."""
    rates = [false_calls.false_calls(answers(1000 + 10 * k, deviation=3.0), 3, 1000, RNG(k)) for k in range(40)]
    scatter = np.std([rate.called for rate in rates])
    claimed = np.mean([(rate.high - rate.called) / 1.96 for rate in rates])
    assert scatter / 2 < claimed < 3 * scatter  # a binomial's over 1000 groupings would be 0.007
    assert claimed > 0.012


def test_too_few_seeds_are_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="8 seeds or more, not 7"):
        false_calls.false_calls(answers(1, 7), 3, 10, RNG(0))
    folder = fake_results.collected(tmp_path / "fake", corpora=("headlines",)) / "collected"
    assert false_calls.main(["--collected", str(folder)]) == 2
    assert "no method under 8 seeds or more" in capsys.readouterr().err


def test_the_section_replaces_itself_and_survives_a_new_simulation(tmp_path, monkeypatch):
    root = fake_results.collected(
        tmp_path / "fake", failures=False, seeds=tuple(range(8)), corpora=("headlines",), variants={"lora": "lora"}
    )
    page = tmp_path / "coverage.md"
    page.write_text("# Simulated\n\nOld.\n")
    for _ in range(2):
        arguments = ["--collected", str(root / "collected"), "--groupings", "50", "--out", str(page)]
        assert false_calls.main(arguments) == 0
    text = page.read_text()
    assert text.startswith("# Simulated\n\nOld.\n\n## On real runs") and text.count("## On real runs") == 1
    assert "| Headlines, Tiny BERT 22M | LoRA | 8 (" in text and "3 against 3 | 50 |" in text
    assert "1 against 1 (items only) | 28 |" in text and "5 against 5" not in text
    monkeypatch.setattr(coverage, "rows", lambda experiments: [])
    monkeypatch.setattr(coverage, "page", lambda found, experiments: "# New\n")
    coverage.main(["--out", str(page)])
    assert page.read_text() == "# New\n\n" + text[text.index("## On real runs") :]


def test_a_bar_in_a_label_breaks_no_row(tmp_path):
    pool = types.SimpleNamespace(used=range(8), spread=types.SimpleNamespace(sd=1.0), n_items=64)
    rate = false_calls.Rate(3, 10, 0.05, 0.0, 0.1, 0.2)
    row = false_calls.section([("A|B, model", "x|y", pool, rate)], "fake").splitlines()[-1]
    assert row.startswith(r"| A\|B, model | x\|y | 8 (1.0) | 64 |")


def test_the_suite_s_methods_are_judged_apart(tmp_path):
    root = fake_results.collected(
        tmp_path / "fake",
        failures=False,
        seeds=tuple(range(8)),
        corpora=("headlines",),
        variants={"lora": "lora", "full": "full"},
    )
    found = list(false_calls.rows(Collected(root / "collected"), 20))
    assert {(benchmark, method) for benchmark, method, *_ in found} == {
        (f"Headlines, {model}", method) for model in fake_results.MODELS.values() for method in ("LoRA", "Full FT")
    }
    with pytest.raises(EvidenceError, match="config/same-method.yaml"):
        false_calls.section([], "fake")
