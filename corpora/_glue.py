"""GLUE's tasks: their rows, their answer words and the prompts of lm-evaluation-harness.

Shared by the corpus and the eval, so that a decoder is asked as it was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ._rows import read_labelled

COLUMNS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}
CLASSES = {  # in the order of the label numbers
    "cola": ("no", "yes"),
    "sst2": ("negative", "positive"),
    "mrpc": ("no", "yes"),
    "stsb": (),
    "qqp": ("no", "yes"),
    "mnli": ("True", "Neither", "False"),
    "qnli": ("yes", "no"),
    "rte": ("True", "False"),
    "wnli": ("False", "True"),
}
PROMPTS = {
    "cola": "{0}\nQuestion: Does this sentence make sense?\nAnswer:",
    "sst2": "{0}\nQuestion: Is this sentence positive or negative?\nAnswer:",
    "mrpc": "Sentence 1: {0}\nSentence 2: {1}\nQuestion: Do both sentences mean the same thing?\nAnswer:",
    "stsb": "Sentence 1: {0}\nSentence 2: {1}\nQuestion: How similar are the sentences, from 0.0 to 5.0?\nAnswer:",
    "qqp": "Question 1: {0}\nQuestion 2: {1}\nQuestion: Do both questions ask the same thing?\nAnswer:",
    "mnli": "{0}\nQuestion: {1} True, False or Neither?\nAnswer:",
    "qnli": "{0}\n{1}\nQuestion: Does this response answer the question?\nAnswer:",
    "rte": "{0}\nQuestion: {1} True or False?\nAnswer:",
    "wnli": "{0}\nQuestion: {1} True or False?\nAnswer:",
}


def glue_rows(task: str, path: Path) -> list[dict]:
    """Labelled rows of a file: classes by number, ``stsb`` a similarity from 0 to 5. Raises ValueError at any other."""
    labels = range(len(CLASSES[task])) if CLASSES[task] else (0.0, 5.0)
    return read_labelled(path, COLUMNS[task], "label", labels)


def glue_prompt(task: str, texts: Sequence[str]) -> str:
    """What a decoder sees of a row's texts, in the order of COLUMNS; no trailing space."""
    texts = list(texts)
    if task == "mnli":
        texts[1] = texts[1].strip().removesuffix(".") + "."
    return PROMPTS[task].format(*texts)
