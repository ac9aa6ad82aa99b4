"""Rows of a data set: reading them, dividing them without leaks, and taking a fixed part of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

Row = TypeVar("Row")
VALIDATION_BUCKETS = 20
"""One training row in so many becomes validation where a data set has no validation split of its own."""


def read_rows(path: Path, columns: Sequence[str]) -> list[dict]:
    """Rows of a JSON Lines file. Raises ValueError naming the line where it is no JSON or a column is missing."""
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: not valid JSON ({error}). Fetch the asset again.") from None
            missing = [column for column in columns if column not in row]
            if missing:
                raise ValueError(f"{path}:{number}: no column {', '.join(missing)}; it has {', '.join(row)}")
            rows.append(row)
    return rows


def read_labelled(path: Path, columns: Sequence[str], column: str, labels: range | tuple[float, float]) -> list[dict]:
    """``read_rows`` of ``columns`` and ``column``, where each row's label is an integer among ``labels`` or, where those
    are two bounds, a number from the one to the other. Raises ValueError naming file, row and column of any other, such
    as the -1 of a hidden label: it would train, and be scored, as some other class.
    """
    rows = read_rows(path, (*columns, column))
    for number, row in enumerate(rows, 1):
        if not _is_label(row[column], labels):
            kind = "an integer" if isinstance(labels, range) else "a number"
            low, high = min(labels), max(labels)
            raise ValueError(
                f"{path}:{number}: column {column}: {row[column]!r} is not {kind} from {low:g} to {high:g}"
            )
    return rows


def _is_label(value: Any, labels: range | tuple[float, float]) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(labels, range):
        return isinstance(value, int) and value in labels
    return isinstance(value, (int, float)) and labels[0] <= value <= labels[1]


def bucket(text: str, buckets: int) -> int:
    """A number below ``buckets`` that depends on the words of ``text`` alone: equal texts never fall apart."""
    return int(hashlib.sha256(normal(text).encode()).hexdigest()[:12], 16) % buckets


def normal(text: str) -> str:
    """The words of a text, without case and punctuation."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def carve(rows: Sequence[Row], texts: Sequence[str], split: str) -> list[Row]:
    """The rows of ``split``, where validation is one in ``VALIDATION_BUCKETS`` of the distinct texts."""
    validation = [bucket(text, VALIDATION_BUCKETS) == 0 for text in texts]
    return [row for row, held_out in zip(rows, validation, strict=True) if held_out == (split == "validation")]


def chosen(rows: Sequence[Row], split: str, limit: int) -> list[Row]:
    """Rows in the order in which they are used: a fixed shuffle, so that any first n are a fair sample of all.

    ``limit`` > 0 keeps so many training rows; a smaller limit's rows are among a larger one's.
    """
    order = sorted(range(len(rows)), key=lambda index: hashlib.sha256(f"{split} {index}".encode()).digest())
    if split == "train" and limit > 0:
        order = order[:limit]
    return [rows[index] for index in order]


def check_split(split: Any) -> None:
    """Refuse what is neither "train" nor "validation"."""
    if split not in ("train", "validation"):
        raise ValueError(f"a corpus has the splits train and validation, not {split!r}")
