"""``cost`` records of this machine as measured cells: what the plan would have said of the very steps that were timed.

A record of before it told its steps' shapes is laid out again from the data's rows, if these give the tokens that the
record counted; else a row is taken as long as the record's average, and the cell is marked so.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness import record
from harness.calibration import Measured
from harness.cost import WARM_STEPS, WARMUP_TIMED
from harness.counted_step import Shape, Subject
from harness.failures import UserError
from harness.measure import is_sampled
from harness.plan_rows import label_count, lengths, mean_shape, shapes
from harness.provenance import provenance
from harness.seeds import Streams
from harness.step_profile import profile
from harness.suite import PROTOCOL, catalogue

SAME = ("cpu", "cores", "gpu")  # of the hardware: what makes two machines one for a timing


@dataclass(frozen=True)
class Timed:
    """A record and the micro-batches of its steps."""

    content: dict
    subject: Subject
    steps: list[list[Shape]]  # timed
    followed: list[Shape]
    sampled: bool  # the followed step's update was compared with the weights
    exact: bool  # the shapes are those of the steps themselves

    @property
    def typical(self) -> tuple[Shape, int]:
        """The micro-batches of the timed step of middle size: their mean, and their number."""
        step = sorted(self.steps, key=lambda step: sum(s.rows * s.length for s in step))[len(self.steps) // 2]
        return mean_shape(step), len(step)

    @property
    def largest(self) -> tuple[Shape, int]:
        return max(self.followed, key=lambda s: (s.rows * s.length, s.supervised)), len(self.followed)

    @property
    def requests(self) -> list[tuple]:
        """What must be counted for it."""
        return [(self.subject, *self.typical), (self.subject, *self.largest)]


def cost_records(folders: Iterable[Path]) -> list[dict]:
    """Good ``cost`` records of this machine under these folders of results."""
    here, found = _hardware(provenance()), []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                f"{folder}: no such folder of results. Name one that holds <suite>/cost/, or a suite's own."
            )
        for path in sorted({*folder.glob("cost/*/*/*/cost.json"), *folder.glob("*/cost/*/*/*/cost.json")}):
            content = record.read(path)
            if content["status"] == "ok" and _hardware(content["provenance"]) == here:
                found.append(content)
    return found


def _hardware(origin: dict) -> tuple:
    return (origin["device"].partition(":")[0], *(json.dumps(origin["hardware"].get(key)) for key in SAME))


def timed(content: dict) -> Timed | None:
    """None where the record's model or method is not known any more."""
    specification = content["specification"]
    corpus = specification["corpus"]
    fields = {k: v for k, v in corpus["fields"].items() if k != "classes"}
    model, protocol = content["model"], {**PROTOCOL, **specification["protocol"]}
    if model not in catalogue()["models"]:
        return None
    try:
        subject = Subject(
            model,
            content["method"],
            json.dumps(specification["hyperparameters"], sort_keys=True),
            label_count(model, corpus["name"], fields),
            protocol["precision"],
            protocol["activation_checkpointing"],
        )
    except UserError:
        return None
    told = (content["warmup"] or content).get("shapes")
    if told:
        steps = [[Shape(*shape) for shape in step] for step in told["timed"]]
        return Timed(content, subject, steps, [Shape(*shape) for shape in told["followed"]], told["sampled"], True)
    laid_out = _laid_out(content, protocol, corpus["name"], fields)
    return Timed(content, subject, *laid_out) if laid_out else Timed(content, subject, *_average(content, protocol))


def _laid_out(content: dict, protocol: dict, corpus: str, fields: dict) -> tuple | None:
    """The steps of the record from the data's rows, if these are the rows that it saw."""
    from harness import data

    count, warm_up = len(content["seconds"]["all"]), content["warmup"]
    total = max(content["whole"]["steps"], 2 * WARM_STEPS + WARMUP_TIMED + 1 + count + 3)
    first = WARM_STEPS + (WARM_STEPS + WARMUP_TIMED + 1 if warm_up else 0)
    seed = Streams(content["seed"], protocol["streams"]).seed("order")
    for remove in (protocol["remove_overlap"], False):
        found = lengths(content["model"], corpus, json.dumps(fields), {**protocol, "remove_overlap": remove})
        if found is None:
            return None
        order = data.order(found.rows, total, protocol["batch_size"], protocol["length_bucketing"], seed)
        tokens = statistics.mean(sum(found.rows[i] for i in rows) for rows in order[first : first + count])
        if abs(tokens - content["batch_tokens"]) < 1e-6:
            if warm_up:
                first, count = WARM_STEPS, WARMUP_TIMED
            followed = first + count + bool(content["refresh"])
            every = [shapes(found, rows, protocol) for rows in order]
            return every[first : first + count], every[followed], is_sampled(followed, total), True
    return None


def _average(content: dict, protocol: dict) -> tuple:
    size, batch = protocol["micro_batch_size"], protocol["batch_size"]
    length = max(1, round(content["batch_tokens"] / batch))
    rows = [min(size, batch - start) for start in range(0, batch, size)]
    step = [Shape(count, length, count * length) for count in rows]
    return [step], step, False, False


def measured(cell: Timed) -> Measured:
    """Of a method with a warm-up, its warm-up steps are compared. Raises NotCountable."""
    content = cell.content
    own = content["warmup"] or {"seconds": content["seconds"]["median"], "memory": content["memory"]}
    timed_step, followed = (profile(*request) for request in cell.requests)
    (typical, micro_batches) = cell.typical
    seconds, refresh = content["seconds"], content["refresh"]
    return Measured(
        **{key: content[key] for key in ("suite", "model", "corpus", "variant", "method", "threads")},
        length=typical.length,
        work=timed_step.work(micro_batches),
        seconds=own["seconds"],
        spread=(seconds["q75"] - seconds["q25"]) / seconds["median"],
        refresh=(timed_step.opening, refresh["seconds"]) if refresh else None,
        memory=own["memory"],
        predicted_memory=followed.memory(cell.sampled),
        precision=cell.subject.precision,
        exact=cell.exact,
    )
