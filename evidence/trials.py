"""Trials of a suite's tuning as flat rows: what was tried, how it ended, what it cost, what was chosen.

Reads the plan's ``tuning`` and the records that it names. ``tried`` groups the rows of ``trials.parquet`` by search.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from evidence import cells
from evidence.cells import dig
from evidence.choices import NONE, choice_of

if TYPE_CHECKING:
    import pandas as pd

FAILED, OTHER = "choice counts as failed", "other software"
COLUMNS = (
    "suite", "model", "model_label", "corpus", "corpus_label", "variant", "variant_label", "method", "trial", "seed",
    "status", "reason", "stale", "other_stack", "values", "searched", "chosen", "no_choice", "validation_first",
    "validation_last", "validation_examples", "steps", "tokens", "seconds", "parameters_trained",
)  # fmt: skip


def trial_rows(plan: dict, root: Path, corpus: str | None = None) -> list[dict[str, Any]]:
    """A row per trial and tuning seed. A trial that failed, is missing, is stale or of other software keeps its row."""
    named = {(cell["model"], cell["corpus"], cell["variant"]): cell for cell in plan["cells"]}
    rows, stacks = [], []
    for search in cells.searches(plan):
        if corpus not in (None, search["corpus"]):
            continue
        cell = named.get((search["model"], search["corpus"], search["variant"]), search)
        choice = choice_of(root, search)
        facts = cells.identity(plan, {**cell, "seed": 0})
        for trial in search["trials"]:
            record = cells.read_record(root / cells.trial_path(search, trial))
            found = {**_trial(record, trial), "chosen": trial["trial"] == choice.trial, "no_choice": choice.why}
            rows.append({**facts, **found, "searched": json.dumps(search["searched"])})
            stacks.append(cells.stack_of(record))
    reference = cells.commonest(stacks)
    for row, stack in zip(rows, stacks, strict=True):
        row["other_stack"] = cells.stack_difference(stack, reference) if stack else ""
    return [{name: row.get(name) for name in COLUMNS} for row in rows]


def _trial(record: dict, trial: dict) -> dict[str, Any]:
    validation = dig(record, "loss", "validation") or []
    phases = record.get("phases") or {}
    tokens = [dig(record, "tokens", kind) for kind in ("total", "probe")]
    return {
        "trial": trial["trial"],
        "seed": trial["seed"],
        "values": json.dumps(trial["values"]),
        "status": record["status"],
        "reason": record.get("reason") or "",
        "stale": bool(record.get("key")) and record["key"] != trial["key"],
        "validation_first": validation[0][1] if validation else None,
        "validation_last": validation[-1][1] if validation and record["status"] == "ok" else None,
        "validation_examples": dig(record, "examples", "validation"),
        "steps": record.get("steps"),
        "tokens": sum(count or 0 for count in tokens),
        "seconds": sum(phase["seconds"] for phase in phases.values()) or record.get("wall_seconds") or 0.0,
        "parameters_trained": dig(record, "parameters", "trained"),
    }


@dataclass(frozen=True)
class Trial:
    """One trial, the mean over its seeds. ``loss`` is None where a seed failed, is stale or of other software; ``losses`` are
    those of the good seeds."""

    number: int
    values: dict[str, Any]
    loss: float | None
    losses: tuple[float, ...]
    before: float | None  # validation loss before the first step
    status: str
    reason: str
    chosen: bool
    parameters: int | None


@dataclass(frozen=True)
class Tried:
    """The search of one variant on one model and corpus. ``identity``: names and labels as in every Parquet file."""

    identity: dict[str, str]
    spaces: dict[str, dict]
    seeds: tuple[int, ...]
    trials: tuple[Trial, ...]
    tokens: int
    seconds: float
    examples: int | None  # of validation
    stale: int  # runs of another specification than the plan's
    other_stacks: tuple[str, ...]  # where runs of other software differ from most trials', in words
    no_choice: str  # why there is none, by its record; empty where that has one

    @property
    def cell(self) -> tuple[str, str, str]:
        return self.identity["model"], self.identity["corpus"], self.identity["variant"]

    @property
    def chosen(self) -> Trial | None:
        """The chosen trial; None where it counts as failed, as no choice rests on such a one."""
        return next((trial for trial in self.trials if trial.chosen and trial.loss is not None), None)

    @property
    def unchosen(self) -> str:
        """Why nothing is chosen; empty where something is."""
        if self.chosen:
            return ""
        if all(trial.loss is None for trial in self.trials):
            return "every trial failed"
        if self.no_choice:
            return self.no_choice
        return next(
            (f"{FAILED}: trial {t.number}, {t.status}" for t in self.trials if t.chosen), f"{NONE}: no such trial"
        )

    @property
    def failed(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.loss is None]


def tried(trials: pd.DataFrame) -> list[Tried]:
    """All searches of a suite, in its order."""
    if not len(trials):
        return []
    groups = trials.groupby(["model", "corpus", "variant"], sort=False)
    return [_tried(rows) for _, rows in groups]


def _tried(rows: pd.DataFrame) -> Tried:
    first = rows.iloc[0]
    identity = {name: str(first[name]) for name in COLUMNS[1:8]}
    found = tuple(_mean(group.to_dict("records")) for _, group in rows.groupby("trial"))
    examples = rows["validation_examples"].dropna()
    return Tried(
        identity,
        json.loads(first["searched"]),
        tuple(sorted(int(seed) for seed in rows["seed"].unique())),
        found,
        int(rows["tokens"].sum()),
        float(rows["seconds"].sum()),
        int(examples.max()) if len(examples) else None,
        int(rows["stale"].astype(bool).sum()),
        tuple(sorted({text for text in rows["other_stack"] if text})),
        str(first["no_choice"]),
    )


def _mean(rows: list[dict]) -> Trial:
    good = [row["validation_last"] for row in rows if not _fault(row)]
    bad = next((row for row in rows if _fault(row)), None)
    before = [row["validation_first"] for row in rows if _number(row["validation_first"])]
    counts = [int(row["parameters_trained"]) for row in rows if _number(row["parameters_trained"])]
    return Trial(
        int(rows[0]["trial"]),
        json.loads(rows[0]["values"]),
        None if bad else fmean(good),
        tuple(good),
        fmean(before) if before else None,
        _fault(bad) if bad else "ok",
        _reason(bad) if bad else "",
        bool(rows[0]["chosen"]),
        counts[0] if counts else None,
    )


def _fault(row: dict) -> str:
    """Why a seed enters no mean; empty where it does."""
    if row["status"] != "ok":
        return row["status"]
    if row["stale"]:
        return "stale"
    if row["other_stack"]:
        return OTHER
    return "" if _number(row["validation_last"]) else "not a number"


def _reason(row: dict) -> str:
    return row["other_stack"] if _fault(row) == OTHER else row["reason"]


def _number(value: Any) -> bool:
    """Neither missing nor NaN nor infinite."""
    return value is not None and value - value == 0
