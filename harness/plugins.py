"""Find methods, corpora and evals by file name; read their fields with ``ast``; load them by path.

``methods/lora.py`` is the method ``lora``; ``corpora/sentence_pairs.py`` with task "en-de" is ``sentence-pairs-en-de``.
A leading underscore marks shared parts. Finding runs no plug-in code, so a typo is refused before anything starts.
"""

from __future__ import annotations

import ast
import copy
import difflib
import functools
import importlib
import re
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.contract import choice, log_uniform
from harness.failures import UserError

ROOT = Path(__file__).resolve().parent.parent
BASES = {"methods": "Method", "corpora": "Corpus", "evals": "Eval"}
SPACES = {"log_uniform": log_uniform, "choice": choice}


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

    def names(self, attribute: str) -> tuple[str, ...]:
        """A tuple of names such as ``assets`` or ``evals``, with the task filled in."""
        return tuple(value.replace("{task}", self.task) for value in self.attributes.get(attribute) or ())

    @property
    def label(self) -> str:
        return (self.attributes.get("label") or self.name).replace("{task}", self.task)


def available(kind: str) -> list[str]:
    """Names of all plug-ins of a kind, each task of a file under its own name."""
    names = []
    for path in sorted((ROOT / kind).glob("[!_]*.py")):
        stem = path.stem.replace("_", "-")
        tasks = _describe(kind, path)[2].get("tasks") or ()
        names += [f"{stem}-{task}" for task in tasks] or [stem]
    return names


@functools.cache
def find_plugin(kind: str, name: str) -> Plugin:
    """The plug-in of that name. Raises UserError with the nearest names when there is none."""
    stem, parts = name.replace("-", "_"), name.split("-")
    for cut in range(len(parts), 0, -1):
        path = ROOT / kind / ("_".join(parts[:cut]) + ".py")
        task = "-".join(parts[cut:])
        if not path.is_file() or path.name.startswith("_"):
            continue
        class_name, fields, attributes, methods, searches = _describe(kind, path)
        tasks = attributes.get("tasks") or ()
        if (task in tasks) if task or tasks else True:
            return Plugin(kind, name, path, task, class_name, fields, attributes, methods, searches)
        raise UserError(
            f"{kind}/{path.name} has the tasks {', '.join(tasks) or '(none)'}: "
            + (f"'{task}' is not one of them" if task else f"name one, as in {parts[0]}-{tasks[0]}")
        )
    near = difflib.get_close_matches(name, available(kind), n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(available(kind))}."
    raise UserError(f"no {BASES[kind].lower()} '{name}': {kind}/{stem}.py does not exist. {hint}")


def check_fields(plugin: Plugin, given: dict, where: str) -> None:
    """Refuse a field that the plug-in does not have, and text for a method's number."""
    for key, value in given.items():
        if key not in plugin.fields or (key == "task" and plugin.kind != "methods"):
            near = difflib.get_close_matches(key, plugin.fields, n=1, cutoff=0.5)
            hint = f"Did you mean '{near[0]}'? " if near else ""
            raise UserError(f"{where}: {plugin.name} has no field '{key}'. {hint}It has: {', '.join(plugin.fields)}.")
        default = plugin.fields[key]
        number = isinstance(default, int | float) and not isinstance(default, bool)
        if plugin.kind == "methods" and number and isinstance(value, str):
            raise UserError(f"{where}: {plugin.name}'s '{key}' is a number, not {value!r}.{as_number(value)}")


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


# --------------------------------------------------------------------------- reading source


def _describe(kind: str, path: Path) -> tuple[str, dict, dict, frozenset, dict]:
    """(class name, fields, class attributes, method names, search spaces) of the one public class of a plug-in file."""
    tree = _parse(path)
    public = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    where = f"{kind}/{path.name}"
    if len(public) != 1:
        found = ", ".join(node.name for node in public) or "none"
        raise UserError(
            f"{where} must define exactly one public class, found {found}. Start others with an underscore."
        )
    fields: dict[str, Any] = {}
    attributes: dict[str, Any] = {}
    methods: set[str] = set()
    searches: dict[str, dict] = {}
    if not _collect(path, public[0].name, (fields, attributes, methods, searches), set()):
        raise UserError(f"{where}: class {public[0].name} must derive from harness.contract.{BASES[kind]}.")
    return public[0].name, fields, attributes, frozenset(methods), searches


@functools.cache
def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        raise UserError(f"{path.parent.name}/{path.name}:{error.lineno}: not valid Python: {error.msg}") from None


