"""Names of the methods and evals that the project has, read off their files; nothing of them runs."""

from __future__ import annotations

import ast
import difflib
import functools
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def methods() -> tuple[str, ...]:
    return tuple(path.stem.replace("_", "-") for path in sorted((ROOT / "methods").glob("[!_]*.py")))


@functools.cache
def evals() -> tuple[str, ...]:
    """Each task of a file under its own name."""
    names: list[str] = []
    for path in sorted((ROOT / "evals").glob("[!_]*.py")):
        stem = path.stem.replace("_", "-")
        names += [f"{stem}-{task}" for task in _tasks(path)] or [stem]
    return tuple(names)


def _tasks(path: Path) -> tuple[str, ...]:
    """The literal ``tasks`` of a file's class; of a file that cannot be read so, none."""
    try:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "tasks" and node.value:
                return tuple(ast.literal_eval(node.value))
    except (SyntaxError, ValueError):
        pass
    return ()


def unknown(noun: str, name: str, names: Iterable[str]) -> str:
    """What to say of a name that is none of ``names``."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"there is no {noun} '{name}'" + (f". Did you mean '{near[0]}'?" if near else "")
