"""A search over learning rates, where a suite has one: variants that differ by nothing else, held against each other.

The choice is by validation loss alone, the mean over seeds; a rate cannot be chosen where a run of it did not end well, is
stale or comes from other software, or where it lacks a seed that another rate has. Rates of a variant that has several
(Hybrid's two branches) move together, and its first, ``learning_rate``, names the point.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from evidence.cells import NO_VALUE
from evidence.layout import Group, Table
from evidence.names import LOSS_UNITS
from evidence.trials import tried

if TYPE_CHECKING:
    import pandas as pd

    from evidence.collected import Collected

LEAST = 2  # points that make a search


class Point(NamedTuple):
    """One rate of a search. ``loss``: validation loss, the mean over seeds; None where it may not be compared."""

    variant: str
    loss: float | None
    status: str  # "ok", or why it has no loss: how the first bad run ended, or which seeds there are
    trained: int | None  # parameters
    losses: tuple[float, ...] = ()  # of each seed, where there are several to show


@dataclass(frozen=True)
class Search:
    """One setting of a method on one model and corpus; ``points`` by learning rate, in order."""

    model: str
    model_label: str
    corpus: str
    corpus_label: str
    method: str
    seeds: int
    points: dict[float, Point]
    joined: bool = True  # by a line: nothing but the rate differs
    trials: int = 0  # where a suite tunes: those of every method
    chosen: float | None = None  # by the tuning

    @property
    def tuned(self) -> bool:
        """Whether these are trials of a tuning, not runs of variants that a suite lists."""
        return self.trials > 0

    @property
    def variant(self) -> str:
        """The first point's name, for its colour."""
        return next(iter(self.points.values())).variant

    @property
    def setting(self) -> str:
        """The variants' common name without their rates, ``lorsum-plain`` of lorsum-plain-1e-2; else the method's."""
        names = {re.sub(r"-\d+e-?\d+$", "", point.variant) for point in self.points.values()}
        return names.pop() if len(names) == 1 else self.method

    @property
    def best(self) -> float | None:
        """The rate of the lowest validation loss; None where every run failed."""
        if self.chosen is not None:
            return self.chosen
        good = {rate: point.loss for rate, point in self.points.items() if point.loss is not None}
        return min(good, key=good.get) if good else None

    @property
    def at_edge(self) -> bool:
        """Whether the choice is the first or the last rate that was tried: a wider search might choose another."""
        return self.best in (min(self.points), max(self.points))


def searches(runs: pd.DataFrame) -> list[Search]:
    """All settings that a suite tried at several rates, in its order. Columns as in runs.parquet."""
    return [setting for setting in settings(runs) if len(setting.points) >= LEAST]


def not_chosen(runs: pd.DataFrame) -> set[tuple[str, str, str]]:
    """(model, corpus, variant) of the rates that a search did not choose: they do not stand for their method."""
    return {
        (search.model, search.corpus, point.variant)
        for search in searches(runs)
        for rate, point in search.points.items()
        if search.best is not None and rate != search.best
    }


def tuned_searches(trials: pd.DataFrame) -> list[Search]:
    """The searches of a suite that tunes, where the learning rate is searched; other fields may move with it."""
    found = []
    for search in tried(trials):
        if "learning_rate" in search.spaces:
            by_rate = sorted(search.trials, key=lambda trial: trial.values["learning_rate"])
            points = {
                t.values["learning_rate"]: Point(search.cell[2], t.loss, t.status, t.parameters, t.losses)
                for t in by_rate
            }
            named = (search.identity[name] for name in ("model", "model_label", "corpus", "corpus_label", "method"))
            best = search.chosen.values["learning_rate"] if search.chosen else None
            found.append(Search(*named, len(search.seeds), points, len(search.spaces) == 1, len(search.trials), best))
    return found


