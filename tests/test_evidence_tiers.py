"""Tiers and equivalence: golden values, a slow twin, and what has no tier."""

from __future__ import annotations

import fake_results
import numpy as np
import pytest
from scipy import stats as scipy_stats

from evidence import equivalence, paired, tiers
from evidence.cells import EvidenceError
from evidence.collected import Collected
from evidence.difference_table import difference_table
from evidence.pools import ItemValues, Pool, _near_floor_over_seeds, panels
from evidence.score_table import score_table
from evidence.stats import Spread

RNG = np.random.default_rng
SHARED = RNG(0).normal(0, 20, (3, 300))  # what all methods have in common


def pool(shift, seed, seeds=(0, 1, 2), mark="", names=300):
    values = SHARED[list(seeds)] + shift + RNG(seed).normal(0, 5, (len(seeds), 300))
    items = ItemValues(values, tuple(map(str, range(names))))
    return Pool([], Spread(values.mean(), 0.0, len(seeds)), None, tuple(seeds), mark, 300, None, items)


def by_hand(pools, sign=1):
    """The rule again, with Holm's step-down test written out instead of adjusted p-values."""
    left, of, tier = dict(pools), {}, 0
    while left:
        tier += 1
        best = max(left, key=lambda v: sign * left[v].items.values.mean())
        others = [v for v in left if v != best]
        found = {v: paired.paired_difference(left[v].items.values, left[best].items.values) for v in others}
        ranked, worse = sorted(others, key=lambda v: found[v].p), set()
        for place, v in enumerate(ranked):
            if found[v].p >= 0.05 / (len(ranked) - place):
                break
            worse.add(v)
        of |= {v: tier for v in left if v not in worse}
        left = {v: left[v] for v in others if v in worse}
    return of


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_rule_is_holm_s_step_down(seed, lower):
    shifts = RNG(seed).choice([0.0, 0.3, 2.0, 6.0, 12.0], 9)
    pools = {f"m{k}": pool(shift, 100 * seed + k) for k, shift in enumerate(shifts)}
    found = tiers.place(pools, lower).of
    assert found == by_hand(pools, -1 if lower else 1)
    assert max(found.values()) >= 2


def test_golden_tiers():
    pools = {"a": pool(0, 1), "b": pool(10, 2), "c": pool(10.2, 3), "d": pool(20, 4), "e": pool(0.1, 5)}
    assert tiers.place(pools, False).of == {"a": 3, "b": 2, "c": 2, "d": 1, "e": 3}
    assert tiers.place(pools, True).of == {"a": 1, "b": 2, "c": 2, "d": 3, "e": 1}


def test_two_seeds_are_told_and_one_method_leads_alone():
    pools = {"a": pool(0, 1), "b": pool(30, 2, (0, 1)), "c": pool(0.1, 5)}
    found = tiers.place(pools, False)
    assert found.of == {"a": 2, "b": 1, "c": 2} and found.text("b") == "1*" and found.text("a") == "2*"
    assert tiers.place({"a": pool(0, 1)}, False).text("a") == "1"


def test_who_cannot_be_compared_or_averaged_has_no_tier():
    strange = pool(0, 2)
    strange.items = ItemValues(strange.items.values, tuple(f"other{k}" for k in range(300)))
    bleu = pool(99, 3)
    bleu.items = None
    found = tiers.place({"a": pool(5, 1), "b": strange, "c": bleu, "d": pool(99, 4, mark="‡")}, False)
    assert found.of == {"a": 1} and found.unplaced == ("b",) and found.text("c") == ""


# --------------------------------------------------------------------------- equivalence


def test_tost_of_one_seed_is_the_textbook_s():
    """Items alone: the paired t-tests against -margin and +margin, of scipy."""
    a, b = RNG(1).normal(50, 5, (1, 40)), RNG(2).normal(50.5, 5, (1, 40))
    d = (a - b)[0]
    low = scipy_stats.ttest_1samp(d, -2.0, alternative="greater").pvalue
    high = scipy_stats.ttest_1samp(d, 2.0, alternative="less").pvalue
    found = equivalence.tost(a, b, 2.0)
    assert found.p == pytest.approx(max(low, high), rel=1e-6)
    assert (found.low, found.high) == pytest.approx(scipy_stats.ttest_1samp(d, 0).confidence_interval(0.9))
    assert equivalence.tost(a, b, 0.01).p == pytest.approx(
        max(
            scipy_stats.ttest_1samp(d, -0.01, alternative="greater").pvalue,
            scipy_stats.ttest_1samp(d, 0.01, alternative="less").pvalue,
        ),
        rel=1e-6,
    )


