"""What the intervals of ``evidence.paired`` cover, by simulation: ``python -m evidence.coverage --out docs/coverage.md``.

Two methods with the same true score, on the same items under the same seeds: how often the 95 % interval of their difference
holds zero, for graded (binary) and continuous items and a corpus-level ratio of sums, with seeds that deviate by 0, 1 and 3
points of 100; how often the two are called different; and how often a planted difference of twice the detectable one is.
What real runs say stands below on the same page, and stays there (``evidence.false_calls``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING

from evidence import paired

if TYPE_CHECKING:
    import numpy as np

SEEDS, ITEMS, DEVIATIONS = (2, 3, 5), (64, 256, 1319), (0.0, 1.0, 3.0)
LOW, HIGH = 0.93, 0.98
REAL_RUNS = "## On real runs"  # the section that evidence.false_calls writes
HEAD = ("outcome", "seeds", "items", "seed sd", "covers", "items alone", "median width", "found at 2x detectable")


def binary(rng: np.random.Generator, shape: tuple[int, int, int], deviation: float, gap: float) -> np.ndarray:
    """Differences of right (100) and wrong (0): items of every difficulty, seeds that shift all of them."""
    import numpy as np

    n, seeds, items = shape
    difficulty = rng.beta(2, 2, (n, 1, items))
    answers = []
    for shift in (gap, 0.0):
        chance = difficulty + (shift + rng.normal(0, deviation, (n, seeds, 1))) / 100
        answers.append(rng.random(shape) < np.clip(chance, 0, 1))
    return 100.0 * (answers[0].astype(float) - answers[1])


def continuous(rng: np.random.Generator, shape: tuple[int, int, int], deviation: float, gap: float) -> np.ndarray:
    """Differences of two scores of skewed items, such as ROUGE's."""
    n, seeds, items = shape
    both = rng.gamma(2.0, 15.0, (2, n, 1, items)) + rng.normal(0, 20, (2, *shape))
    both = both + rng.normal(0, deviation, (2, n, seeds, 1))
    return both[0] - both[1] + gap


def corpus(rng: np.random.Generator, shape: tuple[int, int, int], deviation: float, gap: float) -> np.ndarray:
    """Linearised differences of ratios of sums over items of very different lengths, such as likelihood per token."""
    import numpy as np

    n, seeds, items = shape
    lengths = rng.geometric(0.05, (n, 1, items)).astype(float)
    ratios = []
    for shift in (gap, 0.0):
        level = (
            40
            + shift
            + rng.normal(0, deviation, (n, seeds, 1))
            + rng.normal(0, 10, (n, 1, items))
            + rng.normal(0, 10, shape)
        )
        flat = paired.linearised(
            (level * lengths).reshape(-1, items), np.broadcast_to(lengths, shape).reshape(-1, items)
        )
        ratios.append(flat.reshape(shape))
    return ratios[0] - ratios[1]


OUTCOMES: dict[str, Callable] = {"binary": binary, "continuous": continuous, "corpus-level": corpus}


def simulate(
    outcome: str, seeds: int, items: int, deviation: float, experiments: int, rng: np.random.Generator
) -> dict:
    """One row of the table."""
    import numpy as np

    value, half, error, alone = tested(OUTCOMES[outcome](rng, (experiments, seeds, items), deviation, 0.0))
    wanted = 2 * np.median(half + error * NormalDist().inv_cdf(0.8))  # twice paired.detectable
    planted, wide, _, _ = tested(OUTCOMES[outcome](rng, (experiments, seeds, items), deviation, wanted))
    return {
        "outcome": outcome,
        "seeds": seeds,
        "items": items,
        "deviation": deviation,
        "covers": float((abs(value) <= half).mean()),
        "alone": float((abs(value) <= alone).mean()),
        "width": float(np.median(2 * half)),
        "power": float((abs(planted) > wide).mean()),
    }


def tested(d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(mean, half the interval, error, half of the interval over items alone) of each experiment, as paired_difference."""
    import numpy as np

    seeds, items = d.shape[1:]
    value, squares, rest = paired.mean_squares(d)
    between, df = paired.seed_part(squares, seeds, items)
    between = between if seeds >= paired.LEAST_SEEDS else np.zeros_like(rest)
    error = np.sqrt(between + rest)
    items_alone = paired.cochran(0.025, 0.0, df, rest, items - 1) * np.sqrt(rest)
    return value, paired.cochran(0.025, between, df, rest, items - 1) * error, error, items_alone


def rows(experiments: int, seed: int = 0) -> Iterator[dict]:
    import numpy as np

    rng = np.random.default_rng(seed)
    for outcome in OUTCOMES:
        for seeds in SEEDS:
            for items in ITEMS:
                for deviation in DEVIATIONS:
                    yield simulate(outcome, seeds, items, deviation, experiments, rng)


def page(found: list[dict], experiments: int) -> str:
    whole = [row for row in found if row["seeds"] >= paired.LEAST_SEEDS]
    outside = [row for row in whole if not LOW <= row["covers"] <= HIGH]
    false = 1 - sum(row["covers"] for row in whole) / len(whole)
    weakest = min(row["power"] for row in whole)
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for row in found:
        covers = f"{row['covers']:.3f}" + ("" if row["seeds"] >= paired.LEAST_SEEDS else " (items only)")
        cells = (row["outcome"], row["seeds"], row["items"], f"{row['deviation']:g}", covers, f"{row['alone']:.3f}")
        lines.append(f"| {' | '.join(map(str, cells))} | {row['width']:.2f} | {row['power']:.3f} |")
    covered = [row["covers"] for row in whole]
    inside = f"{len(whole) - len(outside)} of {len(whole)} rows lie within {LOW:.0%} to {HIGH:.0%}"
    text = (
        f"`python -m evidence.coverage`: {experiments:,} simulated experiments a row; the true difference is zero. At three "
        f"seeds and more {inside}, the lowest at {min(covered):.3f} and the highest at {max(covered):.3f}; two equal methods "
        f"are called different in {false:.1%} of {experiments * len(whole):,} pairs. A planted difference of twice the median "
        f"detectable one is found in {weakest:.1%} of the experiments or more. With two seeds an interval is of the items only "
        "and says so: it covers as if seeds did not deviate."
    )
    how = (
        "Seed sd: of each method's score, in points of 100. Items alone: what an interval covers that leaves seeds out."
    )
    return "\n\n".join(["# What the intervals of paired differences cover", text, how, "\n".join(lines)]) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evidence.coverage", description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=2000, help="of a row")
    parser.add_argument("--out", type=Path, help="write the page there")
    arguments = parser.parse_args(argv)
    found = []
    for row in rows(arguments.experiments):
        found.append(row)
        about = f"{row['outcome']}, {row['seeds']} seeds, {row['items']} items, sd {row['deviation']:g}"
        print(f"{about}: {row['covers']:.3f}", flush=True)
    text = page(found, arguments.experiments)
    print(text)
    if arguments.out:
        old = arguments.out.read_text(encoding="utf-8") if arguments.out.is_file() else ""
        kept = "\n" + old[old.index(REAL_RUNS) :] if REAL_RUNS in old else ""
        arguments.out.write_text(text + kept, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
