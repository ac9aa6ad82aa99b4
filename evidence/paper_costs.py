"""Tables of a paper that hold costs: against full fine-tuning, and what refreshing a projection takes.

See ``paper_tables``. Times and memory are stage ``cost``'s, measured with the machine to itself; there is no interval over
machines, so a ratio stands beside the number of timed steps and the quartiles.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from evidence.layout import Group, Table
from evidence.names import family_of
from evidence.paper_scores import NOT_RUN
from evidence.pools import Pool, panels
from evidence.row_marks import clean, cost_mark_notes, mark
from evidence.score_table import average, decimals, names_of

if TYPE_CHECKING:
    import pandas as pd

    from evidence.collected import Collected

MIB = 2**20


def costs_table(paper: str, spec: dict, collected: Collected) -> Table:
    """Trained share, step time and live memory of each method beside full fine-tuning's."""
    heads = [
        ("Trained", ["number", "share"]),
        ("Step", ["seconds [quartiles] (n)", "/ full FT"]),
        ("Live tensors at the peak", ["MiB", "/ full FT"]),
        ("Weights + gradients + optimizer", ["MiB", "/ full FT"]),
        ("Training", ["seconds (steps)"]),
    ]
    table = Table(spec["title"], ("Model, corpus", "Method"), heads, [], [])
    costs = collected.costs
    for _, rows in costs.groupby(["model", "corpus"], sort=False) if len(costs) else ():
        full = clean(rows[rows["method"] == "full"])
        base = full.iloc[0].to_dict() if len(full) else {}
        group = Group([str(rows["model_label"].iloc[0]), str(rows["corpus_label"].iloc[0])])
        for entry in rows.to_dict("records"):
            if family_of(entry["variant"]) in spec["methods"]:
                group.rows.append([entry["variant_label"], *_cost_cells(entry, base)])
                table.records.append({name: value for name, value in entry.items() if value == value})
        if group.rows:
            table.groups.append(group)
    if not table.groups:
        table.groups.append(Group([NOT_RUN], [["—"] * 10]))
    table.notes = [
        "Medians of timed steps with the machine to itself; a step between two refreshes, whose time is in the training's. "
        "Live tensors: bytes at the highest point of a training, its start and warm-up included; the third part is of one step "
        "and leaves activations out, which depend on batch and length.",
        *cost_mark_notes(costs),
        *(f"The paper says: {text}" for text in spec.get("claims", [])),
    ]
    return table


def _cost_cells(entry: dict[str, Any], full: dict[str, Any]) -> list[str]:
    def known(row: dict, name: str) -> float | None:
        value = row.get(name)
        return None if value is None or value != value else float(value)

    if entry["status"] != "ok":
        return [entry["status"] + (f": {entry['reason']}" if entry["reason"] else ""), *["—"] * 8]
    marks = mark(entry)

    def ratio(name: str) -> str:
        one, other = known(entry, name), known(full, name)
        return f"{one / other:.3f}" if one and other and not marks else "—"

    entry, full = ({**row, "state_bytes": _state(row)} for row in (entry, full))
    trained, total = known(entry, "parameters_trained"), known(entry, "parameters_total")
    step, count = known(entry, "step_seconds_median"), known(entry, "step_seconds_n")
    low, high = known(entry, "step_seconds_q25"), known(entry, "step_seconds_q75")
    whole, steps = known(entry, "whole_seconds"), known(entry, "whole_steps")
    return [
        f"{trained:,.0f}" if trained else "—",
        f"{100 * trained / total:.3g} %" if trained and total else "—",
        (f"{step:.3g} [{low:.3g}, {high:.3g}] ({count:.0f})" if step and low and high and count else "—") + marks,
        ratio("step_seconds_median"),
        *(
            text
            for name in ("memory_peak_bytes", "state_bytes")
            for text in (_mebibytes(known(entry, name)), ratio(name))
        ),
        f"{whole:.3g} ({steps:.0f})" if whole and steps else "—",
    ]


def _state(row: dict) -> float | None:
    parts = [row.get(f"memory_{kind}_bytes") for kind in ("weights", "gradients", "optimizer")]
    return None if any(part is None or part != part for part in parts) else float(sum(parts))


def _mebibytes(value: float | None) -> str:
    return "—" if value is None else f"{value / MIB:,.0f}"


# --------------------------------------------------------------------------- projections


