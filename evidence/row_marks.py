"""Which rows of costs or runs may be compared, and how the others are marked and explained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evidence.pools import OTHER_STACK, STALE

if TYPE_CHECKING:
    import pandas as pd


def clean(rows: pd.DataFrame) -> pd.DataFrame:
    """Those that ended well, belong to the suite's present specification and come from the reference software."""
    return rows[(rows["status"] == "ok") & (rows["stale"] == "") & (rows["other_stack"] == "")]


def mark(row: Mapping[str, Any]) -> str:
    """‡ for stale, † for another stack; empty where the row may be compared."""
    return (STALE if row["stale"] else "") + (OTHER_STACK if row["other_stack"] else "")


def cost_mark_notes(costs: pd.DataFrame) -> list[str]:
    """A sentence for each mark that stands beside some of these costs."""
    told = []
    if not len(costs):  # of a suite that measures none: no columns either
        return told
    if costs["stale"].astype(bool).any():
        told.append(f"{STALE} stale: measured for another specification than the suite's present one.")
    if differences := sorted({text for text in costs["other_stack"] if text}):
        told.append(f"{OTHER_STACK} measured with other software, device or hardware: {' | '.join(differences)}.")
    return told
