"""Tuning: equal budgets, a choice by validation alone, keys that cover the search, failures that stay visible."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from harness import dag, progress, record, retry, search, train, tune
from harness.cells import train_record
from harness.contract import Labelled, choice, log_uniform
from harness.failures import UserError
from harness.suite import load_plugin, load_suite
from harness.trials import untuned
from tests.dag import SUITE, Project

TUNING = {"trials": 3, "seeds": [1000]}
VARIANTS = {"full": {"method": "full"}, "lora-r2": {"method": "lora", "rank": 2}}
CELL = ("tiny-llama", "generated-labels")


def load(tmp_path, **changes):
    path = tmp_path / "mini.yaml"
    path.write_text(yaml.safe_dump({**SUITE, "variants": VARIANTS, "tuning": TUNING, **changes}))
    return load_suite(str(path))


def trials(suite, variant):
    return suite.tunings[(*CELL, variant)].trials


# --------------------------------------------------------------------------- spaces and points


def test_a_space_is_covered_evenly_on_its_own_scale():
    spaces = {"learning_rate": log_uniform(1e-4, 1e-2), "rank": choice(4, 8)}
    assert search.values_at(spaces, [0.0, 0.0]) == {"learning_rate": 1e-4, "rank": 4}
    assert search.values_at(spaces, [0.5, 0.5]) == {"learning_rate": 1e-3, "rank": 8}
    assert search.values_at(spaces, [1.0, 1.0]) == {"learning_rate": 1e-2, "rank": 8}


def test_points_are_those_of_the_seed_and_more_trials_begin_with_the_same():
    few, many = search.points(4, 7), search.points(9, 7)
    assert len(few) == 3 and many[:3] == few == search.points(4, 7) != search.points(4, 8)
    assert search.points(1, 7) == []
    first = sorted(point[0] for point in search.points(9, 7))
    assert [math.floor(8 * share) for share in first] == list(range(8))  # Sobol: one point in every eighth


# --------------------------------------------------------------------------- budgets


def test_every_variant_has_the_same_budget_and_the_same_points(tmp_path):
    suite = load(tmp_path, tuning={**TUNING, "trials": 5, "seeds": [1000, 1001], "steps": 2})
    full, lora = (trials(suite, variant) for variant in VARIANTS)
    assert len(full) == len(lora) == 5 * 2
    for one, other in zip(full, lora, strict=True):
        assert (one.number, one.seed) == (other.number, other.seed)
        assert one.protocol == other.protocol and one.protocol["steps"] == 2
    shares = {}
    for variant, low, high in (("full", 1e-6, 1e-2), ("lora-r2", 1e-5, 1e-2)):
        rates = [t.values["learning_rate"] for t in trials(suite, variant) if t.number > 1]
        shares[variant] = [math.log(rate / low) / math.log(high / low) for rate in rates]
    assert shares["full"] == pytest.approx(shares["lora-r2"], abs=1e-3)


def test_the_first_trial_has_the_values_that_the_suite_or_the_method_gives(tmp_path):
    given = {**VARIANTS, "lora-r2": {"method": "lora", "learning_rate": 0.5}}
    suite = load(tmp_path, variants=given, tuning={**TUNING, "search": {"lora-r2": ["learning_rate", "rank"]}})
    assert trials(suite, "full")[0].values == {"learning_rate": 3e-4}
    assert trials(suite, "lora-r2")[0].values == {"learning_rate": 0.5, "rank": 16}


def test_what_the_suite_fixes_is_not_searched_unless_listed(tmp_path):
    assert set(trials(load(tmp_path), "lora-r2")[1].values) == {"learning_rate"}
    listed = load(tmp_path, tuning={**TUNING, "search": {"lora-r2": ["rank"]}})
    assert set(trials(listed, "lora-r2")[1].values) == {"rank"}
    fixed = load(tmp_path, variants={**VARIANTS, "full": {"method": "full", "learning_rate": 0.1}})
    assert (*CELL, "full") not in fixed.tunings and untuned(fixed) == ["full"]


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ({"trials": 3, "seeds": [1]}, "seed 1 is also a seed of the grid"),
        ({"trials": {"full": 3}, "seeds": [9]}, "It is one number: every variant gets as many trials"),
        ({"trials": 3}, "'seeds' is a required property"),
        ({"trial": 3, "seeds": [9]}, "unknown key 'trial'. Did you mean 'trials'"),
        ({**TUNING, "corpora": ["generated-sums"]}, "no grid block has the corpus 'generated-sums'"),
        ({**TUNING, "search": {"lora": ["rank"]}}, "no variant 'lora'. There are: full, lora-r2"),
        (
            {**TUNING, "search": {"full": ["weight_decay"]}},
            "'weight_decay' has no search space. Fields with one: learning",
        ),
    ],
)
def test_an_unfair_or_impossible_budget_is_refused(tmp_path, tuning, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, tuning=tuning)


def test_a_hyperparameter_that_depends_on_the_seed_cannot_be_tuned(tmp_path):
    rule = {"when": {"seed": 1}, "set": {"variant.learning_rate": 0.1}}
    with pytest.raises(UserError, match="cannot depend on the seed in a suite that tunes"):
        load(tmp_path, overrides=[rule])


def test_stages_and_lines_of_progress_name_the_trials(suite):
    assert dag.stages(suite).startswith("Suite mini, cells by stage: trial 12, tune 2, train 4,")
    trial = trials(suite, "lora-r2")[2]
    assert json.loads(dag.identity(trial, trial.key)) == {**trial.identity, "stage": "trial", "key": trial.key}
    finish(trial, 0.4567)
    content = record.read(train_record(trial))
    line = progress.line(suite.results, train_record(trial), content, 1.0)
    assert line == "trial tiny-llama/generated-labels/lora-r2/trial2/seed1000  ok  validation 0.4567  1.0 s"
    done = tuned(suite, [0.5, 0.5, 0.4, 0.4, 0.6, 0.6])
    chosen = trials(suite, "lora-r2")[2].values["learning_rate"]
    line = progress.line(suite.results, suite.tunings[(*CELL, "lora-r2")].record, done, 0.2)
    assert line == f"tune tiny-llama/generated-labels/lora-r2  ok  trial 2 learning_rate {chosen}  0.2 s"
    kinds = {job["stage"] for job in suite.plan()["jobs"]}
    assert {"trial", "tune"} < kinds and len(suite.plan()["jobs"]) == 12 + 2 + 5 + 5 + 6


# --------------------------------------------------------------------------- keys


def keys(suite):
    return {t.name: t.key for t in suite.trainings if t.trains}


def changed(one, other):
    return {name.split("/")[2] for name, key in keys(one).items() if keys(other)[name] != key}


def test_a_trainings_key_covers_the_search_and_not_its_cell_mates(tmp_path):
    base = load(tmp_path)
    more = load(tmp_path, tuning={**TUNING, "trials": 4})
    assert changed(base, more) == {"full", "lora-r2"}
    assert changed(base, load(tmp_path, tuning={**TUNING, "search": {"lora-r2": ["rank"]}})) == {"lora-r2"}
    assert changed(base, load(tmp_path, tuning={**TUNING, "steps": 2})) == {"full", "lora-r2"}
    assert not changed(base, load(tmp_path, description="other words"))
    kept = {trial.key for trial in trials(base, "full")}
    assert kept < {trial.key for trial in trials(more, "full")}  # more trials: those that are there stay


def test_a_suite_without_tuning_has_the_keys_it_had(tmp_path):
    suite = load(tmp_path)
    path = tmp_path / "mini.yaml"
    path.write_text(yaml.safe_dump({**SUITE, "variants": VARIANTS}))
    plain = load_suite(str(path))
    assert not plain.tunings and plain.plan()["tuning"] is None
    assert "tuning" not in plain.trainings[-1].specification and "tuning" in suite.trainings[-1].specification


# --------------------------------------------------------------------------- the choice


def finish(trial, loss, status="ok", **more):
    """A trial's record, as stage train writes it."""
    content = {
        "stage": "trial",
        **trial.identity,
        "status": status,
        "reason": "" if status == "ok" else "why",
        "key": trial.key,
        "tokens": {"supervised": 5, "total": 100, "probe": 10},
        "examples": {"validation": 8},
        "phases": {"load": {"seconds": 1.0}, "train": {"seconds": 2.0}},
        "loss": {"validation": [[0, 0.7], [4, loss]]},
    }
    record.write(train_record(trial), {**content, **more})


