"""Records: small versioned JSON files, written last and atomically. Imports neither torch nor the rest of the harness."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

SCHEMA = 1
STATUSES = ("ok", "diverged", "oom", "timeout", "error", "skipped", "judge_pending")


class Damaged(ValueError):
    """A record, or a file beside one, cannot be used; the message names it and says what to do."""


def write(path: Path, record: dict) -> None:
    """Write ``record`` to ``path``: temporary name, flush to disk, rename. A reader sees all of it or none.

    A good record of a keyed cell gets its second name first (``kept_name``), so that there is no moment at which it
    exists and could be lost.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if record.get("status") not in STATUSES:
        raise ValueError(f"{path}: a record's status is one of {', '.join(STATUSES)}, not {record.get('status')!r}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text({"schema": SCHEMA, **record}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    if record["status"] == "ok" and record.get("key"):
        second = temporary.with_name(temporary.name + ".kept")
        second.unlink(missing_ok=True)
        os.link(temporary, second)
        os.replace(second, kept_name(path))
    os.replace(temporary, path)


def text(content: dict) -> str:
    """A record's JSON. Raises TypeError or ValueError where it holds what JSON cannot."""
    return json.dumps(content, indent=1, ensure_ascii=False, default=_plain)


def kept_name(path: Path) -> Path:
    """The second name of a good record. Snakemake does not know it: when it was killed before it took note of a record it
    deletes the record, and ``harness.supervise`` puts it back from here."""
    return path.with_name(f".{path.name}.kept")


def made_at(path: Path, content: dict) -> int:
    """When what the record ``content`` at ``path`` tells of came about, in ns: the time of the newest file that it names.

    Its own time says less, for Snakemake sets that anew after each run of a stage, even of one that found the record
    there and took it as it is. A good record of no file, an untrained model's, made nothing: 0. A failure's is its own.
    Raises OSError where a file is gone.
    """
    files = content.get("files", {})
    named = files.values() if isinstance(files, dict) else files  # an asset's are a list
    alone = 0 if content.get("status") == "ok" else path.stat().st_mtime_ns
    return max(((path.parent / f["file"]).stat().st_mtime_ns for f in named), default=alone)


def read(path: Path) -> dict:
    """The record at ``path``. Raises Damaged naming the file when it is no record of this schema."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise Damaged(f"{path}: not valid JSON ({error}). Delete it and run again.") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        found = record.get("schema") if isinstance(record, dict) else type(record).__name__
        raise Damaged(f"{path}: record schema {found}, this version reads {SCHEMA}. Delete it and run again.")
    return record


def digest(path: Path) -> str:
    """sha256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_entry(path: Path) -> dict:
    """What a record says of a large file beside it: name, sha256, bytes."""
    path = Path(path)
    return {"file": path.name, "sha256": digest(path), "bytes": path.stat().st_size}


def checked_file(record_path: Path, content: dict, name: str) -> Path:
    """The large file that the record ``content`` at ``record_path`` calls ``name``. Raises Damaged where it is another."""
    entry = (content.get("files") or {}).get(name)
    if not entry:
        raise Damaged(f"{record_path} names no {name}. Delete it and run again.")
    path = Path(record_path).parent / entry["file"]
    if not path.is_file() or digest(path) != entry["sha256"]:
        what = "is not the file that the record was written with" if path.is_file() else "is missing"
        raise Damaged(f"{path} {what} ({Path(record_path).name} has its sha256). Delete {record_path} and run again.")
    return path


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch as Python's; paths as text."""
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} does not belong in a record")
