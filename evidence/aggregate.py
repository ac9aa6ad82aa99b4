"""Over many benchmarks: interquartile mean and probability of improvement, with stratified bootstrap intervals.

R. Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021. The IQM is the mean
of the middle half of all (run, benchmark) scores: one benchmark with a freak run moves it little, and unlike a median it uses
half of the data. The probability of improvement is the chance that a run of one method scores above a run of another on the
same benchmark (a tie counts a half), averaged over benchmarks.

The bootstrap is stratified by benchmark and draws in each both its runs and its items (A. B. Owen, "The pigeonhole
bootstrap", Ann. Appl. Stat. 1, 2007: a little too wide rather than too narrow). Methods share the draws, as they share items
and data order. Where fewer than three runs are there, they are taken as they are, and the interval is of the items only; where
such a score is no mean over items either, nothing can be drawn, and there is no interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evidence.paired import LEAST_SEEDS
from evidence.stats import CONFIDENCE

if TYPE_CHECKING:
    import numpy as np

DRAWS = 2000


@dataclass(frozen=True)
class Scores:
    """A method on a benchmark, higher is better: ``runs`` (seeds,) and, where a score is a mean over items, those."""

    runs: np.ndarray
    items: np.ndarray | None = None  # (seeds, items)


@dataclass(frozen=True)
class Estimate:
    """A value and its interval; NaN where there is none."""

    value: float
    low: float
    high: float


def iqm(scores: np.ndarray) -> np.ndarray:
    """Mean of what is left of the last axis after its lowest and highest quarter (rounded down to whole scores); NaN where
    one of them is."""
    import numpy as np
    from scipy.stats import trim_mean

    return np.where(np.isnan(scores).any(-1), np.nan, trim_mean(scores, 0.25, axis=-1))


def improvement(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """P(a run of the first is above one of the second), averaged over benchmarks; each array is (..., runs)."""
    import numpy as np

    shares = []
    for x, y in zip(first, second, strict=True):
        x, y = x[..., :, None], y[..., None, :]
        unknown = np.isnan(x) | np.isnan(y)
        shares.append(np.where(unknown, np.nan, (x > y) + 0.5 * (x == y)).mean((-1, -2)))
    return np.mean(shares, axis=0)


def resampled(benchmark: dict[str, Scores], rng: np.random.Generator, draws: int = DRAWS) -> dict[str, np.ndarray]:
    """Each method's runs in ``draws`` bootstrap samples of one benchmark: (draws, runs); NaN where nothing can be drawn.

    Methods with the same number of runs get the same runs in a draw; methods with the same number of items, the same items.
    """
    import numpy as np

    counts = {len(scores.runs) for scores in benchmark.values()}
    place = rng.random((draws, max(counts)))
    found = {name: np.tile(scores.runs.astype(float), (draws, 1)) for name, scores in benchmark.items()}
    for size in sorted({s.items.shape[1] for s in benchmark.values() if s.items is not None}):
        alike = {name: s.items for name, s in benchmark.items() if s.items is not None and s.items.shape[1] == size}
        for part, weights in _weights(size, draws, rng):
            for name, items in alike.items():
                found[name][part] = weights @ items.T / size
    for name, runs in found.items():
        count = runs.shape[1]
        if count >= LEAST_SEEDS:
            found[name] = np.take_along_axis(runs, (place[:, :count] * count).astype(int), axis=1)
        elif benchmark[name].items is None:
            found[name] = np.full_like(runs, np.nan)
    return found


def estimate(value: float, drawn: np.ndarray) -> Estimate:
    """A value with the percentile interval of its bootstrap."""
    import numpy as np

    low, high = np.quantile(drawn, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return Estimate(float(value), float(low), float(high))


def _weights(items: int, draws: int, rng: np.random.Generator) -> Iterator[tuple[slice, np.ndarray]]:
    """How often each item is drawn, (draws, items), 32 MB at a time."""
    import numpy as np

    chunk = max(1, 4_000_000 // items)
    for start in range(0, draws, chunk):
        part = slice(start, min(draws, start + chunk))
        yield part, rng.multinomial(items, np.full(items, 1 / items), size=part.stop - start).astype(float)
