"""Readings of cells that the source damages: do the runs, as far as they can be read, give the average?"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence

from evidence.audit_cells import HALF, Cell, listed

THREE = re.compile(r"^(\d+\.\d) / (\d+\.\d) / (\d+\.\d)")
ONE = re.compile(r"^(\d+\.\d)\b")


def damaged_readings(cells: Sequence[Cell], damaged: Iterable[dict]) -> list[str]:
    """Cells whose three runs and average can be read with some doubt, where the mean is not the average.

    ``damaged`` are rows of table1_damaged.csv, whose inference begins with the numbers that may have stood there. A printed
    average of the table goes before an inferred one.
    """
    rows = list(damaged)
    averages = {
        _key(row): float(found[1]) for row in rows if row["field"] == "avg" and (found := ONE.match(row["inference"]))
    }
    averages |= {(c.benchmark, c.model, c.method): c.average for c in cells if c.average is not None}
    lines = []
    for row in rows:
        found = THREE.match(row["inference"])
        average = averages.get(_key(row))
        if row["field"] != "run1-3" or not found or average is None:
            continue
        runs = [float(text) for text in found.groups()]
        mean = statistics.fmean(runs)
        if abs(mean - average) > HALF:
            lines.append(
                f"{', '.join(_key(row))} (damaged, read with {row['confidence']} confidence): runs {listed(runs)}, "
                f"mean {mean:.2f}, average {average:.1f}. The original would tell."
            )
    return lines


def _key(row: dict) -> tuple[str, str, str]:
    return row["benchmark"], row["model"], row["method"]
