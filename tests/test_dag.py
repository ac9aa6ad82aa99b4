"""What runs again, and what does not: the DAG on a copy of the project with a few tiny cells."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time

import pytest

from tests.dag import SUITE, Project, same_results

CELL = "runs/tiny-llama/generated-labels"
EDITED = ("methods", "evals", "evidence", "config")
EVIDENCE = ("collected", "claims", "tables", "figures", "notebooks", "report", "summary", "plan", "complete")


def cells(plan: set[str], name: str) -> set[str]:
    """Cells (variant/seed) whose record of that name would be made."""
    return {p.removeprefix(CELL + "/").split("/" + name)[0].split("/generated")[0] for p in plan if p.endswith(name)}


def below_runs(plan: set[str]) -> set[str]:
    return {p for p in plan if not p.startswith(EVIDENCE)}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A finished run of the mini suite; tests edit it and put it back."""
    made = Project(tmp_path_factory.mktemp("project"))
    made.claim("above", margin=1.0)
    made.run()
    return made


@pytest.fixture
def finished(project):
    """The finished project, its files restored afterwards."""
    files = [p for name in EDITED for p in (project.folder / name).glob("*") if p.is_file()]
    kept = {path: path.read_bytes() for path in files}
    yield project
    for folder in EDITED:
        for path in (project.folder / folder).glob("*"):
            if path.is_file() and path not in kept:
                path.unlink()
    for path, content in kept.items():
        if path.read_bytes() != content:
            path.write_bytes(content)


def test_everything_is_there(project):
    results = project.folder / "results" / "mini"
    for name in ("runs", "curves", "items"):
        assert (results / "collected" / f"{name}.parquet").stat().st_size > 0
    assert list((results / "figures").glob("*.svg")) and (results / "tables").glob("**/*.md")
    assert (results / "notebooks" / "learning_curves.ipynb").is_file()
    jobs = json.loads((results / "plan.json").read_text())["jobs"]
    made = {job["record"]: json.loads((project.folder / job["record"]).read_text()).get("key") for job in jobs}
    assert any(job["key"] for job in jobs)  # progress knows by them what will be made anew
    assert all(job["key"] in (None, made[job["record"]]) for job in jobs)


def test_nothing_to_do_afterwards(finished):
    assert finished.plan() == set()


def test_touching_every_file_changes_nothing(finished):
    for path in finished.folder.rglob("*"):  # but for Snakemake's own, a folder's .snakemake_timestamp among them
        if path.is_file() and not any(part.startswith(".snakemake") for part in path.parts):
            os.utime(path)
    assert finished.plan() == set()


def test_stages_run_again_take_what_is_there_with_the_same_key(finished):
    """As when a mirror was copied anew: Snakemake runs the trainings and what follows from them; none is made anew."""
    before = finished.records()
    again = finished.run("--forcerun", "train_first").stderr
    assert finished.records() == before
    stages = re.findall(r"(train|predict|score) results/\S+: results/\S+ is there already, with the same key", again)
    assert [stages.count(stage) for stage in ("train", "predict", "score")] == [5, 5, 5]  # the untuned model's, too


def test_what_follows_from_a_training_made_anew_is_made_anew(finished):
    """Its key is the same, yet its numbers need not be: answers of the older training are not put back."""
    before, cell = finished.records(), finished.folder / "results" / "mini" / CELL / "full" / "seed0"
    (cell / ".train.json.kept").unlink()
    finished.run("--forcerun", "train_first")
    after = finished.records()
    changed = {path.removeprefix(f"results/mini/{CELL}/") for path in before if after[path] != before[path]}
    answers = "full/seed0/generated-labels"
    assert changed == {"full/seed0/train.json", f"{answers}/predict.json", f"{answers}/score.json"}


def test_editing_a_method_runs_exactly_its_trainings(finished):
    finished.edit("methods/lora.py", "\n@dataclass\n", "\nUNUSED = 1\n\n\n@dataclass\n")
    assert cells(finished.plan(), "train.json") == {"lora-r2/seed0", "lora-r2/seed1"}


def test_a_comment_in_a_method_runs_nothing(finished):
    path = finished.folder / "methods" / "lora.py"
    path.write_text(path.read_text() + "\n# a thought\n")
    assert finished.plan() == set()


