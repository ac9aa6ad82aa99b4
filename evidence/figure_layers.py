"""Fig. 3: lambda of every adapted matrix over training, for the variants that log it, a row per model, corpus and variant.

Left a heat map, matrices in the order of the forward pass against optimizer steps, all on one scale; right the median
over the matrices with the band that holds the middle 80 % of them. Both are means over the seeds that ended well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evidence.figure_curves import MOST_POINTS
from evidence.row_marks import clean
from evidence.style import DIVERGING, PAGE_WIDTH, Style, footer, heading, pages

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NAME = "lambda"
ROW_HEIGHT = 2.1  # inches
SCALE = "λ: weight of the low-rank branch"
HOW = (
    "Left: every adapted matrix, numbered in the order of the forward pass. Right: line: median over the matrices; band: "
    "10th to 90th percentile.\nMeans over the seeds that ended well. λ = 1: low-rank branch alone; λ = 0: rotation alone."
)


def layer_pages(curves: pd.DataFrame, styles: dict[str, Style]) -> list[Figure]:
    """Pages of Fig. 3 from rows (model, corpus, variant, seed, status, stale, step, name, layer, value)."""
    found = curves.groupby(["model", "corpus", "variant"], sort=False, observed=True)
    groups = sorted((rows for _, rows in found), key=lambda rows: list(styles).index(rows["variant"].iloc[0]))
    groups.sort(key=lambda rows: _first(curves, rows))
    return [_page(groups[page], styles) for page in pages([ROW_HEIGHT] * len(groups))]


def _first(curves: pd.DataFrame, rows: pd.DataFrame) -> int:
    """Where the model and corpus of these rows first stand: panels of one pair stay together."""
    same = (curves["model"] == rows["model"].iloc[0]) & (curves["corpus"] == rows["corpus"].iloc[0])
    return int(same.to_numpy().argmax())


def _page(groups: Sequence[pd.DataFrame], styles: dict[str, Style]) -> Figure:
    import matplotlib.pyplot as plt
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    size, widths = (PAGE_WIDTH, ROW_HEIGHT * len(groups) + 1.0), (1.5, 1.0)
    figure, axes = plt.subplots(len(groups), 2, figsize=size, squeeze=False, width_ratios=widths, layout="constrained")
    scale = ScalarMappable(Normalize(0.0, 1.0), DIVERGING)
    for row, rows in zip(axes, groups, strict=True):
        heading(row, f"{rows['model_label'].iloc[0]}, {rows['corpus_label'].iloc[0]}")
        style = styles[rows["variant"].iloc[0]]
        good = clean(rows)
        table, width = by_layer(good)
        if len(table):
            _heat(row[0], table, width, scale)
            _spread(row[1], table, style)
        seeds = good["seed"].nunique()
        counted = f"{seeds} seed{'s' * (seeds != 1)}" if seeds else "no run ended well"
        row[1].text(0.03, 0.96, f"{style.label}: {counted}", transform=row[1].transAxes, va="top", fontsize=7.5)
        _finish(row, width)
    bar = {
        "location": "bottom",
        "ticks": (0, 0.25, 0.5, 0.75, 1),
        "aspect": 45,
        "shrink": 0.6,
        "pad": 0.06 / len(groups),
    }
    figure.colorbar(scale, ax=axes, label=SCALE, **bar)
    footer(figure, HOW)
    return figure


def by_layer(rows: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """(matrices, steps) of means over seeds, and the width of a bin in steps.

    Only steps that every seed reached count; more than 200 of them become bins, whose mean is taken. A variant with one
    lambda for the whole model has one row.
    """
    reached = rows.groupby("step")["seed"].nunique()
    steps = reached.index[reached == rows["seed"].nunique()]
    width = max(1, -(-len(steps) // MOST_POINTS))
    rows = rows[rows["step"].isin(steps)]
    numbers = rows["layer"].astype(str).replace("", "0").astype(int)
    table = rows.assign(number=numbers, bin=rows["step"] // width * width)
    return table.pivot_table(index="number", columns="bin", values="value", aggfunc="mean", observed=True), width


def _heat(axis, table: pd.DataFrame, width: int, scale) -> None:
    extent = (table.columns[0] - 0.5, table.columns[-1] + width - 0.5, -0.5, len(table) - 0.5)
    axis.imshow(
        table, cmap=scale.cmap, norm=scale.norm, extent=extent, origin="lower", aspect="auto", interpolation="nearest"
    )


def _spread(axis, table: pd.DataFrame, style: Style) -> None:
    low, middle, high = (table.quantile(part) for part in (0.1, 0.5, 0.9))
    axis.fill_between(table.columns, low, high, color=style.colour, alpha=0.2, linewidth=0)
    axis.plot(table.columns, middle, color=style.colour, linestyle=style.line)


def _finish(row: Sequence, width: int) -> None:
    from matplotlib.ticker import MaxNLocator

    for axis in row:
        axis.set_xlabel("optimizer step" + (f" (bins of {width})" if width > 1 else ""))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    row[0].set_ylabel("adapted matrix")
    row[0].yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    row[0].grid(visible=False)
    row[1].set_ylabel("λ")
    row[1].set_ylim(0, 1)
    row[1].axhline(0.5, color="#888888", linewidth=0.6, zorder=1)
