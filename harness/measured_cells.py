"""``cost`` records of this machine as measured cells: what the plan would have said of the very steps that were timed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness import record
from harness.calibration import Measured
from harness.counted_step import Shape, Subject
from harness.failures import UserError
from harness.plan_rows import label_count, mean_shape
from harness.provenance import provenance
from harness.step_profile import profile
from harness.suite import PROTOCOL, catalogue

NEEDED = ("suite", "model", "corpus", "variant", "method", "threads", "memory", "warmup", "refresh")
SAME = ("cpu", "cores", "gpu")  # of the hardware: what makes two machines one for a timing


@dataclass(frozen=True)
class Timed:
    """A record and the micro-batches of its steps."""

    content: dict
    subject: Subject
    steps: list[list[Shape]]  # timed
    followed: list[Shape]

    @property
    def typical(self) -> tuple[Shape, int]:
        """The micro-batches of the timed step of middle size: their mean, and their number."""
        step = sorted(self.steps, key=lambda step: sum(s.rows * s.length for s in step))[len(self.steps) // 2]
        return mean_shape(step), len(step)

    @property
    def largest(self) -> tuple[Shape, int]:
        return max(self.followed, key=lambda s: (s.rows * s.length, s.padded, s.supervised)), len(self.followed)

    @property
    def requests(self) -> list[tuple]:
        """What must be counted for it."""
        return [(self.subject, *self.typical), (self.subject, *self.largest)]


def cost_records(folders: Iterable[Path]) -> tuple[list[dict], list[Path]]:
    """Good ``cost`` records of this machine under these folders of results; and the files that are damaged, or lack what a
    plan needs of a good one. Raises UserError for a folder that is not there."""
    here, found, damaged = _hardware(provenance()), [], []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                f"{folder}: no such folder of results. Name one that holds <suite>/cost/, or a suite's own."
            )
        for path in sorted({*folder.glob("cost/*/*/*/cost.json"), *folder.glob("*/cost/*/*/*/cost.json")}):
            try:
                content = record.read(path)
                if content["status"] == "ok" and _told(content) == here:
                    found.append(content)
            except (ValueError, KeyError, TypeError, AttributeError):
                damaged.append(path)
    return found, damaged


def _told(content: dict) -> tuple:
    """The hardware of a record that has all that is read of it. Raises KeyError, TypeError or AttributeError."""
    specification, seconds = content["specification"], content["seconds"]
    for part, names in (
        (content, NEEDED),
        (specification, ("hyperparameters", "protocol")),
        (specification["corpus"], ("name", "fields")),
        (seconds, ("median", "q25", "q75")),
    ):
        for name in names:
            part[name]
    return _hardware(content["provenance"])


def _hardware(origin: dict) -> tuple:
    return (origin["device"].partition(":")[0], *(json.dumps(origin["hardware"].get(key)) for key in SAME))


def timed(content: dict) -> Timed | None:
    """None where the record's model or method is not known any more, or its steps' shapes are not."""
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
    if not told:  # made before records told them
        return None
    steps = [[Shape(*shape) for shape in step] for step in told["timed"]]
    return Timed(content, subject, steps, [Shape(*shape) for shape in told["followed"]])


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
        predicted_memory=followed.memory(sampled=False),
        precision=cell.subject.precision,
    )
