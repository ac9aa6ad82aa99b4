"""The shape of the project: who imports whom, and how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from harness.plugins import ROOT

ENGINE = sorted((ROOT / "harness").glob("*.py"))
EVIDENCE = sorted((ROOT / "evidence").glob("*.py"))
PLUGINS = [p for kind in ("methods", "corpora", "evals") for p in sorted((ROOT / kind).glob("*.py"))]


def imported(path):
    """Dotted names of everything a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", EVIDENCE, ids=lambda p: p.name)
def test_evidence_imports_no_torch_and_of_the_harness_only_what_reads_files(path):
    for name in imported(path):
        top = name.split(".")[0]
        assert top not in ("torch", "transformers", "peft", "methods", "corpora", "evals"), name
        assert (
            top != "harness"
            or name == "harness"
            or name.startswith(("harness.record", "harness.strict_yaml", "harness.plugins"))
        ), name


@pytest.mark.parametrize("path", ENGINE, ids=lambda p: p.name)
def test_the_engine_names_no_plugin(path):
    for name in imported(path):
        assert name.split(".")[0] not in ("methods", "corpora", "evals", "evidence"), name


@pytest.mark.parametrize("path", PLUGINS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_a_plugin_knows_the_contract_and_shared_parts_only(path):
    for name in imported(path):
        if name.split(".")[0] == "harness":
            assert name.startswith(("harness.contract", "harness.sandbox", "harness.judge")) or name == "harness", name
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = [node.module] if node.module else [alias.name for alias in node.names]
            assert all(part.startswith("_") for part in parts), f"{path.name} imports the plug-in {parts}"


@pytest.mark.parametrize(
    "path",
    [*ENGINE, *EVIDENCE, *PLUGINS, *sorted((ROOT / "perf").glob("*.py"))],
    ids=lambda p: f"{p.parent.name}/{p.name}",
)
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 400


def test_the_snakefile_is_a_table_of_contents():
    assert len((ROOT / "Snakefile").read_text().splitlines()) <= 30


@pytest.mark.parametrize(
    "module", ["harness.suite", "harness.dag", "harness.supervise", "harness.score", "harness.contract"]
)
def test_what_must_start_fast_imports_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
