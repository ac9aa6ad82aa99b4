"""All benchmarks at once, a row per model and method: IQM, probability of improvement, tier, cost, and the Pareto front.

    IQM          of all (run, benchmark) scores in points of 100, higher is better (``evidence.aggregate``)
    P(better)    probability of improvement over the reference (LoRA), over all benchmarks that have a score
    tier 1       on how many of the benchmarks that tell anything the method is in the first tier (``evidence.tiers``)
    on the front probability that no method is as good in IQM, time of a training and memory, and better in one of them

Methods are compared over the same runs: on each benchmark the seeds that all of them have. Where a method has no run of a
benchmark that may be averaged, or no cost, its cell says why and no number stands for it.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from evidence.aggregate import DRAWS, Estimate, Scores, estimate, improvement, iqm, resampled
from evidence.cells import BASELINES
from evidence.layout import Group, Table
from evidence.paired import LEAST_SEEDS
from evidence.pareto import drawn_medians, membership
from evidence.pools import OTHER_STACK, STALE, Panel, Pool, panels
from evidence.score_notes import left_out
from evidence.score_table import names_of
from evidence.tiers import panel_tiers
from evidence.time_to_target import reference_of

if TYPE_CHECKING:
    import numpy as np

    from evidence.collected import Collected

POINTS = ("%", "x 100", "BLEU")  # units of scores that can be averaged over benchmarks
HEADS = ["runs", "IQM [95 %]", "better than {} [95 %]", "tier 1", "training, s", "live tensors, MiB", "on the front"]
MIB = 2**20


@dataclass
class Method:
    """A method's numbers over the benchmarks of a model; None where it lacks one of them."""

    runs: int
    planned: int
    lacks: str  # what is missing, failed or not comparable, for the cell
    items_only: bool = False
    quality: Estimate | None = None
    better: Estimate | None = None
    led: tuple[int, int] = (0, 0)  # benchmarks in whose first tier it is, of how many
    seconds: float | None = None
    memory: float | None = None
    cost_lacks: str = ""
    front: float | None = None


@dataclass
class Overview:
    """Of one model. ``benchmarks``: those in the IQM; ``more``: those in the probability of improvement alone."""

    model: str
    label: str
    reference: str
    benchmarks: list[str]
    more: list[str]
    methods: dict[str, Method] = field(default_factory=dict)
    unshared: list[str] = field(default_factory=list)  # benchmarks without a seed that all methods have: left out


def overviews(collected: Collected, found: list[Panel] | None = None) -> list[Overview]:
    """One of each model that has a score. ``found``: headline panels, where they are made already."""
    found = panels(collected, reference=False) if found is None else found
    names = names_of(collected)
    made = [_overview(collected, found, model, names) for model in collected.suite["models"] if model in names]
    return [one for one in made if one]


def _overview(collected: Collected, found: list[Panel], model: str, names: dict) -> Overview | None:
    here = [p for p in found if any(m == model and pool.used for (_, m), pool in p.pools.items())]
    telling = [p for p in here if not p.unresolved(model)]
    scored = [p for p in telling if p.first("unit") in POINTS and not p.first("lower_is_better", False)]
    reference = reference_of(collected.suite["variants"])
    if not scored:
        return None
    also = [p.label for p in telling if p not in scored]
    one = Overview(model, names[model], reference or "", [p.label for p in scored], also)
    tiers = [t for p in telling if (t := panel_tiers(p, model)).of]
    for variant in collected.suite["variants"]:
        pools = [p.pools.get((variant, model)) for p in telling]
        if not any(pool and not pool.absent for pool in pools):
            continue
        method = _method(telling, pools)
        if not (variant in BASELINES and method.lacks):  # no majority class of a translation
            one.methods[variant] = method
        if variant not in BASELINES:
            method.led = (sum(t.of.get(variant) == 1 for t in tiers), len(tiers))
    whole = [v for v, method in one.methods.items() if not method.lacks]
    drawn = {p.label + p.corpus: _resampled(p, whole, model) for p in telling}
    telling, scored = ([p for p in some if drawn[p.label + p.corpus]] for some in (telling, scored))
    _count_shared(one, drawn, telling)
    one.unshared = [label for label in one.benchmarks if label not in [p.label for p in scored]]
    if not scored:
        return one
    _qualities(one, scored, drawn, whole, model)
    _improvements(one, telling, drawn, whole, model)
    _fronts(one, collected, scored, drawn)
    return one


def _method(telling: list[Panel], pools: list[Pool | None]) -> Method:
    """Counts of runs, and what keeps the method from a number over all benchmarks."""
    lacks = {}
    for panel, pool in zip(telling, pools, strict=True):
        if pool is None or not pool.used or pool.mark:
            why = {run.status for run in pool.runs if run.value is None} if pool else {"not run"}
            why |= {"stale"} if pool and STALE in pool.mark else set()
            why |= {"other software"} if pool and OTHER_STACK in pool.mark else set()
            lacks.setdefault(", ".join(sorted(why)), []).append(panel.label)
    there = [pool for pool in pools if pool]
    said = "; ".join(f"{why}: {', '.join(labels)}" for why, labels in lacks.items())
    return Method(
        sum(len(p.used) for p in there if not p.mark), sum(len(p.runs) for p in there), said,
        any(len(p.used) < LEAST_SEEDS for p in there),
    )  # fmt: skip


