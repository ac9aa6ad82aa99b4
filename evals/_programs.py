"""Problems whose answer is a Python function: the model writes its body, the problem's tests decide.

The prompt is given without the white space at its end: the line break after the docstring belongs to the text, as it does
in the corpora (``docstring-code``, ``mbpp``). With it, the prompt ends in a token that training never shows there, and many
texts are empty. Generation ends where a new top-level statement begins, as in lm-evaluation-harness's ``humaneval``. The
program is what was given + text; ``check(entry_point)`` runs in a process of its own and calls it across a wall
(harness/sandbox.py). The canonical solution's likelihood is measured, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Eval, Generate, Reference
from harness.sandbox import strongest_level

from ._pass_at_k import pass_rates, program_counts
from ._reference import nats_per_token, reference_counts

STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
COLUMNS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")


@dataclass
class ProgramEval(Eval):
    """Items have ``id`` and COLUMNS but the first."""

    max_tokens: int = 1024
    """Longest generated body."""
    samples: int = 1
    """Programs a problem, n of pass@k; 1 is greedy, more need a temperature."""
    temperature: float = 0.0

    headline: ClassVar[str] = "pass_at_1"
    units: ClassVar[dict[str, str]] = {
        "pass_at_1": "%",
        "pass_at_10": "%",
        "programs": "per problem",
        "reference_nll": "nats/token",
    }
    lower_is_better: ClassVar[tuple[str, ...]] = ("reference_nll",)
    floors: ClassVar[dict[str, float]] = {"pass_at_1": 0.0, "pass_at_10": 0.0}
    version: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if self.samples < 1 or self.temperature < 0:
            raise ValueError(f"samples: {self.samples}, temperature: {self.temperature}: at least 1 and at least 0")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples: {self.samples} at temperature 0 are all the same: set a temperature, or samples: 1"
            )

    def given(self, item: dict) -> str:
        """What the model goes on from."""
        return item["prompt"].rstrip()

    def requests(self, item: dict, outputs: Sequence[dict] = ()) -> list:
        if outputs:
            return []
        prompt, stripped = item["prompt"], item["prompt"].rstrip()
        return [
            Generate(self.given(item), STOPS, self.max_tokens, self.temperature, self.samples),
            # White space at the border belongs to the continuation, as lm-evaluation-harness scores a text.
            Reference(stripped, prompt[len(stripped) :] + item["canonical_solution"]),
        ]

    def grade(self, item: dict, outputs: Sequence[dict]) -> dict:
        generated, reference = outputs
        name = item["entry_point"]
        # The prompt gives the tests its imports and helpers; the function itself is the program's.
        tests = f"{item['prompt']}\n{name} = __remote__({name!r})\n{item['test']}\ncheck({name})"
        programs = [self.given(item) + text for text in generated["texts"]]
        return {**program_counts(programs, tests), **reference_counts(reference)}

    def aggregate(self, grades: Sequence[dict]) -> dict[str, float]:
        return {**pass_rates(grades), "reference_nll": nats_per_token(grades)}

    def signatures(self) -> dict[str, str]:
        """The level of isolation at which programs run on this machine, and how they were drawn."""
        drawn = f"{self.samples} at temperature {self.temperature:g}" if self.temperature else "1, greedy"
        return {"sandbox": strongest_level(), "programs a problem": drawn}
