"""The difference of two methods on the same items under the same seeds, with an interval that covers both choices.

Item differences d_si = mu + a_s + b_i + e_si: seed, item, and what is left (crossed random effects). With S seeds, I items and
the mean squares of seeds, items and rest (MS_A, MS_B, MS_E),

    Var(mean) = var_a / S + var_b / I + var_e / (S I),   var_a = max(0, m MS_A - MS_E) / I,   the rest = MS_B / (S I).

var_a rests on S - 1 degrees of freedom and comes out zero too often, which makes plain intervals too short: m = (S - 1) /
(the median of chi-squared on S - 1) makes it right in the median. The critical value is Cochran's: the t of each part,
weighted by the part (W. G. Cochran, Biometrics 20, 1964). evidence/coverage.py simulates what that covers; with two seeds
no form covers without being useless, and the interval is of the items only, and says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

CONFIDENCE = 0.95
LEAST_P = 1e-12  # that is told from 0
ROUNDING = 1e-9  # of the largest difference: an error below it is that of the arithmetic
LEAST_SEEDS = 3  # for an interval that covers the choice of seeds


@dataclass(frozen=True)
class Difference:
    """``value`` (first less second), its standard error, interval and two-sided p; ``kind``: what the interval covers.

    Where every item gives the same difference, as where both methods answer all alike, such a sample cannot say how far
    others would lie apart: the error is 0, ``kind`` "no spread", there is no interval (NaN), and p is 1.
    """

    value: float
    error: float
    low: float
    high: float
    p: float
    critical: float  # half the interval's width over the error
    kind: str
    seeds: int
    items: int
    between: float = (
        0.0  # what of the squared error is the seeds', on ``df`` degrees of freedom; the rest is the items'
    )
    df: float = 1.0
    items_own: float = 0.0  # what of it no further seed would take away: var_b / I (with one seed, all of the items')


def paired_difference(first: np.ndarray, second: np.ndarray, confidence: float = CONFIDENCE) -> Difference:
    """``first`` and ``second``: (seeds, items), the same of both. Raises ValueError for other shapes, missing values, and one
    item, which has no spread."""
    import numpy as np

    if np.ndim(first) != 2 or np.shape(first) != np.shape(second):
        raise ValueError(f"two arrays (seeds, items) of one shape, not {np.shape(first)} and {np.shape(second)}")
    d = np.asarray(first, float) - np.asarray(second, float)
    if d.shape[1] < 2 or not np.isfinite(d).all():
        raise ValueError("a paired difference needs two items or more, and a number for each seed and item")
    (value,), (squares,), (rest,) = mean_squares(d[None])
    value = float(value)
    seeds, items = d.shape
    between, df = seed_part(squares, seeds, items)
    whole = seeds >= LEAST_SEEDS
    between = between if whole else 0.0
    error = math.sqrt(between + rest)
    if error <= ROUNDING * abs(d).max():
        return Difference(value, 0.0, math.nan, math.nan, 1.0, math.nan, "no spread", seeds, items)
    critical = cochran((1 - confidence) / 2, between, df, rest, items - 1)
    kind = "seeds and items" if whole else "items only"
    p = 2 * tail(abs(value) / error, between, df, rest, items - 1)
    low, high = value - critical * error, value + critical * error
    items_own = max(0.0, float(rest - squares[1] / (seeds * items)))
    return Difference(value, error, low, high, p, critical, kind, seeds, items, float(between), df, items_own)


def linearised(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Items' parts of a corpus-level ratio of sums (seeds, items): their mean over items is each seed's ratio.

    The delta method's: R_s + (N_si - R_s D_si) / mean(D_s). Raises ValueError where a seed's denominator is zero.
    """
    import numpy as np

    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    below = denominator.mean(1, keepdims=True)
    if (below == 0).any():
        raise ValueError("a ratio whose denominator sums to zero")
    ratio = numerator.mean(1, keepdims=True) / below
    return ratio + (numerator - ratio * denominator) / below


def mean_squares(d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of experiments (n, seeds, items): means (n,), (MS_A, MS_E) as (n, 2), and MS_B / (S I), (n,)."""
    import numpy as np

    _, seeds, items = d.shape
    mean, rows, columns = d.mean((1, 2)), d.mean(2), d.mean(1)
    by_item = seeds * ((columns - mean[:, None]) ** 2).sum(1) / (items - 1)
    if seeds == 1:
        return mean, np.zeros((len(d), 2)), by_item / items
    by_seed = items * ((rows - mean[:, None]) ** 2).sum(1) / (seeds - 1)
    left = d - rows[:, :, None] - columns[:, None, :] + mean[:, None, None]
    rest = (left**2).sum((1, 2)) / ((seeds - 1) * (items - 1))
    return mean, np.stack([by_seed, rest], 1), by_item / (seeds * items)


def seed_part(squares: np.ndarray, seeds: int, items: int) -> tuple[float, float]:
    """(var_a / S, degrees of freedom) from MS_A and MS_E in the last axis."""
    from scipy.stats import chi2

    if seeds < 2:
        return 0.0, 1.0
    median = (seeds - 1) / chi2.median(seeds - 1)
    return (median * squares[..., 0] - squares[..., 1]).clip(0) / (seeds * items), float(seeds - 1)


def cochran(tail: float, between: float, df: float, rest: float, df_rest: float) -> float:
    """Critical value that is passed with probability ``tail``: each part's t quantile, weighted by its variance."""
    from scipy.special import stdtrit  # what t.isf calls, without its checks, which take twenty times as long

    one, other = -stdtrit(df, tail), -stdtrit(df_rest, tail)
    return (between * one + rest * other) / (between + rest)


def detectable(found: Difference, power: float = 0.8) -> float:
    """The smallest true difference that a test like ``found`` calls one with that power: error x (critical + z); NaN
    without an interval."""
    from scipy.stats import norm

    return found.error * (found.critical + float(norm.ppf(power)))


def holm(p: list[float]) -> list[float]:
    """Holm's adjusted p-values (1979), in the order given: each below alpha keeps the family's error below alpha."""
    order = sorted(range(len(p)), key=p.__getitem__)
    adjusted, largest = [0.0] * len(p), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - place) * p[index]))
        adjusted[index] = largest
    return adjusted


def tail(ratio: float, between: float, df: float, rest: float, df_rest: float) -> float:
    """One-sided p: the tail, up to a half, whose critical value of Cochran's is ``ratio``; 0 below LEAST_P / 2."""
    from scipy.optimize import brentq

    def apart(p: float) -> float:
        return cochran(p, between, df, rest, df_rest) - ratio

    return 0.0 if apart(LEAST_P / 2) < 0 else float(brentq(apart, LEAST_P / 2, 0.5))
