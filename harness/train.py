"""Stage ``train``: one training, from its cell to its record.

``python -m harness.train --suite quick --model M --corpus C --variant V --seed 0`` works from a shell, too. A result
(trained, or diverged) is a record and exit 0; SIGTERM checkpoints and exits 75; the same command then goes on.
"""

from __future__ import annotations

import argparse
import math
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from harness import record
from harness.failures import BadAnswer, UserError, guard
from harness.suite import Training, load_suite, train_record

INTERRUPTED = 75


class Interrupted(Exception):
    """SIGTERM came; a checkpoint is written."""


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv, "Train one cell of a suite, or one trial of its tuning.", "trial")
    training = cell(arguments)
    claim(training, replace=arguments.replace)
    if not training.trains:
        record.write(
            train_record(training), {**start_record(training, training.stage), "status": "ok", "steps": 0, "phases": {}}
        )
        return 0
    try:
        done = run(training)
    except Interrupted as stop:
        print(f"interrupted: {stop}. The same command goes on from there.", flush=True)
        return INTERRUPTED
    record.write(train_record(training), done)
    shutil.rmtree(training.folder / "checkpoint", ignore_errors=True)  # last: until then a failure goes on from it
    return 0


def parse(argv: list[str] | None, description: str, *more: str) -> argparse.Namespace:
    """The arguments that name a cell, the same for every stage; ``more``: names of optional numbers."""
    parser = argparse.ArgumentParser(description=description)
    for name in ("suite", "model", "corpus", "variant"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seed", type=int, required=True)
    for name in more:
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--replace", action="store_true", help="discard what another specification left in the folder")
    return parser.parse_args(argv)


def cell(arguments: argparse.Namespace) -> Training:
    suite = load_suite(arguments.suite)
    named = (arguments.model, arguments.corpus, arguments.variant, arguments.seed)
    trial = getattr(arguments, "trial", None)
    return suite.training(*named) if trial is None else suite.trial(*named, trial)


def claim(training: Training, replace: bool) -> None:
    """Mark the folder as this specification's. Another's is refused, or emptied with ``replace``."""
    folder = training.folder
    folder.mkdir(parents=True, exist_ok=True)
    marker, mark = folder / "key", training.mark
    held = marker.read_text(encoding="utf-8").strip() if marker.is_file() else mark
    leftovers = [path for path in folder.iterdir() if path.name not in ("key", ".lock")]
    if held != mark and leftovers and not replace:
        raise UserError(
            f"{folder} holds a training of another specification (key {held}, now {mark}). Move it away, name the "
            "variant anew, or pass --replace to discard it."
        )
    for leftover in leftovers if held != mark else []:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    marker.write_text(mark + "\n", encoding="utf-8")


def start_record(training: Training, stage: str) -> dict:
    """What a record of this cell begins with."""
    from harness.assets import revisions
    from harness.provenance import provenance

    return {
        "stage": stage,
        **training.identity,
        "reason": "",
        "key": training.key,
        "specification": training.trained_with(),
        "assets": revisions(training.suite.assets(training)),
        "provenance": provenance(training.protocol["threads"]),
    }


def check_positions(training: Training, model: Any) -> None:
    """Raise UserError where rows may be longer than the model has learned positions for; others take any length."""
    learned = ("position_embeddings", "wpe")
    tables = {n: m for n, m in model.named_modules() if n.endswith(learned) and hasattr(m, "num_embeddings")}
    for table in tables.values():
        first = 0 if table.padding_idx is None else table.padding_idx + 1  # RoBERTa's places begin after its padding's
        longest, limit = training.protocol["max_length"], table.num_embeddings - first
        if longest > limit:
            raise UserError(
                f"{training.model} has {limit} positions, and protocol.max_length is {longest}: set it to at most {limit} "
                "(for this model alone: overrides, when: {model: ...}, set: {protocol.max_length: ...})"
            )


def run(training: Training) -> dict:
    """Train, and give the record."""
    from harness import checkpoint
    from harness.assets import revisions
    from harness.loop import Diverged, run_steps
    from harness.measure import Phases, clocks, rss_peak_bytes
    from harness.setup import build

    phases = Phases()
    setup = build(training, phases)
    check_positions(training, setup.trainer.model)
    trainer, folder = setup.trainer, training.folder
    saved = folder / "checkpoint" / "checkpoint.pt"
    mark = f"{training.mark} {record.text(revisions(training.suite.assets(training)))}"
    content = checkpoint.load_checkpoint(saved, trainer, mark)
    if content:
        phases.go_on_from(content["phases"])
        setup.tokens_probed = content["tokens_probed"]
        print(f"going on from step {trainer.state.step} of {trainer.total}", flush=True)
    else:
        with phases("prepare"):
            setup.initialize()
    curve = _open_curve(folder / "curves.jsonl", content["curve"] if content else 0, trainer)
    curve.overhead = content["instrument_seconds"] if content else 0.0

    def save() -> None:
        with phases("save"):
            curve.flush(force=True)
            extra = {"phases": phases.so_far(), "curve": curve.position(), "instrument_seconds": curve.overhead}
            extra["tokens_probed"] = setup.tokens_probed
            checkpoint.save_checkpoint(saved, trainer, mark, extra)

    status, reason = "ok", ""
    try:
        if not content:
            setup.validate(curve, phases)
        with phases("train") as ledger:
            trainer.restore_hook()
            run_steps(trainer, setup.micro_batches, curve, between=_Between(training, setup, curve, phases, save))
        ledger["tokens"] = trainer.state.total_tokens
        _check_validation(trainer.state)
    except Diverged as error:
        status, reason = "diverged", str(error)
    if status == "ok" and training.stage == "train":  # nobody asks a trial's model anything
        with phases("save"):
            checkpoint.save_delta(folder / "delta.safetensors", trainer, setup.base)
    curve.close()
    return {
        **start_record(training, training.stage),
        "status": status,
        "reason": reason,
        "steps": trainer.state.step,
        **setup.facts(),
        "facts": _facts(training, trainer),
        "phases": phases.record,
        "clocks": clocks(folder / "curves.jsonl"),
        "memory": {"rss_peak_bytes": rss_peak_bytes()},
        "loss": {
            "first": trainer.state.first_loss,
            "last": trainer.state.last_loss,
            "validation": trainer.state.validations,
        },
        "instrument_seconds": curve.overhead,
        "files": {
            p.stem: record.file_entry(p) for p in (folder / "curves.jsonl", folder / "delta.safetensors") if p.exists()
        },
    }


def _facts(training: Training, trainer) -> dict:
    """The method's facts, which a record must be able to hold."""
    facts = trainer.method.facts(trainer.model)
    try:
        record.text(facts)
    except (TypeError, ValueError) as error:
        raise BadAnswer(
            f"method {training.method}: facts() gives what a record cannot hold ({error}); numbers, texts, lists and "
            "dictionaries of them can stand there"
        ) from None
    return facts


def _check_validation(state) -> None:
    """Raise Diverged where the last validation is no number: the loss before an update does not see what it did."""
    from harness.loop import Diverged

    step, loss = state.validations[-1] if state.validations else (0, 0.0)
    if not math.isfinite(loss):
        raise Diverged(f"the validation loss is {loss} after step {step}")


class _Between:
    """After every step: validation when due, a checkpoint when due or on SIGTERM, a line of progress every five seconds."""

    def __init__(self, training: Training, setup, curve, phases, save):
        self.setup, self.curve, self.phases, self.save = setup, curve, phases, save
        self.every = training.suite.limits["checkpoint_every"]
        self.validate_every = training.protocol["validate_every"]
        self.stop = False
        self.started = self.told = time.monotonic()
        self.first = setup.trainer.state.step
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: object) -> None:
        self.stop = True

    def __call__(self) -> None:
        trainer = self.setup.trainer
        done, total = trainer.state.step, trainer.total
        if done == total or (self.validate_every and done % self.validate_every == 0):
            self.setup.validate(self.curve, self.phases)
        if done < total and self.every and done % self.every == 0 and not self.stop:
            self.save()
        if self.stop and done < total:
            self.save()
            raise Interrupted(f"checkpoint after step {done} of {total}")
        if time.monotonic() - self.told > 5:
            self.told = time.monotonic()
            left = (self.told - self.started) / (done - self.first) * (total - done)
            print(f"step {done}/{total}  loss {trainer.state.last_loss:.4f}  about {left:.0f} s left", flush=True)


def _open_curve(path: Path, keep: int, trainer):
    """The curve's file, cut back to what the checkpoint knows of."""
    from harness.measure import Curve

    if path.exists():
        with open(path, "r+b") as file:
            file.truncate(keep)
    return Curve(path, every=1 if trainer.device.type == "cpu" else 10)


if __name__ == "__main__":
    sys.exit(guard(main)())
