"""Runs of one method, pooled over seeds: what stands in a cell of a table or at a dot of a figure.

Only what is comparable is averaged: runs that ended ok, belong to the plan's specification, and come from the reference
software (``cells.reference_stacks``). The others stay in the pool, visible, and out of the average. Where none is
comparable, the largest uniform rest is averaged and carries a mark.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from evidence import stats
from evidence.cells import NO_VALUE
from evidence.grades import Formula
from evidence.paired import LEAST_SEEDS, linearised, paired_difference
from evidence.stats import Interval, Spread

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from evidence.collected import Collected

STALE, OTHER_STACK = "‡", "†"
NO_SUCH_METRIC = "no such metric"  # of a score that ended well and tells others
RUN = ("model", "corpus", "variant", "eval", "seed")


@dataclass(frozen=True)
class Run:
    """One seed. ``value`` is None unless the run ended ok with a number."""

    seed: int
    value: float | None
    status: str
    stage: str
    reason: str
    stale: str
    other_stack: str
    stack: str

    @property
    def mark(self) -> str:
        return (STALE if self.stale else "") + (OTHER_STACK if self.other_stack else "")


@dataclass(frozen=True)
class ItemValues:
    """``values``: (seeds, items), whose mean over items is each seed's score; ``names`` of the items, in order."""

    values: np.ndarray
    names: tuple[str, ...]


@dataclass
class Pool:
    """All seeds of one variant on one (model, corpus, eval, metric)."""

    runs: list[Run]
    spread: Spread
    interval: Interval | None
    used: tuple[int, ...]  # seeds in the average
    mark: str  # of an average over runs that are not comparable with the rest
    n_items: int | None
    at_floor: bool | None  # None: cannot be told
    items: ItemValues | None = None  # of the seeds in the average, where the metric is a mean or a ratio over items

    @property
    def absent(self) -> bool:
        """Does the row not exist at all, such as a majority class for a translation?"""
        return all(
            run.status == "skipped" and run.stage == "score" or run.status == NO_SUCH_METRIC for run in self.runs
        )


@dataclass
class Panel:
    """One (corpus, eval, metric): a row group of a table, a panel of a figure. ``pools`` by (variant, model)."""

    corpus: str
    eval: str
    metric: str
    facts: pd.DataFrame  # rows of `runs` that the panel was made from
    pools: dict[tuple[str, str], Pool] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)  # by model

    @property
    def label(self) -> str:
        """The eval's name for readers; it says so if rows were made by a program."""
        name = str(self.first("eval_label", self.eval))
        return f"{name} (generated)" if self.facts["generated"].any() and "generated" not in name else name

    @property
    def headline(self) -> bool:
        """Is it the eval's score, and no likelihood beside it? (That of an eval without any result is.)"""
        own = self.facts["metric"] == self.metric  # facts hold the rows without a result, too, which have no metric
        return not self.metric or bool(self.facts.loc[own, "headline"].any())

    def first(self, column: str, default: object = "") -> object:
        """The first value of a column that says something."""
        return next((v for v in self.facts[column] if v is not None and v == v and v != ""), default)

    def range(self, column: str) -> str:
        """ "40", or "30 to 40" where rows differ; empty where none says."""
        values = sorted({int(value) for value in self.facts[column].dropna()})
        return "" if not values else f"{values[0]:,}" + (f" to {values[-1]:,}" if len(values) > 1 else "")

    def without(self, cells: set[tuple[str, str, str]]) -> Panel:
        """The panel without these (model, corpus, variant)."""
        kept = {(v, m): pool for (v, m), pool in self.pools.items() if (m, self.corpus, v) not in cells}
        return replace(self, pools=kept)

    def unresolved(self, model: str) -> bool:
        """Is every average of this model within noise of its floor: the metric's, or that of the commonest class?"""
        known = [p.at_floor for (v, m), p in self.pools.items() if m == model and v != "majority" and p.used]
        return bool(known) and all(known)


