"""Read a plug-in's fields, attributes and search spaces from its source with ``ast``. Runs no plug-in's code.

What would be ignored when the plug-in runs is refused here: a field of a class that is no dataclass, a misspelt hook.
"""

from __future__ import annotations

import ast
import copy
import difflib
import functools
import math
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import contract
from harness.failures import UserError

ROOT = Path(__file__).resolve().parent.parent
BASES = {"methods": "Method", "corpora": "Corpus", "evals": "Eval"}


@dataclass
class Source:
    """What is read of one class and its bases."""

    class_name: str
    fields: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    methods: set[str] = field(default_factory=set)
    searches: dict[str, dict] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    seen: set[tuple[Path, str]] = field(default_factory=set)


def describe(kind: str, path: Path) -> Source:
    """The one public class of a plug-in file."""
    tree = parse(path)
    public = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    where = f"{kind}/{path.name}"
    if len(public) != 1:
        found = ", ".join(node.name for node in public) or "none"
        raise UserError(
            f"{where} must define exactly one public class, found {found}. Start others with an underscore."
        )
    source = Source(public[0].name)
    if not _collect(path, public[0].name, source):
        raise UserError(f"{where}: class {public[0].name} must derive from harness.contract.{BASES[kind]}.")
    _check_hooks(kind, source, where)
    return source


def _check_hooks(kind: str, source: Source, where: str) -> None:
    """Refuse a method whose name is nearly a hook's: it would never be called."""
    contracted = vars(getattr(contract, BASES[kind])).items()
    hooks = [name for name, value in contracted if isinstance(value, types.FunctionType) and not name.startswith("_")]
    for name in sorted(source.methods):
        near = difflib.get_close_matches(name, hooks, n=1, cutoff=0.8)
        if near and name not in hooks and not name.startswith("_"):
            raise UserError(
                f"{where}: {source.class_name}.{name} is no hook and would never be called. Did you mean '{near[0]}'? "
                f"A helper of your own takes a leading underscore: _{name}."
            )


def request_types(path: Path) -> set[str]:
    """Requests that an eval's file and its shared parts make, by class; those of Choices that surely have no ``input``
    under a name of their own."""
    todo, seen, found = [path], set(), set()
    while todo:
        file = todo.pop()
        if file in seen or file.parent == ROOT / "harness":
            continue
        seen.add(file)
        tree = parse(file)
        todo += [imported for imported, _, _ in local_imports(file, tree)]
        calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id in ("Choices", "Generate", "Reference"):
                bare = node.id == "Choices" and id(node) in calls and not _has_input(calls[id(node)])
                found.add("Choices without an input" if bare else node.id)
    return found


def _has_input(call: ast.Call) -> bool:
    """Whether a call of Choices gives, or may give, its third argument."""
    starred = any(isinstance(argument, ast.Starred) for argument in call.args)
    return starred or len(call.args) > 2 or any(word.arg in ("input", None) for word in call.keywords)


@functools.cache
def parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        raise UserError(f"{path.parent.name}/{path.name}:{error.lineno}: not valid Python: {error.msg}") from None
    except ValueError as error:
        raise UserError(f"{path.parent.name}/{path.name}: not valid Python: {error}") from None


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


def _collect(path: Path, class_name: str, source: Source) -> bool:
    """Add the class's fields, attributes, methods and search spaces, its bases' first, the last base first, none twice.

    True when the class derives from the contract.
    """
    source.seen.add((path, class_name))
    tree = parse(path)
    node = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name), None)
    if node is None:
        return False
    is_contract = path == ROOT / "harness" / "contract.py"
    derives = is_contract and class_name in BASES.values()
    imported = {here: (file, name) for file, name, here in local_imports(path, tree)}
    for base in reversed(node.bases):
        if isinstance(base, ast.Name):
            file, name = imported.get(base.id, (path, base.id))
            if (file, name) not in source.seen:
                derives |= _collect(file, name, source)
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            if "ClassVar" in ast.unparse(item.annotation):
                source.attributes[item.target.id] = _literal(item.value, path)
            else:
                _require_decorator(node, item, path)
                _add_field(item, source, path, imported)
        elif isinstance(item, ast.Assign):
            for target in item.targets:
                if isinstance(target, ast.Name):
                    _refuse_bare(target, source, path)
                    source.attributes[target.id] = _literal(item.value, path)
        elif isinstance(item, ast.FunctionDef) and not is_contract:
            source.methods.add(item.name)
    return derives


def _add_field(item: ast.AnnAssign, source: Source, path: Path, imported: dict) -> None:
    name = item.target.id
    source.fields[name] = source.attributes[name] = _default(item.value, path)
    source.whole.discard(name)
    if ast.unparse(item.annotation) == "int":
        source.whole.add(name)
    source.searches.pop(name, None)
    if space := _space(item, path, imported):
        source.searches[name] = space


