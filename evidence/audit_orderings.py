"""Orderings that a text states ("the highest at all sizes"), against the printed averages of its table.

A row of orderings.csv has a claim in our words and names benchmarks, metric and models (``GSM8K; HumanEval`` or ``all``), a
method, a relation and, where the relation is to some methods alone, these. A claim ``shown`` asks no more than that the table
has such numbers. Only numbers are compared: whether a sentence means full fine-tuning, too, is left to its reader, so the
methods in question are named, and a remark tells a reading that is not the only one.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

from evidence.audit_cells import FULL, Cell

RELATIONS = {
    "highest": operator.ge,
    "lowest": operator.le,
    "at least": operator.ge,
    "above": operator.gt,
    "below": operator.lt,
}
"""What a printed average must be to each other one. ``not lowest`` asks that it be above any one of them."""


def orderings(cells: Sequence[Cell], stated: Iterable[dict]) -> list[str]:
    """Stated orderings that some cell does not have. Raises ValueError for a relation that is not known."""
    wrong, absent, damaged = [], [], 0
    for row in stated:
        missing = _missing(cells, row)
        if missing:
            absent.append(f"{_told(row)}. The table has no numbers of {', '.join(missing)}.")
        if row["relation"] == "shown":
            continue
        groups = _groups(cells, row)
        whole = {name: by for name, by in groups.items() if row["method"] in by and len(by) > 1}
        damaged += len(groups) - len(whole)
        against = {name: found for name, by in whole.items() if (found := _against(row, by))}
        if against:
            cases = "; ".join(f"{name}: {text}" for name, text in against.items())
            count = f"not so in {len(against)} of {len(whole)} cells"
            wrong.append(f"{_told(row)}. Read as '{row['relation']}', {count}. {cases}.{_without_full(row, whole)}")
    lines = [f"{len(wrong)} stated orderings are not the table's in every cell.", *wrong, *absent]
    return [*lines, *([f"{damaged} cells cannot be checked: they are damaged."] if damaged else [])]


def _missing(cells: Sequence[Cell], row: dict) -> list[str]:
    """Benchmarks (and the metric) that the row names and the table has not."""
    metric = "" if row["metric"] == "all" else f" {row['metric']}"
    has = {c.benchmark for c in cells if row["metric"] in ("all", c.metric)}
    return [f"{name}{metric}" for name in _names(row["benchmark"]) if name != "all" and name not in has]


def _groups(cells: Sequence[Cell], row: dict) -> dict[str, dict[str, float]]:
    """Printed averages by method for each benchmark, metric and model that the row is about, damaged ones left out."""
    found: dict[str, dict[str, float]] = {}
    others = _names(row["other"])
    fields = {field: _names(row[field]) for field in ("benchmark", "metric", "model")}
    for c in cells:
        if all("all" in names or getattr(c, field) in names for field, names in fields.items()):
            group = found.setdefault(f"{c.benchmark} {c.metric}, {c.model}", {})
            if c.average is not None and (not others or c.method in (row["method"], *others)):
                group[c.method] = c.average
    return found


def _without_full(row: dict, groups: dict[str, dict[str, float]]) -> str:
    """Whether a "highest" holds once full fine-tuning is left out, which a sentence may or may not mean."""
    if row["relation"] != "highest" or row["method"] == FULL:
        return ""
    rest = [{method: value for method, value in by.items() if method != FULL} for by in groups.values()]
    return "" if any(_against(row, by) for by in rest) else f" With {FULL} left out it is so in all."


def _against(row: dict, by: dict[str, float]) -> str:
    """ "Hybrid 53.0, Full FT 53.1": the method and those to which the relation does not hold; empty where it holds."""
    method, relation = row["method"], row["relation"]
    own, others = by[method], {name: value for name, value in by.items() if name != method}
    if relation == "not lowest":
        following = min(others, key=others.get)
        lowest = own < others[following]
        return f"{method} {own:.1f} is the lowest, {following} {others[following]:.1f} the next" if lowest else ""
    if relation not in RELATIONS:
        known = ", ".join([*RELATIONS, "not lowest", "shown"])
        raise ValueError(f"{row['claim']!r}: relation {relation!r} is none of {known}")
    found = [name for name, value in others.items() if not RELATIONS[relation](own, value)]
    return ", ".join(f"{name} {by[name]:.1f}" for name in [method, *found]) if found else ""


def _told(row: dict) -> str:
    remark = f" [{row['remark']}]" if row["remark"] else ""
    return f"Stated in short ({row['place']}): {row['claim']}{remark}"


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(";") if name.strip()]
