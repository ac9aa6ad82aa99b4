"""Processes of a stage: which they are, what memory they hold, how they are ended, what else may have ended them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

from harness.failures import UserError

PAGE = os.sysconf("SC_PAGE_SIZE")


def tree(pid: int) -> list[int]:
    """A process and its living descendants, parents first; empty when it is gone."""
    if not sys.platform.startswith("linux"):
        return _tree_elsewhere(pid)
    found, todo = [], [pid]
    while todo:
        parent = todo.pop()
        try:
            tasks = os.listdir(f"/proc/{parent}/task")
        except OSError:
            continue
        found.append(parent)
        for task in tasks:  # children are listed by the thread that started them
            with contextlib.suppress(OSError), open(f"/proc/{parent}/task/{task}/children", "rb") as file:
                todo += map(int, file.read().split())
    return found


def resident_bytes(pids: list[int]) -> int:
    """Resident memory of processes, summed; pages that they share count for each."""
    if not sys.platform.startswith("linux"):
        return _resident_elsewhere(pids)
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/statm", "rb") as file:
            total += int(file.read().split()[1]) * PAGE
    return total


def kill_tree(pid: int) -> None:
    """SIGKILL a process, its process group and its descendants, those in sessions of their own included."""
    pids = tree(pid)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    for each in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(each, signal.SIGKILL)


def die_with_parent(parent: int) -> None:
    """SIGTERM for this process when its parent goes, even by SIGKILL. Linux only; elsewhere nothing happens."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it went before we asked
        os.kill(os.getpid(), signal.SIGTERM)


def memory_kills() -> int:
    """How often the kernel has killed for memory, as far as can be seen: in its cgroups and on the machine."""
    total = 0
    for path, name in _counters():
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text(encoding="ascii").splitlines():
                key, _, value = line.partition(" ")
                if key == name:
                    total += int(value)
    return total


def _counters() -> list[tuple[Path, str]]:
    """(file, key) of every counter of kills for memory: cgroup v2, cgroup v1, the whole machine."""
    found = [(Path("/proc/vmstat"), "oom_kill")]
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:
                found.append((Path(f"/sys/fs/cgroup{group}/memory.events"), "oom_kill"))
                found.append((Path("/sys/fs/cgroup/memory.events"), "oom_kill"))  # a container sees its own as the root
            elif "memory" in controllers.split(","):
                found.append((Path(f"/sys/fs/cgroup/memory{group}/memory.oom_control"), "oom_kill"))
                found.append((Path("/sys/fs/cgroup/memory/memory.oom_control"), "oom_kill"))
    return list(dict.fromkeys(found))


def _tree_elsewhere(pid: int) -> list[int]:
    import psutil

    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:
        return []


def _resident_elsewhere(pids: list[int]) -> int:
    import psutil

    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            total += psutil.Process(pid).memory_info().rss
    return total


def has_gpu() -> bool:
    """Whether this machine has a GPU that torch could use, told without importing torch."""
    return any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd"))


def grace() -> float:
    """Seconds that a stage has to write a checkpoint. Raises UserError where the variable is no number."""
    given = os.environ.get("TUNING_FORK_GRACE") or "60"
    try:
        return float(given)
    except ValueError:
        raise UserError(f"TUNING_FORK_GRACE={given}: it is a number of seconds, as 60") from None
