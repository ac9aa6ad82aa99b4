"""A stage that behaves as its first argument says, for tests of the supervisor: ``main([mode, record, ...])``."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

from harness import record


def main(argv: list[str]) -> int | None:
    mode, path, *rest = argv
    return globals()[f"_{mode}"](Path(path), *rest)


def _write(path: Path, **more: object) -> None:
    record.write(path, {"stage": "toy", "key": "k", "status": "ok", "pid": os.getpid(), **more})


def _ok(path: Path, *argv: str) -> None:
    print("toy output")
    _write(path, argv=list(argv), environment=dict(os.environ), first=sys.path[0], folder=os.getcwd())


def _slow(path: Path, seconds: str, started: str = "") -> None:
    """Takes its time; notes each start on a line of ``started``."""
    if started:
        with open(started, "a", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
    time.sleep(float(seconds))
    _write(path)


def _plugin(path: Path, plugin: str) -> None:
    """Calls ``attach`` of a file in methods/."""
    spec = importlib.util.spec_from_file_location("tuning_fork_methods.broken", plugin)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.attach()


def _defect(path: Path) -> None:
    raise KeyError("a defect of ours")


def _mistake(path: Path) -> None:
    from harness.failures import UserError

    raise UserError("suite.yaml: steps: -3 is negative. Give a positive number.")


def _silent(path: Path) -> None:
    """Ends well and leaves no record."""


def _die(path: Path, name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))
    time.sleep(10)


def _die_after(path: Path) -> None:
    _write(path)
    os.kill(os.getpid(), signal.SIGSEGV)


def _segfault(path: Path) -> None:
    ctypes.string_at(0)


def _grow(path: Path, megabytes: str) -> None:
    held = []
    for _ in range(int(megabytes)):
        held.append(b"x" * 1_000_000)
        time.sleep(0.001)
    time.sleep(20)


def _child_grows(path: Path, megabytes: str) -> None:
    """A grandchild in a session of its own holds the memory."""
    import subprocess

    code = f"x = b'x' * {int(megabytes)}_000_000; import time; time.sleep(20)"
    subprocess.run([sys.executable, "-c", code], start_new_session=True)


def _no_memory(path: Path) -> None:
    raise MemoryError("Unable to allocate 9.0 PiB")


def _checkpoint(path: Path, marker: str) -> int:
    """Trains until SIGTERM, then writes a checkpoint; a second start ends well."""
    if Path(marker).exists():
        _write(path, resumed=True)
        return 0
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    print("training", flush=True)
    while not stop:
        time.sleep(0.01)
    Path(marker).write_text("step 7")
    return 75


def _stubborn(path: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("training", flush=True)
    time.sleep(30)


def _big_file(path: Path) -> None:
    with open(path.with_name("weights"), "wb") as file:
        for _ in range(64):
            file.write(b"x" * 1_000_000)
    _write(path)


def _torch(path: Path, seed: str) -> None:
    """A few steps of training; the losses as hexadecimal digits, to the last bit."""
    import numpy
    import torch

    torch.manual_seed(int(seed))
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(model(torch.randn(96, 64)), torch.randint(10, (96,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item().hex())
    facts = {"threads": torch.get_num_threads(), "hash": hash("x"), "flags": sys.flags.hash_randomization}
    _write(path, losses=losses, **facts, dot=float(numpy.ones(999) @ numpy.sqrt(numpy.arange(999.0))).hex())
