"""``curves.jsonl`` of every training as long rows: one number each, streamed so that any grid fits in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evidence import cells
from evidence.cells import Outcome
from evidence.choices import cell_of, choices, held_against
from harness.record import digest

CELL = ("suite", "model", "model_label", "corpus", "corpus_label", "variant", "variant_label", "method", "seed")
FIXED = (*CELL, "status", "stale", "other_stack")
NUMBER = ("step", "name", "layer", "value")


def read_curve(path: Path) -> list[tuple[int, str, str, float]]:
    """(step, name, layer, value) of a curve file, in order of first appearance.

    A step that was run twice (resumed from a checkpoint before it) counts once, as it was run last. A last line that a
    kill cut short is left out; any other damaged line is an error. Raises ValueError naming file and line.
    """
    found: dict[tuple[int, str, str], float] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: damaged, not UTF-8 ({error}). Delete the run and train it again.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            found.update(_numbers(row))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            message = f"{path}, line {number}: damaged ({error!r}). Delete the run and train it again."
            raise ValueError(message) from None
    return [(*key, value) for key, value in found.items()]


def _numbers(row: dict) -> Iterator[tuple[tuple[int, str, str], float]]:
    step = int(row["step"])
    if "name" in row:
        values = row["value"] if isinstance(row["value"], list) else [row["value"]]
        for index, value in enumerate(values):
            layer = row.get("layer", index if len(values) > 1 else "")
            yield (step, row["name"], str(layer)), float("nan") if value is None else float(value)
        return
    for name, value in row.items():
        if name != "step" and (value is None or isinstance(value, int | float)):
            yield (step, name, ""), float("nan") if value is None else float(value)


def write_curves(plan: dict, root: Path, reference: str, problems: list[str], path: Path) -> int:
    """Write the curves of all trainings to the Parquet file ``path``; returns the number of rows.

    A failed training's curve is kept as far as it goes, with its status. ``reference``: the software that
    trainings are compared with (``cells.reference_stacks``). Files that are damaged, lost or another's than the record's
    are left out and named in ``problems``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number = pa.dictionary(pa.int32(), pa.string()), pa.int64()
    types: dict[str, Any] = {name: number if name == "seed" else text for name in FIXED}
    types |= {"step": number, "name": text, "layer": text, "value": pa.float64()}
    count, chosen = 0, choices(plan, root)
    with pq.ParquetWriter(path, pa.schema(list(types.items())), compression="zstd") as writer:
        for cell in plan["cells"]:
            if cell["variant"] in cells.BASELINES:
                continue
            found, _ = held_against(cells.outcome(root, cell, None), chosen.get(cell_of(cell)))
            try:
                rows = _curve_of(cells.folder_of(root, cell) / "curves.jsonl", found.records["train"])
            except (ValueError, OSError) as error:
                problems.append(str(error))
                continue
            columns: dict[str, Any] = {name: [row[i] for row in rows] for i, name in enumerate(NUMBER)}
            fixed = {**cells.identity(plan, cell), **_fixed(found, reference)}
            columns |= {name: [value] * len(rows) for name, value in fixed.items()}
            if rows:
                writer.write_table(pa.table({name: pa.array(columns[name], kind) for name, kind in types.items()}))
            count += len(rows)
    return count


def _curve_of(path: Path, train: dict) -> list[tuple[int, str, str, float]]:
    """The curve that belongs to a record; nothing where neither is there. Raises ValueError where they do not fit."""
    entry = cells.dig(train, "files", "curves") or {}
    if not path.is_file():
        if entry:
            raise ValueError(f"{path}: the record names this file and it is not there. Train this cell again.")
        return []
    if entry.get("sha256") and digest(path) != entry["sha256"]:
        raise ValueError(f"{path}: not the file that the record was written with (sha256). Train this cell again.")
    return read_curve(path)


def _fixed(found: Outcome, reference: str) -> dict[str, str]:
    """The columns beside its cell's that are the same for a whole curve."""
    stack = cells.stack_of(found.records["train"])
    other = cells.stack_difference(stack, reference) if stack else ""
    return {"status": found.status, "stale": found.stale, "other_stack": other}
