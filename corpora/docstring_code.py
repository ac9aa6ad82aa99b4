"""Docstring-to-body pairs: functions of networkx and more-itertools, as their sources in the PyPI wheels have them.

The prompt looks like one of HumanEval's: the signature without decorators and the docstring, here up to its first
section ("Parameters", "Notes", ...), with the examples where there is room. The completion is the body, comments
included. Validation is one module in ten. Functions that share a name or a body with a HumanEval problem are left out,
and of equal bodies only the first is kept, so neither test nor validation is among the training rows.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from harness.contract import Completion, Corpus

from ._functions import body_key, quoted, tested
from ._rows import bucket, check_split, chosen

SOURCES = ("networkx-source", "more-itertools-source")
MODULES_PER_VALIDATION = 10
SECTION = re.compile(r"^([A-Z][\w ]+)\n-{3,}\n", re.MULTILINE)


@dataclass
class DocstringCode(Corpus):
    """Signature and docstring to function body."""

    limit: int = 0
    """Training examples; 0: all."""
    max_characters: int = 600
    """Longest prompt and body together; 600 characters are seldom more than 200 tokens."""

    assets: ClassVar[tuple[str, ...]] = (*SOURCES, "humaneval")
    evals: ClassVar[tuple[str, ...]] = ("humaneval",)
    label: ClassVar[str] = "Docstring-to-body pairs (networkx, more-itertools)"
    example: ClassVar[type] = Completion

    def examples(self, split, data):
        check_split(split)
        names, bodies = tested(data("humaneval") / "test.jsonl")
        pairs = []
        for asset in SOURCES:
            folder = data(asset)
            for path in sorted(folder.rglob("*.py")):
                module = path.relative_to(folder).as_posix()
                in_validation = bucket(module, MODULES_PER_VALIDATION) == 0
                for function, lines in _documented(path):
                    pair = _pair(function, lines, self.max_characters)
                    if pair is None or function.name in names or (body := body_key(function)) in bodies:
                        continue
                    bodies.add(body)
                    if in_validation == (split == "validation"):
                        pairs.append(pair)
        return chosen(pairs, split, self.limit)


def _documented(path: Path) -> Iterator[tuple[ast.FunctionDef, list[str]]]:
    """Top-level functions with a docstring and something after it, and the file's lines."""
    source = path.read_text(encoding="utf-8")
    lines = source.split("\n")
    for node in ast.parse(source, filename=str(path)).body:
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) and len(node.body) > 1:
            yield node, lines


def _pair(function: ast.FunctionDef, lines: list[str], max_characters: int) -> Completion | None:
    """The function as prompt and completion; None where it is too long or cannot be divided by lines."""
    docstring, first = function.body[0], function.body[1]
    if first.lineno <= docstring.end_lineno:
        return None
    body = "\n".join(lines[docstring.end_lineno : function.end_lineno]).strip("\n")
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    signature = f"def {function.name}({ast.unparse(function.args)}){returns}:"
    for text in _texts(docstring.value.value):
        # No blank after the quotes: the line break belongs to the completion, as lm-evaluation-harness divides texts.
        prompt = f"{signature}\n    {quoted(text)}"
        if len(prompt) + len(body) <= max_characters and '"""' not in text:
            return Completion(prompt, f"\n{body}\n")
    return None


def _texts(docstring: str) -> list[str]:
    """What may stand in the prompt: the docstring's description with its examples, or the description alone."""
    description, *sections = SECTION.split(inspect.cleandoc(docstring))
    description = description.strip()
    examples = dict(zip(sections[::2], sections[1::2], strict=True)).get("Examples", "").strip()
    texts = [f"{description}\n\n{examples}"] if examples else []
    return [*texts, description] if description else []
