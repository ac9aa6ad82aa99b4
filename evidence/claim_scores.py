"""Claims about scores: above, within a margin, equal within it, and whether quality goes on rising with size.

A comparison is ``evidence.paired``'s, over seeds and items. Where a claim makes several, their intervals hold together
(Bonferroni), as one of them may decide it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from evidence.equivalence import ALPHA, DIFFERENT, EQUIVALENT, tost
from evidence.figure_plateau import ladders
from evidence.learning_rates import settings
from evidence.paired import CONFIDENCE, LEAST_SEEDS, Difference, paired_difference
from evidence.pools import Panel, on_shared_seeds
from evidence.verdicts import CONTRADICTED, SUPPORTED, UNDECIDED, Finding, name_of, seeds_to_decide, side, variant_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


AT_FLOOR = "all averages lie within noise of the floor, and no number of seeds would decide"
NO_SPREAD = "every item gives the same difference, which says nothing of other items"


def score_findings(claim: dict, found: list[Panel], fields: dict[str, dict[str, Any]]) -> list[Finding]:
    """Every comparison of a claim "above", "within" or "equal"."""
    pairs = list(_pairs(claim, found, fields))
    if claim["kind"] == "equal":
        return [_equal(*pair, claim["margin"], ALPHA / len(pairs)) for pair in pairs]
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(pairs))
    bar = claim.get("margin", 0.0) * (1 if claim["kind"] == "above" else -1)
    return [
        _finding(panel, model, f" against {other}", paired_difference(*arrays, confidence), bar, confidence)
        for panel, model, other, arrays in pairs
    ]


def _pairs(claim: dict, found: list[Panel], fields: dict) -> Iterator[tuple]:
    """(panel, model, other method, (its values, the other's) on shared seeds) of each comparison that can be made."""
    for panel in found:
        if not any(panel.eval.startswith(name) for name in claim.get("evals", [""])):
            continue
        for model in dict.fromkeys(model for _, model in panel.pools):
            here = [variant for variant, m in panel.pools if m == model]
            own = variant_of(here, claim["method"], fields)
            for other in claim["others"]:
                beside = variant_of(here, other, fields)
                arrays = own and beside and on_shared_seeds(panel.pools[own, model], panel.pools[beside, model])
                if arrays:
                    yield panel, model, name_of(other), arrays


def _equal(panel: Panel, model: str, other: str, arrays: tuple, margin: float, alpha: float) -> Finding:
    found = tost(*arrays, margin, alpha)
    text = f"{panel.label}, {model}: {found.text(2)} with {other}"
    if panel.unresolved(model):
        return Finding(UNDECIDED, f"{text}; {AT_FLOOR}")
    verdict = {EQUIVALENT: SUPPORTED, DIFFERENT: CONTRADICTED}.get(found.verdict, UNDECIDED)
    d = found.difference
    if d.seeds < LEAST_SEEDS:
        return Finding(UNDECIDED, f"{text}; {LEAST_SEEDS} seeds or more would be needed")
    if not d.error:
        return Finding(UNDECIDED, f"{text}; {NO_SPREAD}")
    if verdict == UNDECIDED and abs(d.value) != margin:
        seeds = seeds_to_decide(d.seeds, d.error, margin - abs(d.value), 1 - 2 * alpha)
        text += f"; at least {seeds} seeds of {d.items} items would decide"
    return Finding(verdict, text)


def _finding(panel: Panel, model: str, against: str, d: Difference, bar: float, confidence: float) -> Finding:
    sign = -1 if panel.first("lower_is_better", False) else 1
    value, (low, high) = sign * d.value, sorted((sign * d.low, sign * d.high))
    verdict = side(low, high, bar)
    interval = f" [{low:+.2f}, {high:+.2f}]" if d.error else ""
    text = f"{panel.label}, {model}: {value:+.2f}{interval}{against}, {d.seeds} seeds, {d.items} items"
    if panel.unresolved(model):
        return Finding(UNDECIDED, f"{text}; {AT_FLOOR}")
    if not d.error:
        return Finding(UNDECIDED, f"{text}; {NO_SPREAD}")
    if d.seeds < LEAST_SEEDS:
        text += ", items only"
        verdict = UNDECIDED  # another seed might have it otherwise
    if verdict == UNDECIDED and value != bar:
        seeds = seeds_to_decide(d.seeds, d.error, value - bar, confidence)
        text += f"; at least {seeds} seeds of {d.items} items would decide"
    return Finding(verdict, text)


# --------------------------------------------------------------------------- quality against size


def plateau_findings(claim: dict, found: list[Panel], runs: pd.DataFrame) -> list[Finding]:
    """The method's score rises with its size, and rises faster than each other's (``config/plateau.yaml``).

    A slope is points per doubling of what trains, by least squares over a method's sizes, each at the learning rate of its
    lowest validation loss; it is a sum over sizes of each item's scores, so seeds and items give its interval.
    """
    contrasts = []
    for panel in found:
        for model in dict.fromkeys(model for _, model in panel.pools):
            here = [s for s in settings(runs) if (s.model, s.corpus) == (model, panel.corpus)]
            slopes = {
                method: made for method, ladder in ladders(here).items() if (made := _slope(panel, model, ladder))
            }
            if claim["method"] in slopes:
                own, sizes = slopes[claim["method"]]
                contrasts.append((panel, model, own, 0 * own, f" points a doubling over {sizes} sizes"))
                for other in (o for o in claim["others"] if o in slopes and slopes[o][0].shape == own.shape):
                    contrasts.append((panel, model, own, slopes[other][0], f" points a doubling more than {other}"))
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(contrasts))
    return [
        _finding(panel, model, text, paired_difference(one, other, confidence), 0.0, confidence)
        for panel, model, one, other, text in contrasts
    ]


def _slope(panel: Panel, model: str, ladder: list) -> tuple[np.ndarray, int] | None:
    """((seeds, items) whose mean is the slope, number of sizes); None where sizes share no seeds or items."""
    import numpy as np

    chosen = [(s.points[s.best].trained, panel.pools.get((s.points[s.best].variant, model))) for s in ladder]
    pools = [(size, pool) for size, pool in chosen if pool and pool.items and not pool.mark]
    if len(pools) < 3 or any(pool.items.names != pools[0][1].items.names for _, pool in pools):
        return None
    seeds = [seed for seed in pools[0][1].used if all(seed in pool.used for _, pool in pools)]
    if not seeds:
        return None
    sizes = np.log2([size for size, _ in pools])
    weights = (sizes - sizes.mean()) / ((sizes - sizes.mean()) ** 2).sum()
    values = np.stack([pool.items.values[[pool.used.index(seed) for seed in seeds]] for _, pool in pools])
    return np.tensordot(weights, values, 1), len(pools)
