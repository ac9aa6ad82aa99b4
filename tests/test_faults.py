"""Cells that fail: each becomes its row or its clear message, and no other cell suffers."""

from __future__ import annotations

import json

import pytest

from tests.dag import SUITE, Project

METHOD = '''
"""A method that goes wrong: {what}."""
from dataclasses import dataclass
import time
import torch
from harness.contract import Method

@dataclass
class Broken(Method):
    def attach(self, model, run):
        {attach}
        for p in model.parameters():
            p.requires_grad_(True)

    def after_backward(self, model, step):
        {after_backward}
'''
BROKEN = {
    "raises": {"attach": "raise ValueError('no such layer')", "after_backward": "pass"},
    "nan": {"attach": "pass", "after_backward": "next(model.parameters()).grad.fill_(float('nan'))"},
    "greedy": {
        "attach": "self.kept = [bytearray(1 << 28) for _ in range(40)]; time.sleep(60)",
        "after_backward": "pass",
    },
    "slow": {"attach": "pass", "after_backward": "time.sleep(600)"},
}
CORPUS = '''
"""Rows of which one has no completion."""
from dataclasses import dataclass
from typing import ClassVar
from harness.contract import Completion, Corpus

@dataclass
class Holes(Corpus):
    label: ClassVar[str] = "rows with a hole"
    evals: ClassVar[tuple[str, ...]] = ("generated-labels",)

    def examples(self, split, data):
        return [Completion("a b", " c"), Completion("a b", "")] * 8
'''


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """One run of a suite with a healthy variant, four broken methods and a corpus with an empty completion."""
    project = Project(tmp_path_factory.mktemp("broken"))
    for name, parts in BROKEN.items():
        (project.folder / "methods" / f"{name}.py").write_text(METHOD.format(what=name, **parts))
    (project.folder / "corpora" / "holes.py").write_text(CORPUS)
    project.write_suite(
        variants={"full": SUITE["variants"]["full"], **{name: {"method": name} for name in BROKEN}},
        limits={"memory_mb": 2500, "wall_minutes": 0.4},
        grid=[
            {"models": ["tiny-llama"], "corpora": ["generated-labels"], "variants": ["full", *BROKEN], "seeds": [0]},
            {"models": ["tiny-llama"], "corpora": ["holes"], "variants": ["full"], "seeds": [0]},
        ],
    )
    return project, project.run(check=False)


def record(project, corpus, variant, name="train.json"):
    return json.loads((project.folder / "results/mini/runs/tiny-llama" / corpus / variant / "seed0" / name).read_text())


@pytest.mark.parametrize(
    ("variant", "status", "reason"),
    [
        ("raises", "error", "methods/raises.py"),
        ("nan", "diverged", "nan at step 0"),
        ("greedy", "oom", "2,?500 MB"),
        ("slow", "timeout", ""),
        ("full", "ok", ""),
    ],
)
def test_a_failure_is_a_row_with_its_reason(broken, variant, status, reason):
    import re

    found = record(broken[0], "generated-labels", variant)
    assert found["status"] == status
    assert re.search(reason, found["reason"]), found["reason"]


def test_what_follows_a_failed_training_says_so(broken):
    found = record(broken[0], "generated-labels", "raises", "generated-labels/score.json")
    assert found["status"] == "skipped" and "error" in found["reason"]


def test_a_row_without_completion_is_named(broken):
    found = record(broken[0], "holes", "full")
    assert found["status"] == "error"
    assert "row 1" in found["reason"] and "completion is empty" in found["reason"]


def test_tables_are_made_and_show_the_failures(broken):
    project, done = broken
    assert done.returncode != 0  # the suite says that rows failed
    results = project.folder / "results" / "mini"
    tables = "\n".join(p.read_text() for p in results.glob("tables/**/*.md"))
    for word in ("error", "diverged", "oom", "timeout"):
        assert word in tables, word
    assert "raises" in done.stdout + done.stderr
