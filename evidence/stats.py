"""Means, spreads and intervals. Every interval says what it covers; every random number comes from a given generator.

The intervals here cover the choice of *items* only: seeds are taken as they are. They say how far the score would move
on other items of the same kind, not whether another seed would do as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

CONFIDENCE = 0.95
DRAWS = 2000


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (NaN for fewer than two values) of ``n`` values."""

    mean: float
    sd: float
    n: int


@dataclass(frozen=True)
class Interval:
    """Bounds of a confidence interval; ``kind`` names how they were found."""

    low: float
    high: float
    kind: str


def spread(values: Sequence[float]) -> Spread:
    """Mean, sd with n - 1, and n. An empty sequence has NaN for both."""
    n = len(values)
    if n == 0:
        return Spread(math.nan, math.nan, 0)
    mean = math.fsum(values) / n
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)) if n > 1 else math.nan
    return Spread(mean, sd, n)


def wilson(share: float, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval (1927) of a proportion ``share`` of ``n`` items: never empty, always within 0 to 1."""
    if n < 1 or not 0 <= share <= 1:
        raise ValueError(f"a proportion lies in 0 to 1 and has at least one item, not {share} of {n}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(max(0.0, centre - half), min(1.0, centre + half), "Wilson, items")


def item_bootstrap(
    numerator: np.ndarray,
    denominator: np.ndarray | None,
    generator: np.random.Generator,
    draws: int = DRAWS,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Percentile interval of a mean (or ratio of sums) over items, drawn with replacement.

    ``numerator`` and ``denominator`` are (seeds, items). All seeds share each draw, as they share the items; the
    statistic is the mean over seeds. Without a denominator it is the mean over items.
    """
    import numpy as np

    numerator = np.atleast_2d(np.asarray(numerator, float))
    items = numerator.shape[1]
    if items == 0:
        raise ValueError("a bootstrap needs at least one item")
    below = np.ones_like(numerator) if denominator is None else np.atleast_2d(np.asarray(denominator, float))
    statistics = np.empty(draws)
    chunk = max(1, 4_000_000 // items)  # 32 MB of weights at a time
    for start in range(0, draws, chunk):
        stop = min(draws, start + chunk)
        weights = generator.multinomial(items, np.full(items, 1 / items), size=stop - start).astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            statistics[start:stop] = ((weights @ numerator.T) / (weights @ below.T)).mean(axis=1)
    low, high = np.nanquantile(statistics, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(low), float(high), "bootstrap, items")


def item_interval(
    numerator: np.ndarray,
    denominator: np.ndarray | None,
    scale: float,
    generator: np.random.Generator,
    parts: bool = False,
) -> Interval | None:
    """Wilson's interval where items are right or wrong, else the item bootstrap; times ``scale``.

    Arrays are (seeds, items). For several seeds of right-or-wrong items Wilson takes the mean over seeds as the
    proportion and counts each item once: more runs on the same items are not more items. ``parts``: of a corpus-level
    metric, never right or wrong; where they are all equal they do not say how far other items would move it: None.
    """
    import numpy as np

    numerator = np.atleast_2d(np.asarray(numerator, float))
    if parts and np.ptp(numerator.mean(0)) < 1e-9:
        return None
    if not parts and denominator is None and np.isin(numerator, (0.0, 1.0)).all():
        found = wilson(float(numerator.mean()), numerator.shape[1])
    else:
        found = item_bootstrap(numerator, denominator, generator)
    return Interval(scale * found.low, scale * found.high, found.kind)


def standard_error(numerator: np.ndarray, denominator: np.ndarray | None, scale: float) -> float:
    """Standard error over items of the mean over seeds, by linearisation for a ratio. Arrays are (seeds, items)."""
    import numpy as np

    numerator = np.atleast_2d(np.asarray(numerator, float))
    items = numerator.shape[1]
    below = np.ones_like(numerator) if denominator is None else np.atleast_2d(np.asarray(denominator, float))
    ratio = numerator.sum(1, keepdims=True) / below.sum(1, keepdims=True)
    influence = ((numerator - ratio * below) / below.mean(1, keepdims=True)).mean(axis=0)
    return abs(scale) * float(np.sqrt((influence**2).sum() / max(items - 1, 1) / items))


def near_floor(value: float, floor: float, error: float) -> bool:
    """Is ``value`` less than 1.96 standard errors above ``floor``? (Where hits are rare: three of them, or fewer.)"""
    return value - floor <= NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) * error
