"""Figures of ``perf.projector``: products against the gap; what a basis costs and what it misses."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from evidence.style import (
    BLACK,
    BLUE,
    DASHED,
    GREEN,
    GREY,
    ORANGE,
    PAGE_WIDTH,
    PURPLE,
    SKY,
    VERMILION,
    footer,
    use_print_style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOMENTA = {"none": ("plain", BLACK, "s"), "static": ("static momentum", BLUE, "^")}
MOMENTA |= {"dynamic": ("dynamic momentum", VERMILION, "o")}
LOOKS = {"svd": (GREY, "s"), "gram": (BLACK, "D"), "block": (VERMILION, "o"), "block of 4": (ORANGE, "v")}
LOOKS |= {"power": (PURPLE, "h"), "static": (SKY, "^"), "dynamic": (GREEN, "p")}


def draw(found: dict, yardstick: str, out: Path) -> None:
    """``projector_gap`` and ``projector``, each as PNG and PDF, of what there is."""
    use_print_style()
    if found["gaps"]:
        save(gap_figure(found["gaps"]), out / "projector_gap")
    if found["spectra"]:
        rest = found["whole"], found["seconds"], yardstick
        save(cost_figure(found["settings"], found["spectra"], *rest), out / "projector")


def save(figure: Figure, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(path.with_suffix(".png"), metadata={"Software": None})
    figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None, "ModDate": None})
    plt.close(figure)


def gap_figure(rows: list[dict]) -> Figure:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(PAGE_WIDTH / 2, 2.9), layout="constrained")
    for momentum, (label, colour, marker) in MOMENTA.items():
        found = sorted((row for row in rows if row["momentum"] == momentum), key=lambda row: row["gap"])
        gap = [row["gap"] for row in found]
        middle = [row["products"] for row in found]
        errors = [
            [row["products"] - row["products_low"] for row in found],
            [row["products_high"] - row["products"] for row in found],
        ]
        axis.errorbar(
            gap, middle, errors, color=colour, marker=marker, capsize=2, linewidth=0.9, linestyle="", label=label
        )
        if momentum != "dynamic":  # its theory is static momentum's
            axis.plot(gap, [row["theory"] for row in found], color=colour, linestyle=DASHED, linewidth=0.9)
    axis.set(xscale="log", yscale="log", xlabel="gap between eigenvalues, 1 − λ₂/λ₁", ylabel="products with C")
    axis.invert_xaxis()
    axis.legend(loc="upper left")
    footer(
        figure, f"To an angle of 1e-6; {rows[0]['seeds']} seeds: median, 10 to 90 %.\nDashed: by the rates of theory."
    )
    return figure


def cost_figure(settings: dict, spectra: list[dict], whole: list[dict], seconds: dict, yardstick: str) -> Figure:
    """On the left seconds of a refresh of the whole model, on the right missed energy against time of one matrix."""
    import matplotlib.pyplot as plt

    timed = [row for row in whole if "seconds" in row]
    height = max(3.0, 0.9 + 0.21 * (len(timed) + 1))
    figure, axes = plt.subplots(1, 2 if timed else 1, figsize=(PAGE_WIDTH, height), layout="constrained", squeeze=False)
    if timed:
        bars(axes[0, 0], timed, statistics.median(seconds[yardstick]), yardstick)
    missed(axes[0, -1], spectra)
    how = "Right: one matrix; filled: from a near basis; sizes: i^-0.25, i^-0.5, i^-1."
    if timed:
        how = f"Left: {settings['matrices']} matrices of {settings['model']}; figures: median energy captured. " + how
    footer(figure, f"{how}\n{settings['threads']} threads, float32.")
    return figure


def bars(axis: Axes, rows: list[dict], theirs: float, yardstick: str) -> None:
    labels = [f"{row['label']}, r = {row['rank']}" for row in rows]
    colours = [LOOKS[row["builder"]][0] for row in rows]
    axis.barh(range(len(rows)), [row["seconds"] for row in rows], 0.7, color=colours, edgecolor="black", linewidth=0.4)
    for place, row in enumerate(rows):
        text = f"{row['seconds']:.2g} s, {row['energy']:.4f}"
        axis.annotate(text, (row["seconds"], place), (3, 0), textcoords="offset points", va="center", fontsize=6.5)
    axis.barh([len(rows)], [theirs], 0.7, color=GREY, hatch="////", edgecolor="black", linewidth=0.4)
    axis.annotate(f"{theirs:.2g} s", (theirs, len(rows)), (3, 0), textcoords="offset points", va="center", fontsize=6.5)
    name = "galore-torch" if yardstick == "galore-torch" else "LAPACK's SVD"
    axis.set_yticks(range(len(rows) + 1), [*labels, name])
    axis.set_ylim(len(rows) + 0.6, -0.6)
    axis.set(xscale="log", xlabel="seconds of a refresh of all matrices")
    low, high = axis.get_xlim()
    axis.set_xlim(low, high * 6)  # room for the figures
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)


def missed(axis: Axes, rows: list[dict]) -> None:
    """Of the largest shape at rank 32, or what is nearest to it."""
    ranks = {row["rank"] for row in rows}
    rank = 32 if 32 in ranks else max(ranks)
    shape = rows[-1]["shape"]
    sizes = {spectrum: 14 + 16 * place for place, spectrum in enumerate(dict.fromkeys(row["spectrum"] for row in rows))}
    named = set()
    for row in rows:
        if (row["rank"], row["shape"]) != (rank, shape) or row["builder"] in ("svd", "gram"):
            continue
        colour, marker = LOOKS[row["builder"]]
        label = row["label"].split(",")[0] + ("," + row["label"].split(",")[1] if row["builder"] != "block" else "")
        label = None if row["builder"] in named else label
        named.add(row["builder"])
        filled = colour if row["start"] == "warm" else "white"
        lost = max(1 - row["energy"], 1e-7)
        axis.scatter(
            row["seconds"],
            lost,
            sizes[row["spectrum"]],
            color=filled,
            edgecolors=colour,
            marker=marker,
            label=label,
            linewidths=0.9,
        )
    axis.set(
        xscale="log", yscale="log", xlabel=f"seconds, {shape.replace('x', ' × ')}, r = {rank}", ylabel="energy missed"
    )
    axis.axhline(0.01, color="#888888", linewidth=0.7, linestyle=(0, (4, 2)))
    axis.set_ylim(top=3)  # room for the legend
    axis.legend(fontsize=6.5, loc="upper right", labelspacing=0.3)
