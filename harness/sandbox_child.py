"""The side of the sandbox that runs in the child: closes the doors, runs one program, reports how it ended.

Run by ``harness.sandbox`` as a script of its own, with the standard library only. Two processes: the *keeper* makes the
namespaces, waits, enforces the wall time and reports; the *runner* gives up every privilege and runs the program.
The runner passes by writing a nonce to a pipe after the program's last line: leaving early, however politely, is none.

With tests there are two runners. The *candidate* runs the program and answers calls; the *judge*, under the same limits,
runs the tests, calls across a pipe (``harness.sandbox_call``) and alone knows the nonce. The candidate is forked before
the keeper has read the tests, so that they are nowhere in its memory.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib.util
import json
import math
import os
import resource
import secrets
import signal
import struct
import sys
import time
import types
from collections.abc import Callable, Sequence

LEVELS = ("namespaces", "seccomp", "limits")
"""Strongest first; what each one does is told in ``harness.sandbox``."""

# --------------------------------------------------------------------------- system calls refused to the program

_PROCESSES = ("fork", "vfork", "execve", "execveat", "unshare", "setns")
_OTHERS = ("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal", "pidfd_getfd")
_OTHERS += ("ptrace", "process_vm_readv", "process_vm_writev", "prlimit64")
_NETWORK = ("socket", "io_uring_setup")
_KERNEL = ("bpf", "perf_event_open", "userfaultfd", "keyctl", "add_key", "request_key", "open_by_handle_at")
_UNCOUNTED_MEMORY = ("memfd_create", "memfd_secret", "shmget")
REFUSED = _PROCESSES + _OTHERS + _NETWORK + _KERNEL + _UNCOUNTED_MEMORY

# machine -> (its AUDIT_ARCH, {name: number}); aarch64 has neither fork nor vfork, only clone.
_X86_64 = """
    fork 57  vfork 58  execve 59  execveat 322  clone 56  clone3 435  unshare 272  setns 308
    kill 62  tkill 200  tgkill 234  rt_sigqueueinfo 129  rt_tgsigqueueinfo 297  pidfd_send_signal 424  pidfd_getfd 438
    ptrace 101  process_vm_readv 310  process_vm_writev 311  prlimit64 302  socket 41  io_uring_setup 425
    bpf 321  perf_event_open 298  userfaultfd 323  keyctl 250  add_key 248  request_key 249  open_by_handle_at 304
    memfd_create 319  memfd_secret 447  shmget 29  fcntl 72
"""
_AARCH64 = """
    execve 221  execveat 281  clone 220  clone3 435  unshare 97  setns 268
    kill 129  tkill 130  tgkill 131  rt_sigqueueinfo 138  rt_tgsigqueueinfo 240  pidfd_send_signal 424  pidfd_getfd 438
    ptrace 117  process_vm_readv 270  process_vm_writev 271  prlimit64 261  socket 198  io_uring_setup 425
    bpf 280  perf_event_open 241  userfaultfd 282  keyctl 219  add_key 217  request_key 218  open_by_handle_at 265
    memfd_create 279  memfd_secret 447  shmget 194  fcntl 25
