"""Costs and runs that may not be compared: no ratio, mean or bar takes them without a mark and its explanation."""

from __future__ import annotations

import shutil

import fake_results
import pandas as pd
import pytest

from evidence import collect, paper_costs
from evidence.collected import Collected
from evidence.cost_table import cost_table
from evidence.figure_cost import cost_pages
from evidence.row_marks import cost_mark_notes
from evidence.style import styles, use_print_style
from harness import record

CHANGES = {"‡": {"key": "another"}, "†": {"provenance": fake_results.OTHER}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("marks") / "fake"
    return fake_results.collected(folder, failures=False, seeds=(0, 1, 2), corpora=("headlines",))


@pytest.fixture
def changed(root, tmp_path):
    """What is collected after the record at a path got the change of a mark."""

    def change(name, mark):
        shutil.copytree(root, tmp_path / "fake")
        path = tmp_path / "fake" / name
        record.write(path, {**record.read(path), **CHANGES[mark]})
        collect.main(["--plan", str(tmp_path / "fake/plan.json"), "--out", str(tmp_path / "collected")])
        return Collected(tmp_path / "collected")

    return change


@pytest.mark.parametrize("mark", CHANGES)
def test_nothing_is_divided_by_a_full_fine_tuning_that_may_not_be_compared(changed, mark):
    table = cost_table(changed("cost/tiny-llama/headlines/full/cost.json", mark), "Cost")
    assert [row[4] for row in table.groups[0].rows] == ["—", "—", "—"]
    assert table.groups[0].rows[0][1].endswith(mark) and any(note.startswith(mark) for note in table.notes)
    assert table.groups[1].rows[0][4] == "1.00"  # the other model's


def test_the_cost_table_says_what_an_epoch_s_time_is(root):
    notes = " ".join(cost_table(Collected(root / "collected"), "Cost").notes)
    assert "its tokens x the mean time per token" in notes


def test_bars_of_costs_that_may_not_be_compared_are_marked_and_the_marks_explained(root):
    use_print_style()
    costs = Collected(root / "collected").costs
    costs.loc[costs["variant"] == "full", "stale"] = "cost"
    costs.loc[costs["variant"] == "lora", "other_stack"] = "hardware Other 1 (Example 9000)"
    (page,) = cost_pages(costs, styles(["full", "lora", "dora"]))
    assert [label.get_text() for label in page.axes[0].get_yticklabels()] == ["Full FT‡", "LoRA†", "DoRA"]
    said = " ".join(page.get_supxlabel().split())
    assert "‡ stale:" in said and "† measured with other software, device or hardware: hardware Other 1" in said


def test_fig_1_says_what_its_bars_of_time_are_and_explains_no_mark_that_is_not_there(root):
    use_print_style()
    (page,) = cost_pages(Collected(root / "collected").costs, styles(["full", "lora", "dora"]))
    said = " ".join(page.get_supxlabel().split())
    assert "mean time per token x the epoch's tokens" in said and "median" not in said
    assert "‡" not in said and "†" not in said


SPEC = {"title": "T", "methods": ["full", "lora", "dora"], "evals": ["headlines-test"]}
LOSS, TIMES, SCORE = -2, slice(7, 9), -1  # cells of a row of the projection table, its name left out


def projection_row(collected, method):
    table = paper_costs.projection_table("x", SPEC, collected)
    return next(row[1:] for row in table.groups[0].rows if row[0] == method), table.notes


@pytest.mark.parametrize("mark", CHANGES)
def test_a_projection_s_means_leave_out_what_the_score_beside_them_does(root, tmp_path, mark):
    """Two of three runs of LoRA may not be compared, and have another loss, other facts and refreshes."""
    shutil.copytree(root, tmp_path / "fake")
    for seed, facts in ((0, {"iterations": 10}), (1, {"iterations": 90}), (2, {"iterations": 90})):
        path = tmp_path / f"fake/runs/tiny-llama/headlines/lora/seed{seed}/train.json"
        done = {**record.read(path), "facts": facts, "clocks": {"refresh": {"count": 2, "seconds": 2.0}}}
        if seed:
            done |= {**CHANGES[mark], "clocks": {"refresh": {"count": 2, "seconds": 80.0}}}
            done["loss"] = {**done["loss"], "validation": [[0, 2.1], [30, 9.9]]}
        record.write(path, done)
    collect.main(["--plan", str(tmp_path / "fake/plan.json"), "--out", str(tmp_path / "collected")])
    row, _ = projection_row(Collected(tmp_path / "collected"), "LoRA")
    assert row[LOSS] == "1.200 (1 of 3)" and "(1 of 3)" in row[SCORE]
    assert row[1] == "1.000" and row[3] == "10.0"


@pytest.mark.parametrize("mark", CHANGES)
def test_a_projection_s_time_that_may_not_be_compared_is_marked(changed, mark):
    collected = changed("cost/tiny-llama/headlines/lora/cost.json", mark)
    row, notes = projection_row(collected, "LoRA")
    assert all(text.endswith(mark) for text in row[TIMES]) and any(note.startswith(mark) for note in notes)
    assert not any(text.endswith(mark) for text in projection_row(collected, "DoRA")[0][TIMES])
    costs = paper_costs.costs_table("x", SPEC, collected)
    assert any(note.startswith(mark) for note in costs.notes)


def test_a_time_that_could_not_be_measured_says_why(root):
    collected = Collected(root / "collected")
    collected.costs.loc[collected.costs["variant"] == "lora", ["status", "step_seconds_median"]] = ["timeout", None]
    assert projection_row(collected, "LoRA")[0][TIMES.start] == "timeout"


def test_a_suite_that_measures_no_costs_has_no_marks_to_explain():
    assert cost_mark_notes(pd.DataFrame([])) == []
