"""Fig. 1: training time per epoch and memory by method, from the ``cost`` stage, a row of panels per model and corpus.

Bars of time are the mean time per token x the epoch's tokens, whiskers the quartiles of the steps, scaled to it. Bars of
memory are live tensor bytes of a step, stacked by kind; a tick marks the peak of a training: start, warm-up and refreshes,
too. Resident memory of the process is another measure and has a panel of its own. What may not be compared bears a mark
beside its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evidence.row_marks import cost_mark_notes, mark
from evidence.style import MEMORY_KINDS, PAGE_WIDTH, Style, footer, heading, pages, row_scale, tick_names

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MIB, GIB = 2**20, 2**30
HOW = (
    "Time: mean time per token x the epoch's tokens, with its refreshes; whiskers: quartiles of the steps, scaled to it. "
    "Live tensors and RSS are different measures."
)


def cost_pages(costs: pd.DataFrame, styles: dict[str, Style]) -> list[Figure]:
    """Pages of Fig. 1, a row of panels per (model, corpus). Methods stand in the order of ``styles``."""
    groups = [rows for _, rows in costs.groupby(["model", "corpus"], sort=False) if (rows["status"] == "ok").any()]
    return [_page(groups[page], styles) for page in pages([_height(rows) for rows in groups])]


def _height(rows: pd.DataFrame) -> float:
    return 0.55 + 0.21 * len(rows) * row_scale(_names(rows))  # inches


def _names(rows: pd.DataFrame) -> list[str]:
    return tick_names([row["variant_label"] + mark(row) for _, row in rows.iterrows()])


def _page(groups: Sequence[pd.DataFrame], styles: dict[str, Style]) -> Figure:
    import matplotlib.pyplot as plt
    import pandas as pd

    heights = [_height(rows) for rows in groups]
    figure, axes = plt.subplots(
        len(groups),
        3,
        figsize=(PAGE_WIDTH, sum(heights) + 0.95),
        squeeze=False,
        height_ratios=heights,
        width_ratios=(1.0, 1.35, 0.75),
        layout="constrained",
    )
    for row, rows in zip(axes, groups, strict=True):
        order = list(styles)
        rows = rows.sort_values("variant", key=lambda column: column.map(order.index), kind="stable")
        _time(row[0], rows, styles)
        _split(row[1], rows)
        _resident(row[2], rows, styles)
        title = f"{rows['model_label'].iloc[0]}, {rows['corpus_label'].iloc[0]}"
        heading(row, title, _names(rows))
    _legend(figure)
    footer(figure, "\n".join([HOW, *cost_mark_notes(pd.concat(groups))]))
    return figure


def _time(axis, rows: pd.DataFrame, styles: dict[str, Style]) -> None:
    """Time of an epoch, in minutes or hours."""
    longest = rows["epoch_seconds_median"].max()
    unit, seconds = ("h", 3600) if longest > 3 * 3600 else ("min", 60) if longest > 90 else ("s", 1)
    for place, (_, row) in enumerate(rows.iterrows()):
        if row["status"] != "ok" or row["epoch_seconds_median"] != row["epoch_seconds_median"]:
            _say(axis, place, row["status"] if row["status"] != "ok" else "not measured")
            continue
        low, middle, high = (row[f"epoch_seconds_{name}"] / seconds for name in ("q25", "median", "q75"))
        style = styles[row["variant"]]
        axis.barh(place, middle, 0.66, color=style.colour, edgecolor="black", linewidth=0.4)
        axis.errorbar(middle, place, xerr=[[middle - low], [high - middle]], color="#555555", capsize=2, linewidth=0.9)
        _value(axis, place, max(high, middle), _amount(middle))
    steps = sorted({int(count) for count in rows["epoch_steps"].dropna()})
    counted = f" ({steps[0]:,} steps)" if len(steps) == 1 else ""
    _finish(axis, rows, f"time per epoch{counted}, {unit}")


def _split(axis, rows: pd.DataFrame) -> None:
    """Live tensor bytes by kind."""
    if "memory_peak_bytes" not in rows or not rows["memory_peak_bytes"].notna().any():
        axis.set_axis_off()
        return
    scale, unit = _scale(rows["memory_peak_bytes"])
    for place, (_, row) in enumerate(rows.iterrows()):
        if row["status"] != "ok":
            _say(axis, place, row["status"])
            continue
        left = 0.0
        for kind, (colour, _, hatch) in MEMORY_KINDS.items():
            size = row.get(f"memory_{kind}_bytes")
            if size is None or size != size:
                continue
            width = size / scale
            axis.barh(
                place, width, 0.66, left=left, color=colour, hatch=hatch, edgecolor="black", linewidth=0.4, zorder=2
            )
            left += width
        peak = row["memory_peak_bytes"] / scale
        if peak == peak:
            axis.plot([peak, peak], [place - 0.44, place + 0.44], color="black", linewidth=1.6, zorder=3)
            _value(axis, place, max(left, peak), _amount(peak))
    _finish(axis, rows, f"live tensors, {unit}", named=False)


def _resident(axis, rows: pd.DataFrame, styles: dict[str, Style]) -> None:
    """Peak resident memory of the process; on a GPU its allocated peak instead."""
    column, label = "memory_rss_peak_bytes", "process RSS peak"
    for device in ("memory_cuda_allocated_bytes", "memory_cuda_allocated_peak_bytes"):
        if device in rows and rows[device].notna().any():
            column, label = device, "GPU allocated peak"
    values = rows.get(column)
    if values is None or not values.notna().any():
        axis.set_axis_off()
        return
    scale, unit = _scale(values)
    for place, (_, row) in enumerate(rows.iterrows()):
        if row["status"] != "ok" or row[column] != row[column]:
            _say(axis, place, row["status"] if row["status"] != "ok" else "not measured")
            continue
        size = row[column] / scale
        axis.barh(place, size, 0.66, color=styles[row["variant"]].colour, edgecolor="black", linewidth=0.4)
        _value(axis, place, size, _amount(size))
    _finish(axis, rows, f"{label}, {unit}", named=False)


def _finish(axis, rows: pd.DataFrame, label: str, named: bool = True) -> None:
    """Names on the left, the first method on top, room for the numbers at the bars' ends."""
    axis.set_yticks(range(len(rows)), _names(rows) if named else [""] * len(rows))
    axis.set_ylim(len(rows) - 0.45, -0.55)
    axis.set_xlim(0, axis.dataLim.xmax * 1.22 if axis.dataLim.xmax > 0 else 1)
    axis.set_xlabel(label)
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)
    axis.locator_params(axis="x", nbins=5 if named else 4)


def _value(axis, place: int, end: float, text: str) -> None:
    axis.annotate(text, (end, place), (3, 0), textcoords="offset points", va="center", fontsize=7)


def _amount(value: float) -> str:
    """Three significant digits, and all digits of what is before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _say(axis, place: int, text: str) -> None:
    axis.annotate(
        text, (0, place), (4, 0), textcoords="offset points", va="center", fontsize=7.5, style="italic", color="#A00000"
    )


def _scale(sizes: pd.Series) -> tuple[int, str]:
    return (GIB, "GiB") if sizes.max() > 2 * GIB else (MIB, "MiB")


def _legend(figure: Figure) -> None:
    """The kinds of memory, once for the page."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    kinds = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="black", linewidth=0.4, label=label)
        for colour, label, hatch in MEMORY_KINDS.values()
    ]
    peak = Line2D([], [], color="black", linewidth=1.6, marker="", label="measured peak of a training")
    figure.legend(handles=[*kinds, peak], loc="outside upper center", ncols=5, handlelength=1.6, columnspacing=1.4)
