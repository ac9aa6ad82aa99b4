"""Fig. 4: validation loss against learning rate, a panel per model and corpus, where a suite searched (learning_rates.py).

A point is the mean over seeds, the filled one is chosen; a rate with a run that failed or may not be compared is a cross on
the upper edge. The dotted line is the loss before training, above which a rate did harm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from evidence.learning_rates import Search, searches, tuned_searches
from evidence.names import LOSS_UNITS, label_of
from evidence.style import PAGE_WIDTH, Style, footer, legend_columns, panel_title

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PANEL_HEIGHT = 2.9  # inches
ACROSS = 2
TRIALS = (
    "A point is a trial, {} a method{}. Filled: the chosen one, of the lowest validation loss. A cross at the top: that trial "
    "failed. Dotted: validation loss before training. " + LOSS_UNITS
)
HOW = (
    "Points: mean validation loss over seeds at the end of training; filled: the lowest, which is chosen. A cross at the top: "
    "a run failed, is missing, stale or from other software.\nDotted: validation loss before training. " + LOSS_UNITS
)


def rate_pages(runs: pd.DataFrame, trials: pd.DataFrame, styles: dict[str, Style]) -> list[Figure]:
    """One page, or none where the suite searched no rates. A suite that tunes shows its trials."""
    found = tuned_searches(trials) or searches(runs)
    panels: dict[tuple[str, str], list[Search]] = {}
    for search in found:
        panels.setdefault((search.model, search.corpus), []).append(search)
    return [_page(panels, runs, styles)] if panels else []


def _page(panels: dict[tuple[str, str], list[Search]], runs: pd.DataFrame, styles: dict[str, Style]) -> Figure:
    import matplotlib.pyplot as plt

    across = min(ACROSS, len(panels))
    rows = -(-len(panels) // across)
    size = (PAGE_WIDTH, PANEL_HEIGHT * rows + 0.75)
    figure, axes = plt.subplots(rows, across, figsize=size, squeeze=False, layout="constrained")
    drawn: dict[str, object] = {}
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, ((model, corpus), group) in zip(axes.flat, panels.items(), strict=False):
        panel_title(axis, group[0].model_label, group[0].corpus_label)
        here = runs[(runs["model"] == model) & (runs["corpus"] == corpus)]
        before = here["validation_first"].dropna()
        for search in group:
            drawn.setdefault(_label(search), _draw(axis, search, styles[search.variant]))
        if len(before):
            axis.axhline(before.mean(), color="#888888", linewidth=0.8, linestyle=":", zorder=1)
        _finish(axis, group, before.mean() if len(before) else None)
    figure.legend(
        drawn.values(), drawn.keys(), loc="outside upper center", ncols=legend_columns(list(drawn)), handlelength=2.6
    )
    footer(figure, _how([search for group in panels.values() for search in group]))
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
    failed = [rate for rate in search.points if rate not in good]
    if failed:  # an empty line would stand at the figure's corner
        axis.plot(failed, [0.97] * len(failed), "x", color=style.colour, transform=axis.get_xaxis_transform())
    return line


def _finish(axis, group: list[Search], before: float | None) -> None:
    """Logarithmic, the loss too where it spans much; up to little above that before training: what rose beyond is cut."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_xscale("log")
    axis.set_xlabel("learning rate")
    axis.set_ylabel("validation loss")
    losses = [point.loss for search in group for point in search.points.values() if point.loss is not None]
    if not losses:
        return
    low, high = min(losses), max(losses)
    high = min(high, 1.15 * before) if before else high
    margin = (high / low) ** 0.06
    axis.set_ylim(low / margin, high * margin)
    if high > 3 * low > 0:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
