"""Tuning as the DAG sees it: which cells are tuned over which fields, their trials, keys and places. Imports no torch.

A trial is a training of a cell with other values of the searched fields, under the suite's protocol and a seed of its own.
What the trials chose stands in ``tuned.json``, which the cell's reported trainings read. Their keys cover the search
(spaces, number of trials, seeds, steps, the rule's code) and not its outcome, which follows from it.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness import record, search
from harness.cells import Training, hash_of, train_record
from harness.closure import code_hash
from harness.failures import UserError
from harness.plugins import ROOT, find_plugin
from harness.seeds import Streams

if TYPE_CHECKING:
    from harness.suite import Suite


@dataclass(frozen=True)
class Trial(Training):
    """One training of a search: trial ``number``, counted from 1, with these values of the searched fields."""

    number: int = 1
    values: dict[str, Any] = field(default_factory=dict, hash=False)
    kind: ClassVar[str] = "tune"
    stage: ClassVar[str] = "trial"
    tuning: ClassVar[None] = None

    @property
    def name(self) -> str:
        return f"{self.model}/{self.corpus}/{self.variant}/trial{self.number}/seed{self.seed}"

    @property
    def identity(self) -> dict:
        return {**super().identity, "trial": self.number}

    @functools.cached_property
    def protocol(self) -> dict:
        """The suite's; only the number of steps may be the tuning's own."""
        steps = self.suite.raw["tuning"].get("steps")
        return self.suite.resolve(self, "protocol", {"steps": steps} if steps else {})

    def hyperparameters_given(self) -> dict:
        return {**super().hyperparameters_given(), **self.values}

    @functools.cached_property
    def hyperparameters(self) -> dict:
        return {**find_plugin("methods", self.method).fields, **self.hyperparameters_given()}


@dataclass(frozen=True)
class Tuning:
    """The search of one (model, corpus, variant): ``spaces`` of its searched fields, the learning rate first."""

    suite: Suite = field(repr=False, compare=False)
    model: str
    corpus: str
    variant: str
    spaces: dict[str, dict] = field(hash=False)

    @property
    def record(self) -> Path:
        return self.suite.results / "tune" / self.model / self.corpus / self.variant / "tuned.json"

    @property
    def identity(self) -> dict:
        method = self.suite.variants[self.variant]["method"]
        return {
            "suite": self.suite.name,
            "model": self.model,
            "corpus": self.corpus,
            "variant": self.variant,
            "method": method,
        }

    @functools.cached_property
    def trials(self) -> list[Trial]:
        """All trials, each with every tuning seed; the first has the values that the suite or the method gives."""
        budget = self.suite.raw["tuning"]
        cell = (self.suite, self.model, self.corpus, self.variant)
        first = Trial(*cell, budget["seeds"][0], ()).hyperparameters
        drawn = [search.values_at(self.spaces, point) for point in self.suite.tuning_points]
        values = [{name: first[name] for name in self.spaces}, *drawn]
        numbered = itertools.product(enumerate(values, 1), budget["seeds"])
        return [Trial(*cell, seed, (), number, chosen) for (number, chosen), seed in numbered]

    @property
    def specification(self) -> dict:
        """What of the search a training's key covers, beside what the training shares with its trials."""
        budget = self.suite.raw["tuning"]
        rule = code_hash([ROOT / "harness" / "search.py"])
        kept = {name: budget.get(name) for name in ("trials", "seeds", "steps")}
        return {**kept, "searched": self.spaces, "code": rule}

    @functools.cached_property
    def computed_key(self) -> str:
        return hash_of({"tuning": self.specification, "trials": [trial.computed_key for trial in self.trials]})

    @property
    def key(self) -> str:
        return self.suite.recorded_key(self.record) or self.computed_key

    def chosen(self) -> dict[str, Any]:
        """The values that the search chose. Raises UserError before it has ended, and where every trial failed."""
        if not self.record.is_file():
            raise UserError(f"{self.record} does not exist: {self.variant} is tuned first (python -m harness.tune)")
        found = record.read(self.record)
        if found["key"] != self.key:
            raise UserError(
                f"{self.record} is of another search (key {found['key']}, now {self.key}): run the suite again, which "
                "tunes anew, or go back to what was tuned."
            )
        if found["status"] != "ok":
            raise UserError(f"{self.record}: {found['reason']}. There is nothing to train with.")
        return found["chosen"]["values"]


def points_of(suite: Suite) -> list[list[float]]:
    """The points of the unit cube that every variant's trials after the first stand on."""
    budget = suite.raw["tuning"]
    return search.points(budget["trials"], Streams(budget["seeds"][0]).seed("tuning"))