@pytest.fixture
def suite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return load(tmp_path, tuning={**TUNING, "seeds": [1000, 1001]})


def tuned(suite, losses, variant="lora-r2", statuses=None):
    """The record of tuning from these losses of each trial's two seeds."""
    cell = trials(suite, variant)
    for place, (trial, loss) in enumerate(zip(cell, losses, strict=True)):
        finish(trial, loss, (statuses or {}).get(place, "ok"))
    assert tune.main(_command(suite, variant)) == 0
    return record.read(suite.tunings[(*CELL, variant)].record)


def _command(suite, variant):
    named = {"suite": Path.cwd() / "mini.yaml", "model": CELL[0], "corpus": CELL[1], "variant": variant}
    return [f"--{name}={value}" for name, value in named.items()]


def test_the_choice_is_the_lowest_mean_validation_loss(suite):
    done = tuned(suite, [0.5, 0.7, 0.4, 0.6, 0.1, 0.95])
    assert [t["loss"] for t in done["trials"]] == pytest.approx([0.6, 0.5, 0.525])
    assert done["chosen"]["trial"] == 2 and done["chosen"]["values"] == trials(suite, "lora-r2")[2].values
    assert (done["tokens"], done["validation_examples"]) == (6 * 110, 8)
    chosen = suite.training(*CELL, "lora-r2", 0)
    assert chosen.trained_with()["hyperparameters"]["learning_rate"] == done["chosen"]["values"]["learning_rate"]
    assert chosen.trained_with()["hyperparameters"]["rank"] == 2


