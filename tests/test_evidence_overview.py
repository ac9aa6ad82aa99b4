"""Over all benchmarks: IQM, probability of improvement, Pareto membership, time to a target, and the table and figures."""

from __future__ import annotations

import itertools
import math
import re
import shutil
import types

import fake_results
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from evidence import aggregate, collect, figures, pareto, tables
from evidence.aggregate import Scores
from evidence.collected import Collected
from evidence.figure_pareto import pareto_pages
from evidence.figure_profile import profile_pages, target_pages
from evidence.overview import overview_table, overviews
from evidence.style import styles
from evidence.time_to_target import Workload, first_at, profile, score, seconds_at, workloads
from harness import record

RNG = np.random.default_rng


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two corpora whose scores are means over items, three seeds, nothing failed."""
    root = tmp_path_factory.mktemp("results") / "fake"
    return (
        fake_results.collected(root, failures=False, seeds=(0, 1, 2), corpora=("headlines", "snippets")) / "collected"
    )


@pytest.fixture(scope="module")
def collected(folder):
    return Collected(folder)


# --------------------------------------------------------------------------- IQM, improvement


def test_iqm_is_the_mean_of_the_middle_half():
    assert aggregate.iqm(np.array([1.0, 2, 3, 4, 5, 6, 7, 100])) == pytest.approx((3 + 4 + 5 + 6) / 4)
    assert aggregate.iqm(np.array([5.0, 1.0, 9.0])) == pytest.approx(5.0)  # three scores: no whole one to cut
    many = RNG(0).normal(size=(7, 12))
    assert aggregate.iqm(many) == pytest.approx([np.sort(row)[3:9].mean() for row in many])


def test_probability_of_improvement_counts_pairs():
    first, second = [np.array([1.0, 2, 3]), np.array([5.0, 5])], [np.array([2.0, 2]), np.array([4.0, 5, 6])]
    by_hand = []
    for xs, ys in zip(first, second, strict=True):
        pairs = list(itertools.product(xs, ys))
        by_hand.append(sum(1.0 if x > y else 0.5 if x == y else 0.0 for x, y in pairs) / len(pairs))
    assert aggregate.improvement(first, second) == pytest.approx(np.mean(by_hand)) == pytest.approx(0.5)
    assert aggregate.improvement(second, first) == pytest.approx(0.5)
    assert aggregate.improvement([np.array([2.0])], [np.array([1.0])]) == 1.0


def test_the_bootstrap_draws_runs_and_items_and_methods_share_the_draws():
    items = RNG(1).normal(50, 10, (3, 400)) + np.array([[0.0], [2.0], [4.0]])
    benchmark = {"a": Scores(items.mean(1), items), "b": Scores(items.mean(1) + 1, items + 1)}
    drawn = aggregate.resampled(benchmark, RNG(2), 4000)
    assert drawn["b"] == pytest.approx(drawn["a"] + 1)  # the same runs and items in every draw
    means = drawn["a"].mean(1)
    seeds, rows = items.mean(1).var() / 3, items.mean(0).var() / 400
    assert means.mean() == pytest.approx(items.mean(), abs=0.05)
    assert means.var() == pytest.approx(seeds + rows, rel=0.25)


def test_two_runs_are_kept_and_of_a_score_that_is_no_mean_nothing_is_drawn():
    items = RNG(3).normal(50, 10, (2, 100))
    drawn = aggregate.resampled({"a": Scores(items.mean(1), items), "b": Scores(np.array([7.0, 9.0]))}, RNG(4), 500)
    assert np.isnan(drawn["b"]).all() and drawn["b"].shape == (500, 2)
    both = np.concatenate([drawn["a"], drawn["a"], drawn["a"], drawn["b"]], axis=1)
    assert np.isnan(aggregate.iqm(both)).all()  # not trimmed away
    assert np.isnan(aggregate.improvement([drawn["a"]], [drawn["b"]])).all()
    found = aggregate.estimate(8.0, drawn["b"].mean(1))
    assert found.value == 8.0 and np.isnan([found.low, found.high]).all()
    first, second = drawn["a"].T
    assert np.corrcoef(first, second)[0, 1] < 0.5 and (first.mean(), second.mean()) == pytest.approx(
        items.mean(1), abs=0.2
    )


# --------------------------------------------------------------------------- the front


def test_the_front_is_who_nobody_dominates():
    for seed in range(20):
        quality, time, memory = RNG(seed).integers(0, 4, (3, 8)).astype(float)
        points = list(zip(quality, -time, -memory, strict=True))
        by_hand = [not any(all(a >= b for a, b in zip(q, p, strict=True)) and q != p for q in points) for p in points]
        assert pareto.on_front(quality, time, memory).tolist() == by_hand


def test_membership_is_a_share_of_draws():
    quality = np.array([[2.0, 1.0], [1.0, 2.0], [2.0, 1.0], [2.0, 1.0]])
    time = np.full((4, 2), 3.0)
    assert pareto.membership(quality, time, np.array([5.0, 5.0])).tolist() == [0.75, 0.25]
    assert pareto.membership(quality, time, np.array([5.0, 4.0])).tolist() == [0.75, 1.0]


def test_times_are_medians_of_drawn_steps():
    steps = RNG(5).gamma(9.0, 0.1, 25)
    drawn = pareto.drawn_medians([steps, 2 * steps, steps[:7]], RNG(6), 5000)
    assert drawn[:, 1] == pytest.approx(2 * drawn[:, 0])  # the same steps in every draw
    by_hand = [np.median(RNG(k).choice(steps, 25)) for k in range(3000)]
    assert drawn[:, 0].mean() == pytest.approx(np.mean(by_hand), rel=0.02)
    assert drawn[:, 0].std() == pytest.approx(np.std(by_hand), rel=0.1)
    assert (pareto.drawn_medians([[3.0]], RNG(7), 4) == 3.0).all()


# --------------------------------------------------------------------------- time to a target


def test_seconds_hold_preparation_warm_up_and_refreshes():
    plain = {"step_seconds_median": 2.0, "prepare_seconds": 1.0, "refresh_every": None, "warmup_steps": math.nan}
    assert [seconds_at(plain, n) for n in (0, 1, 10)] == [1.0, 3.0, 21.0]
    lazy = {**plain, "refresh_every": 4, "refresh_seconds": 5.0}  # at steps 0, 4 and 8
    assert [seconds_at(lazy, n) for n in (0, 1, 4, 5, 10)] == [1.0, 8.0, 14.0, 21.0, 36.0]
    warm = {**plain, "warmup_steps": 3, "warmup_seconds": 10.0}
    assert [seconds_at(warm, n) for n in (2, 3, 5)] == [21.0, 31.0, 35.0]


def test_the_first_validation_that_reaches_the_target_counts():
    curve = pd.DataFrame({"step": [20, 0, 10, 30], "value": [1.4, 2.0, 1.6, 1.2]})
    assert first_at(curve, 1.4) == 20 and first_at(curve, 1.0) is None and first_at(curve, 3.0) == 0


def test_a_miss_is_infinite_in_a_profile():
    works = [
        Workload("m", "c", "C", 1.0, 5, {"a": {0: 10.0, 1: 10.0}, "b": {0: 20.0, 1: math.inf}, "rare": {0: 1.0}}),
        Workload("m", "d", "D", 1.0, 5, {"a": {0: 30.0, 1: math.inf}, "b": {0: 10.0, 1: math.inf}}),
    ]
    factors = np.array([1.0, 2.0, 3.0, 1000.0])
    found = profile(works, ["a", "b", "rare"], factors)
    assert set(found) == {"a", "b"}  # "rare" is not in every workload
    assert found["a"].tolist() == [0.5, 0.5, 0.75, 0.75] and found["b"].tolist() == [0.25, 0.5, 0.5, 0.5]
    assert score(np.array([1.0, 2.0, 3.0]), np.array([0.0, 1.0, 1.0])) == pytest.approx(0.75)


def test_a_seed_that_a_variant_is_not_planned_with_is_no_miss():
    work = Workload("m", "c", "C", 1.0, 5, {"lora": {0: 10.0, 1: 10.0, 2: 10.0}, "full": {0: 5.0}})
    found = profile([work], ["lora", "full"], np.array([1.0, 2.0]))
    assert found["full"].tolist() == [1.0, 1.0] and found["lora"].tolist() == [0.0, 1.0]  # on the seed that both have
    (page,) = profile_pages([work], styles(["lora", "full"]))
    footer = " ".join(page.get_supxlabel().split())
    assert "Share of 1 workloads (model, corpus, seed: 1 x 1)" in footer
    assert "Left out: 2 that not every method is planned with." in footer
    plt.close(page)
    work.seconds["full"] = {3: 5.0}
    assert profile([work], ["lora", "full"], np.array([1.0])) == {} and not profile_pages(
        [work], styles(["lora", "full"])
    )


def test_workloads_are_those_of_the_records(collected):
    found = {(work.model, work.corpus): work for work in workloads(collected)}
    assert set(found) == {("tiny-llama", "headlines"), ("tiny-llama", "snippets"), ("tiny-bert", "headlines")}
    work = found["tiny-bert", "headlines"]
    curves = collected.curves(["validation_loss"])
    curves = curves[(curves["model"] == "tiny-bert") & (curves["corpus"] == "headlines")]
    last = curves[curves["step"] == curves["step"].max()]
    assert work.target == last[last["variant"] == "lora"]["value"].max()
    assert all(time < math.inf for time in work.seconds["lora"].values()) and set(work.seconds["full"]) == {0, 1, 2}
    costs = collected.costs.set_index(["model", "corpus", "variant"])
    for variant, times in work.seconds.items():
        row = costs.loc["tiny-bert", "headlines", variant]
        for seed, time in times.items():
            curve = curves[(curves["variant"] == variant) & (curves["seed"] == seed)]
            steps = sorted(curve[curve["value"] <= work.target]["step"])
            assert time == (seconds_at(row.to_dict(), steps[0]) if steps else math.inf)


def test_a_reference_that_does_not_get_below_its_start_sets_no_target(collected):
    curves = collected.curves(["validation_loss"])
    here = (curves["model"] == "tiny-bert") & (curves["variant"] == "lora") & (curves["seed"] == 1)
    curves.loc[here & (curves["step"] == curves[here]["step"].max()), "value"] = 9.0
    beside = types.SimpleNamespace(
        suite=collected.suite, costs=collected.costs, runs=collected.runs, curves=lambda names: curves
    )
    works = workloads(beside)
    assert {work.model for work in works if work.seconds} == {"tiny-llama"}
    look = styles(collected.suite["variants"])
    drawn = [*target_pages(works, look), *profile_pages(works, look)]
    assert len(drawn) == 2
    for figure in drawn:
        footer = " ".join(figure.get_supxlabel().split())
        (left,) = (work.label for work in works if not work.seconds)
        assert f"does not get below its start: {left}." in footer
        assert not any(left in text.get_text() for axis in figure.axes for text in axis.texts)
        plt.close(figure)


def test_a_reference_whose_validations_are_no_numbers_sets_no_target(collected):
    curves = collected.curves(["validation_loss"])
    curves.loc[(curves["model"] == "tiny-bert") & (curves["variant"] == "lora"), "value"] = math.nan
    beside = types.SimpleNamespace(
        suite=collected.suite, costs=collected.costs, runs=collected.runs, curves=lambda names: curves
    )
    works, look = workloads(beside), styles(collected.suite["variants"])
    (left,) = (work.label for work in works if work.model == "tiny-bert")
    drawn = [*target_pages(works, look), *profile_pages(works, look)]
    assert len(drawn) == 2
    for figure in drawn:
        assert f"no validation of LoRA is a number: {left}." in " ".join(figure.get_supxlabel().split())
        plt.close(figure)


# --------------------------------------------------------------------------- table and figures


def test_the_table_holds_numbers_of_the_runs(collected):
    made = {one.model: one for one in overviews(collected)}
    runs = collected.runs[collected.runs["headline"] & (collected.runs["model"] == "tiny-llama")]
    values = {v: [g["value"].to_numpy() for _, g in rows.groupby("eval")] for v, rows in runs.groupby("variant")}
    for variant, method in made["tiny-llama"].methods.items():
        assert method.quality.value == pytest.approx(aggregate.iqm(np.concatenate(values[variant])))
        assert method.quality.low <= method.quality.value <= method.quality.high
        if variant in ("full", "dora"):
            assert method.better.value == pytest.approx(aggregate.improvement(values[variant], values["lora"]))
    assert made["tiny-llama"].methods["lora"].better is None and not made["tiny-llama"].methods["lora"].items_only
    assert made["tiny-llama"].methods["untuned"].front is None and made["tiny-llama"].methods["untuned"].items_only
    assert "majority" not in made["tiny-llama"].methods and "majority" in made["tiny-bert"].methods
    fronts = [m.front for m in made["tiny-bert"].methods.values() if m.front is not None]
    assert len(fronts) == 3 and all(0 <= share <= 1 for share in fronts) and sum(fronts) >= 1


def test_runs_and_what_an_interval_covers_are_those_of_the_shared_seeds(folder, tmp_path):
    """One method's third run fails: the others' numbers over all benchmarks rest on two seeds there, too, and say so."""
    root = tmp_path / "fake"
    shutil.copytree(folder.parent, root)
    path = root / "runs/tiny-llama/snippets/dora/seed2/train.json"
    record.write(path, {**record.read(path), "status": "oom", "reason": "memory"})
    collect.main(["--plan", str(root / "plan.json"), "--out", str(root / "collected")])
    made = {one.model: one for one in overviews(Collected(root / "collected"))}["tiny-llama"].methods
    assert [made[v].runs for v in ("full", "lora", "dora")] == [5, 5, 5]
    assert all(made[v].items_only for v in ("full", "lora", "dora"))


def test_the_same_records_give_the_same_table(folder):
    first, second = (overview_table(Collected(folder), "T") for _ in range(2))
    assert first.records == second.records and first.groups == second.groups


def test_the_table_is_written_and_two_seeds_are_told(folder, tmp_path):
    assert tables.main(["--collected", str(folder), "--out", str(tmp_path)]) == 0
    assert {"overview.md", "overview.csv", "overview.tex"} <= {p.name for p in tmp_path.iterdir()}
    two = fake_results.collected(tmp_path / "two", failures=False, corpora=("headlines",)) / "collected"
    table = overview_table(Collected(two), "T")
    assert all("*" in row[2] for group in table.groups for row in group.rows)
    assert any(note.startswith("* items only") for note in table.notes)


def test_two_runs_of_a_score_that_is_no_mean_give_no_interval_and_no_front(tmp_path):
    root = fake_results.collected(tmp_path / "fake", failures=False, seeds=(0, 1), corpora=("phrases-en-de",))
    table = overview_table(Collected(root / "collected"), "Over all")
    for row in table.groups[0].rows:
        assert re.fullmatch(r"\d+\.\d", row[2]) and re.fullmatch(r"—|\d\.\d\d", row[3]) and row[-1] == "—"
    assert all(record["iqm_low"] is None and record["front"] is None for record in table.records)
    assert any(note.startswith("No interval, nor a place on the front") for note in table.notes)


def test_figures_show_every_placed_method(collected):
    look = styles(collected.suite["variants"])
    (page,) = pareto_pages(overviews(collected), look)
    bars = [axis for axis in page.axes if axis.get_xlabel() == "on the front, %"]
    assert [[t.get_text() for t in axis.get_yticklabels()] for axis in bars] == [["Full FT", "LoRA", "DoRA"]] * 2
    drawn = figures.draw(collected)
    assert {"pareto", "time_to_target", "profile"} <= set(drawn)
    labels = drawn["profile"].legends[0].get_texts()
    assert sorted(t.get_text().split(" (")[0] for t in labels) == ["DoRA", "Full FT", "LoRA"]
