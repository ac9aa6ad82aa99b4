"""Stage ``tune``: from the trials of one (model, corpus, variant) to the values that its reported trainings use.

``python -m harness.tune --suite S --model M --corpus C --variant V`` reads the trials' records and writes ``tuned.json``.
A trial itself is ``python -m harness.train ... --seed 1000 --trial 3``. The record is a function of how the trials ended,
without their times: a trial that is run again and ends as before changes no byte of it, and nothing trains anew.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterable
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
    found = {trial: _read(trial) for trial in tuning.trials}
    stack = _commonest_stack(found.values())
    told = [_trial({run: found[run] for run in runs}, stack) for runs in by_number.values()]
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


def _trial(runs: dict[Trial, dict], stack: str | None) -> dict[str, Any]:
    """One trial over its seeds: values, losses before and after, how it ended, the tokens it took.

    Losses of other software than ``stack`` are not compared: such a run counts as failed.
    """
    first, found = next(iter(runs)), list(runs.values())
    faults = [_fault(content, stack) for content in found]
    bad = next(filter(None, faults), None)
    losses = [None if fault else _last(content) for content, fault in zip(found, faults, strict=True)]
    examples = [content["examples"]["validation"] for content in found if "examples" in content]
    return {
        "trial": first.number,
        "values": first.values,
        "before": _before(found),
        "loss": None if bad else math.fsum(losses) / len(losses),
        "losses": losses,
        "status": bad or "ok",
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


def _stack(content: dict) -> str | None:
    """Names versions and device; None of a record that does not say them."""
    return (content.get("provenance") or {}).get("stack_id")


def _commonest_stack(found: Iterable[dict]) -> str | None:
    """The software of most trials, of equally many the first's."""
    counts = Counter(stack for content in found if (stack := _stack(content)))
    return counts.most_common(1)[0][0] if counts else None


def _fault(content: dict, stack: str | None) -> str:
    """Why a run cannot be chosen by; empty where it can."""
    if content["status"] != "ok":
        return content["status"]
    if _stack(content) not in (None, stack):
        return "other software"
    return "diverged" if _last(content) is None else ""


def _before(found: list[dict]) -> float | None:
    """Mean validation loss before the first step, of the seeds that came so far."""
    first = [validations[0][1] for content in found if (validations := content.get("loss", {}).get("validation"))]
    return math.fsum(first) / len(first) if first else None


def _last(content: dict) -> float | None:
    """The validation loss at the end; None where it is not there or is no number."""
    validations = content.get("loss", {}).get("validation") or []
    if not validations or not math.isfinite(validations[-1][1]):
        return None
    return validations[-1][1]


if __name__ == "__main__":
    sys.exit(guard(main)())
