"""Stage ``plan``: what a suite will cost, before anything is spent: steps, tokens, FLOPs, memory by kind, time, disk.

``python -m harness.plan --suite hybrid --device-memory 80GiB`` needs no weights and no data: models are shapes
(``harness.counted_step``), so that one of 405 billion parameters is planned on a laptop. Time comes from past ``cost``
records of this machine, and the error of the plan on these is printed beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.calibration import Measured, Rates, fit, measured_product
from harness.counted_step import NotCountable, Subject
from harness.failures import UserError, guard
from harness.measured_cells import Timed, cost_records, measured, timed
from harness.plan_pages import write_pages
from harness.plan_rows import Batches, batches, label_count
from harness.step_profile import Profile, count_all, profile
from harness.suite import Suite, Training, load_suite

BEFORE_SEARCH = "counted with the values before the search, which has not chosen yet"
OF_TRIALS = "trials of the search: memory and fit of the largest, all else with the first one's values"
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass
class Row:
    """A model, corpus and variant of the suite, whose seeds cost the same each; or the trials that search for its values:
    memory and fit are the largest one's, all else the first one's."""

    training: Training
    trainings: int
    batches: Batches
    subject: Subject
    others: list[Subject] = field(default_factory=list)  # of further trials, as far as their steps may differ
    step: Profile | None = None  # None: with a reason
    held: Profile | None = None  # whose memory it is
    reason: str = ""
    memory: dict[str, int] = field(default_factory=dict)
    obstacle: str = ""  # what does not fit, and why
    step_seconds: float | None = None
    seconds: float | None = None  # of a training
    notes: list[str] = field(default_factory=list)


@dataclass
class Plan:
    suite: Suite
    device: str
    device_memory: int
    rows: list[Row]
    clock: str  # where seconds come from
    measured: list[Measured]
    uncounted: list[str]  # measured cells that could not be compared, and why
    damaged: list[Path]  # cost records that tell too little
    took: float


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m harness.plan", description="Say what a suite will cost.")
    parser.add_argument("--suite", required=True)
    parser.add_argument(
        "--device-memory", default="", help="of the device to plan for, as 80GiB; default: this machine's"
    )
    parser.add_argument(
        "--records", type=Path, action="append", help="results with cost records to calibrate on; default: results/"
    )
    parser.add_argument("--out", type=Path, help="folder of cost_plan.{md,csv,json}; default: results/<suite>")
    arguments = parser.parse_args(argv)
    made = plan(load_suite(arguments.suite), arguments.device_memory, arguments.records)
    print(write_pages(made, arguments.out or made.suite.results))
    return 0


def plan(suite: Suite, device_memory: str = "", records: list[Path] | None = None) -> Plan:
    started = time.monotonic()
    device, memory = _device(device_memory)
    rows = _rows(suite)
    folders = records if records is not None else [f for f in (Path("results"),) if f.is_dir()]
    records_here, damaged = cost_records(folders)
    known = [cell for cell in map(timed, records_here) if cell]
    _tell(f"{suite.name}: {len(rows)} models with a corpus and a method, {len(known)} measured cells of this machine")
    needed = [request for row in rows for request in _requests(row)]
    count_all([*needed, *(request for cell in known for request in cell.requests)], _tell)
    cells, uncounted = _compared(known)
    clock = _clock(rows, cells)
    for row in rows:
        _fill(row, clock, memory)
    return Plan(suite, device, memory, rows, clock.source, cells, uncounted, damaged, time.monotonic() - started)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _device(given: str) -> tuple[str, int]:
    """The device's name and its memory in bytes."""
    import torch

    if given:
        return f"a device of {given}", parse_bytes(given)
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return properties.name, properties.total_memory
    return "this machine's memory", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def parse_bytes(text: str) -> int:
    """ "80GiB", "80 GB" (taken as GiB) or "85899345920". Raises UserError."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)(i?B)?\s*", text, re.IGNORECASE)
    try:
        size = float(match[1]) * UNITS[match[2].upper()] if match else 0
    except ValueError:
        size = 0
    if size < 1:
        raise UserError(f"--device-memory {text!r} is not a size: write it as 80GiB or 24GiB")
    return int(size)


# --------------------------------------------------------------------------- cells


def _rows(suite: Suite) -> list[Row]:
    groups: dict[tuple, list[Training]] = {}
    for training in suite.trainings:
        if training.trains:
            groups.setdefault((training.model, training.corpus, training.variant), []).append(training)
    searches = [tuning.trials for tuning in suite.tunings.values()]
    rows, told = [], time.monotonic()
    for number, group in enumerate([*searches, *groups.values()]):
        rows.append(_row(group))
        if time.monotonic() - told > 5:
            told = time.monotonic()
            _tell(f"reading rows: {number + 1} of {len(searches) + len(groups)} cells")
    return rows


def _row(group: Sequence[Training]) -> Row:
    training, protocol = group[0], group[0].protocol
    values, notes = _values(training)
    subject = Subject(
        training.model,
        training.method,
        json.dumps(values, sort_keys=True),
        label_count(training.model, training.corpus, training.corpus_fields()),
        protocol["precision"],
        protocol["activation_checkpointing"],
    )
    others = _others(subject, group) if training.stage == "trial" else []
    return Row(training, len(group), batches(training), subject, others, notes=notes)


def _values(training: Training) -> tuple[dict, list[str]]:
    """The hyper-parameters to count with, those that a search has chosen included; a note where it has not."""
    before = training.hyperparameters
    if training.stage == "trial":
        return before, [OF_TRIALS]
    try:
        return {**before, **training.hyperparameters_given()}, []
    except (ValueError, KeyError, TypeError):  # no choice, one of another search, none possible, or a damaged record
        return before, [BEFORE_SEARCH]


def _others(first: Subject, trials: Sequence[Training]) -> list[Subject]:
    """What trials after the first train, each once. Rates are the first one's: they change no shape, and so are not counted
    again."""
    rates = {name: value for name, value in json.loads(first.fields).items() if name.endswith("learning_rate")}
    fields = (json.dumps({**trial.hyperparameters, **rates}, sort_keys=True) for trial in trials)
    return [dataclasses.replace(first, fields=text) for text in dict.fromkeys(fields) if text != first.fields]


def _requests(row: Row) -> list[tuple]:
    """A typical step, then the largest, and the largest of other trials."""
    found, number = row.batches, round(row.batches.micro_batches)
    largest = [(subject, found.largest, number) for subject in (row.subject, *row.others)]
    return [(row.subject, found.typical, number), *largest]


def _fill(row: Row, clock: Clock, device_memory: int) -> None:
    """The row's numbers, or its reason for having none."""
    typical, largest, *others = _requests(row)
    try:
        row.step, held = profile(*typical), profile(*largest)
    except NotCountable as error:
        row.reason = str(error)
        return
    row.held = max([held, *_countable(row, others)], key=lambda found: found.memory()["peak"])
    row.memory = row.held.memory()
    row.obstacle = obstacle(row.memory, device_memory)
    row.notes += [row.step.note] if row.step.note else []
    fields = json.loads(row.subject.fields)
    rates = clock.rates.get(_kind(row))
    if rates:
        row.step_seconds = rates.seconds(row.step.work(row.batches.micro_batches))
    if fields.get("warmup_steps"):
        row.notes.append("every step is counted as one of its warm-up: what trains after it depends on numbers")
    if row.step_seconds is not None and row.batches.steps:
        row.seconds = row.batches.steps * row.step_seconds
        every = fields.get("refresh_every")
        if every:
            row.seconds += -(-row.batches.steps // every) * max(0.0, rates.seconds(row.step.opening))


def _countable(row: Row, requests: list[tuple]) -> list[Profile]:
    """Those of these that can be counted; of the others the row says why not."""
    found = []
    for request in requests:
        try:
            found.append(profile(*request))
        except NotCountable as error:
            row.notes.append(f"a trial's memory is not counted: {error}")
    return found


def obstacle(memory: dict[str, int], device: int) -> str:
    """Why a step does not fit: the first kind that, with those before it, is more than the device has; "" if it fits."""
    held, names = 0, []
    for kind, name in (("weights", "weights"), ("optimizer", "optimizer state"), ("gradients_at_peak", "gradients")):
        held += memory[kind]
        names.append(name)
        if held > device:
            return f"{' + '.join(names)}" + (" alone" if len(names) == 1 else "")
    return "weights + optimizer state + gradients + activations" if memory["peak"] > device else ""


# --------------------------------------------------------------------------- time


@dataclass
class Clock:
    """Rates by (threads, precision), and where they come from."""

    rates: dict[tuple, Rates]
    source: str


def _kind(row: Row) -> tuple:
    return row.training.protocol["threads"], row.subject.precision


def _clock(rows: list[Row], cells: list[Measured]) -> Clock:
    rates, sources = {}, []
    for threads, precision in dict.fromkeys(map(_kind, rows)):
        same = [cell for cell in cells if (cell.threads, cell.precision) == (threads, precision)]
        found = fit(same)
        what = f"{precision}, {threads} thread{'s' * (threads > 1)}"
        if found:
            sources.append(f"{what}: rates fitted to {found.n} cost records of this machine")
        else:
            found, speed = measured_product(threads, precision)
            sources.append(
                f"{what}: {len(same)} cost records of this machine, too few; a lower bound from a measured matrix "
                f"product ({speed / 1e9:,.3g} GFLOP/s here, on this machine)"
            )
        rates[threads, precision] = found
    return Clock(rates, "; ".join(sources))


def _compared(known: list[Timed]) -> tuple[list[Measured], list[str]]:
    cells, uncounted = [], []
    for cell in known:
        try:
            cells.append(measured(cell))
        except NotCountable as error:
            content = cell.content
            uncounted.append(f"{content['suite']}/{content['model']}/{content['corpus']}/{content['variant']}: {error}")
    return cells, uncounted


if __name__ == "__main__":
    sys.exit(guard(main)())
