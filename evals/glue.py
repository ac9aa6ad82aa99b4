"""GLUE (Wang et al. 2019, https://arxiv.org/abs/1804.07461) on its development sets, by GLUE's own metrics.

A decoder picks the likeliest answer word after the text of lm-evaluation-harness's task of the same name; a model with
a task head classifies the sentences. ``stsb`` is a similarity: the head's value, or for a decoder, which has no such
task there, the expectation of the digit from 0 to 5 that opens its answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from corpora._glue import CLASSES, COLUMNS, glue_prompt, glue_rows
from harness.contract import Choices, Eval

from ._classes import accuracy, class_grade, commonest_class_grades
from ._rows import subsample

SETS = {"mnli": {"matched": "validation_matched.jsonl", "mismatched": "validation_mismatched.jsonl"}}
DIGITS = ("0", "1", "2", "3", "4", "5")  # that open a decoder's similarity
METRICS = {
    "cola": ("matthews",),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": ("pearson", "spearman"),
}


@dataclass
class Glue(Eval):
    """One GLUE task."""

    limit: int = 0
    """Items scored, of each set where there are two (``mnli``); 0: all."""

    tasks: ClassVar[tuple[str, ...]] = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
    assets: ClassVar[tuple[str, ...]] = ("glue-{task}",)
    label: ClassVar[str] = "GLUE {task}"
    units: ClassVar[dict[str, str]] = {
        "accuracy": "%",
        "accuracy_mismatched": "%",
        "f1": "%",
        "matthews": "x 100",
        "pearson": "x 100",
        "spearman": "x 100",
    }

    @property
    def headline(self) -> str:
        return METRICS.get(self.task, ("accuracy",))[0]

    @property
    def corpus_level(self) -> bool:
        """Correlations are no means over items."""
        return self.headline != "accuracy"

    @property
    def floors(self) -> dict[str, float]:
        """Chance: equal shares for the classes, no correlation."""
        return {self.headline: 100.0 / len(CLASSES[self.task]) if self.headline == "accuracy" else 0.0}

    def items(self, data):
        """``set`` tells matched from mismatched genres; a source without the second set gives the first alone."""
        folder = data(f"glue-{self.task}")
        items = []
        for name, file in SETS.get(self.task, {"": "validation.jsonl"}).items():
            if name == "mismatched" and not (folder / file).is_file():
                continue
            rows = enumerate(glue_rows(self.task, folder / file))
            items += subsample([self._item(name, number, row) for number, row in rows], self.limit)
        return items

    def _item(self, name: str, number: int, row: dict) -> dict:
        texts = [row[column] for column in COLUMNS[self.task]]
        return {"id": f"{name}{number}", "set": name, "texts": texts, "label": row["label"]}

    def requests(self, item, outputs=()):
        if outputs:
            return []
        texts = item["texts"]
        answers = tuple(f" {answer}" for answer in CLASSES[self.task] or DIGITS)
        return [Choices(glue_prompt(self.task, texts), answers, input=texts[0] if len(texts) == 1 else tuple(texts))]

    def grade(self, item, outputs):
        if self.task == "stsb":
            return {"gold": item["label"], "predicted": _similarity(outputs[0])}
        return _of_set(class_grade(item["label"], outputs[0]), item["set"])

    def aggregate(self, grades):
        if self.task == "stsb":
            return _correlations(grades)
        first = [grade for grade in grades if grade["set"] != "mismatched"]
        second = [grade for grade in grades if grade["set"] == "mismatched"]
        scores = {name: _class_score(name, first) for name in METRICS.get(self.task, ("accuracy",)) if first}
        return scores | ({"accuracy_mismatched": accuracy(second)} if second else {})

    def majority(self, train, items):
        """The commonest class; for ``stsb`` the mean, which correlates with nothing."""
        labels = [example.label for example in train]
        if self.task == "stsb":
            return [{"gold": item["label"], "predicted": sum(labels) / len(labels)} for item in items]
        grades = commonest_class_grades(labels, [item["label"] for item in items])
        return [_of_set(grade, item["set"]) for grade, item in zip(grades, items, strict=True)]


def _of_set(grade: dict, name: str) -> dict:
    """A grade with its set; where there are two, with the parts of the first's accuracy: correct ones over their number."""
    if not name:
        return {**grade, "set": name}
    counts = name == "matched"
    return {**grade, "set": name, "accuracy": float(counts and grade["correct"]), "matched_count": float(counts)}


def _similarity(output: dict) -> float:
    """The head's value, or the expected digit under a decoder's likelihoods."""
    if "value" in output:
        return output["value"]
    top = max(output["loglikelihoods"])
    weights = [math.exp(value - top) for value in output["loglikelihoods"]]
    return sum(digit * weight for digit, weight in enumerate(weights)) / sum(weights)


def _class_score(name: str, grades: list[dict]) -> float:
    """Accuracy, F1 of class 1, or Matthews's correlation (0 where one class alone is predicted), times 100."""
    if name == "accuracy":
        return accuracy(grades)
    from sklearn.metrics import f1_score, matthews_corrcoef

    gold, predicted = [g["gold"] for g in grades], [g["predicted"] for g in grades]
    score = f1_score(gold, predicted, zero_division=0) if name == "f1" else matthews_corrcoef(gold, predicted)
    return 100.0 * float(score)


def _correlations(grades: list[dict]) -> dict[str, float]:
    """Pearson's and Spearman's, times 100; 0 where either side is constant."""
    from scipy.stats import pearsonr, spearmanr

    gold, predicted = [g["gold"] for g in grades], [g["predicted"] for g in grades]
    if len(set(gold)) < 2 or len(set(predicted)) < 2:
        return {"pearson": 0.0, "spearman": 0.0}
    return {
        "pearson": 100.0 * float(pearsonr(gold, predicted).statistic),
        "spearman": 100.0 * float(spearmanr(gold, predicted).statistic),
    }
