"""What a step of any number of blocks does and holds, from steps on one block and on two (``harness.counted_step``).

Counts are kept in results/.counts by all that they depend on, the code included, so that they are made once.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.cells import catalogue, hash_of, sources
from harness.closure import code_hash
from harness.counted_step import (
    AFTER,
    BEFORE,
    BLOCKS,
    END,
    FIRST,
    FORWARD,
    Counts,
    Level,
    NotCountable,
    Shape,
    Subject,
    block_count,
    count,
)
from harness.measure import SAMPLED_ENTRIES
from harness.plugins import ROOT, find_plugin
from harness.work import Work

KEPT = Path("results") / ".counts"


@dataclass
class Profile:
    """A step of the whole model: work of a micro-batch, of all else in a step, and of what the first step alone does."""

    micro: Work
    step: Work
    opening: Work
    weights: int  # bytes
    gradients: int
    optimizer: int
    peak: Level
    after: Level  # the peak of what follows the backward passes
    parameters: dict[str, int]  # trained, head, total
    note: str = ""

    def work(self, micro_batches: float) -> Work:
        """Of a step of so many micro-batches."""
        return self.micro * micro_batches + self.step

    def memory(self, sampled: bool = True) -> dict[str, int]:
        """Bytes by kind, as LiveTensors splits them, at the peak of a step; with ``sampled`` of one whose update is
        compared with the weights (``Curve.update_ratio``), as it is eight times a training."""
        sample = min(4 * SAMPLED_ENTRIES, 4 * (self.parameters["trained"] + self.parameters["head"]))
        after = Level(self.after.live + sample * sampled, self.after.gradients)
        peak = max(self.peak, after, key=lambda level: level.live)
        return {
            "weights": self.weights,
            "gradients": max(self.gradients, peak.gradients),
            "gradients_at_peak": peak.gradients,
            "optimizer": self.optimizer,
            "activations": max(0, peak.live - self.weights - self.optimizer - peak.gradients),
            "peak": peak.live,
        }


def profile(subject: Subject, shape: Shape, micro_batches: int) -> Profile:
    """Of a step of micro-batches of this shape. Raises NotCountable with the reason."""
    path = _path(subject, shape, micro_batches)
    if path.is_file():
        return _read(json.loads(path.read_text(encoding="utf-8")))
    try:
        content: dict = dataclasses.asdict(_counted(subject, shape, min(2, micro_batches)))
    except NotCountable as error:
        content = {"reason": str(error)}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.part")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    os.replace(temporary, path)
    return _read(content)


Request = tuple[Subject, Shape, int]


def count_all(requests: Iterable[Request], say: Callable[[str], None]) -> None:
    """Make and keep the profiles of all of these, in as many processes as there are cores, one subject at a time."""
    waiting: dict[Subject, list[Request]] = {}
    for request in dict.fromkeys(requests):
        if not _path(*request).is_file():
            waiting.setdefault(request[0], []).append(request)
    groups = sorted(waiting.values(), key=len, reverse=True)
    workers = min(len(os.sched_getaffinity(0)), len(groups))
    if workers < 2:
        return _count_group([request for group in groups for request in group])
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
        running = {pool.submit(_count_group, group) for group in groups}
        while running:
            done, running = concurrent.futures.wait(running, timeout=5, return_when="FIRST_EXCEPTION")
            for future in done:
                future.result()
            if running:
                say(f"counting: {len(groups) - len(running)} of {len(groups)} models with a method")


def _count_group(requests: list[Request]) -> None:
    for request in requests:
        with contextlib.suppress(NotCountable):
            profile(*request)


def _read(content: dict) -> Profile:
    if "reason" in content:
        raise NotCountable(content["reason"])
    works = {name: Work(**content[name]) for name in ("micro", "step", "opening")}
    levels = {name: Level(**content[name]) for name in ("peak", "after")}
    return Profile(**{**content, **works, **levels})


def _path(subject: Subject, shape: Shape, micro_batches: int) -> Path:
    parts = [dataclasses.asdict(subject), dataclasses.asdict(shape), min(2, micro_batches), _code(subject.method)]
    return (
        KEPT
        / f"{hash_of([*parts, sources('models', subject.model), catalogue()['models'][subject.model].get('shape')])}.json"
    )


@functools.cache
def _code(method: str) -> str:
    return code_hash([find_plugin("methods", method).path, ROOT / "harness" / "step_profile.py"])


def _counted(subject: Subject, shape: Shape, micro_batches: int) -> Profile:
    one = _count(subject, 1, shape, micro_batches)
    other = next((s for s in _known(subject, shape, micro_batches) if s != shape), None)
    if other is None:
        two = _count(subject, 2, shape, micro_batches)
        _known(subject, shape, micro_batches).append(shape)
    else:  # what has a target changes only what lies above the blocks
        two = _above_changed(_count(subject, 2, other, micro_batches), _count(subject, 1, other, micro_batches), one)
    return extrapolated(one, two, block_count(subject))


_count = functools.cache(count)


@functools.cache
def _known_shapes(subject: Subject, rows: int, length: int, padded: bool, micro_batches: int) -> list[Shape]:
    return []


def _known(subject: Subject, shape: Shape, micro_batches: int) -> list[Shape]:
    return _known_shapes(subject, shape.rows, shape.length, shape.padded, micro_batches)


def _above_changed(two: Counts, one: Counts, changed: Counts) -> Counts:
    """``two`` as it would be with ``changed`` in the place of ``one``."""
    return dataclasses.replace(two, micro=two.micro + changed.micro - one.micro)


def extrapolated(one: Counts, two: Counts, blocks: int) -> Profile:
    """The step on so many blocks."""

    def at(first: float, second: float) -> float:
        return first + (blocks - 1) * (second - first)

    def work(name: str) -> Work:
        first, second = getattr(one, name), getattr(two, name)
        return first + (second - first) * (blocks - 1)

    whole = {name: int(at(getattr(one, name), getattr(two, name))) for name in ("weights", "optimizer", "gradients")}
    peaks = _peaks(one, two, blocks)
    return Profile(
        **{name: work(name) for name in ("micro", "step", "opening")},
        **whole,
        peak=max(peaks, key=lambda level: level.live),
        after=peaks[-1],
        parameters={"head": one.head, **{n: int(at(getattr(one, n), getattr(two, n))) for n in ("trained", "total")}},
        note=two.note,
    )


def _peaks(one: Counts, two: Counts, blocks: int) -> list[Level]:
    """The peak of each part. Within the blocks' backward pass it falls by what each kept and rises by its gradients, so
    it is highest at one of the two ends."""
    start, kept, end = (_slope(one.levels, two.levels, part) for part in (BEFORE, BLOCKS, END))
    return [
        _grown(one.peaks[FORWARD], kept, blocks - 1),
        *(_grown(two.peaks[BLOCKS], slope, blocks - 2) for slope in (kept, end)),
        _grown(two.peaks[FIRST], end, blocks - 2),
        _grown(two.levels[BEFORE], start, blocks - 2),
        *(_grown(two.peaks[part], _slope(one.peaks, two.peaks, part), blocks - 2) for part in (BEFORE, END, AFTER)),
    ]


def _slope(one: dict[str, Level], two: dict[str, Level], part: str) -> Level:
    return Level(two[part].live - one[part].live, two[part].gradients - one[part].gradients)


def _grown(level: Level, slope: Level, blocks: int) -> Level:
    return Level(level.live + blocks * slope.live, level.gradients + blocks * slope.gradients)
