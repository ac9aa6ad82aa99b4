"""Evidence of a tuning: rows of trials, the expected best, the table and the two figures."""

from __future__ import annotations

import itertools
import json
import math
import random
import types
from statistics import fmean

import pandas as pd
import pytest

from evidence import trials as trials_module
from evidence.expected_best import expected_best
from evidence.figure_best import best_pages, counted
from evidence.figure_rates import rate_pages
from evidence.layout import markdown
from evidence.names import LOSS_UNITS
from evidence.score_table import score_table
from evidence.style import styles, use_print_style
from evidence.summary import failed_rows
from evidence.trials import trial_rows, tried
from evidence.tuning_table import at_edge, tuning_table
from harness import record
from tests.fake_results import OTHER, STACK, collected

SPACE = {"learning_rate": {"space": "log_uniform", "low": 1e-5, "high": 1e-2}}
RATES = (3e-3, 1e-4, 9e-3)
LOSSES = {("full", 1): 0.5, ("full", 2): 0.4, ("full", 3): None, ("lora", 1): 0.6, ("lora", 2): 0.7, ("lora", 3): 0.3}


def tune(root, seeds=(1000,)):
    """Trials of two variants beside the fake results, and the plan that names them; full's third diverges."""
    plan = json.loads((root / "plan.json").read_text())
    plan["tuning"] = {"trials": 3, "seeds": list(seeds), "not_searched": ["dora"], "cells": []}
    for variant in ("full", "lora"):
        cell = {"model": "tiny-llama", "corpus": "headlines", "variant": variant, "method": variant}
        folder = root / "tune" / "tiny-llama" / "headlines" / variant
        listed = []
        for number, seed in itertools.product((1, 2, 3), seeds):
            values, loss = {"learning_rate": RATES[number - 1]}, LOSSES[variant, number]
            listed.append({"trial": number, "seed": seed, "values": values, "key": "k"})
            done = {
                "stage": "trial", **cell, "status": "diverged" if loss is None else "ok",
                "reason": "the loss is nan at step 2" if loss is None else "", "key": "k",
                "loss": {"validation": [[0, 0.8]] + ([] if loss is None else [[4, loss + 0.01 * (seed - 1000)]])},
                "examples": {"validation": 64}, "tokens": {"total": 50_000, "probe": 1_000}, "steps": 4,
                "phases": {"load": {"seconds": 1.0}, "train": {"seconds": 2.5}},
            }  # fmt: skip
            record.write(folder / f"trial{number}" / f"seed{seed}" / "train.json", done)
        best = 2 if variant == "full" else 3
        chosen = {"trial": best, "values": {"learning_rate": RATES[best - 1]}, "loss": LOSSES[variant, best]}
        record.write(
            folder / "tuned.json", {"stage": "tune", **cell, "status": "ok", "chosen": chosen, "trials": listed}
        )
        plan["tuning"]["cells"].append({**cell, "searched": SPACE, "trials": listed})
    (root / "plan.json").write_text(json.dumps(plan))
    return plan


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    from evidence import collect
    from evidence.collected import Collected

    root = collected(tmp_path_factory.mktemp("fake"))
    tune(root)
    assert collect.main(["--plan", str(root / "plan.json"), "--out", str(root / "collected")]) == 0
    return Collected(root / "collected")


def test_every_trial_is_a_row_and_a_failed_one_says_why(evidence):
    rows = evidence.trials
    assert len(rows) == 6 and list(rows.columns) == list(trials_module.COLUMNS)
    bad = rows[rows["status"] != "ok"]
    assert bad[["variant", "trial", "status"]].values.tolist() == [["full", 3, "diverged"]]
    assert bad["reason"].tolist() == ["the loss is nan at step 2"] and bad["validation_last"].isna().all()
    assert rows[rows["chosen"]][["variant", "trial"]].values.tolist() == [["full", 2], ["lora", 3]]
    assert set(rows["tokens"]) == {51_000} and set(rows["seconds"]) == {3.5}