def projection_table(paper: str, spec: dict, collected: Collected) -> Table:
    """A row per model, corpus and method of GaLore's family, and of those beside it."""
    score = list(dict.fromkeys(spec["evals"]))
    heads = [
        ("Refresh", ["builder", "a refresh, s", "every", "iterations", "passes", "captured energy", "lowest"]),
        ("Time", ["a step, s", "training, s (steps)"]),
        ("Quality", ["validation loss at the end (n)", *score]),
    ]
    table = Table(spec["title"], ("Model, corpus", "Method"), heads, [], [])
    names, scored = names_of(collected), panels(collected, reference=False)
    runs = collected.runs[collected.runs["variant"].map(family_of).isin(spec["methods"])]
    for (model, corpus), rows in runs.groupby(["model", "corpus"], sort=False):
        group = Group([names[model], str(rows["corpus_label"].iloc[0])])
        for variant, of in rows.groupby("variant", sort=False):
            pools = [_quality(scored, corpus, name, variant, model) for name in score]
            row = _projection_row(of, _cost_of(collected.costs, model, corpus, variant))
            group.rows.append([names[variant], *row.values(), *pools])
            table.records.append(
                {"model": model, "corpus": corpus, "variant": variant, **row, **dict(zip(score, pools, strict=True))}
            )
        table.groups.append(group)
    if not table.groups:
        table.groups.append(Group([NOT_RUN], [["—"] * (table.width - 1)]))
    table.notes = [
        "A refresh's time, iterations, passes over the gradient and captured energy (share of the gradient's squares in "
        "the basis, mean and lowest over matrices): means over refreshes and matrices, then over runs. A refresh's time ran "
        "beside other jobs; that in the training's seconds is stage cost's. DPI-GLRP is our reading of an abstract.",
        "Means take runs that ended well, belong to the suite's present specification and come from the reference software; "
        "where others are left out, the loss is of so many runs of all.",
        *cost_mark_notes(collected.costs),
    ]
    return table


def _projection_row(rows: pd.DataFrame, cost: dict) -> dict[str, str]:
    """Texts by name. ``cost``: the method's row of costs, empty where there is none; a failed one is told by its status."""
    first = rows.drop_duplicates("seed")
    fine = clean(first)
    facts = [json.loads(text) for text in fine["facts"] if text]
    refreshed = fine[fine["refreshes"] > 0]
    each = (refreshed["refresh_seconds"] / refreshed["refreshes"]).mean() if len(refreshed) else None
    every = [json.loads(text).get("refresh_every") for text in fine["hyperparameters"] if text]
    loss = fine["validation_last"].dropna()
    lost = "" if len(fine) == len(first) else f" of {len(first)}"
    marks = mark(cost) if cost else ""
    step, whole = cost.get("step_seconds_median"), cost.get("whole_seconds")
    return {
        "builder": next((str(f["projector"]) for f in facts if "projector" in f), "—"),
        "refresh": _number(each, 3),
        "every": str(next((e for e in every if e), "—")),
        "iterations": _mean(facts, "iterations", 1),
        "passes": _mean(facts, "passes", 1),
        "energy": _mean(facts, "captured_share", 4),
        "lowest": _mean(facts, "captured_share_lowest", 4),
        "step": (_number(step, 3) if cost.get("status") in ("ok", None) else cost["status"]) + marks,
        "training": (f"{whole:.3g} ({cost['whole_steps']:.0f})" if whole and whole == whole else "—") + marks,
        "validation": f"{loss.mean():.3f} ({len(loss)}{lost})" if len(loss) else f"— (0{lost})" if lost else "—",
    }


def _quality(scored: list, corpus: str, name: str, variant: str, model: str) -> str:
    for panel in scored:
        if panel.corpus == corpus and panel.eval == name and (variant, model) in panel.pools:
            pool: Pool = panel.pools[variant, model]
            return average(pool, decimals(panel)) if pool.used else ", ".join(run.status for run in pool.runs)
    return NOT_RUN


def _cost_of(costs: pd.DataFrame, model: str, corpus: str, variant: str) -> dict:
    if not len(costs):
        return {}
    found = costs[(costs["model"] == model) & (costs["corpus"] == corpus) & (costs["variant"] == variant)]
    return found.iloc[0].to_dict() if len(found) else {}


def _mean(facts: list[dict], name: str, digits: int) -> str:
    values = [fact[name] for fact in facts if fact.get(name) is not None]
    return f"{sum(values) / len(values):.{digits}f}" if values else "—"


def _number(value: float | None, digits: int) -> str:
    return "—" if value is None or value != value else f"{value:.{digits}f}"
