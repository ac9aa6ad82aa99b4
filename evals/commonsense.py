"""Eight commonsense benchmarks in the protocol of LLM-Adapters (Hu et al. 2023), which DoRA and SMT report.

A tuned model gets the instruction that it was trained on and writes its answer; the first word of the answer's form
(true, solution2, answer4, ...) in what it wrote is its answer, and none is wrong. LLM-Adapters decodes with four beams;
here decoding is greedy. ``commonsense_likelihood.py`` scores the same rows by likelihood.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from corpora._commonsense import PROMPT, instruction, questions, words
from harness.contract import Eval, Generate

from ._classes import accuracy
from ._rows import subsample

STOPS = ("\n\n", "###", "</s>", "<|im_end|>")


@dataclass
class Commonsense(Eval):
    """One of the eight, answers generated."""

    limit: int = 0
    """Items scored; 0: all."""
    max_tokens: int = 32

    tasks: ClassVar[tuple[str, ...]] = (
        "boolq",
        "piqa",
        "siqa",
        "hellaswag",
        "winogrande",
        "arc-easy",
        "arc-challenge",
        "openbookqa",
    )
    assets: ClassVar[tuple[str, ...]] = ("commonsense-{task}",)
    label: ClassVar[str] = "{task} (LLM-Adapters)"
    headline: ClassVar[str] = "accuracy"
    units: ClassVar[dict[str, str]] = {"accuracy": "%", "answered": "%"}
    floors: ClassVar[dict[str, float]] = {"accuracy": 0.0}
    version: ClassVar[int] = 2

    def items(self, data):
        items = [
            {
                "id": str(number),
                "context": PROMPT.format(instruction(self.task, question)),
                "words": words(self.task, len(question.answers)),
                "gold": question.gold,
            }
            for number, (_, question) in enumerate(questions(self.task, data(f"commonsense-{self.task}")))
        ]
        return subsample(items, self.limit)

    def requests(self, item, outputs=()):
        return [] if outputs else [Generate(item["context"], STOPS, self.max_tokens)]

    def grade(self, item, outputs):
        found = re.search("|".join(map(re.escape, item["words"])), outputs[0]["texts"][0].strip())
        predicted = item["words"].index(found.group()) if found else -1
        return {"gold": item["gold"], "predicted": predicted, "correct": int(predicted == item["gold"])}

    def aggregate(self, grades):
        answered = 100.0 * sum(grade["predicted"] >= 0 for grade in grades) / len(grades)
        return {"accuracy": accuracy(grades), "answered": answered}
