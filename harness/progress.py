"""One line for every stage that has ended: how far the suite is, what came out, about how long it will still take.

``[ 37/121] train smollm2-135m/headlines/lora-r16/seed0  ok  loss 0.412  84 s   about 14 min left``

Counts come from ``results/{suite}/plan.json`` and the records that are there, without those that will be made anew; times
from ``logs/finished.jsonl``, to which every supervisor adds a line.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import defaultdict
from pathlib import Path
from statistics import median


def note(results: Path, record: Path, content: dict, seconds: float) -> None:
    """Add a stage's end to the suite's list of ends. One short write: lines of concurrent jobs do not mix."""
    path = results / "logs" / "finished.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    ended = {"status": content.get("status", "ok"), "seconds": round(seconds, 3), "key": content.get("key")}
    entry = {"record": str(record), **ended}
    with open(path, "ab", buffering=0) as file:
        file.write(json.dumps(entry).encode() + b"\n")


def line(results: Path, record: Path, content: dict, seconds: float, cores: int | None = None) -> str:
    """The line to print. ``record``: path as in the plan; ``content``: what it says; ``cores``: of the whole run."""
    name = _name(results, record)
    stage, status = content.get("stage", record.stem), content.get("status", "ok")
    text = "  ".join(part for part in (f"{stage} {name}", status, outcome(content), duration(seconds)) if part)
    try:
        jobs = json.loads((results / "plan.json").read_text(encoding="utf-8"))["jobs"]
    except (OSError, ValueError, KeyError):
        return text
    ended = finished(results)
    keys = {entry["record"]: entry.get("key") for entry in ended}
    done = [os.path.exists(job["record"]) and _same(job.get("key"), keys.get(job["record"])) for job in jobs]
    width = len(str(len(jobs)))
    left, sure = remaining(results, jobs, done, ended, cores or _cores())
    tail = f"   {'about' if sure else 'at least'} {duration(left)} left" if left else ""
    return f"[{sum(done):>{width}}/{len(jobs)}] {text}{tail}"


def _same(planned: str | None, made: str | None) -> bool:
    """Whether a record is the planned one; one without a known key is."""
    return not planned or not made or planned == made


def remaining(results: Path, jobs: list[dict], done: list[bool], ended: list[dict], cores: int) -> tuple[float, bool]:
    """(seconds until all jobs of the plan are done on ``cores`` cores, whether every kind of job has been timed).

    ``ended``: what ``finished`` gives. A job takes the median of those most like it that have ended: same stage, model,
    corpus and eval, a baseline or not; else same stage and corpus; else same stage. A kind that has not been timed counts
    nothing.
    """
    times: dict[tuple, list[float]] = defaultdict(list)
    stages = {job["record"]: job["stage"] for job in jobs}
    for entry in ended:
        if entry["status"] in ("ok", "diverged") and entry["record"] in stages:
            for kind in _kinds(results, stages[entry["record"]], entry["record"]):
                times[kind].append(entry["seconds"])
    work, longest, sure = 0.0, 0.0, True
    for job, is_done in zip(jobs, done, strict=True):
        if is_done:
            continue
        kind = next((k for k in _kinds(results, job["stage"], job["record"]) if k in times), None)
        if kind is None:
            sure = False
            continue
        seconds = median(times[kind])
        work += seconds * min(job["cores"] or cores, cores)  # no cores: the whole machine
        longest = max(longest, seconds)
    return max(work / cores, longest), sure


def outcome(content: dict) -> str:
    """What a record says in a few words: its loss, its headline metric, its seconds a step, or why it failed."""
    if content.get("status", "ok") not in ("ok", "judge_pending"):
        reason = " ".join(str(content.get("reason", "")).split())
        return reason if len(reason) <= 100 else reason[:97] + "..."
    stage = content.get("stage")
    with contextlib.suppress(KeyError, TypeError, ValueError):
        if stage == "train" and content["loss"]["last"] is not None:
            return f"loss {float(content['loss']['last']):.4g}"
        if stage == "trial":
            return f"validation {float(content['loss']['validation'][-1][1]):.4g}"
        if stage == "tune":
            chosen = content["chosen"]
            return " ".join(
                [f"trial {chosen['trial']}", *(f"{name} {value}" for name, value in chosen["values"].items())]
            )
        if stage == "predict":
            return f"{content['n_items']} items"
        if stage == "score":
            return f"{content['headline']} {float(content['metrics'][content['headline']]):.4g}"
        if stage == "cost":
            return f"{float(content['seconds']['median']):.3g} s a step"
    return ""


def duration(seconds: float) -> str:
    """A time span as people say it."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _name(results: Path, record: Path) -> str:
    """A record's cell: its folder below runs/, tune/ or cost/."""
    for kind in ("runs", "tune", "cost"):
        if record.is_relative_to(results / kind):
            return record.parent.relative_to(results / kind).as_posix()
    return record.parent.name


def _kinds(results: Path, stage: str, record: str) -> list[tuple]:
    """Kinds that a job belongs to, the narrowest first."""
    parts = Path(record).relative_to(results).parts if Path(record).is_relative_to(results) else ()
    if len(parts) < 5 or parts[0] not in ("runs", "tune", "cost"):
        return [(stage,)]
    _, model, corpus, variant, *rest = parts
    baseline = variant if variant in ("untuned", "majority") else ""
    evaluation = rest[1] if len(rest) == 3 else ""
    if baseline and stage in ("train", "score"):  # no step is made, no model is asked: nothing to learn from the others
        return [(stage, model, corpus, baseline, evaluation), (stage, baseline)]
    return [(stage, model, corpus, baseline, evaluation), (stage, corpus, baseline), (stage, corpus), (stage,)]


def finished(results: Path) -> list[dict]:
    """Ends of stages, the latest of each record."""
    latest: dict[str, dict] = {}
    with contextlib.suppress(OSError), open(results / "logs" / "finished.jsonl", encoding="utf-8") as file:
        for text in file:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(text)
                latest[entry["record"]] = entry
    return list(latest.values())


def _cores() -> int:
    """Cores of the whole run: what the Snakefile says it was given, else what this process may use."""
    if os.environ.get("TUNING_FORK_CORES", "").isdigit():
        return max(1, int(os.environ["TUNING_FORK_CORES"]))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
