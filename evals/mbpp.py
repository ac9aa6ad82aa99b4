"""MBPP (Austin et al. 2021, https://arxiv.org/abs/2108.07732): 500 test problems, three asserts each.

Prompt, its three worked examples (problems 2 to 4 of the data set's own ``prompt`` split) and the stop string are those of
lm-evaluation-harness's ``mbpp``. The asserts run in a process of their own (harness/sandbox.py); where a problem's setup
makes objects of its own class (367), which cannot cross, they run in the program's.
"""

from __future__ import annotations

import builtins
import re
from dataclasses import dataclass
from typing import ClassVar

from corpora._rows import read_rows
from harness.contract import Generate, Reference

from ._pass_at_k import program_counts
from ._programs import ProgramEval
from ._reference import reference_counts
from ._rows import subsample

COLUMNS = ("task_id", "text", "code", "test_list", "test_setup_code")
SHOWN = (2, 3, 4)


@dataclass
class MBPP(ProgramEval):
    """Programs from a sentence and three asserts."""

    limit: int = 0
    """Test problems; 0: all."""
    max_tokens: int = 256

    assets: ClassVar[tuple[str, ...]] = ("mbpp",)
    label: ClassVar[str] = "MBPP"
    version: ClassVar[int] = 1

    def items(self, data):
        shots = {row["task_id"]: row for row in read_rows(data("mbpp") / "prompt.jsonl", COLUMNS)}
        shown = "".join(f"{_asked(shots[number])}{shots[number]['code']}\n[DONE]\n\n" for number in SHOWN)
        items = [
            {
                "id": str(row["task_id"]),
                "context": shown + _asked(row),
                "code": row["code"],
                "setup": row["test_setup_code"],
                "tests": "\n".join([*_builtin_names(row), *row["test_list"]]),
            }
            for row in read_rows(data("mbpp") / "test.jsonl", COLUMNS)
        ]
        return subsample(items, self.limit)

    def requests(self, item, outputs=()):
        if outputs:
            return []
        generate = Generate(item["context"], ("[DONE]",), self.max_tokens, self.temperature, self.samples)
        return [generate, Reference(item["context"], item["code"])]

    def grade(self, item, outputs):
        programs, counts = outputs[0]["texts"], reference_counts(outputs[1])
        if not item["setup"]:
            return {**program_counts(programs, item["tests"]), **counts}
        return {**program_counts([f"{text}\n{item['setup']}\n{item['tests']}" for text in programs]), **counts}


def _builtin_names(row: dict) -> list[str]:
    """Lines that make the program's functions of the tests' built-in names that the worked solution defines (126: sum)."""
    defined = re.findall(r"^def (\w+)", row["code"], re.MULTILINE)
    return [f"{name} = __remote__({name!r})" for name in defined if hasattr(builtins, name)]


def _asked(row: dict) -> str:
    tests = "\n".join(row["test_list"][:3])
    task = (
        f"You are an expert Python programmer, and here is your task: {row['text']} Your code should pass these tests:"
    )
    return f"{task}\n\n{tests}\n[BEGIN]\n"
