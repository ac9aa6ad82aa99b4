"""Memory, time and loss of a paper's figures: against the ratios that its text states, physical floors, and its scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations, product

from evidence.audit_cells import FULL, OURS, Cell, parameters

RATIOS = {
    "speedup_vs_FullFT": ("train_time_per_epoch", lambda full, other: full / other),
    "memory_reduction": ("gpu_memory", lambda full, other: 100 * (1 - other / full)),
}
"""Stated quantity: the figures' quantity that it follows from, and how (times; percent)."""
ABOUT = 0.1  # a stated "about" or "nearly" may be a tenth of itself off: our reading
SLACK = 4  # a larger model may use a device that much better: our reading
FLOPS = {"without activation checkpointing": (6, 4), "with it": (8, 6)}
"""Floating-point operations per parameter and token of a step: full fine-tuning, adapters on frozen weights."""


# --------------------------------------------------------------------------- stated ratios


def stated_ratios(figures: Sequence[dict]) -> list[str]:
    """Each ratio or reduction that the text states, beside what the figures give."""
    lines = []
    for row in figures:
        if row["quantity"] in RATIOS:
            lines += _stated_ratio(row, figures)
    return lines or ["No ratio is stated that the figures could give."]


def _stated_ratio(row: dict, figures: Sequence[dict]) -> list[str]:
    base, formula = RATIOS[row["quantity"]]
    told = f"{row['quantity']} ({row['place']}) is stated as {row['relation']} {row['value']} {row['unit']}"
    pairs = {m: v for m, v in _pairs(figures, base, row["method"]).items() if row["model"] in ("all", m)}
    if not pairs:
        return [f"{told}: no model has both figures."]
    lines = []
    for model, (full, other) in pairs.items():
        value, (low, high) = formula(float(full), float(other)), _bounds(formula, full, other)
        found = f"{model} has {base} {full} ({FULL}) and {other} ({row['method']})"
        given = f"{value:.2f}, by rounding {low:.2f} to {high:.2f}"
        lines.append(f"{told}; {found}: {given}. {_verdict(row, value, low, high)}")
    missing = [model for model in parameters() if model not in pairs] if row["model"] == "all" else []
    if missing:
        lines.append(f"{row['quantity']} is stated for all; without both figures: {', '.join(missing)}.")
    return lines


def _verdict(row: dict, value: float, low: float, high: float) -> str:
    stated, half = float(row["value"]), _half(row["value"])
    if row["relation"] == "~":
        fits = abs(value - stated) <= ABOUT * stated
    elif row["relation"] == "<=":
        fits = low <= stated + half
    else:
        fits = low <= stated + half and high >= stated - half
    if fits:
        return "They agree."
    if row["relation"] == "~":
        return f"They do not agree within {ABOUT:.0%}."
    cut = math.floor(value / (2 * half)) * 2 * half
    return "They agree if digits are cut off, not if rounded." if math.isclose(cut, stated) else "They do not agree."


def _bounds(formula, full: str, other: str) -> tuple[float, float]:
    """Least and greatest value that figures rounded to their last digits allow."""
    ends = [(float(text) - _half(text), float(text) + _half(text)) for text in (full, other)]
    values = [formula(*pair) for pair in product(*ends)]
    return min(values), max(values)


def _half(text: str) -> float:
    """Half of a printed number's last digit."""
    return 0.5 * 10.0 ** -len(text.partition(".")[2])


def _pairs(figures: Iterable[dict], quantity: str, method: str) -> dict[str, tuple[str, str]]:
    """Model: (full fine-tuning's figure, the method's), where both are given as equal to a number."""
    by: dict[str, dict[str, str]] = {}
    for row in figures:
        if row["quantity"] == quantity and row["relation"] == "=":
            by.setdefault(row["model"], {})[row["method"]] = row["value"]
    return {model: (of[FULL], of[method]) for model, of in by.items() if FULL in of and method in of}


# --------------------------------------------------------------------------- physical floors


def floors(figures: Sequence[dict]) -> list[str]:
    """Memory and time of the figures against bytes of weights and FLOPs."""
    return [*_memory(figures), *_epochs(figures), *_speedups(figures)]


