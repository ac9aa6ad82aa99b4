"""Arithmetic on a paper's reported numbers: what follows from them, what does not, and what no machine can have done.

``python -m evidence.audit hybrid`` reads papers/hybrid/reported/*.csv and prints, as Markdown,

1. averages that are not the mean of the runs beside them;
2. how often a run is the lowest or the highest of its cell, against independent repeats;
3. values that the number of test items does not allow;
4. differences that the text states, against the table;
5. differences between methods, against the spread of the runs;
6. memory and time, against what weights and gradients take.

It says what the numbers are. Why, it does not know: a scan, a translation or a typing error are as likely as anything.
Cells that are damaged in the source take no part, and are counted.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
HALF = 0.05 + 1e-9  # of the last printed digit
ITEMS = {"HumanEval": 164, "GSM8K": 1319}
"""Test items; a score in percent is a multiple of 100 / items, where one answer an item is graded."""
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
    """Rows of table1.csv."""
    cells = []
    for row in _rows(path):
        runs = [_number(row[f"run{number}"]) for number in (1, 2, 3)]
        known = tuple(runs) if None not in runs else None
        cells.append(Cell(row["benchmark"], row["metric"], row["model"], row["method"], known, _number(row["average"])))
    return cells


# --------------------------------------------------------------------------- the checks


def averages(cells: Sequence[Cell]) -> list[str]:
    """Printed averages against the mean of the printed runs, to the last digit."""
    whole = [c for c in cells if c.runs and c.average is not None]
    wrong = [c for c in whole if abs(c.mean - c.average) > HALF]
    last = sum(c.average == c.runs[2] for c in wrong)
    lines = [f"{len(whole) - len(wrong)} of {len(whole)} whole cells agree to rounding; {len(wrong)} do not. In {last} of these "
             "the printed average is the third run."]  # fmt: skip
    for c in wrong:
        could = abs(c.mean - c.average) < 0.1 - 1e-9  # half a digit of the runs and half of the average
        how = "could be, had the runs been rounded after the mean was taken" if could else "cannot be by rounding"
        lines.append(f"{c.name}: runs {_list(c.runs)}, mean {c.mean:.2f}, printed {c.average:.1f}; {how}.")
    by = {b: [c for c in whole if c.benchmark == b] for b in dict.fromkeys(c.benchmark for c in whole)}
    equal = ", ".join(f"{b} {sum(c.average == c.runs[2] for c in found)} of {len(found)}" for b, found in by.items())
    return [*lines, f"The printed average equals the third run: {equal}."]


def order_of_runs(cells: Sequence[Cell]) -> list[str]:
    """Independent repeats are the lowest, or the highest, of three equally often."""
    from scipy.stats import binomtest

    whole = [c for c in cells if c.runs]
    lines = []
    for number, (end, word) in ((0, (min, "lowest")), (1, (max, "highest"))):
        count = sum(c.runs[number] == end(c.runs) for c in whole)
        chance = binomtest(count, len(whole), 1 / 3, alternative="greater").pvalue
        lines.append(
            f"Run {number + 1} is the {word} of three (or one of the {word}) in {count} of {len(whole)} cells; by "
            f"independent repeats about {len(whole) / 3:.0f} (p = {chance:.0e}, ties counted in its favour)."
        )
    return lines


def resolution(cells: Sequence[Cell]) -> list[str]:
    """Run values that are multiples of 100 / items, to the last digit."""
    lines = []
    for benchmark, metric in dict.fromkeys((c.benchmark, c.metric) for c in cells if c.benchmark in ITEMS):
        items = ITEMS[benchmark]
        values = [v for c in cells if (c.benchmark, c.metric) == (benchmark, metric) and c.runs for v in c.runs]
        fit = sum(abs(value - 100 * round(value * items / 100) / items) <= HALF for value in values)
        lines.append(
            f"{benchmark} {metric}: {fit} of {len(values)} run values are multiples of 1/{items} to the last digit."
        )
    lines.append(
        "A pass@k that is no multiple comes from several samples a problem, which the paper does not state. With more items "
        "than a thousand every value of one decimal is possible."
    )
    return lines


def text_against_table(cells: Sequence[Cell], stated: Iterable[dict]) -> list[str]:
    """Each difference that the text states beside the table's printed averages."""
    lines, damaged = [], 0
    for row in stated:
        models = list(MODELS) if row["model"] == "all" else [row["model"]]
        found = [_difference(cells, row, model) for model in models]
        found = [value for value in found if value is not None]
        if not found:
            damaged += 1
            continue
        table = statistics.fmean(found)
        if abs(table - float(row["difference"])) > HALF:
            what = f"{row['benchmark']} {row['metric']}, {row['model']}: {row['method']} less {row['other']}"
            lines.append(
                f"{what}: the text ({row['place']}) has {float(row['difference']):+.1f}, the table {table:+.2f}."
            )
    checked = f"{len(lines)} stated differences are not the table's."
    return [checked, *lines, *([f"{damaged} cannot be checked: their cells are damaged."] if damaged else [])]


