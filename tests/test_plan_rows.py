"""A training's largest micro-batch: the largest of all steps, or where not all are known an upper bound that says so."""

from __future__ import annotations

import types

import pytest

from harness import plan_rows
from harness.counted_step import Shape
from harness.plan_pages import _memory, _unsure
from harness.plan_rows import LAID, Lengths, _from_rows
from harness.suite import PROTOCOL

RULES = {**PROTOCOL, "batch_size": 8, "micro_batch_size": 4, "max_length": 512, "length_bucketing": 1}


def lengths(count: int, long_at: int, **more) -> Lengths:
    """So many rows of 40 tokens, and one of 512; those that are read."""
    rows = [40] * count
    rows[long_at] = 512
    most = plan_rows.ENOUGH
    read = [rows[i * count // most] for i in range(most)] if count > most else rows
    return Lengths(read, read, count, **more)


def test_a_long_row_that_is_not_read_is_bounded_by_the_protocol():
    found = lengths(40_000, 33_333)
    assert max(found.rows) == 40
    made = _from_rows(found, RULES, 1)
    assert made.largest == Shape(4, 512, 4 * 512) and made.upper
    assert made.typical.length == 40


def test_targets_that_all_rows_share_stay_few():
    made = _from_rows(lengths(40_000, 33_333, targets=2), RULES, 1)
    assert made.largest == Shape(4, 512, 8)


def test_images_are_all_of_one_length_read_or_not():
    made = _from_rows(Lengths([1] * 50, [1] * 50, 60, longest=1, targets=1), RULES, 1)
    assert made.largest == Shape(4, 1, 4, padded=False) and not made.upper


@pytest.mark.parametrize("seed", range(3))
def test_a_long_row_of_a_late_step_is_found(seed):
    made = _from_rows(lengths(20_000, 7), {**RULES, "epochs": 1}, seed)
    assert made.steps == 2_500 and made.largest.length == 512 and not made.upper


def test_a_training_too_long_to_be_laid_out_is_bounded_by_its_longest_row():
    steps = LAID // RULES["batch_size"] + 1
    made = _from_rows(lengths(50, 7, targets=2), {**RULES, "steps": steps}, 1)
    assert made.largest == Shape(4, 512, 4 * 512) and made.upper and made.steps == steps


def test_the_page_marks_an_upper_bound():
    row = types.SimpleNamespace(
        batches=types.SimpleNamespace(upper=True),
        memory={"peak": 2**30, "weights": 2**20},
        obstacle="weights + optimizer state + gradients + activations",
    )
    assert _memory(row, "peak") == "≤ 1 GiB" and _memory(row, "weights") == "1 MiB" and _unsure(row)
    row.batches.upper = False
    assert _memory(row, "peak") == "1 GiB" and not _unsure(row)
