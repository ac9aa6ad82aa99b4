"""Every method beside one reference: the paired difference of scores on shared seeds and items (``evidence.paired``).

The reference is LoRA, the method that a user would pick unasked, or the first that was tuned where the suite has none. p is
Holm's, over all differences of one benchmark and model; "finds" is the smallest difference that such a comparison would call
one in four of five cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from evidence.cells import BASELINES
from evidence.layout import Group, Table
from evidence.names import family_of
from evidence.paired import Difference, detectable, holm, paired_difference
from evidence.pools import Panel, on_shared_seeds, panels
from evidence.score_notes import left_out
from evidence.score_table import decimals, describe, names_of
from evidence.tiers import ITEMS_NOTE, NOTE, panel_tiers

if TYPE_CHECKING:
    from evidence.collected import Collected

ITEMS_ONLY = "*"
HEADS = ("difference [95 %]", "p", "finds", "tier")


def difference_table(collected: Collected, title: str, headlines: list[Panel] | None = None) -> Table | None:
    """None where nothing can be compared: one method, no shared seeds, or scores that are no means over items.

    ``headlines``: headline panels, where they are made already.
    """
    names = names_of(collected)
    variants = [v for v in collected.suite["variants"] if v not in BASELINES]
    reference = next((v for v in variants if family_of(v) == "lora"), next(iter(variants), None))
    models = collected.suite["models"]
    table = Table(title, ("Benchmark", f"Method less {names.get(reference, reference)}"), [], [], [])
    table.heads = [(names[model], list(HEADS)) for model in models if model in names]
    kinds: set[str] = set()
    headlines = panels(collected, reference=False) if headlines is None else headlines
    for panel in headlines:
        found = {model: _differences(panel, variants, reference, model) for model in models if model in names}
        if not any(found.values()):
            continue
        group = Group(describe(panel))
        digits = decimals(panel)
        placed = {model: panel_tiers(panel, model) for model in found}
        for variant in (v for v in variants if any(v in row for row in found.values())):
            cells = [
                text for m, row in found.items() for text in _cells(row.get(variant), digits, placed[m].text(variant))
            ]
            group.rows.append([names[variant], *cells])
        for model, row in found.items():
            kinds |= {difference.kind for difference, _ in row.values()}
            table.records += [
                _record(panel, names, model, variant, reference, *pair) | {"tier": placed[model].text(variant)}
                for variant, pair in row.items()
            ]
        table.groups.append(group)
    if not table.groups:
        return None
    table.notes = [*_notes(kinds), *left_out(headlines, names)]
    return table


def _differences(
    panel: Panel, variants: Sequence[str], reference: str, model: str
) -> dict[str, tuple[Difference, float]]:
    """(difference, Holm's p) of each variant that can be compared with the reference."""
    base = panel.pools.get((reference, model))
    found = {}
    for variant in variants:
        pool = panel.pools.get((variant, model))
        if variant != reference and pool and base and (arrays := on_shared_seeds(pool, base)):
            found[variant] = paired_difference(*arrays)
    adjusted = holm([difference.p for difference in found.values()])
    return {variant: (difference, p) for (variant, difference), p in zip(found.items(), adjusted, strict=True)}


def _cells(pair: tuple[Difference, float] | None, digits: int, tier: str) -> list[str]:
    if pair is None:
        return ["—"] * len(HEADS)
    found, p = pair
    mark = ITEMS_ONLY if found.kind == "items only" else ""
    interval = f" [{found.low:+.{digits}f}, {found.high:+.{digits}f}]{mark}" if found.error else ""
    least = f"{detectable(found):.{digits}f}" if found.error else ""
    return [f"{found.value:+.{digits}f}{interval}", "< 0.001" if p < 0.001 else f"{p:.3f}", least, tier]


def _record(panel: Panel, names: dict, model: str, variant: str, reference: str, found: Difference, p: float) -> dict:
    return {
        "model": model, "corpus": panel.corpus, "eval": panel.eval, "metric": panel.metric, "variant": variant,
        "reference": reference, "method": names[variant], "difference": found.value, "error": found.error, "low": found.low,
        "high": found.high, "p": found.p, "p_holm": p, "covers": found.kind, "seeds": found.seeds, "items": found.items,
        "detectable": detectable(found) if not math.isnan(found.critical) else None,
    }  # fmt: skip


def _notes(kinds: set[str]) -> list[str]:
    lines = [
        "Paired differences on shared seeds and items; intervals cover the choice of both (docs/coverage.md). p: against no "
        "difference, Holm's over the methods of a benchmark and model. Finds: the smallest true difference that such a "
        "comparison would call one in four of five cases.",
    ]
    if "items only" in kinds:
        lines.append(
            f"{ITEMS_ONLY} items only: with fewer than three shared seeds the interval leaves the choice of seeds out."
        )
    lines.append(NOTE + ITEMS_NOTE)
    return lines
