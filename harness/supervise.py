"""Start a stage in a process of its own, watch it, and see to it that there is a record of what became of it.

``python -m harness.supervise train --record R/train.json --log R.log --threads 1 -- --suite quick --model M ...``

A stage writes its own record. What it cannot write is written here: out of memory, past the time limit, crashed, or
skipped because what it needs has failed. All of these are results, exit 0. An interruption leaves no record and exits
75; a defect exits 70, a mistake in the input 2, a full disk 74 (``harness.failures``). Imports no torch.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import BinaryIO

from harness import progress, warm
from harness import record as records
from harness.assets import other_data
from harness.child import ONLINE, ColdChild, stage_environment
from harness.failures import DEFECT, DISK_FULL, DONE, FULL, INTERRUPTED, MISTAKE, UserError, disk_full, write_row
from harness.processes import grace, kill_tree, memory_kills, resident_bytes, tree

STAGES = ("prepare", "tune", "train", "cost", "predict", "score")
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSYS, signal.SIGTRAP)
TICK = 0.25  # seconds between two looks at memory and clock


class Stopped(Exception):
    """A signal asked us to stop before the stage had been started."""


@dataclasses.dataclass
class End:
    """What became of a stage's process. ``code``: its exit code, negative for a signal."""

    code: int
    limit: tuple[str, str] | None = None  # (status, reason) when a limit ended it
    seconds: float = 0.0
    rss_peak: int = 0
    rss_last: int = 0
    pressed: bool = False  # the kernel has killed for memory meanwhile


def main(argv: list[str] | None = None) -> int:
    options = parse(sys.argv[1:] if argv is None else argv)
    supervisor = Supervisor(options)
    try:
        supervisor.grace = grace()
        return supervisor.run()
    except UserError as error:
        supervisor.say(str(error))
        return MISTAKE
    except Stopped:
        supervisor.say("interrupted before it started")
        return INTERRUPTED
    except OSError as error:
        if error.errno not in FULL:
            raise
        supervisor.say(f"{error}. {disk_full(options.record.parent)}")
        return DISK_FULL


