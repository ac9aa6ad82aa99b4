"""The records of a plan as flat rows in memory. ``collect`` writes them to Parquet; early tables read them at once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from evidence import cells, grades
from evidence.cells import EvidenceError, Outcome, dig
from evidence.choices import cell_of, choices, held_against
from evidence.trials import trial_rows

LIKELIHOODS = {"nll", "loss", "perplexity"}
"""A metric with one of these words in its name is better when lower, whatever its eval says."""


class Gathered:
    """All cells of a plan, or of one corpus: ``runs``, ``costs`` and ``trials`` are lists of rows, ``items`` of Arrow tables.

    Columns are documented in ``evidence.collect``. Raises EvidenceError for a plan that cannot be read.
    """

    def __init__(self, plan_path: Path, corpus: str | None = None):
        self.root = Path(plan_path).resolve().parent
        self.plan = cells.read_plan(plan_path)
        self.chosen = [cell for cell in self.plan["cells"] if corpus in (None, cell["corpus"])]
        if not self.chosen:
            known = ", ".join(self.plan["corpora"])
            raise EvidenceError(f"{plan_path}: no cell has the corpus '{corpus}'. There are: {known}.")
        self.problems: list[str] = [] if corpus else cells.unplanned(self.plan, self.root)
        self.runs: list[dict] = []
        self.items: list = []
        self._stacks: list[tuple[list[dict], dict[str, str]]] = []  # (rows, stack of each stage)
        self._cost_stacks: list[tuple[list[dict], dict[str, str]]] = []
        self._data: list[tuple[list[dict], set[tuple[str, str]]]] = []  # (rows, revisions that they were made from)
        self._choices = choices(self.plan, self.root)
        for cell in self.chosen:
            for entry in cells.evals_of(cell) or [None]:
                self._score(cell, entry)
        self.costs = [self._cost(cell) for cell in cells.cost_cells(self.plan) if corpus in (None, cell["corpus"])]
        self.trials = trial_rows(self.plan, self.root, corpus)
        self.reference_stack = _mark_stacks(self._stacks) | _mark_stacks(self._cost_stacks)
        _mark_data(self._data)

    def suite(self) -> dict:
        """Names, orders and notes that tables and figures need beside the rows."""
        kept = ("suite", "file", "description", "code", "protocol", "models", "corpora", "variants")
        return {
            **{name: self.plan[name] for name in kept if name in self.plan},
            "evals": list(dict.fromkeys(row["eval"] for row in self.runs if row["eval"])),
            "cells": len(self.chosen),
            "reference_stack": self.reference_stack,
            "tuning": {k: v for k, v in (self.plan.get("tuning") or {}).items() if k != "cells"},
            "problems": self.problems,
        }

    def _score(self, cell: dict, entry: dict | None) -> None:
        """Rows of one training under one eval."""
        found = self._held(cells.folder_of(Path(), cell), cell, cells.outcome(self.root, cell, entry))
        facts = {**cells.identity(self.plan, cell), **_facts(cell, entry or {}, found)}
        graded, columns = self._grades(cell, entry, found, facts)
        rows = [{**facts, **metric, **_without_number(facts, metric)} for metric in _metrics(entry or {}, found)]
        for row in rows:
            match = grades.formula(row["metric"], row["value"], columns, row["unit"]) if columns else None
            row["numerator"] = match.numerator if match else ""
            row["denominator"] = match.denominator if match else ""
            row["scale"] = match.scale if match else None
        if graded:
            self.items.append(_item_table(facts, graded, columns))
        stacks = {stage: cells.stack_of(record) for stage, record in found.records.items()}
        self._stacks.append((rows, {stage: stack for stage, stack in stacks.items() if stack}))
        self._data.append((rows, _revisions(found)))
        self.runs += rows

    def _held(self, place: Path, cell: dict, found: Outcome) -> Outcome:
        """The outcome, stale where it was made with other values than its search chose, which is told once."""
        found, other = held_against(found, self._choices.get(cell_of(cell)))
        told = f"{place.as_posix()}: stale, of another choice of its search: {other}"
        if other and told not in self.problems:
            self.problems.append(told)
        return found

    def _grades(self, cell: dict, entry: dict | None, found: Outcome, facts: dict) -> tuple[list[dict], dict]:
        """The items' grades and their numeric columns. A damaged file makes the row an error, visible everywhere."""
        score = found.records.get("score", {})
        if found.status != "ok" or entry is None:
            return [], {}
        try:
            graded = grades.read_grades(cells.folder_of(self.root, cell) / entry["eval"], score)
        except (ValueError, OSError) as error:
            self.problems.append(str(error))
            facts.update(status="error", stage="score", reason=str(error))
            return [], {}
        return graded, grades.numbers(graded)

    def _cost(self, cell: dict) -> dict:
        found = self._held(cells.cost_path(cell).parent, cell, cells.cost_outcome(self.root, cell))
        row = {**cells.identity(self.plan, cell), **_cost_facts(found)}
        del row["seed"]
        stack = cells.stack_of(found.records["cost"], hardware=True)
        self._cost_stacks.append(([row], {"cost": stack} if stack else {}))
        self._data.append(([row], _revisions(found)))
        return row


