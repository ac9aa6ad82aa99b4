"""From what a step does to how long it takes: rates fitted to `cost` records of this machine.

seconds = products / rate + bytes / bandwidth + operations x overhead + decompositions as timed here one by one
(``harness.decompositions``), each rate at least 0, fitted by non-negative least squares of the relative error. How good
that is, is seen by leaving out a method, a model or a length, fitting the rest, and predicting what was left out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from harness.decompositions import seconds_each
from harness.measure import synchronize
from harness.work import Work

PRODUCT = 256  # rows and columns of a measured product
LEAST = 6  # records below which no rates are fitted


@dataclass(frozen=True)
class Measured:
    """A measured cell: whose it is, what its step does by its shapes, and how long the step took (median)."""

    suite: str
    model: str
    corpus: str
    variant: str
    method: str
    length: int  # tokens of the timed rows, with padding
    work: Work
    seconds: float
    spread: float  # (q75 - q25) / median of its steps
    refresh: tuple[Work, float] | None  # of one refresh
    memory: dict[str, int]
    predicted_memory: dict[str, int]
    threads: int
    precision: str


@dataclass(frozen=True)
class Rates:
    """Seconds per unit of each kind of work, of ``n`` records."""

    cost: tuple[float, ...]
    n: int
    threads: int

    def seconds(self, work: Work) -> float:
        return float(np.dot(self.cost, _features(work))) + decomposing(work, self.threads)


def decomposing(work: Work, threads: int) -> float:
    """Seconds of the decompositions of matrices in it."""
    return sum(count * seconds_each(call, threads) for call, count in work.decompositions.items())


@dataclass(frozen=True)
class LeftOut:
    """Errors of predictions for what was left out: (measured cell, predicted seconds)."""

    what: str
    cells: list[tuple[Measured, float]]

    @property
    def errors(self) -> list[float]:
        """Predicted over measured, less one."""
        return [seconds / cell.seconds - 1 for cell, seconds in self.cells]


def fit(cells: Sequence[Measured]) -> Rates | None:
    """Rates of these cells, all of as many threads; None where they are too few."""
    if len(cells) < LEAST:
        return None
    timed = [(cell, cell.work, cell.seconds) for cell in cells]
    timed += [(cell, *cell.refresh) for cell in cells if cell.refresh]
    matrix = np.array([_features(work) / took for _, work, took in timed])
    rest = np.array([1 - decomposing(work, cell.threads) / took for cell, work, took in timed])
    scale = np.maximum(matrix.max(axis=0), 1e-300)
    solution, _ = nnls(matrix / scale, rest)
    return Rates(tuple(solution / scale), len(cells), cells[0].threads)


def _features(work: Work) -> np.ndarray:
    return np.array([work.flops + work.attention, work.bytes, work.operations])


def leave_out(cells: Sequence[Measured], what: str, group: Callable[[Measured], object]) -> LeftOut | None:
    """Each group's cells predicted from all others; None where there is one group only."""
    groups = sorted({group(cell) for cell in cells}, key=str)
    if len(groups) < 2:
        return None
    found = []
    for name in groups:
        rates = fit([cell for cell in cells if group(cell) != name])
        if rates:
            found += [(cell, rates.seconds(cell.work)) for cell in cells if group(cell) == name]
    return LeftOut(what, found) if found else None


def memory_errors(cells: Sequence[Measured], kind: str) -> list[float]:
    """Predicted over measured bytes of a kind, less one; a kind under a hundredth of the peak counts as one of it."""
    errors = []
    for cell in cells:
        measured, predicted = cell.memory[kind], cell.predicted_memory[kind]
        errors.append((predicted - measured) / max(measured, 0.01 * cell.memory["peak"]))
    return errors


def middle(errors: Sequence[float]) -> float:
    return statistics.median(abs(error) for error in errors)


def measured_product(threads: int, precision: str) -> tuple[Rates, float]:
    """Rates that know matrix products and decompositions only, and FLOPs a second of one measured now: no step is faster."""
    import torch

    from harness.device import choose_device

    device = choose_device(threads)
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    a = torch.randn(PRODUCT, PRODUCT, device=device).to(dtype)
    best = float("inf")
    for _ in range(3):
        synchronize()
        start = time.perf_counter()
        a @ a
        synchronize()
        best = min(best, time.perf_counter() - start)
    speed = 2 * PRODUCT**3 / best
    return Rates((1 / speed, 0.0, 0.0), 0, threads), speed
