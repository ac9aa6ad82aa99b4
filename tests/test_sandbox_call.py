"""Tests that judge a program from a process of their own: what crosses between the two, and programs that cheat."""

from __future__ import annotations

import collections
import enum
import json
import math
import sys

import pytest

from harness import sandbox_call
from harness.sandbox import Limits, run_program
from tests.programs import BRIEF, TIGHT

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="NOT RUN: the sandbox's levels are Linux's"),
    pytest.mark.usefixtures("nothing_is_left_behind"),
]

TESTS = "assert add(1, 2) == 3\nassert add(5, 5) == 10"
RIGHT = "def add(a, b):\n    return a + b\n"


def judged(source, level, tests=TESTS, limits=TIGHT):
    return run_program(source, limits, level, tests)


# --------------------------------------------------------------------------- programs that behave


def test_a_right_program_passes_and_a_wrong_one_does_not(level):
    assert judged(RIGHT, level).status == "passed"
    wrong = judged("def add(a, b):\n    return 3\n", level)
    assert (wrong.status, wrong.detail) == ("failed", "AssertionError")
    assert judged(RIGHT, level, tests="").status == "passed"  # nothing was asked of it


def test_errors_of_the_program_are_raised_in_the_tests(level):
    caught = "try:\n    add(1, 2)\nexcept ValueError as error:\n    assert str(error) == 'no'\nelse:\n    assert False"
    assert judged("def add(a, b): raise ValueError('no')", level, caught).status == "passed"
    assert judged("def add(a, b): raise KeyError('k')", level).detail.startswith("KeyError")
    assert judged("class Odd(Exception): pass\ndef add(a, b): raise Odd('x')", level).detail == "RuntimeError: Odd: x"
    assert judged("1 / 0", level).detail == "ZeroDivisionError: division by zero"
    assert judged("def other(): pass", level).detail == "NameError: name 'add' is not defined"
    assert judged("def add(a, b): exit()", level).status == "failed"


def test_names_that_the_tests_define_are_theirs_and_remote_ones_are_asked_for(level):
    tests = "def add(a, b): return 0\nassert add(1, 2) == 0\nassert __remote__('add')(1, 2) == 3"
    assert judged(RIGHT, level, tests).status == "passed"
    inner = "def check(f):\n    assert f(1, b=2) == 3\n    assert [add(x, x) for x in (1, 2)] == [2, 4]\ncheck(add)"
    assert judged(RIGHT, level, inner).status == "passed"
    assert judged(RIGHT, level, "assert len([1]) == 1\nmissing_name(1)").detail.startswith("NameError")


def test_state_lives_between_calls(level):
    source = "kept = []\ndef add(a, b):\n    kept.append(a)\n    return len(kept)"
    assert judged(source, level, "assert [add(0, 0) for _ in range(3)] == [1, 2, 3]").status == "passed"


# --------------------------------------------------------------------------- what crosses

VALUES = [
    None, True, False, 0, -(10**4000), 3.5, -0.0, math.inf, 1e-310, 2 + 3j, "", "a\n\"\\ü\ud800", b"\x00\xff", [], [1, [2, (3,)]],
    (), (1, "a"), {1, 2}, set(), frozenset({3}), {}, {1: [2], "1": (3,), (1, 2): {4}}, {None: None},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda v: repr(v)[:20])
def test_plain_values_come_back_equal_and_of_the_same_type(value):
    back = sandbox_call.unpack(json.loads(json.dumps(sandbox_call.pack(value))))
    assert back == value and type(back) is type(value) and repr(back) == repr(value)


def test_not_a_number_crosses_too():
    assert math.isnan(sandbox_call.unpack(sandbox_call.pack(math.nan)))


def test_subclasses_cross_as_what_they_are_made_of():
    class Level(enum.IntEnum):
        LOW = 3

    Point = collections.namedtuple("Point", "x y")
    for value, plain in (
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.OrderedDict(a=1), {"a": 1}),
        (Point(1, 2), (1, 2)),
        (Level.LOW, 3),
    ):
        back = sandbox_call.unpack(sandbox_call.pack(value))
        assert back == plain and type(back) is type(plain)


