"""How a stage ends: a record, an interruption, a person's mistake, or a defect of ours. Imports no torch.

Exit codes of a stage: 0, its record is written; 2, the user's input is wrong, one line says how; 70, a defect, with a
traceback; 74, the disk is full; 75, interrupted, the same command goes on.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from harness import record as records

ROOT = Path(__file__).resolve().parent.parent
DONE, MISTAKE, DEFECT, DISK_FULL, INTERRUPTED = 0, 2, 70, 74, 75
PLUGIN_FOLDERS = ("methods", "corpora", "evals")
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
FULL_WORDS = ("No space left on device", "File too large", "Disk quota exceeded", "PytorchStreamWriter failed writing")
MEMORY_WORDS = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "std::bad_alloc")


class UserError(ValueError):
    """What a person wrote cannot be done; the message says what, where, and what to do. Shown without a traceback."""


class BadAnswer(ValueError):
    """What a plug-in gave cannot be right; the message names it. The cell's row says so, and other cells go on."""


class BadRow(ValueError):
    """A row of a corpus cannot be trained on; the message names it. The cell's row says so, and other cells go on."""


def guard(
    main: Callable[[list[str] | None], int | None],
    record: Path | None = None,
    stage: str = "",
    identity: dict | None = None,
) -> Callable[..., int]:
    """``main`` with every exception turned into an exit code, and a plug-in's or a lack of memory into a row.

    The row goes to ``record`` and begins with ``identity``. Without ``record`` (a stage run by hand, unsupervised) such
    an exception is shown with its traceback and ends as a defect.
    """

    @functools.wraps(main)
    def guarded(argv: list[str] | None = None) -> int:
        started = time.monotonic()
        try:
            return main(argv) or DONE
        except SystemExit as error:
            return _exit_code(error)
        except KeyboardInterrupt:
            return INTERRUPTED
        except BaseException as error:
            code, row = classify(error)
            if row is not None and record is None:
                code = DEFECT
            _tell(error, code, record or Path.cwd())
            if row is not None and record is not None:
                # Free what the failed stage held: after an oom even the row needs a little.
                traceback.clear_frames(error.__traceback__)
                status, reason = row
                more = {"traceback": "".join(traceback.format_exception(error))[-8000:]} if status == "error" else {}
                more["memory"] = {"rss_peak_bytes": _rss_peak()}
                write_row(record, stage, identity or {}, status, reason, time.monotonic() - started, **more)
            return code

    return guarded


def classify(error: BaseException) -> tuple[int, tuple[str, str] | None]:
    """(exit code, (status, reason) of the row that it is, if it is one)."""
    if isinstance(error, UserError | records.Damaged):
        return MISTAKE, None
    if any(_is_full(link) for link in _chain(error)):
        return DISK_FULL, None
    shown = f"{type(error).__name__}: {_one_line(error)}"
    if any(_is_out_of_memory(link) for link in _chain(error)):
        return DONE, ("oom", shown)
    if isinstance(error, BadRow | BadAnswer):
        return DONE, ("error", str(error))
    place = plugin_place(error)
    if place:
        return DONE, ("error", f"{place}: {shown}")
    return DEFECT, None


def plugin_place(error: BaseException) -> str | None:
    """As "methods/mine.py:12 in attach": the innermost frame of a plug-in that the exception came through, if any."""
    for link in _chain(error):
        for frame, line in reversed(list(traceback.walk_tb(link.__traceback__))):
            file = _plugin_file(frame)
            if file:
                return f"{file}:{line} in {frame.f_code.co_name}"
    return None


def write_row(
    record: Path,
    stage: str,
    identity: dict,
    status: str,
    reason: str,
    seconds: float,
    threads: int | None = None,
    **more: object,
) -> None:
    """Write the record of a stage that did not come to its own: why, and after how many seconds."""
    from harness.provenance import provenance

    row = {"stage": stage, **identity, "status": status, "reason": reason, "wall_seconds": round(seconds, 3)}
    records.write(Path(record), {**row, **more, "provenance": provenance(threads)})


def disk_full(place: Path) -> str:
    """What to tell when nothing more can be written at ``place``."""
    place = next(p for p in (place.absolute(), *place.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    return (
        f"Could not write below {place}: the disk is full, or a quota or file size limit is reached "
        f"({free / 1e6:,.0f} MB free). Finished records are safe. Make room, run the same command again: it goes on."
    )


# --------------------------------------------------------------------------- small parts


def _plugin_file(frame: FrameType) -> str | None:
    """The frame's file relative to the project if it is a plug-in's, or the contract's, whose defaults stand in."""
    path = Path(frame.f_code.co_filename)
    if frame.f_globals.get("__name__", "").startswith("tuning_fork_"):
        return f"{path.parent.name}/{path.name}"
    if not path.is_relative_to(ROOT):
        return None
    path = path.relative_to(ROOT)
    return path.as_posix() if path.parts[0] in PLUGIN_FOLDERS or path.as_posix() == "harness/contract.py" else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it was raised from or during."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    return not isinstance(error, UserError) and any(words in str(error) for words in FULL_WORDS)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without importing torch
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in MEMORY_WORDS)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 500 else text[:497] + "..."


def _rss_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _exit_code(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return error.code or DONE
    print(error.code, file=sys.stderr)
    return MISTAKE


def _tell(error: BaseException, code: int, place: Path) -> None:
    """Say on stderr what happened; on a full disk even that may fail, and then the supervisor says it."""
    with contextlib.suppress(OSError):
        if code == MISTAKE:
            print(error, file=sys.stderr, flush=True)
        elif code == DISK_FULL:
            print(f"{_one_line(error)}\n{disk_full(place)}", file=sys.stderr, flush=True)
        else:
            traceback.print_exception(error)
            sys.stderr.flush()
