"""The sandbox: programs that behave, and programs that do not, at every level that this machine has."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from harness import sandbox, sandbox_child
from harness.plugins import ROOT
from harness.sandbox import SandboxError, run_program, run_programs, strongest_level
from tests.programs import BRIEF, TIGHT, keepers_of

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="NOT RUN: the sandbox's levels are Linux's"),
    pytest.mark.usefixtures("nothing_is_left_behind"),
]


# --------------------------------------------------------------------------- programs that behave


def test_a_program_passes_by_reaching_its_end(level):
    outcome = run_program("import math, heapq, re, typing\nassert math.sqrt(4) == 2", TIGHT, level)
    assert (outcome.status, outcome.detail, outcome.level) == ("passed", "", level)
    assert 0 < outcome.seconds < 20


def test_a_failure_names_its_error(level):
    outcome = run_program("assert 1 == 2, 'one is\\nnot two'", TIGHT, level)
    assert (outcome.status, outcome.detail) == ("failed", "AssertionError: one is not two")
    assert run_program("def f(:", TIGHT, level).detail.startswith("SyntaxError")


def test_dataclasses_and_pickle_find_their_module(level):
    source = "from __future__ import annotations\nimport dataclasses, pickle\n"
    source += "@dataclasses.dataclass\nclass A:\n    x: int = 1\nassert pickle.loads(pickle.dumps(A(2))) == A(2)"
    assert run_program(source, TIGHT, level).status == "passed"


def test_the_order_of_a_set_is_the_same_in_every_run(level):
    order = "assert list({'apple', 'pear', 'plum', 'fig', 'lime'}) == %s"
    wrong = [run_program(order % "0", TIGHT, level).status for _ in range(2)]
    assert wrong == ["failed", "failed"]
    source = "import sys\nraise ValueError(list({'apple', 'pear', 'plum', 'fig', 'lime'}))"
    assert len({run_program(source, TIGHT, level).detail for _ in range(4)}) == 1


def test_it_may_write_in_its_directory_which_is_empty(level):
    source = (
        "import os\nassert os.listdir() == []\nopen('a', 'w').write('x' * 1000)\nassert open('a').read() == 'x' * 1000"
    )
    assert run_program(source, TIGHT, level).status == "passed"


def test_it_sees_none_of_the_environment_and_nothing_installed(level, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "t0ken")
    known = {"PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "LANG", "LC_CTYPE"}
    assert run_program(f"import os\nassert set(os.environ) <= {known}, os.environ", TIGHT, level).status == "passed"
    assert run_program("import numpy", TIGHT, level).detail.startswith("ModuleNotFoundError")
    assert run_program("import harness", TIGHT, level).detail.startswith("ModuleNotFoundError")
    assert run_program("import sys\nassert sys.stdin.read() == ''", TIGHT, level).status == "passed"


def test_threads_may_start_where_seccomp_tells_them_from_processes():
    if strongest_level() == "limits":
        pytest.skip("NOT RUN: no seccomp on this machine")
    source = "import threading\nt = threading.Thread(target=int)\nt.start()\nt.join()"
    assert run_program(source, TIGHT).status == "passed"


def test_many_programs_in_order():
    sources = ["pass", "1 / 0", "pass", "assert False"]
    expected = ["passed", "failed", "passed", "failed"]
    assert [o.status for o in run_programs(sources, TIGHT)] == expected
    assert [o.status for o in run_programs(sources, TIGHT, workers=2)] == expected


# --------------------------------------------------------------------------- programs that do not

LOUD = "import sys\nwhile True: sys.stdout.write('x' * 65536); sys.stderr.write('y' * 65536)"
FILL = "n = 0\nwhile n < 400: open(f'f{n}', 'wb').write(bytes(1 << 16)); n += 1"
DEEP = "import os\nfor _ in range(%d):\n    os.mkdir('d')\n    os.chdir('d')"
FORKS = """
import os, signal, subprocess, time
made = 0
spawn = lambda: os.posix_spawn('/bin/sleep', ['sleep', '60'], {})
for attempt in (os.fork, os.forkpty, lambda: subprocess.Popen(['sleep', '60']).pid, spawn):
    try:
        child = attempt()
    except OSError:
        continue
    made += 1
    if child == 0:
        os.setsid()
        time.sleep(60)
        os._exit(0)
