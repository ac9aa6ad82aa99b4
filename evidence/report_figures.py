"""Interactive figures of the report, as plotly's own descriptions: quality against cost, differences, learning curves.

The browser draws the one that is chosen. Colours and markers are those of every other figure (``evidence.style``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evidence.report_rows import CostRow, ScoreRow, difference_text, finite
from evidence.style import DASHDOT, DASHED, DOTTED, Style

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

MOST_POINTS = 150  # of a curve; longer ones are thinned, and say so
SIDES = {"loss": "training loss", "validation_loss": "validation loss", "gradient_norm": "gradient norm"}
MARKERS = {"o": "circle", "s": "square", "D": "diamond", "d": "diamond-tall", "^": "triangle-up", "v": "triangle-down",
           "<": "triangle-left", ">": "triangle-right", "P": "cross", "X": "x", "x": "x-thin-open", "*": "star",
           "p": "pentagon", "h": "hexagon", "H": "hexagon2", "8": "octagon", "|": "line-ns-open"}  # fmt: skip
LINES = {"-": "solid", DASHED: "dash", DOTTED: "dot", DASHDOT: "dashdot"}
MIB = 2**20


def quality(scores: Sequence[ScoreRow], costs: Sequence[CostRow], look: dict[str, Style]) -> list[dict]:
    """Score against training time, and against peak memory, of one benchmark and model each; where costs are known."""
    by_place = {(row.model, row.corpus, row.variant): row for row in costs if row.status == "ok" and not row.why}
    elsewhere = {(row.model, row.variant): row for row in by_place.values()}
    figures = []
    for rows in _groups(scores):
        pairs = [(r, by_place.get((r.model, r.corpus, r.variant)) or elsewhere.get((r.model, r.variant))) for r in rows]
        pairs = [(row, cost) for row, cost in pairs if cost and row.mean is not None]
        if len(pairs) < 2:
            continue
        for against, what, unit, label in (
            ("time", "whole", 1, "seconds of a training"),
            ("memory", "peak", MIB, "live tensors at the peak, MiB"),
        ):
            figure = _empty(label, rows[0].metric)
            for row, cost in pairs:
                if value := getattr(cost, what):
                    figure.add_trace(_dot(row, value / unit, look[row.variant]))
            figures.append(_described(f"{rows[0].benchmark}, {rows[0].model_label}: against {against}", figure))
    return figures


def differences(scores: Sequence[ScoreRow], look: dict[str, Style]) -> list[dict]:
    """A forest of differences to the reference, with their intervals, of one benchmark and model each."""
    figures = []
    for rows in _groups(scores):
        rows = [row for row in rows if row.difference]
        if not rows:
            continue
        figure = _empty(f"difference to the reference, {rows[0].metric}", "")
        for row in reversed(rows):
            found = row.difference
            error = None
            if found["error"]:
                error = {"type": "data", "symmetric": False, "array": [found["high"] - found["difference"]],
                         "arrayminus": [found["difference"] - found["low"]]}  # fmt: skip
            text = f"{difference_text(row)}, {found['seeds']} seeds x {found['items']} items, {found['covers']}"
            figure.add_scatter(x=[found["difference"]], y=[row.method], error_x=error, name=row.method, mode="markers",
                               marker=_marker(look[row.variant]), hovertemplate=text + "<extra></extra>")  # fmt: skip
        figure.add_vline(x=0, line_width=1, line_color="#888888")
        figure.update_layout(showlegend=False, height=134 + 28 * len(rows))
        figures.append(_described(f"{rows[0].benchmark}, {rows[0].model_label}", figure))
    return figures


def curves(frame: pd.DataFrame, look: dict[str, Style]) -> list[dict]:
    """Loss, validation loss and gradient norm over the steps, a line a seed; one figure per model, corpus and side."""
    figures = []
    for (_, _, name), rows in frame.groupby(["model", "corpus", "name"], sort=False, observed=True):
        if name not in SIDES:
            continue
        figure, seen = _empty("optimizer step", SIDES[name]), set()
        for (variant, seed), line in rows.groupby(["variant", "seed"], sort=False, observed=True):
            style = look.get(str(variant))
            if style is None:
                continue
            line = thinned(line.sort_values("step"))
            figure.add_scatter(
                x=line["step"].tolist(), y=[_number(v) for v in line["value"]], name=style.label, mode=_mode(line),
                legendgroup=str(variant), showlegend=variant not in seen,
                line={"color": style.colour, "dash": LINES.get(style.line, "solid"), "width": 1.4}, marker=_marker(style, 6),
                hovertemplate=f"{style.label}, seed {seed}: %{{y:.4g}} at step %{{x}}<extra></extra>",
            )  # fmt: skip
            seen.add(variant)
        if name == "gradient_norm":
            figure.update_yaxes(type="log")
        place = rows.iloc[0]
        figures.append(_described(f"{place['model_label']}, {place['corpus_label']}: {SIDES[name]}", figure))
    return figures


def thinned(line: pd.DataFrame) -> pd.DataFrame:
    """Every so many rows, and the last."""
    stride = math.ceil(len(line) / MOST_POINTS)
    kept = line.iloc[::stride]
    return kept if stride == 1 or kept.index[-1] == line.index[-1] else _joined(kept, line.iloc[-1:])


def _joined(*frames: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    return pd.concat(frames)


def _groups(scores: Sequence[ScoreRow]) -> list[list[ScoreRow]]:
    """The rows of each benchmark and model."""
    groups: dict[tuple[str, str, str], list[ScoreRow]] = {}
    for row in scores:
        groups.setdefault((row.corpus, row.eval, row.model), []).append(row)
    return list(groups.values())


def _dot(row: ScoreRow, x: float, style: Style) -> Any:
    import plotly.graph_objects as go

    error = None
    if finite(row.low) and finite(row.high):
        error = {"type": "data", "symmetric": False, "array": [row.high - row.mean], "arrayminus": [row.mean - row.low]}
    return go.Scatter(
        x=[x], y=[row.mean], name=row.method, mode="markers", marker=_marker(style), error_y=error,
        hovertemplate=f"{row.method}: {row.average}, %{{x:.4g}}<extra></extra>",
    )  # fmt: skip


def _marker(style: Style, size: int = 11) -> dict:
    return {"color": style.colour, "symbol": MARKERS.get(style.marker, "circle"), "size": size}


def _mode(line: pd.DataFrame) -> str:
    return "lines+markers" if len(line) < 12 else "lines"


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _empty(x: str, y: str) -> go.Figure:
    import plotly.graph_objects as go

    figure = go.Figure()
    axis = {
        "showline": True,
        "linecolor": "#444",
        "ticks": "outside",
        "gridcolor": "#e4e4e4",
        "zeroline": False,
        "automargin": True,
    }
    figure.update_layout(
        template="none", height=444, margin={"l": 60, "r": 16, "t": 40, "b": 52}, font={"size": 13},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", hovermode="closest",
        xaxis={"title": x, **axis}, yaxis={"title": y, **axis}, legend={"font": {"size": 12}},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#57606a", "activecolor": "#0a58a8"},
    )  # fmt: skip
    return figure


def _described(title: str, figure: go.Figure) -> dict:
    return {"title": title, **json.loads(figure.to_json())}
