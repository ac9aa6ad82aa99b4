"""The audit: what it finds in the Hybrid paper's table, and what it does not find where there is nothing."""

from __future__ import annotations

import dataclasses

import pytest

from evidence import audit
from evidence.audit import Cell

FOLDER = audit.ROOT / "papers" / "hybrid" / "reported"


@pytest.fixture(scope="module")
def cells():
    return audit.read_cells(FOLDER / "table1.csv")


def cell(runs, average, method="LoRA", model="BloomZ-7B1", benchmark="GSM8K", metric="accuracy_pct"):
    return Cell(benchmark, metric, model, method, runs, average)


def test_averages_of_the_paper(cells):
    head, *wrong, last = audit.averages(cells)
    assert head.startswith("92 of 100 whole cells agree to rounding; 8 do not. In 8 of these")
    assert len(wrong) == 8 and sum("cannot be by rounding" in line for line in wrong) == 5
    assert last.endswith("GLUE 2 of 16, GSM8K 8 of 24, MT-Bench 12 of 24, HumanEval 36 of 36.")


def test_an_average_may_be_rounded_from_unrounded_runs():
    right = audit.averages([cell((1.0, 2.0, 3.2), 2.1)])
    assert right[0].startswith("1 of 1 whole cells agree") and len(right) == 2
    near = audit.averages([cell((25.6, 26.2, 26.0), 26.0)])[1]
    far = audit.averages([cell((25.6, 26.2, 26.0), 26.1)])[1]
    assert "could be" in near and "cannot be" in far


def test_runs_come_in_an_order(cells):
    low, high = audit.order_of_runs(cells)
    assert (
        low.startswith("Run 1 is the lowest of three (or one of the lowest) in 98 of 103 cells") and "p = 2e-40" in low
    )
    assert high.startswith("Run 2 is the highest of three (or one of the highest) in 83 of 103 cells")


def test_values_fit_the_number_of_items_or_do_not(cells):
    lines = audit.resolution(cells)
    assert any(line.startswith("HumanEval pass@1: 9 of 54 ") for line in lines)
    assert any(line.startswith("HumanEval pass@10: 11 of 54 ") for line in lines)
    possible = cell((50.0, 50.6, 51.2), 50.6, benchmark="HumanEval", metric="pass@1")  # 82, 83 and 84 of 164
    assert audit.resolution([possible])[0].startswith("HumanEval pass@1: 3 of 3 ")


def test_differences_against_the_spread(cells):
    found = " ".join(audit.against_spread(cells))
    for expected in (
        "Llama3.1-405B 0.56 (Full FT)",
        "Llama3.3-70B -0.59 (Full FT)",
        "BloomZ-7B1 2.80 (Full FT)",
        "5.37 (LoRA-GA",
    ):
        assert expected in found
    assert "largest 1.50" in found and "no whole cells" in found


def test_levels_of_the_smallest_and_the_largest_model(cells):
    assert audit.levels(cells)[0].startswith(
        "GSM8K accuracy_pct, Hybrid: 49.3 (BloomZ-7B1) and 55.9 (Llama3.1-405B), +6.6 over 57"
    )
    assert audit.levels([cell((1.0, 2.0, 3.0), 2.0, method="Hybrid")]) == []  # one model is no range


def test_readings_of_damaged_cells(cells):
    found = audit.damaged_readings(cells, audit.read_rows(FOLDER / "table1_damaged.csv"))
    assert len(found) == 2
    assert (
        "405B, Hybrid (damaged, read with low confidence): runs 91.7, 92.1, 92.1, mean 91.97, average 92.3" in found[0]
    )
    assert (
        "70B, Hybrid (damaged, read with medium confidence): runs 89.8, 90.2, 90.4, mean 90.13, average 90.2"
        in found[1]
    )


@pytest.mark.parametrize(("average", "lines"), [("2.0 (printed)", 0), ("2.3 (printed)", 1), ("lost", 0)])
def test_a_damaged_cell_is_told_where_its_reading_has_another_mean(average, lines):
    key = {"benchmark": "GLUE", "model": "BloomZ-7B1", "method": "LoRA", "confidence": "low"}
    rows = [{**key, "field": "run1-3", "inference": "1.0 / 2.0 / 3.0"}, {**key, "field": "avg", "inference": average}]
    assert len(audit.damaged_readings([], rows)) == lines


def test_damaged_cells_take_no_part(cells):
    damaged = [dataclasses.replace(c, runs=None) for c in cells]
    assert audit.averages(damaged)[0].startswith("0 of 0 whole cells")


def test_the_page_is_the_present_audit_and_errors_are_told(capsys, tmp_path):
    page = audit.ROOT / "papers" / "hybrid" / "audit.md"
    assert page.read_text(encoding="utf-8") == audit.report("hybrid", FOLDER), (
        "renew it: python -m evidence.audit hybrid --out"
    )
    assert audit.main(["smt"]) == 2 and "no table of this paper's is at hand" in capsys.readouterr().err
    assert audit.main(["hybrid", "--out", str(tmp_path / "a.md")]) == 0 and (tmp_path / "a.md").is_file()
