"""Paired differences: mean squares by hand, intervals that cover, families of tests, and inputs that give no interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as distributions

from evidence import coverage, equivalence, paired
from evidence.pools import ItemValues, Pool

RNG = np.random.default_rng


def test_mean_squares_are_those_of_a_two_way_table():
    d = RNG(0).normal(size=(4, 7)) + RNG(1).normal(size=(4, 1)) + RNG(2).normal(size=(1, 7))
    mean, squares, rest = paired.mean_squares(d[None])
    grand = sum(d.flat) / 28
    rows = [sum(row) / 7 for row in d]
    columns = [sum(d[s, i] for s in range(4)) / 4 for i in range(7)]
    by_seed = 7 * sum((r - grand) ** 2 for r in rows) / 3
    by_item = 4 * sum((c - grand) ** 2 for c in columns) / 6
    left = sum((d[s, i] - rows[s] - columns[i] + grand) ** 2 for s in range(4) for i in range(7)) / 18
    assert mean[0] == pytest.approx(grand) and squares[0] == pytest.approx([by_seed, left])
    assert rest[0] == pytest.approx(by_item / 28)


def test_without_seeds_that_differ_it_is_the_paired_t_test_over_items():
    a, b = RNG(3).normal(size=(1, 50)), RNG(4).normal(size=(1, 50))
    same = paired.paired_difference(np.repeat(a, 3, 0), np.repeat(b, 3, 0))
    t = distributions.ttest_rel(a[0], b[0])
    interval = t.confidence_interval()
    assert (same.low, same.high) == pytest.approx((interval.low, interval.high)) and same.p == pytest.approx(
        t.pvalue, rel=1e-6
    )
    assert same.kind == "seeds and items" and same.error == pytest.approx(abs(same.value / t.statistic))


def test_items_that_do_not_differ_leave_the_t_test_over_seeds_made_wider():
    shifts = np.array([1.0, 2.0, 4.0, 3.0])
    found = paired.paired_difference(np.repeat(shifts[:, None], 400, 1), np.zeros((4, 400)))
    median = 3 / distributions.chi2.median(3)
    error = math.sqrt(median * shifts.var(ddof=1) / 4)
    assert found.value == 2.5 and found.error == pytest.approx(error)
    assert found.high - found.value == pytest.approx(distributions.t.ppf(0.975, 3) * error)


def test_p_and_interval_agree():
    for seed in range(8):
        d = RNG(seed).normal(0.3, 1, (3, 20))
        found = paired.paired_difference(d, np.zeros_like(d))
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
        edge = paired.paired_difference(d - found.value + found.critical * found.error, np.zeros_like(d))
        assert edge.p == pytest.approx(0.05, abs=1e-6)


def test_two_seeds_say_that_they_cover_items_only():
    d = RNG(5).normal(size=(2, 30)) + np.array([[3.0], [-3.0]])
    found = paired.paired_difference(d, np.zeros_like(d))
    assert found.kind == "items only" and found.high - found.low < 2


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), "of one shape"),
        (np.zeros(3), np.zeros(3), "of one shape"),
        (np.zeros((2, 1)), np.zeros((2, 1)), "two items or more"),
        (np.array([[1.0, np.nan]]), np.zeros((1, 2)), "a number for each seed and item"),
    ],
)
def test_other_inputs_are_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        paired.paired_difference(first, second)


def test_without_any_spread_there_is_no_interval():
    found = paired.paired_difference(np.ones((3, 4)), np.zeros((3, 4)))
    assert (found.kind, found.value, found.p) == ("no spread", 1.0, 1.0)
    assert np.isnan([found.low, found.high, paired.detectable(found)]).all()


@pytest.mark.parametrize("score", [0.0, 100.0])
@pytest.mark.parametrize("reported", [57.3, 12.1, 0.1, 33.3, 84.4])
@pytest.mark.parametrize("shape", [(1, 64), (3, 64), (3, 1319), (3, 164)])
def test_what_rounding_alone_spreads_has_no_spread(score, reported, shape):
    found = equivalence.to_reported(
        Pool([], None, None, (0,), "", None, None, ItemValues(np.full(shape, score), ())), reported, 1.0
    )
    assert (found.difference.kind, found.difference.error, found.verdict) == ("no spread", 0.0, "undecided")
    assert "no interval" in found.text()
    little = paired.paired_difference(
        np.full(shape, score) + 1e-4 * RNG(0).normal(size=shape), np.full(shape, reported)
    )
    assert little.kind != "no spread" and little.low < little.value < little.high


def test_a_ratio_of_sums_is_the_mean_of_its_linearised_items():
    numerator, denominator = RNG(6).random((3, 9)), RNG(7).random((3, 9)) + 0.1
    flat = paired.linearised(numerator, denominator)
    assert flat.mean(1) == pytest.approx(numerator.sum(1) / denominator.sum(1))
    k = 4  # leaving an item out moves the ratio as its part says, to first order
    less = np.delete(numerator, k, 1).sum(1) / np.delete(denominator, k, 1).sum(1)
    assert (flat.mean(1) - less) * 8 == pytest.approx(flat[:, k] - flat.mean(1), rel=0.3)
    with pytest.raises(ValueError, match="sums to zero"):
        paired.linearised(numerator, np.zeros((3, 9)))


def test_holm_s_adjustment():
    assert paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert paired.holm([0.9, 0.8]) == [1.0, 1.0] and paired.holm([]) == []


# --------------------------------------------------------------------------- coverage, a small part of the page


@pytest.mark.parametrize("outcome", coverage.OUTCOMES)
@pytest.mark.parametrize(("seeds", "deviation"), [(3, 0.0), (3, 3.0), (5, 1.0)])
def test_intervals_cover_and_those_of_items_alone_do_not(outcome, seeds, deviation):
    row = coverage.simulate(outcome, seeds, 256, deviation, 800, RNG(11))
    assert 0.925 <= row["covers"] <= 0.985 and row["power"] > 0.8
    if deviation == 3.0:
        assert row["alone"] < 0.9


def test_the_simulation_tests_as_the_function_does():
    d = coverage.binary(RNG(12), (5, 3, 40), 2.0, 1.0)
    value, half, error, _ = coverage.tested(d)
    for n in range(5):
        found = paired.paired_difference(d[n], np.zeros_like(d[n]))
        assert (value[n], error[n], half[n]) == pytest.approx((found.value, found.error, found.critical * found.error))


def test_the_page_counts_what_lies_outside(monkeypatch):
    row = {
        "outcome": "binary",
        "seeds": 3,
        "items": 64,
        "deviation": 1.0,
        "covers": 0.95,
        "alone": 0.9,
        "width": 2.0,
        "power": 0.9,
    }
    text = coverage.page([row, {**row, "covers": 0.90}, {**row, "seeds": 2, "covers": 0.5}], 100)
    assert "1 of 2 rows lie within 93% to 98%" in text and "| 0.500 (items only) |" in text and "7.5% of" in text
