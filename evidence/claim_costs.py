"""Claims about costs: ratios of what stage ``cost`` measured, on one machine that had nothing else to do.

Both methods of a ratio of times step through the same batches, so each step gives a ratio; the geometric mean has Student's
interval over steps. A step bears its share of the refreshes (their time over the steps from one to the next), as a training
does; a start is not in it, so the ratio of whole trainings of this suite stands beside it. The interval is of one session:
sessions differ by more (docs/plan.md). Memory is counted, at the highest of a training, and a start is measured once:
neither has an interval. None covers other machines. A claim of "up to" (``best``) is one of the smallest ratio.
Iterations are those that the trainings themselves counted, paired over seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from evidence.paired import CONFIDENCE
from evidence.row_marks import clean
from evidence.verdicts import (
    CONTRADICTED,
    SUPPORTED,
    UNDECIDED,
    Finding,
    Judged,
    name_of,
    not_made,
    of_seeds,
    over_seeds,
    shown,
    variant_of,
)

if TYPE_CHECKING:
    import pandas as pd

    from evidence.collected import Collected

COSTS = {"time": "step_seconds_median", "memory": "memory_peak_bytes", "start": "prepare_seconds"}


class Ratio(NamedTuple):
    """Of two methods' costs; ``value`` is None where one of them has none that may be compared."""

    model: str
    corpus: str
    value: float | None = None
    low: float = math.nan
    high: float = math.nan
    counted: str = ""  # its n in words


def cost_findings(claim: dict, collected: Collected, fields: dict[str, dict[str, Any]]) -> list[Finding]:
    """The ratio to each other method's on each model and corpus, and those that could not be measured."""
    asked = [
        (other, ratio)
        for other in claim["others"]
        for ratio in ratios(collected.costs, claim["of"], claim["method"], other, fields)
    ]
    made = [_finding(claim["of"], *pair, claim["ratio"]) for pair in asked if pair[1].value is not None]
    best = [_best(made)] if claim.get("best") and made else made
    return best + _gaps(asked, len(made))


def _gaps(asked: list[tuple[Any, Ratio]], made: int) -> list[Finding]:
    return not_made([(name_of(o), f"{r.model}, {r.corpus}") for o, r in asked if r.value is None], made)


def _best(made: list[Finding]) -> Finding:
    """Of "up to": one ratio that holds supports it, and all that do not contradict it."""
    found = {finding.verdict for finding in made}
    verdict = SUPPORTED if SUPPORTED in found else CONTRADICTED if found == {CONTRADICTED} else UNDECIDED
    return Finding(verdict, "one of: " + "; ".join(finding.text for finding in made))


def size_findings(claim: dict, collected: Collected, fields: dict[str, dict[str, Any]]) -> list[Finding]:
    """Every ratio of the claim holds on every model, and there are two models at least."""
    found = []
    for of, bar in claim["ratios"].items():
        for other in claim["others"]:
            asked = [(other, ratio) for ratio in ratios(collected.costs, of, claim["method"], other, fields)]
            measured = [ratio for _, ratio in asked if ratio.value is not None]
            models = {ratio.model for ratio in measured}
            if not measured:
                continue
            each = [_finding(of, other, ratio, bar) for ratio in measured]
            each += _gaps(asked, len(each))
            verdict = Judged({}, each).verdict
            text = "; ".join(f"{finding.text}" for finding in each)
            if len(models) < 2 and verdict == SUPPORTED:
                verdict, text = UNDECIDED, text + "; one model: a second would be needed"
            found.append(Finding(verdict, text))
    return found


def ratios(costs: pd.DataFrame, of: str, method: Any, other: Any, fields: dict) -> Iterator[Ratio]:
    """One of each (model, corpus) where the method's cost is planned."""
    for (model, corpus), rows in costs.groupby(["model", "corpus"], sort=False) if len(costs) else []:
        by_name = {row["variant"]: row for row in rows.to_dict("records")}
        names = [variant_of(by_name, wanted, fields) for wanted in (method, other)]
        if names[0] is None:
            continue
        pair = [by_name[name] for name in names if name and _comparable(by_name[name], COSTS[of])]
        yield Ratio(model, corpus, *(_of(of, *pair) if len(pair) == 2 else ()))


def _comparable(row: dict, column: str) -> bool:
    value = row[column]
    clean = row["status"] == "ok" and not row["stale"] and not row["other_stack"]
    return clean and value is not None and value == value and value > 0


