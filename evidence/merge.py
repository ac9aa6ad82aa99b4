"""Results of other machines join this tree: ``python -m evidence.merge results/quick /media/other/results/quick ...``.

The suite's own plan (``plan.json`` in the first folder) says which cells there are. Each record of a source is taken only
if it fits its schema, if its key is the plan's (the same specification and code), if the files that it names are there with
their hashes, and if this tree has no result of its own for the cell; one that is stale gives way. What is not taken is told
with the reason, and the command ends with 1. Software of another machine stands in the record: tables mark such rows and
never average them with others.

A training and what was answered after it go together, so a cell's evals are taken only with their own training.
Searches join first, as trainings and costs follow from their choices: those of another choice than this tree's are refused.
Files are copied under a temporary name and renamed, the record last: an interrupted merge is run again.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from evidence import cells
from evidence.cells import EvidenceError
from evidence.choices import Choice, cell_of, choice_of, other_values
from evidence.fitting import misfit
from harness import record as records

TAKEN, HERE, REFUSED = "taken", "already here", "refused"


@dataclass(frozen=True)
class Fate:
    """What became of a record: its path below the results, taken, already here or refused, and why."""

    path: str
    what: str
    why: str = ""


@dataclass(frozen=True)
class Chosen:
    """What a search asks of its cell's trainings and cost: the values that it chose; or why none of them can join."""

    values: dict | None = None
    refused: str = ""

    def misses(self, found: dict) -> str:
        other = other_values(found, self.values)
        return self.refused or (f"made with other values than the search here chose: {other}" if other else "")


UNSEARCHED = Chosen()


def merge(own: Path, source: Path, dry: bool = False) -> Iterator[Fate]:
    """Every record that ``source`` has for the plan of ``own``, and what is not in the plan. ``dry``: copy nothing.

    Raises EvidenceError where either is no results folder of this suite.
    """
    plan = cells.read_plan(own / "plan.json")
    if source.resolve() == own.resolve():
        raise EvidenceError(f"{source}: that is this tree itself")
    if not any((source / name).is_dir() for name in ("runs", "cost", "tune")):
        raise EvidenceError(
            f"{source}: neither runs nor cost nor tune in it; give the folder results/{plan['suite']} of the other machine"
        )
    chosen: dict[tuple[str, str, str], Chosen] = {}
    for search in cells.searches(
        plan
    ):  # first: Snakemake would make anew what is older than the choice it follows from
        chosen[cell_of(search)] = yield from _search(own, source, search, dry)
    for cell in plan["cells"]:
        yield from _training(own, source, cell, dry, chosen.get(cell_of(cell), UNSEARCHED))
    for cell in cells.cost_cells(plan):
        wanted = chosen.get(cell_of(cell), UNSEARCHED)
        yield from _one(own, source, cells.cost_path(cell), cell.get("key"), dry, wanted)
    for path in cells.unplanned_records(plan, source):
        yield Fate(path.as_posix(), REFUSED, "the plan of this suite has no such cell")


def _search(own: Path, source: Path, search: dict, dry: bool) -> Generator[Fate, None, Chosen]:
    """The trials of a search, then its choice; returns what that asks of the trainings and the cost."""
    for trial in search["trials"]:
        yield from _one(own, source, cells.trial_path(search, trial), trial["key"], dry)
    fates = list(_one(own, source, cells.search_folder(search) / "tuned.json", search["key"], dry))
    yield from fates
    theirs = choice_of(source, search)
    here = theirs if any(fate.what == TAKEN for fate in fates) else choice_of(own, search)
    refused = next((fate.why for fate in fates if fate.what == REFUSED), "")
    if refused and not _same_choice(here, theirs):
        return Chosen(refused=f"its search was refused: {refused}")
    return Chosen(here.values)


def _same_choice(one: Choice, other: Choice) -> bool:
    """Equal values, though the losses that they were chosen by may differ in their last digits from machine to machine."""
    return one.values is not None and one.values == other.values


def _training(own: Path, source: Path, cell: dict, dry: bool, chosen: Chosen) -> Iterator[Fate]:
    """A training first, then its evals, if they belong to the training that is here afterwards."""
    folder = cells.folder_of(Path(), cell)
    trained = cell["variant"] != "majority"
    first = list(_one(own, source, folder / "train.json", cell.get("key"), dry, chosen)) if trained else []
    yield from first
    refused = next((fate for fate in first if fate.what == REFUSED), None)
    kept = any(fate.what == HERE and fate.why for fate in first)
    same = not trained or any(fate.what == TAKEN for fate in first) or _same_training(own, source, folder)
    for entry in cells.evals_of(cell):
        for stage, key in (("predict", entry.get("predict_key")), ("score", entry.get("key"))):
            path = folder / entry["eval"] / f"{stage}.json"
            if not (source / path).is_file():
                continue
            if refused:
                yield Fate(path.as_posix(), REFUSED, "its training was refused")
            elif kept:
                yield Fate(path.as_posix(), HERE, "it follows a training that failed there; this tree's stays")
            elif not same:
                yield Fate(path.as_posix(), REFUSED, "it does not answer after the training of this cell that is here")
            else:
                yield from _one(own, source, path, key, dry)


