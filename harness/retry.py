"""Forget failed rows, so that the next run makes them again: ``python -m harness.retry quick --status oom,error``.

Deletes records of these statuses and what was skipped because of them. Checkpoints and everything else stay.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness import record as records
from harness.failures import UserError
from harness.suite import load_suite

RETRIED = tuple(status for status in records.STATUSES if status != "ok")
NAMES = ("train.json", "predict.json", "score.json", "cost.json", "tuned.json")


def forget(results: Path, statuses: tuple[str, ...]) -> list[Path]:
    """Delete the records of ``results`` that have one of the statuses, and the skipped ones below; their paths."""
    gone: list[Path] = []
    for kind in ("runs", "tune", "cost"):
        for path in sorted((results / kind).rglob("*.json")):
            if path.name in NAMES and _status(path) in statuses:
                gone.append(path)
                gone += [below for below in sorted(path.parent.rglob("*.json")) if _follows(below, path)]
    gone = list(dict.fromkeys(gone))
    for path in gone:
        path.unlink()
    return gone


def _status(path: Path) -> str:
    """A record's status; one that cannot be read is an error."""
    try:
        return records.read(path)["status"]
    except (ValueError, KeyError):
        return "error"


def _follows(path: Path, failed: Path) -> bool:
    return path != failed and path.name in NAMES and _status(path) == "skipped"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m harness.retry", description="Forget failed rows of a suite.")
    parser.add_argument("suite", help="its name, or the path of its file")
    parser.add_argument("--status", default="oom,timeout,error", help=f"of {', '.join(RETRIED)}; separated by commas")
    arguments = parser.parse_args(argv)
    statuses = tuple(arguments.status.split(","))
    unknown = [status for status in statuses if status not in RETRIED]
    if unknown:
        parser.error(f"no status '{unknown[0]}' to retry; there are {', '.join(RETRIED)}")
    try:
        results = load_suite(arguments.suite).results
    except UserError as error:
        parser.error(str(error))
    if not results.is_dir():
        parser.error(f"{results} does not exist: nothing has been run")
    gone = forget(results, statuses)
    for path in gone:
        print(path)
    print(f"{len(gone)} records forgotten; run the suite again to make them anew", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
