"""Per-item grades: reading them, and finding the field whose mean over items is a reported metric.

A metric that is a mean (accuracy, exact match) or a ratio of sums (nats per token) has an honest interval over items.
Which one it is need not be declared: the field is accepted only if it reproduces the recorded value, so the search is
at the same time a check of the record against its grades. A corpus-level headline (BLEU) has a field of its items' parts
(``harness.score.parts``), whose mean it is; any other metric of that kind matches nothing and gets no interval here.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.record import digest

GENERIC = ("correct", "gold==predicted", "c")
PART = "_part"  # how the field of a headline's parts ends
DENOMINATORS = ("tokens", "n", "words", "bytes", "count", "total", "rated")


@dataclass(frozen=True)
class Formula:
    """``value = scale * sum(numerator) / sum(denominator)`` over items; an empty denominator counts the items."""

    numerator: str
    denominator: str = ""
    scale: float = 1.0

    @property
    def parts(self) -> bool:
        """Are the items' values parts of a corpus-level headline (``harness.score.parts``), not grades?"""
        return self.numerator.endswith(PART)


def read_grades(folder: Path, score: dict) -> list[dict]:
    """Grades of one score record, in its order of items. Raises ValueError when the file is missing or damaged."""
    entry = (score.get("files") or {}).get("grades")
    if not entry:
        return []
    path = Path(folder) / entry["file"]
    if not path.is_file():
        raise ValueError(f"{path}: the record names this file and it is not there. Score this cell again.")
    if entry.get("sha256") and digest(path) != entry["sha256"]:
        raise ValueError(f"{path}: not the file that the record was written with (sha256). Score this cell again.")
    return [json.loads(line) for line in _text(path).split("\n") if line.strip()]


def numbers(grades: Sequence[dict]) -> dict[str, list[float]]:
    """The numeric fields of grades as columns, NaN where an item lacks one.

    Beside the fields themselves: ``gold==predicted`` where both stand in the grades, and ``a.b`` for nested numbers.
    """
    columns: dict[str, list[float]] = {}
    for index, grade in enumerate(grades):
        for name, value in _numeric(grade):
            columns.setdefault(name, [math.nan] * len(grades))[index] = value
    return columns


def formula(metric: str, value: float, columns: dict[str, list[float]], unit: str = "") -> Formula | None:
    """How ``columns`` give ``value``, or None. Fields that are named like the metric are tried first."""
    import numpy as np

    if value is None or not math.isfinite(value):
        return None
    sums = {name: float(np.sum(column)) for name, column in columns.items()}
    count = len(next(iter(columns.values()), ()))
    names = sorted((n for n in sums if math.isfinite(sums[n])), key=lambda name: _distance(name, metric))
    scales = (100.0, 1.0) if "%" in unit else (1.0, 100.0)
    below = [""] + [n for n in names if n.rpartition("_")[2].rpartition(".")[2] in DENOMINATORS]
    if value == 0:  # any empty column would do: believe only a name
        names = [n for n in names if n in GENERIC or _distance(n, metric)[:3] < (True, True, 0)]
    for numerator in names:
        for denominator in below:
            total = sums[denominator] if denominator else count
            if denominator == numerator or not total:
                continue
            for scale in scales:
                if math.isclose(scale * sums[numerator] / total, value, rel_tol=1e-6, abs_tol=1e-9):
                    return Formula(numerator, denominator, scale)
    return None


def _numeric(grade: dict, prefix: str = ""):
    for name, value in grade.items():
        if name == "item":
            continue
        if isinstance(value, int | float) and not (isinstance(value, float) and math.isnan(value)):
            yield prefix + name, float(value)
        elif isinstance(value, dict):
            yield from _numeric(value, f"{prefix}{name}.")
    if "gold" in grade and "predicted" in grade:
        yield f"{prefix}gold==predicted", float(grade["gold"] == grade["predicted"])


def _distance(name: str, metric: str) -> tuple:
    """Small for a field that is named like the metric; the length and the name itself break ties."""
    shared = set(name.replace(".", "_").split("_")) & set(metric.replace("/", "_").split("_"))
    return (
        name != metric,
        name not in metric and metric not in name,
        -len(shared),
        name not in GENERIC,
        len(name),
        name,
    )


def _text(path: Path) -> str:
    if path.suffix != ".zst":
        return path.read_text(encoding="utf-8")
    import zstandard

    with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as stream:
        return io.TextIOWrapper(stream, encoding="utf-8").read()