assert made
"""


def test_it_cannot_pass_by_leaving(level):
    outcome = run_program("import os\nos._exit(0)\nassert False", TIGHT, level)
    assert outcome.status == "crashed" and "before the tests had ended" in outcome.detail
    assert run_program("import sys\nsys.exit(0)", TIGHT, level).detail == "SystemExit: 0"
    assert run_program("raise KeyboardInterrupt", TIGHT, level).status == "failed"
    assert run_program("import atexit, os\natexit.register(os._exit, 0)\nassert False", TIGHT, level).status == "failed"


def test_infinite_loop_and_sleep_end_at_their_limits(level):
    busy = run_program("while True: pass", TIGHT, level)
    assert busy.status == "timeout" and "CPU" in busy.detail
    idle = run_program("import time\nwhile True:\n try: time.sleep(60)\n except BaseException: pass", BRIEF, level)
    assert idle.status == "timeout" and "wall" in idle.detail and idle.seconds < 10
    stubborn = "import signal\nfor n in range(1, 30):\n try: signal.signal(n, signal.SIG_IGN)\n except OSError: pass\n"
    assert run_program(stubborn + "while True: pass", TIGHT, level).status == "timeout"


def test_no_process_can_be_started(level):
    outcome = run_program(FORKS, TIGHT, level)
    assert (outcome.status, outcome.detail) == ("failed", "AssertionError")  # not one of its attempts made a process


def test_memory_ends_at_its_limit(level):
    assert run_program("x = []\nwhile True: x.append(bytearray(1 << 20))", TIGHT, level).status == "memory"
    caught = "x = []\ntry:\n while True: x.append(bytearray(1 << 20))\nexcept MemoryError:\n x = None"
    assert run_program(caught, TIGHT, level).status == "passed"


def test_a_file_ends_at_its_limit(level):
    outcome = run_program("open('f', 'wb').write(bytes(8 << 20))", TIGHT, level)
    assert outcome.status == "failed" and outcome.detail.startswith("OSError")


def test_the_disk_cannot_be_filled():
    need("namespaces")
    outcome = run_program(FILL, TIGHT, "namespaces")
    assert "No space left" in outcome.detail
    many = run_program("n = 0\nwhile True: open(f'f{n}', 'w'); n += 1", TIGHT, "namespaces")
    assert "No space left" in many.detail


def test_output_is_discarded(level):
    assert run_program(LOUD, TIGHT, level).status == "timeout"
    assert run_program("print('x' * 1000000)", TIGHT, level).status == "passed"


def test_what_it_writes_on_other_descriptors_is_no_verdict(level):
    forged = "import os\nfor fd in range(3, 32):\n try: os.write(fd, b'passed')\n except OSError: pass\nos._exit(0)"
    assert run_program(forged, TIGHT, level).status == "crashed"
    flooded = (
        "import os\nfor fd in range(3, 32):\n try:\n  while True: os.write(fd, bytes(65536))\n except OSError: pass"
    )
    assert run_program(flooded, BRIEF, level).status in ("timeout", "crashed")
    assert run_program("import os\nos.closerange(0, 32)", TIGHT, level).status == "crashed"


@pytest.mark.parametrize("strong", ["namespaces", "seccomp"])
def test_no_network_no_signals_no_privilege(strong):
    need(strong)
    connect = "import socket\nsocket.create_connection(('127.0.0.1', 9), timeout=1)"
    assert run_program(connect, TIGHT, strong).detail.startswith("PermissionError")
    assert run_program("import os\nos.kill(os.getppid(), 9)", TIGHT, strong).detail.startswith("PermissionError")
    by_the_kernel = "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, %s, %s)"
    for command, argument in (("fcntl.F_SETOWN", "os.getppid()"), ("fcntl.F_SETSIG", "9"), ("15", "bytes(8)")):
        assert run_program(by_the_kernel % (command, argument), TIGHT, strong).detail.startswith("PermissionError")
    assert run_program(by_the_kernel % ("fcntl.F_GETFD", "0"), TIGHT, strong).status == "passed"
    raise_limit = "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (60, 60))"
    assert run_program(raise_limit, TIGHT, strong).status == "failed"
    gain = "import ctypes\nassert ctypes.CDLL(None, use_errno=True).unshare(0x10000000) == 0"
    assert run_program(gain, TIGHT, strong).status == "failed"
    assert run_program("import os\nos.memfd_create('m')", TIGHT, strong).status == "failed"


def test_nothing_outside_can_be_written_and_no_process_seen(tmp_path):
    need("namespaces")
    victim = tmp_path / "victim"
    victim.write_text("whole")
    for attempt in (f"open({str(victim)!r}, 'w')", f"import os; os.remove({str(victim)!r})", "open('/dev/null', 'w')"):
        outcome = run_program(attempt, TIGHT, "namespaces")
        assert outcome.status == "failed" and outcome.detail.startswith(("OSError", "PermissionError")), attempt
    assert victim.read_text() == "whole"
    assert run_program("import os\nassert os.listdir('/proc') == []", TIGHT, "namespaces").status == "passed"
    for attempt in ("libc.umount(b'/proc')", "libc.mount(b'x', b'/tmp', b'tmpfs', 0, None)", "libc.chroot(b'/')"):
        source = f"import ctypes\nlibc = ctypes.CDLL(None)\nassert {attempt} == 0"
        assert run_program(source, TIGHT, "namespaces").detail == "AssertionError"


def test_the_parents_environment_is_not_to_be_read(level, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "t0ken")  # of this process, not of the keeper, which is the program's parent
    source = (
        "import os\ntry:\n text = open(f'/proc/{os.getppid()}/environ', 'rb').read()\nexcept OSError:\n text = b''\n"
    )
    assert run_program(source + "assert b't0ken' not in text", TIGHT, level).status == "passed"


def test_its_directory_goes_whatever_it_does_with_it(level):
    assert run_program("import os\ntry: os.rmdir(os.getcwd())\nexcept OSError: pass", TIGHT, level).status == "passed"
    run_program(DEEP % 1500, dataclasses.replace(TIGHT, cpu_seconds=2), level)
    run_program("import os\nos.mkdir('d')\nopen('d/f', 'w')\nos.chmod('d', 0)\nos.chmod('.', 0)", TIGHT, level)


def test_recursion_crashes_and_odd_sources(level):
    assert run_program("def f(): return f()\nf()", TIGHT, level).detail.startswith("RecursionError")
    deep = "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()\nf()"
    assert run_program(deep, TIGHT, level).status in ("memory", "crashed", "timeout")
    assert run_program("import ctypes\nctypes.string_at(0)", TIGHT, level).detail == "killed by SIGSEGV"
    assert run_program("a = 1\0", TIGHT, level).status == "failed"
    assert run_program("a = '\ud800'", TIGHT, level).status == "failed"
    assert run_program("(" * 100_000, TIGHT, level).status in ("failed", "crashed", "memory")
    long = dataclasses.replace(TIGHT, memory_bytes=1 << 30, cpu_seconds=4, wall_seconds=20)
    assert run_program("a = '" + "x" * 10_000_000 + "'", long, level).status == "passed"


def test_an_error_that_will_not_be_told(level):
    silent = "class E(Exception):\n def __str__(self): raise SystemExit\nraise E"
    assert (run_program(silent, TIGHT, level).status, run_program(silent, TIGHT, level).detail) == ("failed", "E")
    endless = "class E(Exception):\n def __str__(self):\n  while True: pass\nraise E"
    assert run_program(endless, TIGHT, level).status == "timeout"


# --------------------------------------------------------------------------- levels and survivors


def need(level: str) -> None:
    try:
        run_program("", TIGHT, level)
    except SandboxError as error:
        pytest.skip(f"NOT RUN: {error}")


def test_root_is_refused_the_level_that_does_not_bind_it():
    if os.geteuid() != 0:
        pytest.skip("NOT RUN: this is not root")
    with pytest.raises(SandboxError, match="refused to root"):
        run_program("", TIGHT, "limits")


def test_without_any_level_the_message_says_what_to_do(monkeypatch):
    def refused(source, limits, level):
        raise SandboxError(f"{level}: not here")

    monkeypatch.setattr(sandbox, "_run", refused)
    with pytest.raises(SandboxError, match="(?s)no sandbox.*namespaces: not here.*Allow unprivileged user namespaces"):
        strongest_level.__wrapped__()


def test_a_weaker_level_is_taken_and_told_where_the_strongest_fails(monkeypatch):
    run = sandbox._run

    def without_namespaces(source, limits, level):
        if level == "namespaces":
            raise SandboxError("namespaces: unshare: Operation not permitted")
        return run(source, limits, level)

    need("seccomp")
    monkeypatch.setattr(sandbox, "_run", without_namespaces)
    assert strongest_level.__wrapped__() == "seccomp"


def test_a_suite_may_demand_a_level(monkeypatch):
    monkeypatch.setattr(sandbox, "strongest_level", lambda: "seccomp")
    for floor in ("", "limits", "seccomp"):
        sandbox.require(floor)
    with pytest.raises(SandboxError, match="level namespaces or stronger .* this machine has seccomp at most"):
        sandbox.require("namespaces")


def test_level_limits_as_another_user():
    """Root runs this whole file again as nobody, at the one level that root is refused."""
    if os.geteuid() != 0:
        pytest.skip("NOT RUN: not root; the level runs in the other tests")
    if not shutil.which("setpriv"):
        pytest.skip("NOT RUN: no setpriv to become another user with")
    capabilities = "+dac_override,+dac_read_search"  # the interpreter may stand where only root can read
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", f"--inh-caps={capabilities}"]
    command += [f"--ambient-caps={capabilities}", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": folder}
        ended = subprocess.run(
            [*command, f"--basetemp={folder}/pytest", __file__, "-k", "limits] or another_user"],
            env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " passed" in ended.stdout and "failed" not in ended.stdout


def test_a_killed_harness_leaves_no_program_running():
    code = "from harness.sandbox import *; run_program('while True: pass', Limits(cpu_seconds=60, wall_seconds=60))"
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TMPDIR": folder}
        harness = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment)
        until(lambda: len(keepers_of(harness.pid)) == 2)  # keeper and runner
        harness.send_signal(signal.SIGKILL)
        harness.wait()
        until(lambda: not keepers_of(harness.pid))


def until(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("machine", sandbox_child.MACHINES)
def test_the_filter_refuses_what_it_should_and_allows_the_rest(machine):
    """The filter's own arithmetic, by a small interpreter of its few instructions."""
    architecture, table = sandbox_child.MACHINES[machine]
    words = table.split()
    numbers = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    rules = sandbox_child.syscall_filter(machine)

    def answer(number, argument=0, arch=architecture, second=0):
        data, place, held = {0: number, 4: arch, 16: argument, 24: second}, 0, 0
        while True:
            code, if_true, if_false, operand = rules[place]
            place += 1
            if code == 0x20:
                held = data[operand]
            elif code == 0x06:
                return operand
            else:
                holds = {0x15: held == operand, 0x35: held >= operand, 0x45: bool(held & operand)}[code]
                place += if_true if holds else if_false

    allowed, not_permitted, not_there, killed = 0x7FFF0000, 0x50001, 0x50000 | 38, 0x80000000
    for name, number in numbers.items():
        expected = {"clone3": not_there, "fcntl": allowed}.get(name, not_permitted)
        assert answer(number) == expected, name
    assert answer(numbers["clone"], 0x10000 | 0x100) == allowed
    commands = {command: answer(numbers["fcntl"], 3, second=command) for command in range(20)}
    assert {command for command, said in commands.items() if said == not_permitted} == {8, 10, 15}
    assert set(commands.values()) == {allowed, not_permitted}
    assert answer(0) == answer(9999) == allowed
    assert answer(0, arch=0x40000003) == answer(0x40000000) == killed
    assert set(numbers) >= set(sandbox_child.REFUSED) - ({"fork", "vfork"} if machine == "aarch64" else set())
