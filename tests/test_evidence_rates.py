"""The search over learning rates: what counts as one, what is chosen, what its table and figure say."""

from __future__ import annotations

import json
import types

import pandas as pd
import pytest

from evidence import tables, trials
from evidence.figure_rates import NARROW, rate_pages
from evidence.layout import csv_text, markdown
from evidence.learning_rates import rates_table, searches, settings
from evidence.names import LOSS_UNITS
from evidence.style import styles, use_print_style
from evidence.summary import summary

NONE = pd.DataFrame(columns=trials.COLUMNS)  # of a suite that does not tune
NO_ITEMS = pd.DataFrame(columns=("model", "corpus", "variant", "eval", "seed", "item", "grade", "value"))
COLUMNS = ("variant", "method", "seed", "status", "validation_last", "hyperparameters")


def row(variant, rate, loss, method="lora", seed=7, status="ok", model="tiny", **fields):
    """One run: its method's fields are the rate and the others."""
    hyperparameters = json.dumps({"learning_rate": rate, "rank": 4, **fields})
    values = dict(zip(COLUMNS, (variant, method, seed, status, loss, hyperparameters), strict=True))
    labels = {"model": model, "model_label": model, "corpus": "rows", "corpus_label": "Rows"}
    return {
        **labels,
        **values,
        "variant_label": variant,
        "stale": "",
        "other_stack": "",
        "validation_first": 0.7,
        "eval": "rows",
        "parameters_trained": 1000,
    }


ROWS = [
    row("lora-1e-4", 1e-4, 0.62),
    row("lora-1e-3", 1e-3, 0.50),
    row("lora-1e-3", 1e-3, 0.54, seed=8),
    row("lora-1e-4", 1e-4, 0.60, seed=8),
    row("lora-1e-2", 1e-2, 0.40, status="diverged"),
    row("lora-r8", 1e-3, 0.1, rank=8),  # another method setting: no search of its own, as it has one rate
    row("hybrid-a", 1e-4, 0.58, "hybrid", orthogonal_learning_rate=1e-3),
    row("hybrid-b", 1e-3, 0.59, "hybrid", orthogonal_learning_rate=1e-2),
    {**row("untuned", 0.0, None, "untuned"), "hyperparameters": ""},
]


@pytest.fixture
def runs():
    return pd.DataFrame(ROWS)


def test_a_search_is_variants_that_differ_by_rates_alone(runs):
    found = {search.method: search for search in searches(runs)}
    assert set(found) == {"lora", "hybrid"}
    assert list(found["lora"].points) == [1e-4, 1e-3, 1e-2]
    assert list(found["hybrid"].points) == [1e-4, 1e-3]  # both branches' rates move, the first names the point


def test_two_settings_of_a_method_are_told_apart():
    rates, names = (1e-3, 1e-2), ("k1", "plain")
    rows = [row(f"lorsum-{n}-{rate:.0e}", rate, 0.6, "lorsum", setting=n) for n in names for rate in rates]
    assert [search.setting for search in searches(pd.DataFrame(rows))] == ["lorsum-k1", "lorsum-plain"]
    assert [search.setting for search in searches(pd.DataFrame(ROWS))] == ["lora", "hybrid"]  # hybrid-a, hybrid-b


def test_the_lowest_mean_over_seeds_is_chosen_and_a_failure_never(runs):
    lora = next(search for search in searches(runs) if search.method == "lora")
    assert lora.points[1e-3] == ("lora-1e-3", pytest.approx(0.52), "ok", 1000, ())
    assert lora.points[1e-2][1:3] == (None, "diverged")
    assert lora.best == 1e-3 and lora.seeds == 2 and not lora.at_edge
    assert next(search for search in searches(runs) if search.method == "hybrid").at_edge


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"stale": "train"}, "stale"),
        ({"other_stack": "torch 1 (2)"}, "other software"),
        ({"validation_last": None}, "not a number"),
    ],
)
def test_a_rate_with_a_run_that_may_not_be_compared_is_never_chosen(runs, change, status):
    lowest = (runs["variant"] == "lora-1e-3") & (runs["seed"] == 8)
    lora = searches(runs.assign(**{name: runs[name].where(~lowest, value) for name, value in change.items()}))[0]
    assert lora.points[1e-3][1:3] == (None, status) and lora.best == 1e-4


def test_a_score_without_a_number_keeps_no_rate_from_being_chosen(runs):
    assert searches(runs.assign(status=runs["status"].replace("ok", "no value")))[0].best == 1e-3


