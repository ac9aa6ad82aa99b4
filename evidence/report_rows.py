"""What the report's tables show: plain rows for the templates, each number as text for readers and as a value to sort by.

Every number comes from what the Markdown tables print (``evidence.pools``, ``difference_table``, ``tiers``); nothing is
computed in another way. A run without a result keeps its place, as its status.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from evidence.cells import BASELINES
from evidence.difference_table import difference_table
from evidence.labels import benchmarks
from evidence.pools import Panel, Pool, Run, panels
from evidence.row_marks import clean
from evidence.score_table import average, decimals, describe, metric_label, names_of
from evidence.tiers import Tiers, panel_tiers

if TYPE_CHECKING:
    from evidence.collected import Collected


@dataclass
class RunText:
    """One seed: its number or status, what is wrong with it, and the page where it is told."""

    seed: int
    text: str
    fine: bool
    why: str


@dataclass
class ScoreRow:
    """One method on one model and benchmark. ``method`` is the variant's label, ``plugin`` the file in ``methods`` that it sets
    up; ``difference`` is that to the reference, where there is one."""

    corpus: str
    eval: str
    benchmark: str
    about: list[str]  # metric, items, training
    metric: str
    headline: bool  # else the likelihood of the reference answers
    lower_is_better: bool
    model: str
    model_label: str
    variant: str
    method: str
    plugin: str
    baseline: bool
    href: str
    mean: float | None
    average: str
    low: float | None
    high: float | None
    seeds: int
    planned: int
    items: int | None
    tier: str
    at_floor: bool
    unresolved: bool
    runs: list[RunText]
    digits: int
    difference: dict | None = None
    marks: list[str] = field(default_factory=list)


def page_of(model: str, corpus: str, variant: str, part: str = "") -> str:
    """The page of a training's seeds, from the report's folder; ``part`` of it, such as its cost."""
    page = f"trainings/{'--'.join(re.sub(r'[^A-Za-z0-9._]+', '-', name) for name in (model, corpus, variant))}.html"
    return f"{page}#{part}" if part else page


def score_rows(collected: Collected, found: list[Panel] | None = None) -> list[ScoreRow]:
    """Rows in the order of the suite: benchmarks, models, methods. ``found``: panels, where they are made already."""
    names, rows = names_of(collected), []
    found = panels(collected) if found is None else found
    called = benchmarks(found)
    table = difference_table(collected, "", found)
    keys = ("corpus", "eval", "metric", "model", "variant")
    differences = {tuple(r[key] for key in keys): r for r in (table.records if table else [])}
    order = {variant: place for place, variant in enumerate(collected.suite["variants"])}
    for panel in found:
        models = [model for model in collected.suite["models"] if any(model == m for _, m in panel.pools)]
        for model in models:
            placed = panel_tiers(panel, model)
            pools = [(v, pool) for (v, m), pool in panel.pools.items() if m == model and not pool.absent]
            for variant, pool in sorted(pools, key=lambda pair: order.get(pair[0], len(order))):
                row = _row(panel, called[panel.corpus, panel.eval], pool, model, variant, names, placed)
                row.difference = differences.get((panel.corpus, panel.eval, panel.metric, model, variant))
                rows.append(row)
    return rows


def _row(panel: Panel, benchmark: str, pool: Pool, model: str, variant: str, names: dict, placed: Tiers) -> ScoreRow:
    digits = decimals(panel)
    unresolved = panel.unresolved(model)
    marks = [f"seed {run.seed}: {run.why}" for run in (_run(r, digits) for r in pool.runs) if run.why]
    if any(panel.facts["generated"]):
        marks.append("rows made by a program: says nothing of real tasks")
    if stand_in := panel.first("stand_in"):
        marks.append(f"stands in for {stand_in}, and is not it")
    return ScoreRow(
        corpus=panel.corpus,
        eval=panel.eval,
        benchmark=benchmark,
        about=describe(panel)[1:],
        metric=metric_label(panel) if panel.metric else "",
        headline=panel.headline,
        lower_is_better=bool(panel.first("lower_is_better", False)),
        model=model,
        model_label=names[model],
        variant=variant,
        method=names[variant],
        plugin=str(panel.facts.loc[panel.facts["variant"] == variant, "method"].iloc[0]),
        baseline=variant in BASELINES,
        href=page_of(model, panel.corpus, variant),
        mean=pool.spread.mean if pool.used else None,
        average=average(pool, digits),
        low=pool.interval.low if pool.interval else None,
        high=pool.interval.high if pool.interval else None,
        seeds=len(pool.used),
        planned=len(pool.runs),
        items=pool.n_items,
        tier=placed.text(variant),
        at_floor=bool(pool.at_floor),
        unresolved=unresolved,
        runs=[_run(run, digits) for run in pool.runs],
        digits=digits,
        marks=marks,
    )


def _run(run: Run, digits: int) -> RunText:
    if run.value is None:
        why = f"{run.status} in {run.stage}" + (f": {run.reason}" if run.reason else "")
        return RunText(run.seed, run.status.replace("_", " "), False, why)
    why = f"stale: its {run.stale} record is of another specification" if run.stale else ""
    if run.other_stack:
        why = "; ".join(filter(None, [why, f"other software or device: {run.other_stack}"]))
    return RunText(run.seed, f"{run.value:.{digits}f}", not why, why)


def difference_text(row: ScoreRow) -> str:
    """ "+1.2 [-0.3, +2.7]*", with a star where the interval leaves seeds out; empty without a difference."""
    found = row.difference
    if not found:
        return ""
    text = f"{found['difference']:+.{row.digits}f}"
    if found["error"]:
        star = "*" if found["covers"] == "items only" else ""
        text += f" [{found['low']:+.{row.digits}f}, {found['high']:+.{row.digits}f}]{star}"
    return text


def told_apart(row: ScoreRow) -> bool:
    """Does its difference to the reference hold after Holm's adjustment, seeds included?"""
    found = row.difference
    return bool(found and found["covers"] == "seeds and items" and found["p_holm"] < 0.05)