def _mark_stacks(made: list[tuple[list[dict], dict[str, str]]]) -> dict[str, str]:
    """Fill ``stack`` and ``other_stack`` of rows from the stack of each of their stages. Returns the reference of each."""
    ended = [stacks for rows, stacks in made if rows[0]["status"] == "ok" and not rows[0]["stale"]]
    reference = cells.reference_stacks(ended, [stacks for _, stacks in made])
    for rows, stacks in made:
        differences = {stage: cells.stack_difference(stack, reference[stage]) for stage, stack in stacks.items()}
        for row in rows:
            for stack in stacks.values():
                row["stack"] = cells.short_hash(row["stack"] + stack)
            row["other_stack"] = "; ".join(dict.fromkeys(filter(None, differences.values())))
    return reference


def _revisions(found: Outcome) -> set[tuple[str, str]]:
    """(model or data, its revision) of all that a run's records were made from."""
    return {pair for record in found.records.values() for pair in (record.get("assets") or {}).items()}


def _mark_data(made: list[tuple[list[dict], set[tuple[str, str]]]]) -> None:
    """Tell in ``other_stack`` what was made from another revision of a model or of data than most, as mirrors may differ."""
    counts: dict[str, Counter[str]] = {}
    for rows, pairs in made:
        for name, revision in pairs if rows[0]["status"] == "ok" and not rows[0]["stale"] else ():
            counts.setdefault(name, Counter())[revision] += 1
    most = {name: count.most_common(1)[0][0] for name, count in counts.items()}
    for rows, pairs in made:
        told = [f"{name} of {found} ({most[name]})" for name, found in sorted(pairs) if most.get(name, found) != found]
        for row in rows if told else ():
            row["other_stack"] = "; ".join(filter(None, [row["other_stack"], *told]))


def _facts(cell: dict, entry: dict, found: Outcome) -> dict[str, Any]:
    """What is the same for all metrics of a training under an eval."""
    train, score = found.records.get("train", {}), found.records.get("score", {})
    validation = dig(train, "loss", "validation") or []
    first = train if train.get("provenance") else score
    return {
        "eval": entry.get("eval", ""),
        "eval_label": entry.get("label") or score.get("label") or entry.get("eval", ""),  # a record's is of its day
        "generated": bool(cell.get("generated") or entry.get("generated") or score.get("generated")),
        "stand_in": str(entry.get("stand_in") or cell.get("stand_in") or ""),
        "status": found.status,
        "stage": found.stage,
        "reason": found.reason,
        "stale": found.stale,
        "stack": "",
        "other_stack": "",
        "n_items": score.get("n_items"),
        "eval_version": score.get("eval_version"),
        "steps": train["steps"] if "steps" in train else cell.get("steps"),
        "epoch_steps": train.get("epoch_steps"),
        "batch_size": dig(train, "specification", "protocol", "batch_size"),
        "hyperparameters": _json(dig(train, "specification", "hyperparameters") or {}),
        **{f"tokens_{kind}": dig(train, "tokens", kind) for kind in ("supervised", "total", "probe")},
        **{f"parameters_{kind}": dig(train, "parameters", kind) for kind in ("trained", "effective", "total")},
        "loss_first": dig(train, "loss", "first"),
        "loss_last": dig(train, "loss", "last"),
        "validation_first": validation[0][1] if validation else None,
        "validation_last": validation[-1][1] if validation else None,
        "train_seconds": dig(train, "phases", "train", "seconds"),
        "refreshes": dig(train, "clocks", "refresh", "count"),
        "refresh_seconds": dig(train, "clocks", "refresh", "seconds"),
        "rss_peak_bytes": dig(train, "memory", "rss_peak_bytes"),
        "facts": _json(train.get("facts") or {}),
        "overlap": _json(train.get("overlap") or {}),
        "commit": str(dig(first, "provenance", "commit") or ""),
        "dirty": bool(dig(first, "provenance", "dirty")),
        "device": plain(dig(first, "provenance", "device")),
    }


def _metrics(entry: dict, found: Outcome) -> list[dict[str, Any]]:
    """One mapping per metric; a single empty one where there is no score."""
    score = {**entry, **found.records.get("score", {})}
    metrics = score.get("metrics") or {}
    values = {k: v for k, v in metrics.items() if v is None or isinstance(v, int | float)}
    texts = {k: v for k, v in metrics.items() if isinstance(v, str)}
    texts |= score.get("signatures") or {}
    headline = score.get("headline") or next(iter(values), "")
    if not values or found.status != "ok":
        values = {headline: None}
    return [{**_about(score, name, headline), "value": value, "texts": _json(texts)} for name, value in values.items()]


def _without_number(facts: dict[str, Any], metric: dict[str, Any]) -> dict[str, str]:
    """How the row of a headline ended whose score has no number for it, as where no verdict of a judge was one."""
    if facts["status"] != "ok" or not facts["eval"] or not metric["headline"] or _known(metric["value"]):
        return {}
    reason = f"the score has no number for its headline {metric['metric']}".rstrip()
    return {"status": cells.NO_VALUE, "stage": "score", "reason": reason}


