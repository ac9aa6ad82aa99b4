"""Who is on the front of quality, time and memory, and how sure that is: the share of draws in which nobody is better.

A method is off the front where another is at least as good in all three and better in one. Quality comes from the bootstrap
of ``evidence.aggregate``, and time from one of the timed steps, whose batches all methods share; memory is counted, not
sampled. Times and memory are the ``cost`` stage's, on one machine: what the probability does not cover is another machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def on_front(quality: np.ndarray, time: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """Which methods nobody dominates: arrays (..., methods), quality up, time and memory down; True on the front."""
    import numpy as np

    good = np.stack(np.broadcast_arrays(quality, -time, -memory), axis=-1)
    as_good = (good[..., :, None, :] >= good[..., None, :, :]).all(-1)  # [.., a, b]: a is as good as b everywhere
    better = (good[..., :, None, :] > good[..., None, :, :]).any(-1)
    return ~(as_good & better).any(-2)


def membership(quality: np.ndarray, time: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """Probability of being on the front, of (draws, methods) each (memory may be (methods,))."""
    return on_front(quality, time, memory).mean(0)


def drawn_medians(steps: Sequence[Sequence[float]], rng: np.random.Generator, draws: int) -> np.ndarray:
    """(draws, methods): the median of each method's steps, drawn with replacement; equally many steps are drawn alike."""
    import numpy as np

    place = rng.random((draws, max(map(len, steps))))
    found = np.empty((draws, len(steps)))
    for column, times in enumerate(steps):
        drawn = (place[:, : len(times)] * len(times)).astype(int)
        found[:, column] = np.median(np.asarray(times, float)[drawn], axis=1)
    return found
