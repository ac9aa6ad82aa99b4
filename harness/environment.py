"""The Python to run with: the active environment if it has what is pinned, else ``.venv``, made where needed.

``python3 -m harness.environment`` prints its path. Runs on a bare Python: standard library only.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
PROJECT = ROOT / "pyproject.toml"
OLDEST = (3, 11)
FIND = """
import importlib.metadata as m, sys
for pin in sys.argv[1:]:
    name, version = pin.split("==")
    try:
        found = m.version(name).split("+")[0]
    except m.PackageNotFoundError:
        found = None
    if found != version:
        print(pin)
"""


def pins() -> list[str]:
    """The pins of pyproject.toml, those of the tests included."""
    import tomllib

    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    return project["dependencies"] + project["optional-dependencies"]["test"]


def missing(python: str) -> list[str]:
    """Pins that an environment does not have in that version (a build's suffix such as +cu128 does not count)."""
    done = subprocess.run([python, "-c", FIND, *pins()], capture_output=True, text=True)
    return done.stdout.split() if done.returncode == 0 else [done.stderr.strip() or "a working Python"]


def active() -> str | None:
    """The active environment's Python, if there is one and it has every pin."""
    name = os.environ.get("VIRTUAL_ENV") or os.environ.get("CONDA_PREFIX")
    python = os.path.join(name, "bin", "python") if name else ""
    if not os.path.exists(python):
        return None
    lacks = missing(python)
    if lacks:
        more = f" and {len(lacks) - 3} more" if len(lacks) > 3 else ""
        say(f"the active environment {name} lacks {', '.join(lacks[:3])}{more}: using .venv instead")
        return None
    return python


def own() -> str:
    """The Python of ``.venv``, which is made, and filled from requirements.lock, once for each content of that file."""
    folder = ROOT / ".venv"
    python, stamp = folder / "bin" / "python", folder / "installed"
    wanted = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # `make run` and `make test` at once install once
        if python.exists() and stamp.exists() and stamp.read_text(encoding="ascii") == wanted:
            return str(python)
        say(f"making the environment {folder} (once; a few minutes, about 2.5 GB)")
        run([sys.executable, "-m", "venv", str(folder)], "On Debian and Ubuntu: apt install python3-venv.")
        pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
        help_pip = "Check the network and the free space, then run the same command: pip goes on with what it has."
        # torch alone first: its own wheel decides which CUDA libraries, if any, this machine needs.
        torch = next(line for line in LOCK.read_text(encoding="utf-8").splitlines() if line.startswith("torch=="))
        run([*pip, torch], help_pip)
        run([*pip, "-r", str(LOCK)], help_pip)
        stamp.write_text(wanted, encoding="ascii")
    return str(python)


def run(command: list[str], remedy: str) -> None:
    """Run a step, its output on the terminal; end with the remedy if it fails."""
    done = subprocess.run(command, stdout=sys.stderr, cwd=str(ROOT))
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nended with exit {done.returncode}. {remedy}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    if sys.version_info < OLDEST:
        version = ".".join(map(str, sys.version_info[:3]))
        sys.exit(f"Python {version} is too old: Tuning Fork needs 3.11 or newer. Name one: make run PYTHON=python3.12")
    if shutil.which("git") is None:
        say("git is not installed: records will not name the commit they come from")
    print(active() or own())
    return 0


if __name__ == "__main__":
    sys.exit(main())
