"""Records to Parquet: every cell of the plan is there, with what became of it."""

from __future__ import annotations

import json
import re
import shutil

import fake_results
import numpy as np
import pandas as pd
import pytest

from evidence import collect, grades, tables
from evidence.cells import EvidenceError, stack_of
from evidence.collected import Collected, FromRecords
from evidence.curves import read_curve
from evidence.gather import Gathered
from evidence.pools import panels
from harness import record


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A fake suite with failures, collected: (its folder, its run rows)."""
    root = tmp_path_factory.mktemp("results") / "fake"
    plan = fake_results.build(root)
    assert collect.main(["--plan", str(plan), "--out", str(root / "collected")]) == 0
    return root, pd.read_parquet(root / "collected" / "runs.parquet")


def select(runs, **wanted):
    for name, value in wanted.items():
        runs = runs[runs[name] == value]
    return runs


def test_every_cell_of_the_plan_has_its_row(tree):
    root, runs = tree
    plan = json.loads((root / "plan.json").read_text())
    expected = {
        (c["model"], c["corpus"], c["variant"], c["seed"], e["eval"]) for c in plan["cells"] for e in c["evals"]
    }
    found = set(runs[["model", "corpus", "variant", "seed", "eval"]].itertuples(index=False, name=None))
    assert found == expected
    assert (runs[runs["headline"]].groupby(["model", "corpus", "variant", "seed", "eval"]).size() == 1).all()


def test_a_benchmark_is_called_as_the_plan_calls_it_not_as_older_records_do(tmp_path):
    """Names may change without a score being computed anew: its rows must not fall apart into two benchmarks."""
    plan = fake_results.build(tmp_path / "fake")
    content = json.loads(plan.read_text())
    entry = content["cells"][0]["evals"][0]
    for cell in content["cells"]:
        for e in cell["evals"]:
            e["label"] = f"{e['eval']}, as named now"
    plan.write_text(json.dumps(content))
    assert collect.main(["--plan", str(plan), "--out", str(tmp_path / "collected")]) == 0
    runs = pd.read_parquet(tmp_path / "collected" / "runs.parquet")
    assert set(runs[runs["eval"] == entry["eval"]]["eval_label"]) == {entry["label"]}


@pytest.mark.parametrize(
    ("cell", "status", "stage", "reason"),
    [
        ({"corpus": "snippets", "variant": "dora", "seed": 1}, "oom", "train", "resident memory"),
        ({"corpus": "arithmetic", "variant": "lora", "seed": 0}, "diverged", "train", "not finite"),
        ({"corpus": "phrases-en-de", "variant": "full", "seed": 1}, "missing", "train", "no train.json"),
    ],
)
def test_a_failure_keeps_its_row_with_the_first_cause(tree, cell, status, stage, reason):
    rows = select(tree[1], **cell)
    assert len(rows) == 1
    row = rows.iloc[0]
    assert (row["status"], row["stage"]) == (status, stage)
    assert reason in row["reason"]
    assert np.isnan(row["value"])


def test_stale_and_other_software_are_marked(tree):
    runs = select(tree[1], model="tiny-llama", corpus="headlines", metric="accuracy")
    stale, other = select(runs, variant="lora", seed=1), select(runs, variant="dora", seed=1)
    assert list(stale["stale"]) == ["train"] and list(stale["status"]) == ["ok"]
    assert list(other["other_stack"]) == ["torch 2.12.0 (2.13.0)"]
    assert (select(runs, variant="full")["other_stack"] == "").all()


def test_runs_on_other_data_than_most_are_marked_and_averaged_with_none(tmp_path):
    """As where another machine's mirror holds other rows: every key is the same."""
    plan = fake_results.build(tmp_path, failures=False, seeds=(0, 1, 2), corpora=("headlines",))
    for path in tmp_path.glob("runs/*/*/*/*/train.json"):
        mine = path.parts[-3:-1] == ("lora", "seed1")
        record.write(path, {**record.read(path), "assets": {"headlines": "mirror 1a2b" if mine else "mirror 3c4d"}})
    (panel,) = panels(FromRecords(plan), reference=False)[:1]
    pool = panel.pools["lora", "tiny-llama"]
    assert [run.other_stack for run in pool.runs] == ["", "headlines of mirror 1a2b (mirror 3c4d)", ""]
    assert pool.used == (0, 2) and panel.pools["full", "tiny-llama"].used == (0, 1, 2)