def _memory(figures: Iterable[dict]) -> list[str]:
    """GB (1e9 bytes) reported beside GB needed, and how many shares of the reported size that takes at least."""
    figures, sizes, lines = list(figures), parameters(), []
    node = next((int(row["value"]) for row in figures if row["quantity"] == "gpus_per_node"), None)
    for row in figures:
        if row["quantity"] != "gpu_memory" or row["model"] not in sizes:
            continue
        size = sizes[row["model"]]
        needed = {"weights in 16 bits": 2 * size / 1e9, "in 4 bits": size / 2e9}
        if row["method"] == FULL:
            needed["with gradients and Adam in mixed precision"] = 16 * size / 1e9
        told = ", ".join(f"{what} {value:,.0f} GB" for what, value in needed.items())
        what, least = list(needed.items())[-1]
        shares = math.ceil(least / float(row["value"]))
        nodes = f" ({math.ceil(shares / node)} nodes of {node})" if node and shares > node else ""
        line = f"{row['model']}, {row['method']}: {row['value']} GB reported; {told}."
        lines.append(
            f"{line} As one GPU's share that takes {shares} GPUs or more{nodes} {what}." if shares > 1 else line
        )
    return lines


def _epochs(figures: Iterable[dict]) -> list[str]:
    """Epochs of two models whose times are far from their parameters' ratio."""
    sizes, lines = parameters(), []
    times = [r for r in figures if r["quantity"] == "train_time_per_epoch" and r["method"] == OURS]
    for one, other in zip(times, times[1:], strict=False):
        ratio = sizes[one["model"]] / sizes[other["model"]]
        slow = float(one["value"]) / float(other["value"])
        if slow * SLACK < ratio:
            lines.append(
                f"An epoch of {one['model']} takes {slow:.2f} times one of {other['model']}, with {ratio:.0f} times the "
                "parameters: the number of GPUs must differ, so the times do not compare."
            )
    return lines


def _speedups(figures: Sequence[dict]) -> list[str]:
    """Reported speed-ups over full fine-tuning that are above what saved FLOPs give."""
    most = max(full / frozen for full, frozen in FLOPS.values())
    told = ", ".join(f"{full / frozen:.2f} {how}" for how, (full, frozen) in FLOPS.items())
    lines = [
        "A step that trains adapters alone saves the weights' gradients, 2 FLOPs a parameter and token. On the same devices "
        f"that makes it at most so many times faster than full fine-tuning: {told}. What is above has other causes (memory "
        "traffic, communication, batch, devices)."
    ]
    for method in dict.fromkeys(r["method"] for r in figures if r["method"] != FULL):
        for model, (full, other) in _pairs(figures, "train_time_per_epoch", method).items():
            ratio = float(full) / float(other)
            if ratio > most:
                lines.append(
                    f"{model}, {method}: {full} / {other} = {ratio:.2f} times faster than {FULL}, beside the bound of "
                    f"{most:.2f}; a factor of {ratio / most:.2f} or more is left to other causes, which the figures do not have."
                )
    return lines


# --------------------------------------------------------------------------- loss and scores


def loss_against_scores(cells: Sequence[Cell], figures: Iterable[dict]) -> list[str]:
    """Pairs of methods of which one has the higher final validation loss and the higher scores, too."""
    losses: dict[str, dict[str, float]] = {}
    for row in figures:
        if row["quantity"] == "val_loss_final":
            losses.setdefault(row["model"], {})[row["method"]] = float(row["value"])
    lines = []
    for model, by in losses.items():
        for pair in combinations(by, 2):
            lower, higher = sorted(pair, key=by.get)
            gains = _gains(cells, model, higher, lower)
            with_loss = [f"{name} {gain:+.1f}" for name, gain in gains.items() if gain <= 0]
            against = [f"{name} {gain:+.1f}" for name, gain in gains.items() if gain > 0]
            if against and by[lower] < by[higher]:
                rest = f"; elsewhere it is not: {', '.join(with_loss)}" if with_loss else ""
                lines.append(
                    f"{model}: {higher}'s final validation loss, {by[higher]:g}, is above {lower}'s, {by[lower]:g}, and so is "
                    f"its score: {', '.join(against)}{rest}."
                )
    end = "A loss and a score need not order methods alike; the data that the loss is of would tell."
    return [*lines, end] if lines else ["No method has both the higher loss and the higher score."]


def _gains(cells: Sequence[Cell], model: str, one: str, other: str) -> dict[str, float]:
    """Benchmark and metric: printed average of ``one`` less that of ``other``, in the benchmark's points."""
    by: dict[str, dict[str, float]] = {}
    for c in cells:
        if c.model == model and c.average is not None:
            by.setdefault(f"{c.benchmark} {c.metric}", {})[c.method] = c.average
    return {name: round(of[one] - of[other], 6) for name, of in by.items() if one in of and other in of}
