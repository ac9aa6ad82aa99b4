"""Merging trees: what fits is taken whole, what does not is refused with the reason, and nothing is pooled silently."""

from __future__ import annotations

import fcntl
import json
import shutil

import fake_results
import pytest

from evidence import collect, merge
from evidence.collected import Collected
from evidence.fitting import misfit
from evidence.merge import HERE, REFUSED, TAKEN
from evidence.pools import panels
from harness import record as records

CELL = "runs/tiny-llama/headlines/lora/seed1"


@pytest.fixture
def trees(tmp_path):
    """(a machine with seed 0 alone, one with seed 1 alone, all of it), of one plan, without failures."""
    whole, here, there = (tmp_path / name for name in ("whole", "here", "there"))
    fake_results.build(whole, failures=False)
    for tree, other in ((here, 1), (there, 0)):
        shutil.copytree(whole, tree)
        for folder in tree.glob(f"runs/*/*/*/seed{other}"):
            if other or folder.parent.name not in ("untuned", "majority"):
                shutil.rmtree(folder)
    shutil.rmtree(there / "cost")
    return here, there, whole


def counts(fates):
    return {what: sum(fate.what == what for fate in fates) for what in (TAKEN, HERE, REFUSED)}


def change(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def content(tree):
    return {
        path.relative_to(tree).as_posix(): path.read_bytes() if path.suffix != ".json" else json.loads(path.read_text())
        for path in (tree / "runs").rglob("*") if path.is_file() and not path.name.startswith(".")
    }  # fmt: skip


def test_two_halves_make_the_whole(trees, capsys):
    here, there, whole = trees
    dry = list(merge.merge(here, there, dry=True))
    before = content(here)
    assert counts(dry)[TAKEN] > 40 and counts(dry)[REFUSED] == 0 and content(here) == before
    assert merge.main([str(here), str(there)]) == 0
    assert content(here) == content(whole)
    assert f"{counts(dry)[TAKEN]} records taken, " in capsys.readouterr().out
    again = list(merge.merge(here, there))
    assert counts(again)[TAKEN] == 0 and counts(again)[REFUSED] == 0 and counts(again)[HERE] == len(again)
    assert records.kept_name(here / CELL / "train.json").is_file()  # a good record's second name, as a stage leaves it


def test_what_does_not_fit_is_refused_with_the_reason(trees, capsys):
    here, there, _ = trees
    lora = there / CELL
    change(lora / "headlines-test/score.json", metrics={"accuracy": {"not": "a number"}})
    change(there / "runs/tiny-llama/headlines/full/seed1/train.json", key="of-another-code")
    (there / "runs/tiny-llama/headlines/dora/seed1/curves.jsonl").write_text("{}\n")
    (there / "runs/tiny-bert/headlines/lora/seed1/headlines-test/grades.jsonl.zst").unlink()
    (there / "runs/tiny-bert/headlines/full/seed1/train.json").write_text('{"schema": 1, "sta')
    shutil.copytree(lora, there / "runs/tiny-llama/headlines/lora-r99/seed1")
    assert merge.main([str(here), str(there)]) == 1
    said = capsys.readouterr().out
    for path, why in (
        (f"{CELL}/headlines-test/score.json", "does not fit the record schema: data.metrics.accuracy"),
        ("tiny-llama/headlines/full/seed1/train.json", "stale: made from another specification"),
        ("tiny-llama/headlines/full/seed1/headlines-test/score.json", "its training was refused"),
        ("tiny-llama/headlines/dora/seed1/train.json", "curves.jsonl is not the file that the record names"),
        ("tiny-bert/headlines/lora/seed1/headlines-test/score.json", "grades.jsonl.zst is not beside it"),
        ("tiny-bert/headlines/full/seed1/train.json", "unreadable"),
        ("tiny-llama/headlines/lora-r99/seed1/train.json", "the plan of this suite has no such cell"),
    ):
        assert any(path in line and "refused" in line and why in line for line in said.splitlines()), (path, why)
    assert not (here / "runs/tiny-llama/headlines/full/seed1/train.json").exists()
    assert not list(here.rglob(".*.json.[0-9]*")) and (here / CELL / "train.json").is_file()


def test_two_results_of_one_cell_are_never_chosen_between(trees):
    here, there, whole = trees
    shutil.copytree(whole / CELL, here / CELL)
    (there / CELL / "curves.jsonl").write_text('{"step": 1, "loss": 9.0}\n')
    entry = records.file_entry(there / CELL / "curves.jsonl")
    change(there / CELL / "train.json", files={"curves": entry})
    fates = {fate.path: fate for fate in merge.merge(here, there)}
    assert fates[f"{CELL}/train.json"].what == REFUSED and "they differ" in fates[f"{CELL}/train.json"].why
    assert "2.13" not in fates[f"{CELL}/train.json"].why and "cpu" in fates[f"{CELL}/train.json"].why
    assert fates[f"{CELL}/headlines-test/score.json"].what == REFUSED
    assert json.loads((here / CELL / "train.json").read_text()) == json.loads((whole / CELL / "train.json").read_text())


def test_a_failure_here_gives_way_to_a_result_from_there_and_not_the_other_way_round(trees):
    here, there, whole = trees
    shutil.copytree(whole / CELL, here / CELL)
    change(here / CELL / "train.json", status="oom", reason="too large for this machine")
    shutil.rmtree(here / CELL / "headlines-test")
    fates = {fate.path: fate.what for fate in merge.merge(here, there)}
    assert fates[f"{CELL}/train.json"] == TAKEN and fates[f"{CELL}/headlines-test/score.json"] == TAKEN
    change(there / CELL / "train.json", status="oom", reason="too large for that machine")
    fates = {fate.path: fate for fate in merge.merge(here, there)}
    train, score = fates[f"{CELL}/train.json"], fates[f"{CELL}/headlines-test/score.json"]
    assert (train.what, score.what) == (HERE, HERE) and "this tree's ok stays; there it is oom" in train.why
    assert json.loads((here / CELL / "train.json").read_text())["status"] == "ok"


def test_a_stale_result_here_gives_way_to_a_fresh_one_and_never_to_a_failure(trees):
    here, there, whole = trees
    shutil.copytree(whole / CELL, here / CELL)
    for record in (here / CELL).rglob("*.json"):
        change(record, key="of older code")
    change(there / CELL / "headlines-test/score.json", status="error", reason="it ended there")
    fates = {fate.path: fate for fate in merge.merge(here, there)}
    train, score = fates[f"{CELL}/train.json"], fates[f"{CELL}/headlines-test/score.json"]
    assert train.what == TAKEN and "in place of this tree's stale one" in train.why
    assert score.what == HERE and "this tree's ok stays; there it is error" in score.why
    keys = [json.loads((tree / CELL / "train.json").read_text())["key"] for tree in (here, whole)]
    assert keys[0] == keys[1]


def test_answers_without_their_training_are_refused(trees):
    here, there, whole = trees
    shutil.copytree(whole / CELL, here / CELL)
    shutil.rmtree(here / CELL / "headlines-test")
    (there / CELL / "train.json").unlink()
    fates = {fate.path: fate for fate in merge.merge(here, there)}
    fate = fates[f"{CELL}/headlines-test/score.json"]
    assert fate.what == REFUSED and "does not answer after the training" in fate.why
    assert not (here / CELL / "headlines-test").exists()


def test_a_record_without_the_plan_s_key_is_refused(trees):
    here, there, _ = trees
    change(there / CELL / "train.json", key=None)
    fates = {fate.path: fate for fate in merge.merge(here, there)}
    assert fates[f"{CELL}/train.json"].what == REFUSED and "it has no key" in fates[f"{CELL}/train.json"].why
    assert fates[f"{CELL}/headlines-test/score.json"].what == REFUSED


@pytest.mark.parametrize("field", ["memory", "parameters", "steps"])
def test_records_that_differ_anywhere_are_not_the_same(field, trees):
    here, there, whole = trees
    path = "cost/tiny-llama/headlines/lora/cost.json"
    (there / path).parent.mkdir(parents=True)
    shutil.copy(whole / path, there / path)
    assert {fate.path: fate.what for fate in merge.merge(here, there)}[path] == HERE
    change(there / path, **{field: {"other": 1}})
    fate = {fate.path: fate for fate in merge.merge(here, there)}[path]
    assert fate.what == REFUSED and "they differ" in fate.why


def test_another_machine_s_software_is_marked_and_not_averaged(trees):
    here, there, _ = trees
    for path in there.glob("runs/tiny-llama/headlines/lora/seed1/**/*.json"):
        change(path, provenance=fake_results.OTHER)
    assert counts(merge.merge(here, there))[REFUSED] == 0
    collect.main(["--plan", str(here / "plan.json"), "--out", str(here / "collected")])
    panel = next(p for p in panels(Collected(here / "collected"), reference=False) if p.corpus == "headlines")
    pool = panel.pools["lora", "tiny-llama"]
    assert pool.used == (0,) and pool.runs[1].value is not None and "torch 2.12.0 (2.13.0)" in pool.runs[1].other_stack


def test_a_folder_that_a_stage_holds_is_left_alone(trees):
    here, there, _ = trees
    (here / CELL).mkdir(parents=True)
    with open(here / CELL / ".lock", "a+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fates = {fate.path: fate for fate in merge.merge(here, there)}
    assert "a stage is running" in fates[f"{CELL}/train.json"].why
    assert {fate.path: fate.what for fate in merge.merge(here, there)}[f"{CELL}/train.json"] == TAKEN


def test_what_is_no_results_folder_is_said(trees, tmp_path, capsys):
    here, _, _ = trees
    assert merge.main([str(tmp_path / "nothing"), str(here)]) == 2
    assert "no such plan" in capsys.readouterr().err
    assert merge.main([str(here), str(tmp_path)]) == 2
    assert "neither runs nor cost nor tune in it; give the folder results/fake" in capsys.readouterr().err
    assert merge.main([str(here), str(here)]) == 2
    assert "that is this tree itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change_", "said"),
    [
        ({"status": "fine", "reason": "x"}, "status"),
        ({"schema": 2}, "schema"),
        ({"status": "oom"}, "reason"),
        ({"seed": "0"}, "seed"),
        ({"stage": "score"}, "metrics"),
        ({"stage": "score", "metrics": {"a": [1]}}, "metrics"),
        ({"stage": "cost"}, "seconds"),
        ({"stage": "cost", "seconds": {"median": 0}}, "median"),
        ({"files": {"x": {"file": "../x", "sha256": "0" * 64, "bytes": 1}}}, "file"),
        ({"files": {"x": {"file": "x", "sha256": "0", "bytes": 1}}}, "sha256"),
    ],
)
def test_the_schema_knows_what_tables_rest_on(change_, said):
    good = {"schema": 1, "stage": "train", "status": "ok", "reason": "", "seed": 0}
    assert misfit(good) == ""
    assert said in misfit({**good, **change_})


