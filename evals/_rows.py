"""A fixed part of an eval's items. Reading rows, and dividing them without leaks, is the corpora's ``_rows``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def subsample(items: Sequence[dict], limit: int) -> list[dict]:
    """``limit`` items (0: all) in their own order: the same for every model, chosen by their ids alone, classes unseen.

    A smaller limit's items are among a larger one's.
    """
    if not 0 < limit < len(items):
        return list(items)
    ranked = sorted(range(len(items)), key=lambda index: hashlib.sha256(items[index]["id"].encode()).digest())
    return [items[index] for index in sorted(ranked[:limit])]