"""
MACHINES = {"x86_64": (0xC000003E, _X86_64), "aarch64": (0xC00000B7, _AARCH64)}

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # classic BPF
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_CLONE_THREAD = 0x10000
_SET_OWNER, _SET_SIGNAL, _SET_OWNER_EX = 8, 10, 15  # of fcntl: whom the kernel signals when a file is ready, and how
_X32 = 0x40000000  # x86-64 calls in their 32-bit form: other numbers for the same calls


def syscall_filter(machine: str) -> list[tuple[int, int, int, int]]:
    """The seccomp program, as (code, jump if true, jump if false, operand): refused calls fail, threads may start."""
    architecture, table = MACHINES[machine]
    words = table.split()
    number = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    rules = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL)]
    rules += [(_LOAD, 0, 0, 0), (_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    for name in REFUSED:
        if name in number:
            rules += [(_EQUAL, 0, 1, number[name]), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    rules += [(_EQUAL, 0, 6, number["fcntl"]), (_LOAD, 0, 0, 24), (_EQUAL, 2, 0, _SET_OWNER)]
    rules += [(_EQUAL, 1, 0, _SET_SIGNAL), (_EQUAL, 0, 1, _SET_OWNER_EX)]
    rules += [(_RETURN, 0, 0, _ERRNO | _EPERM), (_RETURN, 0, 0, _ALLOW)]
    # The flags of clone3 lie behind a pointer that no filter sees: without it the C library falls back to clone.
    rules += [(_EQUAL, 0, 1, number["clone3"]), (_RETURN, 0, 0, _ERRNO | _ENOSYS)]
    rules += [(_EQUAL, 0, 3, number["clone"]), (_LOAD, 0, 0, 16), (_ANY_BIT, 1, 0, _CLONE_THREAD)]
    return [*rules, (_RETURN, 0, 0, _ERRNO | _EPERM), (_RETURN, 0, 0, _ALLOW)]


# --------------------------------------------------------------------------- Linux, through ctypes

_SET_PDEATHSIG, _SET_DUMPABLE, _SET_SECCOMP, _SET_NO_NEW_PRIVILEGES = 1, 4, 22, 38
# CLONE_NEWUSER, _NEWNS (mounts), _NEWPID, _NEWNET, _NEWIPC, _NEWUTS (host name)
_NEW_NAMESPACES = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000
_NOSUID_NODEV_NOEXEC, _PRIVATE, _RECURSIVE_MOUNT = 2 | 4 | 8, 1 << 18, 1 << 14
_MOUNT_SETATTR, _AT_RECURSIVE, _READ_ONLY_NOSUID_NODEV = 442, 0x8000, 1 | 2 | 4


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _prctl(option: int, *arguments: int | ctypes.Array) -> None:
    padded = [*arguments, *[0] * (4 - len(arguments))]
    wrapped = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in padded]
    _check(_libc().prctl(ctypes.c_int(option), *wrapped), f"prctl {option}")


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process as soon as its parent is gone. ``parent`` as seen from here."""
    if sys.platform == "linux":
        _prctl(_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def enter_namespaces(folder: str, disk_bytes: int, hidden: Sequence[str]) -> None:
    """New user, mount, process, network, IPC and host name spaces; the whole file tree read-only but for ``folder``.

    ``folder`` becomes a memory file system of ``disk_bytes``, the ``hidden`` folders are empty. Children of this
    process, not itself, are in the new process space.
    """
    libc, user, group = _libc(), os.getuid(), os.getgid()
    _check(libc.unshare(_NEW_NAMESPACES), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {user} 1"), ("gid_map", f"1000 {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)

    def mount(kind: bytes | None, where: str, flags: int, options: bytes | None = None) -> None:
        _check(libc.mount(kind, where.encode(), kind, ctypes.c_ulong(flags), options), f"mount {where}")

    mount(None, "/", _RECURSIVE_MOUNT | _PRIVATE)
    attributes = struct.pack("4Q", _READ_ONLY_NOSUID_NODEV, 0, 0, 0)
    arguments = (ctypes.c_long(_MOUNT_SETATTR), ctypes.c_int(-100), b"/", ctypes.c_uint(_AT_RECURSIVE))
    _check(libc.syscall(*arguments, attributes, ctypes.c_size_t(len(attributes))), "read-only root")
    mount(b"tmpfs", folder, _NOSUID_NODEV_NOEXEC, f"size={disk_bytes},nr_inodes=256,mode=0700".encode())
    for empty in ("/proc", *hidden):  # nobody's environment to read, and no tests
        mount(b"tmpfs", empty, _NOSUID_NODEV_NOEXEC | 1, b"size=4096,nr_inodes=1")


def give_up_privileges() -> None:
    """No capability, none to be gained, no core or memory of this process for others, and the refused system calls."""
    header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
    _check(_libc().capset(header, none), "capset")
    _prctl(_SET_NO_NEW_PRIVILEGES, 1)
    _prctl(_SET_DUMPABLE, 0)
    rules = syscall_filter(os.uname().machine)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rules), ctypes.addressof(code)))
    _prctl(_SET_SECCOMP, 2, program)


def set_limits(limits: dict, level: str) -> None:
    """Resource limits of the runner. None can be raised again."""
    chosen = {
        "RLIMIT_AS": limits["memory_bytes"],
        "RLIMIT_CPU": max(1, math.ceil(limits["cpu_seconds"])),
        "RLIMIT_FSIZE": limits["disk_bytes"],
        "RLIMIT_NOFILE": limits["open_files"],
        "RLIMIT_CORE": 0,
    }
    if level == "limits":
        # Neither processes nor threads. Root is not bound by it: that is why root is refused this level.
        chosen["RLIMIT_NPROC"] = 0
    for name, value in chosen.items():
        resource.setrlimit(getattr(resource, name), (value, value))


