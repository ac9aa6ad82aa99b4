"""Claims about costs: ratios of what stage ``cost`` measured, on one machine that had nothing else to do.

Both methods of a ratio of times step through the same batches, so each step gives a ratio; the geometric mean has Student's
interval over steps. A step bears its share of the refreshes (their time over the steps from one to the next), as a training
does. Memory is counted, a start is measured once: neither has an interval. None covers other machines.
Iterations are those that the trainings themselves counted, paired over seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from evidence.paired import CONFIDENCE
from evidence.verdicts import (
    CONTRADICTED,
    SUPPORTED,
    UNDECIDED,
    Finding,
    Judged,
    name_of,
    of_seeds,
    over_seeds,
    shown,
    variant_of,
)

if TYPE_CHECKING:
    import pandas as pd

    from evidence.collected import Collected

COSTS = {"time": "step_seconds_median", "memory": "memory_peak_bytes", "start": "prepare_seconds"}
Ratio = tuple[str, str, str, float, float, float]  # model, corpus, text of its n, value, low, high


def cost_findings(claim: dict, collected: Collected, fields: dict[str, dict[str, Any]]) -> list[Finding]:
    """The ratio to each other method's on each model and corpus."""
    return [
        _finding(claim["of"], other, ratio, claim["ratio"])
        for other in claim["others"]
        for ratio in ratios(collected.costs, claim["of"], claim["method"], other, fields)
    ]


def size_findings(claim: dict, collected: Collected, fields: dict[str, dict[str, Any]]) -> list[Finding]:
    """Every ratio of the claim holds on every model, and there are two models at least."""
    found = []
    for of, bar in claim["ratios"].items():
        for other in claim["others"]:
            measured = list(ratios(collected.costs, of, claim["method"], other, fields))
            models = {ratio[0] for ratio in measured}
            if not measured:
                continue
            each = [_finding(of, other, ratio, bar) for ratio in measured]
            verdict = Judged({}, each).verdict
            text = "; ".join(f"{finding.text}" for finding in each)
            if len(models) < 2 and verdict == SUPPORTED:
                verdict, text = UNDECIDED, text + "; one model: a second would be needed"
            found.append(Finding(verdict, text))
    return found


def ratios(costs: pd.DataFrame, of: str, method: Any, other: Any, fields: dict) -> Iterator[Ratio]:
    """One of each (model, corpus) where both are measured and comparable."""
    costs = (
        costs[(costs["status"] == "ok") & (costs["stale"] == "") & (costs["other_stack"] == "")]
        if len(costs)
        else costs
    )
    for (model, corpus), rows in costs.groupby(["model", "corpus"], sort=False) if len(costs) else []:
        by_name = {row["variant"]: row for row in rows.to_dict("records")}
        names = [variant_of(by_name, wanted, fields) for wanted in (method, other)]
        if None in names:
            continue
        one, base = (by_name[name] for name in names)
        values = [row[COSTS[of]] for row in (one, base)]
        if any(value is None or value != value for value in values) or not values[1]:
            continue
        yield model, corpus, *(_of_steps(one, base) if of == "time" else _counted(of, values[0] / values[1]))


def _counted(of: str, ratio: float) -> tuple[str, float, float, float]:
    return "counted" if of == "memory" else "measured once", ratio, ratio, ratio


def _of_steps(one: dict, base: dict) -> tuple[str, float, float, float]:
    """n in words, ratio and bounds; without equally many steps of both, the ratio of medians with endless bounds."""
    steps, others = (json.loads(row["step_seconds_all"]) for row in (one, base))
    share, beside = _refresh_share(one), _refresh_share(base)
    refreshed = " and their share of the refreshes" if share or beside else ""
    if len(steps) != len(others) or len(steps) < 2:
        ratio = (one["step_seconds_median"] + share) / (base["step_seconds_median"] + beside)
        return f"medians of {len(steps)} and {len(others)} steps{refreshed}, not paired", ratio, 0.0, math.inf
    logs = [math.log((a + share) / (b + beside)) for a, b in zip(steps, others, strict=True)]
    found = over_seeds(logs, CONFIDENCE)
    value, low, high = (math.exp(log) for log in (found.value, found.low, found.high))
    return f"{found.n} steps of the same batches{refreshed}", value, low, high


def _refresh_share(row: dict) -> float:
    """Seconds of refreshes that a step bears; 0 where nothing is refreshed."""
    every = row.get("refresh_every")
    return row["refresh_seconds"] / every if every and every == every else 0.0


def _finding(of: str, other: Any, ratio: Ratio, bar: float) -> Finding:
    model, corpus, counted, value, low, high = ratio
    verdict = SUPPORTED if high <= bar else CONTRADICTED if low > bar else UNDECIDED
    interval = f" [{low:.2f}, {high:.2f}]" if of == "time" else ""
    text = f"{model}, {corpus}: {of} {value:.2f}{interval} of {name_of(other)}'s ({counted}); claimed at most {bar:g}"
    return Finding(verdict, text + ("; more timed steps would decide" if verdict == UNDECIDED else ""))


def iteration_findings(claim: dict, collected: Collected, fields: dict[str, dict[str, Any]]) -> list[Finding]:
    """Iterations of a refresh, as the trainings' records count them: fewer than each other's."""
    runs = collected.runs
    runs = runs[(runs["status"] == "ok") & (runs["stale"] == "") & (runs["other_stack"] == "")]
    runs = runs.drop_duplicates(["model", "corpus", "variant", "seed"])
    pairs = []
    for (model, corpus), rows in runs.groupby(["model", "corpus"], sort=False):
        counts = _iterations(rows)
        own = variant_of(counts, claim["method"], fields)
        for other in claim["others"]:
            beside = variant_of(counts, other, fields)
            shared = sorted(set(counts.get(own, {})) & set(counts.get(beside, {})))
            if shared:
                logs = [math.log(counts[own][seed] / counts[beside][seed]) for seed in shared]
                pairs.append((f"{model}, {corpus}", name_of(other), logs))
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(pairs))
    return [_fewer(where, other, logs, confidence) for where, other, logs in pairs]


def _iterations(rows: pd.DataFrame) -> dict[str, dict[int, float]]:
    """{variant: {seed: iterations a refresh}} where a method counts them."""
    found: dict[str, dict[int, float]] = {}
    for variant, seed, text in zip(rows["variant"], rows["seed"], rows["facts"], strict=True):
        if count := (json.loads(text) if text else {}).get("iterations"):
            found.setdefault(variant, {})[int(seed)] = float(count)
    return found


def _fewer(where: str, other: str, logs: list[float], confidence: float) -> Finding:
    measured = over_seeds(logs, confidence)
    verdict, needed = of_seeds(measured, 0.0, confidence, below=True)
    ratio = shown(measured, lambda log: f"{math.exp(log):.2f}")
    return Finding(verdict, f"{where}: iterations of a refresh, as a share of those of {other}: {ratio}{needed}")