def test_rates_of_one_decade_have_heads_of_their_own():
    rates = (1e-4, 1.5e-4, 2e-6)
    runs = pd.DataFrame([row(f"lora-{rate:g}", rate, 1.0 - 1000 * rate) for rate in rates])
    table = rates_table(types.SimpleNamespace(runs=runs), "T")
    assert table.heads[0][1] == ["2e-06", "0.0001", "0.00015"] and table.groups[0].rows[0][-2] == "0.00015 (edge)"


def test_a_rate_that_lacks_a_seed_of_the_others_is_never_chosen_and_says_so(runs):
    missing = (runs["variant"] == "lora-1e-3") & (runs["seed"] == 8)  # as it never ran, nothing tells its rate
    table = rates_table(
        types.SimpleNamespace(runs=runs.assign(hyperparameters=runs["hyperparameters"].mask(missing, ""))), "T"
    )
    assert table.groups[0].rows[0] == ["lora", "[0.6100]", "1 of 2 seeds", "diverged", "0.0001 (edge)", "2"]


def test_a_run_with_two_evals_counts_once(runs):
    twice = pd.concat([runs, runs.assign(eval="other")])
    assert searches(twice) == searches(runs)


def test_the_table_marks_the_choice_and_names_failures(runs):
    table = rates_table(types.SimpleNamespace(runs=runs), "Rates")
    lora, hybrid = table.groups[0].rows
    assert lora == ["lora", "0.6100", "[0.5200]", "diverged", "0.001", "2"]
    assert hybrid == ["hybrid", "[0.5800]", "0.5900", "", "0.0001 (edge)", "1"]
    assert table.heads[0][0] == "Validation loss at learning rate" and LOSS_UNITS in table.notes
    assert "[0.5200]" in markdown(table).replace("\\", "") and "diverged" in csv_text(table)


def test_a_search_that_scores_nothing_has_a_table_and_a_summary(runs, tmp_path):
    unscored = runs[runs["hyperparameters"] != ""].assign(eval="", headline=False, metric="", stage="train", reason="")
    collected = types.SimpleNamespace(
        runs=unscored,
        costs=unscored[:0],
        trials=NONE,
        items=pd.DataFrame(),
        suite={"suite": "rates", "models": ["tiny"], "variants": []},
    )
    text, complete = summary(collected, None)
    assert "[0.5200]" in text and "diverged in train" in text and not complete
    good = types.SimpleNamespace(**{**vars(collected), "runs": unscored[unscored["status"] == "ok"]})
    assert "All 7 rows have a result." in summary(good, None)[0]


def test_a_suite_without_a_search_has_neither(runs):
    single = runs[runs["variant"].isin(["lora-r8", "untuned"])]
    assert rates_table(types.SimpleNamespace(runs=single), "Rates") is None
    assert rate_pages(single, NONE, {}) == []


def test_the_figure_has_a_panel_a_model_and_a_line_a_method(runs):
    use_print_style()
    both = pd.concat([runs, runs.assign(model="small", model_label="small")])
    (page,) = rate_pages(both, NONE, styles(list(dict.fromkeys(runs["variant"]))))
    shown = [axis for axis in page.axes if axis.axison]
    assert {axis.get_ylabel() for axis in shown} == {"validation loss"}
    assert LOSS_UNITS in " ".join(page.get_supxlabel().split())
    assert [axis.get_title() for axis in shown] == ["tiny\nRows", "small\nRows"]
    assert [text.get_text() for text in page.legends[0].get_texts()] == ["LoRA", "Hybrid"]
    filled = [line for line in shown[0].lines if len(line.get_xdata()) == 1]
    assert [line.get_xdata()[0] for line in filled if line.get_marker() != "x"] == [1e-3, 1e-4]


def lone(losses, before, **more):
    """One method at rates 1e-5, 1e-4, ..."""
    rows = [row(f"lora-{i}", 10.0 ** (i - 5), loss, **more) for i, loss in enumerate(losses)]
    return pd.DataFrame(rows).assign(validation_first=before)


def drawn(runs):
    """The only panel of a figure, its triangles by rate, and its caption."""
    use_print_style()
    (page,) = rate_pages(runs, NONE, styles(list(dict.fromkeys(runs["variant"]))))
    triangles = [line for line in page.axes[0].lines if line.get_marker() == NARROW]
    return page.axes[0], triangles, " ".join(page.get_supxlabel().split())


