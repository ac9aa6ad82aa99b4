"""Footnotes of the score table: how to read a cell, and what a reader must know before believing one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evidence.cells import BASELINES, FAILED
from evidence.grades import PART
from evidence.pools import OTHER_STACK, STALE, Panel, Pool
from evidence.tiers import ITEMS_NOTE, NOTE

if TYPE_CHECKING:
    from evidence.collected import Collected

UNRESOLVED = "not resolvable at this scale"
MOST_FAILURES = 25
INTERVALS = {
    "Wilson, items": "Wilson's score interval where an item is right or wrong",
    "bootstrap, items": "percentile bootstrap over items for other means",
}


def notes(collected: Collected, found: Sequence[Panel], names: dict[str, str], runs: bool, tiers: bool) -> list[str]:
    """All footnotes that this table needs. ``names`` are labels of models and variants."""
    pools = [pool for panel in found for pool in panel.pools.values()]
    problems = [f"Note: {problem}" for problem in collected.suite.get("problems", [])]
    return [
        *_reading(found, pools, runs),
        *_probes(found, names),
        *([NOTE + ITEMS_NOTE] if tiers else []),
        *_doubts(found, pools),
        *failures(found, names),
        *problems,
    ]


def failures(found: Sequence[Panel], names: dict[str, str], most: int = MOST_FAILURES) -> list[str]:
    """Every failed run once, with its reason."""
    lines: dict[str, None] = {}
    for panel in found:
        corpus = panel.first("corpus_label", panel.corpus)
        for (variant, model), pool in panel.pools.items():
            for run in pool.runs:
                if run.status in FAILED and not pool.absent:
                    because = f" ({run.reason})." if run.reason else "."
                    where = f"{names[model]}, {corpus}, {names[variant]}, seed {run.seed}"
                    lines.setdefault(f"Failed: {where}: {run.status} in {run.stage}{because}")
    listed = list(lines)
    if len(listed) > most:
        listed[most:] = [f"... and {len(listed) - most} more failed runs: see runs.parquet."]
    return listed


def left_out(found: Sequence[Panel], names: dict[str, str], most: int = MOST_FAILURES) -> list[str]:
    """Every run that has no result or may not be averaged with the others, once: what a table of averages does not show."""
    lines: dict[str, None] = {}
    for panel in found:
        for (variant, model), pool in panel.pools.items():
            for run in pool.runs:
                if pool.absent or (run.seed in pool.used and not pool.mark):
                    continue
                why = run.status if run.value is None else ""
                why = why or ("stale" if run.stale else "") or f"other software ({run.other_stack})"
                because = f" in {run.stage} ({run.reason})" if run.value is None and run.reason else ""
                where = f"{names[model]}, {panel.label}, {names[variant]}, seed {run.seed}"
                lines.setdefault(f"Left out: {where}: {why}{because}.")
    listed = list(lines)
    if len(listed) > most:
        listed[most:] = [f"... and {len(listed) - most} more runs left out: see runs.parquet."]
    return listed


def _reading(found: Sequence[Panel], pools: Sequence[Pool], runs: bool) -> list[str]:
    """What the numbers in a cell are."""
    lines = ["Average ± standard deviation over runs (number of runs) [95 % interval]."]
    if kinds := {pool.interval.kind for pool in pools if pool.interval}:
        how = ", ".join(text for kind, text in INTERVALS.items() if kind in kinds)
        lines.append(f"Intervals cover the choice of items only, not of seeds: {how}.")
    if any(pool.used and pool.interval is None for pool in pools):
        lines.append("No interval: the metric is not a mean over items, or all items' parts in it are equal.")
    for panel in found:
        if any(str(name).endswith(PART) for name in panel.facts["numerator"]):
            said = str(panel.first("eval_label", panel.eval))
            lines.append(
                f"{said}, {panel.metric}: no mean over items; intervals by each item's leave-one-out part (jackknife)."
            )
    trained = [pool for panel in found for (variant, _), pool in panel.pools.items() if variant not in BASELINES]
    seeds = sorted({run.seed for pool in trained for run in pool.runs})
    if runs and seeds:
        listed = ", ".join(map(str, seeds))
        lines.append(f"Runs stand in the order of their seeds: {listed}. Untuned and majority have one run.")
    for panel in found:
        for text in panel.facts["texts"].dropna().unique():
            for name, value in (json.loads(text) if text else {}).items():
                lines.append(f"{panel.first('eval_label')}, {name}: {value}.")
    return list(dict.fromkeys(lines))


def _probes(found: Sequence[Panel], names: dict[str, str]) -> list[str]:
    """What some methods read before their first step, and others do not: it is in no count of steps."""
    read: dict[str, set[int]] = {}
    for panel in found:
        if "tokens_probe" not in panel.facts:  # collected by an earlier version
            continue
        for variant, tokens in panel.facts[["variant", "tokens_probe"]].dropna().itertuples(index=False):
            if tokens > 0:
                read.setdefault(variant, set()).add(int(tokens))
    told = [f"{names[variant]} reads {_range(counts)}" for variant, counts in read.items()]
    return [f"Beyond the tokens of its steps, before the first one: {', '.join(told)} tokens."] if told else []


def _range(counts: set[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _doubts(found: Sequence[Panel], pools: Sequence[Pool]) -> list[str]:
    """What is missing, stale, at the floor, from another machine, given away, made up or a stand-in."""
    lines = []
    if any(panel.unresolved(model) for panel in found for _, model in panel.pools):
        lines.append(
            f"{UNRESOLVED.capitalize()}: every average lies within noise of the metric's floor, or of always answering the "
            "commonest class (over items; from three runs on, over seeds and items)."
        )
    every = [run for pool in pools for run in pool.runs]
    if waiting := sum(run.status == "missing" for run in every):
        lines.append(f"Missing: {waiting} of {len(every)} numbers are not there (yet).")
    if any(run.stale for run in every):
        lines.append(f"{STALE} stale: of another specification than the suite's present one; not averaged with others.")
    if differences := sorted({run.other_stack for run in every if run.other_stack}):
        lines.append(f"{OTHER_STACK} other software or device: {' | '.join(differences)}; not averaged with others.")
    stand_ins: dict[str, set[str]] = {}
    for panel in found:
        if name := str(panel.first("stand_in")):
            stand_ins.setdefault(name, set()).add(str(panel.first("eval_label")))
    lines += [
        f"{', '.join(sorted(labels))}: stands in for {name}, and is not it." for name, labels in stand_ins.items()
    ]
    lines += list(dict.fromkeys(line for panel in found for line in _overlap(panel)))
    if any(panel.facts["generated"].any() for panel in found):
        lines.append("Generated: rows made by a program; such scores say nothing of real tasks.")
    return lines


def _overlap(panel: Panel) -> list[str]:
    """Training rows that the corpus's test rows give away, as the trainings counted them (harness/overlap.py)."""
    lines = []
    for text in panel.facts["overlap"].dropna().unique():
        if not text:
            continue
        found = json.loads(text)
        rows = found["equal"] + found["run"]
        fate = "removed" if found["removed"] == rows else "NOT removed"
        lines.append(
            f"{panel.first('corpus_label', panel.corpus)}: of the training rows {found['equal']} have the input of one of "
            f"{found['test_items']:,} test rows, and {found['run']} more share a run of 13 words with one; {fate}."
        )
    return lines