def panels(collected: Collected, reference: bool = True, also: Sequence[str] = ()) -> list[Panel]:
    """Panels in the order of the suite: corpora, evals, then the headline metric, (``reference``) likelihoods, and ``also``."""
    runs, items = collected.runs, _by_run(collected.items)
    found = []
    order = {name: index for index, name in enumerate(collected.suite.get("corpora", []))}
    groups = runs[runs["eval"] != ""].groupby(["corpus", "eval"], sort=False)
    for (corpus, evaluation), rows in sorted(groups, key=lambda group: order.get(group[0][0], len(order))):
        shown = rows[rows["headline"] | (rows["reference"] & reference) | rows["metric"].isin(list(also))]
        named = shown[shown["metric"] != ""].sort_values("headline", ascending=False, kind="stable")
        cells: dict[tuple, dict[int, list[dict]]] = {}
        for row in rows.to_dict("records"):  # a data frame for each cell of a large grid would take minutes
            cells.setdefault((row["variant"], row["model"]), {}).setdefault(int(row["seed"]), []).append(row)
        for metric in named["metric"].unique() if len(named) else [""]:
            failed = ~rows["status"].isin(("ok", NO_VALUE))
            panel = Panel(corpus, evaluation, metric, rows[(rows["metric"] == metric) | failed])
            formula = _formula(panel.facts)
            panel.floors = _floors(panel.facts)
            panel.pools = {
                cell: _pool(seeds, metric, items, formula, panel.floors.get(cell[1])) for cell, seeds in cells.items()
            }
            found.append(panel)
    return found


def _floors(facts: pd.DataFrame) -> dict[str, float]:
    """By model, the score that says nothing: the metric's floor, or that of always answering the commonest class."""
    ended = facts[facts["status"] == "ok"]
    baseline = ended[(ended["variant"] == "majority") & ~ended["lower_is_better"].isin([True])]
    told = [*zip(ended["model"], ended["floor"], strict=True), *zip(baseline["model"], baseline["value"], strict=True)]
    floors: dict[str, float] = {}
    for model, floor in told:
        if _known(floor):
            floors[model] = max(float(floor), floors.get(model, -math.inf))
    return floors


def _pool(seeds: dict[int, list[dict]], metric: str, items: dict, formula: Formula | None, floor: float | None) -> Pool:
    """``seeds``: rows of one variant on one (model, corpus, eval), all metrics, by seed."""
    runs, rows = [], {}
    for seed, of_seed in sorted(seeds.items()):
        row = next((row for row in of_seed if row["metric"] == metric), None)
        status = row["status"] if row else of_seed[0]["status"]
        if status == "ok" and not (row and _known(row["value"])):
            status = NO_VALUE if row else NO_SUCH_METRIC
        rows[seed] = row = row or of_seed[0]
        value = float(row["value"]) if status == "ok" else None
        said = (row[name] for name in ("stage", "reason", "stale", "other_stack", "stack"))
        runs.append(Run(seed, value, status, *said))
    used = comparable(runs)
    chosen = [rows[run.seed] for run in used]
    counts = {int(row["n_items"]) for row in chosen if _known(row["n_items"])}
    average = stats.spread([run.value for run in used])
    stacked = _stacked(chosen, items, formula)
    interval, error = _interval(chosen, metric, stacked, formula)
    mark = "".join(dict.fromkeys("".join(run.mark for run in used)))
    n_items = counts.pop() if len(counts) == 1 else None
    values = _item_values(stacked, formula)
    sunk = _near_floor_over_seeds(values, floor) or _at_floor(chosen, floor, average.mean, error)
    return Pool(runs, average, interval, tuple(run.seed for run in used), mark, n_items, sunk, values)


def on_shared_seeds(*pools: Pool) -> tuple[np.ndarray, ...] | None:
    """Each pool's item values, (seeds, items), on the seeds that all have; None where that is no seed, where items differ,
    or where a pool is not comparable with the rest (``mark``)."""
    first = pools[0]
    seeds = [seed for seed in first.used if all(seed in pool.used for pool in pools)]
    if not seeds or any(pool.mark or not pool.items or pool.items.names != first.items.names for pool in pools):
        return None
    return tuple(pool.items.values[[pool.used.index(seed) for seed in seeds]] for pool in pools)


