"""Hashes of code: what a stage's result depends on, and nothing else.

A file's closure is the file and every file of this project that it imports. Comments and docstrings do not count.
For predictions an eval counts without its grading, so that a metric can change and only scoring runs again.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

from harness.plugins import ROOT, local_imports

GRADING = frozenset(
    {
        "grade",
        "aggregate",
        "corpus_level",
        "majority",
        "version",
        "headline",
        "units",
        "lower_is_better",
        "floor_value",
        "floors",
        "label",
        "evals",
        "signatures",
    }
)
BOOKKEEPING = frozenset(
    {
        "assets",
        "cells",
        "checkpoint",
        "closure",
        "child",
        "dag",
        "failures",
        "measure",
        "plugin_source",
        "plugins",
        "prepare",
        "progress",
        "provenance",
        "record",
        "rows",
        "sources",
        "strict_yaml",
        "suite",
        "suite_checks",
        "trials",
    }
    | {"supervise", "warm"}
)
"""Modules of the harness that move numbers about without changing one."""


def code_hash(files: Iterable[Path], *, grading: bool = True) -> str:
    """Hexadecimal hash of the closure of ``files``. ``grading=False`` leaves an eval's grading out."""
    todo, seen = [Path(f).resolve() for f in files], {}
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        status = path.stat()
        bare_of_grading = not grading and path.parent.name == "evals"
        seen[path], imports = _digest(path, (status.st_mtime_ns, status.st_size), bare_of_grading)
        todo += imports
    lines = sorted(f"{path.relative_to(ROOT)} {value}" for path, value in seen.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@functools.cache
def _digest(path: Path, stamp: tuple[int, int], bare_of_grading: bool) -> tuple[str, list[Path]]:
    """(hash of one file, the project's files that it imports); ``stamp`` makes an edited file another."""
    tree = _bare(path)
    if bare_of_grading:
        tree = _without_grading(tree)
    imports = [file for file, _, _ in local_imports(path, tree)]
    imports = [f for f in imports if not (f.parent == ROOT / "harness" and f.stem in BOOKKEEPING)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), imports


def _bare(path: Path) -> ast.Module:
    """The file's syntax tree without docstrings (comments are not in it anyway)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [n for n in body if not _is_string(n)]
    return tree


def _is_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _without_grading(tree: ast.Module) -> ast.Module:
    """Drop grading members of classes, then every module-level definition that nothing left refers to.

    A public class is kept, and so is anything that could act on import. In a shared file of functions, what the
    classes of other files use is unknown here, so functions stay unless only grading members of this file use them.
    """
    dropped: list[ast.AST] = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            keep = [item for item in node.body if not _defines(item) & GRADING]
            dropped += [item for item in node.body if item not in keep]
            node.body = keep
    graded = _names(dropped)
    while True:
        used = _names([n for n in tree.body if isinstance(n, ast.ClassDef)] + [n for n in tree.body if not _defines(n)])
        used |= _names(
            [n for n in tree.body if _defines(n) and not _defines(n) & graded and not isinstance(n, ast.ClassDef)]
        )
        gone = [n for n in tree.body if _defines(n) and _defines(n) & graded and not _defines(n) & used]
        gone = [n for n in gone if not isinstance(n, ast.ClassDef)]
        if not gone:
            return tree
        tree.body = [n for n in tree.body if n not in gone]
        graded |= _names(gone)


def _defines(node: ast.AST) -> set[str]:
    """Names that a statement binds."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {alias.asname or alias.name.split(".")[0] for alias in node.names}
    return set()


def _names(nodes: Iterable[ast.AST]) -> set[str]:
    """Names that statements read."""
    return {n.id for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
