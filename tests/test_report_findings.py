"""The report's sentences say what the rows say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from evidence.report_findings import how_sure, what_it_costs, what_to_use


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