def comparable(runs: Sequence[Run]) -> list[Run]:
    """The runs that may be averaged together (see the top of this file)."""
    ended = [run for run in runs if run.value is not None and math.isfinite(run.value)]
    clean = [run for run in ended if not run.mark]
    if clean or not ended:
        return clean
    kind, _ = Counter((run.stale, run.stack) for run in ended).most_common(1)[0]
    return [run for run in ended if (run.stale, run.stack) == kind]


def _formula(facts: pd.DataFrame) -> Formula | None:
    """The formula that most runs of a panel agree on. A score of zero fits too many: it is asked last."""
    found = facts[facts["numerator"] != ""]
    for rows in (found[found["value"] != 0], found):
        counts = Counter(zip(rows["numerator"], rows["denominator"], rows["scale"], strict=True))
        if counts:
            return Formula(*counts.most_common(1)[0][0])
    return None


def _interval(
    rows: list[dict], metric: str, stacked: tuple | None, formula: Formula | None
) -> tuple[Interval | None, float]:
    """Interval and standard error over items of the mean over these runs; None and NaN where items do not give it."""
    import numpy as np

    if stacked is None:
        return None, math.nan
    above, below, _ = stacked
    name = "/".join([*(rows[0][name] for name in RUN[:-1]), metric])
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    interval = stats.item_interval(above, below, formula.scale, generator, formula.parts)
    return interval, stats.standard_error(above, below, formula.scale)


def _stacked(rows: list[dict], items: dict, formula: Formula | None) -> tuple | None:
    """(numerators, denominators or None, both (seeds, items), names of the items) of these runs, where they give the scores."""
    import numpy as np

    if formula is None or not rows:
        return None
    frames = [items.get(tuple(row[name] for name in RUN)) for row in rows]
    if any(frame is None or not frame["item"].equals(frames[0]["item"]) for frame in frames):
        return None
    above = np.stack([frame[f"grade.{formula.numerator}"] for frame in frames])
    below = np.stack([frame[f"grade.{formula.denominator}"] for frame in frames]) if formula.denominator else None
    values = formula.scale * above.sum(1) / (above.shape[1] if below is None else below.sum(1))
    if not np.allclose(values, [row["value"] for row in rows], rtol=1e-6, atol=1e-9):
        return None
    return above, below, tuple(frames[0]["item"])


def _item_values(stacked: tuple | None, formula: Formula | None) -> ItemValues | None:
    if stacked is None or len(stacked[2]) < 2:
        return None
    above, below, names = stacked
    return ItemValues(formula.scale * (above if below is None else linearised(above, below)), names)


def _at_floor(rows: list[dict], floor: float | None, mean: float, error: float) -> bool | None:
    """What the eval says of its own floor, else whether the mean is within noise of ``floor``."""
    said = [row["at_floor"] for row in rows if _known(row["at_floor"])]
    if said and all(said):
        return True
    if floor is None or math.isnan(mean):
        return False if said else None
    return mean <= floor if math.isnan(error) else stats.near_floor(mean, floor, error)


def _near_floor_over_seeds(values: ItemValues | None, floor: float | None) -> bool:
    """Might other seeds and items have put the mean at the floor? Fewer than three seeds cannot tell: False."""
    import numpy as np

    if floor is None or values is None or len(values.values) < LEAST_SEEDS:
        return False
    return bool(paired_difference(values.values, np.full_like(values.values, floor)).low <= 0)


def _by_run(items: pd.DataFrame) -> dict[tuple, pd.DataFrame]:
    """Item rows by the columns of RUN."""
    if not len(items):
        return {}
    groups = items.groupby(list(RUN), sort=False, observed=True)
    return {key: frame.reset_index(drop=True) for key, frame in groups}


def _known(value: object) -> bool:
    return value is not None and value == value
