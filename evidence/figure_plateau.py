"""Fig. 5: quality against trained parameters, for methods that a suite trains at several sizes (Does LoRA level off?).

Each size's learning rate is the one of the lowest validation loss among those that the suite tried at that size
(``learning_rates.py``); the point is that variant's mean test score with its interval over items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evidence.labels import benchmarks
from evidence.learning_rates import Search, settings
from evidence.names import FAMILIES
from evidence.pools import Panel, Pool
from evidence.score_table import metric_label
from evidence.style import GREY, PAGE_WIDTH, Style, footer, grid_pages, legend_columns, panel_title

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PANEL_HEIGHT = 2.9  # inches
ACROSS = 2
LEAST = 3  # sizes of a method that make a line
HOW = (
    "Points: mean test score over seeds, bars: 95 % intervals over items. At each size the learning rate of the lowest "
    "validation loss,\namong those that the suite tried there. Dashed: full fine-tuning, at its own best rate."
)


def plateau_pages(runs: pd.DataFrame, panels: Sequence[Panel], styles: dict[str, Style]) -> list[Figure]:
    """Pages with a panel per benchmark and model; none where no method has several sizes."""
    drawn, called = [], benchmarks(panels)
    for panel in panels:
        if panel.headline:
            for model in dict.fromkeys(m for _, m in panel.pools):
                here = [s for s in settings(runs) if (s.model, s.corpus) == (model, panel.corpus)]
                lines = ladders(here)
                if lines:
                    full = [search for search in here if search.method == "full"]
                    drawn.append((panel, called[panel.corpus, panel.eval], model, lines, full))
    return [_page(page, styles) for page in grid_pages(drawn, ACROSS, PANEL_HEIGHT)]


def ladders(found: Sequence[Search]) -> dict[str, list[Search]]:
    """Methods with at least three sizes, each size's setting, by the number of parameters that it trains."""
    by_method: dict[str, dict[int, Search]] = {}
    for search in found:
        if search.best is not None and (size := search.points[search.best].trained):
            by_method.setdefault(search.method, {})[size] = search
    return {m: [sizes[n] for n in sorted(sizes)] for m, sizes in by_method.items() if len(sizes) >= LEAST}


def _page(drawn: Sequence[tuple], styles: dict[str, Style]) -> Figure:
    import matplotlib.pyplot as plt

    rows = -(-len(drawn) // ACROSS)
    size = (PAGE_WIDTH, PANEL_HEIGHT * rows + 0.75)
    figure, axes = plt.subplots(rows, ACROSS, figsize=size, squeeze=False, layout="constrained")
    handles: dict[str, object] = {}
    for axis in axes.flat[len(drawn) :]:
        axis.set_axis_off()
    for axis, (panel, benchmark, model, lines, full) in zip(axes.flat, drawn, strict=False):
        for method, ladder in lines.items():
            handles.setdefault(FAMILIES.get(method, method), _line(axis, panel, model, ladder, styles))
        for search in full:
            pool = _chosen(panel, model, search)
            if pool and pool.used:
                axis.axhline(pool.spread.mean, color=GREY, linewidth=0.9, linestyle="--", zorder=1)
        axis.set_xscale("log")
        axis.set_xlabel("trained parameters")
        axis.set_ylabel(metric_label(panel))
        panel_title(axis, lines[next(iter(lines))][0].model_label, benchmark)
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=legend_columns(list(handles)))
    footer(figure, HOW)
    return figure


def _chosen(panel: Panel, model: str, search: Search) -> Pool | None:
    return panel.pools.get((search.points[search.best].variant, model)) if search.best is not None else None


def _line(axis, panel: Panel, model: str, ladder: Sequence[Search], styles: dict[str, Style]):
    """A method's sizes from small to large."""
    style = styles[ladder[0].variant]
    found = [(s.points[s.best].trained, pool) for s in ladder if (pool := _chosen(panel, model, s)) and pool.used]
    sizes, means = [size for size, _ in found], [pool.spread.mean for _, pool in found]
    (line,) = axis.plot(sizes, means, color=style.colour, linestyle=style.line, marker=style.marker, markersize=5)
    for size, pool in found:
        if pool.interval is not None:
            axis.plot([size, size], [pool.interval.low, pool.interval.high], color=style.colour, linewidth=0.9)
    return line
