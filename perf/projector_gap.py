"""Products that power iteration needs against the gap between eigenvalues, with and without momentum, and the theory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from methods._projector import following, power_step, started

SIZE, ANGLE, MOST = 200, 1e-6, 100_000
GAPS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
MOMENTA = ("none", "static", "dynamic")


def curves(seeds: int, gaps: Sequence[float] = GAPS) -> list[dict]:
    """One row a gap and momentum: products until the angle to the leading vector is 1e-6, over seeds, and by theory."""
    rows = []
    for gap in gaps:
        values = torch.cat((torch.ones(1).double(), torch.linspace(1 - gap, 0, SIZE - 1, dtype=torch.float64)))
        x = torch.randn(seeds, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        start = float(_tangent(x).median())
        for momentum in MOMENTA:
            counts = _counts(values, x, momentum, 1 - gap).numpy()
            low, middle, high = np.percentile(counts, [10, 50, 90])
            row = {"gap": gap, "momentum": momentum, "products": middle, "products_low": low, "products_high": high}
            rows.append(row | {"seeds": seeds, "theory": theory(gap, momentum, start)})
    return rows


def theory(gap: float, momentum: str, start: float) -> float:
    """ln(start / angle) over the logarithm of the rate: kappa, or kappa / (1 + sqrt(1 - kappa^2)) with momentum."""
    kappa = 1 - gap
    rate = kappa if momentum == "none" else kappa / (1 + math.sqrt(1 - kappa**2))
    return math.log(start / ANGLE) / -math.log(rate)


def _counts(values: Tensor, x: Tensor, momentum: str, second: float) -> Tensor:
    """Products for each row of x. C is diagonal: the iteration does not see in which basis it works."""
    at, count = started(x), torch.zeros(len(x), dtype=torch.int64)
    guess = torch.full((len(x), 1), second, dtype=x.dtype)
    for _ in range(MOST):
        going = _tangent(at.x) > ANGLE
        if not bool(going.any()):
            break
        count += going
        u, _, residual = power_step(values * at.x, at, momentum, guess)
        at = following(at, u, residual)
    return count


def _tangent(x: Tensor) -> Tensor:
    return x[:, 1:].norm(dim=1) / x[:, 0].abs()
