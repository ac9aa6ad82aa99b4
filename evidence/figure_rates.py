"""Fig. 4: validation loss against learning rate, a panel per model and corpus, where a suite searched (learning_rates.py).

A point is the mean over seeds, the filled one is chosen; a rate with a run that failed or may not be compared is a cross on
the upper edge, and a loss above the axis a narrow triangle. The dotted line is the loss before training, above which a rate
did harm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evidence.learning_rates import Search, searches, tuned_searches
from evidence.names import LOSS_UNITS, label_of
from evidence.style import PAGE_WIDTH, Style, footer, grid_pages, legend_columns, panel_title

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PANEL_HEIGHT = 2.9  # inches
ACROSS = 2
EDGE, BELOW = 0.97, 0.065  # of the panel's height: marks at the upper edge, and from one to the next under it
NARROW = ((-0.45, -1.0), (0.0, 1.0), (0.45, -1.0), (-0.45, -1.0))  # a triangle that no method has for its points
ABOVE = " A narrow triangle at the top: a loss above the axis, which ends a little above that before training{}."
TRIALS = (
    "A point is a trial, {} a method{}. Filled: the chosen one, of the lowest validation loss. A cross at the top: that trial "
    "failed. Dotted: validation loss before training. " + LOSS_UNITS
)
HOW = (
    "Points: mean validation loss over seeds at the end of training; filled: the lowest, which is chosen. A cross at the top: "
    "a run failed, is missing, stale or from other software.\nDotted: validation loss before training. " + LOSS_UNITS
)


def rate_pages(runs: pd.DataFrame, trials: pd.DataFrame, styles: dict[str, Style]) -> list[Figure]:
    """Pages of Fig. 4, none where the suite searched no rates. A suite that tunes shows its trials."""
    found = tuned_searches(trials) or searches(runs)
    panels: dict[tuple[str, str], list[Search]] = {}
    for search in found:
        panels.setdefault((search.model, search.corpus), []).append(search)
    return [_page(page, runs, styles) for page in grid_pages(list(panels.values()), ACROSS, PANEL_HEIGHT)]


def _page(panels: Sequence[list[Search]], runs: pd.DataFrame, styles: dict[str, Style]) -> Figure:
    import matplotlib.pyplot as plt

    across = min(ACROSS, len(panels))
    rows = -(-len(panels) // across)
    size = (PAGE_WIDTH, PANEL_HEIGHT * rows + 0.75)
    figure, axes = plt.subplots(rows, across, figsize=size, squeeze=False, layout="constrained")
    drawn: dict[str, object] = {}
    cut = False
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, group in zip(axes.flat, panels, strict=False):
        panel_title(axis, group[0].model_label, group[0].corpus_label)
        here = runs[(runs["model"] == group[0].model) & (runs["corpus"] == group[0].corpus)]
        before = here["validation_first"].dropna()
        for search in group:
            drawn.setdefault(_label(search), _draw(axis, search, styles[search.variant]))
        if len(before):
            axis.axhline(before.mean(), color="#888888", linewidth=0.8, linestyle=":", zorder=1)
        _finish(axis, group, before.mean() if len(before) else None)
        cut |= _mark_edge(axis, group, styles)
    figure.legend(
        drawn.values(), drawn.keys(), loc="outside upper center", ncols=legend_columns(list(drawn)), handlelength=2.6
    )
    found = [search for group in panels for search in group]
    footer(figure, _how(found) + (ABOVE.format(_of_seeds(found)) if cut else ""))
    return figure


def _how(found: list[Search]) -> str:
    """How to read the figure; of a suite that tunes, how many trials there are."""
    if not any(search.tuned for search in found):
        return HOW
    trials, seeds = found[0].trials, found[0].seeds
    each = f", each the mean of {seeds} tuning seeds (small dots)" if seeds > 1 else ", of one tuning seed"
    others = (
        "" if all(search.joined for search in found) else " Points without a line: other fields were searched, too."
    )
    return TRIALS.format(trials, each) + others


def _of_seeds(found: list[Search]) -> str:
    return " (small: of a seed)" if any(len(p.losses) > 1 for search in found for p in search.points.values()) else ""


def _label(search: Search) -> str:
    return label_of(search.setting)


def _draw(axis, search: Search, style: Style):
    good = {rate: point.loss for rate, point in search.points.items() if point.loss is not None}
    look = {"color": style.colour, "linestyle": style.line, "marker": style.marker}
    look["linestyle"] = look["linestyle"] if search.joined else ""
    (line,) = axis.plot(good.keys(), good.values(), markerfacecolor="white", markersize=5, **look)
    for rate, point in search.points.items():
        if len(point.losses) > 1:
            axis.plot([rate] * len(point.losses), point.losses, ".", color=style.colour, markersize=3, zorder=1)
    if search.best is not None:
        axis.plot([search.best], [good[search.best]], color=style.colour, marker=style.marker, markersize=7)
    return line


def _mark_edge(axis, group: list[Search], styles: dict[str, Style]) -> bool:
    """Crosses and triangles at the upper edge, under one another at the same rate; whether any loss is above the axis."""
    top, across, taken, cut = axis.get_ylim()[1], axis.get_xaxis_transform(), Counter(), False
    for search in group:
        colour = styles[search.variant].colour
        for rate, point in search.points.items():
            failed, above = point.loss is None, point.loss is not None and point.loss > top
            seed_above = len(point.losses) > 1 and max(point.losses) > top
            cut |= above or seed_above
            if not (failed or above or seed_above):
                continue
            height = EDGE - BELOW * taken[rate]
            taken[rate] += 1
            face, size = (colour if rate == search.best else "white"), (6 if failed else 8 if above else 4)
            axis.plot(
                rate, height, marker="x" if failed else NARROW, color=colour, markerfacecolor=face, markersize=size,
                transform=across, zorder=3,
            )  # fmt: skip
    return cut


def _finish(axis, group: list[Search], before: float | None) -> None:
    """Logarithmic, the loss too where it spans much; up to little above that before training, where any loss is lower: what
    rose beyond is cut."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_xscale("log")
    axis.set_xlabel("learning rate")
    axis.set_ylabel("validation loss")
    losses = [point.loss for search in group for point in search.points.values() if point.loss is not None]
    if not losses:
        return
    low, high = min(losses), max(losses)
    if before:
        high = min(high, 1.15 * before) if low < 1.15 * before else high
        low = min(low, before)
    if low > 0:
        margin = (high / low) ** 0.06
        axis.set_ylim(low / margin, high * margin)
    elif high > low:  # a loss of 0 has no place on a logarithmic axis
        axis.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    if high > 3 * low > 0:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
