"""One label, colour, marker and line style per method, the same in every table and figure.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; a family of methods (see ``names``) keeps its
colour for ever, and marker and line tell methods of one colour apart. Imports matplotlib only when a figure is drawn.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evidence.names import family_of, label_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE_WIDTH, PAGE_HEIGHT = 7.2, 8.8  # inches, of a page in two columns; the height leaves room for a caption
TICK_WIDTH, LEAST_WIDTH = 26, 12  # characters of a tick label's line; of any line at least
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE, GREY = "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#7F7F7F"
BROWN = "#7A4A2A"  # no colour of Okabe and Ito's: the eighth that readers of any sight tell from the others on white
DIVERGING = "PuOr_r"  # of a share between two parts: purple at 0, white at a half, orange at 1


@dataclass(frozen=True)
class Style:
    colour: str
    marker: str
    line: str | tuple
    label: str


DASHED, DOTTED, DASHDOT = (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (5, 1.4, 1.2, 1.4))
FAMILY_STYLES = {
    "untuned": (GREY, "|", DOTTED),
    "majority": (GREY, "x", DOTTED),
    "full": (BLACK, "s", "-"),
    "lora": (ORANGE, "o", "-"),
    "dora": (SKY, "^", "-"),
    "boft": (GREEN, "D", "-"),
    "oft": (BROWN, "X", DASHDOT),
    "lora-ga": (PURPLE, "v", "-"),
    "urnn": (BLUE, "P", "-"),
    "hybrid": (VERMILION, "*", "-"),
    "galore": (BLUE, "X", DASHED),
    "dpi-glrp": (VERMILION, "p", DASHED),
    "power-iteration": (PURPLE, "h", DASHED),
    "smt": (GREEN, "<", DASHED),
    "lorsum": (SKY, ">", DASHED),
    "svdlora": (VERMILION, "d", "-"),
    "scaled-gd": (BLUE, "p", DASHDOT),
    "lora-pro": (PURPLE, "D", DASHDOT),
    "alt-lora": (BROWN, "h", DASHDOT),
    "lora-rite": (GREEN, "8", DASHDOT),
    "pissa": (ORANGE, "H", DASHED),
    "adalora": (BLUE, "8", DOTTED),
    "vera": (VERMILION, "^", DOTTED),
    "ia3": (PURPLE, "s", DOTTED),
    "lora-plus": (SKY, "P", DOTTED),
    "rslora": (ORANGE, "X", DOTTED),
}
SIBLINGS = [("v", DASHED), ("D", DASHDOT), ("X", DOTTED), ("<", DASHED), (">", DASHDOT), ("h", DOTTED), ("p", DASHED)]
"""Markers and lines for a family's second, third... variant in one suite; the colour stays."""
STRANGERS = [(colour, marker) for marker in "os^DvPX" for colour in (ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE)]

MEMORY_KINDS = {
    "weights": ("#BDBDBD", "weights", ""),
    "gradients_at_peak": (ORANGE, "gradients", "////"),
    "optimizer": (SKY, "optimizer state", "...."),
    "activations": (GREEN, "activations, work space", "xxxx"),
}
"""Colour, label and hatching (for black and white) of the kinds of live tensors."""


def styles(variants: Sequence[str]) -> dict[str, Style]:
    """A style per variant, by its family; one of no known family takes the next free one in the order of the suite."""
    found: dict[str, Style] = {}
    taken = {(colour, marker) for colour, marker, _ in FAMILY_STYLES.values()}
    seen: set[str] = set()
    for variant in variants:
        family = family_of(variant)
        if family and family not in seen:
            colour, marker, line = FAMILY_STYLES[family]
        elif family:
            colour = FAMILY_STYLES[family][0]
            options = [(colour, marker, line) for marker, line in SIBLINGS]
            colour, marker, line = next((o for o in options if o[:2] not in taken), options[-1])
        else:
            options = [(colour, marker, DASHDOT) for colour, marker in STRANGERS]
            colour, marker, line = next((o for o in options if o[:2] not in taken), options[-1])
        taken.add((colour, marker))
        seen.add(family)
        found[variant] = Style(colour, marker, line, label_of(variant))
    return found


