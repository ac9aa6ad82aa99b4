"""The audit of figures: stated ratios, memory and time against floors, losses beside scores."""

from __future__ import annotations

import pytest

from evidence.audit_cells import ROOT, Cell, read_cells, read_rows
from evidence.audit_figures import floors, loss_against_scores, stated_ratios

FOLDER = ROOT / "papers" / "hybrid" / "reported"
SMALL, LARGE = "BloomZ-7B1", "Llama3.1-405B"


@pytest.fixture(scope="module")
def figures():
    return read_rows(FOLDER / "figures.csv")


def figure(quantity, value, method="Hybrid", model=SMALL, relation="=", unit=""):
    return {
        "quantity": quantity, "value": value, "method": method, "model": model, "relation": relation, "unit": unit,
        "place": "Abstract",
    }  # fmt: skip


def pair(quantity, full, other, model=SMALL):
    return [figure(quantity, full, "Full FT", model), figure(quantity, other, model=model)]


# --------------------------------------------------------------------------- stated ratios


def test_ratios_of_the_paper(figures):
    speed, speed_models, memory, memory_models = stated_ratios(figures)
    assert "<= 2.1 x; Llama3.1-405B has train_time_per_epoch 120 (Full FT) and 55 (Hybrid): 2.18," in speed
    assert speed.endswith("They agree if digits are cut off, not if rounded.")
    assert "~ 50 percent; Llama3.1-405B has gpu_memory 80 (Full FT) and 30 (Hybrid): 62.50," in memory
    assert memory.endswith("They do not agree within 10%.")
    assert all("Llama3.3-70B, Wizard-Vicuna-30B, BloomZ-7B1" in line for line in (speed_models, memory_models))


@pytest.mark.parametrize(
    ("relation", "stated", "full", "other", "verdict"),
    [
        ("=", "2.0", "100", "50", "They agree."),
        ("=", "2.0", "100", "49", "They agree."),  # by rounding 2.01 to 2.07
        ("=", "2.0", "100", "40", "They do not agree."),
        ("<=", "2.0", "100", "80", "They agree."),
        ("<=", "2.0", "100", "40", "They do not agree."),
        ("<=", "2.1", "120", "55", "They agree if digits are cut off, not if rounded."),
        ("~", "2.0", "100", "46", "They agree."),
        ("~", "2.0", "100", "40", "They do not agree within 10%."),
    ],
)
def test_a_stated_speedup_against_the_figures(relation, stated, full, other, verdict):
    row = figure("speedup_vs_FullFT", stated, relation=relation)
    (line,) = stated_ratios([row, *pair("train_time_per_epoch", full, other)])
    assert line.endswith(verdict)


def test_a_stated_reduction_of_memory_agrees_with_its_figures():
    (line,) = stated_ratios([figure("memory_reduction", "50", relation="~"), *pair("gpu_memory", "80", "40")])
    assert line.endswith("50.00, by rounding 49.06 to 50.93. They agree.")


def test_ratios_without_figures_are_not_judged():
    (line,) = stated_ratios([figure("memory_reduction", "50"), figure("gpu_memory", "80", "Full FT")])
    assert line.endswith("no model has both figures.")
    assert stated_ratios(pair("gpu_memory", "80", "40")) == ["No ratio is stated that the figures could give."]


# --------------------------------------------------------------------------- floors


def test_memory_and_time_of_the_paper(figures):
    lines = " ".join(floors(figures))
    assert "80 GB reported; weights in 16 bits 812 GB, in 4 bits 203 GB" in lines and "6,494 GB" in lines
    assert "takes 82 GPUs or more (11 nodes of 8) with gradients and Adam" in lines
    assert "takes 1.57 times one of BloomZ-7B1, with 57 times the parameters" in lines
    assert "120 / 55 = 2.18 times faster than Full FT, beside the bound of 1.50; a factor of 1.45 or more" in lines


def test_memory_that_one_gpu_has_is_no_share():
    line, _ = floors([figure("gpu_memory", "24")])
    assert line.startswith("BloomZ-7B1, Hybrid: 24 GB reported; weights in 16 bits 14 GB") and "share" not in line
    assert "takes 2 GPUs or more in 4 bits" in floors([figure("gpu_memory", "3")])[0]


def test_a_speedup_within_the_bound_is_not_told():
    assert len(floors(pair("train_time_per_epoch", "60", "40"))) == 1  # the bound itself
    assert "60 / 39 = 1.54 times faster" in floors(pair("train_time_per_epoch", "60", "39"))[1]


@pytest.mark.parametrize(("large", "told"), [("60", True), ("2000", False)])
def test_epochs_are_told_where_their_times_are_far_from_the_parameters(large, told):
    times = [figure("train_time_per_epoch", large, model=LARGE), figure("train_time_per_epoch", "35")]
    assert any("the number of GPUs must differ" in line for line in floors(times)) is told


# --------------------------------------------------------------------------- loss beside scores


def test_losses_of_the_paper(figures):
    found = loss_against_scores(read_cells(FOLDER / "table1.csv"), figures)
    assert len(found) == 2 and found[0] == (
        "Wizard-Vicuna-30B: Hybrid's final validation loss, 0.88, is above Full FT's, 0.83, and so is its score: "
        "GSM8K accuracy_pct +0.6, MT-Bench BLEU +0.3; elsewhere it is not: HumanEval pass@1 -0.6, HumanEval pass@10 -0.3."
    )


@pytest.mark.parametrize(("full", "told"), [("0.80", True), ("0.90", False), ("0.95", False)])
def test_a_higher_loss_beside_a_higher_score(full, told):
    cells = [
        Cell("GSM8K", "accuracy_pct", SMALL, name, None, value) for name, value in (("Hybrid", 50.0), ("Full FT", 49.0))
    ]
    found = loss_against_scores(cells, pair("val_loss_final", full, "0.90"))
    assert (found[0] != "No method has both the higher loss and the higher score.") is told
