"""Stage ``tune``: from the trials of one (model, corpus, variant) to the values that its reported trainings use.

``python -m harness.tune --suite S --model M --corpus C --variant V`` reads the trials' records and writes ``tuned.json``.
A trial itself is ``python -m harness.train ... --seed 1000 --trial 3``. The record is a function of how the trials ended,
without their times: a trial that is run again and ends as before changes no byte of it, and nothing trains anew.
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

from harness import record
from harness.cells import train_record
from harness.failures import UserError, guard
from harness.search import RULE, choose
from harness.suite import load_suite
from harness.trials import Trial, Tuning


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Choose a cell's hyper-parameters from its trials.")
    for name in ("suite", "model", "corpus", "variant"):
        parser.add_argument(f"--{name}", required=True)
    arguments = parser.parse_args(argv)
    suite = load_suite(arguments.suite)
    cell = (arguments.model, arguments.corpus, arguments.variant)
    if cell not in suite.tunings:
        raise UserError(f"suite {suite.name} does not tune {'/'.join(cell)}")
    tuning = suite.tunings[cell]
    record.write(tuning.record, tuned(tuning))
    return 0


def tuned(tuning: Tuning) -> dict:
    """The record: every trial with its losses, and the choice."""
    by_number: dict[int, list[Trial]] = {}
    for trial in tuning.trials:
        by_number.setdefault(trial.number, []).append(trial)
    told = [_trial(runs) for runs in by_number.values()]
    best = choose([trial["loss"] for trial in told])
    failed = [trial for trial in told if trial["loss"] is None]
    status, reason = "ok", ""
    if best is None:
        status, reason = (
            "error",
            f"all {len(told)} trials failed, the first with {failed[0]['status']}; see its record beside {tuning.record.name}",
        )
    seen = [trial["validation_examples"] for trial in told if trial["validation_examples"] is not None]
    return {
        "stage": "tune",
        **tuning.identity,
        "status": status,
        "reason": reason,
        "key": tuning.key,
        "specification": tuning.specification,
        "rule": RULE,
        "chosen": None if best is None else {name: told[best][name] for name in ("trial", "values", "loss")},
        "failed": len(failed),
        "tokens": sum(trial["tokens"] for trial in told),
        "validation_examples": max(seen, default=None),
        "trials": told,
    }


def _trial(runs: list[Trial]) -> dict[str, Any]:
    """One trial over its seeds: values, losses before and after, how it ended, the tokens it took."""
    found = [_read(run) for run in runs]
    losses = [_last(content) for content in found]
    bad = next((content for content, loss in zip(found, losses, strict=True) if loss is None), None)
    examples = [content["examples"]["validation"] for content in found if "examples" in content]
    return {
        "trial": runs[0].number,
        "values": runs[0].values,
        "before": _before(found),
        "loss": None if bad else math.fsum(losses) / len(losses),
        "losses": losses,
        "status": "ok" if bad is None else "diverged" if bad["status"] == "ok" else bad["status"],
        "tokens": sum(content.get("tokens", {}).get(kind, 0) for content in found for kind in ("total", "probe")),
        "validation_examples": max(examples, default=None),
    }


def _read(trial: Trial) -> dict:
    path = train_record(trial)
    if not path.is_file():
        raise UserError(f"{path} does not exist: run trial {trial.number} first (python -m harness.train --trial)")
    content = record.read(path)
    if content.get("key") != trial.key:
        raise UserError(f"{path} is of another specification (key {content.get('key')}, now {trial.key}): run it again")
    return content


def _before(found: list[dict]) -> float | None:
    """Mean validation loss before the first step, of the seeds that came so far."""
    first = [validations[0][1] for content in found if (validations := content.get("loss", {}).get("validation"))]
    return math.fsum(first) / len(first) if first else None


def _last(content: dict) -> float | None:
    """The validation loss at the end; None where the trial did not end well or it is no number."""
    validations = content.get("loss", {}).get("validation") or []
    if content["status"] != "ok" or not validations or not math.isfinite(validations[-1][1]):
        return None
    return validations[-1][1]


if __name__ == "__main__":
    sys.exit(guard(main)())
