"""How much of a gap a method closes: (method - low) / (high - low), such as LoRSum between LoRA and SVDLoRA.

Fieller's interval (E. C. Fieller, J. R. Stat. Soc. B 16, 1954) of a ratio of two paired differences a = method - low and
b = high - low, from their standard errors and covariance over items (and seeds, see ``evidence.paired``): all r at which
a - r b is not told from zero. Where b itself is not told from zero that set is no interval, and the share is refused. Both
differences are told from zero by one critical value, the larger of theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evidence.paired import CONFIDENCE, Difference, paired_difference

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Share:
    """``value`` and its interval; None where the gap is not told from zero by ``critical``. ``gap`` is high - low."""

    value: float | None
    low: float | None
    high: float | None
    gap: Difference
    critical: float

    def text(self) -> str:
        """ "0.83 [0.51, 1.20]", or why there is none."""
        gap, half = self.gap.value, self.critical * self.gap.error
        if not self.gap.error:
            return f"refused: the gap, {gap:+.2f}, is the same on every item"
        if self.value is None:
            return f"refused: the gap, {gap:+.2f} [{gap - half:+.2f}, {gap + half:+.2f}], may be none"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def share_closed(method: np.ndarray, low: np.ndarray, high: np.ndarray, confidence: float = CONFIDENCE) -> Share:
    """All three (seeds, items), of the same seeds and items. A lower-is-better score gives the same share."""
    gap = paired_difference(high, low, confidence)
    above = paired_difference(method, low, confidence)
    a, b, t = above.value, gap.value, max(above.critical if above.error else 0.0, gap.critical)
    if gap.error == 0 or b * b <= t * t * gap.error**2:
        return Share(None, None, None, gap, t)
    left = paired_difference(high, method, confidence)  # gap - above: its error gives their covariance
    covariance = (above.error**2 + gap.error**2 - left.error**2) / 2
    # (a - r b)^2 <= t^2 (va - 2 r cov + r^2 vb)
    square = b * b - t * t * gap.error**2
    half = a * b - t * t * covariance
    rest = a * a - t * t * above.error**2
    root = math.sqrt(max(0.0, half * half - square * rest))
    return Share(a / b, (half - root) / square, (half + root) / square, gap, t)
