"""Rows of a data set: reading them, and taking a fixed part of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path


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


def subsample(items: Sequence[dict], limit: int) -> list[dict]:
    """``limit`` items (0: all) in their own order: the same for every model, chosen by their ids alone, classes unseen.

    A smaller limit's items are among a larger one's.
    """
    if not 0 < limit < len(items):
        return list(items)
    ranked = sorted(range(len(items)), key=lambda index: hashlib.sha256(items[index]["id"].encode()).digest())
    return [items[index] for index in sorted(ranked[:limit])]


def bucket(text: str, buckets: int) -> int:
    """A number below ``buckets`` that depends on the words of ``text`` alone: equal texts never fall apart."""
    return int(hashlib.sha256(normal(text).encode()).hexdigest()[:12], 16) % buckets


def normal(text: str) -> str:
    """The words of a text, without case and punctuation."""
    return " ".join(re.findall(r"\w+", text.casefold()))
