"""Run a program that a model wrote: in a child process, under limits, and believe only what it cannot say by itself.

Levels, strongest first; the machine's is found by trying, and stands in every outcome:

``namespaces``  own user, mount, process, network and IPC spaces; the file tree read-only, without devices and /proc, and
                with assets, mirror, results and ~/.cache empty; a memory file system as working directory; and all of
                ``seccomp``. Does not stop: reading other files that this user may read (nothing read can leave: the
                program's output is discarded).
``seccomp``     no further process, no socket, no signal to or hold on other processes, be it by way of the kernel
                (fcntl), no privilege; and all of ``limits``. Does not stop: reading and writing the files that this user
                may, the benchmarks' own tests and a non-root user's /proc among them, or writing many of them until the
                time is up.
``limits``      CPU and wall time, memory, file size, open files, no further process, a fresh directory, an empty
                environment. Does not stop, besides: the network, signals to this user's other processes. Refused to
                root, whom the process limit does not bind.

Tests run in a process of their own, under the same level and limits, and call the program's functions across a pipe on
which only plain built-in values travel (``harness.sandbox_call``): the program has neither the tests, nor what they
expect, nor the nonce by which they report, in its memory, and at level ``namespaces`` not on disk either. A program
without tests reports for itself: one that goes looking for the nonce can pass; what is sure is that none passes by
leaving early. None of either kind outlives its limits.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from harness import assets, sandbox_child

LEVELS = sandbox_child.LEVELS
STATUSES = ("passed", "failed", "timeout", "memory", "crashed")

_GRACE = 10.0  # seconds beyond the wall limit after which the keeper itself is killed
_PROBE = "import colorsys, threading\nthreading.Thread(target=int).start()"


class SandboxError(RuntimeError):
    """The sandbox could not be set up: nothing is known of the program."""


@dataclass(frozen=True)
class Limits:
    """What one program may use. Further processes are never allowed; its output is discarded."""

    cpu_seconds: float = 3.0  # rounded up to whole seconds; the limit that decides, since it hardly depends on the load
    wall_seconds: float = 20.0  # for programs that sleep or wait
    memory_bytes: int = 1 << 30  # of address space
    disk_bytes: int = 4 << 20  # of any file, and of the whole directory where the level allows
    open_files: int = 32


@dataclass(frozen=True)
class Outcome:
    """How a program ended: a status of STATUSES, why, wall time with start-up, and the level of LEVELS it ran at."""

    status: str
    detail: str
    seconds: float
    level: str


def run_program(
    source: str, limits: Limits | None = None, level: str | None = None, tests: str | None = None
) -> Outcome:
    """Run ``source`` at ``level`` (None: the strongest of this machine); it passes if its end is reached.

    With ``tests``, trusted Python, it passes if *their* end is reached. A name that they use and do not define is the
    program's function of that name; ``__remote__(name)`` is one that they do define. Arguments and results are plain
    built-in values; a built-in error that the function raises is raised in the tests.

    Raises SandboxError where the level cannot be had.
    """
    return _run(source, limits or Limits(), level or strongest_level(), tests)


def run_programs(
    sources: Sequence[str], limits: Limits | None = None, workers: int = 1, tests: str | None = None
) -> list[Outcome]:
    """Outcomes of several programs in their order, ``workers`` at a time; each has its own processes and directory."""
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda source: run_program(source, limits, tests=tests), sources))


@functools.cache
def strongest_level() -> str:
    """The strongest level at which a harmless program passes on this machine."""
    refusals = []
    for level in LEVELS:
        try:
            outcome = _run(_PROBE if level != "limits" else "import colorsys", Limits(), level)
        except SandboxError as error:
            refusals.append(f"  {error}")
            continue
        if outcome.status == "passed":
            return level
        refusals.append(f"  {level}: {outcome.status} {outcome.detail}")
    raise SandboxError(
        "This machine offers no sandbox for programs that a model wrote:\n" + "\n".join(refusals) + "\n"
        "Allow unprivileged user namespaces or seccomp, or run as a user other than root."
    )


def require(floor: str) -> None:
    """Raises SandboxError where this machine's strongest level is weaker than ``floor``; "" asks for nothing."""
    if floor and LEVELS.index(strongest_level()) > LEVELS.index(floor):
        raise SandboxError(
            f"the suite runs programs at level {floor} or stronger (limits.sandbox), and this machine has {strongest_level()} "
            "at most: allow unprivileged user namespaces or seccomp here, or score on another machine"
        )


def _run(source: str, limits: Limits, level: str, tests: str | None = None) -> Outcome:
    if level == "limits" and os.geteuid() == 0:
        raise SandboxError("limits: refused to root, whom the limit on processes does not bind; run as another user")
    start = time.monotonic()
    with _fresh_directory() as folder:
        task = {
            "source": source,
            "limits": asdict(limits),
            "level": level,
            "folder": folder,
            "tested": tests is not None,
            "hidden": [hidden for hidden in _hidden() if not Path(folder).resolve().is_relative_to(hidden)],
        }
        # Two parts: the program's process is made between them.
        frames = "".join(f"{len(text):08x}{text}" for text in (json.dumps(task), json.dumps({"tests": tests})))
        said, complaint, code = _keeper(frames, limits.wall_seconds + _GRACE)
    seconds = time.monotonic() - start
    try:
        status, detail = json.loads(said)
    except ValueError:
        if code >= 0:
            raise SandboxError(f"{level}: the sandbox failed with exit code {code}: {complaint.strip()}") from None
        status, detail = "crashed", "the program's keeper was killed"
    if status == "sandbox":
        raise SandboxError(f"{level}: {detail}")
    return Outcome(status, detail, seconds, level)


def _hidden() -> list[str]:
    """Folders that hold benchmarks' tests, or what other programs were graded, as far as they are there."""
    mirror = os.environ.get("TUNING_FORK_MIRROR")
    folders = [assets.cache(), Path("results"), Path.home() / ".cache", *([Path(mirror)] if mirror else [])]
    return sorted({str(folder.resolve()) for folder in folders if folder.is_dir()})


def _keeper(task: str, seconds: float) -> tuple[str, str, int]:
    """(output, errors, exit code) of a keeper process given ``task``; it dies with this thread, whatever happens."""
    # An isolated interpreter without site-packages. A fixed hash seed: the order of a set must not change a grade.
    command = [sys.executable, "-s", "-P", "-S", "-X", "utf8", sandbox_child.__file__, str(os.getpid())]
    environment = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    keeper = subprocess.Popen(command, **pipes, env=environment, cwd="/", start_new_session=True, text=True)
    try:
        said, complaint = keeper.communicate(task, timeout=seconds)
    except subprocess.TimeoutExpired:
        keeper.kill()
        said, complaint = keeper.communicate()
    finally:
        if keeper.poll() is None:
            keeper.kill()
            keeper.wait()
    return said, complaint, keeper.returncode


@contextmanager
def _fresh_directory() -> Iterator[str]:
    """An empty directory, deleted afterwards with whatever the program made in it."""
    folder = tempfile.mkdtemp(prefix="tuning-fork-program-")
    try:
        yield folder
    finally:
        with suppress(RecursionError):
            shutil.rmtree(folder, ignore_errors=True)
        if os.path.exists(folder):  # directories without permissions, or a thousand in one another
            subprocess.run(["chmod", "-R", "u+rwx", "--", folder], stderr=subprocess.DEVNULL, check=False)
            subprocess.run(["rm", "-rf", "--", folder], stderr=subprocess.DEVNULL, check=False)
