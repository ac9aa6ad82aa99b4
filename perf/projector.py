"""What a basis costs and what it captures: every builder on spectra, on a real model's gradients, and on all of it at once.

``python -m perf.projector`` (``--quick``: less of each) writes tables, CSV and figures of three things:

1. one matrix at a time, with singular values i^-a, by shape and rank: seconds, products, energy, principal angle;
2. all matrices of the model at once, as a refresh has them: the gradient of another batch after ``--steps`` steps of
   full fine-tuning; a warm builder has its own basis of the first batch's gradient at the start;
3. power iteration's products against the gap between eigenvalues, with what theory says.

Energy: ||G Q^T||^2 over the most that a basis of that rank captures. Angle: sine of the largest principal angle to the
exact basis. Times of the second part are ratios of rounds alternated in one process, against galore-torch's projector
where it is installed (it is a yardstick, no dependency), else against the same LAPACK call made here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from harness import assets
from harness.device import choose_device
from perf import projector_gap, projector_report
from perf.projector_gradients import Gradients, Refreshes, contestants, steps
from perf.projector_spectra import EXPONENTS, SHAPES, spectra

RANKS = (8, 32, 128)


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    device = choose_device(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    settings = {"model": options.model, "steps": options.steps, "threads": options.threads, "torch": torch.__version__}
    gaps = projector_gap.curves(options.seeds, options.gaps)
    print("products against the gap: done", flush=True)
    one_by_one = list(spectra(options))
    whole, seconds, between = [], {}, {}
    try:
        found = Gradients(options, device)
    except assets.AssetMissing as error:
        print(f"NOT RUN: no gradients of {options.model}: {error}", flush=True)
        settings["missing"] = str(error)
    else:
        settings |= {"source": found.source, "matrices": len(found.matrices)}
        there = Refreshes(found, options)
        there.alternate(contestants(there, options))
        whole, seconds, between = there.rows, there.seconds, steps(found, options)
    projector_report.write(settings, gaps, one_by_one, whole, seconds, between, options.out)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perf.projector", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two shapes, two spectra, fewer repeats and steps")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--steps", type=int, default=None, help="of full fine-tuning between the batches (200; quick 20)"
    )
    parser.add_argument("--rows", type=int, default=8, help="of a batch")
    parser.add_argument("--rounds", type=int, default=None, help="of refreshes (5; quick 2)")
    parser.add_argument("--step-rounds", type=int, default=20, help="of steps without refresh")
    parser.add_argument("--seeds", type=int, default=20, help="of power iteration against the gap")
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/perf"))
    options = parser.parse_args(argv)
    short = options.quick
    options.shapes, options.exponents = (SHAPES[1:3], EXPONENTS[1:]) if short else (SHAPES, EXPONENTS)
    options.repeats, options.gaps = (1, projector_gap.GAPS[::2]) if short else (3, projector_gap.GAPS)
    options.steps = options.steps if options.steps is not None else 20 if short else 200
    options.rounds = options.rounds if options.rounds is not None else 2 if short else 5
    return options


if __name__ == "__main__":
    main()