def _scores(panel: Panel, pool: Pool, seeds: list[int]) -> Scores:
    import numpy as np

    sign = -1.0 if panel.first("lower_is_better", False) else 1.0
    runs = np.array([run.value for seed in seeds for run in pool.runs if run.seed == seed])
    places = [pool.used.index(seed) for seed in seeds]
    return Scores(sign * runs, sign * pool.items.values[places] if pool.items else None)


def _resampled(panel: Panel, whole: list[str], model: str) -> dict[str, tuple[Scores, np.ndarray]]:
    """Each method's scores and their bootstrap, on shared seeds; baselines have one run. Empty where no seed is shared."""
    import numpy as np

    pools = {v: panel.pools[v, model] for v in whole}
    trained = [set(pool.used) for v, pool in pools.items() if v not in BASELINES]
    shared = sorted(set.intersection(*trained)) if trained else []
    if trained and not shared:
        return {}
    scores = {v: _scores(panel, pool, list(pool.used) if v in BASELINES else shared) for v, pool in pools.items()}
    rng = np.random.default_rng(zlib.crc32("/".join(("overview", model, panel.corpus, panel.eval)).encode()))
    drawn = resampled(scores, rng) if scores else {}
    return {v: (scores[v], drawn[v]) for v in scores}


def _count_shared(one: Overview, drawn: dict, telling: list[Panel]) -> None:
    """Runs of a method that is compared are those on shared seeds, and so is what its interval covers."""
    for v in (v for v, method in one.methods.items() if not method.lacks):
        counts = [len(found[v][0].runs) for p in telling if (found := drawn[p.label + p.corpus])]
        one.methods[v].runs, one.methods[v].items_only = sum(counts), any(count < LEAST_SEEDS for count in counts)


def _qualities(one: Overview, scored: list[Panel], drawn: dict, whole: list[str], model: str) -> None:
    import numpy as np

    for v in whole:
        parts = [drawn[p.label + p.corpus][v] for p in scored]
        value = iqm(np.concatenate([scores.runs for scores, _ in parts]))
        one.methods[v].quality = estimate(value, iqm(np.concatenate([runs for _, runs in parts], axis=1)))


def _improvements(one: Overview, telling: list[Panel], drawn: dict, whole: list[str], model: str) -> None:
    if one.reference not in whole:
        return
    base = [drawn[p.label + p.corpus][one.reference] for p in telling]
    for v in (v for v in whole if v != one.reference and v not in BASELINES):
        parts = [drawn[p.label + p.corpus][v] for p in telling]
        value = improvement([s.runs for s, _ in parts], [s.runs for s, _ in base])
        one.methods[v].better = estimate(value, improvement([d for _, d in parts], [d for _, d in base]))


def _fronts(one: Overview, collected: Collected, scored: list[Panel], drawn: dict) -> None:
    """Time and memory of each method over the corpora whose cost is measured, and its place on the front."""
    import numpy as np

    costs = collected.costs
    costs = costs[costs["model"] == one.model] if len(costs) else costs
    corpora = list(costs["corpus"].unique()) if len(costs) else []
    parts: dict[str, list[dict]] = {}
    for variant, method in one.methods.items():
        rows = costs[costs["variant"] == variant].to_dict("records") if corpora else []
        method.cost_lacks = _cost_lacks(rows, corpora) if variant not in BASELINES else "—"
        if not method.cost_lacks:
            method.seconds = float(np.mean([_seconds(row) for row in rows]))
            method.memory = float(np.max([row["memory_peak_bytes"] for row in rows]))
            parts[variant] = rows
    placed = [v for v in parts if one.methods[v].quality]
    if not placed or not all(_drawn(one.methods[v].quality) for v in placed):
        return
    quality = [iqm(np.concatenate([drawn[p.label + p.corpus][v][1] for p in scored], axis=1)) for v in placed]
    rng = np.random.default_rng(zlib.crc32(f"front/{one.model}".encode()))
    times = np.zeros((DRAWS, len(placed)))
    for k in range(len(corpora)):
        rows = [parts[v][k] for v in placed]
        steps = [json.loads(row["step_seconds_all"]) or [row["step_seconds_median"]] for row in rows]
        scale = np.array([_seconds(row) / row["step_seconds_median"] for row in rows])
        times += scale * drawn_medians(steps, rng, DRAWS)
    found = membership(np.stack(quality, 1), times, np.array([one.methods[v].memory for v in placed]))
    for v, share in zip(placed, found, strict=True):
        one.methods[v].front = float(share)


def _seconds(row: dict) -> float:
    """Of a whole training where it is measured, else of a step."""
    whole = row.get("whole_seconds")
    return whole if whole is not None and whole == whole else row["step_seconds_median"]


