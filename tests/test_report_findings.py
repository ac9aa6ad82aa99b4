"""The report's sentences say what the rows say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from evidence.report_findings import how_sure, what_it_costs, what_stays_open, what_to_use


def cost(variant, whole, peak):
    return SimpleNamespace(
        variant=variant,
        method=variant,
        plugin=variant.partition("-")[0],
        model="m",
        model_label="m",
        corpus="c",
        status="ok",
        why="",
        whole=whole,
        peak=peak,
    )


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        (5.0, "lora trains fastest, in 0.50 of full fine-tuning's time, and needs the least memory, 0.25"),
        (12.0, "Nothing trains faster than full fine-tuning; next is lora, in 1.20 of its time"),
    ],
)
def test_nothing_is_called_fastest_that_full_fine_tuning_beats(lora, said):
    assert what_it_costs([cost("full", 10.0, 400.0), cost("lora", lora, 100.0)]).startswith(said)


def test_tier_ten_is_not_among_the_best():
    rows = [
        SimpleNamespace(
            tier=str(place),
            method=f"m{place}",
            model="m",
            corpus="c",
            benchmark="b",
            eval="e",
            difference=None,
            at_floor=False,
            seeds=3,
        )
        for place in range(1, 12)
    ]
    assert what_to_use(rows, []).startswith("m1: the only method that is among the best in the one comparison")


def score(variant, **others):
    plugin = variant.partition("-")[0]
    return SimpleNamespace(
        variant=variant,
        method=variant,
        plugin=plugin,
        benchmark="b",
        model_label="m",
        digits=1,
        difference=None,
        **others,
    )


def compared(variant, value, lower):
    found = {"reference": "lora-r8", "difference": value, "error": 0.1, "low": value - 0.2, "high": value + 0.2,
             "covers": "seeds and items", "p_holm": 0.001}  # fmt: skip
    row = score(variant, lower_is_better=lower)
    row.difference = found
    return row


@pytest.mark.parametrize(
    ("value", "lower", "said"),
    [
        (2.0, True, "full is worse, +2.0 [+1.8, +2.2] on b, m (lower is better)."),
        (-2.0, True, "full is better, -2.0 [-2.2, -1.8] on b, m (lower is better)."),
        (2.0, False, "full is better, +2.0 [+1.8, +2.2] on b, m."),
        (-2.0, False, "full is worse, -2.0 [-2.2, -1.8] on b, m."),
    ],
)
def test_the_clearest_difference_is_called_better_or_worse(value, lower, said):
    assert how_sure([score("lora-r8"), compared("full", value, lower)]).endswith(said)


def test_a_reference_that_is_one_of_several_ranks_is_named():
    one = how_sure([score("lora-r8"), compared("full", 2.0, False)])
    several = how_sure([score("lora-r8"), score("lora-r64"), compared("full", 2.0, False)])
    assert "to lora-r8 hold" in one and "to lora-r8 (variant lora-r8) hold" in several


def test_full_fine_tuning_is_known_by_its_method_and_named_where_it_is_one_of_several():
    rows = [cost("full-bf16", 10.0, 400.0), cost("lora", 5.0, 100.0)]
    said = what_it_costs(rows)
    assert said.startswith("lora trains fastest, in 0.50 of full fine-tuning's time") and "variant" not in said
    assert "full fine-tuning is variant full-bf16)" in what_it_costs([*rows, cost("full-fp32", 20.0, 800.0)])


def test_full_fine_tuning_alone_is_not_called_unmeasured():
    assert what_it_costs([cost("full", 10.0, 400.0)]).endswith("no other method was measured beside full fine-tuning.")


def contest(variant, value, **others):
    """A row of one benchmark, in its first tier, ``value`` from the reference."""
    row = compared(variant, value, lower=False)
    vars(row).update({"tier": "1", "at_floor": False, "corpus": "c", "eval": "e", "model": "m", **others})
    return row


def test_what_is_told_worse_than_the_reference_or_at_its_floor_is_not_recommended():
    """Seeds that scatter widely keep both in the first tier, and both are cheap."""
    rows = [contest("lora-r8", 0.0), contest("smt", -15.0), contest("urnn", 1.0, at_floor=True)]
    costs = [cost(name, whole, 100.0) for name, whole in (("lora-r8", 10.0), ("smt", 5.0), ("urnn", 1.0))]
    rows[0].difference = None
    assert what_to_use(rows, costs).startswith("lora-r8: the only method")
    assert what_to_use(rows[1:], costs).startswith("Nothing can be recommended")


def test_at_the_floor_the_likelihood_of_the_right_answers_is_told():
    sunk = [contest("lora-r8", 0.0, unresolved=True), contest("full", 4.0, unresolved=True)]
    told = [contest("lora-r8", 0.0), contest("full", 0.4), contest("boft", 0.1)]
    told[0].difference = None
    told[2].difference["p_holm"] = 0.2
    said = what_stays_open(sunk, told)
    assert "B on m tells nothing" in said and "1 of 2 differences to lora-r8 hold)" in said
    assert "likelihood" not in what_stays_open(sunk) + what_stays_open([contest("full", 4.0, unresolved=False)], told)
