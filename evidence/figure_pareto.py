"""Quality against time and against memory, a row of panels per model, and each method's chance of being on the front.

Quality is the interquartile mean over benchmarks (``evidence.overview``) with its bootstrap interval. The front is of all
three: a method that either panel seems to rule out may be on it by the third.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evidence.overview import MIB, Method, Overview
from evidence.style import PAGE_WIDTH, Style, footer, heading, pages, row_scale, tick_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIKELY = 0.5
HOW = (
    "Quality: interquartile mean over the benchmarks above their floor; bars: 95 % bootstrap intervals, {}. Right: probability "
    "that no method is at least as good in quality, time and memory, and better in one; filled marks: 50 % or more. "
    "Time and memory are of one machine."
)


def pareto_pages(made: Sequence[Overview], styles: dict[str, Style]) -> list[Figure]:
    """Models with two placed methods or more."""
    shown = [one for one in made if len(_placed(one)) > 1]
    return [_page(shown[page], styles) for page in pages([_height(one, styles) for one in shown])]


def _placed(one: Overview) -> dict[str, Method]:
    return {variant: method for variant, method in one.methods.items() if method.front is not None}


def _names(one: Overview, styles: dict[str, Style]) -> list[str]:
    return tick_names([styles[variant].label for variant in _placed(one)])


def _height(one: Overview, styles: dict[str, Style]) -> float:
    names = _names(one, styles)
    return max(2.6, 0.7 + 0.17 * len(names) * row_scale(names))  # inches


def _page(made: Sequence[Overview], styles: dict[str, Style]) -> Figure:
    import matplotlib.pyplot as plt

    heights = [_height(one, styles) for one in made]
    figure, axes = plt.subplots(
        len(made),
        3,
        figsize=(PAGE_WIDTH, sum(heights) + 0.6),
        squeeze=False,
        height_ratios=heights,
        width_ratios=(1.0, 1.0, 0.65),
        layout="constrained",
    )
    for (time, memory, chance), one in zip(axes, made, strict=True):
        memory.sharey(time)
        memory.tick_params(labelleft=False)
        for place, (variant, method) in enumerate(_placed(one).items()):
            _mark(time, method.seconds, method, styles[variant])
            _mark(memory, method.memory / MIB, method, styles[variant])
            _bar(chance, place, method.front, styles[variant])
        time.set_ylabel("IQM, points of 100")
        time.set_xlabel("training, s")
        memory.set_xlabel("live tensors at their peak, MiB")
        for axis in (time, memory):
            axis.locator_params(axis="x", nbins=4)
        _finish(chance, _names(one, styles))
        count = len(one.benchmarks)
        heading([time, memory, chance], f"{one.label}, {count} benchmark{'s' * (count > 1)}")
    thin = any(method.items_only for one in made for method in _placed(one).values())
    footer(figure, HOW.format("items only" if thin else "over runs and items"))
    return figure


def _mark(axis, x: float, method: Method, style: Style) -> None:
    axis.plot([x, x], [method.quality.low, method.quality.high], color=style.colour, linewidth=0.7, alpha=0.5, zorder=1)
    axis.plot(x, method.quality.value, markersize=6.5, zorder=2, **_look(method.front, style))


def _bar(axis, place: int, share: float, style: Style) -> None:
    axis.barh(place, 100 * share, 0.55, color=style.colour, alpha=0.35, zorder=1)
    axis.plot(100 * share, place, markersize=5, clip_on=False, zorder=2, **_look(share, style))
    axis.annotate(
        f"{100 * share:.0f}", (100 * share, place), (6, 0), textcoords="offset points", va="center", fontsize=6.8
    )


def _look(share: float, style: Style) -> dict:
    """Filled where the method is likely on the front."""
    face = style.colour if share >= LIKELY else "white"
    return {"color": style.colour, "marker": style.marker, "linestyle": "", "markerfacecolor": face}


def _finish(axis, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlim(0, 112)
    axis.set_xticks((0, 50, 100))
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel("on the front, %")
