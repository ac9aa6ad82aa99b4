"""What installs and starts the project: one list of dependencies, the environment, the lock of a dead Snakemake."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from harness import environment, record, retry, unlock
from harness.plugins import ROOT
from harness.provenance import provenance, stack_id, versions

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {
    "PyYAML": "yaml",
    "Jinja2": "jinja2",
    "scikit-learn": "sklearn",
    "pillow": "PIL",
    "markdown-it-py": "markdown_it",
}  # where a package's module has another name


def locked() -> list[str]:
    return [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]


# --------------------------------------------------------------------------- one list


def test_every_pin_is_exact_and_stands_in_the_lock():
    pins = environment.pins()
    assert len(pins) > 20
    for pin in pins:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", pin), pin
        assert pin in locked(), f"{pin} is not in requirements.lock: make lock"


def test_the_lock_resolves_on_any_machine():
    names = [line.split("==")[0].lower().replace("_", "-") for line in locked()]
    assert len(names) == len(set(names)) > 100
    for line in locked():  # no path, no address, no build of one machine
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", line), line
    assert "tuning-fork" not in names and "galore-torch" not in names


def test_conda_installs_the_lock():
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    python = next(entry for entry in content["dependencies"] if str(entry).startswith("python="))
    assert PROJECT["requires-python"] == f">={python.split('=')[1]}"
    assert {"pip": ["-r requirements.lock"]} in content["dependencies"] and "pip" in content["dependencies"]
    assert tuple(map(int, python.split("=")[1].split("."))) == environment.OLDEST


@pytest.mark.parametrize("folder", ["harness", "methods", "corpora", "evals", "evidence", "tests"])
def test_what_is_imported_is_pinned(folder):
    every = [*environment.pins(), *PROJECT["optional-dependencies"]["images"]]
    declared = {MODULES.get(name, name) for name in (pin.split("==")[0] for pin in every)}
    ours = {path.stem for path in [*ROOT.iterdir(), *(ROOT / folder).glob("*.py")]}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            found = []
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found = [node.module]
            for name in (name.split(".")[0] for name in found):
                known = name in sys.stdlib_module_names or name in declared or name in ours
                assert known or name.startswith("tuning_fork_"), (
                    f"{path.name} imports {name}, which pyproject.toml lacks"
                )


def test_the_readme_names_the_commands_that_are_there():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    readme = (ROOT / "README.md").read_text()
    for name in re.findall(r"(?:^|`)make ([a-z]+)", readme, flags=re.M):
        assert name in targets, name
    assert {"run", "test", "check", "retry"} <= targets and "make test" in readme
    assert "make test" in (ROOT / ".ci" / "run").read_text() and os.access(ROOT / ".ci" / "run", os.X_OK)


# --------------------------------------------------------------------------- the environment


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose lock asks for nothing that must be fetched."""
    (tmp_path / "requirements.lock").write_text("# a comment\ntorch==0\n")
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "LOCK", tmp_path / "requirements.lock")
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    steps = []

    def run(command, remedy):
        steps.append(" ".join(command[1:]))
        if "venv" in command:
            (tmp_path / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
            (tmp_path / ".venv" / "bin" / "python").write_text("")

    monkeypatch.setattr(environment, "run", run)
    return tmp_path, steps


def test_the_environment_is_made_once_for_each_lock(project):
    folder, steps = project
    assert environment.own() == str(folder / ".venv" / "bin" / "python")
    assert [step.split()[1] for step in steps] == ["venv", "pip", "pip"]
    assert steps[1].endswith(" torch==0") and steps[2].endswith(f"-r {folder / 'requirements.lock'}")  # torch first
    environment.own()
    assert len(steps) == 3
    (folder / "requirements.lock").write_text("torch==1\n")
    environment.own()
    assert len(steps) > 3


def test_an_installation_that_broke_off_is_taken_up_again(project, monkeypatch):
    folder, steps = project
    original = environment.run
    monkeypatch.setattr(environment, "run", lambda command, remedy: sys.exit("no network"))
    with pytest.raises(SystemExit):
        environment.own()
    monkeypatch.setattr(environment, "run", original)
    environment.own()
    assert len(steps) == 3


def test_an_active_environment_counts_if_it_has_every_pin(project, monkeypatch, capsys):
    assert environment.active() is None
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    monkeypatch.setattr(environment, "pins", lambda: [f"pytest=={pytest.__version__}"])
    assert environment.active() == os.path.join(sys.prefix, "bin", "python")
    monkeypatch.setattr(environment, "pins", lambda: ["pytest==0.1", "no-such-package==1.0"])
    assert environment.active() is None
    assert "lacks pytest==0.1, no-such-package==1.0: using .venv" in capsys.readouterr().err


def test_an_old_python_is_told_so(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    with pytest.raises(SystemExit, match=r"3\.9\.2 is too old.*3\.11"):
        environment.main()


def test_the_makefile_puts_the_environment_first_on_the_path(tmp_path):
    done = subprocess.run(["make", "-n", "run"], cwd=ROOT, capture_output=True, text=True)
    assert "harness.environment" in done.stdout and "snakemake --cores all --config suite=quick" in done.stdout
    assert "export PATH=" in done.stdout and "harness.unlock" in done.stdout
    refused = subprocess.run(["make", "-n", "check"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode != 0 and "make check METHOD=mine" in refused.stderr


# --------------------------------------------------------------------------- a dead Snakemake's lock


@pytest.fixture
def locks(tmp_path):
    folder = tmp_path / ".snakemake" / "locks"
    folder.mkdir(parents=True)
    (folder / "0.output.lock").write_text("results/train.json\n")
    return folder


def test_the_lock_of_a_dead_snakemake_is_removed(tmp_path, locks):
    assert "removed" in unlock.unlock(tmp_path) and not locks.exists()
    assert unlock.unlock(tmp_path) == ""


def test_the_lock_of_a_living_snakemake_stays(tmp_path, locks):
    script = tmp_path / "snakemake"  # a process of that name
    script.write_text("import time\nprint('up', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen([sys.executable, str(script)], cwd=tmp_path, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        assert str(process.pid) in unlock.unlock(tmp_path) and locks.exists()
        assert unlock.running(tmp_path.parent) == []  # another folder's is none of ours
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert "removed" in unlock.unlock(tmp_path)


# --------------------------------------------------------------------------- retry


def test_retry_forgets_failed_rows_and_what_followed_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    statuses = {
        "runs/m/c/a/seed0/train.json": "oom",
        "runs/m/c/a/seed0/e/predict.json": "skipped",
        "runs/m/c/a/seed0/e/score.json": "skipped",
        "runs/m/c/b/seed0/train.json": "ok",
        "runs/m/c/b/seed0/e/predict.json": "timeout",
        "runs/m/c/b/seed0/e/score.json": "skipped",
        "cost/m/c/a/cost.json": "oom",
    }
    results = Path("results/lorsum-small")
    for name, status in statuses.items():
        record.write(results / name, {"status": status})
    (results / "runs/m/c/a/seed0/checkpoint").mkdir()
    suite = str(ROOT / "papers/lorsum/small.yaml")  # its results are not in a folder of its name
    assert retry.main([suite, "--status", "oom,error"]) == 0
    left = {path.relative_to(results).as_posix() for path in results.rglob("*.json")}
    assert left == {name for name in statuses if "/b/" in name}
    assert "4 records forgotten" in capsys.readouterr().err and (results / "runs/m/c/a/seed0/checkpoint").exists()
    for arguments, said in (
        ([suite, "--status", "ok"], "no status 'ok' to retry"),
        (["nowhere"], "no suite 'nowhere'"),
        (["smoke"], "results/smoke does not exist"),
    ):
        with pytest.raises(SystemExit):
            retry.main(arguments)
        assert said in capsys.readouterr().err


# --------------------------------------------------------------------------- provenance


def test_provenance_names_the_stack_without_importing_torch():
    found = provenance(threads=2)
    assert found["versions"]["torch"].startswith("2.13.0") and found["threads"] == 2
    assert found["hardware"]["cores"] >= 1 and found["hardware"]["ram_bytes"] > 1e8 and found["hardware"]["cpu"]
    assert found["stack_id"] == stack_id("cpu") != stack_id("cuda:0") == stack_id("cuda:1")
    assert set(found) >= {"commit", "dirty"} and "python" in versions()
    code = "import sys, harness.provenance as p; p.provenance(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