def _cost_lacks(rows: list[dict], corpora: list[str]) -> str:
    """Why a method's cost over all corpora is not known; empty where it is."""
    why = {row["status"] for row in rows if row["status"] != "ok"}
    why |= {"stale" for row in rows if row["stale"]} | {"other software" for row in rows if row["other_stack"]}
    why |= {"not measured"} if not corpora or {row["corpus"] for row in rows} != set(corpora) else set()
    why |= {
        "no memory" for row in rows if row["status"] == "ok" and row["memory_peak_bytes"] != row["memory_peak_bytes"]
    }
    return ", ".join(sorted(why))


# --------------------------------------------------------------------------- the table


def overview_table(collected: Collected, title: str, found: list[Panel] | None = None) -> Table | None:
    """None where no benchmark has scores in points of 100 above the noise of its floor. ``found``: as in ``overviews``."""
    found = panels(collected, reference=False) if found is None else found
    made, names = overviews(collected, found), names_of(collected)
    if not made:
        return None
    reference = names.get(made[0].reference, "the reference")
    table = Table(title, ("Model", "Method"), [("", [head.format(reference) for head in HEADS])], [], [])
    for one in made:
        group = Group([one.label, f"{len(one.benchmarks)} benchmark{'s' * (len(one.benchmarks) > 1)}"])
        for variant, method in one.methods.items():
            group.rows.append([names[variant], *_cells(method)])
            table.records.append(_record(one, variant, names, method))
        table.groups.append(group)
    table.notes = [*_notes(made), *left_out(found, names)]
    return table


def _cells(method: Method) -> list[str]:
    mark = "*" if method.items_only else ""
    runs = f"{method.runs}" if method.runs == method.planned else f"{method.runs} of {method.planned}"
    quality, better = method.quality, method.better
    front = "—" if method.front is None else f"{100 * method.front:.0f} %"
    return [
        runs,
        _shown(quality, 1, mark) if quality else method.lacks,
        _shown(better, 2, mark) if better else "—",
        f"{method.led[0]} of {method.led[1]}" if method.led[1] and not method.lacks else "—",
        f"{method.seconds:.1f}" if method.seconds is not None else method.cost_lacks,
        f"{method.memory / MIB:,.0f}" if method.memory is not None else "—",
        front,
    ]


def _drawn(estimate: Estimate) -> bool:
    """Whether it has an interval."""
    return estimate.low == estimate.low


def _shown(estimate: Estimate, digits: int, mark: str) -> str:
    bounds = f" [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]{mark}" if _drawn(estimate) else ""
    return f"{estimate.value:.{digits}f}{bounds}"


def _record(one: Overview, variant: str, names: dict, method: Method) -> dict:
    ends = {
        name: (e.value, *((e.low, e.high) if _drawn(e) else (None, None)))
        if (e := getattr(method, name))
        else (None,) * 3
        for name in ("quality", "better")
    }
    return {
        "model": one.model, "variant": variant, "method": names[variant], "benchmarks": len(one.benchmarks),
        "runs": method.runs, "planned": method.planned, "lacks": method.lacks,
        "covers": "items only" if method.items_only else "runs and items",
        **dict(zip(("iqm", "iqm_low", "iqm_high"), ends["quality"], strict=True)), "reference": one.reference,
        **dict(zip(("better", "better_low", "better_high"), ends["better"], strict=True)),
        "first_tiers": method.led[0], "tiered": method.led[1], "seconds": method.seconds,
        "memory_bytes": method.memory, "cost_lacks": method.cost_lacks, "front": method.front,
    }  # fmt: skip


def _notes(made: list[Overview]) -> list[str]:
    lines = [
        f"{one.label}: IQM over {', '.join(one.benchmarks)}"
        + (f"; the probability and tiers also over {', '.join(one.more)}." if one.more else ".")
        for one in made
    ]
    lines += [
        f"{one.label}: left out, as no seed of it is there for all methods: {', '.join(one.unshared)}."
        for one in made
        if one.unshared
    ]
    lines += [
        "IQM: mean of the middle half of all runs' scores, in points of 100. Better: probability that a run scores above one of "
        "the reference, averaged over benchmarks (Agarwal et al. 2021). Intervals: bootstrap within each benchmark, over its "
        "items and, from three runs on, its runs. Benchmarks at their floor are left out; on each benchmark only the seeds "
        "that all methods have.",
        "Tier 1: benchmarks whose best tier holds the method. On the front: share of draws in which no method is at least as "
        "good in IQM, time of a training and live tensors, and better in one; times are of one machine and, like memory, of the "
        "corpora whose cost was measured, which need not be all.",
    ]
    if any(e and not _drawn(e) for one in made for m in one.methods.values() for e in (m.quality, m.better)):
        lines.append(
            "No interval, nor a place on the front: a score that is no mean over items has fewer than three runs, of which "
            "nothing can be drawn."
        )
    if any(method.items_only for one in made for method in one.methods.values()):
        lines.append(
            "* items only: fewer than three runs on a benchmark, so the interval leaves the choice of seeds out."
        )
    return lines
