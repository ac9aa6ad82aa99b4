"""AQuA, SVAMP and MAWPS as the hub has them: what is asked, and the answer as it stands there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ._rows import read_rows

COLUMNS = {
    "aqua": ("question", "options", "correct"),
    "svamp": ("Body", "Question", "Answer"),
    "mawps": ("question", "result"),
}


def problems(task: str, path: Path) -> Iterator[tuple[str, str]]:
    """(what is asked, the answer's text) of each row, in the file's order."""
    for row in read_rows(path, COLUMNS[task]):
        yield _asked(task, row), str(row[COLUMNS[task][-1]])


def _asked(task: str, row: dict) -> str:
    if task == "aqua":
        options = " ".join(f"({option.replace(')', ') ', 1)}" for option in row["options"])
        return f"{row['question']} Answer Choices: {options}"
    if task == "svamp":
        body = row["Body"].strip()
        end = "" if body.endswith((".", "?", "!", ",")) else "."
        return f"{body}{end} {row['Question'].strip()}"
    return row["question"]