@dataclass
class CostRow:
    """What a method costs on a model and corpus; None where it is not known."""

    model: str
    model_label: str
    corpus: str
    corpus_label: str
    variant: str
    method: str
    plugin: str
    href: str
    status: str
    why: str
    step: float | None
    low: float | None
    high: float | None
    steps: int | None
    times_full: float | None
    whole: float | None
    peak: float | None
    kinds: dict[str, float]
    rss: float | None
    trained: float | None
    share: float | None


def cost_rows(collected: Collected) -> list[CostRow]:
    """Costs in the order of the suite; failures with their reason."""
    costs = collected.costs
    if not len(costs):
        return []
    order = {variant: place for place, variant in enumerate(collected.suite["variants"])}
    rows = []
    for (model, corpus), group in costs.groupby(["model", "corpus"], sort=False):
        fine = clean(group)
        full = fine[fine["method"] == "full"]["step_seconds_median"]
        for entry in sorted(group.to_dict("records"), key=lambda e: order.get(e["variant"], len(order))):
            rows.append(_cost(entry, model, corpus, float(full.iloc[0]) if len(full) else None))
    return rows


def _cost(entry: dict, model: str, corpus: str, full: float | None) -> CostRow:
    def known(name: str) -> float | None:
        value = entry.get(name)
        return None if value is None or value != value else float(value)

    why = "; ".join(
        filter(
            None,
            [
                str(entry["reason"] or "") if entry["status"] != "ok" else "",
                "stale: measured for another specification" if entry["stale"] else "",
                f"other software, device or hardware: {entry['other_stack']}" if entry["other_stack"] else "",
            ],
        )
    )
    step = known("step_seconds_median")
    trained, total = known("parameters_trained"), known("parameters_total")
    kinds = {kind: known(f"memory_{kind}_bytes") for kind in ("weights", "gradients", "optimizer", "activations")}
    return CostRow(
        model=model,
        model_label=entry["model_label"],
        corpus=corpus,
        corpus_label=entry["corpus_label"],
        variant=entry["variant"],
        method=entry["variant_label"],
        plugin=entry["method"],
        href=page_of(model, corpus, entry["variant"], "cost"),
        status=entry["status"],
        why=why,
        step=step,
        low=known("step_seconds_q25"),
        high=known("step_seconds_q75"),
        steps=int(n) if (n := known("step_seconds_n")) else None,
        times_full=step / full if step and full and not why else None,
        whole=known("whole_seconds"),
        peak=known("memory_peak_bytes"),
        kinds={kind: value for kind, value in kinds.items() if value is not None},
        rss=known("memory_rss_peak_bytes"),
        trained=trained,
        share=100 * trained / total if trained and total else None,
    )


def finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