# --------------------------------------------------------------------------- the processes

REPORT, INLET, OUTLET = 3, 4, 5  # descriptors of a runner
READY = b"ready\n"  # a runner's first report; what it says later is not the sandbox's word


def run(source: str, nonce: bytes) -> None:
    """Execute the program as the module ``candidate`` and report on the pipe; never returns."""
    write, leave = os.write, os._exit  # the program may put others in their place
    try:
        exec(compile(source, "candidate.py", "exec"), _module("candidate"))
    except MemoryError:
        write(REPORT, b"memory MemoryError")
    except BaseException as error:  # SystemExit and KeyboardInterrupt are failures, too
        write(REPORT, b"failed " + _describe(error))
    else:
        write(REPORT, nonce)
    leave(0)


def run_candidate(source: str, calls: types.ModuleType) -> None:
    """Execute the program, then answer the judge's calls; never returns."""
    names, failure = _module("candidate"), None
    try:
        exec(compile(source, "candidate.py", "exec"), names)
    except BaseException as error:
        failure = error
    calls.serve(names, failure, calls.Line(INLET, OUTLET))
    os._exit(0)


def run_judge(tests: str, nonce: bytes, calls: types.ModuleType) -> None:
    """Execute the tests and report on the pipe; never returns."""
    try:
        exec(compile(tests, "tests.py", "exec"), calls.Names(calls.Line(INLET, OUTLET)))
    except MemoryError:
        os.write(REPORT, b"memory MemoryError")
    except (EOFError, BrokenPipeError):
        os.write(REPORT, b"gone")
    except BaseException as error:
        os.write(REPORT, b"failed " + _describe(error))
    else:
        os.write(REPORT, nonce)
    os._exit(0)


def _module(name: str) -> dict:
    """The globals of a new module of that name."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    return module.__dict__


def _describe(error: BaseException) -> bytes:
    """One line, at most 300 bytes; the text of an error is itself the program's code."""
    name = type.__getattribute__(type(error), "__name__")
    try:
        text = " ".join(str(error).split())
    except BaseException:
        text = ""
    line = f"{name}: {text}" if text else f"{name}"
    return line.encode("utf-8", "backslashreplace")[:300]


def fork_runner(task: dict, sink: int, pipes: Sequence[int], body: Callable[[], None]) -> int:
    """A child that prepares, then runs ``body``: its process number. Up to the program's start, failures are the sandbox's.

    ``pipes`` become its descriptors REPORT and, of two runners, INLET and OUTLET.
    """
    keeper = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        # From inside a new process space the keeper is not to be seen: its number there is 0.
        die_with_parent(0 if task["level"] == "namespaces" else keeper)
        for standard in (0, 1, 2):
            os.dup2(sink, standard)
        aside = [fcntl.fcntl(pipe, fcntl.F_DUPFD, 100) for pipe in pipes]
        for place, pipe in enumerate(aside, REPORT):
            os.dup2(pipe, place)
        os.closerange(REPORT + len(pipes), 4096)
        os.setpgid(0, 0)
        os.chdir(task["folder"])
        set_limits(task["limits"], task["level"])
        if task["level"] != "limits":
            give_up_privileges()
        os.write(REPORT, READY)
    except BaseException as error:
        os.write(REPORT, b"sandbox " + _describe(error))
        os._exit(0)
    try:
        body()
    finally:
        os._exit(1)


def wait(child: int, seconds: float) -> tuple[int, float] | None:
    """(wait status, CPU seconds) of the runner; None when it had to be killed after ``seconds`` of wall time."""
    deadline, pause = time.monotonic() + seconds, 0.0005
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return status, usage.ru_utime + usage.ru_stime
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.wait4(child, 0)
            return None
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)


