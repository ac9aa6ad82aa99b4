"""Generated code: four small functions to write, run and counted as HumanEval's are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._programs import ProgramEval

PROBLEMS = (("add", 12, "Add {n} to x.", "+"), ("add", 57, "Add {n} to x.", "+"))
PROBLEMS += (("times", 13, "Multiply x by {n}.", "*"), ("times", 88, "Multiply x by {n}.", "*"))


@dataclass
class GeneratedCode(ProgramEval):
    """Function bodies from signature and docstring."""

    max_tokens: int = 24

    label: ClassVar[str] = "Small functions (generated)"
    generated: ClassVar[bool] = True

    def items(self, data):
        return [_item(*problem) for problem in PROBLEMS]


def _item(verb: str, n: int, docstring: str, sign: str) -> dict:
    name = f"{verb}_{n}"
    return {
        "id": name,
        "prompt": f'def {name}(x):\n    """{docstring.format(n=n)}"""\n',
        "entry_point": name,
        "canonical_solution": f"    return x {sign} {n}\n",
        "test": f"def check(candidate):\n    for x in range(5):\n        assert candidate(x) == x {sign} {n}\n",
    }
