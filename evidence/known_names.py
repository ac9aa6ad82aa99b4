"""Checks of names in a paper's YAML files: a method or an eval that nothing here has would never be compared."""

from __future__ import annotations

import difflib
import functools
from typing import Any

from evidence import checked_yaml as checked
from evidence.names import FAMILIES
from harness.plugins import available


def method(value: Any) -> str:
    """A method's plug-in."""
    return checked.text(value) or _among("method", value, _plugins("methods"))


def family(value: Any) -> str:
    """A family of variants, as ``evidence.names`` tells it, or a method's plug-in."""
    return checked.text(value) or _among("method", value, [*FAMILIES, *_plugins("methods")])


def eval_name(value: Any) -> str:
    return checked.text(value) or _among("eval", value, _plugins("evals"))


def eval_start(value: Any) -> str:
    """What the name of one or more evals begins with, ``glue`` or ``glue-sst2``."""
    names = _plugins("evals")
    fits = isinstance(value, str) and any(name.startswith(value) for name in names)
    return checked.text(value) or ("" if fits else _among("eval", value, names))


@functools.cache
def _plugins(kind: str) -> list[str]:
    return available(kind, broken=True)


def _among(noun: str, name: str, names: list[str]) -> str:
    if name in names:
        return ""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"there is no {noun} '{name}'" + (f". Did you mean '{near[0]}'?" if near else "")
