"""The report keeps apart what shares a label, an eval or most of a name."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from fake_results import collected
from test_evidence_tuning import tune

from evidence import collect, report
from evidence.report_rows import page_of

KEYS = ("quality", "differences", "curves")


def page_and_figures(folder, change):
    """The index and the figures of a report on two models, both tuned, and two corpora, after ``change`` of every cell of the
    plan."""
    plan = tune(collected(folder, failures=False, corpora=("headlines", "arithmetic")))
    shutil.copytree(folder / "tune" / "tiny-llama", folder / "tune" / "tiny-bert")
    plan["tuning"]["cells"] += [{**cell, "model": "tiny-bert"} for cell in plan["tuning"]["cells"]]
    for cell in plan["cells"]:
        change(cell)
    (folder / "plan.json").write_text(json.dumps(plan))
    assert collect.main(["--plan", str(folder / "plan.json"), "--out", str(folder / "collected")]) == 0
    assert report.main(["--collected", str(folder / "collected"), "--out", str(folder / "report")]) == 0
    text = (folder / "report" / "index.html").read_text()
    found = {key: json.loads(re.search(rf'id="data-{key}">(.*?)</script>', text, re.S)[1]) for key in KEYS}
    return text, found


def test_models_and_corpora_of_one_label_are_told_apart_by_their_ids(tmp_path):
    def change(cell):
        cell["model_label"], cell["corpus_label"] = "Llama", "Headlines"

    text, found = page_and_figures(tmp_path / "fake", change)
    titles = {key: [figure["title"] for figure in figures] for key, figures in found.items()}
    assert all(len(set(names)) == len(names) for names in titles.values())
    assert "Llama (tiny-bert), Headlines (headlines): training loss" in titles["curves"]
    for figure in found["curves"]:
        if "training loss" in figure["title"]:
            assert len(figure["data"]) == 6  # three methods under two seeds
    for figure in found["differences"]:
        assert sum("y" in line for line in figure["data"]) == 2  # of three methods, to one of them
    assert "<td>Llama (tiny-llama)</td><td>Headlines (arithmetic)</td>" in text  # costs
    searched = re.findall(r"<tr><td>Llama \((.*?)\)</td>.*href=\"(trainings/.*?#tuning)\"", text)
    assert len(searched) == 4 and all(model in link for model, link in searched)


def test_an_eval_after_two_corpora_is_two_benchmarks(tmp_path):
    def change(cell):
        path = next(
            (tmp_path / "fake" / "runs" / cell["model"] / cell["corpus"]).glob(f"{cell['variant']}/seed{cell['seed']}")
        )
        for file in path.glob("*-test"):
            file.rename(path / "gsm8k")
        for entry in cell["evals"]:
            entry |= {"eval": "gsm8k", "label": "GSM8K"}

    text, found = page_and_figures(tmp_path / "fake", change)
    for corpus in ("Headlines", "Arithmetic problems (multilingual templates)"):
        assert f"<li><b>GSM8K after {corpus}</b>" in text and f'data-benchmark="GSM8K after {corpus}"' in text
    for figure in (*found["quality"], *found["differences"]):
        assert "GSM8K after" in figure["title"]
        names = [line["name"] for line in figure["data"] if line.get("name")]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(("one", "other"), [("lora_r8", "lora-r8"), ("a_b", "a.b")])
def test_variants_that_a_suite_may_tell_apart_have_pages_of_their_own(one, other):
    assert page_of("m", "c", one) != page_of("m", "c", other)
