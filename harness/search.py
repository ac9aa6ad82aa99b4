"""Search spaces and the points that tuning tries. Imports no torch; scipy only where points are drawn.

A method's field says its space: ``field(metadata={"search": log_uniform(1e-5, 1e-2)})``. Points are scrambled Sobol
points (Owen 1998, J. Complexity 14) of the unit cube, the same for every variant: its first searched field takes the
first coordinate, and so on. The first trial is no point: it has the values that the suite or the method gives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

DIMENSIONS = 16
"""Of the cube, whatever a variant searches, so that one variant's points do not depend on another's fields."""
DIGITS = 4  # of a value drawn: more would mean nothing and read badly


def points(trials: int, seed: int) -> list[list[float]]:
    """The points of the trials after the first. More trials begin with the same points."""
    import numpy as np
    from scipy.stats import qmc

    if trials < 2:
        return []
    doublings = math.ceil(math.log2(trials - 1)) if trials > 2 else 0
    cube = qmc.Sobol(DIMENSIONS, scramble=True, rng=np.random.default_rng(seed)).random_base2(doublings)
    return cube[: trials - 1].tolist()


def values_at(spaces: dict[str, dict], point: Sequence[float]) -> dict[str, Any]:
    """The hyper-parameters at a point of the unit cube."""
    return {name: _value(space, share) for (name, space), share in zip(spaces.items(), point, strict=False)}


def _value(space: dict, share: float) -> Any:
    if space["space"] == "log_uniform":
        drawn = math.exp(math.log(space["low"]) + share * math.log(space["high"] / space["low"]))
        return float(f"{drawn:.{DIGITS}g}")
    return space["values"][min(int(share * len(space["values"])), len(space["values"]) - 1)]


RULE = (
    "the trial with the lowest mean validation loss over the tuning seeds at its end; of equal ones the earlier; a trial "
    "that failed with any seed cannot be chosen"
)


def choose(losses: Sequence[float | None]) -> int | None:
    """Index of the choice by ``RULE``; None stands for a failed trial, and is returned where all failed."""
    good = [index for index, loss in enumerate(losses) if loss is not None and math.isfinite(loss)]
    return min(good, key=lambda index: losses[index], default=None)