def test_a_record_that_does_not_fit_is_an_error_row_in_the_tables(trees):
    _, _, whole = trees
    change(whole / CELL / "headlines-test/score.json", metrics=[])
    collect.main(["--plan", str(whole / "plan.json"), "--out", str(whole / "collected")])
    runs = Collected(whole / "collected").runs
    row = runs[
        (runs["variant"] == "lora")
        & (runs["seed"] == 1)
        & (runs["corpus"] == "headlines")
        & (runs["model"] == "tiny-llama")
    ]
    assert set(row["status"]) == {"error"} and row["reason"].iloc[0].startswith(
        "does not fit the record schema: data.metrics"
    )


def test_trials_join_and_what_no_plan_names_is_told(trees):
    here, there, _ = trees
    trial = {"trial": 1, "seed": 1000, "values": {"learning_rate": 0.1}, "key": "trial-key"}
    search = {"model": "tiny-llama", "corpus": "headlines", "variant": "lora", "searched": {}, "key": "tuned-key"}
    for tree in (here, there):
        change(tree / "plan.json", tuning={"trials": 1, "cells": [{**search, "trials": [trial]}]})
    folder = there / "tune/tiny-llama/headlines/lora"
    base = {
        **fake_results.STACK,
        "stage": "train",
        "status": "ok",
        "steps": 1,
        "tokens": {},
        "parameters": {},
        "loss": {},
    }
    tuned = {"stage": "tune", "status": "ok", "chosen": {"trial": 1, "values": trial["values"]}, "trials": [trial]}
    records.write(folder / "trial1/seed1000/train.json", {**base, "key": "trial-key"})
    records.write(folder / "trial2/seed1000/train.json", {**base, "key": "other"})
    records.write(folder / "tuned.json", {**tuned, "key": "of-other-trials"})
    assert "data.chosen" in misfit({**tuned, "schema": 1, "chosen": None})
    shutil.copytree(there / CELL / "headlines-test", there / CELL / "other-test")
    records.write(
        there / "cost/tiny-llama/headlines/dora-r99/cost.json", {"stage": "cost", "status": "error", "reason": "x"}
    )
    fates = {fate.path: fate for fate in merge.merge(here, there)}
    assert fates["tune/tiny-llama/headlines/lora/trial1/seed1000/train.json"].what == TAKEN
    assert (here / "tune/tiny-llama/headlines/lora/trial1/seed1000/train.json").is_file()
    assert "stale" in fates["tune/tiny-llama/headlines/lora/tuned.json"].why
    for path in (
        "tune/tiny-llama/headlines/lora/trial2/seed1000/train.json",
        f"{CELL}/other-test/score.json",
        "cost/tiny-llama/headlines/dora-r99/cost.json",
    ):
        assert fates[path].what == REFUSED and "no such cell" in fates[path].why, path
        assert not (here / path).exists()


