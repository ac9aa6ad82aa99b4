"""Are two methods, or a method and a reported number, equal within a declared margin? Two one-sided tests (TOST).

D. J. Schuirmann (J. Pharmacokin. Biopharm. 15, 1987): equal at level 0.05 where both "at least the margin below" and "at
least the margin above" are rejected, which is where the 90 % interval of the difference lies within the margin. A large p
says "not shown", never "different". Errors and critical values are ``evidence.paired``'s: crossed seeds and items, and with
fewer than three seeds of the items only.

A reported number is taken as exact, since papers seldom give its spread; a method's own score varies with seeds and items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from evidence.paired import Difference, paired_difference, tail

if TYPE_CHECKING:
    import numpy as np

    from evidence.pools import Pool

ALPHA = 0.05
EQUIVALENT, DIFFERENT, UNDECIDED = "equivalent", "different", "undecided"


@dataclass(frozen=True)
class Equivalence:
    """``p`` of the TOST; ``low`` and ``high`` bound the interval of 1 - 2 ``alpha``; ``difference`` has the 95 % one."""

    difference: Difference
    margin: float
    p: float
    low: float
    high: float
    alpha: float = ALPHA

    @property
    def verdict(self) -> str:
        """Equivalent within the margin, different by more than it, or undecided: each at level ``alpha``, for itself."""
        if self.p < self.alpha:
            return EQUIVALENT
        return DIFFERENT if self.low >= self.margin or self.high <= -self.margin else UNDECIDED

    def text(self, digits: int = 1) -> str:
        """ "equivalent within ±0.5 (p 0.012; difference +0.1, 90 % [-0.2, +0.4]; 3 seeds, 400 items, seeds and items)"."""
        d = self.difference
        p = "< 0.001" if self.p < 0.001 else f"{self.p:.3f}"
        interval = f"{100 * (1 - 2 * self.alpha):.3g} % [{self.low:+.{digits}f}, {self.high:+.{digits}f}]"
        interval = interval if d.error else "no interval"
        of = f"difference {d.value:+.{digits}f}, {interval}"
        counted = f"{d.seeds} seed{'s' * (d.seeds > 1)}, {d.items} items, {d.kind}"
        bound = f"by more than {self.margin:g}" if self.verdict == DIFFERENT else f"within ±{self.margin:g}"
        return f"{self.verdict} {bound} (p {p}; {of}; {counted})"


def tost(first: np.ndarray, second: np.ndarray | float, margin: float, alpha: float = ALPHA) -> Equivalence:
    """``first``: (seeds, items); ``second``: the same of another method, or a reported number. ``margin`` above zero."""
    import numpy as np

    if not margin > 0:
        raise ValueError(f"a margin is above zero, not {margin}")
    first = np.asarray(first, float)
    second = np.full_like(first, second) if np.ndim(second) == 0 else second
    found = paired_difference(first, second)
    narrow = paired_difference(first, second, 1 - 2 * alpha)
    p = max(_not_beyond(found, -found.value, margin), _not_beyond(found, found.value, margin))
    return Equivalence(found, margin, p, narrow.low, narrow.high, alpha)


def to_reported(pool: Pool, reported: float, margin: float) -> Equivalence | None:
    """A method's score against a number that somebody reports; None where the score is no mean over items."""
    return tost(pool.items.values, reported, margin) if pool.items and pool.used else None


def _not_beyond(found: Difference, value: float, margin: float) -> float:
    """p of the one-sided test whose hypothesis is: ``value`` is truly at or above ``margin``."""
    distance = margin - value
    if found.error == 0:
        return 1.0
    p = tail(abs(distance) / found.error, found.between, found.df, found.error**2 - found.between, found.items - 1)
    return p if distance > 0 else 1 - p
