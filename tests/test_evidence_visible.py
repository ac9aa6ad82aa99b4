"""What failed, is stale, comes from other software or is missing stands in every table, and enters no average in any.

Each fate is put into a tree of fake results in which all else is well, once into a run and once into a cost; every table that
the project writes must name it, and no number may move but by the run's absence.
"""

from __future__ import annotations

import csv
import io
import json
import shutil

import fake_results
import numpy as np
import pytest

from evidence import claims, collect, tables
from evidence.collected import Collected
from evidence.figure_scores import _left_out
from evidence.layout import csv_text, markdown
from evidence.overview import overviews
from evidence.pools import panels
from harness import record

SEEDS = (0, 1, 2)
CELL = "runs/tiny-bert/headlines/dora/seed1"
COST = "cost/tiny-bert/headlines/dora/cost.json"
SAID = {"failed": "oom", "stale": "stale", "other software": "2.12.0", "missing": "missing"}
MARKS = {"failed": "oom", "stale": "‡", "other software": "†", "missing": "missing"}
FREAK = 0.0  # the score of the injected run, so far off that any average with it would show


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Fake results without failures, three seeds of one corpus and of another for the second benchmark."""
    root = tmp_path_factory.mktemp("results") / "sound"
    return fake_results.collected(root, failures=False, seeds=SEEDS, corpora=("headlines", "snippets"))


@pytest.fixture(scope="module", params=SAID)
def injected(request, sound, tmp_path_factory):
    """(fate, folder): the same with one run and one cost of that fate; where the run has a score, it is a freak."""
    root = tmp_path_factory.mktemp("results") / request.param.replace(" ", "-")
    shutil.copytree(sound, root)
    _freak(root)
    for path in (root / CELL / "train.json", root / COST):
        spoil(path, request.param)
    collect.main(["--plan", str(root / "plan.json"), "--out", str(root / "collected")])
    return request.param, root


def _freak(root):
    """Every answer of the run is wrong, in its grades and its score."""
    folder = root / CELL / "headlines-test"
    rows = [{"item": f"item-{i}", "correct": False, "gold": "1", "predicted": "0"} for i in range(fake_results.ITEMS)]
    (folder / "grades.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score = record.read(folder / "score.json")
    files = {"grades": record.file_entry(folder / "grades.jsonl")}
    record.write(folder / "score.json", {**score, "files": files, "metrics": {"accuracy": FREAK}})


def spoil(path, fate):
    """Give a record that fate."""
    made = record.read(path)
    if fate == "missing":
        path.unlink()
    elif fate == "failed":
        record.write(path, {**made, "status": "oom", "reason": "memory passed the limit"})
    elif fate == "stale":
        record.write(path, {**made, "key": "key-of-old"})
    else:
        record.write(path, {**made, "provenance": fake_results.OTHER})


def written(root, out):
    """{name: text} of all tables that the project writes of a suite, and the claims' page."""
    assert tables.main(["--collected", str(root / "collected"), "--out", str(out)]) == 0
    return {path.stem: path.read_text() for path in out.glob("*.md")}


def page(root, tmp_path, monkeypatch):
    (tmp_path / "papers" / "fake").mkdir(parents=True)
    path = tmp_path / "papers" / "fake" / "claims.yaml"
    common = {"claim": "DoRA is better", "place": "here", "method": "dora", "others": ["lora"]}
    listed = [
        {"id": "score", "kind": "above", **common},
        {"id": "cost", "kind": "cost", "of": "memory", "ratio": 1.0, **common},
    ]
    path.write_text(json.dumps(listed))  # JSON is YAML
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    assert claims.main(["fake", "--collected", str(root / "collected"), "--out", str(tmp_path / "claims.md")]) == 0
    return (tmp_path / "claims.md").read_text()


def test_every_table_names_it(injected, tmp_path):
    fate, root = injected
    texts = written(root, tmp_path)
    assert set(texts) == {"scores", "overview", "differences", "cost"}
    for name, text in texts.items():
        assert SAID[fate] in text, name
    for name in ("overview", "differences"):
        where = "Left out: Tiny BERT 22M, Headlines, DoRA, seed 1: "
        assert where in texts[name], name
    scores = next(line for line in texts["scores"].splitlines() if "DoRA" in line)
    assert MARKS[fate] in scores and "(2 of 3)" in scores
    cost = next(line for line in texts["cost"].split("Tiny BERT")[1].splitlines() if "DoRA" in line)
    assert MARKS[fate] in cost
    overview = next(line for line in texts["overview"].split("Tiny BERT")[1].splitlines() if "DoRA" in line)
    assert "2 of 3" in overview and SAID[fate].replace("2.12.0", "other software") in overview


