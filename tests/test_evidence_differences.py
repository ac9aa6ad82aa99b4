"""The table of differences: each method less the reference, on shared seeds and items."""

from __future__ import annotations

import fake_results
import numpy as np
import pandas as pd
import pytest

from evidence import collect, tables
from evidence.collected import Collected
from evidence.difference_table import difference_table
from evidence.paired import holm, paired_difference
from evidence.pools import Panel, Pool, Run, panels
from evidence.score_table import decimals
from evidence.stats import spread
from harness import record


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return fake_results.collected(tmp_path_factory.mktemp("results") / "fake")


@pytest.fixture(scope="module")
def collected(root):
    return Collected(root / "collected")


def by_hand(collected, model="tiny-bert", evaluation="headlines-test"):
    """(values of each variant: (seeds, items)) from items.parquet alone."""
    items = collected.items[(collected.items["model"] == model) & (collected.items["eval"] == evaluation)]
    return {
        variant: np.stack([100.0 * rows["grade.correct"].to_numpy() for _, rows in frame.groupby("seed")])
        for variant, frame in items.groupby("variant", observed=True)
    }


def test_numbers_are_those_of_the_paired_difference(collected):
    table = difference_table(collected, "Differences")
    values = by_hand(collected)
    found = {r["variant"]: r for r in table.records if (r["model"], r["eval"]) == ("tiny-bert", "headlines-test")}
    assert len(found) >= 2 and "lora" not in found and all(r["reference"] == "lora" for r in found.values())
    for variant, row in found.items():
        own = paired_difference(values[variant], values["lora"])
        assert (row["difference"], row["low"], row["high"]) == pytest.approx((own.value, own.low, own.high))
    assert [r["p_holm"] for r in found.values()] == pytest.approx(holm([r["p"] for r in found.values()]))


def test_two_seeds_are_marked_and_the_reference_is_named(collected):
    table = difference_table(collected, "Differences")
    assert table.stub[1].startswith("Method less LoRA")
    assert any(note.startswith("* items only") for note in table.notes)
    cells = [text for group in table.groups for row in group.rows for text in row if "[" in text]
    assert cells and all(text.endswith("]*") for text in cells)


@pytest.mark.parametrize(
    ("values", "unit", "digits"),
    [
        ((2.1e-6, 3.3e-6), "", 8),
        ((0.012, 0.034), "nats/token", 4),
        ((0.0, 0.0), "", 3),
        ((0.04, 0.02), "%", 1),
        ((0.4, 0.02), "", 3),
    ],
)
def test_scores_far_below_one_have_digits_that_tell_them_apart(values, unit, digits):
    runs = [Run(seed, value, "ok", "score", "", "", "", "") for seed, value in enumerate(values)]
    pool = Pool(runs, spread(values), None, (0, 1), "", None, None)
    panel = Panel("c", "e", "m", pd.DataFrame({"unit": [unit]}), {("lora", "m"): pool})
    assert decimals(panel) == digits


def test_baselines_and_scores_that_are_no_means_are_left_out(collected):
    table = difference_table(collected, "Differences")
    assert not {"untuned", "majority"} & {r["variant"] for r in table.records}
    with_items = {
        (p.eval, p.metric) for p in panels(collected, reference=False) if any(q.items for q in p.pools.values())
    }
    assert {(r["eval"], r["metric"]) for r in table.records} <= with_items


def test_a_failed_seed_leaves_the_shared_ones(root, tmp_path):
    import shutil

    copy = tmp_path / "fake"
    shutil.copytree(root, copy)
    path = copy / "runs/tiny-bert/headlines/full/seed1/headlines-test/score.json"
    record.write(path, {**record.read(path), "status": "error", "reason": "broken"})
    collect.main(["--plan", str(copy / "plan.json"), "--out", str(copy / "collected")])
    table = difference_table(Collected(copy / "collected"), "Differences")
    seeds = {
        r["variant"]: r["seeds"] for r in table.records if (r["model"], r["eval"]) == ("tiny-bert", "headlines-test")
    }
    assert seeds.pop("full") == 1 and set(seeds.values()) == {2}


def test_one_method_has_no_table_and_the_file_is_written(collected, root, tmp_path):
    alone = Collected(root / "collected")
    alone.runs = alone.runs[alone.runs["variant"] == "lora"]
    assert difference_table(alone, "Differences") is None
    assert tables.main(["--collected", str(root / "collected"), "--out", str(tmp_path)]) == 0
    assert {"differences.md", "differences.csv", "differences.tex"} <= {p.name for p in tmp_path.iterdir()}
