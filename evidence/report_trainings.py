"""A page for each method on a model and corpus: its seeds' records, hyper-parameters, curves and files.

The report's numbers link here, and from here to the records themselves, which stay where they are (``../../runs``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evidence.report_rows import page_of

if TYPE_CHECKING:
    from evidence.collected import Collected

STAGES = ("train", "predict", "score")
DROPPED = ("files",)  # what a page shows as links


@dataclass
class Seed:
    """One training: its state, and (name, link or "", text) of its records and large files."""

    seed: int
    status: str
    why: str
    scores: list[tuple[str, str]]  # (eval and metric, value)
    records: list[dict]


def trainings(collected: Collected, root: Path) -> Iterator[tuple[dict, list[Seed]]]:
    """(what is the same for all seeds, the seeds) of each model, corpus and variant, in the suite's order."""
    runs = collected.runs
    for (model, corpus, variant), rows in runs.groupby(["model", "corpus", "variant"], sort=False):
        first = rows.iloc[0]
        about = {
            "model": first["model_label"],
            "corpus": first["corpus_label"],
            "method": first["variant_label"],
            "variant": variant,
            "page": page_of(model, corpus, variant),
            "hyperparameters": next((json.loads(text) for text in rows["hyperparameters"] if text), {}),
            "keys": (model, corpus, variant),
            "shared": _shared(collected, root, (model, corpus, variant)),
        }
        yield about, [_seed(root, of_seed) for _, of_seed in rows.groupby("seed")]


def _shared(collected: Collected, root: Path, cell: tuple[str, str, str]) -> dict[str, list[dict]]:
    """Records that are of no single seed, by the part of the page: the cost's, and those of a search. A part stands where it is
    planned, though its records may be missing."""
    folder = Path(*cell)
    paths = {
        "cost": (collected.costs, [Path("cost") / folder / "cost.json"]),
        "tuning": (
            collected.trials,
            [path.relative_to(root) for path in sorted((root / "tune" / folder).rglob("*.json"))],
        ),
    }
    return {
        part: [_record(root, path) for path in some if (root / path).is_file()]
        for part, (rows, some) in paths.items()
        if len(rows) and cell in set(zip(rows["model"], rows["corpus"], rows["variant"], strict=True))
    }


def _seed(root: Path, rows) -> Seed:
    first = rows.iloc[0]
    folder = Path("runs") / first["model"] / first["corpus"] / first["variant"] / f"seed{first['seed']}"
    failed = rows[rows["status"] != "ok"]
    chosen = failed.iloc[0] if len(failed) else first
    why = "; ".join(filter(None, [chosen["reason"], _doubt(first)]))
    fine = rows[(rows["status"] == "ok") & (rows["metric"] != "")]
    scores = [(f"{r['eval_label']}: {r['metric']}", _value(r["value"])) for _, r in fine.iterrows()]
    files = [folder / "train.json", *(folder / e / f"{s}.json" for e in rows["eval"].unique() if e for s in STAGES[1:])]
    records = [_record(root, path) for path in files if (root / path).is_file()]
    return Seed(int(first["seed"]), chosen["status"], why, scores, records)


def _doubt(row) -> str:
    stale = f"stale: its {row['stale']} record is of another specification" if row["stale"] else ""
    other = f"other software or device: {row['other_stack']}" if row["other_stack"] else ""
    return "; ".join(filter(None, [stale, other]))


def _record(root: Path, path: Path) -> dict[str, Any]:
    """A record as text, and links to it and to the large files beside it; a damaged one says so."""
    try:
        record = json.loads((root / path).read_text(encoding="utf-8"))
    except ValueError as error:
        return {"path": path.as_posix(), "text": f"not readable: {error}", "files": []}
    files = [path.parent / entry["file"] for entry in (record.get("files") or {}).values() if "file" in entry]
    shown = {name: value for name, value in record.items() if name not in DROPPED}
    text = json.dumps(shown, indent=1, ensure_ascii=False)
    return {
        "path": path.as_posix(),
        "text": text,
        "files": [file.as_posix() for file in files if (root / file).is_file()],
    }


def _value(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.6g}"
