"""What a basis costs and what it captures: every builder on spectra, on a real model's gradients, and on all of it at once.

``python -m perf.projector`` (``--quick``: less of each) writes tables, CSV and figures of three things:

1. one matrix at a time, with singular values i^-a, by shape and rank: seconds, products, energy, principal angle;
2. all matrices of the model at once, as a refresh has them: the gradient of another batch after ``--steps`` steps of
   full fine-tuning; a warm search has its own basis of the first batch's gradient at the start;
3. power iteration's products against the gap between eigenvalues, with what theory says.

Energy: ||G Q^T||^2 over the most that a basis of that rank captures. Angle: sine of the largest principal angle to the
exact basis. Times of the second part are ratios of rounds alternated in one process, against galore-torch where it is
installed (it is a yardstick, no dependency), else against the same LAPACK call made here. ``--parts model`` with
``--gradients FILE`` measures in some minutes, once a first run has trained and filled the file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from harness import assets
from harness.device import choose_device
from perf import projector_gap, projector_report
from perf.projector_gradients import Gradients
from perf.projector_refresh import Refreshes, contestants, steps
from perf.projector_spectra import EXPONENTS, SHAPES, spectra

RANKS = (8, 32, 128)
PARTS = ("gaps", "spectra", "model", "steps")


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    choose_device(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    kept = options.out / "projector.json"
    found = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}  # parts that are not asked for
    found["settings"] = found.get("settings", {}) | {"threads": options.threads, "torch": torch.__version__}
    if "gaps" in options.parts:
        found["gaps"] = projector_gap.curves(options.seeds, options.gaps)
        print("products against the gap: done", flush=True)
    if "spectra" in options.parts:
        found["spectra"] = list(spectra(options))
    if {"model", "steps"} & set(options.parts):
        measure_model(options, found)
    projector_report.write(found, options.out)


def measure_model(options: argparse.Namespace, found: dict) -> None:
    """``found`` with the whole model's refreshes and steps, or with the reason why there are none."""
    found["settings"] |= {"model": options.model, "steps": options.steps}
    try:
        gradients = Gradients(options, choose_device(options.threads))
    except assets.AssetMissing as error:
        print(f"NOT RUN: no gradients of {options.model}: {error}", flush=True)
        found["settings"]["missing"] = str(error)
        return
    found["settings"] |= {"source": gradients.source, "matrices": len(gradients.matrices)}
    if "model" in options.parts:
        there = Refreshes(gradients, options)
        there.alternate(contestants(there, options))
        found |= {"whole": there.rows, "seconds": there.seconds}
    if "steps" in options.parts:
        found["steps"] = steps(gradients, options)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perf.projector", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two shapes, two spectra, fewer repeats and steps")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="the rest is taken from --out")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--steps", type=int, default=None, help="of full fine-tuning between the batches (200; quick 20)"
    )
    parser.add_argument("--rows", type=int, default=4, help="of a batch")
    parser.add_argument("--length", type=int, default=128, help="of a row, in tokens")
    parser.add_argument("--gradients", type=Path, help="a file to keep them in, or to read them from")
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
