"""Fig. 6: where the chosen blocks of SMT lie, from the facts of the trainings, a row per model, corpus and variant.

Left: in each layer's q, k and v, in percent of all chosen blocks, stacked. Right: the share of each role, beside the one
that it would have if blocks were chosen at random. Both are means over the seeds that ended well.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evidence.row_marks import clean
from evidence.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PAGE_WIDTH,
    PURPLE,
    SKY,
    VERMILION,
    YELLOW,
    Style,
    footer,
    heading,
    pages,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

ROW_HEIGHT = 2.1  # inches
ROLES = {
    "q": (BLUE, ""),
    "k": (ORANGE, "////"),
    "v": (GREEN, "...."),
    "o": (VERMILION, "xxxx"),
    "gate": (PURPLE, "\\\\\\\\"),
    "up": (SKY, "----"),
    "down": (YELLOW, "++++"),
}
"""Colour and hatching (for black and white) of a role."""
FUSED = (GREY, "")
HOW = (
    "Left: chosen blocks in each layer, in percent of all that were chosen. Right: bars: a role's share of the chosen "
    "blocks; lines: of all candidates.\nMeans over the seeds that ended well. Layers are numbered from 0, the first."
)


def block_pages(runs: pd.DataFrame, styles: dict[str, Style]) -> list[Figure]:
    """Pages of Fig. 6 from rows with a cell, ``status``, ``stale``, ``other_stack`` and ``facts`` (JSON)."""
    facts = runs["facts"].map(lambda text: json.loads(text) if text else {})
    runs = runs.assign(facts=facts)[facts.map(lambda known: "chosen_blocks" in known)]
    found = runs.groupby(["model", "corpus", "variant"], sort=False, observed=True)
    groups = [rows for _, rows in found]
    return [_page(groups[page], styles) for page in pages([ROW_HEIGHT] * len(groups))]


def shares(facts: Sequence[dict]) -> dict[str, tuple[list[float], float]]:
    """By role: percent of all chosen blocks in each layer, means over trainings; and percent of all candidates."""
    found = {}
    for role, of_layers in facts[0]["chosen_blocks"].items():
        by_layer = [0.0] * len(of_layers)
        for known in facts:
            for layer, count in enumerate(known["chosen_blocks"][role]):
                by_layer[layer] += 100 * count / known["blocks"] / len(facts)
        candidates = facts[0]["candidate_blocks"]
        found[role] = by_layer, 100 * candidates[role] / sum(candidates.values())
    return found


def _page(groups: Sequence[pd.DataFrame], styles: dict[str, Style]) -> Figure:
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    size, widths = (PAGE_WIDTH, ROW_HEIGHT * len(groups) + 0.9), (1.9, 1.0)
    figure, axes = plt.subplots(len(groups), 2, figsize=size, squeeze=False, width_ratios=widths, layout="constrained")
    roles: dict[str, None] = {}
    for row, rows in zip(axes, groups, strict=True):
        heading(row, f"{rows['model_label'].iloc[0]}, {rows['corpus_label'].iloc[0]}")
        good = clean(rows)
        good = good.drop_duplicates("seed")  # a training has a row for each metric
        found = shares(list(good["facts"])) if len(good) else {}
        roles |= dict.fromkeys(found)
        _layers(row[0], found)
        _totals(row[1], found)
        counted = f"{len(good)} seed{'s' * (len(good) != 1)}" if len(good) else "no run ended well"
        label = f"{styles[rows['variant'].iloc[0]].label}: {counted}"
        row[0].text(0.02, 0.96, label, transform=row[0].transAxes, va="top", fontsize=7.5)
    keys = [Patch(label=role, **_look(role)) for role in roles]
    if keys:
        figure.legend(handles=keys, loc="outside upper center", ncols=len(keys), handlelength=1.6, columnspacing=1.4)
    footer(figure, HOW)
    return figure


def _look(role: str) -> dict:
    colour, hatch = ROLES.get(role, FUSED)
    return {"facecolor": colour, "hatch": hatch, "edgecolor": "black", "linewidth": 0.4}


def _layers(axis, found: dict[str, tuple[list[float], float]]) -> None:
    from matplotlib.ticker import MaxNLocator

    below: list[float] = []
    for role, (by_layer, _) in found.items():
        below = below or [0.0] * len(by_layer)
        axis.bar(range(len(by_layer)), by_layer, 0.8, bottom=below, **_look(role))
        below = [low + more for low, more in zip(below, by_layer, strict=True)]
    axis.set_ylim(0, 1.25 * max(below, default=1.0))  # room for the label
    axis.set_xlabel("layer")
    axis.set_ylabel("chosen blocks, %")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    axis.grid(axis="x", visible=False)


def _totals(axis, found: dict[str, tuple[list[float], float]]) -> None:
    for place, (role, (by_layer, at_random)) in enumerate(found.items()):
        axis.barh(place, sum(by_layer), 0.66, **_look(role))
        axis.plot([at_random, at_random], [place - 0.44, place + 0.44], color="black", linewidth=1.6)
    axis.set_yticks(range(len(found)), list(found))
    axis.set_ylim(len(found) - 0.45, -0.55)
    axis.set_xlim(0, 100)
    axis.set_xlabel("share of the chosen blocks, %")
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)
