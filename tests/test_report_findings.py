"""The report's sentences say what the rows say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from evidence.report_findings import what_it_costs, what_to_use


def cost(variant, whole, peak):
    return SimpleNamespace(
        variant=variant, method=variant, model="m", corpus="c", status="ok", why="", whole=whole, peak=peak
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
    assert what_to_use(rows, []).startswith("m1: the only method that is among the best in all of 1 comparison")