def against_spread(cells: Sequence[Cell]) -> list[str]:
    """Differences of the paper's method from full fine-tuning and from the best other method, against the runs' spread."""
    lines = []
    for benchmark, metric in dict.fromkeys((c.benchmark, c.metric) for c in cells):
        group = [c for c in cells if (c.benchmark, c.metric) == (benchmark, metric) and c.runs]
        spreads = [statistics.stdev(c.runs) for c in group]
        tests = []
        for model in dict.fromkeys(c.model for c in group):
            by = {c.method: c for c in group if c.model == model}
            if OURS in by and FULL in by:
                others = [c for name, c in by.items() if name not in (OURS, FULL)]
                best = max(others, key=lambda c: c.mean)
                ours = by[OURS]
                tests.append(
                    f"{model} {_welch(ours, by[FULL])} ({FULL}), {_welch(ours, best)} ({best.method}, the best other)"
                )
        spread = (
            f"standard deviation over three runs: median {statistics.median(spreads):.2f}, largest {max(spreads):.2f}"
        )
        lines.append(
            f"{benchmark} {metric}: {spread}. Welch's t of {OURS} against: {'; '.join(tests) or 'no whole cells'}."
        )
    return [
        *lines,
        "With three runs a side |t| must pass about 2.8 for 5 %; runs that are no independent repeats (2.) do not give a t.",
    ]


def floors(figures: Iterable[dict]) -> list[str]:
    """Memory and time of the figures against bytes of weights and FLOPs."""
    parameters = {name: _catalogue()[key]["parameters"] for name, key in MODELS.items()}
    lines = []
    for row in figures:
        if row["quantity"] == "gpu_memory" and row["model"] in parameters:
            size = parameters[row["model"]]
            needed = {"weights in 16 bits": 2 * size / 1e9, "in 4 bits": size / 2e9}
            if row["method"] == FULL:
                needed["with gradients and Adam in mixed precision"] = 16 * size / 1e9
            told = ", ".join(f"{what} {value:,.0f} GB" for what, value in needed.items())
            lines.append(
                f"{row['model']}, {row['method']}: {row['value']} GB reported; {told}. A share of one GPU of many, at most."
            )
    times = [r for r in figures if r["quantity"] == "train_time_per_epoch" and r["method"] == OURS]
    for one, other in zip(times, times[1:], strict=False):
        ratio = parameters[one["model"]] / parameters[other["model"]]
        slow = float(one["value"]) / float(other["value"])
        lines.append(
            f"An epoch of {one['model']} takes {slow:.2f} times one of {other['model']}, with {ratio:.0f} times the parameters: "
            "the number of GPUs must differ, so the times do not compare."
        )
    lines.append(
        "A step that trains adapters alone saves the weights' gradients, a third of the FLOPs: it is at most 1.5 times faster "
        "than full fine-tuning on the same devices (1.33 with activation checkpointing) unless memory traffic or "
        "communication decide."
    )
    return lines


# --------------------------------------------------------------------------- parts


def _difference(cells: Sequence[Cell], row: dict, model: str) -> float | None:
    """Printed average less the other's printed average."""
    key = (row["benchmark"], row["metric"], model)
    printed = {c.method: c.average for c in cells if (c.benchmark, c.metric, c.model) == key}
    one, other = printed.get(row["method"]), printed.get(row["other"])
    return None if one is None or other is None else one - other


def _welch(one: Cell, other: Cell) -> str:
    variance = (statistics.variance(one.runs) + statistics.variance(other.runs)) / 3
    return f"{(one.mean - other.mean) / math.sqrt(variance):.2f}" if variance else "without spread"


def _catalogue() -> dict:
    return yaml.safe_load((ROOT / "config" / "catalogue.yaml").read_text(encoding="utf-8"))["models"]


def _rows(path: Path) -> list[dict]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _number(text: str) -> float | None:
    return float(text) if text else None


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


def report(paper: str, folder: Path) -> str:
    """The audit as Markdown. Raises FileNotFoundError where the paper's numbers are not there."""
    cells, figures = read_cells(folder / "table1.csv"), _rows(folder / "figures.csv")
    parts = {
        "Averages": averages(cells),
        "Order of runs": order_of_runs(cells),
        "Resolution": resolution(cells),
        "Text against table": text_against_table(cells, _rows(folder / "text.csv")),
        "Differences against spread": against_spread(cells),
        "Memory and time": floors(figures),
    }
    whole = sum(c.runs is not None and c.average is not None for c in cells)
    known = f"{whole} of {len(cells)} cells are whole; the others are damaged in the source."
    head = f"# Audit of the numbers reported in `{paper}`\n\n{known}"
    body = [
        f"## {number}. {title}\n\n" + "\n".join(f"- {line}" for line in lines)
        for number, (title, lines) in enumerate(parts.items(), 1)
    ]
    return "\n\n".join([head, *body]) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evidence.audit", description=__doc__.splitlines()[0])
    parser.add_argument("paper", help="a folder of papers/ that has reported/table1.csv")
    parser.add_argument("--out", type=Path, help="write there, too")
    arguments = parser.parse_args(argv)
    folder = ROOT / "papers" / arguments.paper / "reported"
    if not (folder / "table1.csv").is_file():
        print(f"{folder / 'table1.csv'} does not exist: no table of this paper's is at hand", file=sys.stderr)
        return 2
    text = report(arguments.paper, folder)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
