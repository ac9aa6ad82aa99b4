"""SQuAD 2.0's questions as text: the prompt of lm-evaluation-harness's ``squadv2``, shared by the corpus and the eval."""

from __future__ import annotations

from pathlib import Path

from ._rows import read_rows

COLUMNS = ("id", "title", "context", "question", "answers")
UNANSWERABLE = "unanswerable"


def squad_rows(path: Path) -> list[dict]:
    """Rows with their ``texts``: the answers that count, none for a question without answer. Raises ValueError by line."""
    rows = read_rows(path, COLUMNS)
    for number, row in enumerate(rows, 1):
        texts = row["answers"].get("text") if isinstance(row["answers"], dict) else None
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f'{path}:{number}: column answers is no {{"text": [...]}}: {row["answers"]!r}')
        row["texts"] = texts
    return rows


def squad_prompt(row: dict) -> str:
    """Title, passage and question; no trailing space."""
    return f"Title: {row['title']}\n\nBackground: {row['context']}\n\nQuestion: {row['question']}\n\nAnswer:"