def test_of_equal_trials_the_earlier_and_a_failed_one_never(suite):
    assert tuned(suite, [0.5] * 6)["chosen"]["trial"] == 1
    done = tuned(suite, [0.5, 0.5, 0.6, 0.6, 0.1, 0.1], statuses={5: "diverged"})
    assert done["chosen"]["trial"] == 1 and done["failed"] == 1
    assert (done["trials"][2]["status"], done["trials"][2]["loss"]) == ("diverged", None)
    assert tuned(suite, [math.nan] * 2 + [0.6] * 4)["chosen"]["trial"] == 2


def test_a_trial_of_other_software_than_most_is_not_chosen(suite):
    for trial, loss in zip(trials(suite, "lora-r2"), [0.5, 0.5, 0.6, 0.6, 0.1, 0.1], strict=True):
        other = (trial.number, trial.seed) == (3, 1001)
        finish(trial, loss, provenance={"stack_id": "other" if other else "most"})
    done = tune.tuned(suite.tunings[(*CELL, "lora-r2")])
    assert done["chosen"]["trial"] == 1 and done["failed"] == 1
    assert (done["trials"][2]["status"], done["trials"][2]["losses"]) == ("other software", [0.1, None])
    for trial in trials(suite, "lora-r2"):  # all alike, or unknown
        finish(trial, 0.1 if trial.number == 3 else 0.5, provenance={"stack_id": "other"} if trial.number == 3 else {})
    assert tune.tuned(suite.tunings[(*CELL, "lora-r2")])["chosen"]["trial"] == 3


def test_where_all_trials_failed_nothing_trains(suite):
    done = tuned(suite, [0.5] * 6, statuses=dict.fromkeys(range(6), "oom"))
    assert (
        done["status"] == "error"
        and done["reason"] == "all 3 trials failed, the first with oom; see its record beside tuned.json"
    )
    with pytest.raises(UserError, match="all 3 trials failed"):
        suite.training(*CELL, "lora-r2", 0).hyperparameters_given()


def test_the_record_is_a_function_of_the_trials(suite):
    losses = [0.5, 0.7, 0.4, 0.6, 0.1, 0.95]
    tuned(suite, losses)
    path = suite.tunings[(*CELL, "lora-r2")].record
    first = path.read_bytes()
    path.unlink()
    tuned(suite, losses)
    assert path.read_bytes() == first


def test_another_searchs_record_is_refused(suite, tmp_path):
    tuned(suite, [0.5] * 6)
    other = load(tmp_path, tuning={**TUNING, "seeds": [1000, 1001], "trials": 2})
    with pytest.raises(UserError, match="is of another search"):
        other.training(*CELL, "lora-r2", 0).hyperparameters_given()


def test_another_choice_does_not_go_on_from_the_old_ones_checkpoint(suite):
    training = suite.training(*CELL, "lora-r2", 0)
    tuned(suite, [0.5, 0.5, 0.4, 0.4, 0.6, 0.6])
    mark, key = training.mark, training.key
    tuned(suite, [0.5, 0.5, 0.4, 0.4, 0.3, 0.3])
    assert training.mark != mark and training.key == key


# --------------------------------------------------------------------------- a trial itself


class Sealed(Labelled):
    """A test row whose answer nobody may read."""

    def __init__(self, text):
        object.__setattr__(self, "input", text)

    @property
    def label(self):
        raise AssertionError("a test row's answer was read")