@pytest.mark.parametrize("shift", [0.0, 0.6, 3.0])
def test_the_p_value_turns_where_the_interval_does(shift):
    d = RNG(3).normal(shift, 3, (4, 200)) + RNG(4).normal(0, 0.3, (4, 1))
    found = equivalence.tost(d, np.zeros_like(d), 1.0)
    least = max(abs(found.low), abs(found.high))  # the smallest margin within which these data show equivalence
    wide, narrow = (equivalence.tost(d, np.zeros_like(d), least * factor) for factor in (1.001, 0.999))
    assert wide.p < 0.05 < narrow.p and wide.verdict == "equivalent" and narrow.verdict != "equivalent"


def test_verdicts_against_a_reported_number():
    scores = 70 + SHARED / 10
    near, far = equivalence.tost(scores, 70.0, 1.0), equivalence.tost(scores, 60.0, 1.0)
    assert near.verdict == "equivalent" and near.difference.kind == "seeds and items" and far.p > 0.99
    assert far.verdict == "different" and far.text().startswith("different by more than 1 (p 1.000; difference +")
    assert equivalence.tost(scores, 70.0, 0.01).verdict == "undecided"
    assert equivalence.tost(scores[:2], 70.0, 1.0).text().endswith("2 seeds, 300 items, items only)")
    for reported in (1.0, 2.0):  # of scores without any spread
        alike = equivalence.tost(np.ones((3, 4)), reported, 0.1)
        assert (alike.p, alike.verdict) == (1.0, "undecided") and "no interval" in alike.text()
    with pytest.raises(ValueError, match="above zero"):
        equivalence.tost(scores, 70.0, 0.0)


def test_a_pool_is_compared_with_a_reported_number():
    one = pool(0, 1)
    assert equivalence.to_reported(one, SHARED.mean(), 5.0).difference.seeds == 3
    one.items = None
    assert equivalence.to_reported(one, 1.0, 2.0) is None


def test_equivalence_is_seldom_declared_at_the_margin():
    """Two methods that differ by exactly the margin, seeds deviating: called equivalent in 5 % or a little more."""
    rng, false = RNG(7), 0
    for _ in range(400):
        d = 2.0 + rng.normal(0, 1, (3, 1)) + rng.normal(0, 10, (3, 200))
        false += equivalence.tost(d, np.zeros_like(d), 2.0).verdict == "equivalent"
    assert false / 400 <= 0.09


# --------------------------------------------------------------------------- in tables


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    return Collected(fake_results.collected(tmp_path_factory.mktemp("results") / "fake") / "collected")


def test_the_tables_show_tiers(collected):
    panel = next(p for p in panels(collected, reference=False) if p.eval == "headlines-test")
    own = tiers.panel_tiers(panel, "tiny-bert")
    assert tiers.tiers(collected, "headlines-test", "tiny-bert") == own.of and set(own.of) == {"full", "lora", "dora"}
    scores, differences = score_table(collected, "S"), difference_table(collected, "D")
    bert = next(head for head, _ in scores.heads if "BERT" in head)
    rows = {r["variant"]: r[f"{bert}: tier"] for r in scores.records if r["benchmark"] == "Headlines"}
    assert rows == {"untuned": "", "majority": "", **{v: own.text(v) for v in own.of}} and "*" in rows["lora"]
    assert {r["variant"]: r["tier"] for r in differences.records if r["model"] == "tiny-bert"} == {
        v: own.text(v) for v in ("full", "dora")
    }
    for table in (scores, differences):
        assert any(note.startswith("Tier: 1 holds the best mean") for note in table.notes)
        assert all(subheads[-1] == "tier" for _, subheads in table.heads)


def test_a_benchmark_at_its_floor_has_no_tiers_and_unknown_names_are_told(collected):
    panel = next(p for p in panels(collected, reference=False) if p.eval == "arithmetic-test")
    assert panel.unresolved("tiny-llama") and not tiers.panel_tiers(panel, "tiny-llama").of
    with pytest.raises(EvidenceError, match="eval 'sonnets' with model 'tiny-bert' is not scored"):
        tiers.tiers(collected, "sonnets", "tiny-bert")


def test_a_mean_that_other_seeds_might_have_put_at_the_floor_lies_there():
    """Items alone would call 46 % of 200 more than a floor of 33.3 %; one lucky seed of three is not that."""

    def scored(*shares):
        values = np.stack([100.0 * (np.arange(200) < 2 * share) for share in shares])
        return ItemValues(values, tuple(map(str, range(200))))

    near = _near_floor_over_seeds
    assert near(scored(32.0, 60.0, 46.0), 33.3) is True and not near(scored(45.5, 46.0, 46.5), 33.3)
    assert not near(scored(32.0, 60.0), 33.3) and not near(scored(32.0, 60.0, 46.0), None) and not near(None, 33.3)
