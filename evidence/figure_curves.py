"""Fig. 2: gradient norm and validation loss side by side, by optimizer step, a row of panels per model and corpus.

Lines are means over the seeds that ended well, bands their smallest and largest value; more than ``MOST_BANDS`` of them
would hide one another and are left out. A run that failed is drawn by
itself, thin, up to a cross where it stopped: it enters no mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evidence.names import LOSS_UNITS
from evidence.row_marks import clean
from evidence.style import PAGE_WIDTH, Style, footer, heading, legend_columns, pages

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

ROW_HEIGHT, CROWDED_HEIGHT = 1.9, 2.9  # inches
MOST_BANDS = 8
HOW = (
    "Lines: means over seeds{bands}. A thin line that ends in a cross: a run that failed there. "
    f"{LOSS_UNITS} Runs that are stale or come from other software are left out."
)
MOST_POINTS = 200
MARKER_SIZES = {"*": 7, "P": 5, "X": 5}  # points; stars and crosses fill less of theirs
SIDES = {"gradient_norm": "gradient norm\n(before clipping)", "validation_loss": "validation loss"}


def curve_pages(curves: pd.DataFrame, styles: dict[str, Style]) -> list[Figure]:
    """Pages of Fig. 2 from rows (model, corpus, variant, seed, status, stale, step, name, value)."""
    groups = [rows for _, rows in curves.groupby(["model", "corpus"], sort=False, observed=True)]
    crowded = len(styles) > MOST_BANDS
    height = CROWDED_HEIGHT if crowded else ROW_HEIGHT
    return [_page(groups[page], styles, height, not crowded) for page in pages([height] * len(groups))]


def _page(groups: Sequence[pd.DataFrame], styles: dict[str, Style], height: float, bands: bool) -> Figure:
    import matplotlib.pyplot as plt

    size = (PAGE_WIDTH, height * len(groups) + 0.75)
    figure, axes = plt.subplots(len(groups), 2, figsize=size, squeeze=False, layout="constrained")
    drawn: dict[str, object] = {}
    for row, rows in zip(axes, groups, strict=True):
        for axis, (name, label) in zip(row, SIDES.items(), strict=True):
            panel = rows[rows["name"] == name]
            for place, (variant, style) in enumerate(styles.items()):
                every_point = name == "validation_loss"
                line = _draw(axis, panel[panel["variant"] == variant], style, None if every_point else place, bands)
                if line is not None:
                    drawn.setdefault(variant, line)
            _finish(axis, panel, label)
        title = f"{rows['model_label'].iloc[0]}, {rows['corpus_label'].iloc[0]}"
        heading(row, title)
    labels = [styles[variant].label for variant in styles if variant in drawn]
    handles = [drawn[variant] for variant in styles if variant in drawn]
    columns = legend_columns(labels)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, handlelength=2.6, columnspacing=1.4)
    footer(figure, HOW.format(bands="; bands: smallest to largest" if bands else ""))
    return figure


def _draw(axis, rows: pd.DataFrame, style: Style, place: int | None, band: bool):
    """One method's mean and, if wanted, band, and its failed seeds. Returns the line for the legend, None if there is nothing.

    ``place``: the method's among the others, so that their eight markers stand beside one another; None: one a point.
    """
    if not len(rows):
        return None
    look = {"color": style.colour, "linestyle": style.line}
    good = clean(rows)
    for _, seed in rows[(rows["status"] != "ok")].groupby("seed"):
        seed = seed.sort_values("step")
        axis.plot(seed["step"], seed["value"], linewidth=0.7, alpha=0.8, **look)
        last = seed[seed["value"].notna()].iloc[-1:]
        axis.plot(last["step"], last["value"], "x", markersize=6, markeredgewidth=1.4, color=style.colour, zorder=5)
    if not len(good):
        return None
    table, width = binned(good)
    every = max(1, len(table) // 8) if place is not None else 1
    marker = {"marker": style.marker, "markevery": ((place or 0) % every, every), "markeredgecolor": "white"}
    marker["markersize"] = MARKER_SIZES.get(style.marker, 4)
    if style.marker in ("x", "|"):
        marker["markeredgecolor"] = style.colour
    marker["markeredgewidth"] = 0.4
    (line,) = axis.plot(table.index, table["mean"], **look, **marker)
    if band and good["seed"].nunique() > 1:
        axis.fill_between(table.index, table["min"], table["max"], color=style.colour, alpha=0.16, linewidth=0)
    axis.bin_width = max(getattr(axis, "bin_width", 1), width)
    return line


def binned(rows: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Mean, min and max over seeds by step, and the width of a bin in steps.

    Only steps that every seed reached count. More than 200 points become bins, whose mean, smallest and largest value
    are taken over their steps' means, minima and maxima.
    """
    by_step = rows.groupby("step")["value"].agg(["mean", "min", "max", "count"])
    by_step = by_step[by_step["count"] == rows["seed"].nunique()]
    width = -(-len(by_step) // MOST_POINTS)
    if width > 1:
        groups = by_step.groupby(by_step.index // width * width)
        by_step = groups.agg({"mean": "mean", "min": "min", "max": "max"})
    return by_step, max(width, 1)


def _finish(axis, panel: pd.DataFrame, label: str) -> None:
    """Labels, and a logarithmic axis for gradient norms, which differ between methods by their number of parameters."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if not len(panel):
        axis.text(0.5, 0.5, "no curve yet", transform=axis.transAxes, ha="center", style="italic", color="#A00000")
    width = getattr(axis, "bin_width", 1)
    axis.set_xlabel("optimizer step" + (f" (bins of {width})" if width > 1 else ""))
    axis.set_ylabel(label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    values = panel["value"].dropna()
    if label.startswith("gradient") and len(values) and (values > 0).all():
        axis.set_yscale("log")
        ratio = values.max() / values.min()
        marks = LogLocator(subs=(1, 2, 5) if ratio < 100 else (1,), numticks=12)
        axis.yaxis.set_major_locator(marks if ratio > 5 else MaxNLocator(nbins=4))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
