"""Scores at a glance: a mark per method with its interval over items, a circle per run, a panel per benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from evidence.labels import benchmarks
from evidence.pools import Panel, Pool
from evidence.score_notes import UNRESOLVED
from evidence.score_table import metric_label
from evidence.style import GREY, PAGE_WIDTH, Style, beside, footer, pages, row_scale, tick_names, width, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 2
COLUMN_WIDTH, SPILL = 3.4, 0.15  # inches of a panel with its names, and by how much a label under the axis may be wider
TITLE_WIDTH, USUAL_LINES = 40, 5  # characters of a title's line; lines that a row's height has room for
HOW = "Bars: 95 % intervals over items, seeds as they are. Small circles: single runs. Dashed: the metric's floor."


class Shown(NamedTuple):
    """What a panel shows: methods from top to bottom in the suite's order, ``names`` beside the axis, ``title`` by line."""

    panel: Panel
    model: str
    variants: list[str]
    names: list[str]
    title: list[str]


def score_pages(panels: Sequence[Panel], labels: dict[str, str], styles: dict[str, Style]) -> list[Figure]:
    """Pages of panels, one per (benchmark, metric, model). ``labels``: names of the models."""
    drawn, called = [], benchmarks(panels)
    for panel in panels:
        models = {model for _, model in panel.pools}
        said = called[panel.corpus, panel.eval]
        drawn += [_shown(panel, model, (said, labels[model]), styles) for model in labels if model in models]
    rows = [drawn[i : i + COLUMNS] for i in range(0, len(drawn), COLUMNS)]
    return [_page(rows[page], styles) for page in pages([_height(row) for row in rows])]


def _shown(panel: Panel, model: str, called: tuple[str, str], styles: dict[str, Style]) -> Shown:
    variants = [variant for variant in styles if (pool := panel.pools.get((variant, model))) and not pool.absent]
    names = tick_names([styles[variant].label for variant in variants])
    items = panel.range("n_items")
    said = (*called, f"{items} items" if items else "", UNRESOLVED if panel.unresolved(model) else "")
    inches = COLUMN_WIDTH - beside(names)
    return Shown(
        panel, model, variants, names, [line for text in said for line in wrapped(text, inches, 8.5, TITLE_WIDTH)]
    )


def _height(row: Sequence[Shown]) -> float:
    """Inches of a row of panels. Names of one line give way to a title of some more lines, those of several cannot."""
    found = []
    for one in row:
        scale = row_scale(one.names)
        spare = USUAL_LINES if scale == 1 else 2
        found.append(1.0 + 0.2 * len(one.names) * scale + 0.15 * max(0, len(one.title) - spare))
    return max(found)


def _page(rows: Sequence[Sequence[Shown]], styles: dict[str, Style]) -> Figure:
    import matplotlib.pyplot as plt

    drawn, heights = [one for row in rows for one in row], [_height(row) for row in rows]
    size = (PAGE_WIDTH, sum(heights) + 0.25)
    figure, axes = plt.subplots(
        len(heights), COLUMNS, figsize=size, squeeze=False, height_ratios=heights, layout="constrained"
    )
    figure.get_layout_engine().set(h_pad=0.06, w_pad=0.08)
    for axis, one in zip(axes.flat, drawn, strict=False):
        _draw(axis, one, styles)
    for axis in axes.flat[len(drawn) :]:
        axis.set_axis_off()
    footer(figure, HOW)
    return figure


def _draw(axis, one: Shown, styles: dict[str, Style]) -> None:
    panel, model = one.panel, one.model
    for place, variant in enumerate(one.variants):
        _row(axis, place, panel.pools[variant, model], styles[variant])
    floor = panel.first("floor", None)
    limits = axis.dataLim
    if floor is not None and limits.width > 0 and limits.xmin - 0.3 * limits.width <= floor:
        axis.axvline(floor, color=GREY, linewidth=0.8, linestyle=(0, (3, 2)), zorder=0)
    axis.set_yticks(range(len(one.names)), one.names)
    axis.set_ylim(len(one.names) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.margins(x=0.06)
    better = "lower" if panel.first("lower_is_better", False) else "higher"
    measured, direction = metric_label(panel) or "no score yet", f"({better} is better)"
    fits = width(f"{measured} {direction}", 8) <= COLUMN_WIDTH + SPILL - beside(one.names)
    axis.set_xlabel((" " if fits else "\n").join((measured, direction)))
    axis.set_title("\n".join(one.title), loc="left", linespacing=1.25)
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
