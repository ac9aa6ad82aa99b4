"""What a run ends with: ``python -m evidence.summary --collected results/S/collected --results results/S``.

Prints where tables and figures are, the headline table, and every row that failed, with its reason. ``--strict`` ends
with 1 if any row failed or is missing (a judge's pending verdict is no failure).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from evidence.cells import EvidenceError
from evidence.collected import Collected
from evidence.layout import terminal
from evidence.learning_rates import rates_table
from evidence.score_table import score_table

FINE = ("ok", "judge_pending")


def failed_rows(collected: Collected) -> list[str]:
    """A line per training, score, cost or trial without a result: "model/corpus/variant/seed0: oom in train: why".

    That a trial diverged is a result: the search has found where the method breaks.
    """
    runs, costs = collected.runs, collected.costs
    lines: dict[str, list[str]] = {}
    for _, row in runs[~runs["status"].isin(FINE)].iterrows():
        if row["variant"] == "majority" and row["status"] == "skipped":
            continue
        where = f"{row['model']}/{row['corpus']}/{row['variant']}/seed{row['seed']}"
        place = where if row["stage"] == "train" else f"{where}/{row['eval']}"
        lines.setdefault(f"{place}: {row['status']} in {row['stage']}", []).append(row["reason"])
    for _, row in costs[~costs["status"].isin(FINE)].iterrows() if len(costs) else ():
        where = f"{row['model']}/{row['corpus']}/{row['variant']}"
        lines.setdefault(f"cost/{where}: {row['status']}", []).append(row["reason"])
    for _, row in collected.trials[~collected.trials["status"].isin((*FINE, "diverged"))].iterrows():
        where = f"{row['model']}/{row['corpus']}/{row['variant']}/trial{row['trial']}/seed{row['seed']}"
        lines.setdefault(f"tune/{where}: {row['status']}", []).append(row["reason"])
    return [f"{line}: {reasons[0]}" if reasons[0] else line for line, reasons in lines.items()]


def stale_rows(collected: Collected) -> int:
    """Number of trainings under an eval whose records belong to another specification."""
    runs = collected.runs
    return int((runs["headline"] & (runs["stale"] != "")).sum())


def files(results: Path) -> list[str]:
    """Where the tables, figures and notebooks of a suite are, those that exist; figures by their PNG."""
    index = results / "report" / "index.html"
    found = ["report:", f"  {index}"] if index.is_file() else []
    for title, pattern in (("tables", "tables/**/*.md"), ("figures", "figures/*.png"), ("notebooks", "notebooks/*")):
        paths = sorted(path for path in results.glob(pattern) if path.is_file() and not path.name.startswith("."))
        if paths:
            found.append(f"{title}:")
            found += [f"  {path}" for path in paths]
    return found


def summary(collected: Collected, results: Path | None) -> tuple[str, bool]:
    """The text, and whether every row has a result."""
    suite, failed = collected.suite, failed_rows(collected)
    title = f"Suite {suite['suite']}: {suite.get('description') or 'headline scores'}"
    table = score_table(collected, title, False, False)
    table.notes = [note for note in table.notes if not note.startswith("Failed:")]
    tables = [made for made in (table, rates_table(collected, title)) if made and made.groups]
    parts = [*(terminal(made) for made in tables), *(files(results) if results else [])]
    if stale := stale_rows(collected):
        parts += [
            "",
            f"Stale scores, of another specification than the suite's: {stale}. Run the suite again to renew them.",
        ]
    total = int((collected.runs["headline"] | (collected.runs["eval"] == "")).sum()) + len(collected.costs)
    total += len(collected.trials)
    if failed:
        parts += ["", f"{len(failed)} without a result:", *(f"  {line}" for line in failed)]
    else:
        parts += ["", f"All {total} rows have a result."]
    return "\n".join(parts) + "\n", not failed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evidence.summary", description="Print what came out of a suite.")
    parser.add_argument("--collected", type=Path, required=True, help="folder that evidence.collect wrote")
    parser.add_argument("--results", type=Path, help="results/SUITE: to name the tables and figures in it")
    parser.add_argument("--out", type=Path, help="write the text into this file, too")
    parser.add_argument("--strict", action="store_true", help="end with 1 if any row has no result")
    arguments = parser.parse_args(argv)
    try:
        text, complete = summary(Collected(arguments.collected), arguments.results)
    except EvidenceError as error:
        print(error, file=sys.stderr)
        return 2
    print(text, end="")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(f"```text\n{text}```\n", encoding="utf-8")
    return 1 if arguments.strict and not complete else 0


if __name__ == "__main__":
    sys.exit(main())