def tunings(suite: Suite, trainings: list[Training]) -> dict[tuple[str, str, str], Tuning]:
    """The searches of a suite by (model, corpus, variant): of every cell in its budget's reach with a searched field."""
    budget, found = suite.raw.get("tuning"), {}
    for t in trainings if budget else []:
        cell = (t.model, t.corpus, t.variant)
        reached = t.model in budget.get("models", [t.model]) and t.corpus in budget.get("corpora", [t.corpus])
        if t.trains and reached and cell not in found and (spaces := _searched(suite, cell)):
            found[cell] = Tuning(suite, *cell, spaces)
    return found


def planned(suite: Suite) -> dict | None:
    """What the plan says of tuning; None of a suite that does not tune."""
    if "tuning" not in suite.raw:
        return None
    cells = [
        {
            **tuning.identity,
            "record": str(tuning.record),
            "key": tuning.computed_key,
            "searched": tuning.spaces,
            "trials": [
                {
                    "trial": t.number,
                    "seed": t.seed,
                    "values": t.values,
                    "record": str(train_record(t)),
                    "key": t.computed_key,
                }
                for t in tuning.trials
            ],
        }
        for tuning in suite.tunings.values()
    ]
    return {**suite.raw["tuning"], "cells": cells, "not_searched": untuned(suite)}


def untuned(suite: Suite) -> list[str]:
    """Variants with no searched field on some model or corpus within the budget's reach."""
    budget = suite.raw.get("tuning", {})
    cells = dict.fromkeys((t.model, t.corpus, t.variant) for t in suite.trainings if t.trains)
    reached = [(m, c, v) for m, c, v in cells if m in budget.get("models", [m]) and c in budget.get("corpora", [c])]
    return list(dict.fromkeys(cell[2] for cell in reached if cell not in suite.tunings)) if budget else []


def _searched(suite: Suite, cell: tuple[str, str, str]) -> dict[str, dict]:
    """Spaces of the fields that a cell searches: those that the suite lists, else all that it does not set itself."""
    budget = suite.raw["tuning"]
    searches = find_plugin("methods", suite.variants[cell[2]]["method"]).searches
    fixed = suite.resolve(Trial(suite, *cell, budget["seeds"][0], ()), "variant")
    names = budget.get("search", {}).get(cell[2], [name for name in searches if name not in fixed])
    return {name: searches[name] for name in sorted(names, key=lambda name: name != "learning_rate")}


def check(suite: Suite) -> None:
    """Refuse a budget that would not be fair, or that cannot be."""
    budget, where = suite.raw.get("tuning"), f"{suite.path}: tuning"
    if budget is None:
        return
    reported = {seed for block in suite.raw["grid"] for seed in block["seeds"]}
    if shared := sorted(reported & set(budget["seeds"])):
        raise UserError(
            f"{where}.seeds: seed {shared[0]} is also a seed of the grid. What is chosen on a seed looks better on it than "
            "on others: tune with seeds that no reported training has."
        )
    for kind, plural in (("model", "models"), ("corpus", "corpora")):
        used = {name for block in suite.raw["grid"] for name in block[plural]}
        for name in budget.get(plural, []):
            if name not in used:
                raise UserError(f"{where}.{plural}: no grid block has the {kind} '{name}'")
    for variant, names in budget.get("search", {}).items():
        _check_search(suite, variant, names, f"{where}.search")
    for number, rule in enumerate(suite.raw.get("overrides", [])):
        if "seed" in rule["when"] and any(key.startswith("variant.") for key in rule["set"]):
            raise UserError(
                f"{suite.path}: overrides.{number}: a hyper-parameter cannot depend on the seed in a suite that tunes: "
                "one choice serves every reported seed."
            )


def _check_search(suite: Suite, variant: str, names: list[str], where: str) -> None:
    if variant not in suite.variants:
        raise UserError(f"{where}: no variant '{variant}'. There are: {', '.join(suite.variants)}.")
    searches = find_plugin("methods", suite.variants[variant]["method"]).searches
    for name in names:
        if name not in searches:
            known = ", ".join(searches) or "none"
            raise UserError(
                f"{where}.{variant}: the field '{name}' has no search space. Fields with one: {known}. A space is declared "
                'in the method: field(metadata={"search": log_uniform(1e-5, 1e-2)}).'
            )
    if len(names) > search.DIMENSIONS:
        raise UserError(f"{where}.{variant}: at most {search.DIMENSIONS} fields can be searched at once")
