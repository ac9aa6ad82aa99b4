"""Long names of variants, models and benchmarks: nothing leaves the page, covers its neighbour or takes a panel's room."""

from __future__ import annotations

import json
import warnings

import fake_results
import pytest
from test_evidence_figures import assert_on_the_page, shown

from evidence import collect, figures
from evidence.collected import Collected
from evidence.style import TICK_WIDTH, tick_names

MIDDLE = "lora-r16-alpha32-all-linear-lr1e-4-decay0.1"
LONG = "an-extremely-long-variant-name-that-somebody-chose-to-say-everything-in-it-rank-64-alpha-128"
DRAWN = ("scores", "fig1_time_memory", "pareto")


@pytest.fixture(scope="module", params=[MIDDLE, LONG], ids=["43 characters", "90 characters"])
def drawn(request, tmp_path_factory):
    """Figures of a suite with such names; with the longer ones, of such models and benchmarks, too."""
    folder = tmp_path_factory.mktemp("names") / "fake"
    variants = {"full": "full", "lora": "lora", request.param: "lora", request.param + "-b": "lora"}
    plan_path = fake_results.build(folder, failures=False, corpora=("headlines", "snippets"), variants=variants)
    plan = json.loads(plan_path.read_text())
    if request.param == LONG:
        for cell in plan["cells"]:
            cell["model_label"] = f"A model whose label names its maker, size, tuning and quantisation: {cell['model']}"
    plan_path.write_text(json.dumps(plan))
    collect.main(["--plan", str(plan_path), "--out", str(folder / "collected")])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # "axes sizes collapsed to zero"
        made = figures.draw(Collected(folder / "collected"))
        for name in DRAWN:
            made[name].draw_without_rendering()
    return {name: made[name] for name in DRAWN}


def test_everything_stays_on_the_page(drawn):
    for name, figure in drawn.items():
        assert_on_the_page(name, figure)


def test_names_do_not_cover_one_another_and_leave_the_panel_its_room(drawn):
    for name, figure in drawn.items():
        for axis in figure.axes:
            if not axis.axison:
                continue
            assert axis.get_window_extent().width / figure.dpi > 0.8, name
            boxes = [label.get_window_extent() for label in shown(axis.yaxis)]
            assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :]), name


def test_names_lose_nothing_and_usual_ones_stay_on_their_line():
    usual = ["LoRA r=16 (PEFT)", "DPI-GLRP block r=128"]
    assert tick_names(usual) == usual
    (name,) = tick_names([LONG])
    assert name.replace("\n", "") == LONG and all(len(line) <= TICK_WIDTH for line in name.split("\n"))
