"""The Hybrid paper's Table I: a row per benchmark and method, a column per model, every run and the average."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evidence.cells import BASELINES
from evidence.labels import shared
from evidence.layout import Group, Table
from evidence.pools import Panel, Pool, Run, panels
from evidence.score_notes import UNRESOLVED, notes
from evidence.tiers import Tiers, panel_tiers
from evidence.tuning_table import BUDGET, budgets

if TYPE_CHECKING:
    from evidence.collected import Collected


def score_table(
    collected: Collected, title: str, reference: bool = True, runs: bool = True, tiers: bool = True
) -> Table:
    """All panels as one table.

    ``reference`` adds likelihoods of the reference; ``runs`` shows every run; ``tiers``, with ``runs``, who leads (half a
    second to start, as it tests).
    """
    found = panels(collected, reference)
    names = names_of(collected)
    models = [model for model in collected.suite["models"] if any(model in {m for _, m in p.pools} for p in found)]
    tiers = tiers and runs
    spent = budgets(collected) if runs else {}
    subheads = ["runs", "average", "tier"] if tiers else ["runs", "average"] if runs else ["average"]
    subheads += ["tuned with"] if spent else []
    table = Table(title, ("Benchmark", "Method"), [(names[model], subheads) for model in models], [], [])
    for panel in found:
        digits = decimals(panel)
        group = Group(describe(panel))
        placed = {model: panel_tiers(panel, model) if tiers else Tiers() for model in models}
        for variant in _variants(collected, panel):
            row = [names[variant]]
            for model in models:
                pool, tier = panel.pools.get((variant, model)), placed[model].text(variant)
                tuned = spent.get((model, panel.corpus, variant), "—")
                row += [*cell(pool, digits, runs), *([tier] if tiers else []), *([tuned] if spent else [])]
                if pool:
                    table.records.append(_record(panel, pool, names, variant, model, tier))
                    table.records[-1]["cells"] |= {"tuned with": tuned} if spent else {}
            group.rows.append(row)
        group.rows += _floor_row(panel, models, subheads)
        table.groups.append(group)
    table.records = _side_by_side(table.records, [names[model] for model in models])
    table.notes = notes(collected, found, names, runs, tiers)
    if spent:
        table.notes.append(f"Tuned with: {BUDGET}")
    return table


def _floor_row(panel: Panel, models: Sequence[str], subheads: Sequence[str]) -> list[list[str]]:
    """A row that says which models' columns cannot be told from their floor; none where all can."""
    sunk = [model for model in models if panel.unresolved(model)]
    if not sunk:
        return []
    texts = [UNRESOLVED if model in sunk else "" for model in models]
    floor = max((panel.floors[model] for model in sunk if model in panel.floors), default=0.0)
    return [[f"(floor {floor:.4g})", *(text if head == "average" else "" for text in texts for head in subheads)]]


def describe(panel: Panel) -> list[str]:
    """What a row group is about: benchmark, metric, items, training."""
    lines = [panel.label]
    if panel.metric:
        arrow = "↓" if panel.first("lower_is_better", False) else "↑"
        lines.append(f"{metric_label(panel)} {arrow}")
    if items := panel.range("n_items"):
        lines.append(f"{items} items")
    trained = panel.facts[~panel.facts["variant"].isin(BASELINES)]
    complete = trained[trained["status"] == "ok"]  # a run that failed at step 3 does not say what the others did
    steps = Panel(panel.corpus, panel.eval, panel.metric, complete if len(complete) else trained).range("steps")
    rows = panel.range("batch_size")
    corpus = str(panel.first("corpus_label", panel.corpus))
    other = corpus != panel.first("eval_label", panel.eval)
    if other:
        lines.append(f"trained on {corpus}")
    if steps:
        lines.append(("" if other else "trained ") + f"{steps} steps" + (f" of {rows} rows" if rows else ""))
    return lines


def metric_label(panel: Panel) -> str:
    """ "accuracy, %": the metric in words and its unit."""
    words = re.sub(r"^pass_at_", "pass@", panel.metric).replace("_", " ").replace("nll", "NLL")
    unit = str(panel.first("unit"))
    if unit.lower() == words.lower():
        return unit
    return f"{words}, {unit}" if unit else words


def cell(pool: Pool | None, digits: int, runs: bool) -> list[str]:
    """The texts of one method on one model: its runs in the order of their seeds, and their average."""
    if pool is None or pool.absent:
        return ["—", "—"] if runs else ["—"]
    listed = " · ".join(_run(run, digits) for run in pool.runs)
    return [listed, average(pool, digits)] if runs else [average(pool, digits) if pool.used else listed]


