"""Differences that a text states, against its table; which other pair a difference fits that is not the table's."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from evidence.audit_cells import HALF, Cell


def text_against_table(cells: Sequence[Cell], stated: Iterable[dict]) -> list[str]:
    """Each difference that the text states beside the table's printed averages."""
    wrong, near, damaged = [], [], 0
    for row in stated:
        told = float(row["difference"])
        table = _difference(cells, row, row["other"], lambda cell: cell.average)
        if table is None:
            damaged += 1
            continue
        what = f"{row['benchmark']} {row['metric']}, {row['model']}: {row['method']} less {row['other']}"
        if abs(table - told) > HALF:
            line = f"{what}: the text ({row['place']}) has {told:+.1f}, the table {table:+.2f}"
            wrong.append(f"{line}{_fitting(cells, row)}.")
            continue
        runs = _difference(cells, row, row["other"], lambda cell: cell.mean)
        if runs is not None and abs(runs - told) > HALF:
            near.append(f"{what}: {told:+.1f} by the printed averages, {runs:+.2f} by the means of the runs.")
    lines = [f"{len(wrong)} stated differences are not the table's.", *wrong, *near]
    return [*lines, *([f"{damaged} cannot be checked: their cells are damaged."] if damaged else [])]


def _fitting(cells: Sequence[Cell], row: dict) -> str:
    """ "; the difference to LoRA is +0.8": methods of the table against which the stated difference would be right."""
    others = [m for m in dict.fromkeys(c.method for c in cells) if m not in (row["method"], row["other"])]
    told = float(row["difference"])
    found = {other: _difference(cells, row, other, lambda cell: cell.average) for other in others}
    fit = [other for other, value in found.items() if value is not None and abs(value - told) <= HALF]
    return f"; the difference to {' and to '.join(fit)} is {told:+.1f}" if fit else ""


def _difference(cells: Sequence[Cell], row: dict, other: str, value: Callable[[Cell], float | None]) -> float | None:
    """The row's method less ``other``, the mean over the row's models where both are whole; None where there are none."""
    key = (row["benchmark"], row["metric"])
    by = {(c.model, c.method): value(c) for c in cells if (c.benchmark, c.metric) == key}
    models = dict.fromkeys(model for model, _ in by) if row["model"] == "all" else [row["model"]]
    pairs = [(by.get((model, row["method"])), by.get((model, other))) for model in models]
    whole = [one - two for one, two in pairs if one is not None and two is not None]
    return statistics.fmean(whole) if whole else None