def test_all_stages_of_a_run_have_one_reference_stack(tmp_path):
    """Five seeds, of which the first three come from other software and two of these are not scored yet."""
    plan = fake_results.build(tmp_path, failures=False, seeds=(0, 1, 2, 3, 4), corpora=("headlines",))
    for path in tmp_path.glob("runs/*/*/*/seed[012]/**/*.json"):
        if {"untuned", "majority"} & set(path.parts):
            continue
        if "seed2" not in path.parts and path.name != "train.json":
            path.unlink()
        else:
            record.write(path, {**record.read(path), "provenance": fake_results.OTHER})
    gathered = Gathered(plan)
    found = panels(FromRecords(plan), reference=False)[0].pools["lora", "tiny-llama"]
    assert found.used == (3, 4) and found.mark == "" and [run.mark for run in found.runs] == ["†", "†", "†", "", ""]
    stack = stack_of({"provenance": fake_results.STACK})
    assert [gathered.reference_stack[stage] for stage in ("train", "predict", "score")] == [stack] * 3


def test_what_is_stale_or_failed_chooses_no_reference_stack(tmp_path):
    plan = fake_results.build(tmp_path, failures=False, seeds=(0, 1, 2), corpora=("headlines",))
    for path in tmp_path.glob("runs/*/*/*/seed[12]/**/*.json"):
        record.write(path, {**record.read(path), "provenance": fake_results.OTHER, "key": "another"})
    assert panels(FromRecords(plan), reference=False)[0].pools["lora", "tiny-llama"].used == (0,)


def test_values_are_the_records_own(tree):
    root, runs = tree
    row = select(runs, model="tiny-llama", corpus="headlines", variant="full", seed=0, metric="accuracy").iloc[0]
    score = record.read(root / "runs/tiny-llama/headlines/full/seed0/headlines-test/score.json")
    assert row["value"] == score["metrics"]["accuracy"]
    assert (row["unit"], row["n_items"], row["steps"], row["batch_size"]) == ("%", 64, 30, 16)
    assert (row["numerator"], row["denominator"], row["scale"]) == ("correct", "", 100.0)


def test_a_corpus_level_metric_has_no_formula_and_a_likelihood_has_one(tree):
    runs = select(tree[1], corpus="phrases-en-de", variant="lora", seed=0)
    assert list(select(runs, metric="bleu")["numerator"]) == [""]
    nll = select(runs, metric="reference_nll").iloc[0]
    assert (nll["numerator"], nll["denominator"]) == ("nll", "tokens")
    assert nll["lower_is_better"] and nll["reference"]


def test_items_hold_grades_as_numbers_and_as_they_were(tree):
    items = pd.read_parquet(tree[0] / "collected" / "items.parquet")
    chosen = select(items, model="tiny-bert", corpus="headlines", variant="full", seed=1)
    assert len(chosen) == fake_results.ITEMS
    assert json.loads(chosen["grade"].iloc[0])["correct"] == bool(chosen["grade.correct"].iloc[0])
    value = select(tree[1], model="tiny-bert", variant="full", seed=1, metric="accuracy")["value"].iloc[0]
    assert 100 * chosen["grade.correct"].mean() == pytest.approx(value)


