"""Generated code: one-line functions that add or multiply, with signature and docstring as in HumanEval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Completion

from ._generated import GeneratedCorpus

OPERATIONS = {"add": ("Add {n} to x.", "+"), "times": ("Multiply x by {n}.", "*")}


@dataclass
class GeneratedCode(GeneratedCorpus):
    """A function's signature and docstring to its body."""

    evals: ClassVar[tuple[str, ...]] = ("generated-code",)
    label: ClassVar[str] = "Small functions (generated)"
    example: ClassVar[type] = Completion

    def example_of(self, draw, number):
        verb, n = draw.choice(tuple(OPERATIONS)), draw.randint(10, 99)
        docstring, sign = OPERATIONS[verb]
        prompt = f'def {verb}_{n}(x):\n    """{docstring.format(n=n)}"""'
        return Completion(prompt, f"\n    return x {sign} {n}\n")