def verdict(ended: tuple[int, float] | None, said: bytes, nonce: bytes, limits: dict) -> tuple[str, str]:
    """(status, detail) from how the runner ended and what it reported."""
    if ended is None:
        return "timeout", f"stopped after {limits['wall_seconds']:g} s of wall time"
    status, cpu = ended
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number in (signal.SIGXCPU, signal.SIGKILL) and cpu >= 0.9 * limits["cpu_seconds"]:
            return "timeout", f"stopped after {limits['cpu_seconds']:g} s of CPU time"
        return "crashed", f"killed by {signal.Signals(number).name}"
    if not said.startswith(READY):
        return "sandbox", said.decode("utf-8", "replace").partition(" ")[2] or "the program did not start"
    said = said.removeprefix(READY)
    if said == nonce:
        return "passed", ""
    word, _, detail = said.decode("utf-8", "replace").partition(" ")
    if word in ("failed", "memory"):
        return word, detail
    return "crashed", f"left with exit code {os.WEXITSTATUS(status)} before the tests had ended"


def keep(task: dict, more: Callable[[], dict]) -> tuple[str, str]:
    """Set up the level, fork the runner or runners, see them to their end. ``more()``: what only the judge may know."""
    sink = os.open(os.devnull, os.O_RDWR)  # before the file tree loses its devices
    calls = _calls()
    if task["level"] == "namespaces":
        try:
            enter_namespaces(task["folder"], task["limits"]["disk_bytes"], task["hidden"])
        except OSError as error:
            return "sandbox", str(error)
    if sys.platform == "linux":
        _prctl(_SET_DUMPABLE, 0)  # the tests are in this process's memory
    return _keep_pair(task, sink, calls, more) if task["tested"] else _keep_one(task, sink)


def _calls() -> types.ModuleType:
    """harness/sandbox_call.py, which this isolated interpreter does not find by its name."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sandbox_call.py")
    spec = importlib.util.spec_from_file_location("sandbox_call", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _keep_one(task: dict, sink: int) -> tuple[str, str]:
    nonce = secrets.token_hex(16).encode()
    inlet, outlet = os.pipe()
    child = fork_runner(task, sink, [outlet], lambda: run(task["source"], nonce))
    os.close(outlet)
    ended = wait(child, task["limits"]["wall_seconds"])
    return verdict(ended, _said(inlet), nonce, task["limits"])


def _keep_pair(task: dict, sink: int, calls: types.ModuleType, more: Callable[[], dict]) -> tuple[str, str]:
    limits = task["limits"]
    first = _first_process() if task["level"] == "namespaces" else None
    of_candidate, from_candidate = os.pipe()
    asked, asks = os.pipe()
    answered, answers = os.pipe()
    own = [from_candidate, asked, answers]
    candidate = fork_runner(task, sink, own, lambda: run_candidate(task["source"], calls))
    tests = more()["tests"]  # read only now: the candidate has no copy
    nonce = secrets.token_hex(16).encode()
    of_judge, from_judge = os.pipe()
    judge = fork_runner(task, sink, [from_judge, answered, asks], lambda: run_judge(tests, nonce, calls))
    for pipe in (*own, asks, answered, from_judge):
        os.close(pipe)
    ended, said = wait(judge, limits["wall_seconds"]), _said(of_judge)
    hung_up = said == READY + b"gone"
    over, confessed = wait(candidate, 0.5 if hung_up else 0.0), _said(of_candidate)
    if first is not None:
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
    if hung_up and over is None:
        return "crashed", "hung up before the tests had ended"
    stopped = over is not None and os.WIFSIGNALED(over[0]) and ended is not None and said != READY + nonce
    if hung_up or stopped or confessed.startswith(b"sandbox "):
        return verdict(over, confessed, nonce, limits)
    return verdict(ended, said, nonce, limits)


def _first_process() -> int:
    """An idle first process of the new process space: the kernel ends all others with it, so it must be no runner."""
    child = os.fork()
    if child == 0:
        die_with_parent(0)
        while True:
            signal.pause()
    return child


def _said(pipe: int) -> bytes:
    os.set_blocking(pipe, False)
    try:
        return os.read(pipe, 4096)
    except BlockingIOError:
        return b""


def frame() -> dict:
    """The next part of the task from standard input: eight hexadecimal digits of length, then JSON. Reads no byte more."""
    return json.loads(_exactly(int(_exactly(8), 16)))


def _exactly(count: int) -> bytes:
    parts = []
    while count:
        part = os.read(0, count)
        if not part:
            raise EOFError("the task is cut off")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    json.dump(keep(frame(), frame), sys.stdout)