def local_imports(path: Path, tree: ast.AST) -> list[tuple[Path, str, str]]:
    """(file, name in it, name here) of every import of a file of this project; the name is "" for a whole module."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            folder = path.parent if node.level else ROOT
            base = folder.joinpath(*(node.module or "").split(".")) if node.module else folder
            for alias in node.names:
                if base.with_suffix(".py").is_file():
                    found.append((base.with_suffix(".py"), alias.name, alias.asname or alias.name))
                elif (base / f"{alias.name}.py").is_file():
                    found.append((base / f"{alias.name}.py", "", alias.asname or alias.name))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                target = ROOT.joinpath(*alias.name.split(".")).with_suffix(".py")
                if target.is_file():
                    found.append((target, "", alias.asname or alias.name))
    return found


def _collect(path: Path, class_name: str, found: tuple[dict, dict, set, dict], seen: set) -> bool:
    """Add the class's fields, attributes, methods and search spaces, its bases' first, the last base first, none twice.

    True when the class derives from the contract.
    """
    seen.add((path, class_name))
    fields, attributes, methods, searches = found
    tree = _parse(path)
    node = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name), None)
    if node is None:
        return False
    contract = path == ROOT / "harness" / "contract.py"
    derives = contract and class_name in BASES.values()
    imported = {here: (file, name) for file, name, here in local_imports(path, tree)}
    for base in reversed(node.bases):
        if isinstance(base, ast.Name):
            file, name = imported.get(base.id, (path, base.id))
            if (file, name) not in seen:
                derives |= _collect(file, name, found, seen)
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            if "ClassVar" in ast.unparse(item.annotation):
                attributes[item.target.id] = _literal(item.value, path)
            else:
                fields[item.target.id] = _default(item.value, path)
                attributes[item.target.id] = fields[item.target.id]
                searches.pop(item.target.id, None)
                if space := _space(item.value, path, imported):
                    searches[item.target.id] = space
        elif isinstance(item, ast.Assign):
            for target in item.targets:
                if isinstance(target, ast.Name):
                    attributes[target.id] = _literal(item.value, path)
                    if target.id in fields:
                        fields[target.id] = attributes[target.id]
        elif isinstance(item, ast.FunctionDef) and not contract:
            methods.add(item.name)
    return derives


def _literal(node: ast.expr | None, path: Path) -> Any:
    """The value of an expression of literals and of names of module-level literals; else its source text."""
    if node is None:
        return ...
    try:
        return ast.literal_eval(_Constants(path).visit(copy.deepcopy(node)))
    except ValueError:
        return ast.unparse(node)


class _Constants(ast.NodeTransformer):
    """Puts the values of a file's module-level names in their place, names imported from shared parts too."""

    def __init__(self, path: Path):
        self.path = path

    def visit_Tuple(self, node: ast.Tuple) -> ast.expr:
        self.generic_visit(node)
        parts = [part.value.elts if isinstance(part, ast.Starred) else [part] for part in node.elts]
        return ast.Tuple([part for several in parts for part in several], ast.Load())

    def visit_Name(self, node: ast.Name) -> ast.expr:
        tree = _parse(self.path)
        for item in tree.body:
            if isinstance(item, ast.Assign) and any(isinstance(t, ast.Name) and t.id == node.id for t in item.targets):
                return self.visit(copy.deepcopy(item.value))
        for file, name, here in local_imports(self.path, tree):
            if here == node.id and name:
                return _Constants(file).visit(ast.Name(name, ast.Load()))
        return node


def _space(node: ast.expr | None, path: Path, imported: dict) -> dict | None:
    """The tuning space of ``field(default=..., metadata={"search": log_uniform(1e-5, 1e-2)})``, where there is one."""
    words = node.keywords if isinstance(node, ast.Call) else []
    metadata = next((word.value for word in words if word.arg == "metadata"), None)
    if not isinstance(metadata, ast.Dict):
        return None
    entries = zip(metadata.keys, metadata.values, strict=True)
    call = next((v for k, v in entries if isinstance(k, ast.Constant) and k.value == "search"), None)
    if call is None:
        return None
    name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
    name = imported.get(name, (path, name))[1]
    if name not in SPACES:
        raise UserError(f"{path.parent.name}/{path.name}:{call.lineno}: a search space is one of {', '.join(SPACES)}")
    return SPACES[name](*(_literal(argument, path) for argument in call.args))


def _default(node: ast.expr | None, path: Path) -> Any:
    """A field's default: of ``x: int = 3``, ``field(default=3, ...)`` or ``field(default_factory=dict)``."""
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "field":
        given = {word.arg: word.value for word in node.keywords}
        if "default" in given:
            return _literal(given["default"], path)
        factory = ast.unparse(given["default_factory"]) if "default_factory" in given else None
        return {"dict": {}, "list": [], "tuple": ()}.get(factory, factory if factory else ...)
    return _literal(node, path)
