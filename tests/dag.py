"""A copy of the project in a temporary folder, with a suite of a few tiny cells, for tests that edit code and run it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import yaml

from harness.plugins import ROOT

SUITE = {
    "suite": "mini",
    "protocol": {"steps": 4, "batch_size": 4, "micro_batch_size": 2, "max_length": 64, "validation_examples": 8},
    "limits": {"checkpoint_every": 1, "cost_steps": 2},
    "corpora": {"generated-labels": {"rows": 64}},
    "evals": {"generated-labels": {"rows": 8}},
    "variants": {
        "full": {"method": "full", "learning_rate": 1e-3},
        "lora-r2": {"method": "lora", "rank": 2, "learning_rate": 1e-3},
    },
    "grid": [
        {"models": ["tiny-llama"], "corpora": ["generated-labels"], "variants": ["full", "lora-r2"], "seeds": [0, 1]}
    ],
    "cost": {"corpora": []},
}
TABLE = {
    "id": "labels",
    "kind": "scores",
    "title": "Labels",
    "methods": {"Full FT": "full", "LoRA": "lora"},
    "rows": [{"title": "accuracy, %", "evals": ["generated-labels"]}],
}
FOLDERS = (
    "harness",
    "methods",
    "corpora",
    "evals",
    "evidence",
    "config",
    "workflow",
    "profiles",
    "notebooks",
    "papers",
)


class Project:
    """The copy; ``run`` and ``plan`` call Snakemake in it as a user would."""

    def __init__(self, folder: Path, suite: str = "mini"):
        self.folder, self.suite = folder, suite
        for name in FOLDERS:
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "Snakefile", folder)
        self.write_suite()

    def copied(self, folder: Path) -> Project:
        """Another clone with the same trainings and scores, of which Snakemake knows nothing yet."""
        made = object.__new__(Project)
        made.folder, made.suite = folder, self.suite
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns(".snakemake", ".lock", "results"))
        results = Path("results") / self.suite
        shutil.copytree(self.folder / results / "runs", folder / results / "runs")
        shutil.copy(self.folder / results / "plan.json", folder / results)
        return made

    def write_suite(self, **changes) -> None:
        """The mini suite, with other values for some of its keys."""
        (self.folder / "config" / "mini.yaml").write_text(yaml.safe_dump({**SUITE, **changes}))

    def claim(self, kind: str, margin: float) -> None:
        """The suite's only claim and table, as if a paper had made them."""
        claim = {"id": "one", "claim": "LoRA is better", "place": "here", "kind": kind, "margin": margin}
        path = self.folder / "papers" / self.suite / "claims.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump([{**claim, "method": "lora", "others": ["full"]}]))
        (path.parent / "tables.yaml").write_text(yaml.safe_dump([TABLE]))

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.folder / file
        text = path.read_text()
        assert old in text, f"{file} has no {old!r}"
        path.write_text(text.replace(old, new, 1))

    def command(self, *more: str) -> list[str]:
        return [sys.executable, "-m", "snakemake", "--cores", "2", *more, "--config", f"suite={self.suite}"]

    def run(self, *more: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
        done = subprocess.run(
            self.command(*more),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=600,
            env={**os.environ, **environment},
        )
        if check and done.returncode:
            logs = "\n".join(f"{p}:\n{p.read_text()[-2000:]}" for p in self.folder.glob("results/*/logs/**/*.log"))
            raise AssertionError(
                f"snakemake ended {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}\n{logs}"
            )
        return done

    def plan(self, *config: str) -> set[str]:
        """Outputs under results/mini that a run would make anew, shortened; empty when there is nothing to do."""
        done = subprocess.run(
            [*self.command("-n", "--quiet", "host"), *config],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        outputs = re.findall(r"^\s+output: (.+)$", done.stdout + done.stderr, flags=re.M)
        return {part.strip().removeprefix("results/mini/") for line in outputs for part in line.split(",")}

    def records(self) -> dict[str, bytes]:
        return {
            str(p.relative_to(self.folder)): p.read_bytes()
            for p in sorted(self.folder.glob(f"results/{self.suite}/runs/**/*.json"))
        }

    def start(self) -> subprocess.Popen:
        """Snakemake in a session of its own, in the background."""
        return subprocess.Popen(
            self.command("--nolock"),
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def kill_everything(self) -> None:
        """kill -9 every process that works in this folder, fork server's children and all."""
        for _ in range(3):
            for entry in Path("/proc").iterdir():
                if not entry.name.isdigit() or int(entry.name) == os.getpid():
                    continue
                try:
                    if os.readlink(entry / "cwd").startswith(str(self.folder)):
                        os.kill(int(entry.name), signal.SIGKILL)
                except OSError:
                    continue


def same_results(one: Project, other: Project) -> None:
    """Losses, predictions and scores of two runs are equal to the last bit."""
    first, second = one.records(), other.records()
    assert first.keys() == second.keys()
    for name in first:
        a, b = json.loads(first[name]), json.loads(second[name])
        assert (a["status"], a["key"]) == (b["status"], b["key"]), name
        for field in ("loss", "metrics", "tokens", "steps"):
            assert a.get(field) == b.get(field), (name, field)
        for file, entry in (a.get("files") or {}).items():
            if file != "curves":  # their seconds differ
                assert entry["sha256"] == b["files"][file]["sha256"], (name, file)