def _of(of: str, one: dict, base: dict) -> tuple[float, float, float, str]:
    if of == "time":
        return _of_steps(one, base)
    ratio = one[COSTS[of]] / base[COSTS[of]]
    if of != "memory":
        return ratio, ratio, ratio, "measured once"
    step, highest = one.get("memory_step_peak_bytes"), one["memory_peak_bytes"]
    after = f"; {step / base['memory_peak_bytes']:.2f} in a step of its own" if step and step < highest else ""
    return ratio, ratio, ratio, "counted" + after


def _of_steps(one: dict, base: dict) -> tuple[float, float, float, str]:
    """n in words, ratio and bounds; without equally many steps of both, the ratio of medians with endless bounds."""
    steps, others = (json.loads(row["step_seconds_all"]) for row in (one, base))
    share, beside = _refresh_share(one), _refresh_share(base)
    refreshed = " and their share of the refreshes" if share or beside else ""
    if len(steps) != len(others) or len(steps) < 2:
        ratio = (one["step_seconds_median"] + share) / (base["step_seconds_median"] + beside)
        return ratio, 0.0, math.inf, f"medians of {len(steps)} and {len(others)} steps{refreshed}, not paired"
    logs = [math.log((a + share) / (b + beside)) for a, b in zip(steps, others, strict=True)]
    found = over_seeds(logs, CONFIDENCE)
    value, low, high = (math.exp(log) for log in (found.value, found.low, found.high))
    return value, low, high, f"{found.n} steps of the same batches in one session{refreshed}{_whole(one, base)}"


def _whole(one: dict, base: dict) -> str:
    """The ratio of whole trainings, where both are known."""
    times = [row.get("whole_seconds") for row in (one, base)]
    if not all(time and time == time for time in times):
        return ""
    return f"; {times[0] / times[1]:.2f} of the whole training of this suite, start and warm-up included"


def _refresh_share(row: dict) -> float:
    """Seconds of refreshes that a step bears; 0 where nothing is refreshed."""
    every = row.get("refresh_every")
    return row["refresh_seconds"] / every if every and every == every else 0.0


def _finding(of: str, other: Any, ratio: Ratio, bar: float) -> Finding:
    model, corpus, value, low, high, counted = ratio
    verdict = SUPPORTED if high <= bar else CONTRADICTED if low > bar else UNDECIDED
    interval = f" [{low:.2f}, {high:.2f}]" if of == "time" else ""
    text = f"{model}, {corpus}: {of} {value:.2f}{interval} of {name_of(other)}'s ({counted}); claimed at most {bar:g}"
    return Finding(verdict, text + ("; more timed steps would decide" if verdict == UNDECIDED else ""))


def iteration_findings(claim: dict, collected: Collected, fields: dict[str, dict[str, Any]]) -> list[Finding]:
    """Iterations of a refresh, as the trainings' records count them: fewer than each other's."""
    runs = collected.runs
    runs = clean(runs)
    runs = runs.drop_duplicates(["model", "corpus", "variant", "seed"])
    pairs, gaps = [], []
    for (model, corpus), rows in runs.groupby(["model", "corpus"], sort=False):
        counts = _iterations(rows)
        own = variant_of(counts, claim["method"], fields)
        for other in claim["others"]:
            beside = variant_of(counts, other, fields)
            shared = sorted(set(counts.get(own, {})) & set(counts.get(beside, {})))
            if own and not shared:
                gaps.append((name_of(other), f"{model}, {corpus}"))
            if shared:
                logs = [math.log(counts[own][seed] / counts[beside][seed]) for seed in shared]
                pairs.append((f"{model}, {corpus}", name_of(other), logs))
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(pairs))
    return [_fewer(where, other, logs, confidence) for where, other, logs in pairs] + not_made(gaps, len(pairs))


def _iterations(rows: pd.DataFrame) -> dict[str, dict[int, float]]:
    """{variant: {seed: iterations a refresh}} where a method counts them."""
    found: dict[str, dict[int, float]] = {}
    for variant, seed, text in zip(rows["variant"], rows["seed"], rows["facts"], strict=True):
        if count := (json.loads(text) if text else {}).get("iterations"):
            found.setdefault(variant, {})[int(seed)] = float(count)
    return found


def _fewer(where: str, other: str, logs: list[float], confidence: float) -> Finding:
    measured = over_seeds(logs, confidence)
    verdict, needed = of_seeds(measured, 0.0, confidence, below=True)
    ratio = shown(measured, lambda log: f"{math.exp(log):.2f}")
    return Finding(verdict, f"{where}: iterations of a refresh, as a share of those of {other}: {ratio}{needed}")