def _same_training(own: Path, source: Path, folder: Path) -> bool:
    """Do both trees hold the same training of a cell? A tree without its record cannot say which it answered after."""
    one, other = (_read(root / folder / "train.json") for root in (own, source))
    return "problem" not in one | other and _same(one, other)


def _same(one: dict, other: dict) -> bool:
    """Equal records, but for how they were written down."""
    return {**one, "reason": one.get("reason") or ""} == {**other, "reason": other.get("reason") or ""}


def _one(
    own: Path, source: Path, path: Path, key: str | None, dry: bool, chosen: Chosen = UNSEARCHED
) -> Iterator[Fate]:
    """One record with the files beside it; nothing where the source has none."""
    if not (source / path).is_file():
        return
    found = _read(source / path)
    why = found.get("problem") or misfit(found) or _wrong_key(found, key) or chosen.misses(found)
    why = why or _wrong_files(source / path, found)
    if why:
        yield Fate(path.as_posix(), REFUSED, why)
        return
    with _locked((own / path).parent, dry) as free:
        if not free:
            yield Fate(path.as_posix(), REFUSED, "a stage is running in its folder here; merge again when it is done")
            return
        mine = _read(own / path) if (own / path).is_file() else {}  # under the lock: a stage may just have written it
        stale = mine.get("status") == "ok" and bool(_wrong_key(mine, key) or chosen.misses(mine))
        result_here = mine.get("status") == "ok" and not stale
        if result_here or (mine and "problem" not in mine and found["status"] != "ok"):
            yield _standing(path, mine, found)
            return
        if not dry:
            _copy(source / path, own / path, found)
    told = "in place of this tree's stale one" if stale else ""
    yield Fate(
        path.as_posix(), TAKEN, told if found["status"] == "ok" else f"{found['status']}: {found.get('reason') or ''}"
    )


def _standing(path: Path, mine: dict, found: dict) -> Fate:
    """This tree's own result stays. Another result of the same cell is refused aloud, with where each was made."""
    if _same(mine, found):
        return Fate(path.as_posix(), HERE)
    if found["status"] != "ok":
        return Fate(
            path.as_posix(),
            HERE,
            f"this tree's {mine['status']} stays; there it is {found['status']}: {found.get('reason')}",
        )
    where = " / ".join(_made(record) for record in (mine, found))
    return Fate(
        path.as_posix(), REFUSED, f"this tree has a result of its own for it, and they differ (here / there: {where})"
    )


def _made(record: dict) -> str:
    provenance = record.get("provenance") or {}
    commit = str(provenance.get("commit") or "?")[:12]
    return f"{record.get('status')}, commit {commit}, {provenance.get('device') or 'device unknown'}"


def _wrong_key(found: dict, key: str | None) -> str:
    if not key or found.get("key") == key:
        return ""
    if not found.get("key"):
        return "it has no key, so nothing says what it was made from"
    return "stale: made from another specification or other code than this plan's"


def _wrong_files(path: Path, found: dict) -> str:
    for entry in (found.get("files") or {}).values():
        file = path.parent / entry["file"]
        if not file.is_file():
            return f"{entry['file']} is not beside it"
        if records.digest(file) != entry["sha256"]:
            return f"{entry['file']} is not the file that the record names (its sha256 differs)"
    return ""


def _copy(source: Path, target: Path, found: dict) -> None:
    """The files, then the record as it is, each under a temporary name first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for entry in (found.get("files") or {}).values():
        temporary = target.with_name(f".{entry['file']}.{os.getpid()}")
        shutil.copyfile(source.parent / entry["file"], temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target.with_name(entry["file"]))
    records.write(target, found)


@contextmanager
def _locked(folder: Path, dry: bool) -> Iterator[bool]:
    """Whether no stage holds the folder (harness/supervise.py locks it so), which it then cannot take meanwhile."""
    if dry and not (folder / ".lock").is_file():
        yield True
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _read(path: Path) -> dict:
    try:
        return records.read(path)
    except (ValueError, OSError) as error:
        return {"problem": f"unreadable: {error}"}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evidence.merge", description=__doc__.splitlines()[0])
    parser.add_argument("own", type=Path, help="results/SUITE of this machine, with its plan.json")
    parser.add_argument("sources", type=Path, nargs="+", help="the same folder of other machines")
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be taken, and copy nothing")
    arguments = parser.parse_args(argv)
    counts: Counter[str] = Counter()
    try:
        for source in arguments.sources:
            print(f"{source}:")
            for number, fate in enumerate(merge(arguments.own, source, arguments.dry_run), 1):
                counts[fate.what] += 1
                if fate.what == REFUSED or fate.why:
                    print(f"  {fate.what}: {fate.path}: {fate.why}")
                if number % 1000 == 0:
                    print(f"  {number:,} records looked at", file=sys.stderr, flush=True)
    except (EvidenceError, json.JSONDecodeError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    would = "would be " if arguments.dry_run else ""
    print(f"{counts[TAKEN]} records {would}taken, {counts[HERE]} already here, {counts[REFUSED]} refused")
    return 1 if counts[REFUSED] else 0


if __name__ == "__main__":
    sys.exit(main())
