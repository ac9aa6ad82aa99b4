"""Python functions as HumanEval shows them: signature and docstring as a prompt, the body as what should follow."""

from __future__ import annotations

import ast
from pathlib import Path

from ._rows import read_rows


def quoted(text: str) -> str:
    """A docstring of a top-level function, its first line beside the quotes."""
    first, *rest = text.split("\n")
    inside = "\n".join([first, *(f"    {line}".rstrip() for line in rest), "    "]) if rest else first
    return ('r"""' if "\\" in text else '"""') + inside + '"""'


def body_key(function: ast.FunctionDef) -> str:
    """The body as the parser sees it, without its docstring: the same for another layout or other comments."""
    statements = function.body[1:] if ast.get_docstring(function) else function.body
    return "\n".join(ast.dump(statement) for statement in statements)


def tested(path: Path) -> tuple[set[str], set[str]]:
    """Names and bodies of all functions of HumanEval's prompts and canonical solutions."""
    functions = []
    for row in read_rows(path, ("prompt", "canonical_solution")):
        tree = ast.parse(row["prompt"] + row["canonical_solution"])
        functions += [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {function.name for function in functions}, {body_key(function) for function in functions}