@pytest.mark.parametrize("value", [object(), lambda: 0, iter([]), range(3), [object()], {1: print}, int])
def test_other_values_do_not_cross(value):
    with pytest.raises(sandbox_call.NotPlain, match="is no plain built-in value"):
        sandbox_call.pack(value)


@pytest.mark.parametrize("packed", [1, [1], {}, {"x": 1}, {"i": "1", "f": "2"}, {"l": [1]}, 1.5])
def test_what_is_no_packed_value_is_refused(packed):
    with pytest.raises(sandbox_call.NotPlain):
        sandbox_call.unpack(packed)


# --------------------------------------------------------------------------- programs that cheat

YES = """
class Yes(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __int__(self): return 7
    def __index__(self): return 7
def add(a, b): return Yes()
"""
LIST_OF_YES = YES + "def add(a, b): return [Yes()]"
BROTHER = """
import sys, builtins, unittest, operator
def yes(*_, **__): return True
builtins.all = builtins.isinstance = builtins.any = yes
operator.eq = yes
unittest.TestCase.assertEqual = yes
sys.settrace(lambda *_: None)
sys.excepthook = yes
class AssertionError(Exception): pass
builtins.AssertionError = AssertionError
def add(a, b): return 0
"""
SEARCH = """
import gc, sys
ASKED = ''.join(['assert ', 'add(5'])  # not in this program's own text
def add(a, b):
    for thing in gc.get_objects():
        if isinstance(thing, str) and thing is not ASKED and ASKED in thing:
            return 3 if a == 1 else 10
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
            if isinstance(value, str) and value is not ASKED and ASKED in value:
                return 3 if a == 1 else 10
        frame = frame.f_back
    return 0
"""
MEMORY = """
import ctypes
ASKED = b' add'.join([b'assert', b'(5'])
def add(a, b):
    for line in open('/proc/self/maps'):
        first, last = (int(x, 16) for x in line.split()[0].split('-'))
        if ' rw' in line and '[v' not in line and ctypes.string_at(first, last - first).count(ASKED) > 1:
            return 3 if a == 1 else 10
    return 0
"""
FORGED = """
def add(a, b):
    for fd in range(3, 32):
        try: os.write(fd, b'passed')
        except OSError: pass
    return 0
"""
FORGED_ANSWERS = """
for fd in range(3, 32):
    try: os.write(fd, b'{"value": {"i": "0x3"}}\\n' * 9)
    except OSError: pass
def add(a, b): return 0
"""
STUBBORN = "import signal\nfor n in range(1, 30):\n try: signal.signal(n, signal.SIG_IGN)\n except OSError: pass\n"