def average(pool: Pool, digits: int) -> str:
    """ "70.7 ± 0.6 (2) [66.0, 75.0]": mean, sd, number of runs, interval over items."""
    if not pool.used:
        return "—"
    text = f"{pool.spread.mean:.{digits}f}{pool.mark}"
    if pool.spread.n > 1:
        text += f" ± {pool.spread.sd:.{digits}f}"
    missing = len(pool.runs) - pool.spread.n
    text += f" ({pool.spread.n} of {len(pool.runs)})" if missing else f" ({pool.spread.n})"
    if pool.interval:
        text += f" [{pool.interval.low:.{digits}f}, {pool.interval.high:.{digits}f}]"
    return text


def decimals(panel: Panel) -> int:
    """Digits after the point: three for likelihoods and shares, one for per cents and large numbers, three that are not zero
    where all scores lie below a tenth."""
    values = [run.value for pool in panel.pools.values() for run in pool.runs if run.value is not None]
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    unit = str(panel.first("unit"))
    if "%" in unit:
        return 1
    if 0 < largest < 0.1:
        return 2 - math.floor(math.log10(largest))
    if "nat" in unit or "bit" in unit or (largest <= 1 and not unit):
        return 3
    return 1 if largest >= 10 else 2


def _run(run: Run, digits: int) -> str:
    if run.value is None:
        return ("judge pending" if run.status == "judge_pending" else run.status) + run.mark
    return f"{run.value:.{digits}f}{run.mark}"


def names_of(collected: Collected) -> dict[str, str]:
    """Labels of models and variants; those that share one bear their names in brackets."""
    names, kinds = {}, ("model", "variant")
    for kind, told_apart in shared(collected.runs, kinds).items():
        rows = collected.runs.drop_duplicates(kind)
        names |= {**dict(zip(rows[kind], rows[f"{kind}_label"], strict=True)), **told_apart}
    return names


def _variants(collected: Collected, panel: Panel) -> list[str]:
    """Variants of a panel in the order of the suite, without rows that do not exist for it."""
    present = {variant for (variant, _), pool in panel.pools.items() if not pool.absent}
    return [variant for variant in collected.suite["variants"] if variant in present]


def _record(panel: Panel, pool: Pool, names: dict, variant: str, model: str, tier: str) -> dict:
    """One method on one model with full precision, for the CSV."""
    return {
        "key": (panel.corpus, panel.eval, panel.metric, variant),
        "model": names[model],
        "row": {
            "benchmark": panel.first("eval_label", panel.eval),
            "trained on": panel.first("corpus_label", panel.corpus),
            "metric": panel.metric,
            "unit": panel.first("unit"),
            "better": "lower" if panel.first("lower_is_better", False) else "higher",
            "data": "generated" if panel.facts["generated"].any() else "real",
            "method": names[variant],
            "variant": variant,
        },
        "cells": {
            "items": pool.n_items,
            **{f"run seed{run.seed}": _run(run, 10) if run.value is None else run.value for run in pool.runs},
            "average": pool.spread.mean if pool.used else None,
            "sd": pool.spread.sd if pool.spread.n > 1 else None,
            "runs averaged": pool.spread.n,
            "runs planned": len(pool.runs),
            "low": pool.interval.low if pool.interval else None,
            "high": pool.interval.high if pool.interval else None,
            "interval": pool.interval.kind if pool.interval else "",
            "stale": " ".join(str(run.seed) for run in pool.runs if run.stale),
            "other stack": " ".join(str(run.seed) for run in pool.runs if run.other_stack),
            "tier": tier,
            "resolution": UNRESOLVED if panel.unresolved(model) else "",
        },
    }


def _side_by_side(records: Sequence[dict], models: Sequence[str]) -> list[dict]:
    """CSV rows of the table's own layout: one per benchmark and method, a block of columns per model."""
    rows: dict[tuple, dict] = {}
    columns = {m: list(dict.fromkeys(c for r in records if r["model"] == m for c in r["cells"])) for m in models}
    for names in columns.values():
        names.sort(key=lambda name: (not name.startswith("run seed"), name if name.startswith("run seed") else ""))
    for record in records:
        blank = {f"{model}: {column}": "" for model in models for column in columns[model]}
        row = rows.setdefault(record["key"], {**record["row"], **blank})
        row.update({f"{record['model']}: {column}": value for column, value in record["cells"].items()})
    return list(rows.values())