def test_a_trial_reads_no_answer_of_a_test_item_and_asks_none(suite, monkeypatch):
    """Test rows are read for one purpose: what equals them is neither trained on nor chosen by."""
    corpus, evaluation = (type(load_plugin(kind, CELL[1])) for kind in ("corpora", "evals"))
    given_away = load_plugin("corpora", CELL[1], rows=64).examples("validation", None)[0].input
    monkeypatch.setattr(corpus, "tests", lambda self, data: [Sealed(given_away), Sealed("b")])
    monkeypatch.setattr(evaluation, "items", lambda self, data: pytest.fail("a test item was read"))
    trial = trials(suite, "lora-r2")[2]
    assert train.main([*_command(suite, "lora-r2"), "--seed=1000", f"--trial={trial.number}"]) == 0
    done = record.read(train_record(trial))
    assert (done["stage"], done["status"], done["trial"], done["seed"]) == ("trial", "ok", 2, 1000)
    assert done["overlap"]["validation_removed"] > 0
    assert done["specification"]["hyperparameters"]["learning_rate"] == trial.values["learning_rate"]
    assert not (trial.folder / "delta.safetensors").exists() and "delta" not in done["files"]


# --------------------------------------------------------------------------- the DAG


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A finished run of the mini suite, tuned; one trial of LoRA, at an absurd rate, diverges."""
    made = Project(tmp_path_factory.mktemp("tuned"))
    text = (made.folder / "methods" / "lora.py").read_text()
    (made.folder / "methods" / "lora.py").write_text(text.replace("log_uniform(1e-5, 1e-2)", "log_uniform(1e20, 1e30)"))
    made.write_suite(variants=VARIANTS, tuning=TUNING)
    made.run()
    return made


def rerun(project, name):
    return {path for path in project.plan() if path.endswith(name)}


def test_a_failed_trial_is_visible_and_trainings_use_what_is_left(project):
    results = project.folder / "results" / "mini"
    done = json.loads((results / "tune" / "/".join(CELL) / "lora-r2" / "tuned.json").read_text())
    assert [trial["status"] for trial in done["trials"]] == ["ok", "diverged", "diverged"]
    assert done["failed"] == 2 and done["chosen"]["trial"] == 1
    for seed in (0, 1):
        trained = json.loads((results / "runs" / "/".join(CELL) / "lora-r2" / f"seed{seed}" / "train.json").read_text())
        assert trained["specification"]["hyperparameters"]["learning_rate"] == 3e-3


def test_a_search_of_another_machine_joins_and_nothing_that_follows_from_it_runs_again(project, tmp_path):
    here, there = project.copied(tmp_path / "here"), project.folder / "results" / "mini"
    shutil.rmtree(here.folder / "results" / "mini" / "runs")
    merge = [sys.executable, "-m", "evidence.merge", "results/mini", str(there)]
    done = subprocess.run(merge, cwd=here.folder, capture_output=True, text=True)
    assert done.returncode == 0 and "0 refused" in done.stdout, done.stdout + done.stderr
    assert not {path for path in here.plan() if path.startswith(("tune/", "runs/", "cost/"))}


def test_another_space_tunes_and_trains_exactly_its_cells_anew(project):
    assert project.plan() == set()
    project.write_suite(variants=VARIANTS, tuning={**TUNING, "search": {"full": ["learning_rate"]}})
    assert not rerun(project, "train.json")  # the same fields, said in words
    project.write_suite(variants=VARIANTS, tuning={**TUNING, "search": {"lora-r2": ["rank"]}})
    anew = {
        path.removesuffix("/train.json").replace(f"{CELL[0]}/{CELL[1]}/", "") for path in rerun(project, "train.json")
    }
    trials_anew = {f"tune/lora-r2/trial{number}/seed1000" for number in (2, 3)}  # the first has the suite's values
    assert anew == {*trials_anew, "runs/lora-r2/seed0", "runs/lora-r2/seed1"}
    project.write_suite(variants=VARIANTS, tuning=TUNING)


def test_a_trial_run_anew_that_ends_as_before_trains_nothing_anew(project):
    """`make retry` of a trial: its record is gone, the choice waits for it, and the trainings for the choice."""
    results = project.folder / "results" / "mini"
    trained = results / "runs" / "/".join(CELL) / "lora-r2" / "seed0" / "train.json"
    before = trained.stat().st_mtime_ns
    gone = retry.forget(results, ("diverged",))
    assert [path.parent.parent.name for path in gone] == ["trial2", "trial3"]
    project.run()
    assert trained.stat().st_mtime_ns == before  # diverged again: the same record of the search, nothing to train
    assert project.plan() == set()