def parse(argv: list[str]) -> argparse.Namespace:
    """Our arguments and, after ``--``, the stage's."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.supervise", description="Run a stage; record what becomes of it.", allow_abbrev=False
    )
    parser.add_argument("stage", help=f"{', '.join(STAGES)}, or the dotted name of a module with main(argv)")
    parser.add_argument("--record", type=Path, required=True, help="the record that the stage writes")
    parser.add_argument("--folder", type=Path, help="what is locked meanwhile (default: the record's folder)")
    parser.add_argument("--log", type=Path, help="where the stage's output goes (default: to the terminal)")
    parser.add_argument("--needs", type=Path, action="append", default=[], help="a record that must be ok")
    parser.add_argument("--identity", type=json.loads, default={}, help="JSON of fields for records written here")
    parser.add_argument("--memory-mb", type=float, help="resident memory of the stage and its children; more: oom")
    parser.add_argument("--wall-seconds", type=float, help="time for the stage, this attempt; more: timeout")
    parser.add_argument("--threads", type=int, help="threads of every numerical library")
    parser.add_argument("--cold", action="store_true", help="a new interpreter, not a fork of the warm server")
    split = argv.index("--") if "--" in argv else len(argv)
    options = parser.parse_args(argv[:split])
    if options.stage not in STAGES and "." not in options.stage:
        parser.error(f"no stage '{options.stage}'; there are {', '.join(STAGES)}")
    options.module = options.stage if "." in options.stage else f"harness.{options.stage}"
    options.stage = options.identity.pop("stage", options.stage.rpartition(".")[2])
    options.arguments = argv[split + 1 :]
    options.folder = options.folder or options.record.parent
    return options


class Supervisor:
    """One stage from start to end."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.child: ColdChild | warm.WarmChild | None = None
        self.stopping: float | None = None  # when the first signal to stop came
        self.grace = 0.0  # seconds
        suite = options.identity.get("suite")
        self.results = Path("results") / suite if suite else None

    # ------------------------------------------------------------ the course of things

    def run(self) -> int:
        """The exit code of this command."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup stays in force
                signal.signal(number, self._on_signal)
        options = self.options
        options.folder.mkdir(parents=True, exist_ok=True)
        with self._lock() as lock:
            if self._adopt():
                return DONE
            failed = self._failed_need()
            if failed:
                return self._result("skipped", failed)
            end = self._run_stage(lock)
            return self._conclude(end)

    @contextlib.contextmanager
    def _lock(self):
        """The folder's lock. The stage's process holds it too, so it lasts as long as either of us lives."""
        path = self.options.folder / ".lock"
        waited = False
        while True:
            lock = open(path, "a+b")  # noqa: SIM115
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waited = True
                self.say(f"waiting: {self.options.folder} is in use by {_holder(path)}")
                fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                break
            lock.close()  # the folder was deleted meanwhile, and perhaps made anew
            self.options.folder.mkdir(parents=True, exist_ok=True)
        self._sign(lock)
        if waited:
            self.say("the wait is over")
        with lock:
            yield lock

    def _adopt(self) -> bool:
        """Whether the record is there already, with this key: another process made it while we waited, or an earlier run
        whose Snakemake was killed before it took note, and which therefore deleted the record before this run."""
        key = self.options.identity.get("key")
        if key is None:
            return False
        if not self.options.record.is_file():
            self._restore_kept(key)
        with contextlib.suppress(ValueError, OSError):
            found = records.read(self.options.record)
            if found.get("key") == key:
                if old := other_data(found):
                    self.say(f"{self.options.record} is of other data ({old}): made anew")
                    return False
                self.say(f"{self.options.record} is there already, with the same key: taken as it is")
                return True
        return False

    def _restore_kept(self, key: str) -> None:
        """Put a kept record back: same key, later than all that it needs, its large files as it says."""
        kept = records.kept_name(self.options.record)
        with contextlib.suppress(ValueError, OSError):
            content = records.read(kept)
            made = records.made_at(kept, content)
            later = all(made >= records.made_at(need, records.read(need)) for need in self.options.needs)
            files = content.get("files", {}).values()
            whole = all((self.options.record.parent / f["file"]).stat().st_size == f["bytes"] for f in files)
            if content.get("key") == key and later and whole:
                os.link(kept, self.options.record)

    def _failed_need(self) -> str | None:
        """Why the stage need not start: "train oom: ...". A need that was skipped itself passes its own reason on."""
        for path in self.options.needs:
            if not path.is_file():
                raise UserError(f"{path} is needed and not there. Run the stage that writes it first.")
            try:
                content = records.read(path)
            except ValueError as error:
                raise UserError(str(error)) from None
            if content.get("status") == "skipped":
                return content.get("reason") or "what it needs was skipped"
            if content.get("status") not in ("ok", "judge_pending"):
                reason = content.get("reason")
                return f"{content.get('stage')} {content['status']}" + (f": {reason}" if reason else "")
        return None

    def _run_stage(self, lock: BinaryIO) -> End:
        """Start the stage and watch it until its process is gone."""
        options, kills, started = self.options, memory_kills(), time.monotonic()
        environment = stage_environment(options.stage, options.threads)
        job = {
            "stage": options.stage,
            "module": options.module,
            "argv": options.arguments,
            "record": str(options.record),
            "identity": options.identity,
        }
        before = _stamp(options.record)
        with self._output() as (out, err):
            descriptors = (out, err, lock.fileno())
            if not options.cold and options.stage not in ONLINE:
                self.child = warm.start(job, environment, descriptors)
            self.child = self.child or ColdChild(job, environment, descriptors)
        self._sign(lock)
        end = self._watch(started)
        end.seconds = time.monotonic() - started
        end.pressed = memory_kills() > kills
        if end.code < 0 and _stamp(options.record) not in (None, before):
            end.code = DONE  # it had written its record, then died on its way out
        return end

    def _watch(self, started: float) -> End:
        """Wait for the process; kill it past a limit, or when its grace is over."""
        child, limits, end = self.child, self.options, End(code=0)
        memory = (limits.memory_mb or 0) * 1e6
        while True:
            try:
                code = child.wait(TICK)
            except ConnectionError:  # the server died; its stages get SIGTERM from the kernel
                code = self._outlive(child.pid)
            if code is not None:
                end.code = code
                return end
            now = time.monotonic()
            end.rss_last = resident_bytes(tree(child.pid)) or end.rss_last
            end.rss_peak = max(end.rss_peak, end.rss_last)
            if end.limit is None and memory and end.rss_last > memory:
                used = f"used {end.rss_last / 1e6:,.0f} MB, the limit is {limits.memory_mb:,.0f} MB (memory_mb)"
                end.limit = ("oom", used)
            elif end.limit is None and limits.wall_seconds and now - started > limits.wall_seconds:
                end.limit = ("timeout", f"not done after {limits.wall_seconds:,.0f} s (wall limit)")
            if end.limit or (self.stopping and now - self.stopping > self.grace):
                kill_tree(child.pid)

    def _outlive(self, pid: int) -> int:
        """Wait until a process whose exit code is not to be had is gone; SIGTERM is what the kernel sent it."""
        deadline = time.monotonic() + self.grace
        while tree(pid):
            if time.monotonic() > deadline:
                kill_tree(pid)
            time.sleep(0.05)
        return -signal.SIGTERM

    # ------------------------------------------------------------ what it came to

    def _conclude(self, end: End) -> int:
        """Exit code for an end; writes the record where the stage could not."""
        options = self.options
        if end.code == DONE:
            if not options.record.is_file():
                self.say(f"defect: it ended well and wrote no {options.record}{self._see_log()}")
                return DEFECT
            return self._finish(end.seconds)
        if end.code == INTERRUPTED or (self.stopping and end.code < 0):
            self.say("interrupted; the same command goes on from the last checkpoint")
            return INTERRUPTED
        if end.code in (DISK_FULL, -signal.SIGXFSZ):
            self.say(disk_full(options.record.parent) + self._see_log())
            return DISK_FULL
        row = end.limit or self._row_of_signal(end)
        if row:
            return self._result(*row, end.seconds, end.rss_peak)
        if end.code < 0:
            self.say(f"ended by {_signal_name(-end.code)} from outside: taken as an interruption, to be tried again")
            return INTERRUPTED
        if end.code == MISTAKE:
            self.say(f"wrong input{self._tail(3)}")
            return MISTAKE
        self.say(f"defect, exit {end.code}{self._see_log()}{self._tail(12)}")
        return DEFECT

    def _row_of_signal(self, end: End) -> tuple[str, str] | None:
        """(status, reason) of a death by signal that is a result: a crash, or a kill for memory."""
        if -end.code in CRASHES:
            return "error", f"crashed with {_signal_name(-end.code)}{self._see_log()}"
        if -end.code == signal.SIGKILL:
            limit = (self.options.memory_mb or 0) * 1e6
            if limit and end.rss_last >= 0.9 * limit:
                return "oom", f"killed while it used {end.rss_last / 1e6:,.0f} MB of {limit / 1e6:,.0f} MB (memory_mb)"
            if end.pressed:
                return "oom", "killed by the kernel for want of memory"
        return None

    def _result(self, status: str, reason: str, seconds: float = 0.0, rss_peak: int = 0) -> int:
        """Write the record that the stage could not write."""
        options = self.options
        memory = {"memory": {"rss_peak_bytes": rss_peak}} if rss_peak else {}
        write_row(options.record, options.stage, options.identity, status, reason, seconds, options.threads, **memory)
        return self._finish(seconds)

    def _finish(self, seconds: float) -> int:
        """Tell that there is a record, and how far the suite is."""
        try:
            content = records.read(self.options.record)
        except ValueError:
            content = {}  # an asset's record is not of the schema
        content = {"stage": self.options.stage, **content}
        with contextlib.suppress(OSError):  # what is done is done, even if it cannot be told
            if self.results:
                progress.note(self.results, self.options.record, content, seconds)
            where = self.results or self.options.record.parent.parent
            print(progress.line(where, self.options.record, content, seconds), file=sys.stderr, flush=True)
        return DONE

    # ------------------------------------------------------------ small parts

    def say(self, text: str) -> None:
        """A line on the terminal that names the stage."""
        with contextlib.suppress(OSError):
            print(f"{self.options.stage} {self.options.record.parent}: {text}", file=sys.stderr, flush=True)

    def _on_signal(self, number: int, frame: object) -> None:
        """Pass the wish to stop on; the stage has its grace to write a checkpoint."""
        first, self.stopping = self.stopping is None, self.stopping or time.monotonic()
        if self.child is None:
            raise Stopped
        if first:
            self.say(f"{_signal_name(number)}: asked to stop, waiting up to {self.grace:.0f} s for a checkpoint")
            self.child.signal(signal.SIGTERM)

    def _sign(self, lock: BinaryIO) -> None:
        """Write into the lock's file who holds it, for whoever waits."""
        holder = {"supervisor": os.getpid(), "stage": self.options.stage, "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        if self.child is not None:
            holder["process"] = self.child.pid
        with contextlib.suppress(OSError):  # only words: a full disk is noticed where it matters
            lock.truncate(0)
            lock.write(json.dumps(holder).encode())
            lock.flush()

    @contextlib.contextmanager
    def _output(self):
        """Descriptors of the stage's standard output and error."""
        if self.options.log is None:
            sys.stdout.flush()
            yield 1, 2
            return
        self.options.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.options.log, "ab") as log:
            head = " ".join([time.strftime("%Y-%m-%d %H:%M:%S"), self.options.stage, *self.options.arguments])
            log.write(f"--- {head}\n".encode())
            log.flush()
            yield log.fileno(), log.fileno()

    def _see_log(self) -> str:
        return f"; see {self.options.log}" if self.options.log else ""

    def _tail(self, lines: int) -> str:
        """The last lines of the log, indented; nothing when the stage wrote to the terminal anyway."""
        if self.options.log is None:
            return ""
        try:
            with open(self.options.log, "rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - 8192))
                text = log.read().decode(errors="replace")
        except OSError:
            return ""
        return "".join(f"\n    {each}" for each in text.rstrip().splitlines()[-lines:])


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes whenever a record is written: its inode and time."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _holder(path: Path) -> str:
    """Who holds a lock, in words."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        pids = [str(holder[name]) for name in ("process", "supervisor") if name in holder]
        return f"process {', supervised by '.join(pids)} ({holder['stage']}, since {holder['since']})"
    except (OSError, ValueError, KeyError):
        return "another process"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


if __name__ == "__main__":
    sys.exit(main())
