"""Notebooks of suites that lack what they compare: they say so, and run to their end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_results import collected

from evidence import collect, notebook
from harness.plugins import ROOT


def said(name: str, folder: Path) -> str:
    """Everything that an executed notebook printed or showed as text."""
    out = folder / f"{name}.ipynb"
    notebook.execute(ROOT / "notebooks" / f"{name}.ipynb", folder / "collected", out)
    outputs = [o for cell in json.loads(out.read_text())["cells"] for o in cell.get("outputs", [])]
    return "".join("".join(o.get("text", "")) + "".join(o.get("data", {}).get("text/plain", "")) for o in outputs)


def test_one_method_is_compared_with_none_and_the_notebook_says_so(tmp_path):
    folder = collected(tmp_path / "fake", failures=False, corpora=("snippets",), variants={"lora": "lora"})
    text = said("compare_two_methods", folder)
    assert "has LoRA alone: there is nothing to compare" in text and "have both a cost" in text


@pytest.mark.parametrize("spoilt", [{"status": "timeout"}, {"key": "key-of-old"}], ids=["failed", "stale"])
def test_costs_of_neither_method_are_told_apart_from_no_costs(tmp_path, spoilt):
    folder = collected(tmp_path / "fake", failures=False, corpora=("snippets",))
    for path in folder.glob("cost/*/*/*/cost.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | spoilt))
    collect.main(["--plan", str(folder / "plan.json"), "--out", str(folder / "collected")])
    text = said("compare_two_methods", folder)
    assert "On no model and corpus have both a cost" in text and "measures no costs" not in text


@pytest.mark.parametrize("name", ["compare_two_methods", "learning_curves"])
def test_models_of_one_label_have_curves_of_their_own(tmp_path, name):
    folder = collected(tmp_path / "fake", failures=False, corpora=("headlines",))
    plan = json.loads((folder / "plan.json").read_text())
    for cell in plan["cells"]:
        cell["model_label"] = "Llama"
    (folder / "plan.json").write_text(json.dumps(plan))
    collect.main(["--plan", str(folder / "plan.json"), "--out", str(folder / "collected")])
    said(name, folder)
    cells = json.loads((folder / f"{name}.ipynb").read_text())["cells"]
    pictures = [sum("image/png" in o.get("data", {}) for o in c["outputs"]) for c in cells if c["cell_type"] == "code"]
    assert max(pictures) == 2 and (name != "learning_curves" or sum(pictures) == 6)
