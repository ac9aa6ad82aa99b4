"""Stage ``cost``: what a step of a method costs, with the machine to itself, in a process of its own.

Some steps are timed as they are; then one step is followed tensor by tensor for memory, and one is counted for FLOPs:
following and counting never touch a timed step.

Where a method's steps differ, each kind has its own number, and the whole training's time is their sum. Two fields of
a method are known here: ``refresh_every`` (its work under ``step.clock("refresh")`` is timed at the first step and once
more after the timed ones, and one refreshing step is followed for memory) and ``warmup_steps`` (steps before
``after_step`` changes what trains: as many are timed, the last is followed for memory, and the method's own steps are those
after it).

Every method is measured on the same batches, whatever steps it takes before and between: the first WARM_STEPS, then the
timed ones, then one that is followed, counted, and refreshed on.
"""

from __future__ import annotations

import statistics
import sys
import time

from harness import record
from harness.failures import guard
from harness.suite import Training, cost_record
from harness.train import cell, check_positions, parse, start_record

WARM_STEPS = 2  # not timed: first-touch memory, optimizer state
NEVER = 1 << 62


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv, "Measure one cell's step, alone on the machine.")
    training = cell(arguments)
    record.write(cost_record(training), run(training))
    return 0


def run(training: Training) -> dict:
    """Time, then memory, then FLOPs of one cell's steps."""
    import torch

    from harness.loss import SupervisedLogits, training_mode
    from harness.measure import Curve, Phases, rss_peak_bytes
    from harness.setup import build

    phases = Phases()
    timed = training.suite.limits["cost_steps"]
    steps = 2 * (WARM_STEPS + timed) + 1 + 4  # all that follow, so that a schedule does not end before them
    setup = build(training, phases, at_least=steps)
    check_positions(training, setup.trainer.model)
    with phases("prepare"):
        setup.initialize()
    trainer = setup.trainer
    path = cost_record(training).with_name("curves.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    curve = Curve(path)
    trainer.build_optimizers()
    with SupervisedLogits(trainer.model) as logits, training_mode(trainer.model, True), phases("train"):
        followed = WARM_STEPS + timed
        warmup = _warm_up(setup, logits, curve, timed)
        every = _set(trainer.method, "refresh_every", NEVER)  # the first step refreshes all the same
        curve.overhead = 0.0
        seconds, tokens = _timed_steps(setup, logits, curve, timed)
        overhead = curve.overhead / max(1e-9, sum(seconds))
        refresh = _refresh(setup, logits, curve, every, followed)
        rss = rss_peak_bytes()
        memory = _memory(setup, logits, followed)
        flops = _flops(setup, logits, curve, followed)
    curve.close()
    trainer.optimizers.clear()  # its memory is told; the data-dependent start has none beside it
    start = _start_memory(training, steps)
    facts = setup.facts()
    per_token = sum(seconds) / sum(tokens)
    quartiles = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    epoch_tokens = sum(row.length + (row.supervised if setup.kind == "seq2seq" else 0) for row in setup.rows["train"])
    epoch = per_token * epoch_tokens + (refresh["seconds"] * facts["epoch_steps"] / every if refresh else 0.0)
    prepare = phases.record["prepare"]["seconds"]
    return {
        **start_record(training, "cost"),
        "status": "ok",
        "threads": torch.get_num_threads(),
        "batch_tokens": statistics.mean(tokens),
        "seconds": {
            "median": quartiles[1],
            "q25": quartiles[0],
            "q75": quartiles[2],
            "n": len(seconds),
            "all": seconds,
        },
        "tokens_per_second": 1 / per_token,
        "epoch_steps": facts["epoch_steps"],
        "epoch_seconds": epoch,
        "refresh": refresh,
        "warmup": warmup,
        "whole": {"steps": setup.steps, "seconds": prepare + whole(setup.steps, quartiles[1], refresh, warmup)},
        "attach_seconds": phases.record["load"]["seconds"],
        "prepare_seconds": prepare,
        "start": start,
        "memory": {**memory, "rss_peak_bytes": rss, **_cuda(phases)},
        "flops_per_step": flops,
        "shapes": _shapes(setup, timed, followed),
        "instrument_overhead": overhead,
        "parameters": facts["parameters"],
        "phases": phases.record,
        "files": {"curves": record.file_entry(path)},
    }


def whole(steps: int, step: float, refresh: dict | None, warmup: dict | None) -> float:
    """Seconds of a training of so many steps from the median seconds of each kind of step."""
    first = min(steps, warmup["steps"]) if warmup else 0
    spent = first * warmup["seconds"] if warmup else 0.0
    spent += (steps - first) * step
    if refresh:  # at steps 0, every, 2 every, ...
        spent += -(-steps // refresh["every"]) * refresh["seconds"]
    return spent


def _timed_steps(setup, logits, curve, timed: int) -> tuple[list[float], list[int]]:
    """Seconds and tokens (without padding) of each timed step, batches made beforehand."""
    from harness.measure import synchronize

    trainer, seconds, tokens = setup.trainer, [], []
    for number in range(WARM_STEPS + timed):
        batches = setup.micro_batches(number)
        synchronize()
        start = time.perf_counter()
        trainer.step(batches, logits, curve)
        curve.flush()
        synchronize()
        if number >= WARM_STEPS:
            seconds.append(time.perf_counter() - start)
            tokens.append(sum(batch.total_tokens for batch in batches))
        print(f"step {number + 1}/{WARM_STEPS + timed}", flush=True)
    return seconds, tokens


def _warm_up(setup, logits, curve, timed: int) -> dict | None:
    """Steps before the method changes what it trains, cut short: their time, and memory of the step that changes it."""
    steps = _set(setup.trainer.method, "warmup_steps", WARM_STEPS + timed + 1)
    if not steps:
        return None
    before = setup.trainer.state.schedule_start
    seconds, _ = _timed_steps(setup, logits, curve, timed)
    memory = _memory(setup, logits, WARM_STEPS + timed)
    if setup.trainer.state.schedule_start == before:
        raise ValueError(f"{type(setup.trainer.method).__name__} has warmup_steps, but nothing changed after them")
    shapes = _shapes(setup, timed, WARM_STEPS + timed)
    return {
        "steps": steps,
        "seconds": statistics.median(seconds),
        "n": len(seconds),
        "memory": memory,
        "shapes": shapes,
    }


def _start_memory(training: Training, steps: int) -> dict | None:
    """Peak live tensor bytes of a method's data-dependent start, in a set-up of its own, as following it takes time; None where
    it has none."""
    from harness.contract import Method
    from harness.measure import LiveTensors, Phases
    from harness.setup import build

    setup = build(training, Phases(), at_least=steps)
    if type(setup.trainer.method).initialize is Method.initialize:
        return None
    with LiveTensors(setup.trainer.model, []) as live:
        setup.initialize()
    return {"memory": live.split(0)}


def _refresh(setup, logits, curve, every: int | None, batch: int) -> dict | None:
    """The refresh of the first step, of one more step that is made to refresh, and memory of a third; None where nothing is
    refreshed."""
    first, age = curve.clocked.get("refresh"), setup.trainer.state.step
    if not every or not first:
        return None
    _refresh_now(setup)
    setup.trainer.step(setup.micro_batches(batch), logits, curve)
    curve.flush(force=True)
    seconds = curve.clocked["refresh"][-1]
    _refresh_now(setup)
    memory = _memory(setup, logits, batch)
    setup.trainer.method.refresh_every = NEVER
    return {"every": every, "first_seconds": first[0], "seconds": seconds, "basis_age": age, "memory": memory}


def _refresh_now(setup) -> None:
    """The next step is a multiple of the interval, so that it refreshes."""
    setup.trainer.method.refresh_every = setup.trainer.state.step


def _set(method, name: str, value: int) -> int | None:
    """Give a method's field another value; what it had, None where it has no such field or does not use it."""
    had = getattr(method, name, None)
    if had:
        setattr(method, name, value)
    return had


def _memory(setup, logits, batch: int) -> dict[str, int]:
    """Peak live tensor bytes of one more step, by kind. No curve follows it: what that compares is not the method's."""
    from harness.measure import Curve, LiveTensors

    trainer, method = setup.trainer, setup.trainer.method
    seen = []
    clip = method.clip

    def noting_clip(model, max_norm):
        seen.append(live.gradient_bytes())
        return clip(model, max_norm)

    method.clip = noting_clip  # the one moment when every gradient of the step is there
    batches = setup.micro_batches(batch)
    with LiveTensors(trainer.model, trainer.optimizers) as live:
        trainer.step(batches, logits, Curve(None))
    del method.clip
    return live.split(seen[0])


def _shapes(setup, timed: int, followed: int) -> dict:
    """[rows, padded length, targets, whether anything is padding] of each micro-batch of the timed steps and of the one
    followed for memory: what ``harness.plan`` compares itself with."""

    def shape(batch) -> list:
        first, mask = next(iter(batch.inputs.values())), batch.inputs.get("attention_mask")
        length = first.shape[1] if first.ndim == 2 else 1
        return [len(first), length, batch.tokens, mask is not None and not bool(mask.all())]

    def step(number: int) -> list[list]:
        return [shape(batch) for batch in setup.micro_batches(number)]

    return {
        "timed": [step(number) for number in range(WARM_STEPS, WARM_STEPS + timed)],
        "followed": step(followed),
    }


def _flops(setup, logits, curve, batch: int) -> int:
    """FLOPs of one more step, forward and backward (matrix products and attention as torch counts them)."""
    from torch.utils.flop_counter import FlopCounterMode

    batches = setup.micro_batches(batch)
    with FlopCounterMode(display=False) as counter:
        setup.trainer.step(batches, logits, curve)
    return counter.get_total_flops()


def _cuda(phases) -> dict[str, int]:
    return {key: value for key, value in phases.record["train"].items() if key.startswith("cuda_")}


if __name__ == "__main__":
    sys.exit(guard(main)())
