"""MBPP (Austin et al. 2021, https://arxiv.org/abs/2108.07732): small Python problems, told as HumanEval tells its own.

A row's first tested function becomes a prompt of signature and docstring, the docstring being the problem's text with
its first test, and a completion, its body as Python's parser prints it (the rows mix tabs and spaces of every width);
what stands before the function (imports, classes) begins the prompt. Rows without such a function are left out, and so
are functions that share a name or a body with a HumanEval problem. Validation is the data set's own.
"""

from __future__ import annotations

import ast
import re
import textwrap
from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Completion, Corpus

from ._functions import body_key, quoted, tested
from ._rows import check_split, chosen, read_rows

COLUMNS = ("text", "code", "test_list")


@dataclass
class MBPP(Corpus):
    """Signature and docstring to function body."""

    limit: int = 0
    """Training examples; 0: all."""

    assets: ClassVar[tuple[str, ...]] = ("mbpp", "humaneval")
    evals: ClassVar[tuple[str, ...]] = ("humaneval",)  # whose prompts it is told in; the eval mbpp has another
    label: ClassVar[str] = "MBPP"
    example: ClassVar[type] = Completion

    def examples(self, split, data):
        check_split(split)
        names, bodies = tested(data("humaneval") / "test.jsonl")
        rows = read_rows(data("mbpp") / f"{split}.jsonl", COLUMNS)
        pairs = [pair for row in rows if (pair := _pair(row, names, bodies)) is not None]
        return chosen(pairs, split, self.limit)

    def tests(self, data):
        rows = read_rows(data("humaneval") / "test.jsonl", ("prompt", "canonical_solution"))
        return [Completion(row["prompt"].rstrip(), "\n" + row["canonical_solution"]) for row in rows]


def _pair(row: dict, names: set[str], bodies: set[str]) -> Completion | None:
    """The row's function as prompt and completion; None where it does not parse or is one of those to leave out."""
    try:
        tree = ast.parse(row["code"].replace("\r\n", "\n"))
    except SyntaxError:
        return None
    called = re.findall(r"\w+(?=\()", row["test_list"][0])
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in called]
    if not functions or functions[0].name in names or body_key(functions[0]) in bodies:
        return None
    if '"""' in row["text"]:
        return None
    function = functions[0]
    before = "".join(f"{ast.unparse(node)}\n" for node in tree.body[: tree.body.index(function)])
    docstring = quoted(f"{row['text'].strip()}\n{row['test_list'][0]}")
    body = textwrap.indent("\n".join(ast.unparse(node) for node in function.body), "    ")
    return Completion(f"{before}def {function.name}({ast.unparse(function.args)}):\n    {docstring}", f"\n{body}\n")
