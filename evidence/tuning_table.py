"""How each method was tuned: trials, the choice, and what the search cost; ``budgets`` says it beside a score."""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING, Any

from evidence.layout import Group, Table
from evidence.names import LOSS_UNITS
from evidence.pools import OTHER_STACK, STALE
from evidence.trials import Trial, Tried, tried

if TYPE_CHECKING:
    from evidence.collected import Collected

OUTER = 0.1  # of a logarithmic space, at either end
NOTES = (
    "Chosen by the lowest validation loss at a trial's end (mean over tuning seeds); of equal ones the earlier; a trial that "
    "failed with any seed cannot be chosen. No test item is answered or graded, and no tuning seed is reported.",
    "Trial 1 has the values that the suite or the method gives; the others are scrambled Sobol points of the space, the same "
    "points for every method. Every method has the same number of trials.",
    "At the edge: the chosen value lies in the outer tenth of its logarithmic space, outside the space, or is the first or "
    "last number of a list: a wider space might have a better one.",
    LOSS_UNITS,
    "Tokens: all that trials read in training and preparation, failed ones too. Seconds: their phases' sum, beside other "
    "jobs; the times of the cost table are others, measured alone on the machine.",
)


def tuning_table(collected: Collected, title: str) -> Table | None:
    """A row per model, corpus and method; None where the suite does not tune."""
    found = tried(collected.trials)
    if not found:
        return None
    heads = [
        ("Trials", ["run", "failed"]),
        ("Chosen", ["trial", "values", "at the edge"]),
        ("Validation loss", ["best", "median", "trial 1"]),
        ("Search", ["tokens", "seconds"]),
    ]
    table = Table(title, ("Model, corpus", "Method"), heads, [], [])
    groups: dict[tuple[str, str], Group] = {}
    for search in found:
        lines = [search.identity["model_label"], search.identity["corpus_label"], *_described(search)]
        group = groups.setdefault(search.cell[:2], Group(lines))
        mark = (STALE if search.stale else "") + (OTHER_STACK if search.other_stacks else "")
        group.rows.append([search.identity["variant_label"] + mark, *_cells(search)])
        table.records += [_record(search, trial) for trial in search.trials]
    table.groups = list(groups.values())
    table.notes = [*NOTES, *_marks(found), *_failures(found), *_unchosen(found), *_not_tuned(collected)]
    return table


BUDGET = (
    "the search for the method's hyper-parameters on that model and corpus (table `tuning`): trials, tokens read, seconds of "
    "their phases beside other jobs. A dash: nothing was searched."
)


def budgets(collected: Collected) -> dict[tuple[str, str, str], str]:
    """ "8 trials, 0.21 M tokens, 3.1 min" by (model, corpus, variant), for the score table."""
    return {
        search.cell: f"{len(search.trials)} trials, {_tokens(search.tokens)} tokens, {_time(search.seconds)}"
        for search in tried(collected.trials)
    }


def at_edge(value: Any, space: dict) -> bool:
    """Whether a chosen value lies so far out that a wider space might have had a better one."""
    if space["space"] == "log_uniform":
        share = math.log(value / space["low"]) / math.log(space["high"] / space["low"])
        return not OUTER < share < 1 - OUTER
    ordered = [v for v in space["values"] if isinstance(v, int | float) and not isinstance(v, bool)]
    return len(ordered) == len(space["values"]) > 2 and not min(ordered) < value < max(ordered)


def _cells(search: Tried) -> list[str]:
    good = [trial.loss for trial in search.trials if trial.loss is not None]
    chosen, first = search.chosen, search.trials[0].loss
    edges = [name for name, value in chosen.values.items() if at_edge(value, search.spaces[name])] if chosen else []
    return [
        f"{len(search.trials)}" + (f" x {len(search.seeds)} seeds" if len(search.seeds) > 1 else ""),
        _failed(search),
        str(chosen.number) if chosen else "—",
        written(chosen.values) if chosen else f"none: {search.unchosen.partition(':')[0]}",
        ", ".join(words(name) for name in edges) or ("no" if chosen else "—"),
        f"{min(good):.4f}" if good else "—",
        f"{median(good):.4f} ({len(good)})" if good else "—",
        search.trials[0].status if first is None else f"{first:.4f}",
        _tokens(search.tokens),
        f"{search.seconds:,.0f}",
    ]


def written(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{words(name)} {v:.3g}" if isinstance(v, float) else f"{words(name)} {v}" for name, v in values.items()
    )


def words(name: str) -> str:
    return name.replace("_", " ")


def _failed(search: Tried) -> str:
    counts: dict[str, int] = {}
    for trial in search.failed:
        counts[trial.status] = counts.get(trial.status, 0) + 1
    listed = ", ".join(f"{count} {status}" for status, count in counts.items())
    return f"{len(search.failed)}" + (f" ({listed})" if listed else "")


def _described(search: Tried) -> list[str]:
    seeds = ", ".join(map(str, search.seeds))
    validation = f"{search.examples} validation examples" if search.examples else ""
    return [line for line in (validation, f"tuning seed{'s' if len(search.seeds) > 1 else ''} {seeds}") if line]


def _record(search: Tried, trial: Trial) -> dict[str, Any]:
    model, corpus, variant = search.cell
    return {
        "model": model, "corpus": corpus, "variant": variant, "trial": trial.number, **trial.values, "status": trial.status,
        "validation_loss": trial.loss, "chosen": trial.chosen, "reason": trial.reason,
    }  # fmt: skip


def _failures(found: list[Tried]) -> list[str]:
    return [
        f"Failed: {search.identity['model_label']}, {search.identity['corpus_label']}, {search.identity['variant_label']}, "
        f"trial {trial.number} ({written(trial.values)}): {trial.status}"
        + (f" ({trial.reason})." if trial.reason else ".")
        for search in found
        for trial in search.failed
    ]


def _unchosen(found: list[Tried]) -> list[str]:
    """A note for each search without a choice, though some of its trials came to an end."""
    return [
        f"Failed: {search.identity['model_label']}, {search.identity['corpus_label']}, {search.identity['variant_label']}: "
        f"{search.unchosen}."
        for search in found
        if search.unchosen and any(trial.loss is not None for trial in search.trials)
    ]


def _marks(found: list[Tried]) -> list[str]:
    """What the marks beside methods say: that some trials are not of the suite's present specification, or of one software."""
    told = []
    if any(search.stale for search in found):
        told.append(
            f"{STALE} stale: some trials were run for another specification than the suite's present one; they count as failed."
        )
    if others := sorted({text for search in found for text in search.other_stacks}):
        told.append(
            f"{OTHER_STACK} some trials were run with other software or device than most; they count as failed: "
            f"{' | '.join(others)}."
        )
    return told


def _not_tuned(collected: Collected) -> list[str]:
    names = (collected.suite.get("tuning") or {}).get("not_searched") or []
    return [f"Not tuned, as no field of theirs is searched: {', '.join(names)}."] if names else []


def _tokens(count: int) -> str:
    return f"{count / 1e6:,.3g} M" if count >= 1e5 else f"{count:,}"


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.1f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )
