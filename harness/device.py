"""The one device of a process: a GPU leased by a file lock where there are several jobs, else the CPU."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from pathlib import Path

import torch

_held: list = []  # open lock files: a lease lasts as long as the process


def choose_device(threads: int) -> torch.device:
    """The device this process may use. On CPU exactly ``threads`` threads; on CUDA a GPU no other job here holds.

    Snakemake counts GPUs but does not assign them: each index has a lock file, and the first free one is taken.
    """
    torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    folder = Path(tempfile.gettempdir()) / f"tuning-fork-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    while True:
        for index in range(torch.cuda.device_count()):
            file = open(folder / f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'all')}-{index}.lock", "w")  # noqa: SIM115
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                continue
            _held.append(file)
            torch.cuda.set_device(index)
            return torch.device("cuda", index)
        print("every GPU is leased by another job; waiting", flush=True)
        time.sleep(5)