def test_a_trial_that_is_not_there_or_of_another_search_keeps_its_row(tmp_path):
    plan = tune(collected(tmp_path))
    gone = tmp_path / "tune" / "tiny-llama" / "headlines" / "lora" / "trial1" / "seed1000" / "train.json"
    gone.unlink()
    plan["tuning"]["cells"][1]["trials"][1]["key"] = "another"
    rows = [row for row in trial_rows(plan, tmp_path) if row["variant"] == "lora"]
    assert [row["status"] for row in rows] == ["missing", "ok", "ok"] and [row["stale"] for row in rows] == [
        False,
        True,
        False,
    ]
    frame = types.SimpleNamespace(
        runs=pd.DataFrame(columns=["status"]), costs=pd.DataFrame(columns=["status"]), trials=pd.DataFrame(rows)
    )
    assert failed_rows(frame) == ["tune/tiny-llama/headlines/lora/trial1/seed1000: missing: no train.json yet"]


def test_that_a_trial_diverged_is_a_result_of_the_search(evidence):
    assert not [line for line in failed_rows(evidence) if line.startswith("tune/")]


def test_seeds_of_a_trial_are_averaged_and_one_failure_fails_it(tmp_path):
    frame = pd.DataFrame(trial_rows(tune(collected(tmp_path), seeds=(1000, 1001)), tmp_path))
    full, lora = tried(frame)
    assert (
        lora.seeds == (1000, 1001) and lora.trials[0].loss == pytest.approx(0.605) and len(lora.trials[0].losses) == 2
    )
    assert [trial.number for trial in full.failed] == [3] and full.tokens == 6 * 51_000
    frame.loc[(frame["variant"] == "lora") & (frame["trial"] == 2) & (frame["seed"] == 1001), "status"] = "oom"
    assert [(t.number, t.status) for t in tried(frame)[1].failed] == [(2, "oom")]


def test_trials_of_another_specification_are_marked(evidence):
    assert not any("stale" in note for note in tuning_table(evidence, "Tuning").notes)
    old = types.SimpleNamespace(suite={}, trials=evidence.trials.assign(stale=evidence.trials["variant"] == "lora"))
    table = tuning_table(old, "Tuning")
    assert [row[0] for row in table.groups[0].rows] == ["Full FT", "LoRA‡"] and any("stale" in n for n in table.notes)
    assert "stale" in table.groups[0].rows[1][2] and table.groups[0].rows[1][6] == "—"


def test_a_trial_of_other_software_counts_as_failed_and_is_marked(tmp_path):
    plan = tune(collected(tmp_path))
    for path in tmp_path.glob("tune/*/*/*/trial*/seed*/train.json"):
        other = "lora/trial3" in str(path)
        path.write_text(json.dumps({**json.loads(path.read_text()), "provenance": OTHER if other else STACK}))
    rows = pd.DataFrame(trial_rows(plan, tmp_path))
    found = tried(rows)[1]
    assert [(t.number, t.status) for t in found.failed] == [(3, "other software")] and found.chosen is None
    table = tuning_table(types.SimpleNamespace(suite={}, trials=rows), "Tuning")
    full, lora = table.groups[0].rows
    assert full[0] == "Full FT" and lora[0] == "LoRA†" and lora[2] == "1 (1 other software)"
    assert lora[3:5] == ["—", "none: choice counts as failed"] and lora[6] == "0.6000"
    text = markdown(table)
    assert "† some trials were run with other software or device than most; they count as failed: torch 2.12.0" in text
    assert "LoRA: choice counts as failed: trial 3, other software." in text
    assert "trial 3 (learning rate 0.009): other software (torch 2.12.0 (2.13.0))." in text
    (page,) = rate_pages(
        pd.DataFrame({"model": [], "corpus": [], "validation_first": []}), rows, styles(["full", "lora"])
    )
    assert page.axes