SEARCHED = "tiny-llama/headlines/lora"


def search(tree, rate):
    """The tree's search chose ``rate``, with which its trainings and cost of LoRA were made."""
    cell = dict(zip(("model", "corpus", "variant"), SEARCHED.split("/"), strict=True))
    trial = {"trial": 1, "seed": 1000, "values": {"learning_rate": rate}, "key": "trial-key"}
    change(tree / "plan.json", tuning={"trials": 1, "cells": [{**cell, "searched": {}, "key": "k", "trials": [trial]}]})
    chosen = {"trial": 1, "values": trial["values"]}
    tuned = {"stage": "tune", "status": "ok", "key": "k", "chosen": chosen, "trials": [{**trial, "loss": rate / 3}]}
    records.write(tree / "tune" / SEARCHED / "tuned.json", tuned)
    for path in (*tree.glob(f"runs/{SEARCHED}/seed*/train.json"), *tree.glob(f"cost/{SEARCHED}/cost.json")):
        change(path, specification={"hyperparameters": {"rank": 4, **trial["values"]}})


@pytest.fixture
def searched(trees):
    """(here, there), whose searches of LoRA chose the same; no cost is here."""
    here, there, whole = trees
    shutil.copytree(whole / "cost", there / "cost")
    shutil.rmtree(here / "cost")
    for tree in (here, there):
        search(tree, 0.1)
    return here, there


