"""Rows beside a record, JSON Lines under Zstandard: predictions and grades, item by item. Imports no torch."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import zstandard


def read_rows(path: Path) -> list[dict]:
    """All rows of a file."""
    with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
        return [json.loads(line) for line in io.TextIOWrapper(stream, encoding="utf-8")]


def write_rows(path: Path, rows: Sequence[dict]) -> None:
    """Write a file: temporary name, flush to disk, rename. Equal rows give equal bytes."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        file.write(zstandard.ZstdCompressor().compress(text.encode()))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
