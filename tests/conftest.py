"""One thread for every test and every process that a test starts: tiny models gain nothing from more, and two processes
of two threads each on two cores run six times slower than two of one. And what tests of the sandbox share."""

import os
import signal
import tempfile

import pytest

from harness import sandbox
from tests.programs import TIGHT, keepers_of

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell that starts the tests in the background asks for that
    signal.signal(signal.SIGINT, signal.default_int_handler)  # and a process that a test starts would inherit it


@pytest.fixture(params=[level for level in sandbox.LEVELS if level != "limits" or os.geteuid() != 0])
def level(request):
    """A level of the sandbox that this machine has."""
    try:
        assert sandbox.run_program("", TIGHT, request.param).status == "passed"
    except sandbox.SandboxError as error:
        pytest.skip(f"NOT RUN: {error}")
    return request.param


@pytest.fixture
def nothing_is_left_behind(tmp_path_factory, monkeypatch):
    """No directory and no process of a program after the test."""
    folder = tmp_path_factory.mktemp("programs")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert not list(folder.iterdir())
    assert not keepers_of(os.getpid())