@pytest.mark.parametrize(
    ("damage", "cell", "note"),
    [
        ("gone", "none: no choice recorded", "no choice recorded: no tuned.json yet."),
        ("cut", "none: no choice recorded", "no choice recorded: unreadable record"),
        ("failed", "none: no choice recorded", "no choice recorded: all failed."),
        ("stale", "none: choice is stale", "choice is stale: made from other trials than the plan's."),
    ],
)
def test_only_a_choice_of_the_plans_search_is_shown(tmp_path, damage, cell, note):
    plan = tune(collected(tmp_path))
    path = tmp_path / "tune/tiny-llama/headlines/lora/tuned.json"
    done = {**json.loads(path.read_text()), "key": "search"}
    plan["tuning"]["cells"][1]["key"] = "search"
    changes = {"failed": {"status": "error", "reason": "all failed"}, "stale": {"key": "older"}}
    path.write_text(json.dumps({**done, **changes.get(damage, {})})[: 20 if damage == "cut" else None])
    if damage == "gone":
        path.unlink()
    table = tuning_table(types.SimpleNamespace(suite={}, trials=pd.DataFrame(trial_rows(plan, tmp_path))), "Tuning")
    full, lora = table.groups[0].rows
    assert full[3] == "2" and lora[3:6] == ["—", cell, "—"] and lora[6] == "0.3000"
    assert any(text.startswith("Failed: ") and f"LoRA: {note}" in text for text in table.notes)


def test_that_every_trial_failed_is_said_only_if_each_did(tmp_path):
    frame = pd.DataFrame(trial_rows(tune(collected(tmp_path)), tmp_path)).assign(status="oom")
    table = tuning_table(types.SimpleNamespace(suite={}, trials=frame), "Tuning")
    assert {row[4] for row in table.groups[0].rows} == {"none: every trial failed"}


# --------------------------------------------------------------------------- the expected best


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_the_expected_best_is_the_mean_over_all_orders(n):
    draw = random.Random(n)
    losses = [round(draw.random(), 1) for _ in range(n)]  # ties too
    for point in expected_best(losses):
        bests = sorted(min(order[: point.k]) for order in itertools.permutations(losses))
        assert point.expected == pytest.approx(fmean(bests), abs=1e-12)
        count = len(bests)
        assert point.low == bests[max(0, math.ceil(0.025 * count - 1e-9) - 1)]
        assert point.high == bests[math.ceil(0.975 * count - 1e-9) - 1]


def test_the_estimate_is_unbiased_where_the_plug_in_is_not():
    """Over all samples of three from a population of five, its mean is the population's expected best of two."""
    population, k = [0.1, 0.2, 0.5, 0.7, 1.0], 2
    truth = fmean(min(pair) for pair in itertools.product(population, repeat=k))
    ours, plug_in = [], []
    for sample in itertools.product(population, repeat=3):
        ours.append(expected_best(sample)[k - 1].expected)
        plug_in.append(fmean(min(pair) for pair in itertools.product(sample, repeat=k)))
    assert fmean(ours) == pytest.approx(truth, abs=1e-12) and fmean(plug_in) > truth + 0.01


def test_a_failed_trial_counts_as_the_loss_before_training(evidence):
    full, lora = tried(evidence.trials)
    assert counted(full) == [0.5, 0.4, 0.8] and counted(lora) == [0.6, 0.7, 0.3]


# --------------------------------------------------------------------------- table and figures


def test_edges_of_a_space():
    space = SPACE["learning_rate"]
    assert [at_edge(value, space) for value in (1e-6, 1.5e-5, 1e-4, 9e-3, 0.1)] == [True, True, False, True, True]
    ranks = {"space": "choice", "values": [4, 8, 16]}
    assert [at_edge(value, ranks) for value in (4, 8, 16)] == [True, False, True]
    assert not at_edge("a", {"space": "choice", "values": ["a", "b"]})


