"""Figures of many models: pages that fit, none of their panels lost; and a loss of exactly 0."""

from __future__ import annotations

import pandas as pd
import pytest
from test_evidence_rates import NONE, ladder, lone, row  # noqa: F401
from test_evidence_tuning import evidence  # noqa: F401

from evidence.figure_best import best_pages
from evidence.figure_plateau import plateau_pages
from evidence.figure_rates import rate_pages
from evidence.figure_scores import score_pages
from evidence.pools import Panel, Pool
from evidence.stats import Interval, spread
from evidence.style import PAGE_HEIGHT, styles, use_print_style

MODELS = 24  # three pages and half another


def times(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of one model, under the names of many."""
    return pd.concat([frame.assign(model=f"m{i}", model_label=f"Model {i}") for i in range(MODELS)], ignore_index=True)


def titles(pages) -> list[str]:
    for page in pages:
        assert page.get_figheight() < PAGE_HEIGHT + 1
    return [axis.get_title().partition("\n")[0] for page in pages for axis in page.axes if axis.axison]


@pytest.fixture(autouse=True)
def _style():
    import matplotlib.pyplot as plt

    use_print_style()
    yield
    plt.close("all")


def test_rates_of_many_models_take_several_pages():
    runs = times(lone([0.5, 0.4, 0.6], 0.7))
    pages = rate_pages(runs, NONE, styles(list(dict.fromkeys(runs["variant"]))))
    assert len(pages) == 4 and titles(pages) == [f"Model {i}" for i in range(MODELS)]


def test_expected_bests_of_many_models_take_several_pages(evidence):  # noqa: F811
    pages = best_pages(times(evidence.trials), styles(["full", "lora"]))
    assert len(pages) == 4 and titles(pages) == [f"Model {i}" for i in range(MODELS)]


def panel_of(runs: pd.DataFrame, corpus: str = "rows") -> Panel:
    """Made-up scores of these runs."""
    pool = Pool([], spread([50.0]), Interval(49.0, 51.0, "items"), (7,), "", 100, None)
    facts = runs.assign(
        eval_label="Rows", unit="%", generated=False, corpus_label=corpus, metric="accuracy", headline=True, n_items=100,
        lower_is_better=False, floor=None,
    )  # fmt: skip
    return Panel(
        corpus, "rows", "accuracy", facts, {key: pool for key in zip(runs["variant"], runs["model"], strict=True)}
    )


def test_plateaus_of_many_models_take_several_pages(ladder):  # noqa: F811
    runs = times(ladder)
    pages = plateau_pages(runs, [panel_of(runs)], styles(list(dict.fromkeys(runs["variant"]))))
    assert len(pages) == 4 and titles(pages) == [f"Model {i}" for i in range(MODELS)]


def test_scores_of_one_eval_after_two_corpora_name_the_corpus():
    runs = pd.DataFrame([row("lora", 1e-3, 0.5)])
    made = [panel_of(runs, "one"), panel_of(runs, "two")]
    (page,) = score_pages(made, {"tiny": "Tiny"}, styles(["lora"]))
    assert [axis.get_title(loc="left").partition("\n")[0] for axis in page.axes if axis.axison] == [
        "Rows after one",
        "Rows after two",
    ]


def test_a_loss_of_exactly_zero_is_drawn():
    runs = lone([0.5, 0.0, 0.6], 0.7)
    (page,) = rate_pages(runs, NONE, styles(list(dict.fromkeys(runs["variant"]))))
    low, high = page.axes[0].get_ylim()
    assert low < 0 < 0.6 < high and page.axes[0].get_yscale() == "linear"
