"""Lists that people write in YAML (a paper's claims, its tables), read and checked before anything is computed from them.

A check takes a value and returns what is wrong with it, empty where it is fit: "expected a number, not '2.4'".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

from evidence.cells import EvidenceError
from harness.strict_yaml import read_yaml

Check = Callable[[Any], str]


def read_entries(path: Path, noun: str, check: Check) -> list[dict]:
    """The list's mappings, each fit by ``check`` and with an ``id`` of its own. Raises EvidenceError: file, entry, field."""
    try:
        entries = read_yaml(path)
    except ValueError as error:
        raise EvidenceError(str(error)) from None
    if not isinstance(entries, list) or not entries:
        raise EvidenceError(f"{path}: {unlike(f'a list of one {noun} or more', entries)}")
    seen: set[str] = set()
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            raise EvidenceError(f"{path}: {noun} number {number}: {unlike('a mapping', entry)}")
        name = entry.get("id", f"number {number}")
        if wrong := check(entry) or ("its id is taken" if name in seen else ""):
            raise EvidenceError(f"{path}: {noun} {name}: {wrong}")
        seen.add(name)
    return entries


def unlike(expected: str, value: Any) -> str:
    """What is wrong with a value where something else is expected."""
    return f"expected {expected}, not {'nothing' if value is None else repr(value)}"


def must(expected: str, fits: Callable[[Any], bool]) -> Check:
    """A check by a predicate."""
    return lambda value: "" if fits(value) else unlike(expected, value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


text = must("a text", lambda value: isinstance(value, str) and bool(value.strip()))
boolean = must("true or false", lambda value: isinstance(value, bool))
positive = must("a number above 0", lambda value: _is_number(value) and value > 0)
not_negative = must("a number of 0 or more", lambda value: _is_number(value) and value >= 0)
share = must("a number above 0, at most 1", lambda value: _is_number(value) and 0 < value <= 1)
count = must("a whole number of 1 or more", lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 1)


def one_of(allowed: Container[str]) -> Check:
    return must(f"one of {', '.join(allowed)}", lambda value: isinstance(value, str) and value in allowed)


def list_of(check: Check) -> Check:
    """A list of at least one, each fit by ``check``."""

    def wrong(value: Any) -> str:
        if not isinstance(value, list) or not value:
            return unlike("a list of one or more", value)
        return next((f"number {n}: {found}" for n, each in enumerate(value, 1) if (found := check(each))), "")

    return wrong


def mapping_of(key: Check, value: Check) -> Check:
    """A mapping of at least one, whatever its keys, fit by ``key``, are."""

    def wrong(found: Any) -> str:
        if not isinstance(found, dict) or not found:
            return unlike("a mapping of one or more", found)
        return next((f"{k}: {told}" for k, v in found.items() if (told := key(k) or value(v))), "")

    return wrong


def fields(needed: Mapping[str, Check], optional: Mapping[str, Check]) -> Check:
    """A mapping that has all of the needed fields, and beside them none but optional ones."""
    checks = {**needed, **optional}

    def wrong(value: Any) -> str:
        if not isinstance(value, dict):
            return unlike(f"a mapping with {', '.join(needed or optional)}", value)
        if missing := [name for name in needed if name not in value]:
            return f"missing: {', '.join(missing)}"
        if unknown := [name for name in value if name not in checks]:
            return f"unknown: {', '.join(map(str, unknown))}; there are {', '.join(checks)}"
        return next((f"{name}: {told}" for name, part in value.items() if (told := checks[name](part))), "")

    return wrong