def pages(heights: Sequence[float], most: float = PAGE_HEIGHT) -> list[slice]:
    """Which rows of panels share a page: as many as fit in ``most`` inches, at least one."""
    cuts, start, used = [], 0, 0.0
    for index, height in enumerate(heights):
        if index > start and used + height > most:
            cuts.append(slice(start, index))
            start, used = index, 0.0
        used += height
    return [*cuts, slice(start, len(heights))] if heights else []


def grid_pages(panels: Sequence, across: int, height: float) -> list[Sequence]:
    """Panels of one height, ``across`` of them side by side, by page."""
    rows = -(-len(panels) // across)
    return [panels[page.start * across : page.stop * across] for page in pages([height] * rows)]


def tick_names(names: Sequence[str]) -> list[str]:
    """Names beside an axis, long ones on several lines: they would take the panel's width, or leave the page."""
    return ["\n".join(textwrap.wrap(name, TICK_WIDTH)) for name in names]


def row_scale(names: Sequence[str]) -> float:
    """By how much rows must be higher than those of one line for these tick labels."""
    return max(1.0, 0.75 * max((name.count("\n") + 1 for name in names), default=1))


def width(text: str, size: float, weight: str = "normal") -> float:
    """Inches that a line takes at ``size`` points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    return TextPath((0, 0), text, size, FontProperties(weight=weight)).get_extents().width / 72 if text.strip() else 0.0


def beside(names: Sequence[str]) -> float:
    """Inches that these tick labels take on the left of a panel."""
    return max((width(line, 7.5) for name in names for line in name.split("\n")), default=0.0)


def wrapped(text: str, inches: float, size: float, most: int, weight: str = "normal") -> list[str]:
    """The text on lines of at most ``most`` characters and about ``inches``."""
    lines = textwrap.wrap(text, most)
    while most > LEAST_WIDTH and any(width(line, size, weight) > inches for line in lines):
        most -= 1
        lines = textwrap.wrap(text, most)
    return lines


def legend_columns(labels: Sequence[str]) -> int:
    """How many entries of a legend with line samples fit side by side on a page."""
    return max(1, min(6, len(labels), int(PAGE_WIDTH / (0.6 + 0.068 * max(map(len, labels), default=1)))))


def heading(row: Sequence[Axes], text: str, names: Sequence[str] = ()) -> None:
    """A title over a whole row of panels, however long: the blank title keeps its height free, and no width. ``names`` stand on
    the left of the first one."""
    lines = wrapped(text, PAGE_WIDTH - 0.25 - beside(names), 8.5, 84, "bold")
    row[0].set_title("\n".join(" " * len(lines)), fontweight="bold")
    place = {"xycoords": "axes fraction", "textcoords": "offset points", "fontweight": "bold", "fontsize": 8.5}
    row[0].annotate("\n".join(lines), (0, 1), (0, 6), **place).set_in_layout(False)


def panel_title(axis: Axes, *lines: str) -> None:
    """A title of one of two panels side by side, broken where it would reach into the other."""
    axis.set_title("\n".join(part for line in lines for part in textwrap.wrap(line, 40)), fontweight="bold")


def footer(figure: Figure, text: str) -> None:
    """Lines under the figure that say how to read it, broken where they would leave it."""
    across = int(figure.get_figwidth() * 19)  # characters
    text = "\n".join(part for line in text.splitlines() for part in textwrap.wrap(line, across))
    figure.supxlabel(text, x=0.01, ha="left", fontsize=6.8, color="#444444")


def use_print_style() -> None:
    """Set matplotlib for figures that are read in print: 8 point text, thin axes, the same bytes for the same data."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {
            "font.family": "DejaVu Sans",  # ships with matplotlib: the same picture everywhere
            "font.size": 8,
            "axes.titlesize": 8.5,
            "axes.labelsize": 8,
            "xtick.labelsize": 7.5,
            "ytick.labelsize": 7.5,
            "legend.fontsize": 8,
            "legend.frameon": False,
            "axes.linewidth": 0.6,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.grid": True,
            "grid.color": "#DDDDDD",
            "grid.linewidth": 0.5,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "lines.linewidth": 1.3,
            "lines.markersize": 4,
            "hatch.linewidth": 0.5,
            "figure.dpi": 150,
            "savefig.dpi": 200,
            "svg.fonttype": "path",
            "pdf.fonttype": 42,
            "svg.hashsalt": "tuning-fork",
        }
    )