CHEATS = {
    "an object equal to everything": YES,
    "a list of them": LIST_OF_YES,
    "patched comparison, unittest and builtins": BROTHER,
    "a search for the tests in its objects": SEARCH,
    "a search for them in its memory": MEMORY,
    "a forged verdict": FORGED,
    "forged answers": FORGED_ANSWERS,
    "leaving at once": "import os\nos._exit(0)",
    "leaving politely": "import sys\nsys.exit(0)",
    "leaving when asked": "import os\ndef add(a, b): os._exit(0)",
    "closing every pipe": "import os\nos.closerange(0, 32)\ndef add(a, b): return 3",
    "garbage on the pipe": "import os\ndef add(a, b):\n    os.write(5, b'\\xff{]\\n')\n    return 3",
    "an answer that is no value": 'import os\ndef add(a, b):\n    os.write(5, b\'{"value": {"x": 1}}\\n\')',
    "an error of no name": "import os\ndef add(a, b):\n    os.write(5, b'{\"raise\": [[], 1]}\\n')",
    "an answer a million deep": "import os\ndef add(a, b):\n    os.write(5, b'{\"value\": ' + b'[' * 10**6 + b'\\n')",
    "killing the judge": "import os, signal\nos.kill(0, signal.SIGKILL)\ndef add(a, b): return 3",
    "an error without a text": "class E(Exception):\n def __str__(self): raise SystemExit\ndef add(a, b): raise E",
    "no function": "add = 3",
    "an end of iteration": "def add(a, b): raise StopIteration",
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_no_cheat_passes(cheat, level):
    outcome = judged(CHEATS[cheat], level)
    assert outcome.status in ("failed", "crashed"), outcome
    assert outcome.seconds < 10


def test_a_cheat_that_may_look_finds_what_it_looks_for():
    """The searches above would pass if the tests were in the program's own process."""
    for cheat in (SEARCH, MEMORY):
        names = {}
        exec(compile(cheat, "cheat.py", "exec"), names)
        known = [TESTS]
        assert names["add"](5, 5) == 10 and known


def test_a_forged_complaint_of_the_sandbox_is_no_error_of_ours(level):
    forged = "import os\nos.write(3, b'sandbox broken')\nos._exit(0)"
    assert judged(forged, level).status == run_program(forged, TIGHT, level).status == "crashed"


def test_an_answer_without_end_is_cut_off(level):
    flood = "import os\ndef add(a, b):\n while True: os.write(5, bytes(65536))"
    assert judged(flood, level, limits=Limits(cpu_seconds=4)).status == "failed"


def test_time_and_memory_of_the_program_are_told_as_its_own(level):
    assert judged("def add(a, b):\n while True: pass", level).status == "timeout"
    assert judged(STUBBORN + "def add(a, b):\n while True: pass", level).status == "timeout"
    assert judged("while True: pass", level).status == "timeout"
    sleeper = judged("import time\ndef add(a, b):\n while True: time.sleep(9)", level, limits=BRIEF)
    assert sleeper.status == "timeout" and "wall" in sleeper.detail and sleeper.seconds < 10
    assert judged("def add(a, b): return bytearray(1 << 30)", level).status == "memory"
    assert judged("import ctypes\ndef add(a, b): ctypes.string_at(0)", level).detail == "killed by SIGSEGV"


def test_a_program_may_not_outlive_its_tests(level):
    lingering = RIGHT + "import threading, time\nthreading.Thread(target=lambda: time.sleep(60)).start()"
    if level != "limits":
        assert judged(lingering, level).seconds < 10


def test_an_endless_test_ends_too(level):
    assert judged(RIGHT, level, "while True: pass").status == "timeout"


def test_tests_run_in_the_sandbox_as_well(level, tmp_path):
    if level == "namespaces":
        assert judged(RIGHT, level, f"open({str(tmp_path / 'f')!r}, 'w')").status == "failed"
    assert judged(RIGHT, level, "import os\nassert 'PATH' not in os.environ").status == "passed"
    assert judged(RIGHT, level, "import os\nos.fork()").status == "failed"


def test_an_end_of_iteration_ends_no_loop_of_the_tests(level):
    vacuous = "assert all(map(lambda x: add(x, x) == 2 * x, [1, 2]))"
    assert judged("def add(a, b): raise StopIteration", level, vacuous).status == "failed"


def test_the_benchmarks_files_are_not_to_be_read(tmp_path, monkeypatch, level):
    if level != "namespaces":
        pytest.skip("only namespaces hides files, as harness/sandbox.py says")
    (tmp_path / "assets" / "humaneval").mkdir(parents=True)
    (tmp_path / "assets" / "humaneval" / "test.jsonl").write_text("10")
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "test.jsonl").write_text("10")
    monkeypatch.setenv("TUNING_FORK_CACHE", str(tmp_path / "assets"))
    monkeypatch.setenv("TUNING_FORK_MIRROR", str(tmp_path / "mirror"))
    for file in (tmp_path / "assets" / "humaneval" / "test.jsonl", tmp_path / "mirror" / "test.jsonl"):
        peeking = f"def add(a, b):\n    return 3 if a == 1 else int(open({str(file)!r}).read())"
        outcome = judged(peeking, level)
        assert outcome.status == "failed" and outcome.detail.startswith("FileNotFoundError"), outcome
