"""One score over several benchmarks, such as GLUE's mean of four tasks: the mean of the benchmarks' scores, run by run.

Items of several benchmarks are strata: for seed s the value of item i of benchmark b is m_s + (x_sbi - m_sb) N / (k n_b),
with m_sb the seed's score on b, m_s the mean of its k scores, n_b of N items. The mean over items is m_s, and the spread
over items is that within benchmarks alone, as Var(m_s) = sum_b Var(m_sb) / k^2 wants it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

from evidence import stats
from evidence.pools import ItemValues, Pool, Run
from evidence.stats import CONFIDENCE, Interval

if TYPE_CHECKING:
    import numpy as np


def mean_pool(pools: Sequence[Pool]) -> Pool:
    """The pool of a method's mean over benchmarks; a seed counts where every benchmark has a number to average."""
    seeds = sorted({run.seed for pool in pools for run in pool.runs})
    runs = [_run(seed, [next((r for r in pool.runs if r.seed == seed), None) for pool in pools]) for seed in seeds]
    used = tuple(s for s in seeds if all(s in pool.used for pool in pools))
    values = [run.value for run in runs if run.seed in used]
    items = _items(pools, used)
    spread = stats.spread([value for value in values if value is not None])
    interval = _interval(items.values, spread.mean) if items and used else None
    count = sum(pool.n_items or 0 for pool in pools) if all(pool.n_items for pool in pools) else None
    mark = "".join(dict.fromkeys("".join(pool.mark for pool in pools)))
    floors = [pool.at_floor for pool in pools]
    return Pool(runs, spread, interval, used, mark, count, all(f is True for f in floors) or None, items)


def _run(seed: int, parts: Sequence[Run | None]) -> Run:
    """The seed's mean, or the first part that has no number, as it is."""
    lacking = next((part for part in parts if part is None or part.value is None), parts[0])
    if lacking is None:
        return Run(seed, None, "missing", "score", "not in the plan", "", "", "")
    if lacking.value is None:
        return lacking
    mean = math.fsum(part.value for part in parts) / len(parts)
    stale = next((part.stale for part in parts if part.stale), "")
    other = next((part.other_stack for part in parts if part.other_stack), "")
    return Run(seed, mean, "ok", "score", "", stale, other, parts[0].stack)


def _items(pools: Sequence[Pool], used: tuple[int, ...]) -> ItemValues | None:
    import numpy as np

    if not used or any(pool.items is None for pool in pools):
        return None
    parts = [pool.items.values[[pool.used.index(seed) for seed in used]] for pool in pools]
    count = sum(part.shape[1] for part in parts)
    scores = np.stack([part.mean(1) for part in parts], 1)  # (seeds, benchmarks)
    whole = scores.mean(1, keepdims=True)
    values = [whole + (part - scores[:, [b]]) * count / (len(parts) * part.shape[1]) for b, part in enumerate(parts)]
    names = tuple(f"{b}/{name}" for b, pool in enumerate(pools) for name in pool.items.names)
    return ItemValues(np.concatenate(values, 1), names)


def _interval(values: np.ndarray, mean: float) -> Interval:
    by_item = values.mean(0)
    error = float(by_item.std(ddof=1)) / math.sqrt(len(by_item))
    half = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) * error
    return Interval(mean - half, mean + half, "normal, items within benchmarks")
