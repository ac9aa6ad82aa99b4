"""What a comparison says of a claim: supported, contradicted, undecided, or not run; and what would decide it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from evidence.names import family_of
from evidence.paired import LEAST_SEEDS

if TYPE_CHECKING:
    import pandas as pd

    from evidence.paired import Difference

SUPPORTED, CONTRADICTED, UNDECIDED, NOT_RUN = "supported", "contradicted", "undecided", "not run"
Wanted = str | dict[str, Any]  # a method's family, or {"method": ..., and hyper-parameters}


@dataclass(frozen=True)
class Finding:
    """One comparison: its verdict and the numbers behind it."""

    verdict: str
    text: str


@dataclass
class Judged:
    """A claim with all its findings."""

    claim: dict[str, Any]
    findings: list[Finding] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        found = [finding.verdict for finding in self.findings]
        if not found:
            return NOT_RUN
        if CONTRADICTED in found:
            return CONTRADICTED
        return SUPPORTED if set(found) == {SUPPORTED} else UNDECIDED

    def settles(self, own: bool) -> bool:
        """Whether the verdict stands as it is; ``own``: the evidence is of the paper's own protocol."""
        return own or self.verdict == NOT_RUN


@dataclass(frozen=True)
class Measured:
    """A number with its standard error and interval over ``n`` seeds, or steps (NaN where n is 1)."""

    value: float
    error: float
    low: float
    high: float
    n: int


def over_seeds(values: Sequence[float], confidence: float) -> Measured:
    """Mean of one number a seed (or step), with Student's interval."""
    import numpy as np
    from scipy.stats import t

    n = len(values)
    value = float(np.mean(values))
    error = float(np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    half = error * float(t.isf((1 - confidence) / 2, n - 1)) if n > 1 else math.nan
    return Measured(value, error, value - half, value + half, n)


def shown(measured: Measured, form: Callable[[float], str]) -> str:
    """ "+0.12 [+0.05, +0.19], 3 seeds"; without bounds where they would rest on two seeds."""
    bounds = f" [{form(measured.low)}, {form(measured.high)}]" if measured.n >= LEAST_SEEDS else ""
    return f"{form(measured.value)}{bounds}, {measured.n} seed{'s' * (measured.n > 1)}"


def side(low: float, high: float, bar: float) -> str:
    """Supported where the whole interval lies above the bar, contradicted where below, else undecided."""
    return SUPPORTED if low > bar else CONTRADICTED if high < bar else UNDECIDED


def seeds_to_decide(n: int, error: float, distance: float, confidence: float, fixed: float = 0.0) -> int:
    """Seeds at which an interval excludes the bar; of the squared error all but ``fixed`` shrinks with their number.

    ``fixed`` is below (distance / z)^2, as else no number of seeds is enough.
    """
    room = (distance / _z(confidence)) ** 2 - fixed
    return max(n + 1, LEAST_SEEDS, math.ceil(n * (error**2 - fixed) / room))


def needed(d: Difference, distance: float, confidence: float) -> str:
    """What would decide, if the value stayed ``distance`` from its bar: seeds, or items where no number of seeds can."""
    if d.seeds < LEAST_SEEDS:
        return f"; {LEAST_SEEDS} seeds or more would be needed"
    if not distance or not d.error:
        return ""
    bound = (distance / _z(confidence)) ** 2
    if d.items_own < bound:
        seeds = seeds_to_decide(d.seeds, d.error, distance, confidence, d.items_own)
        return f"; at least {seeds:,} seeds of {d.items} items would decide"
    items = max(d.items + 1, math.ceil(d.items * d.items_own / bound))
    return f"; no number of seeds of {d.items} items would decide, and no fewer than {items:,} items"


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def not_made(gaps: Iterable[tuple[str, str]], made: int) -> list[Finding]:
    """Comparisons that a claim needs and that could not be made: undecided, one finding for each method.

    ``gaps``: (method, where). None where no comparison was made at all: such a claim is not run.
    """
    wheres: dict[str, dict[str, None]] = {}
    for method, where in gaps:
        wheres.setdefault(method, {})[where] = None
    return [
        Finding(UNDECIDED, f"{method}: nothing that can be compared on {'; '.join(places)}")
        for method, places in wheres.items()
        if made
    ]


def of_seeds(measured: Measured, bar: float, confidence: float, below: bool = False) -> tuple[str, str]:
    """(verdict, what would decide) of "above the bar", or below it; fewer than three seeds decide nothing."""
    low, high = measured.low - bar, measured.high - bar
    verdict = side(*((-high, -low) if below else (low, high)), 0.0)
    if measured.n < LEAST_SEEDS:
        return UNDECIDED, f"; {LEAST_SEEDS} seeds or more would be needed"
    if verdict != UNDECIDED or measured.value == bar or not measured.error:
        return verdict, ""
    seeds = seeds_to_decide(measured.n, measured.error, measured.value - bar, confidence)
    return verdict, f"; at least {seeds} seeds would decide"


def fields_of(runs: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """{variant: its method and hyper-parameters}, as the records have them."""
    rows = runs[runs["hyperparameters"] != ""].drop_duplicates("variant")
    columns = (rows[name] for name in ("variant", "method", "hyperparameters"))
    return {v: {"method": method, **json.loads(text)} for v, method, text in zip(*columns, strict=True)}


def variant_of(candidates: Iterable[str], wanted: Wanted, fields: dict[str, dict[str, Any]]) -> str | None:
    """The first of the suite's variants that is meant: a family's plain one, or one with these hyper-parameters."""
    if isinstance(wanted, str):
        return next((v for v in candidates if family_of(v) == wanted), None)
    return next((v for v in candidates if wanted.items() <= fields.get(v, {}).items()), None)


def name_of(wanted: Wanted) -> str:
    """ "lora", or "lorsum (metric shampoo)"."""
    if isinstance(wanted, str):
        return wanted
    rest = ", ".join(f"{name} {_short(value)}" for name, value in wanted.items() if name != "method")
    return f"{wanted['method']} ({rest})" if rest else wanted["method"]


def _short(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)