def settings(runs: pd.DataFrame) -> list[Search]:
    """All settings of all methods: variants that differ by learning rates alone are one."""
    trained = runs[runs["hyperparameters"] != ""].drop_duplicates(["model", "corpus", "variant", "seed"])
    found: dict[tuple, list] = {}
    for row in trained.to_dict("records"):
        fields = json.loads(row["hyperparameters"])
        others = {k: v for k, v in fields.items() if not k.endswith("learning_rate")}
        key = (row["model"], row["corpus"], row["method"], json.dumps(others, sort_keys=True))
        if "learning_rate" in fields:
            found.setdefault(key, []).append((fields["learning_rate"], row))
    return [_search(points) for points in found.values()]


def _search(points: list[tuple[float, dict]]) -> Search:
    first = points[0][1]
    by_rate: dict[float, list[dict]] = {}
    for rate, row in sorted(points, key=lambda point: point[0]):
        by_rate.setdefault(rate, []).append(row)
    seeds = {row["seed"] for _, row in points}
    made = {}
    for rate, rows in by_rate.items():
        bad = next(filter(None, map(_fault, rows)), "")
        if not bad and (count := len({row["seed"] for row in rows})) < len(seeds):
            bad = f"{count} of {len(seeds)} seeds"
        loss = None if bad else sum(row["validation_last"] for row in rows) / len(rows)
        counts = [
            int(row["parameters_trained"]) for row in rows if row["parameters_trained"] == row["parameters_trained"]
        ]
        made[rate] = Point(rows[0]["variant"], loss, bad or "ok", counts[0] if counts else None)
    named = (first[name] for name in ("model", "model_label", "corpus", "corpus_label", "method"))
    return Search(*named, len(seeds), made)


def _fault(row: dict) -> str:
    """Why a run may not be compared with others; empty where it may."""
    if row["status"] not in ("ok", NO_VALUE):  # of a score, which plays no part here
        return str(row["status"])
    if row["stale"]:
        return "stale"
    if row["other_stack"]:
        return "other software"
    known = row["validation_last"] is not None and row["validation_last"] == row["validation_last"]
    return "" if known else "not a number"


def rates_table(collected: Collected, title: str) -> Table | None:
    """A row per model, corpus and method, a column per rate, the choice in brackets; None where there is no search."""
    found = searches(collected.runs)
    if not found:
        return None
    rates = sorted({rate for search in found for rate in search.points})
    heads = [("Validation loss at learning rate", [f"{rate:g}" for rate in rates]), ("", ["chosen", "seeds"])]
    table = Table(title, ("Model, corpus", "Setting"), heads, [], [])
    groups: dict[tuple[str, str], Group] = {}
    for search in found:
        group = groups.setdefault((search.model, search.corpus), Group([search.model_label, search.corpus_label]))
        chosen = "—" if search.best is None else f"{search.best:g}" + (" (edge)" if search.at_edge else "")
        cells = [_cell(search, rate) for rate in rates]
        group.rows.append([search.setting, *cells, chosen, str(search.seeds)])
        table.records += [
            {"model": search.model, "corpus": search.corpus, "method": search.method, "setting": search.setting,
             "learning_rate": rate, "validation_loss": point.loss, "status": point.status, "chosen": rate == search.best}
            for rate, point in search.points.items()
        ]  # fmt: skip
    table.groups = list(groups.values())
    table.notes = [
        "Chosen by the lowest mean validation loss, in brackets; test items play no part. (edge): the choice is the first "
        "or last rate that was tried. In a loss's place: why a rate cannot be chosen, be it one run that failed, is stale or "
        "comes from other software, or a seed that it lacks and another rate has.",
        LOSS_UNITS,
    ]
    return table


def _cell(search: Search, rate: float) -> str:
    if rate not in search.points:
        return ""
    point = search.points[rate]
    text = point.status if point.loss is None else f"{point.loss:.4f}"
    return f"[{text}]" if rate == search.best else text
