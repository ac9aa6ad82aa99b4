"""Limits for programs in tests of the sandbox, and a look for programs that are still there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from harness import sandbox_child
from harness.sandbox import Limits

TIGHT = Limits(cpu_seconds=1, wall_seconds=20, memory_bytes=192 << 20, disk_bytes=1 << 20)
BRIEF = dataclasses.replace(TIGHT, wall_seconds=1)  # for programs that only wait


def keepers_of(parent: int) -> list[str]:
    """Command lines of sandbox processes that ``parent`` started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if sandbox_child.__file__ in words and str(parent) in words:
            found.append(" ".join(words))
    return found
