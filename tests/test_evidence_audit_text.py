"""The audit of a text: stated differences, which pair they fit, and stated orderings."""

from __future__ import annotations

import pytest

from evidence.audit_cells import ROOT, Cell, read_cells, read_rows
from evidence.audit_orderings import orderings
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


def ordering(relation, other="", **fields):
    key = {"benchmark": "GSM8K", "metric": "all", "model": "all", "method": "Hybrid", "remark": "", "claim": "it is so"}
    return {**key, "relation": relation, "other": other, "place": "results", **fields}


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


# --------------------------------------------------------------------------- orderings


def test_orderings_of_the_paper(cells):
    lines = orderings(cells, read_rows(FOLDER / "orderings.csv"))
    assert lines[0] == "5 stated orderings are not the table's in every cell."
    (highest,) = [line for line in lines if "highest GSM8K accuracy at all sizes" in line]
    assert (
        "not so in 1 of 4 cells. GSM8K accuracy_pct, Llama3.3-70B: Hybrid 53.0, Full FT 53.1. With Full FT left"
        in highest
    )
    (unitary,) = [line for line in lines if "Unitary" in line]
    assert "not so in 6 of 10 cells" in unitary and unitary.count("HumanEval") == unitary.count("is the lowest") == 6
    (closed,) = [line for line in lines if "closes the whole gap" in line]
    assert "pass@1, BloomZ-7B1: Hybrid 40.5, Full FT 41.3" in closed and "58.3, Full FT 59.1" in closed
    (narrowed,) = [line for line in lines if "On smaller models" in line]
    assert "Hybrid 52.1, Full FT 51.5" in narrowed and "Hybrid 49.3, Full FT 48.9" in narrowed
    absent = " ".join(line for line in lines if "The table has no numbers of" in line)
    assert all(name in absent for name in ("MNLI, QNLI", "SST-2, QQP", "MT-Bench ROUGE-L"))


def test_orderings_that_the_paper_s_table_has_are_not_told(cells):
    text = " ".join(orderings(cells, read_rows(FOLDER / "orderings.csv")))
    assert "above each single method" not in text and "BLEU is above" not in text


@pytest.mark.parametrize(
    ("relation", "other", "own", "told"),
    [
        ("highest", "", 50.0, ""),
        ("highest", "", 48.5, "Hybrid 48.5, Full FT 49.0"),
        ("highest", "", 47.5, "Hybrid 47.5, Full FT 49.0, LoRA 48.0"),
        ("lowest", "", 47.0, ""),
        ("lowest", "", 48.5, "Hybrid 48.5, LoRA 48.0"),
        ("above", "LoRA", 48.5, ""),
        ("above", "LoRA", 48.0, "Hybrid 48.0, LoRA 48.0"),
        ("below", "Full FT", 48.5, ""),
        ("below", "Full FT", 49.5, "Hybrid 49.5, Full FT 49.0"),
        ("at least", "Full FT", 49.0, ""),
        ("at least", "Full FT", 48.9, "Hybrid 48.9, Full FT 49.0"),
        ("not lowest", "", 48.0, ""),
        ("not lowest", "", 47.9, "Hybrid 47.9 is the lowest, LoRA 48.0 the next"),
    ],
)
def test_each_relation_finds_and_is_silent(relation, other, own, told):
    lines = orderings(made(**{"Hybrid": own, "Full FT": 49.0, "LoRA": 48.0}), [ordering(relation, other)])
    if told:
        assert f"not so in 1 of 1 cells. GSM8K accuracy_pct, {SMALL}: {told}." in lines[1]
    else:
        assert lines == ["0 stated orderings are not the table's in every cell."]


def test_highest_says_whether_full_fine_tuning_alone_is_above():
    cells = made(**{"Hybrid": 48.5, "Full FT": 49.0, "LoRA": 48.0})
    assert orderings(cells, [ordering("highest")])[1].endswith("With Full FT left out it is so in all.")
    assert "left out" not in orderings(cells + made(LARGE, Hybrid=50.0, LoRA=51.0), [ordering("highest")])[1]


def test_an_ordering_is_about_the_models_that_it_names():
    cells = made(Hybrid=48.0, LoRA=49.0) + made(LARGE, Hybrid=60.0, LoRA=59.0)
    silent = ["0 stated orderings are not the table's in every cell."]
    assert orderings(cells, [ordering("highest", model=LARGE)]) == silent
    assert "not so in 1 of 2 cells" in orderings(cells, [ordering("highest", model=f"{SMALL}; {LARGE}")])[1]


def test_what_the_table_does_not_show_is_told_and_damage_counted():
    cells = made(Hybrid=None, LoRA=49.0)
    assert orderings(cells, [ordering("highest")])[1:] == ["1 cells cannot be checked: they are damaged."]
    shown = orderings(cells, [ordering("shown"), ordering("shown", benchmark="GSM8K; MNLI")])[1:]
    assert shown == ["Stated in short (results): it is so. The table has no numbers of MNLI."]


def test_an_unknown_relation_is_refused():
    with pytest.raises(ValueError, match="relation 'better' is none of highest"):
        orderings(made(Hybrid=50.0, LoRA=49.0), [ordering("better")])
