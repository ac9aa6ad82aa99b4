"""Arithmetic on a paper's reported numbers: what follows from them, what does not, and what no machine can have done.

``python -m evidence.audit hybrid`` reads papers/hybrid/reported/*.csv and prints, as Markdown,

1. averages that are not the mean of the runs beside them (and of damaged cells, as far as they can be read);
2. how often a run is the lowest or the highest of its cell, against independent repeats;
3. values that the number of test items does not allow;
4. differences that the text states, against the table, and which other pair would have them;
5. orderings that the text states, against the table;
6. ratios and reductions that the text states, against the figures;
7. differences between methods, against the spread of the runs;
8. scores of the smallest and the largest model;
9. memory and time, against what weights and gradients take;
10. validation losses beside scores.

It says what the numbers are. Why, it does not know: a scan, a translation or a typing error are as likely as anything.
Cells that are damaged in the source take no part, and are counted.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from evidence.audit_cells import FULL, HALF, OURS, ROOT, Cell, listed, parameters, read_cells, read_rows
from evidence.audit_damaged import damaged_readings
from evidence.audit_figures import floors, loss_against_scores, stated_ratios
from evidence.audit_orderings import orderings
from evidence.audit_text import text_against_table

ITEMS = {"HumanEval": 164, "GSM8K": 1319}
"""Test items; a score in percent is a multiple of 100 / items, where one answer an item is graded."""


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
        lines.append(f"{c.name}: runs {listed(c.runs)}, mean {c.mean:.2f}, printed {c.average:.1f}; {how}.")
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


def levels(cells: Sequence[Cell]) -> list[str]:
    """Scores of the paper's method on the smallest and the largest model beside their parameters."""
    sizes, lines = parameters(), []
    for benchmark, metric in dict.fromkeys((c.benchmark, c.metric) for c in cells):
        group = [c for c in cells if (c.benchmark, c.metric, c.method) == (benchmark, metric, OURS)]
        known = sorted((c for c in group if c.average is not None), key=lambda c: sizes[c.model])
        if len(known) > 1:
            small, large = known[0], known[-1]
            lines.append(
                f"{benchmark} {metric}, {OURS}: {small.average:.1f} ({small.model}) and {large.average:.1f} ({large.model}), "
                f"{large.average - small.average:+.1f} over {sizes[large.model] / sizes[small.model]:.0f} times the parameters."
            )
    return [*lines, "What these models score elsewhere is not among the numbers at hand."] if lines else lines


# --------------------------------------------------------------------------- parts


def _welch(one: Cell, other: Cell) -> str:
    variance = (statistics.variance(one.runs) + statistics.variance(other.runs)) / 3
    return f"{(one.mean - other.mean) / math.sqrt(variance):.2f}" if variance else "without spread"


def report(paper: str, folder: Path) -> str:
    """The audit as Markdown. Raises FileNotFoundError where the paper's numbers are not there."""
    cells, figures = read_cells(folder / "table1.csv"), read_rows(folder / "figures.csv")
    parts = {
        "Averages": [*averages(cells), *damaged_readings(cells, read_rows(folder / "table1_damaged.csv"))],
        "Order of runs": order_of_runs(cells),
        "Resolution": resolution(cells),
        "Text against table": text_against_table(cells, read_rows(folder / "text.csv")),
        "Stated orderings": orderings(cells, read_rows(folder / "orderings.csv")),
        "Stated ratios": stated_ratios(figures),
        "Differences against spread": against_spread(cells),
        "Levels": levels(cells),
        "Memory and time": floors(figures),
        "Loss beside scores": loss_against_scores(cells, figures),
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
