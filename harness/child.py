"""A stage's own process: how it is started cold, and what runs in it.

What runs is the same in a cold process (``python -m harness.child``) and in a warm one (forked from ``harness.warm``'s
server): tie it to its supervisor, call the stage, turn what it raises into its end.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import select
import subprocess
import sys
from pathlib import Path

from harness.failures import guard
from harness.processes import die_with_parent

ONLINE = ("prepare",)  # the only stages that may download
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
THREADS = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"),
    *("VECLIB_MAXIMUM_THREADS", "RAYON_NUM_THREADS"),
)


def run(job: dict) -> int:
    """The stage's exit code (see ``harness.failures``).

    ``job``: ``stage``; ``module`` with ``main(argv)``; ``argv``; ``record``; ``identity`` of the row if it fails;
    ``parent``, the process to die with; ``lock``, the descriptor of the training's lock, kept open until the very end.
    """
    die_with_parent(job["parent"])
    os.set_inheritable(job["lock"], False)  # a program that the stage starts must not outlive it with the lock
    faulthandler.enable()  # a crash in native code leaves the Python stack in the log
    sys.argv = [job["module"], *job["argv"]]

    def main(argv: list[str] | None) -> int | None:
        return importlib.import_module(job["module"]).main(argv)

    return guard(main, Path(job["record"]), job["stage"], job["identity"])(job["argv"])


class ColdChild:
    """A stage in an interpreter of its own; the same interface as ``warm.WarmChild``."""

    def __init__(self, job: dict, environment: dict, descriptors: tuple[int, int, int]):
        out, err, lock = descriptors
        job = {**job, "parent": os.getpid(), "lock": lock}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "harness.child", json.dumps(job)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            pass_fds=[lock],
            process_group=0,  # Ctrl-C reaches the supervisor alone, and all of the stage can be killed at once
        )
        self.pid = self._process.pid
        self._ended = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else None

    def wait(self, seconds: float) -> int | None:
        """Its exit code, negative for a signal, or None after ``seconds``."""
        if self._ended is not None and not select.select([self._ended], [], [], seconds)[0]:
            return None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def signal(self, number: int) -> None:
        self._process.send_signal(number)


def stage_environment(stage: str, threads: int | None) -> dict[str, str]:
    """This process's environment, offline but for ``prepare``, with ``threads`` for every numerical library."""
    environment = dict(os.environ)
    environment |= {"PYTHONUNBUFFERED": "1", "PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false"}
    if stage not in ONLINE:
        environment |= OFFLINE
    if threads:
        environment |= dict.fromkeys(THREADS, str(threads))
    return environment


if __name__ == "__main__":
    sys.exit(run(json.loads(sys.argv[1])))
