"""Grades of classification: the likeliest continuation, or a task head's class, against the label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from harness.contract import Eval


class ClassEval(Eval):
    """Accuracy of the class. Items have ``label``, the number of their class, and one request of ``Choices``."""

    headline: ClassVar[str] = "accuracy"
    units: ClassVar[dict[str, str]] = {"accuracy": "%"}

    def grade(self, item, outputs):
        return class_grade(item["label"], outputs[0])

    def aggregate(self, grades):
        return {"accuracy": accuracy(grades)}

    def majority(self, train, items):
        return commonest_class_grades([example.label for example in train], [item["label"] for item in items])


def class_grade(gold: int, output: dict) -> dict:
    """Gold and predicted class of one item; the first of equally likely classes, as lm-evaluation-harness takes it."""
    likelihoods = output["loglikelihoods"]
    return _grade(gold, likelihoods.index(max(likelihoods)))


def commonest_class_grades(labels: Sequence[int], golds: Sequence[int]) -> list[dict]:
    """Grades of always answering the commonest of the training ``labels``; the lowest of equally common ones."""
    counts = Counter(labels)
    answer = min(counts, key=lambda label: (-counts[label], label))
    return [_grade(gold, answer) for gold in golds]


def accuracy(grades: Sequence[dict]) -> float:
    """Share of correct items, in percent."""
    return 100.0 * sum(grade["correct"] for grade in grades) / len(grades)


def _grade(gold: int, predicted: int) -> dict:
    return {"gold": gold, "predicted": predicted, "correct": int(gold == predicted)}
