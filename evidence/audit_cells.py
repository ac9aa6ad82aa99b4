"""What the audit reads: a table's cells, rows of CSV files, the sizes of the models."""

from __future__ import annotations

import csv
import statistics
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
HALF = 0.05 + 1e-9  # of the last printed digit
MODELS = {
    "Llama3.1-405B": "llama-3.1-405b",
    "Llama3.3-70B": "llama-3.3-70b",
    "Wizard-Vicuna-30B": "wizard-vicuna-30b",
    "BloomZ-7B1": "bloomz-7b1",
}
FULL, OURS = "Full FT", "Hybrid"


@dataclass(frozen=True)
class Cell:
    """One method on one model and benchmark: runs and printed average, None where the source is damaged."""

    benchmark: str
    metric: str
    model: str
    method: str
    runs: tuple[float, ...] | None
    average: float | None

    @property
    def name(self) -> str:
        return f"{self.benchmark} {self.metric}, {self.model}, {self.method}"

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.runs) if self.runs else None


def read_cells(path: Path) -> list[Cell]:
    """Rows of table1.csv. Raises FileNotFoundError."""
    cells = []
    for row in read_rows(path):
        runs = [_number(row[f"run{number}"]) for number in (1, 2, 3)]
        known = tuple(runs) if None not in runs else None
        cells.append(Cell(row["benchmark"], row["metric"], row["model"], row["method"], known, _number(row["average"])))
    return cells


def read_rows(path: Path) -> list[dict]:
    """Rows of a CSV file by its header. Raises FileNotFoundError."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def parameters() -> dict[str, int]:
    """Parameters of each model of the table."""
    catalogue = yaml.safe_load((ROOT / "config" / "catalogue.yaml").read_text(encoding="utf-8"))["models"]
    return {name: catalogue[key]["parameters"] for name, key in MODELS.items()}


def listed(values) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


def _number(text: str) -> float | None:
    return float(text) if text else None
