"""Where a record comes from: commit, versions of the software stack, hardware. Imports no torch.

Versions are read from package metadata; a GPU is named only in a process that has loaded torch already.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STACK = (
    *("torch", "transformers", "tokenizers", "safetensors", "peft", "lm_eval", "numpy", "scipy", "scikit-learn"),
    *("sacrebleu", "rouge_score", "datasets", "pandas", "pyarrow", "gguf"),
)
"""Packages that can move a number. Results of different stacks are not pooled silently."""


def provenance(threads: int | None = None, device: str | None = None) -> dict:
    """What a record says of its origin.

    ``threads``: of this stage, default OMP_NUM_THREADS; ``device``: "cpu" or "cuda", default what this process uses.
    """
    hardware = dict(_hardware())
    gpu = _gpu()
    if gpu:
        hardware["gpu"] = gpu
    if device is None:
        device = "cuda" if gpu else "cpu"
    if threads is None and os.environ.get("OMP_NUM_THREADS", "").isdigit():
        threads = int(os.environ["OMP_NUM_THREADS"])
    return {
        **_commit(),
        "versions": versions(),
        "stack_id": stack_id(device),
        "hardware": hardware,
        "threads": threads,
        "device": str(device),
    }


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages of ``STACK``; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in STACK:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def stack_id(device: str) -> str:
    """Twelve hexadecimal digits that are equal where versions and kind of device are."""
    kind = str(device).partition(":")[0]
    lines = [f"{name}=={version}" for name, version in sorted(versions().items())]
    return hashlib.sha256("\n".join([kind, *lines]).encode()).hexdigest()[:12]


@functools.cache
def _commit() -> dict:
    """Commit of the project and whether its files differ from it (results aside); None where that cannot be known."""
    try:
        commit = _git("rev-parse", "--verify", "--quiet", "HEAD").strip()
        dirty = bool(_git("status", "--porcelain", "--", ".", ":(exclude)results").strip())
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": dirty}


def _git(*arguments: str) -> str:
    # No optional locks: a status that runs beside the user's own git must not make that one fail.
    command = ["git", "--no-optional-locks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True).stdout


@functools.cache
def _hardware() -> dict:
    """Processor's model, cores this process may use, memory in bytes, operating system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": cores,
        "ram_bytes": memory,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith(("model name", "Model")):
                    return line.partition(":")[2].strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.machine()


def _gpu() -> dict | None:
    """Name, memory and driver's CUDA version of the GPU in use, if torch is loaded and has touched one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {"name": properties.name, "memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
