"""Expected best validation loss after k trials, a panel per model and corpus, where a suite tunes (expected_best.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evidence.expected_best import expected_best
from evidence.names import LOSS_UNITS
from evidence.style import PAGE_WIDTH, Style, footer, grid_pages, legend_columns, panel_title
from evidence.trials import Tried, tried

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PANEL_HEIGHT, ACROSS = 2.9, 2  # inches; panels side by side
HOW = (
    "Mean over all orders of a method's trials (n = {}, mean over {} tuning seed{}) of the lowest validation loss "
    "among the first k (Dodge et al. 2019; unbiased form of Tang et al. 2020). Bands: where it lies in 95 % of the orders; they "
    "say nothing of other trials or seeds. A failed trial counts as the loss before training. " + LOSS_UNITS
)


def best_pages(trials: pd.DataFrame, styles: dict[str, Style]) -> list[Figure]:
    """Pages of panels, none where the suite does not tune."""
    panels: dict[tuple[str, str], list[Tried]] = {}
    for search in tried(trials):
        if counted(search):
            panels.setdefault(search.cell[:2], []).append(search)
    return [_page(page, styles) for page in grid_pages(list(panels.values()), ACROSS, PANEL_HEIGHT)]


def counted(search: Tried) -> list[float]:
    """A loss for each trial: a failed one leaves the model as it was before training. Empty where that is unknown."""
    before = next((trial.before for trial in search.trials if trial.before is not None), None)
    losses = [before if trial.loss is None else trial.loss for trial in search.trials]
    return [] if None in losses else losses


def _page(panels: Sequence[list[Tried]], styles: dict[str, Style]) -> Figure:
    import matplotlib.pyplot as plt

    across = min(ACROSS, len(panels))
    rows = -(-len(panels) // across)
    size = (PAGE_WIDTH, PANEL_HEIGHT * rows + 0.9)
    figure, axes = plt.subplots(rows, across, figsize=size, squeeze=False, layout="constrained")
    drawn: dict[str, object] = {}
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, group in zip(axes.flat, panels, strict=False):
        panel_title(axis, group[0].identity["model_label"], group[0].identity["corpus_label"])
        for search in group:
            drawn.setdefault(styles[search.cell[2]].label, _draw(axis, search, styles[search.cell[2]]))
        axis.set_xlabel("trials, k")
        axis.set_ylabel("expected best validation loss")
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(
        drawn.values(), drawn.keys(), loc="outside upper center", ncols=legend_columns(list(drawn)), handlelength=2.6
    )
    first = panels[0][0]
    footer(figure, HOW.format(len(first.trials), len(first.seeds), "s" if len(first.seeds) > 1 else ""))
    return figure


def _draw(axis, search: Tried, style: Style):
    curve = expected_best(counted(search))
    steps = [point.k for point in curve]
    axis.fill_between(
        steps,
        [point.low for point in curve],
        [point.high for point in curve],
        color=style.colour,
        alpha=0.1,
        linewidth=0,
    )
    look = {"color": style.colour, "linestyle": style.line, "marker": style.marker, "markersize": 4.5}
    (line,) = axis.plot(steps, [point.expected for point in curve], **look)
    return line