def test_another_rank_under_the_same_name_runs_exactly_its_trainings(finished):
    variants = {**SUITE["variants"], "lora-r2": {"method": "lora", "rank": 3, "learning_rate": 1e-3}}
    finished.write_suite(variants=variants)
    assert cells(finished.plan(), "train.json") == {"lora-r2/seed0", "lora-r2/seed1"}


def test_fixing_a_grade_only_scores(finished):
    finished.edit("evals/_classes.py", "def grade(self, item, outputs)", "def grade(self, item, outputs, unused=0)")
    plan = finished.plan()
    assert not cells(plan, "train.json") and not cells(plan, "predict.json")
    assert cells(plan, "score.json") == {
        "full/seed0",
        "full/seed1",
        "lora-r2/seed0",
        "lora-r2/seed1",
        "untuned/seed0",
        "majority/seed0",
    }


def test_a_new_method_file_and_a_line_run_exactly_its_cells(finished):
    source = (finished.folder / "methods" / "_template.py").read_text()
    (finished.folder / "methods" / "mine.py").write_text(source)
    grid = [{**SUITE["grid"][0], "variants": ["full", "lora-r2", "mine"]}]
    finished.write_suite(variants={**SUITE["variants"], "mine": {"method": "mine"}}, grid=grid)
    assert cells(below_runs(finished.plan()), "train.json") == {"mine/seed0", "mine/seed1"}
    assert all("/mine/" in path for path in below_runs(finished.plan()))


def test_changing_a_plot_trains_nothing(finished):
    path = finished.folder / "evidence" / "figures.py"
    path.write_text(path.read_text() + "\nUNUSED = 1\n")
    plan = finished.plan()
    assert plan and not below_runs(plan)
    assert any(path.startswith("figures") for path in plan)


def test_another_margin_of_a_claim_judges_again_and_nothing_else(finished):
    finished.claim("above", margin=2.0)
    assert finished.plan() == {"claims.md", "report", "summary.md", "complete"}  # the report shows the verdicts
    finished.claim("within", margin=1.0)
    assert finished.plan() == {"claims.md", "report", "summary.md", "complete"}  # the report shows the verdicts
    finished.claim("above", margin=1.0)
    assert finished.plan() == set()


def test_results_of_another_machine_join_and_none_of_them_runs_again(finished, tmp_path):
    here = finished.copied(tmp_path / "here")
    for folder in here.folder.glob("results/mini/runs/*/*/*/seed1"):
        shutil.rmtree(folder)
    assert cells(here.plan(), "train.json") == {"full/seed1", "lora-r2/seed1"}
    merge = [sys.executable, "-m", "evidence.merge", "results/mini", str(finished.folder / "results" / "mini")]
    done = subprocess.run(merge, cwd=here.folder, capture_output=True, text=True)
    assert done.returncode == 0 and "0 refused" in done.stdout, done.stdout + done.stderr
    assert not below_runs(here.plan())


def test_pinned_code_keeps_paid_runs(finished):
    finished.edit("methods/lora.py", "\n@dataclass\n", "\nUNUSED = 1\n\n\n@dataclass\n")
    assert cells(finished.plan(), "train.json") == {"lora-r2/seed0", "lora-r2/seed1"}
    assert not below_runs(finished.plan("code=pinned"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {**SUITE["variants"], "full": {"method": "ful"}}}, "no method 'ful'"),
        ({"protocol": {"steps": -1}}, "-1 is less than"),
        ({"suite": "Mini!"}, "suite"),
    ],
)
def test_a_typo_ends_at_once_with_one_clear_message(finished, changes, message):
    finished.write_suite(**changes)
    done = finished.run("-n", check=False)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert message in done.stderr


@pytest.mark.parametrize("attempt", range(3))
def test_kill_nine_of_everything_then_the_same_command(project, tmp_path, attempt):
    fresh = Project(tmp_path / "p")
    process = fresh.start()
    time.sleep(random.Random(attempt).uniform(3, 12))
    fresh.kill_everything()
    process.wait(timeout=30)
    finished = fresh.records()
    fresh.run("--nolock")
    after = fresh.records()
    for name, content in finished.items():
        assert after[name] == content, f"{name} was finished and is not what it was"
    same_results(project, fresh)
