"""How often real runs of one method are called different from one another: ``python -m evidence.false_calls --collected DIR``.

A suite with one method under many seeds (config/same-method.yaml): two disjoint groups of its seeds differ by chance alone,
so each difference that ``evidence.paired`` calls is a false call. Seeds are drawn at random into two groups and paired in the
order drawn; for single seeds every pair is formed. The groupings share seeds and are far from independent, so the rate's
interval is a jackknife's over *seeds*: what the rate is without each seed in turn (B. Efron, SIAM 1982). ``--out
docs/coverage.md`` writes the section there, below what simulations say.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evidence.cells import BASELINES, EvidenceError
from evidence.collected import Collected
from evidence.coverage import REAL_RUNS, tested
from evidence.layout import markdown_escape
from evidence.paired import LEAST_SEEDS
from evidence.pools import panels
from evidence.score_table import names_of

if TYPE_CHECKING:
    import numpy as np

SIZES = (1, 2, 3, 5)
GROUPINGS = 20_000
CHUNK = 500  # groupings at a time
HEAD = ("benchmark", "method", "seeds (sd)", "items", "group", "groupings", "called different [95 %]", "seeds left out")


@dataclass(frozen=True)
class Rate:
    """``called``: share of groupings called different, with bounds; ``alone``: by an interval that leaves seeds out."""

    size: int
    groupings: int
    called: float
    low: float
    high: float
    alone: float


def groupings(seeds: int, size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """(n, 2, size) indices of seeds: every pair where groups are single seeds, else ``count`` drawn without replacement."""
    import numpy as np

    if size == 1:
        return np.array(list(itertools.combinations(range(seeds), 2)))[:, :, None]
    return np.argsort(rng.random((count, seeds)), axis=1)[:, : 2 * size].reshape(count, 2, size)


def false_calls(values: np.ndarray, size: int, count: int, rng: np.random.Generator) -> Rate:
    """``values``: (seeds, items) of one method. ValueError for fewer than twice ``size`` seeds and two to leave out."""
    import numpy as np

    seeds = len(values)
    if seeds < 2 * size + 2:
        raise ValueError(f"groups of {size} need {2 * size + 2} seeds or more, not {seeds}")
    drawn = groupings(seeds, size, count, rng)
    called, alone = [], []
    for part in np.array_split(drawn, math.ceil(len(drawn) / CHUNK)):
        value, half, _, items = tested(values[part[:, 0]] - values[part[:, 1]])
        called.append(abs(value) > half)
        alone.append(abs(value) > items)
    called, alone = np.concatenate(called), np.concatenate(alone)
    holds = np.zeros((len(drawn), seeds), bool)
    np.put_along_axis(holds, drawn.reshape(len(drawn), -1), True, axis=1)
    without = np.array([called[~holds[:, seed]].mean() for seed in range(seeds)])
    error = math.sqrt((seeds - 1) / seeds * ((without - without.mean()) ** 2).sum())
    rate = float(called.mean())
    low, high = max(0.0, rate - 1.96 * error), min(1.0, rate + 1.96 * error)
    return Rate(size, len(drawn), rate, low, high, float(alone.mean()))


def rows(collected: Collected, count: int = GROUPINGS, seed: int = 0) -> Iterator[tuple[str, str, object, Rate]]:
    """(benchmark, method, pool, rate) of every benchmark, method and size of group that the suite has seeds for."""
    import numpy as np

    names, rng = names_of(collected), np.random.default_rng(seed)
    for panel in panels(collected, reference=False):
        for (variant, model), pool in panel.pools.items():
            if variant in BASELINES or not pool.items or panel.unresolved(model):
                continue
            for size in SIZES:
                if len(pool.used) >= 2 * size + 2:
                    rate = false_calls(pool.items.values, size, count, rng)
                    yield f"{panel.label}, {names[model]}", names[variant], pool, rate


def section(found: list[tuple], suite: str) -> str:
    """The part of docs/coverage.md. Raises EvidenceError where the suite holds nothing of the kind."""
    if not any(rate.size >= LEAST_SEEDS for *_, rate in found):
        raise EvidenceError(
            f"suite '{suite}' has no method under {2 * LEAST_SEEDS + 2} seeds or more whose score is a mean over items. "
            "Run config/same-method.yaml, or one like it."
        )
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for benchmark, method, pool, rate in found:
        group = f"{rate.size} against {rate.size}" + ("" if rate.size >= LEAST_SEEDS else " (items only)")
        called = f"{rate.called:.1%} [{rate.low:.1%}, {rate.high:.1%}]"
        counted = f"{len(pool.used)} ({pool.spread.sd:.1f})"
        cells = (benchmark, method, counted, pool.n_items, group, f"{rate.groupings:,}", called, f"{rate.alone:.1%}")
        lines.append(f"| {' | '.join(markdown_escape(str(text)) for text in cells)} |")
    told = ", ".join(
        f"{rate.called:.1%} ({rate.size} against {rate.size}, {benchmark})"
        for benchmark, _, _, rate in found
        if rate.size >= LEAST_SEEDS
    )
    text = (
        f"`python -m evidence.false_calls --collected results/{suite}/collected`: runs of one method in two disjoint groups of "
        f"seeds. Called different, where 5 % are meant: {told}. Intervals are a jackknife's over seeds, since groupings share "
        "them. Fewer than three seeds a group: the items only, which is what such a comparison says of itself."
    )
    how = "Seeds left out: the rate of intervals that cover the choice of items only, whatever the number of seeds."
    return "\n\n".join([REAL_RUNS, text, how, "\n".join(lines)]) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evidence.false_calls", description=__doc__.splitlines()[0])
    parser.add_argument("--collected", type=Path, required=True, help="folder that evidence.collect wrote")
    parser.add_argument("--groupings", type=int, default=GROUPINGS, help="drawn of each kind")
    parser.add_argument("--out", type=Path, help="page whose section on real runs is written anew")
    arguments = parser.parse_args(argv)
    try:
        collected = Collected(arguments.collected)
        found = []
        for row in rows(collected, arguments.groupings):
            found.append(row)
            print(f"{row[0]}, groups of {row[3].size}: {row[3].called:.1%}", flush=True)
        text = section(found, collected.suite["suite"])
    except EvidenceError as error:
        print(error, file=sys.stderr)
        return 2
    print(text)
    if arguments.out:
        before = arguments.out.read_text(encoding="utf-8").partition(REAL_RUNS)[0] if arguments.out.is_file() else ""
        arguments.out.write_text(before.rstrip() + "\n\n" * bool(before) + text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
