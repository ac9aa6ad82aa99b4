"""GLUE (Wang et al. 2019, https://arxiv.org/abs/1804.07461): nine tasks of classifying English sentences.

Decoders see the text of lm-evaluation-harness's task of the same name, so that training and scoring agree. GLUE's
development set is our test, as everywhere since its test labels are secret; validation is carved from train, with equal
texts on one side. Rows that GLUE itself has in both train and development sets are removed unless the suite sets
``remove_overlap: false``; published results have them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.contract import Corpus, Labelled

from ._glue import CLASSES, COLUMNS, glue_prompt, glue_rows
from ._rows import carve, check_split, chosen


@dataclass
class Glue(Corpus):
    """A GLUE task: a sentence or a pair, with its class (``stsb``: a similarity from 0 to 5)."""

    limit: int = 0
    """Training examples; 0: all."""

    tasks: ClassVar[tuple[str, ...]] = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
    assets: ClassVar[tuple[str, ...]] = ("glue-{task}",)
    evals: ClassVar[tuple[str, ...]] = ("glue-{task}",)
    label: ClassVar[str] = "GLUE {task}"
    example: ClassVar[type] = Labelled

    def __post_init__(self):
        self.classes = CLASSES[self.task]

    def examples(self, split, data):
        check_split(split)
        rows = glue_rows(self.task, data(f"glue-{self.task}") / "train.jsonl")
        kept = carve(rows, ["\n".join(self._texts(row)) for row in rows], split)
        return [self._example(row) for row in chosen(kept, split, self.limit)]

    def tests(self, data):
        paths = sorted(data(f"glue-{self.task}").glob("validation*.jsonl"))
        return [self._example(row) for path in paths for row in glue_rows(self.task, path)]

    def _texts(self, row: dict) -> tuple[str, ...]:
        return tuple(row[column] for column in COLUMNS[self.task])

    def _example(self, row: dict) -> Labelled:
        texts, label = self._texts(row), row["label"]
        return Labelled(texts[0] if len(texts) == 1 else texts, label if self.classes else float(label))

    def prompt(self, example):
        return glue_prompt(self.task, [example.input] if isinstance(example.input, str) else example.input)
