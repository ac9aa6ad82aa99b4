"""Time to a stated validation loss: each run's own (``time_to_target``), and over all workloads a performance profile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evidence.style import PAGE_WIDTH, Style, footer, heading, legend_columns, pages, row_scale, tick_names
from evidence.time_to_target import MOST, Workload, profile, score, shared

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TARGETS = (
    "A mark is a run. Target: the validation loss that every run of LoRA has at its end. Seconds: preparation, steps, refreshes, "
    "as measured with the machine to itself, up to the first validation at or below the target. Right of the line: runs that "
    "never reach it, failed, or are not comparable."
)
PROFILE = (
    "Share of {} workloads (model, corpus, seed: {}) that a method trains to the target within a factor of the fastest method's "
    "time there; a miss counts as infinite. In brackets: the area under the line over factors 1 to {:g}, of 1 (AlgoPerf)."
)


def target_pages(works: Sequence[Workload], styles: dict[str, Style]) -> list[Figure]:
    """Seconds of every run, a panel per (model, corpus) that has a target."""
    timed, text = _with_target(works), f"{TARGETS}{_without_target(works)}"
    heights = [_height(work, _names(styles)) for work in timed]
    return [_page(timed[page], styles, text) for page in pages(heights)]


def profile_pages(works: Sequence[Workload], styles: dict[str, Style]) -> list[Figure]:
    """One page; none where fewer than two methods share all workloads that have a target."""
    import matplotlib.pyplot as plt
    import numpy as np

    without, works = _without_target(works), _with_target(works)
    factors = np.geomspace(1, MOST, 400)
    shares = profile(works, list(styles), factors)
    if len(shares) < 2:
        return []
    even = np.linspace(1, MOST, 3000)
    scores = {v: score(even, row) for v, row in profile(works, list(styles), even).items()}
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH, 4.4), layout="constrained")
    for place, variant in enumerate(sorted(shares, key=lambda v: -scores[v])):
        style, first = styles[variant], int(80 * place / len(shares))  # lines on one another show all their markers
        look = {"color": style.colour, "linestyle": style.line, "marker": style.marker, "markersize": 4.5}
        label = f"{style.label} ({scores[variant]:.2f})"
        axis.step(factors, shares[variant], where="post", markevery=(first, 80), label=label, **look)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlim(1, MOST)
    axis.set_ylim(-0.02, 1.04)
    axis.set_xlabel("factor of the fastest method's time to the target")
    axis.set_ylabel("share of workloads")
    labels = [f"{style.label} (0.00)" for style in styles.values()]
    figure.legend(loc="outside upper center", ncols=legend_columns(labels), handlelength=2.6)
    footer(figure, _how(works, list(styles)) + without)
    return [figure]


def _how(works: Sequence[Workload], variants: list[str]) -> str:
    """How to read the profile, with the workloads that it counts and those that it leaves out."""
    names, counted = shared(works, variants)
    of = f"{len({id(work) for work, _ in counted})} x {len({seed for _, seed in counted})}"
    planned = sum(len({seed for v in names for seed in work.seconds[v]}) for work in works)
    left = f" Left out: {planned - len(counted)} that not every method is planned with."
    return PROFILE.format(len(counted), of, MOST) + left * (planned > len(counted))


def _with_target(works: Sequence[Workload]) -> list[Workload]:
    return [work for work in works if work.seconds and math.isfinite(work.target)]


def _without_target(works: Sequence[Workload]) -> str:
    left = {
        "a run of LoRA does not get below its start": [w.label for w in works if not w.seconds],
        "no validation of LoRA is a number": [w.label for w in works if w.seconds and not math.isfinite(w.target)],
    }
    return "".join(f" No target, as {why}: {'; '.join(labels)}." for why, labels in left.items() if labels)


def _names(styles: dict[str, Style]) -> dict[str, str]:
    """Each variant's name as it stands beside its row."""
    return dict(zip(styles, tick_names([style.label for style in styles.values()]), strict=True))


def _height(work: Workload, names: dict[str, str]) -> float:
    return 0.75 + 0.19 * len(work.seconds) * row_scale(list(names.values()))


def _page(works: Sequence[Workload], styles: dict[str, Style], text: str) -> Figure:
    import matplotlib.pyplot as plt

    names = _names(styles)
    heights = [_height(work, names) for work in works]
    figure, axes = plt.subplots(
        len(works),
        1,
        figsize=(PAGE_WIDTH, sum(heights) + 0.5),
        squeeze=False,
        height_ratios=heights,
        layout="constrained",
    )
    for axis, work in zip(axes[:, 0], works, strict=True):
        variants = [v for v in styles if v in work.seconds]
        longest = max(s for row in work.seconds.values() for s in row.values() if s < math.inf)
        for place, variant in enumerate(variants):
            style, times = styles[variant], sorted(work.seconds[variant].values())
            reached = [t for t in times if t < math.inf]
            axis.plot(
                reached, [place] * len(reached), color=style.colour, marker=style.marker, linestyle="", alpha=0.85
            )
            if missed := len(times) - len(reached):
                axis.annotate(
                    f"{missed} of {len(times)} not reached", (1.06 * longest, place), (4, 0), textcoords="offset points",
                    va="center", fontsize=7, style="italic", color="#A00000",
                )  # fmt: skip
        axis.axvline(1.06 * longest, color="#888888", linewidth=0.8)
        axis.set_xlim(0, 1.3 * longest)
        axis.set_yticks(range(len(variants)), [names[v] for v in variants])
        axis.set_ylim(len(variants) - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
        axis.set_xlabel(f"seconds to a validation loss of {work.target:.3f} ({work.validations} validations a run)")
        heading([axis], work.label, list(names.values()))
    footer(figure, text)
    return figure
