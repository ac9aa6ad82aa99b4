"""Eight commonsense benchmarks by the likelihood of their answers, as lm-evaluation-harness's tasks of the same names.

boolq, piqa, social_iqa, hellaswag, winogrande, arc_easy, arc_challenge, openbookqa: prompts, answers, and both metrics.
``accuracy_norm`` divides an answer's log-likelihood by its number of characters; lm-evaluation-harness leaves it out for
boolq, siqa and winogrande. winogrande puts each option in the blank and compares the likelihoods of what follows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from corpora._commonsense import Question, questions
from harness.contract import Choices, Eval

from ._classes import accuracy, class_grade
from ._rows import subsample

UNNORMALISED = ("boolq", "siqa", "winogrande")


@dataclass
class CommonsenseLikelihood(Eval):
    """One of the eight, answers ranked."""

    limit: int = 0
    """Items scored; 0: all."""

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
    label: ClassVar[str] = "{task} (likelihood)"
    headline: ClassVar[str] = "accuracy"
    units: ClassVar[dict[str, str]] = {"accuracy": "%", "accuracy_norm": "%"}

    @property
    def floors(self) -> dict[str, float]:
        """Chance, by the usual number of answers."""
        return {"accuracy": {"boolq": 50.0, "piqa": 50.0, "winogrande": 50.0, "siqa": 100.0 / 3}.get(self.task, 25.0)}

    def items(self, data):
        items = [
            {"id": str(number), "gold": gold, "pairs": pairs}
            for number, row in enumerate(questions(self.task, data(f"commonsense-{self.task}")))
            for gold, pairs in [_pairs(self.task, *row)]
        ]
        return subsample(items, self.limit)

    def requests(self, item, outputs=()):
        if outputs:
            return []
        pairs = [tuple(pair) for pair in item["pairs"]]
        if len({context for context, _ in pairs}) == 1:
            return [Choices(pairs[0][0], tuple(f" {text}" for _, text in pairs))]
        return [Choices(context, (f" {text}",)) for context, text in pairs]

    def grade(self, item, outputs):
        found = [value for output in outputs for value in output["loglikelihoods"]]
        lengths = [len(text) for _, text in item["pairs"]]
        normal = [value / length for value, length in zip(found, lengths, strict=True)]
        grade = class_grade(item["gold"], {"loglikelihoods": found})
        return {**grade, "correct_norm": class_grade(item["gold"], {"loglikelihoods": normal})["correct"]}

    def aggregate(self, grades):
        found = {"accuracy": accuracy(grades)}
        if self.task not in UNNORMALISED:
            found["accuracy_norm"] = 100.0 * sum(grade["correct_norm"] for grade in grades) / len(grades)
        return found


def _pairs(task: str, row: dict, question: Question) -> tuple[int, list[tuple[str, str]]]:
    """(index of the right answer, (context, answer) of each)."""
    if task == "boolq":
        context = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
        return int(row["label"]), [(context, "no"), (context, "yes")]
    if task == "winogrande":
        before, _, after = row["sentence"].partition("_")
        return question.gold, [(before + option, after.strip()) for option in question.answers]
    answers = question.answers
    if task == "hellaswag":
        context = _without_marks(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
        answers = tuple(map(_without_marks, answers))
    elif task == "siqa":
        context = f"Q: {row['context']} {row['question']}\nA:"
    elif task == "openbookqa":
        context = row["question_stem"]
    else:
        context = f"Question: {row['goal' if task == 'piqa' else 'question']}\nAnswer:"
    return question.gold, [(context, answer) for answer in answers]


def _without_marks(text: str) -> str:
    """Without WikiHow's marks such as [title], as lm-evaluation-harness reads HellaSwag."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")
