"""Scores at a glance: a mark per method with its interval over items, a circle per run, a panel per benchmark."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evidence.labels import benchmarks
from evidence.pools import Panel, Pool
from evidence.score_notes import UNRESOLVED
from evidence.score_table import metric_label
from evidence.style import GREY, PAGE_WIDTH, Style, footer, pages

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 2
TITLE_WIDTH = 40  # characters
HOW = "Bars: 95 % intervals over items, seeds as they are. Small circles: single runs. Dashed: the metric's floor."


def score_pages(panels: Sequence[Panel], labels: dict[str, str], styles: dict[str, Style]) -> list[Figure]:
    """Pages of panels, one per (benchmark, metric, model). ``labels``: names of the models."""
    drawn, called = [], benchmarks(panels)
    for panel in panels:
        models = {model for _, model in panel.pools}
        drawn += [(panel, model, called[panel.corpus, panel.eval]) for model in labels if model in models]
    rows = [drawn[i : i + COLUMNS] for i in range(0, len(drawn), COLUMNS)]
    return [_page(rows[page], labels, styles) for page in pages([_height(row) for row in rows])]


def _height(row: Sequence[tuple[Panel, str, str]]) -> float:
    """Inches of a row of panels."""
    methods = [sum(m == model and not pool.absent for (_, m), pool in panel.pools.items()) for panel, model, _ in row]
    return 1.0 + 0.2 * max(methods)


def _page(rows: Sequence[Sequence[tuple[Panel, str, str]]], labels: dict[str, str], styles: dict[str, Style]) -> Figure:
    import matplotlib.pyplot as plt

    drawn, heights = [shown for row in rows for shown in row], [_height(row) for row in rows]
    size = (PAGE_WIDTH, sum(heights) + 0.25)
    figure, axes = plt.subplots(
        len(heights), COLUMNS, figsize=size, squeeze=False, height_ratios=heights, layout="constrained"
    )
    figure.get_layout_engine().set(h_pad=0.06, w_pad=0.08)
    for axis, (panel, model, benchmark) in zip(axes.flat, drawn, strict=False):
        _draw(axis, panel, model, (benchmark, labels[model]), styles)
    for axis in axes.flat[len(drawn) :]:
        axis.set_axis_off()
    footer(figure, HOW)
    return figure


def _draw(axis, panel: Panel, model: str, names: tuple[str, str], styles: dict[str, Style]) -> None:
    """One panel: methods from top to bottom in the suite's order. ``names``: the benchmark's and the model's."""
    shown = [variant for variant in styles if (pool := panel.pools.get((variant, model))) and not pool.absent]
    for place, variant in enumerate(shown):
        _row(axis, place, panel.pools[variant, model], styles[variant])
    floor = panel.first("floor", None)
    limits = axis.dataLim
    if floor is not None and limits.width > 0 and limits.xmin - 0.3 * limits.width <= floor:
        axis.axvline(floor, color=GREY, linewidth=0.8, linestyle=(0, (3, 2)), zorder=0)
    axis.set_yticks(range(len(shown)), [styles[variant].label for variant in shown])
    axis.set_ylim(len(shown) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.margins(x=0.06)
    better = "lower" if panel.first("lower_is_better", False) else "higher"
    axis.set_xlabel(f"{metric_label(panel) or 'no score yet'} ({better} is better)")
    items = panel.range("n_items")
    said = (*names, f"{items} items" if items else "", UNRESOLVED if panel.unresolved(model) else "")
    lines = [textwrap.fill(text, TITLE_WIDTH) for text in said if text]
    axis.set_title("\n".join(lines), loc="left", linespacing=1.25)
    if panel.unresolved(model):
        axis.set_facecolor("#F0F0F0")


def _row(axis, place: int, pool: Pool, style: Style) -> None:
    """The average with its interval, each run as a small circle; what is not in it, in words on the right."""
    if pool.used and pool.interval:
        axis.plot([pool.interval.low, pool.interval.high], [place, place], color=style.colour, linewidth=1.4, zorder=2)
    used = [run.value for run in pool.runs if run.seed in pool.used]
    if len(used) > 1:
        line = {"linestyle": "", "marker": "o", "markersize": 2.6, "markerfacecolor": "none"}
        axis.plot(used, [place + 0.34] * len(used), color=style.colour, zorder=3, **line)
    if pool.used:
        thin = style.marker in ("|", "x")
        look = {"markersize": 7 if thin or style.marker == "*" else 5.5, "markeredgewidth": 1.6 if thin else 0.5}
        edge = style.colour if thin else "black"
        axis.plot(pool.spread.mean, place, style.marker, color=style.colour, markeredgecolor=edge, zorder=4, **look)
    if left_out := _left_out(pool):
        words = {"fontsize": 7, "style": "italic", "color": "#A00000", "va": "center"}
        frame = {"xycoords": axis.get_yaxis_transform(), "textcoords": "offset points"}
        axis.annotate(left_out, (1.0, place), (3, 0), **frame, **words)


def _left_out(pool: Pool) -> str:
    """The runs that are not in the average, or make it one that stands aside: "oom" of a single run, "1 oom" of several."""
    kinds = [
        run.status if run.value is None else "stale" if run.stale else "other stack"
        for run in pool.runs
        if run.seed not in pool.used or run.mark
    ]
    return ", ".join(f"{kinds.count(k)} {k}" if len(pool.runs) > 1 else k for k in dict.fromkeys(kinds))
