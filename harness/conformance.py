"""Conformance: does a method keep the contract? On tiny models of every architecture family, in seconds, on CPU.

``python -m harness.conformance lora rank=4 --family llama`` prints what holds and what does not, and exits 1 if any
check fails. Hyper-parameters not given are the class's ``tiny`` ones, fit for two layers of width 32, then its defaults.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import yaml

from harness.checks import CHECKS, FAMILIES, Case, Skip
from harness.failures import UserError
from harness.globals_guard import nothing_left_behind
from harness.plugins import load_plugin


@dataclass(frozen=True)
class Result:
    family: str
    check: str
    status: str  # "ok", "skip", "FAIL"
    detail: str


def run_checks(method: str, fields: dict, families: tuple[str, ...] = FAMILIES) -> Iterator[Result]:
    """Every check on every family. A check also fails when it changes global state or opens a connection."""
    for family in families:
        case = Case(method, family, fields)
        for name, check in CHECKS.items():
            try:
                with nothing_left_behind():
                    status, detail = "ok", check(case)
            except Skip as reason:
                status, detail = "skip", str(reason)
            except AssertionError as error:
                status, detail = "FAIL", str(error)
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                status, detail = "FAIL", f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
            yield Result(family, name, status, detail)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="harness.conformance", description="Check a method against the contract.")
    parser.add_argument("method", help="a file of methods/, without .py")
    parser.add_argument("fields", nargs="*", metavar="key=value", help="hyper-parameters, values as in YAML")
    parser.add_argument("--family", action="append", choices=FAMILIES, help="only this family (may be repeated)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        fields = {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in arguments.fields)}
        load_plugin("methods", arguments.method, **fields)
    except (UserError, ValueError, TypeError) as error:
        print(error, file=sys.stderr)
        return 2
    families = tuple(arguments.family or FAMILIES)
    started = time.monotonic()
    print(f"{arguments.method}, two-layer models of width 32\n")
    failures = _report(run_checks(arguments.method, fields, families))
    seconds = time.monotonic() - started
    total = len(CHECKS) * len(families)
    print(f"\n{total - failures} of {total} hold, in {seconds:.0f} s")
    return 1 if failures else 0


def _report(results: Iterator[Result]) -> int:
    """Print each result as it comes; the number of failures."""
    failures, family, detail = 0, "", ""
    for result in results:
        if result.family != family:
            family = result.family
            print(family)
        failures += result.status == "FAIL"
        same = result.status == "FAIL" and result.detail == detail
        detail = result.detail
        print(f"  {result.status:4}  {result.check:26} {'the same' if same else detail}", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(main())
