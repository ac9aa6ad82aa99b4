"""Named seed streams: every random choice of a run draws from one of them, and from nothing else.

init      adapters, task heads, a method's own draws          order       rows of each step
dropout   anew for every (step, micro-batch)                  probe       batches that ``initialize`` sees
generation  sampled text, by item                             tuning      trials of the tuning stage
"""

from __future__ import annotations

import hashlib

STREAMS = ("init", "order", "dropout", "probe", "generation", "tuning")


class Streams:
    """Seeds of one run. ``overrides`` gives single streams another base seed than ``seed``."""

    def __init__(self, seed: int, overrides: dict[str, int] | None = None):
        self.base = {name: seed for name in STREAMS} | (overrides or {})

    def seed(self, stream: str, *place: int | str) -> int:
        """A 63-bit seed for a place in a stream, such as ("dropout", step, micro_batch)."""
        text = "/".join(str(part) for part in (self.base[stream], stream, *place))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def seed_torch(self, stream: str, *place: int | str) -> None:
        """Seed torch's global generators (CPU and devices) for what follows."""
        import torch

        torch.manual_seed(self.seed(stream, *place))