def test_the_claims_page_names_it_and_compares_without_it(injected, tmp_path, monkeypatch):
    fate, root = injected
    text = page(root, tmp_path, monkeypatch)
    assert "Left out: Tiny BERT 22M, Headlines, DoRA, seed 1: " in text and SAID[fate] in text
    assert "Left out: cost of Tiny BERT 22M, Headlines, DoRA: " in text
    compared = text.split("## Runs that enter no comparison")[0]
    assert "Headlines, tiny-bert: " in compared and "against lora, 2 seeds" in compared
    assert "tiny-bert, headlines: memory" not in compared and "tiny-llama, headlines: memory" in compared


def test_no_number_holds_it(injected, sound, tmp_path):
    """Averages, differences and the overview are those of seeds 0 and 2, recomputed from the sound records."""
    _, root = injected
    scores = {
        seed: record.read(sound / f"runs/tiny-bert/headlines/dora/seed{seed}/headlines-test/score.json")["metrics"][
            "accuracy"
        ]
        for seed in SEEDS
    }
    kept = np.mean([scores[0], scores[2]])
    collected = Collected(root / "collected")
    (panel,) = (p for p in panels(collected, reference=False) if p.eval == "headlines-test")
    pool = panel.pools["dora", "tiny-bert"]
    assert pool.used == (0, 2) and pool.spread.mean == pytest.approx(kept) and pool.items.values.shape[0] == 2
    made = {one.model: one for one in overviews(collected)}["tiny-bert"]
    assert made.methods["dora"].quality.value == pytest.approx(kept)
    assert made.methods["dora"].seconds is None and made.methods["dora"].front is None
    differences = csv.DictReader(io.StringIO(csv_text(tables.difference_table(collected, "D"))))
    row = next(
        r for r in differences if (r["model"], r["eval"], r["variant"]) == ("tiny-bert", "headlines-test", "dora")
    )
    lora = np.mean([p.value for p in panel.pools["lora", "tiny-bert"].runs if p.seed != 1])
    assert float(row["difference"]) == pytest.approx(kept - lora) and row["seeds"] == "2"


def test_where_all_is_well_nothing_is_said(sound):
    collected = Collected(sound / "collected")
    for make in (tables.score_table, tables.overview_table, tables.difference_table, tables.cost_table):
        text = markdown(make(collected, "T"))
        assert "Left out" not in text and not any(word in text for word in ("oom", "‡", "†", "missing", "2.12.0"))


def test_a_benchmark_without_any_run_of_a_method_gives_it_no_number(sound, tmp_path):
    root = tmp_path / "gone"
    shutil.copytree(sound, root)
    for seed in SEEDS:
        spoil(root / f"runs/tiny-llama/snippets/dora/seed{seed}/train.json", "failed")
    collect.main(["--plan", str(root / "plan.json"), "--out", str(root / "collected")])
    made = {one.model: one for one in overviews(Collected(root / "collected"))}["tiny-llama"]
    assert made.methods["dora"].lacks == "oom: Programs (generated)"
    assert made.methods["dora"].quality is None and made.methods["full"].quality is not None


def test_a_method_whose_runs_are_all_stale_is_compared_with_nobody(sound, tmp_path, monkeypatch):
    root = tmp_path / "stale"
    shutil.copytree(sound, root)
    for seed in SEEDS:
        spoil(root / f"runs/tiny-bert/headlines/dora/seed{seed}/train.json", "stale")
    collect.main(["--plan", str(root / "plan.json"), "--out", str(root / "collected")])
    collected = Collected(root / "collected")
    rows = csv.DictReader(io.StringIO(csv_text(tables.difference_table(collected, "D"))))
    found = {(row["model"], row["eval"], row["variant"]) for row in rows}
    assert ("tiny-bert", "headlines-test", "dora") not in found
    assert ("tiny-llama", "headlines-test", "dora") in found
    (panel,) = (p for p in panels(collected, reference=False) if p.eval == "headlines-test")
    assert _left_out(panel.pools["dora", "tiny-bert"]) == "3 stale"
    text = page(root, tmp_path, monkeypatch)
    assert "undecided: dora: nothing" not in text and "undecided: lora: nothing that can be compared on" in text
    assert "Headlines, tiny-bert: " not in text and "Headlines, tiny-llama: " in text
