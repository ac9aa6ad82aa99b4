"""What each search of a suite chose, and whether a training or a cost was made with it.

A training's key covers its search and not the search's outcome, so trainings of one key can have other values: those of a
tree whose trials ended otherwise. The values themselves tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evidence import cells
from evidence.cells import Outcome, dig

NONE, OLD = "no choice recorded", "choice is stale"


@dataclass(frozen=True)
class Choice:
    """The chosen trial and its values. Without a choice that belongs to the plan's search both are None, and ``why`` says
    so: NONE or OLD, a colon, the reason."""

    trial: int | None = None
    values: dict[str, Any] | None = None
    why: str = ""


def choice_of(root: Path, search: dict) -> Choice:
    """What ``tuned.json`` of a search of the plan says, below the results ``root``."""
    record = cells.read_record(root / cells.search_folder(search) / "tuned.json")
    if record["status"] != "ok":
        return Choice(why=f"{NONE}: {record.get('reason') or record['status']}")
    if search.get("key") and record.get("key") != search["key"]:
        return Choice(why=f"{OLD}: made from other trials than the plan's")
    return Choice(dig(record, "chosen", "trial"), dig(record, "chosen", "values"))


def choices(plan: dict, root: Path) -> dict[tuple[str, str, str], Choice]:
    """The choice of every search of a plan by (model, corpus, variant)."""
    return {cell_of(search): choice_of(root, search) for search in cells.searches(plan)}


def cell_of(entry: dict) -> tuple[str, str, str]:
    """What a search, a training and a cost are of."""
    return entry["model"], entry["corpus"], entry["variant"]


def other_values(record: dict, chosen: dict[str, Any] | None) -> str:
    """Where a record's hyper-parameters are not the chosen ones: "learning_rate 0.009 (0.0001)". Empty where they are, and
    where either is not known."""
    used = dig(record, "specification", "hyperparameters") or {}
    found = (chosen or {}).items()
    return ", ".join(f"{name} {used[name]} ({value})" for name, value in found if name in used and used[name] != value)


def held_against(found: Outcome, choice: Choice | None) -> tuple[Outcome, str]:
    """An outcome, stale where its training or cost has other values than the choice; and which values."""
    stage = "cost" if "cost" in found.records else "train"
    other = other_values(found.records.get(stage, {}), choice.values if choice else None)
    return (replace(found, stale=stage) if other else found), other
