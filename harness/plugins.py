"""Find methods, corpora and evals by file name, and load them by path.

``methods/lora.py`` is the method ``lora``; ``corpora/sentence_pairs.py`` with task "en-de" is ``sentence-pairs-en-de``.
A leading underscore marks shared parts. Finding runs no plug-in code, so a typo is refused before anything starts.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import re
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.failures import UserError
from harness.plugin_source import BASES, ROOT, describe, local_imports

__all__ = ["ROOT", "Plugin", "as_number", "available", "check_fields", "find_plugin", "load_plugin", "local_imports"]

TASK_LABELS = {
    "cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC", "stsb": "STS-B", "qqp": "QQP", "mnli": "MNLI", "qnli": "QNLI", "rte": "RTE",
    "wnli": "WNLI", "boolq": "BoolQ", "piqa": "PIQA", "siqa": "SIQA", "hellaswag": "HellaSwag", "winogrande": "WinoGrande",
    "arc-easy": "ARC-e", "arc-challenge": "ARC-c", "openbookqa": "OBQA", "aqua": "AQuA", "svamp": "SVAMP", "mawps": "MAWPS",
    "multi30k-en-de": "Multi30k en-de", "multi30k-en-fr": "Multi30k en-fr", "wmt14-en-fr": "WMT14 en-fr",
    "wmt16-en-de": "WMT16 en-de",
}  # fmt: skip
"""How papers write the tasks that are named otherwise in a suite."""


@dataclass(frozen=True)
class Plugin:
    """A plug-in as read from its source. ``fields`` maps each dataclass field to its default (``...``: none readable)."""

    kind: str
    name: str
    path: Path
    task: str
    class_name: str
    fields: dict[str, Any] = field(hash=False)
    attributes: dict[str, Any] = field(hash=False)
    methods: frozenset[str] = frozenset()
    searches: dict[str, dict] = field(default_factory=dict, hash=False)
    """Fields with a tuning space, and the space as ``harness.contract`` makes it."""
    whole: frozenset[str] = frozenset()
    """Fields that are annotated ``int``."""

    def names(self, attribute: str) -> tuple[str, ...]:
        """A tuple of names such as ``assets`` or ``evals``, with the task filled in."""
        return tuple(value.replace("{task}", self.task) for value in self.attributes.get(attribute) or ())

    @property
    def label(self) -> str:
        return (self.attributes.get("label") or self.name).replace("{task}", TASK_LABELS.get(self.task, self.task))


def available(kind: str, broken: bool = False) -> list[str]:
    """Names of all plug-ins of a kind, each task of a file under its own name; ``broken``: of a file that cannot be read,
    the file's own."""
    return [name for path in _files(kind) for name in _names_in(kind, path, broken)]


def _files(kind: str) -> list[Path]:
    return sorted((ROOT / kind).glob("[!_]*.py"))


def _names_in(kind: str, path: Path, broken: bool) -> list[str]:
    """Names of the plug-ins in a file; ``broken`` as above."""
    stem = path.stem.replace("_", "-")
    try:
        return [f"{stem}-{task}" for task in describe(kind, path).attributes.get("tasks") or ()] or [stem]
    except UserError:
        if not broken:
            raise
        return [stem]


@functools.cache
def find_plugin(kind: str, name: str) -> Plugin:
    """The plug-in of that name. Raises UserError with the nearest names when there is none."""
    stem, parts = name.replace("-", "_"), name.split("-")
    for cut in range(len(parts), 0, -1):
        path = ROOT / kind / ("_".join(parts[:cut]) + ".py")
        task = "-".join(parts[cut:])
        if not path.is_file() or path.name.startswith("_"):
            continue
        found = describe(kind, path)
        tasks = found.attributes.get("tasks") or ()
        if (task in tasks) if task or tasks else True:
            methods, whole = frozenset(found.methods), frozenset(found.whole)
            parts = (found.class_name, found.fields, found.attributes, methods, found.searches, whole)
            return Plugin(kind, name, path, task, *parts)
        raise UserError(
            f"{kind}/{path.name} has the tasks {', '.join(tasks) or '(none)'}: "
            + (f"'{task}' is not one of them" if task else f"name one, as in {parts[0]}-{tasks[0]}")
        )
    if (ROOT / kind / f"{name}.py").is_file():
        raise UserError(f"{kind}/{name}.py: the name of a plug-in's file takes underscores: rename it to {stem}.py")
    there = available(kind, broken=True)
    near = difflib.get_close_matches(name, there, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(there)}."
    raise UserError(f"no {BASES[kind].lower()} '{name}': {kind}/{stem}.py does not exist. {hint}")


def check_fields(plugin: Plugin, given: dict, where: str) -> None:
    """Refuse a field that the plug-in does not have, text for a method's number, and any but a whole one for an ``int``."""
    for key, value in given.items():
        if key not in plugin.fields or (key == "task" and plugin.kind != "methods"):
            near = difflib.get_close_matches(key, plugin.fields, n=1, cutoff=0.5)
            hint = f"Did you mean '{near[0]}'? " if near else ""
            raise UserError(f"{where}: {plugin.name} has no field '{key}'. {hint}It has: {', '.join(plugin.fields)}.")
        default = plugin.fields[key]
        number = isinstance(default, int | float) and not isinstance(default, bool)
        if plugin.kind == "methods" and number and isinstance(value, str):
            raise UserError(f"{where}: {plugin.name}'s '{key}' is a number, not {value!r}.{as_number(value)}")
        if key in plugin.whole and (isinstance(value, bool) or not isinstance(value, int)):
            raise UserError(f"{where}: {plugin.name}'s '{key}' is a whole number, not {value!r}")


def as_number(text: str) -> str:
    """How to write a number that YAML reads as text, such as 1e-3; empty for any other text."""
    parts = re.fullmatch(r"([-+]?\d+)(\.\d*)?(?:[eE]([-+]?\d+))?", text)
    if parts is None:
        return ""
    whole, fraction, exponent = parts.groups()
    plain = text if exponent is None else f"{whole}{fraction or '.0'}e{int(exponent):+d}"
    return " Write it without quotes." if plain == text else f" YAML reads {text} as text: write {plain}."


def load_plugin(kind: str, name: str, **fields: Any) -> Any:
    """Import the plug-in's file and construct its class with ``fields`` (the task is filled in for corpora and evals)."""
    plugin = find_plugin(kind, name)
    check_fields(plugin, fields, f"{kind}/{plugin.path.name}")
    package = f"tuning_fork_{kind}"
    if package not in sys.modules:
        module = types.ModuleType(package, f"Plug-ins of {kind}/, loaded by path.")
        module.__path__ = [str(ROOT / kind)]
        sys.modules[package] = module
    loaded = importlib.import_module(f"{package}.{plugin.path.stem}")
    if kind != "methods":
        fields["task"] = plugin.task
    for key, value in fields.items():
        if isinstance(value, list):
            fields[key] = tuple(value)
    return getattr(loaded, plugin.class_name)(**fields)
