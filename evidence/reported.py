"""What a paper reports: numbers of ``papers/<paper>/reported/*.csv`` by benchmark, metric, model and method.

Two layouts are read: one with every run (``benchmark, metric, model, method, run1..3, average, state``), one with a number a
row (``table, task, metric, model, method, trainable_pct, value``). Numbers that the source damages stay, with that word.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from evidence.cells import EvidenceError

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Number:
    """One reported number. ``average`` is None where the source damages it, or where it is no number ("over 58")."""

    benchmark: str
    metric: str
    model: str
    method: str
    average: float | None
    text: str
    state: str
    trained: str  # per cent of the parameters, as printed
    source: str

    def shown(self) -> str:
        """ "92.5 (91.0 · 94.0 · 92.5)", and what is damaged."""
        doubt = "" if self.state in ("", "legible") else f" ({self.state})"
        share = f" (trained {self.trained} %)" if self.trained else ""
        return f"{self.text}{share}{doubt}"


def read_reported(paper: str, file: str) -> list[Number]:
    """All rows of a file. Raises EvidenceError where it is missing, of neither layout, or lacks a column."""
    path = ROOT / "papers" / paper / "reported" / file
    if not path.is_file():
        raise EvidenceError(
            f"{path}: no such file of reported numbers; mend `reported:` in papers/{paper}/tables.yaml."
        )
    with open(path, encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    if rows and not {"benchmark", "average"} <= set(rows[0]) and not {"task", "value"} <= set(rows[0]):
        raise EvidenceError(f"{path}: columns {', '.join(rows[0])}: neither benchmark and average nor task and value.")
    try:
        return [_number(row) for row in rows]
    except KeyError as error:
        raise EvidenceError(f"{path}: no column {error}. Add it, or fetch the file again.") from None


def chosen(numbers: list[Number], wanted: dict[str, str | list[str]]) -> list[Number]:
    """Those whose fields are as ``wanted`` says (benchmark, metric, model, method, source): a name, or one of several."""
    names = {field: value if isinstance(value, list) else [value] for field, value in wanted.items()}
    return [number for number in numbers if all(getattr(number, field) in value for field, value in names.items())]


def _number(row: dict) -> Number:
    if "value" in row:
        text, runs = row["value"], []
    else:
        runs = [row[name] for name in ("run1", "run2", "run3") if row[name]]
        text = row["average"] or "—"
    listed = f" ({' · '.join(runs)})" if runs else ""
    place = row.get("place") or row.get("table") or ""
    return Number(
        benchmark=row.get("benchmark") or row["task"],
        metric=row["metric"],
        model=row["model"],
        method=row["method"],
        average=_float(text),
        text=text + listed,
        state=row.get("state", ""),
        trained=row.get("trainable_pct", ""),
        source=f"{row.get('source') or row['paper']}, {place}",
    )


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