def test_a_search_joins_before_what_follows_from_it(searched):
    here, there = searched
    (here / "tune" / SEARCHED / "tuned.json").unlink()
    fates = list(merge.merge(here, there))
    assert {fate.what for fate in fates} == {TAKEN, HERE} and fates[0].path == f"tune/{SEARCHED}/tuned.json"
    tuned = (here / fates[0].path).stat().st_mtime_ns
    for path in (here / CELL / "train.json", here / "cost" / SEARCHED / "cost.json"):
        assert path.stat().st_mtime_ns > tuned  # else Snakemake makes it anew


def test_trainings_of_another_choice_are_refused(searched):
    here, there = searched
    search(there, 0.2)
    for fates in (list(merge.merge(here, there, dry=True)), list(merge.merge(here, there))):
        refused = {fate.path: fate.why for fate in fates if fate.what == REFUSED}
        assert {path.removeprefix(CELL) for path in refused if path.startswith(CELL)} == {
            "/train.json", "/headlines-test/predict.json", "/headlines-test/score.json",
        }  # fmt: skip
        assert f"cost/{SEARCHED}/cost.json" in refused and len([path for path in refused if SEARCHED not in path]) == 0
        assert refused[f"{CELL}/train.json"].startswith("its search was refused: this tree has a result of its own")
    assert not (here / CELL).exists()


@pytest.mark.parametrize("choice", ["none", "older", "other losses"])
def test_trainings_are_held_against_the_choice_here_whatever_the_source_says_of_its_own(searched, choice):
    here, there = searched
    tuned = there / "tune" / SEARCHED / "tuned.json"
    if choice == "other losses":  # of another processor: what follows from the same values is the same
        change(tuned, trials=[{"loss": 1.5}])
    elif choice == "older":
        change(tuned, key="older")
    else:
        tuned.unlink()
    train = {fate.path: fate for fate in merge.merge(here, there, dry=True)}[f"{CELL}/train.json"]
    assert train.what == (REFUSED if choice == "older" else TAKEN)
    change(there / CELL / "train.json", specification={"hyperparameters": {"learning_rate": 0.3}})
    train = {fate.path: fate for fate in merge.merge(here, there)}[f"{CELL}/train.json"]
    why = (
        "its search was refused: stale" if choice == "older" else "than the search here chose: learning_rate 0.3 (0.1)"
    )
    assert train.what == REFUSED and why in train.why


def test_a_training_and_a_cost_of_another_choice_are_stale_in_the_tables(searched):
    here, there = searched
    assert counts(merge.merge(here, there))[REFUSED] == 0
    for path in (CELL, f"cost/{SEARCHED}"):
        (record,) = (here / path).glob("[tc]*.json")
        change(record, specification={"hyperparameters": {"learning_rate": 0.3}})
    collect.main(["--plan", str(here / "plan.json"), "--out", str(here / "collected")])
    found = Collected(here / "collected")
    stale = found.runs[found.runs["stale"] != ""]
    assert set(zip(stale["model"], stale["variant"], stale["seed"], stale["stale"], strict=True)) == {
        ("tiny-llama", "lora", 1, "train")
    }
    assert found.costs.loc[found.costs["stale"] != "", ["variant", "stale"]].values.tolist() == [["lora", "cost"]]
    assert set(found.curves(["loss"]).query("stale != ''")["seed"]) == {1}
    panel = next(p for p in panels(found, reference=False) if p.corpus == "headlines")
    assert panel.pools["lora", "tiny-llama"].used == (0,)
    told = f"{CELL}: stale, of another choice of its search: learning_rate 0.3 (0.1)"
    assert found.suite["problems"].count(told) == 1