def test_curves_are_long_and_keep_what_a_failed_run_left(tree):
    curves = pd.read_parquet(tree[0] / "collected" / "curves.parquet")
    oom = select(curves, corpus="snippets", variant="dora", seed=1)
    assert set(oom["status"]) == {"oom"} and oom["step"].max() == 3
    names = set(curves["name"])
    assert {"loss", "gradient_norm", "validation_loss", "update_ratio"} <= names
    whole = select(curves, model="tiny-llama", corpus="headlines", variant="full", seed=0, name="gradient_norm")
    assert list(whole["step"]) == list(range(30))


def test_costs_keep_kinds_of_memory_apart_and_failures(tree):
    costs = pd.read_parquet(tree[0] / "collected" / "costs.parquet")
    failed = select(costs, corpus="snippets", variant="dora").iloc[0]
    assert failed["status"] == "timeout" and "5 minutes" in failed["reason"]
    full = select(costs, model="tiny-llama", corpus="headlines", variant="full").iloc[0]
    assert full["epoch_seconds_median"] == pytest.approx(full["step_seconds_median"] * 120)
    kinds = ["weights", "gradients_at_peak", "optimizer", "activations"]
    assert sum(full[f"memory_{kind}_bytes"] for kind in kinds) == full["memory_peak_bytes"]
    assert full["memory_rss_peak_bytes"] > full["memory_peak_bytes"]


def test_a_first_row_without_a_result_says_nothing_of_the_metric(tmp_path):
    """A missing or crashed run declares no direction: a perplexity stays better when lower."""
    plan = fake_results.build(tmp_path, failures=False, corpora=("headlines",))
    for path in tmp_path.glob("runs/*/headlines/*/seed*/*/score.json"):
        record.write(path, {**record.read(path), "lower_is_better": ["accuracy"]})
    first = json.loads(plan.read_text())["cells"][0]
    folder = tmp_path / "runs" / first["model"] / first["corpus"] / first["variant"] / f"seed{first['seed']}"
    (folder / "headlines-test" / "score.json").unlink()
    collect.main(["--plan", str(plan), "--out", str(tmp_path / "collected")])
    (panel,) = panels(Collected(tmp_path / "collected"), reference=False)
    assert panel.facts["status"].iloc[0] == "missing" and panel.first("lower_is_better", False)


def test_the_peak_of_a_training_holds_its_warm_up(tmp_path):
    plan = fake_results.build(tmp_path, failures=False, corpora=("headlines",))
    path = tmp_path / "cost/tiny-bert/headlines/dora/cost.json"
    made = record.read(path)
    step = made["memory"]["peak"]
    record.write(path, {**made, "warmup": {"steps": 5, "seconds": 1.0, "memory": {"peak": 3 * step}}})
    collect.main(["--plan", str(plan), "--out", str(tmp_path / "collected")])
    costs = Collected(tmp_path / "collected").costs
    row = costs[(costs["model"] == "tiny-bert") & (costs["variant"] == "dora")].iloc[0]
    assert (row["memory_step_peak_bytes"], row["memory_peak_bytes"]) == (step, 3 * step)
    others = costs[(costs["model"] != "tiny-bert")]
    assert (others["memory_step_peak_bytes"] == others["memory_peak_bytes"]).all()


def test_an_epoch_takes_what_the_record_says_where_it_says_it(tree, tmp_path):
    root = tmp_path / "fake"
    shutil.copytree(tree[0], root)
    path = root / "cost/tiny-bert/headlines/lora/cost.json"
    seconds = {"median": 2.0, "q25": 1.0, "q75": 3.0, "n": 5}
    record.write(path, {**record.read(path), "seconds": seconds, "epoch_seconds": 18.0})
    collect.main(["--plan", str(root / "plan.json"), "--out", str(root / "collected")])
    row = select(pd.read_parquet(root / "collected/costs.parquet"), model="tiny-bert", variant="lora").iloc[0]
    assert [row[f"epoch_seconds_{name}"] for name in ("q25", "median", "q75")] == [9.0, 18.0, 27.0]


