"""What the best of k trials is expected to be, for every k up to their number.

Of n trials in random order, without replacement, the best loss after k is the i-th smallest with probability
C(n - i, k - 1) / C(n, k). Dodge et al. 2019 (https://arxiv.org/abs/1909.03004) proposed the curve, with draws with
replacement; Tang et al. 2020 (https://arxiv.org/abs/2004.13705) showed that this is biased and gave the estimator here,
which is unbiased for trials drawn independently. Ours are not quite: they are quasi-random, and one has given values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

COVERED = 0.95


class Best(NamedTuple):
    """After ``k`` trials: the expected best loss, and between what the best lies in 95 % of all orders of the trials."""

    k: int
    expected: float
    low: float
    high: float


def expected_best(losses: Sequence[float]) -> list[Best]:
    """The curve for k = 1 to n, exact over all orders."""
    ordered, n = sorted(losses), len(losses)
    curve = []
    for k in range(1, n + 1):
        chances = [math.comb(n - place, k - 1) / math.comb(n, k) for place in range(1, n + 1)]
        expected = math.fsum(chance * loss for chance, loss in zip(chances, ordered, strict=True))
        tail = (1 - COVERED) / 2
        curve.append(Best(k, expected, _quantile(ordered, chances, tail), _quantile(ordered, chances, 1 - tail)))
    return curve


def _quantile(ordered: Sequence[float], chances: Sequence[float], share: float) -> float:
    """The smallest value at or below which at least ``share`` of the orders end."""
    reached = 0.0
    for loss, chance in zip(ordered, chances, strict=True):
        reached += chance
        if reached >= share - 1e-12:
            return loss
    return ordered[-1]