def test_a_loss_above_the_axis_is_a_triangle_at_its_edge_and_the_caption_says_so():
    axis, triangles, caption = drawn(lone([0.5, 0.4, 0.9, 1.5], 0.7))
    low, high = axis.get_ylim()
    assert low < 0.4 < 0.7 < high < 0.9
    assert [line.get_xdata()[0] for line in triangles] == [1e-3, 1e-2]
    assert all(0.9 < line.get_ydata()[0] < 1 for line in triangles) and "A narrow triangle at the top" in caption


def test_where_every_rate_does_harm_all_are_on_an_upright_axis():
    axis, triangles, caption = drawn(lone([3.0, 3.2, 4.0], 2.0))
    low, high = axis.get_ylim()
    assert low < 2.0 < 4.0 < high and not triangles and "triangle" not in caption


def test_marks_at_the_edge_at_one_rate_lie_under_one_another():
    good, bad = lone([0.5, 0.4, 0.9], 0.7), lone([0.5, 0.6, 1.2], 0.7, rank=8)
    bad["variant"] += "-r8"
    _, triangles, _ = drawn(pd.concat([good, bad]))
    heights = [line.get_ydata()[0] for line in triangles]
    assert len(heights) == 2 and heights[0] - heights[1] > 0.03


# --------------------------------------------------------------------------- quality against size

SIZES = {4: 1000, 8: 2000, 16: 4000}


def sized(rank, rate, loss):
    made = row(f"lora-r{rank}-{rate:g}", rate, loss, rank=rank)
    return {**made, "parameters_trained": SIZES[rank], "metric": "accuracy", "headline": True}


@pytest.fixture
def ladder():
    """Three sizes at two rates each, the better rate another one at the middle size; and full fine-tuning."""
    rows = [sized(rank, rate, loss) for rank, low, high in ((4, 0.5, 0.6), (8, 0.5, 0.4), (16, 0.3, 0.4))
            for rate, loss in ((1e-4, low), (1e-3, high))]  # fmt: skip
    full = {**row("full", 1e-5, 0.3, "full"), "parameters_trained": 9000, "metric": "accuracy", "headline": True}
    return pd.DataFrame([*rows, full])


def test_each_size_takes_its_own_rate_by_validation(ladder):
    from evidence.figure_plateau import ladders

    (sizes,) = ladders(settings(ladder)).values()
    assert [search.points[search.best].variant for search in sizes] == [
        "lora-r4-0.0001",
        "lora-r8-0.001",
        "lora-r16-0.0001",
    ]
    assert [search.points[search.best].trained for search in sizes] == [1000, 2000, 4000]
    assert ladders(settings(ladder[ladder["variant"].str.contains("r4|r8")])) == {}  # two sizes are no line


def test_the_plateau_draws_the_chosen_variants_scores_and_full_fine_tuning(ladder):
    from evidence.figure_plateau import plateau_pages
    from evidence.pools import Panel, Pool
    from evidence.stats import Interval, spread

    scores = {variant: 50.0 + place for place, variant in enumerate(ladder["variant"])}
    pools = {(v, "tiny"): Pool([], spread([s]), Interval(s - 1, s + 1, "items"), (7,), "", 100, None)
             for v, s in scores.items()}  # fmt: skip
    panel = Panel("rows", "rows", "accuracy", ladder.assign(eval_label="Rows", unit="%", generated=False), pools)
    use_print_style()
    (page,) = plateau_pages(ladder, [panel], styles(list(scores)))
    line, *_ = [line for line in page.axes[0].lines if len(line.get_xdata()) == 3]
    assert list(line.get_xdata()) == [1000, 2000, 4000] and list(line.get_ydata()) == [50.0, 53.0, 54.0]
    dashed = [line for line in page.axes[0].lines if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in dashed] == [56.0]


def test_a_suite_that_only_trains_has_an_empty_folder_of_tables(tmp_path, monkeypatch):
    trained = types.SimpleNamespace(
        suite={"suite": "s"}, runs=pd.DataFrame([{**row("lora", 1e-3, 0.5), "eval": ""}]), items=NO_ITEMS
    )
    monkeypatch.setattr(tables, "Labelled", lambda folder: trained)
    for name in ("score_table", "difference_table", "cost_table", "rates_table", "tuning_table", "overview_table"):
        monkeypatch.setattr(tables, name, lambda collected, title, **more: None)
    assert tables.main(["--collected", "x", "--out", str(tmp_path / "paper")]) == 0
    assert list((tmp_path / "paper").iterdir()) == []