def test_damaged_grades_make_an_error_and_touch_no_other_cell(tree, tmp_path):
    root = tmp_path / "fake"
    shutil.copytree(tree[0], root)
    folder = root / "runs/tiny-bert/headlines/lora/seed0/headlines-test"
    (folder / "grades.jsonl.zst").write_bytes(b"damaged")
    collect.main(["--plan", str(root / "plan.json"), "--out", str(root / "collected")])
    runs = pd.read_parquet(root / "collected" / "runs.parquet")
    hurt = select(runs, model="tiny-bert", variant="lora", seed=0).iloc[0]
    assert hurt["status"] == "error" and "sha256" in hurt["reason"]
    assert (runs["status"] == "error").sum() == 1
    assert any(
        "grades.jsonl.zst" in text for text in json.loads((root / "collected/suite.json").read_text())["problems"]
    )


def test_an_unreadable_record_is_an_error_row(tree, tmp_path):
    root = tmp_path / "fake"
    shutil.copytree(tree[0], root)
    (root / "runs/tiny-bert/headlines/lora/seed0/train.json").write_text("{")
    collect.main(["--plan", str(root / "plan.json"), "--out", str(root / "collected")])
    row = select(pd.read_parquet(root / "collected/runs.parquet"), model="tiny-bert", variant="lora", seed=0).iloc[0]
    assert row["status"] == "error" and "train.json" in row["reason"]


def test_folders_that_the_plan_does_not_name_are_mentioned(tree, tmp_path):
    root = tmp_path / "fake"
    shutil.copytree(tree[0], root)
    shutil.copytree(root / "runs/tiny-bert/headlines/lora/seed0", root / "runs/tiny-bert/headlines/lora/seed9")
    collect.main(["--plan", str(root / "plan.json"), "--out", str(root / "collected")])
    problems = json.loads((root / "collected/suite.json").read_text())["problems"]
    assert any("seed9" in text and "not in the plan" in text for text in problems)


def test_nothing_run_yet_is_all_missing(tmp_path):
    plan = fake_results.build(tmp_path / "fake")
    shutil.rmtree(tmp_path / "fake" / "runs")
    shutil.rmtree(tmp_path / "fake" / "cost")
    assert collect.main(["--plan", str(plan), "--out", str(tmp_path / "collected")]) == 0
    runs = pd.read_parquet(tmp_path / "collected" / "runs.parquet")
    assert set(runs["status"]) == {"missing"}


