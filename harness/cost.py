"""Stage ``cost``: what a step of a method costs, with the machine to itself, in a process of its own.

Some steps are timed as they are; then one step is followed tensor by tensor for memory, and one is counted for FLOPs:
following and counting never touch a timed step.
"""

from __future__ import annotations

import statistics
import sys
import time

from harness import record
from harness.failures import guard
from harness.suite import Training, cost_record
from harness.train import cell, parse, start_record

WARM_STEPS = 2  # not timed: first-touch memory, optimizer state


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
    setup = build(training, phases, at_least=WARM_STEPS + timed + 2)
    with phases("prepare"):
        setup.initialize()
    trainer = setup.trainer
    path = cost_record(training).with_name("curves.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    curve = Curve(path)
    trainer.build_optimizers()
    with SupervisedLogits(trainer.model) as logits, training_mode(trainer.model, True), phases("train"):
        seconds, tokens = _timed_steps(setup, logits, curve, timed)
        overhead = curve.overhead / max(1e-9, sum(seconds))
        rss = rss_peak_bytes()
        memory = _memory(setup, logits, curve)
        flops = _flops(setup, logits, curve)
    curve.close()
    facts = setup.facts()
    per_token = sum(seconds) / sum(tokens)
    quartiles = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    epoch_tokens = sum(row.length for row in setup.rows["train"])
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
        "epoch_seconds": per_token * epoch_tokens,
        "attach_seconds": phases.record["load"]["seconds"],
        "prepare_seconds": phases.record["prepare"]["seconds"],
        "memory": {**memory, "rss_peak_bytes": rss, **_cuda(phases)},
        "flops_per_step": flops,
        "instrument_overhead": overhead,
        "parameters": facts["parameters"],
        "phases": phases.record,
        "files": {"curves": record.file_entry(path)},
    }


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


def _memory(setup, logits, curve) -> dict[str, int]:
    """Peak live tensor bytes of one more step, by kind."""
    from harness.measure import LiveTensors

    trainer, method = setup.trainer, setup.trainer.method
    seen = []
    clip = method.clip

    def noting_clip(model, max_norm):
        seen.append(live.gradient_bytes())
        return clip(model, max_norm)

    method.clip = noting_clip  # the one moment when every gradient of the step is there
    batches = setup.micro_batches(trainer.state.step)
    with LiveTensors(trainer.model, trainer.optimizers) as live:
        trainer.step(batches, logits, curve)
    del method.clip
    return live.split(seen[0])


def _flops(setup, logits, curve) -> int:
    """FLOPs of one more step, forward and backward (matrix products and attention as torch counts them)."""
    from torch.utils.flop_counter import FlopCounterMode

    batches = setup.micro_batches(setup.trainer.state.step)
    with FlopCounterMode(display=False) as counter:
        setup.trainer.step(batches, logits, curve)
    return counter.get_total_flops()


def _cuda(phases) -> dict[str, int]:
    return {key: value for key, value in phases.record["train"].items() if key.startswith("cuda_")}


if __name__ == "__main__":
    sys.exit(guard(main)())
