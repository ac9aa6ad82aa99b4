"""Tiers: methods that the data cannot tell from the best, then those that they cannot tell from the best of the rest.

The rule: of the methods not yet placed, the one with the best mean leads a tier; each other is compared with it (the paired
difference of ``evidence.paired``, on shared seeds and items), p-values are adjusted by Holm over these comparisons, and who
is not significantly worse (adjusted p at or above 0.05) is in the leader's tier. Repeat with those who are.

Why this one: it needs no transitivity (A not told from B, B not from C, yet A from C happens, and "groups of letters" then
overlap), everybody gets one number, and tier 1 answers what a reader asks: which methods may be the best? That a method is
*in* a tier is no proof of equality: with few items everybody is in tier 1. For equality see ``evidence.equivalence``. The
leader is picked on the same data, which favours it a little; tiers therefore describe, and p-values stand in the differences.

A method whose seeds scatter widely is told from nobody, so it may stand above one with a better mean and less scatter.

No tier: baselines, benchmarks where every average is within noise of the floor, methods without a run that may be averaged,
scores that are no mean over items (chrF), and methods that share no seed or item with their leader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from evidence.cells import BASELINES, EvidenceError
from evidence.paired import LEAST_SEEDS, holm, paired_difference
from evidence.pools import Panel, Pool, on_shared_seeds, panels

if TYPE_CHECKING:
    from evidence.collected import Collected

ALPHA = 0.05


@dataclass(frozen=True)
class Tiers:
    """``of``: variant -> tier, 1 is the best; ``items_only``: variants placed by a comparison that leaves seeds out."""

    of: dict[str, int] = field(default_factory=dict)
    items_only: frozenset[str] = frozenset()
    unplaced: tuple[str, ...] = ()  # with a score, but nothing that compares it with the leader

    def text(self, variant: str) -> str:
        """ "1", "2*" (items only), or empty."""
        return f"{self.of[variant]}{'*' * (variant in self.items_only)}" if variant in self.of else ""


NOTE = (
    "Tier: 1 holds the best mean and every method not significantly worse than it (paired, Holm over the tier's comparisons, "
    "0.05); 2 the same among the rest, and so on. One tier does not mean equal, only not told apart by these seeds and items; "
    "a method whose seeds scatter widely is told from nobody. "
)
ITEMS_NOTE = "A tier with * comes from a comparison of the items only (fewer than three shared seeds)."


def tiers(collected: Collected, evaluation: str, model: str, corpus: str = "") -> dict[str, int]:
    """{variant: tier} on the headline metric of an eval. Raises EvidenceError where the suite has no such scores.

    ``corpus`` is needed only where the suite scores the eval after training on several.
    """
    found = [p for p in panels(collected, reference=False) if p.eval == evaluation and corpus in ("", p.corpus)]
    found = [p for p in found if any(m == model for _, m in p.pools)]
    if len(found) != 1:
        several = ", ".join(p.corpus for p in found)
        problem = f"scored after training on {several}: name the corpus" if found else "not scored"
        raise EvidenceError(f"eval '{evaluation}' with model '{model}' is {problem}.")
    return panel_tiers(found[0], model).of


def panel_tiers(panel: Panel, model: str) -> Tiers:
    """The tiers of one benchmark and model."""
    if panel.unresolved(model):
        return Tiers()
    pools = {v: pool for (v, m), pool in panel.pools.items() if m == model and v not in BASELINES}
    return place(pools, bool(panel.first("lower_is_better", False)))


def place(pools: dict[str, Pool], lower_is_better: bool) -> Tiers:
    """The rule at the top of this file."""
    sign = -1 if lower_is_better else 1
    left = [v for v, pool in pools.items() if pool.used and pool.items and not pool.mark]
    left.sort(key=lambda v: -sign * pools[v].spread.mean)  # stable: equal means keep the suite's order
    of: dict[str, int] = {}
    items_only: set[str] = set()
    unplaced: list[str] = []
    tier = 0
    while left:
        tier += 1
        leader, rest = left[0], left[1:]
        p, thin = _worse(pools, leader, rest, sign)
        unplaced += [v for v in rest if v not in p]
        here = [leader, *(v for v in p if p[v] >= ALPHA)]
        of |= dict.fromkeys(here, tier)
        items_only |= thin
        if len(pools[leader].used) < LEAST_SEEDS:
            items_only.add(leader)
        left = [v for v in p if p[v] < ALPHA]
    return Tiers({v: of[v] for v in pools if v in of}, frozenset(items_only), tuple(unplaced))


def _worse(pools: dict[str, Pool], leader: str, rest: Sequence[str], sign: int) -> tuple[dict[str, float], set[str]]:
    """Holm's p of each that can be compared with the leader, 1 where it is not below it; and who was by items only."""
    found = {v: paired_difference(*arrays) for v in rest if (arrays := on_shared_seeds(pools[v], pools[leader]))}
    adjusted = holm([d.p for d in found.values()])
    p = {v: q if sign * d.value < 0 else 1.0 for (v, d), q in zip(found.items(), adjusted, strict=True)}
    return p, {v for v, d in found.items() if d.seeds < LEAST_SEEDS}
