"""Clear Snakemake's lock in this folder if the Snakemake that held it is dead: ``python -m harness.unlock``.

Snakemake's lock names no process, so the question is whether any Snakemake works in this folder. Stages that outlived
a killed Snakemake hold locks of their own (``harness.supervise``) and do no harm.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path

import psutil


def running(folder: Path) -> list[int]:
    """Living Snakemake processes of this machine whose working directory is ``folder``."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            names = [os.path.basename(word) for word in process.cmdline()[:5]]
            alive = process.status() != psutil.STATUS_ZOMBIE
            if (
                "snakemake" in names
                and alive
                and process.pid != os.getpid()
                and os.path.samefile(process.cwd(), folder)
            ):
                found.append(process.pid)
    return found


def unlock(folder: Path) -> str:
    """Remove a dead Snakemake's lock; what was done, in a sentence, or nothing."""
    locks = folder / ".snakemake" / "locks"
    if not locks.is_dir() or not any(locks.iterdir()):
        return ""
    alive = running(folder)
    if alive:
        return f"snakemake is running in this folder (process {', '.join(map(str, alive))}): its lock stays"
    shutil.rmtree(locks)
    return "removed the lock of a snakemake that is no longer running"


def main() -> int:
    said = unlock(Path.cwd())
    if said:
        print(said, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