def test_the_table_has_the_choice_the_failures_and_the_price(evidence):
    table = tuning_table(evidence, "Tuning")
    assert ("Validation loss", ["best", "median", "trial 1"]) in table.heads and LOSS_UNITS in table.notes
    full, lora = table.groups[0].rows
    assert full[:6] == ["Full FT", "3", "1 (1 diverged)", "2", "learning rate 0.0001", "no"]
    assert full[6:] == ["0.4000", "0.4500 (2)", "0.5000", "0.153 M", "10"]
    assert lora[3:6] == ["3", "learning rate 0.009", "learning rate"]
    text = markdown(table)
    assert "trial 3 (learning rate 0.009): diverged (the loss is nan at step 2)." in text
    assert "no field of theirs is searched: dora" in text and "64 validation examples" in text


def test_every_score_has_its_methods_tuning_budget_beside_it(evidence):
    table = score_table(evidence, "Scores", tiers=False)
    text = markdown(table)
    assert "tuned with" in text and "3 trials, 0.153 M tokens, 10 s" in text
    rows = {
        row["variant"]: row for row in table.records if row["benchmark"] == "Headlines" and row["metric"] == "accuracy"
    }
    column = next(name for name in rows["lora"] if name.startswith("Tiny Llama") and name.endswith("tuned with"))
    assert rows["lora"][column] == "3 trials, 0.153 M tokens, 10 s" and rows["dora"][column] == "—"


def test_the_report_has_the_search_too(evidence, tmp_path):
    from evidence.report import build

    text = build(evidence, evidence.folder.parent, tmp_path / "report").read_text()
    assert 'href="#tuning"' in text and "learning rate 0.0001" in text and "1 (1 diverged)" in text
    page = "trainings/tiny-llama--headlines--full.html"
    assert f'<a href="{page}#tuning">Full FT</a>' in text
    listed = (tmp_path / "report" / page).read_text()
    assert 'id="tuning"' in listed and 'href="../../tune/tiny-llama/headlines/full/tuned.json"' in listed
    assert listed.count('href="../../tune/tiny-llama/headlines/full/trial') == 3


def test_a_suite_that_does_not_tune_has_no_such_column_table_or_figure(tmp_path):
    from evidence.collected import Collected

    plain = Collected(collected(tmp_path) / "collected")
    assert not len(plain.trials) and tuning_table(plain, "x") is None and best_pages(plain.trials, {}) == []
    assert "tuned with" not in markdown(score_table(plain, "Scores", tiers=False))
    (tmp_path / "collected" / "trials.parquet").unlink()  # collected before there was any tuning
    assert not len(Collected(tmp_path / "collected").trials)


def test_the_rates_show_each_trial_the_choice_and_the_failure(evidence):
    use_print_style()
    (page,) = rate_pages(evidence.runs, evidence.trials, styles(["full", "lora"]))
    (axis,) = [axis for axis in page.axes if axis.axison]
    lines = [line for line in axis.lines if len(line.get_xdata())]
    filled = [line.get_xdata()[0] for line in lines if len(line.get_xdata()) == 1 and line.get_marker() not in "x|"]
    assert filled == [1e-4, 9e-3]
    assert [line.get_xdata()[0] for line in lines if line.get_marker() == "x"] == [9e-3]
    assert "3 a method, of one tuning seed" in page.get_supxlabel().replace("\n", " ")


def test_the_expected_best_is_drawn_from_one_to_all_trials(evidence):
    use_print_style()
    (page,) = best_pages(evidence.trials, styles(["full", "lora"]))
    (axis,) = [axis for axis in page.axes if axis.axison]
    full, lora = axis.lines
    assert list(full.get_xdata()) == [1, 2, 3] and full.get_ydata()[-1] == 0.4 and lora.get_ydata()[-1] == 0.3
    assert full.get_ydata()[0] == pytest.approx(fmean([0.5, 0.4, 0.8]))
    assert axis.get_ylabel() == "expected best validation loss"
    assert "n = 3" in page.get_supxlabel() and LOSS_UNITS in " ".join(page.get_supxlabel().split())
