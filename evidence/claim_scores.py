"""Claims about scores: above or below, within a margin, equal within it, and whether quality goes on rising with size.

A comparison is ``evidence.paired``'s, over seeds and items. Where a claim makes several, their intervals hold together
(Bonferroni), as one of them may decide it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from evidence.equivalence import ALPHA, DIFFERENT, EQUIVALENT, tost
from evidence.figure_plateau import ladders
from evidence.learning_rates import settings
from evidence.paired import CONFIDENCE, LEAST_SEEDS, Difference, paired_difference
from evidence.pools import Panel, Pool, on_shared_seeds
from evidence.verdicts import (
    CONTRADICTED,
    SUPPORTED,
    UNDECIDED,
    Finding,
    name_of,
    needed,
    not_made,
    side,
    variant_of,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


AT_FLOOR = "all averages lie within noise of the floor, and their differences say nothing"
BOTH_AT_FLOOR = "both lie within noise of the floor, and their difference says nothing"
NO_SPREAD = "every item gives the same difference, which says nothing of other items"


def score_findings(claim: dict, found: list[Panel], fields: dict[str, dict[str, Any]]) -> list[Finding]:
    """Every comparison of a claim "above", "below", "within" or "equal", and those that could not be made."""
    asked = list(_pairs(claim, found, fields))
    pairs = [pair for pair in asked if pair[3]]
    gaps = [(other, f"{panel.label}, {model}") for panel, model, other, arrays, _ in asked if not arrays]
    if claim["kind"] == "equal":
        made = [_equal(*pair, claim["margin"], ALPHA / len(pairs)) for pair in pairs]
        return made + not_made(gaps, len(made))
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(pairs))
    bar = claim.get("margin", 0.0) * (-1 if claim["kind"] == "within" else 1)
    sign = -1 if claim["kind"] == "below" else 1
    made = [
        _finding(panel, model, f" against {other}", paired_difference(*arrays, confidence), bar, confidence, sign, sunk)
        for panel, model, other, arrays, sunk in pairs
    ]
    return made + not_made(gaps, len(made))


def _pairs(claim: dict, found: list[Panel], fields: dict) -> Iterator[tuple]:
    """(panel, model, other method, (its values, the other's) on shared seeds, why they say nothing) of each comparison that
    is asked for; None in place of the values where it cannot be made."""
    for panel in found:
        if not any(panel.eval.startswith(name) for name in claim.get("evals", [""])):
            continue
        for model in dict.fromkeys(model for _, model in panel.pools):
            here = [variant for variant, m in panel.pools if m == model]
            own = variant_of(here, claim["method"], fields)
            for other in claim["others"] if own else ():
                beside = variant_of(here, other, fields)
                pair = [panel.pools[variant, model] for variant in (own, beside) if variant]
                arrays = on_shared_seeds(*pair) if beside else None
                yield panel, model, name_of(other), arrays, _sunk(panel, model, pair)


def _sunk(panel: Panel, model: str, pair: Sequence[Pool] = ()) -> str:
    """Why a difference of these two would be one of noise: "" where one of them, at least, is above the floor."""
    if panel.unresolved(model):
        return AT_FLOOR
    return BOTH_AT_FLOOR if pair and all(pool.at_floor for pool in pair) else ""


def _equal(panel: Panel, model: str, other: str, arrays: tuple, sunk: str, margin: float, alpha: float) -> Finding:
    found = tost(*arrays, margin, alpha)
    text = f"{panel.label}, {model}: {found.text(2)} with {other}"
    if sunk:
        return Finding(UNDECIDED, f"{text}; {sunk}")
    verdict = {EQUIVALENT: SUPPORTED, DIFFERENT: CONTRADICTED}.get(found.verdict, UNDECIDED)
    d = found.difference
    if d.error == 0:
        return Finding(UNDECIDED, f"{text}; {NO_SPREAD}")
    if d.seeds < LEAST_SEEDS:
        verdict = UNDECIDED
    if verdict == UNDECIDED:
        text += needed(d, margin - abs(d.value), 1 - 2 * alpha)
    return Finding(verdict, text)


def _finding(
    panel: Panel, model: str, against: str, d: Difference, bar: float, confidence: float, sign: int, sunk: str
) -> Finding:
    """``sign``: -1 where the claim is that the method is the worse one; the text shows the difference as it is."""
    better = -1 if panel.first("lower_is_better", False) else 1
    value, (low, high) = better * d.value, sorted((better * d.low, better * d.high))
    verdict = side(*sorted((sign * low, sign * high)), bar)
    interval = f" [{low:+.2f}, {high:+.2f}]" if d.error else ""
    text = (
        f"{panel.label}, {model}: {value:+.2f}{interval}{against}, {d.seeds} seed{'s' * (d.seeds > 1)}, {d.items} items"
    )
    if sunk:
        return Finding(UNDECIDED, f"{text}; {sunk}")
    if not d.error:
        return Finding(UNDECIDED, f"{text}; {NO_SPREAD}")
    if d.seeds < LEAST_SEEDS:
        text += ", items only"
        verdict = UNDECIDED  # another seed might have it otherwise
    if verdict == UNDECIDED:
        text += needed(d, sign * value - bar, confidence)
    return Finding(verdict, text)


# --------------------------------------------------------------------------- quality against size


def plateau_findings(claim: dict, found: list[Panel], runs: pd.DataFrame) -> list[Finding]:
    """The method's score rises with its size, and rises faster than each other's (``config/plateau.yaml``).

    A slope is points per doubling of what trains, by least squares over a method's sizes, each at the learning rate of its
    lowest validation loss; it is a sum over sizes of each item's scores, so seeds and items give its interval.
    """
    contrasts, gaps = [], []
    for panel in found:
        for model in dict.fromkeys(model for _, model in panel.pools):
            here = [s for s in settings(runs) if (s.model, s.corpus) == (model, panel.corpus)]
            slopes = {method: _slope(panel, model, ladder) for method, ladder in ladders(here).items()}
            own = slopes.get(claim["method"])
            if own is None:
                continue
            zero = replace(own, values=0 * own.values)
            contrasts.append((panel, model, f" points a doubling over {own.sizes} sizes", own.shared(zero)))
            for other in claim["others"]:
                shared = own.shared(slopes[other]) if slopes.get(other) else None
                if shared:
                    contrasts.append((panel, model, f" points a doubling more than {other}", shared))
                else:
                    gaps.append((other, f"{panel.label}, {model}"))
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(contrasts))
    made = [
        _finding(panel, model, text, paired_difference(*shared, confidence), 0.0, confidence, 1, _sunk(panel, model))
        for panel, model, text, shared in contrasts
    ]
    return made + not_made(gaps, len(made))


@dataclass(frozen=True)
class Slope:
    """``values``: (seeds, items), whose mean is the slope over so many ``sizes``."""

    values: np.ndarray
    seeds: tuple[int, ...]
    items: tuple[str, ...]
    sizes: int

    def shared(self, other: Slope) -> tuple[np.ndarray, np.ndarray] | None:
        """Both slopes' values on the seeds that both have; None where there is none, or items differ."""
        seeds = [seed for seed in self.seeds if seed in other.seeds]
        if not seeds or self.items != other.items:
            return None
        first, second = (one.values[[one.seeds.index(seed) for seed in seeds]] for one in (self, other))
        return first, second


def _slope(panel: Panel, model: str, ladder: list) -> Slope | None:
    """None where fewer than three sizes, or no seed or not the items, have a score that may be compared."""
    import numpy as np

    chosen = [(s.points[s.best].trained, panel.pools.get((s.points[s.best].variant, model))) for s in ladder]
    pools = [(size, pool) for size, pool in chosen if pool and pool.items and not pool.mark]
    values = on_shared_seeds(*(pool for _, pool in pools)) if len(pools) >= 3 else None
    if values is None:
        return None
    seeds = tuple(seed for seed in pools[0][1].used if all(seed in pool.used for _, pool in pools))
    sizes = np.log2([size for size, _ in pools])
    weights = (sizes - sizes.mean()) / ((sizes - sizes.mean()) ** 2).sum()
    return Slope(np.tensordot(weights, np.stack(values), 1), seeds, pools[0][1].items.names, len(pools))