def _about(score: dict, name: str, headline: str) -> dict[str, Any]:
    """What an eval declares of a metric: unit, direction, floor."""
    at_floor = score.get("at_floor")
    if isinstance(at_floor, dict):
        at_floor = at_floor.get(name)
    elif name != headline:
        at_floor = None
    words = set(name.lower().replace("/", "_").split("_"))
    return {
        "metric": name,
        "headline": name == headline,
        "reference": "nll" in words,
        "unit": (score.get("units") or {}).get(name, ""),
        "lower_is_better": name in (score.get("lower_is_better") or ()) or bool(LIKELIHOODS & words) if name else None,
        "floor": (score.get("floors") or {}).get(name),
        "at_floor": at_floor,
    }


def _item_table(facts: dict, graded: list[dict], columns: dict[str, list[float]]):
    """Arrow table of one training's items under one eval, repeated texts as dictionaries."""
    import pyarrow as pa

    count, table = len(graded), {}
    for name in ("suite", "model", "corpus", "variant", "method", "eval", "stale"):
        codes = pa.array([0] * count, pa.int32())
        table[name] = pa.DictionaryArray.from_arrays(codes, pa.array([facts[name]], pa.string()))
    table["seed"] = pa.array([facts["seed"]] * count, pa.int64())
    table["item"] = pa.array([str(grade.get("item", index)) for index, grade in enumerate(graded)])
    table["grade"] = pa.array([_json({k: v for k, v in grade.items() if k != "item"}) for grade in graded])
    return pa.table(table | {f"grade.{name}": pa.array(column, pa.float64()) for name, column in columns.items()})


def _cost_facts(found: Outcome) -> dict[str, Any]:
    """The cost record as flat columns; seconds of an epoch follow from the step's and their number."""
    record, steps = found.records["cost"], found.records["cost"].get("epoch_steps")
    row = {"status": found.status, "reason": found.reason, "stale": found.stale, "stack": "", "other_stack": ""}
    for name in ("threads", "batch_tokens", "tokens_per_second", "epoch_steps", "flops_per_step"):
        row[name] = record.get(name)
    for name in ("median", "q25", "q75", "n"):
        row[f"step_seconds_{name}"] = dig(record, "seconds", name)
    row["step_seconds_all"] = json.dumps(dig(record, "seconds", "all") or [])
    for name in ("median", "q25", "q75"):
        row[f"epoch_seconds_{name}"] = _epoch_seconds(row, name, record.get("epoch_seconds"), steps)
    for name, value in (record.get("memory") or {}).items():
        if value is None or isinstance(value, int | float):
            row[f"memory_{name.removesuffix('_bytes')}_bytes"] = value
    for name in ("attach_seconds", "prepare_seconds", "instrument_overhead"):
        row[name] = record.get(name)
    for part, names in (("refresh", ("seconds", "first_seconds", "every")), ("warmup", ("seconds", "steps")),
                        ("whole", ("seconds", "steps"))):  # fmt: skip
        row |= {f"{part}_{name}": dig(record, part, name) for name in names}
    row["warmup_peak_bytes"] = dig(record, "warmup", "memory", "peak")
    row["refresh_peak_bytes"] = dig(record, "refresh", "memory", "peak")
    row["start_peak_bytes"] = dig(record, "start", "memory", "peak")
    row["memory_step_peak_bytes"] = row.get("memory_peak_bytes")
    peaks = [row[f"{part}_peak_bytes"] for part in ("memory_step", "warmup", "refresh", "start")]
    row["memory_peak_bytes"] = max((peak for peak in peaks if peak is not None), default=None)  # of a whole training
    for name in ("trained", "effective", "total"):
        row[f"parameters_{name}"] = dig(record, "parameters", name)
    row["hardware"] = plain(dig(record, "provenance", "hardware"))
    row["device"] = plain(dig(record, "provenance", "device"))
    return row


def _epoch_seconds(row: dict, name: str, measured: float | None, steps: int | None) -> float | None:
    """Seconds of one pass: as the record says (time per token x tokens of the corpus), else step x number of steps.

    The quartiles stand to the median as those of the steps do.
    """
    step, median = row[f"step_seconds_{name}"], row["step_seconds_median"]
    if step is None or not median:
        return None
    whole = measured if measured is not None else median * steps if steps else None
    return None if whole is None else whole * step / median


def _known(value: Any) -> bool:
    return value is not None and value == value


def plain(value: Any) -> str:
    """A record's value as text; a mapping as "name value, ...", its bytes in GiB."""
    if isinstance(value, dict):
        sizes = {k.removesuffix("_bytes"): f"{v / 2**30:.3g} GiB" for k, v in value.items() if k.endswith("_bytes")}
        parts = {name.removesuffix("_bytes"): plain(part) for name, part in value.items() if part is not None} | sizes
        return ", ".join(f"{name} {part}" for name, part in parts.items())
    return "" if value is None else str(value)


def _json(value: dict) -> str:
    return json.dumps(value, ensure_ascii=False) if value else ""
