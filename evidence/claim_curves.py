"""Claims about what happens during training, from the logged curves: one number a seed, paired by seed.

    shift   the weight of the low-rank branch (Hybrid's lambda) is above a half early, below it late, and falls
    early   the loss of the first part of training lies below each other method's
    steady  the gradient norm fluctuates less, relative to itself, than each other method's
    norms   gradient norms start above a value and have levelled off by some epoch

Early and late are the first and the last fifth of the steps. The fluctuation is the mean absolute change of the norm's
logarithm from step to step: no unit, and a trend hardly moves it. That measure, and "levelled off" (less than 10 % from one
epoch to the next), are ours: the papers give none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from evidence.learning_rates import not_chosen
from evidence.paired import CONFIDENCE, LEAST_SEEDS, paired_difference
from evidence.row_marks import clean
from evidence.verdicts import (
    CONTRADICTED,
    SUPPORTED,
    UNDECIDED,
    Finding,
    name_of,
    not_made,
    of_seeds,
    over_seeds,
    shown,
    side,
    variant_of,
)

if TYPE_CHECKING:
    import pandas as pd

    from evidence.collected import Collected

FIFTH = 0.2
LEVEL = math.log(1.1)
FIRST = 3  # steps whose norm is that of the start
LEAST_VALIDATIONS = 3  # of the early part, for its area; else the training loss, whose batches all methods share


def curve_findings(claim: dict, collected: Collected, fields: dict[str, dict[str, Any]]) -> list[Finding]:
    """The findings of a claim of one of the kinds above."""
    return list(KINDS[claim["kind"]](claim, collected, fields))


def _good(collected: Collected, names: list[str]) -> pd.DataFrame:
    """Curves of runs that ended well, may be compared, and are at the rate that a search chose."""
    import numpy as np

    curves = collected.curves(names)
    if aside := not_chosen(collected.runs):
        cells = zip(curves["model"], curves["corpus"], curves["variant"], strict=True)
        curves = curves[np.array([cell not in aside for cell in cells], bool)]  # of no curve at all, too
    return clean(curves)


def _cells(curves: pd.DataFrame, collected: Collected) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """("model, corpus", {variant: its rows}), variants in the order of the suite."""
    order = collected.suite["variants"]
    for (model, corpus), rows in curves.groupby(["model", "corpus"], sort=False, observed=True):
        by_name = {v: part for v, part in rows.groupby("variant", observed=True)}
        yield f"{model}, {corpus}", {v: by_name[v] for v in order if v in by_name}


def _shift(claim: dict, collected: Collected, fields: dict) -> Iterator[Finding]:
    """Seeds and matrices are crossed, as seeds and items are in a score."""
    found = []
    for where, rows in _cells(_good(collected, ["lambda"]), collected):
        variant = variant_of(rows, claim["method"], fields)
        if variant is not None:
            steps = rows[variant]["step"].max() + 1
            first, last = (
                rows[variant][part].pivot_table(index="seed", columns="layer", values="value", observed=True).to_numpy()
                for part in (rows[variant]["step"] < FIFTH * steps, rows[variant]["step"] >= (1 - FIFTH) * steps)
            )
            found += [(where, "early weight less a half", first, 0 * first + 0.5, 1)]
            found += [(where, "late weight less a half", last, 0 * last + 0.5, -1), (where, "change", last, first, -1)]
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(found))
    for where, what, one, other, sign in found:
        d = paired_difference(one, other, confidence)
        verdict = side(*sorted((sign * d.low, sign * d.high)), 0.0) if d.seeds >= LEAST_SEEDS else UNDECIDED
        counted = f"{d.seeds} seed{'s' * (d.seeds > 1)}, {d.items} matrices"
        text = f"{where}: {what} {d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}], {counted}"
        if verdict == UNDECIDED:
            text += f"; {max(LEAST_SEEDS, d.seeds + 1)} seeds or more would be needed"
        yield Finding(verdict, text)


def _early(claim: dict, collected: Collected, fields: dict) -> Iterator[Finding]:
    curves = _good(collected, ["loss", "validation_loss"])
    share = claim.get("share", 0.25)
    pairs = []
    for where, rows in _cells(curves, collected):
        steps = max(int(part["step"].max()) for part in rows.values())
        for other, own, beside in _others(claim, rows, fields):
            grid = _grid(rows[own], share * steps)
            use = "validation_loss" if len(grid) >= LEAST_VALIDATIONS else "loss"
            about = f"mean {use.replace('_', ' ') if use != 'loss' else 'training loss'} of the first {share:.0%},"
            one, base = (_areas(rows[v], use, share * steps) if v else {} for v in (own, beside))
            apart = [one[s] - base[s] for s in sorted(set(one) & set(base))]
            pairs.append((where, about, other, [value for value in apart if math.isfinite(value)]))
    yield from _below(pairs)


def _grid(rows: pd.DataFrame, until: float) -> list[int]:
    """Steps of the early part with a validation, the one before training left out."""
    validated = rows[(rows["name"] == "validation_loss") & (rows["step"] > 0) & (rows["step"] <= until)]
    return sorted(validated["step"].unique())


def _areas(rows: pd.DataFrame, name: str, until: float) -> dict[int, float]:
    """{seed: mean of the curve up to a step}; for validations the area under them over the width."""
    import numpy as np

    found = {}
    early = rows["step"] < until if name == "loss" else rows["step"] <= until  # a loss is of the step that begins there
    for seed, part in rows[(rows["name"] == name) & early].groupby("seed"):
        part = part.sort_values("step")
        steps, values = part["step"].to_numpy(float), part["value"].to_numpy(float)
        if name == "loss":
            found[int(seed)] = float(values.mean())
        elif len(steps) > 1:
            found[int(seed)] = float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))
    return found


def _steady(claim: dict, collected: Collected, fields: dict) -> Iterator[Finding]:
    pairs = []
    for where, rows in _cells(_good(collected, ["gradient_norm"]), collected):
        for other, own, beside in _others(claim, rows, fields):
            one, base = (fluctuation(rows[v]) if v else {} for v in (own, beside))
            about = "fluctuation of the gradient norm, mean change of its log a step (ours),"
            pairs.append((where, about, other, [one[s] - base[s] for s in sorted(set(one) & set(base))]))
    yield from _below(pairs)


def fluctuation(rows: pd.DataFrame) -> dict[int, float]:
    """{seed: mean |log(norm of a step / norm of the one before)|}."""
    import numpy as np

    found = {}
    for seed, part in rows.groupby("seed"):
        norms = part.sort_values("step")["value"].to_numpy(float)
        norms = norms[np.isfinite(norms) & (norms > 0)]
        if len(norms) > 2:
            found[int(seed)] = float(np.abs(np.diff(np.log(norms))).mean())
    return found


def _norms(claim: dict, collected: Collected, fields: dict) -> Iterator[Finding]:
    """Of every method of the claim, before clipping, over what trains: whose norms and when, the paper does not say."""
    runs = collected.runs.drop_duplicates(["model", "corpus", "variant", "seed"])
    epochs = {(f"{r['model']}, {r['corpus']}", r["variant"]): r["epoch_steps"] for r in runs.to_dict("records")}
    starts, levels, gaps = [], [], []
    for where, rows in _cells(_good(collected, ["gradient_norm"]), collected):
        for wanted in [claim["method"], *claim["others"]]:
            variant = variant_of(rows, wanted, fields)
            logs = _logs(rows[variant]) if variant else None
            first = [] if logs is None else list(logs.loc[:, : FIRST - 1].mean(axis=1).dropna())
            if not first:
                gaps.append((name_of(wanted), where))
                continue
            starts.append((f"{where}, {name_of(wanted)}", first))
            levels.append((where, name_of(wanted), logs, epochs.get((where, variant))))
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(starts) + len(levels))
    for about, values in starts:
        measured = over_seeds(values, confidence)
        verdict, needed = of_seeds(measured, math.log(claim["start"]), confidence)
        norm = shown(measured, lambda log: f"{math.exp(log):.2f}")
        yield Finding(verdict, f"{about}: norm of the first {FIRST} steps {norm}{needed}")
    yield from dict.fromkeys(_levelled(*level, claim["epoch"], confidence) for level in levels)
    yield from not_made(gaps, len(starts))


def _logs(rows: pd.DataFrame) -> pd.DataFrame | None:
    """Logarithms of the norms, (seeds, steps); None of no norm that has one. One that is zero or no number has none."""
    import numpy as np

    known = rows[np.isfinite(rows["value"]) & (rows["value"] > 0)]
    known = known.assign(value=np.log(known["value"]))
    return known.pivot_table(index="seed", columns="step", values="value", observed=True) if len(known) else None


def _levelled(
    where: str, name: str, logs: pd.DataFrame, epoch_steps: float | None, epoch: int, confidence: float
) -> Finding:
    """Does the norm of the epoch after the named one differ from its by less than 10 %?"""
    steps = int(logs.columns.max()) + 1
    if not epoch_steps or epoch_steps != epoch_steps or steps < (epoch + 1) * epoch_steps:
        trained = f"{steps / epoch_steps:.2g}" if epoch_steps and epoch_steps == epoch_steps else "too few"
        text = f"{where}: trains {trained} epochs; {epoch + 1} or more would show whether norms have levelled off"
        return Finding(UNDECIDED, text)
    at = logs.columns // epoch_steps
    changes = (logs.loc[:, at == epoch].mean(axis=1) - logs.loc[:, at == epoch - 1].mean(axis=1)).dropna()
    if not len(changes):
        return Finding(UNDECIDED, f"{where}, {name}: no norms of epoch {epoch} and the next")
    change = over_seeds(list(changes), confidence)
    verdict = SUPPORTED if max(abs(change.low), abs(change.high)) < LEVEL else UNDECIDED
    verdict = CONTRADICTED if change.low > LEVEL or change.high < -LEVEL else verdict
    factor = shown(change, lambda log: f"{math.exp(log):.2f}")
    text = f"{where}, {name}: factor of the norm from epoch {epoch} to the next (level: within 10 %, ours) {factor}"
    if change.n < LEAST_SEEDS or verdict == UNDECIDED:
        return Finding(UNDECIDED, f"{text}; {max(LEAST_SEEDS, change.n + 1)} seeds or more would be needed")
    return Finding(verdict, text)


def _others(claim: dict, rows: dict, fields: dict) -> Iterator[tuple[Any, str, str | None]]:
    """(each other method, the claim's own variant, the other's or None) where the claim's own has curves."""
    own = variant_of(rows, claim["method"], fields)
    for other in claim["others"] if own else ():
        yield other, own, variant_of(rows, other, fields)


def _below(pairs: list[tuple[str, str, Any, list[float]]]) -> Iterator[Finding]:
    """Findings that a difference is below zero; their intervals hold together. ``pairs``: where, of what, the other method,
    and a difference for each shared seed, or none."""
    made = [pair for pair in pairs if pair[3]]
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(made))
    for where, about, other, values in made:
        measured = over_seeds(values, confidence)
        verdict, needed = of_seeds(measured, 0.0, confidence, below=True)
        number = shown(measured, lambda value: f"{value:+.3f}")
        yield Finding(verdict, f"{where}: {about} against {name_of(other)}: {number}{needed}")
    yield from not_made([(name_of(other), where) for where, _, other, values in pairs if not values], len(made))


KINDS = {"shift": _shift, "early": _early, "steady": _steady, "norms": _norms}
