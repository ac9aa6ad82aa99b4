"""The figure of ``perf.lorsum_toy``: loss against steps, one panel a task, means over seeds with their range."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

COLOURS = {  # name in evidence.style, line
    "LoRA, SGD": ("ORANGE", "-"),
    "LoRA, AdamW": ("ORANGE", (0, (5, 1.6))),
    "ScaledGD": ("GREEN", "-"),
    "LoRSum K=1": ("SKY", "-"),
    "LoRSum K=2": ("BLUE", (0, (5, 1.6))),
    "LoRSum K=8": ("PURPLE", (0, (1.2, 1.4))),
    "SVDLoRA": ("BLACK", (0, (5, 1.4, 1.2, 1.4))),
}


def draw(toys: Sequence[Any], found: dict[str, dict[str, dict]], out: Path) -> None:
    import matplotlib.pyplot as plt

    from evidence import style

    style.use_print_style()
    figure, axes = plt.subplots(1, len(toys), figsize=(style.PAGE_WIDTH, 3.0), layout="constrained", squeeze=False)
    handles = {}
    for axis, toy in zip(axes[0], toys, strict=True):
        for label, one in found[toy.name].items():
            colour, line = COLOURS[label]
            colour, curves = getattr(style, colour), one["curves"]
            steps = np.arange(curves.shape[1]) * toy.every
            axis.fill_between(steps, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.15, linewidth=0)
            (handles[label],) = axis.plot(steps, curves.mean(axis=0), color=colour, linestyle=line, label=label)
        axis.set(yscale="log", xlabel="step", title=toy.title)
        axis.set_ylabel("training loss" if toy.name == "digits" else "excess loss / at the start")
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles), fontsize=7)
    seeds = len(next(iter(next(iter(found.values())).values()))["curves"])
    how = f"""Lines: mean of {seeds} seeds; bands: smallest to largest. Each method at the best of its rates on another seed.
Linear: excess over the best weight of that rank. LoRSum K: pairs of half steps a step."""
    style.footer(figure, how)
    for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None, "ModDate": None})):
        figure.savefig(out / f"lorsum_toy.{suffix}", metadata=metadata)
    plt.close(figure)