def _require_decorator(node: ast.ClassDef, item: ast.AnnAssign, path: Path) -> None:
    """A class with a field of its own is a dataclass: else it would be constructed with its base's values."""
    used = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    if not any(ast.unparse(decorator).split(".")[-1] == "dataclass" for decorator in used):
        raise UserError(
            f"{path.parent.name}/{path.name}:{node.lineno}: class {node.name} has the field '{item.target.id}' and is no "
            "dataclass, so the field would be ignored: write @dataclass above the class."
        )


def _refuse_bare(target: ast.Name, source: Source, path: Path) -> None:
    """``rank = 8`` under a base that has the field: a dataclass goes on with the base's value."""
    if target.id in source.fields:
        raise UserError(
            f"{path.parent.name}/{path.name}:{target.lineno}: '{target.id}' is a field, and without its type the value "
            f"would be ignored: write `{target.id}: TYPE = ...`."
        )


def _literal(node: ast.expr | None, path: Path) -> Any:
    """The value of an expression of literals and of names of module-level literals; else its source text."""
    if node is None:
        return ...
    try:
        return ast.literal_eval(_Constants(path).visit(copy.deepcopy(node)))
    except ValueError:
        return ast.unparse(node)


def _is_written_out(part: ast.expr) -> bool:
    return isinstance(part, ast.Starred) and isinstance(part.value, ast.Tuple | ast.List)


class _Constants(ast.NodeTransformer):
    """Puts the values of a file's module-level names in their place, names imported from shared parts too."""

    def __init__(self, path: Path):
        self.path = path

    def visit_Tuple(self, node: ast.Tuple) -> ast.expr:
        self.generic_visit(node)
        parts = [part.value.elts if _is_written_out(part) else [part] for part in node.elts]
        return ast.Tuple([part for several in parts for part in several], ast.Load())

    def visit_Name(self, node: ast.Name) -> ast.expr:
        tree = parse(self.path)
        for item in tree.body:
            if isinstance(item, ast.Assign) and any(isinstance(t, ast.Name) and t.id == node.id for t in item.targets):
                return self.visit(copy.deepcopy(item.value))
        for file, name, here in local_imports(self.path, tree):
            if here == node.id and name:
                return _Constants(file).visit(ast.Name(name, ast.Load()))
        return node


def _space(item: ast.AnnAssign, path: Path, imported: dict) -> dict | None:
    """The tuning space of ``field(default=..., metadata={"search": log_uniform(1e-5, 1e-2)})``, where there is one."""
    words = item.value.keywords if isinstance(item.value, ast.Call) else []
    metadata = next((word.value for word in words if word.arg == "metadata"), None)
    if not isinstance(metadata, ast.Dict):
        return None
    entries = zip(metadata.keys, metadata.values, strict=True)
    call = next((v for k, v in entries if isinstance(k, ast.Constant) and k.value == "search"), None)
    if call is None:
        return None
    where = f"{path.parent.name}/{path.name}:{call.lineno}: {item.target.id}"
    name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
    name = imported.get(name, (path, name))[1]
    if name not in SPACES:
        raise UserError(f"{where}: a search space is one of {', '.join(SPACES)}")
    given = _literal(ast.Tuple(call.args, ast.Load()), path)
    named = {word.arg: _literal(word.value, path) for word in call.keywords}
    return SPACES[name](where, given, named)


def _log_uniform(where: str, given: tuple | str, named: dict) -> dict:
    try:
        space = contract.log_uniform(*given, **named)
    except TypeError:
        raise UserError(f"{where}: log_uniform takes two bounds, as in log_uniform(1e-5, 1e-2)") from None
    low, high = space["low"], space["high"]
    for bound in (low, high):
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not 0 < bound < math.inf:
            raise UserError(f"{where}: a bound of log_uniform is a number above 0, not {bound!r}")
    if low >= high:
        raise UserError(f"{where}: log_uniform({low}, {high}): the lower bound comes first")
    return space


def _choice(where: str, given: tuple | str, named: dict) -> dict:
    if named or not given or isinstance(given, str) or (len(given) == 1 and isinstance(given[0], list | tuple)):
        raise UserError(f"{where}: choice takes its values one by one, written out, as in choice(8, 16)")
    return contract.choice(*given)


SPACES = {"log_uniform": _log_uniform, "choice": _choice}


def _default(node: ast.expr | None, path: Path) -> Any:
    """A field's default: of ``x: int = 3``, ``field(default=3, ...)`` or ``field(default_factory=dict)``."""
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "field":
        given = {word.arg: word.value for word in node.keywords}
        if "default" in given:
            return _literal(given["default"], path)
        factory = ast.unparse(given["default_factory"]) if "default_factory" in given else None
        return {"dict": {}, "list": [], "tuple": ()}.get(factory, factory if factory else ...)
    return _literal(node, path)
