"""Golden numbers of the statistics, and properties that an honest interval has."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from evidence import stats


def test_spread_of_two_runs():
    found = stats.spread([75.0, 76.5625])
    assert found.mean == pytest.approx(75.78125)
    assert found.sd == pytest.approx(1.1048543456)
    assert found.n == 2


def test_spread_without_enough_runs_says_so():
    assert math.isnan(stats.spread([3.0]).sd)
    assert stats.spread([3.0]).mean == 3.0
    assert math.isnan(stats.spread([]).mean)
    assert stats.spread([]).n == 0


@pytest.mark.parametrize(("hits", "n"), [(0, 164), (1, 64), (37, 64), (64, 64)])
def test_wilson_equals_scipy(hits, n):
    found = stats.wilson(hits / n, n)
    expected = scipy.stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.low >= 0 and found.high <= 1 and found.high > found.low


def test_wilson_refuses_what_is_no_proportion():
    with pytest.raises(ValueError, match="0 to 1"):
        stats.wilson(1.2, 10)


def test_bootstrap_is_the_generators_own_and_matches_the_normal_interval():
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    first = stats.item_bootstrap(values, None, np.random.default_rng(1))
    again = stats.item_bootstrap(values, None, np.random.default_rng(1))
    other = stats.item_bootstrap(values, None, np.random.default_rng(2))
    assert first == again != other
    half = 1.96 * values.std(ddof=1) / 20
    assert first.low == pytest.approx(values.mean() - half, abs=0.05)
    assert first.high == pytest.approx(values.mean() + half, abs=0.05)


def test_bootstrap_leaves_the_global_generator_alone():
    np.random.seed(7)
    before = np.random.get_state()[1].copy()
    stats.item_bootstrap(np.arange(20.0), None, np.random.default_rng(1))
    assert (np.random.get_state()[1] == before).all()


def test_bootstrap_draws_items_for_all_seeds_together():
    """Two seeds with the same grades are no more information than one: the interval must not shrink."""
    values = np.random.default_rng(0).random(100)
    one = stats.item_bootstrap(values, None, np.random.default_rng(1))
    two = stats.item_bootstrap(np.stack([values, values]), None, np.random.default_rng(1))
    assert (one.low, one.high) == pytest.approx((two.low, two.high))


def test_ratio_of_sums():
    nats, tokens = np.array([[10.0, 30.0, 20.0]]), np.array([[5.0, 10.0, 5.0]])
    found = stats.item_interval(nats, tokens, 1.0, np.random.default_rng(0))
    assert found.kind == "bootstrap, items"
    assert 2.0 <= found.low <= 3.0 <= found.high <= 4.0


def test_right_or_wrong_takes_wilson_and_counts_items_once():
    right = np.array([[1.0] * 30 + [0.0] * 34, [1.0] * 32 + [0.0] * 32])
    found = stats.item_interval(right, None, 100.0, np.random.default_rng(0))
    expected = stats.wilson(31 / 64, 64)
    assert found.kind == "Wilson, items"
    assert (found.low, found.high) == pytest.approx((100 * expected.low, 100 * expected.high))


def test_no_hit_at_all_has_an_interval_of_some_width():
    found = stats.item_interval(np.zeros((1, 64)), None, 100.0, np.random.default_rng(0))
    assert found.low == 0.0
    assert found.high == pytest.approx(5.66, abs=0.01)


def test_parts_of_a_corpus_level_metric_are_never_right_or_wrong():
    apart = np.array([[0.0, 1.0] * 32])
    assert stats.item_interval(apart, None, 1.0, np.random.default_rng(0), parts=True).kind == "bootstrap, items"
    alike = np.zeros((3, 64))  # every item answered with the same class: a correlation of 0, whatever the items
    assert stats.item_interval(alike, None, 1.0, np.random.default_rng(0), parts=True) is None


def test_standard_error_of_a_mean():
    values = np.random.default_rng(0).random((1, 50))
    assert stats.standard_error(values, None, 100.0) == pytest.approx(100 * values.std(ddof=1) / math.sqrt(50))


@pytest.mark.parametrize(("hits", "near"), [(0, True), (3, True), (4, False), (20, False)])
def test_three_hits_are_within_noise_of_none_and_four_are_not(hits, near):
    right = np.array([[1.0] * hits + [0.0] * (164 - hits)])
    error = stats.standard_error(right, None, 100.0)
    assert stats.near_floor(100 * hits / 164, 0.0, error) is near
