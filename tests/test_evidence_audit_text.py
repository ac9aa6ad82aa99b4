"""The audit of a text: stated differences and which pair they fit."""

from __future__ import annotations

import pytest

from evidence.audit_cells import ROOT, Cell, read_cells, read_rows
from evidence.audit_text import text_against_table

FOLDER = ROOT / "papers" / "hybrid" / "reported"
SMALL, LARGE = "BloomZ-7B1", "Llama3.1-405B"


@pytest.fixture(scope="module")
def cells():
    return read_cells(FOLDER / "table1.csv")


def made(model=SMALL, **averages):
    """Cells of one GSM8K column whose three runs are all the average."""
    return [
        Cell("GSM8K", "accuracy_pct", model, name, (value,) * 3 if value else None, value)
        for name, value in averages.items()
    ]


def difference(value, other="BOFT", model=SMALL):
    key = {"benchmark": "GSM8K", "metric": "accuracy_pct", "model": model, "method": "Hybrid", "other": other}
    return {**key, "difference": value, "place": "results"}


# --------------------------------------------------------------------------- differences


def test_differences_of_the_paper(cells):
    lines = text_against_table(cells, read_rows(FOLDER / "text.csv"))
    assert lines[0] == "6 stated differences are not the table's." and lines[-1].startswith("3 cannot be checked")
    for end in (
        "MT-Bench BLEU, all: Hybrid less LoRA: the text (conclusion) has +2.4, the table +0.87.",
        "70B: Hybrid less LoRA-GA: the text (results) has +0.9, the table +0.80.",
        "70B: Hybrid less LoRA-GA: the text (results) has +0.8, the table +0.40; the difference to LoRA is +0.8.",
        "405B: Hybrid less LoRA: the text (conclusion) has +1.6, the table +1.50.",
        "7B1: Hybrid less BOFT: the text (results) has +1.0, the table +0.60; the difference to LoRA is +1.0.",
        "7B1: Hybrid less LoRA: the text (results) has +1.5, the table +1.00; the difference to uRNN is +1.5.",
        "30B: Hybrid less BOFT: +0.7 by the printed averages, +0.80 by the means of the runs.",
    ):
        assert sum(line.endswith(end) for line in lines) == 1, end


def test_a_difference_that_is_the_table_s_is_not_told():
    cells = made(Hybrid=50.0, BOFT=49.0, LoRA=48.5)
    assert text_against_table(cells, [difference("1.0")]) == ["0 stated differences are not the table's."]


def test_another_pair_is_named_only_where_it_fits():
    cells = made(Hybrid=50.0, BOFT=49.0, LoRA=48.5, uRNN=48.5)
    fitting, none = text_against_table(cells, [difference("1.5"), difference("1.3")])[1:]
    assert fitting.endswith("the table +1.00; the difference to LoRA and to uRNN is +1.5.")
    assert none.endswith("the text (results) has +1.3, the table +1.00.")


def test_another_pair_over_all_models_is_the_mean_over_them():
    cells = made(Hybrid=50.0, BOFT=49.0, LoRA=48.0) + made(LARGE, Hybrid=60.0, BOFT=59.0, LoRA=59.0)
    assert text_against_table(cells, [difference("1.5", model="all")])[1].endswith("the difference to LoRA is +1.5.")


def test_damaged_cells_fit_nothing():
    cells = made(Hybrid=50.0, BOFT=49.0, LoRA=None)
    assert text_against_table(cells, [difference("1.5")])[1].endswith("the table +1.00.")
    assert text_against_table(cells, [difference("1.5", other="LoRA")])[1] == (
        "1 cannot be checked: their cells are damaged."
    )


def test_printed_averages_and_means_of_runs_may_differ():
    cells = [*made(BOFT=49.0), Cell("GSM8K", "accuracy_pct", SMALL, "Hybrid", (49.9, 50.2, 50.2), 50.0)]
    assert text_against_table(cells, [difference("1.0")])[1].endswith(
        "+1.0 by the printed averages, +1.10 by the means of the runs."
    )
