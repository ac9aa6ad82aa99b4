"""Who is on the front of quality, time and memory, and how sure that is: the share of draws in which nobody is better.

A method is off the front where another is at least as good in all three and better in one. Quality comes from the bootstrap
of ``evidence.aggregate``; the logarithm of a time is drawn as normal with the error of a median of so many steps; memory is
counted, not sampled. Times and memory are the ``cost`` stage's, on one machine: what the probability does not cover is
another machine.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

QUARTILES = 1.349  # the distance between a normal's quartiles, in standard deviations
MEDIAN = math.sqrt(math.pi / 2)  # how much wider a median's error is than a mean's


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


def drawn_times(
    median: np.ndarray, low: np.ndarray, high: np.ndarray, count: np.ndarray, rng: np.random.Generator, draws: int
) -> np.ndarray:
    """(draws, methods) around medians of ``count`` steps with these quartiles; no spread where they are not known."""
    import numpy as np

    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.nan_to_num(MEDIAN * np.log(high / low) / QUARTILES / np.sqrt(count))
    return median * np.exp(error * rng.normal(size=(draws, len(median))))