def test_a_sparse_plan_is_enough(tmp_path):
    cell = {"model": "m", "corpus": "c", "variant": "lora-r4", "seed": 0, "evals": ["e"]}
    (tmp_path / "plan.json").write_text(json.dumps({"cells": [cell]}))
    assert collect.main(["--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "collected")]) == 0
    row = pd.read_parquet(tmp_path / "collected" / "runs.parquet").iloc[0]
    assert (row["status"], row["variant_label"], row["eval_label"]) == ("missing", "LoRA r=4", "e")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such plan"),
        ("{", "not valid JSON"),
        ("{}", "`cells`"),
        ('{"cells": [{"model": "m"}]}', "lacks corpus"),
    ],
)
def test_a_bad_plan_gives_one_clear_message(tmp_path, capsys, text, message):
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    assert collect.main(["--plan", str(path), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_a_curve_counts_a_repeated_step_once_and_forgives_a_cut_last_line(tmp_path):
    path = tmp_path / "curves.jsonl"
    path.write_text(
        '{"step": 0, "loss": 2.0}\n{"step": 0, "loss": 1.5}\n{"step": 1, "name": "lambda", "value": [1, 2]}\n{"st'
    )
    assert read_curve(path) == [(0, "loss", "", 1.5), (1, "lambda", "0", 1.0), (1, "lambda", "1", 2.0)]
    path.write_text('{"step": 0, "loss": 2.0}\n{"st\n{"step": 1, "loss": 1.0}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_curve(path)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda path: path.unlink(), "the record names this file and it is not there"),
        (
            lambda path: path.write_text('{"step": 0, "loss": 1.0}\n'),
            "not the file that the record was written with (sha256)",
        ),
    ],
)
def test_a_curve_that_is_not_its_record_s_is_left_out_and_told(tree, tmp_path, harm, told):
    shutil.copytree(tree[0], tmp_path / "fake")
    path = tmp_path / "fake/runs/tiny-bert/headlines/lora/seed0/curves.jsonl"
    harm(path)
    collect.main(["--plan", str(tmp_path / "fake/plan.json"), "--out", str(tmp_path / "collected")])
    found = Collected(tmp_path / "collected")
    assert f"{path}: {told}. Train this cell again." in found.suite["problems"]
    losses = select(found.curves(["loss"]), model="tiny-bert", variant="lora")
    assert set(losses["seed"]) == {1}


def test_a_curve_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "curves.jsonl"
    path.write_bytes(b'{"step": 0, "loss": 1.0}\n\xff\xfe\n')
    with pytest.raises(ValueError, match=r"curves\.jsonl: damaged, not UTF-8"):
        read_curve(path)


@pytest.mark.parametrize(
    "name", ["suite.json", "runs.parquet", "costs.parquet", "items.parquet", "curves.parquet", "trials.parquet"]
)
def test_a_damaged_collection_is_named(tree, tmp_path, name, capsys):
    shutil.copytree(tree[0] / "collected", tmp_path / "collected")
    path = tmp_path / "collected" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(EvidenceError, match=rf"{re.escape(str(path))}: damaged \(.*Collect again"):
        found = Collected(tmp_path / "collected")
        [found.runs, found.costs, found.trials, found.items, found.curves(["loss"])]
    if name in ("suite.json", "runs.parquet"):
        assert tables.main(["--collected", str(tmp_path / "collected"), "--out", str(tmp_path / "tables")]) == 2
        assert capsys.readouterr().err.startswith(f"{path}: damaged (")


def test_formula_prefers_the_field_named_like_the_metric_and_believes_no_chance_zero():
    columns = {"strict": [0.0, 0.0], "flexible": [1.0, 0.0], "nll": [2.0, 4.0], "nll_tokens": [2.0, 1.0]}
    assert grades.formula("exact_match_flexible", 50.0, columns, "%") == grades.Formula("flexible", "", 100.0)
    assert grades.formula("exact_match_strict", 0.0, columns, "%") == grades.Formula("strict", "", 100.0)
    assert grades.formula("reference_nll", 2.0, columns) == grades.Formula("nll", "nll_tokens", 1.0)
    assert grades.formula("bleu", 0.0, columns) is None
    assert grades.formula("bleu", 12.3, columns) is None


def test_formula_of_an_accuracy_is_what_is_correct_even_if_gold_fits_too():
    columns = grades.numbers([{"gold": 1, "predicted": 1, "correct": 1}, {"gold": 0, "predicted": 1, "correct": 0}])
    assert grades.formula("accuracy", 50.0, columns, "%").numerator == "correct"


def test_collecting_twice_gives_the_same_bytes(tree, tmp_path):
    for name in ("a", "b"):
        collect.main(["--plan", str(tree[0] / "plan.json"), "--out", str(tmp_path / name)])
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_collection_of_an_earlier_version_is_said(tree, tmp_path):
    root, _ = tree
    shutil.copytree(root / "collected", tmp_path / "collected")
    path = tmp_path / "collected" / "costs.parquet"
    pd.read_parquet(path).drop(columns="step_seconds_all").to_parquet(path)
    with pytest.raises(EvidenceError, match="collected by an earlier version. Collect again"):
        _ = Collected(tmp_path / "collected").costs
