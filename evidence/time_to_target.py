"""How long each run trains until its validation loss reaches a target; a run that never does takes infinitely long.

The target of a (model, corpus) is stated, not tuned: the loss that *every* run of the reference (LoRA) has at its end, which
is the highest of its last validation losses; where that is not below what its runs start from, there is no target, and the
workload has no times. A run's time is that of the first validation at or below it: preparation, steps,
warm-up and refreshes at what the ``cost`` stage measured with the machine to itself, not the seconds of a shared run. The
grid of validations is the suite's (``validate_every``): no time lies between its points.

The performance profile (E. D. Dolan, J. J. Moré, Math. Programming 91, 2002; scored as in AlgoPerf, G. E. Dahl et al.,
arXiv 2306.07179): for each factor, the share of workloads (model, corpus, seed) that a method trains to the target within
this factor of the fastest method's time there. A miss, a failed run or a run that is not comparable never counts as reached.
All methods are held against each other on the same workloads: a seed that one of them is not planned with counts for none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from evidence.names import family_of
from evidence.row_marks import clean

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from evidence.collected import Collected

MOST = 16.0  # the largest factor that a profile's score integrates to


@dataclass
class Workload:
    """One (model, corpus): its target and each variant's seconds by seed, infinite for a miss or a failure; no seconds
    where there is no target."""

    model: str
    corpus: str
    label: str
    target: float
    validations: int  # points of the grid
    seconds: dict[str, dict[int, float]] = field(default_factory=dict)


def reference_of(variants: list[str]) -> str | None:
    """The suite's first LoRA."""
    return next((v for v in variants if family_of(v) == "lora"), None)


def workloads(collected: Collected) -> list[Workload]:
    """Every (model, corpus) whose cost is measured and where the reference has a validation loss."""
    reference = reference_of(collected.suite["variants"])
    costs = collected.costs
    if reference is None or not len(costs):
        return []
    curves = collected.curves(["validation_loss"])
    fine = clean(curves)
    cost = {(r["model"], r["corpus"], r["variant"]): r for r in costs[costs["status"] == "ok"].to_dict("records")}
    cost = {key: row for key, row in cost.items() if not row["stale"] and not row["other_stack"]}
    runs = collected.runs.drop_duplicates(["model", "corpus", "variant", "seed"])
    found = []
    for (model, corpus), rows in runs.groupby(["model", "corpus"], sort=False):
        here = fine[(fine["model"] == model) & (fine["corpus"] == corpus)]
        own = here[here["variant"] == reference]
        if not len(own) or (model, corpus, reference) not in cost:
            continue
        by_seed = own.sort_values("step").groupby("seed")["value"]
        target, start = float(by_seed.last().max()), float(by_seed.first().min())
        label = f"{rows['model_label'].iloc[0]}, {rows['corpus_label'].iloc[0]}"
        work = Workload(model, corpus, label, target, int(own["step"].nunique()))
        found.append(work)
        if target >= start:
            continue
        for variant, seed in zip(rows["variant"], rows["seed"], strict=True):
            if (model, corpus, variant) in cost:
                curve = here[(here["variant"] == variant) & (here["seed"] == seed)]
                step = first_at(curve, work.target)
                row = cost[model, corpus, variant]
                work.seconds.setdefault(variant, {})[int(seed)] = math.inf if step is None else seconds_at(row, step)
    return found


def first_at(curve: pd.DataFrame, target: float) -> int | None:
    """The first step with a validation loss at or below the target."""
    reached = curve[curve["value"] <= target]
    return int(reached["step"].min()) if len(reached) else None


def seconds_at(cost: dict, step: int) -> float:
    """Seconds of a training's first ``step`` steps, with preparation, warm-up and refreshes where a method has them."""
    warm = min(_number(cost, "warmup_steps"), step) if _number(cost, "warmup_seconds") else 0
    total = _number(cost, "prepare_seconds") + warm * _number(cost, "warmup_seconds")
    total += (step - warm) * cost["step_seconds_median"]
    if every := _number(cost, "refresh_every"):  # at steps 0, every, 2 every, ...
        total += math.ceil(step / every) * _number(cost, "refresh_seconds")
    return total


def shared(works: list[Workload], variants: list[str]) -> tuple[list[str], list[tuple[Workload, int]]]:
    """The variants that every (model, corpus) has, and each (workload, seed) that all of these are planned with."""
    names = [v for v in variants if works and all(v in work.seconds for work in works)]
    common = [set.intersection(*(set(work.seconds[v]) for v in names)) if names else set() for work in works]
    return names, [(work, seed) for work, seeds in zip(works, common, strict=True) for seed in sorted(seeds)]


def profile(works: list[Workload], variants: list[str], factors: np.ndarray) -> dict[str, np.ndarray]:
    """{variant: share of workloads within each factor of the fastest}, of what is ``shared``; empty where nothing is."""
    import numpy as np

    names, seeds = shared(works, variants)
    ratios: dict[str, list[float]] = {v: [] for v in names} if seeds else {}
    for work, seed in seeds:
        times = {v: work.seconds[v][seed] for v in names}
        best = min(times.values())
        for v, time in times.items():
            ratios[v].append(time / best if 0 < best < math.inf else 1.0 if time == best < math.inf else math.inf)
    return {v: (np.array(row)[:, None] <= factors).mean(0) for v, row in ratios.items()}


def score(factors: np.ndarray, shares: np.ndarray) -> float:
    """AlgoPerf's benchmark score: the area under a profile over factors 1 to MOST, over its width."""
    import numpy as np

    return float(np.trapezoid(shares, factors) / (factors[-1] - factors[0]))


def _number(row: dict, name: str) -> float:
    value = row.get(name)
    return float(value) if value is not None and value == value else 0.0
