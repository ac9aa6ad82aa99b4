"""A plan as pages: cost_plan.md for people, cost_plan.csv with a row for each model, corpus and variant, and cost_plan.json."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from harness.calibration import LeftOut, Measured, leave_out, memory_errors, middle

if TYPE_CHECKING:
    from harness.plan import Plan, Row
    from harness.step_profile import Profile

KINDS = ("weights", "gradients", "optimizer", "activations", "peak")
FLOAT32 = 4
LONG = 40  # rows of the table that are printed; the file has all
LEGEND = """A row stands for all its seeds or trials; step, training and disk are of one of them. Memory is that of live tensors
at the peak of a step with the training's largest micro-batch (optimizer state and weights as they stand, gradients at their
largest, activations with work space); a process lies above it by its libraries and its allocator. Where not every micro-batch
is known, as rows are not at hand, too many to be all read, or trained on too often to be all laid out, it is that of an upper
bound of the largest, marked ≤. FLOPs are matrix products and attention. A training's time is its steps with refreshes; loading,
`prepare`, validation, prediction and scoring are left out. Disk: the trained delta (what trains, in float32), and while it
trains a checkpoint of that with optimizer state, if one is written; predictions, curves and the base models are left out."""


def write_pages(plan: Plan, folder: Path) -> str:
    """Write the three files; what to print."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [facts(row) for row in plan.rows]
    (folder / "cost_plan.json").write_text(json.dumps(_json(plan, rows), indent=1) + "\n", encoding="utf-8")
    with open(folder / "cost_plan.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys() if rows else ["model"])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "cost_plan.md").write_text(page(plan, len(plan.rows)), encoding="utf-8")
    return page(plan, LONG) + f"\n{folder}/cost_plan.md, .csv and .json; made in {plan.took:.0f} s."


def facts(row: Row) -> dict:
    """The row as plain values; empty where there is none."""
    training, found, step = row.training, row.batches, row.step
    work = step.work(found.micro_batches) if step else None
    flops = work.flops + work.attention if work else None
    steps = found.steps
    return {
        "model": training.model,
        "corpus": training.corpus,
        "variant": training.variant,
        "method": training.method,
        "stage": training.stage,
        "trainings": row.trainings,
        "source_of_lengths": found.source,
        "steps": steps,
        "tokens_a_step": round(found.tokens),
        "tokens": round(found.tokens * steps) if steps else None,
        "flops_a_step": flops,
        "flops": flops * steps if flops and steps else None,
        "trained": step.parameters["trained"] if step else None,
        **{f"{kind}_bytes": row.memory.get(kind) for kind in KINDS},
        "upper_bound": found.upper if step else None,
        "fits": not row.obstacle if step else None,
        "obstacle": row.obstacle,
        "step_seconds": row.step_seconds,
        "training_seconds": row.seconds,
        "delta_bytes": _delta(step) if training.stage == "train" else 0,  # nobody asks a trial's model anything
        "checkpoint_bytes": _delta(row.held) + row.memory["optimizer"] if step else None,
        "reason": row.reason,
        "notes": "; ".join(row.notes),
    }


def _delta(step: Profile | None) -> int | None:
    return FLOAT32 * (step.parameters["trained"] + step.parameters["head"]) if step else None


def page(plan: Plan, most: int) -> str:
    """The plan as Markdown, with at most so many rows of its table."""
    parts = [
        f"# What {plan.suite.name} will cost",
        f"Planned for {plan.device}: {size(plan.device_memory)}. Time: {plan.clock}.",
        _table(plan.rows[:most]),
        f"... and {len(plan.rows) - most} rows more in cost_plan.md." if len(plan.rows) > most else "",
        LEGEND,
        "## In total\n\n" + "\n".join(f"- {line}" for line in totals(plan)),
        "## What cannot run\n\n" + ("\n".join(f"- {line}" for line in obstacles(plan)) or "Everything fits."),
        "## How right it is\n\n" + errors(plan),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _table(rows: list[Row]) -> str:
    names = ["model", "corpus", "variant", "trainings", "steps", "tokens", "FLOPs a step", *KINDS, "fits", "s a step"]
    lines = [f"| {' | '.join([*names, 'training', 'delta'])} |", "|" + "---|" * (len(names) + 2)]
    for row in rows:
        known, step = facts(row), row.step
        cells = [known["model"], known["corpus"], _variant(row), str(row.trainings), count(known["steps"])]
        cells += [count(known["tokens"]), amount(known["flops_a_step"])]
        cells += [_memory(row, kind) for kind in KINDS]
        cells += ["not counted" if not step else "yes" if not row.obstacle else "not surely" if _unsure(row) else "no"]
        cells += ["" if row.step_seconds is None else f"{row.step_seconds:,.3g}", duration(row.seconds)]
        lines.append(f"| {' | '.join([*cells, size(known['delta_bytes'])])} |")
    return "\n".join(lines)


def _variant(row: Row) -> str:
    return row.training.variant + (", search" if row.training.stage == "trial" else "")


def _memory(row: Row, kind: str) -> str:
    """Bytes of a kind for people; what grows with the micro-batch is an upper bound where that is one."""
    bound = "≤ " if row.batches.upper and kind in ("activations", "peak") and row.memory else ""
    return bound + size(row.memory.get(kind))


def _unsure(row: Row) -> bool:
    """Whether the row fits but for activations of a micro-batch that may be larger than any of the training's."""
    return row.batches.upper and "activations" in row.obstacle


def totals(plan: Plan) -> list[str]:
    rows = [(row.trainings, facts(row)) for row in plan.rows]

    def total(name: str) -> float:
        return sum(number * row[name] for number, row in rows if row[name])

    checkpoint = max((row["checkpoint_bytes"] or 0 for _, row in rows), default=0)
    cells, unknown = sum(number for number, _ in rows), sum(not row["steps"] for _, row in rows)
    trials = sum(number for number, row in rows if row["stage"] == "trial")
    uncounted = sum(row["flops_a_step"] is None for _, row in rows)
    sources: dict[str, int] = {}
    for _, row in rows:
        sources[row["source_of_lengths"]] = sources.get(row["source_of_lengths"], 0) + 1
    lines = [
        f"{cells:,} trainings in {len(rows):,} rows" + (f", {trials:,} of them trials of the search" if trials else ""),
        f"lengths from {', '.join(f'{k}: {v} rows' for k, v in sources.items())}",
        f"{count(total('steps'))} steps, {count(total('tokens'))} tokens, {amount(total('flops'))} FLOPs",
        f"{duration(total('training_seconds'))} of training, one after another",
        f"{size(total('delta_bytes'))} of deltas; at most {size(checkpoint)} for a checkpoint beside them",
    ]
    if "longest" in " ".join(sources):
        lines.append(
            "where lengths are those of the protocol's longest rows, tokens, FLOPs, memory and time are upper bounds"
        )
    if unknown:
        lines.append(
            f"{unknown} rows without a number of steps (neither rows nor a published count at hand) are in no total"
        )
    if uncounted:
        lines.append(f"{uncounted} rows that cannot be counted are in no total")
    notes = Counter(note for row in plan.rows for note in dict.fromkeys(row.notes))
    return lines + [f"{number} row{'s' * (number > 1)}: {note}" for note, number in notes.items()]


def obstacles(plan: Plan) -> list[str]:
    """One line for each model and variant that does not fit or cannot be counted, over its corpora."""
    found: dict[tuple, list[Row]] = {}
    for row in plan.rows:
        if row.reason or row.obstacle:
            exceed = f"{row.obstacle} {'may ' * _unsure(row)}exceed {size(plan.device_memory)}"
            what = f"not counted: {row.reason}" if row.reason else exceed
            found.setdefault((row.training.model, _variant(row), what), []).append(row)
    lines = []
    for (model, variant, what), rows in found.items():
        largest = max(rows, key=lambda row: row.memory.get("peak", 0))
        kinds = ", ".join(f"{kind} {_memory(largest, kind)}" for kind in KINDS if largest.memory)
        corpora = ", ".join(row.training.corpus for row in rows)
        lines.append(f"{model}, {variant} ({corpora}): {what}" + (f" ({kinds})" if kinds else ""))
    return lines


# --------------------------------------------------------------------------- errors


def errors(plan: Plan) -> str:
    """The plan on measured cells, memory by kind, and time of what was left out of the calibration."""
    cells = plan.measured
    if not cells:
        return "\n".join(
            ["No cost records of this machine: nothing to compare with. Stage `cost` makes them.", *_damaged(plan)]
        )
    lines = [f"{len(cells)} measured cells of this machine."]
    lines.append(f"\n| memory, n = {len(cells)} | median error | largest | within 10 % |\n|---|---|---|---|")
    for kind in KINDS:
        found = memory_errors(cells, kind)
        lines.append(
            f"| {kind} | {_percent(middle(found))} | {_percent(max(map(abs, found)))} | {_within(found, 0.1)} |"
        )
    lines.append("\n| step time, left out in turn | n | median error | largest | within 25 % |\n|---|---|---|---|---|")
    for left in left_out(cells):
        found = left.errors
        most, _ = max(left.cells, key=lambda item: abs(item[1] / item[0].seconds - 1))
        lines.append(
            f"| {left.what} | {len(found)} | {_percent(middle(found))} | {_percent(max(map(abs, found)))} "
            f"({most.model}, {most.variant}) | {_within(found, 0.25)} |"
        )
    spread = middle([cell.spread for cell in cells])
    lines.append(
        f"\nThe measured steps of a cell differ among themselves: half of them by {_percent(spread)} of their median."
    )
    lines += [f"- not compared: {line}" for line in plan.uncounted]
    return "\n".join(lines + _damaged(plan))


def _damaged(plan: Plan) -> list[str]:
    """One line, if any record was left out."""
    first, more = plan.damaged[:3], len(plan.damaged) - 3
    shown = ", ".join(map(str, first)) + (f" and {more} more" if more > 0 else "")
    return [f"- left out, as damaged or without what a plan needs: {shown}"] if first else []


def left_out(cells: list[Measured]) -> list[LeftOut]:
    """Cells of the same threads and precision predict one another only."""
    groups: dict[tuple, list[Measured]] = {}
    for cell in cells:
        groups.setdefault((cell.threads, cell.precision), []).append(cell)
    largest = max(groups.values(), key=len)
    by = {"method": lambda c: c.method, "model": lambda c: c.model, "length": lambda c: c.length}
    return [left for what, group in by.items() if (left := leave_out(largest, what, group))]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _within(found: list[float], bound: float) -> str:
    return f"{sum(abs(error) <= bound for error in found)} of {len(found)}"


def _json(plan: Plan, rows: list[dict]) -> dict:
    names = ("suite", "model", "corpus", "variant", "seconds", "memory", "predicted_memory")
    return {
        "suite": plan.suite.name,
        "device": plan.device,
        "device_memory_bytes": plan.device_memory,
        "clock": plan.clock,
        "totals": totals(plan),
        "obstacles": obstacles(plan),
        "rows": rows,
        "measured": [{name: getattr(cell, name) for name in names} for cell in plan.measured],
        "left_out": [
            {
                "left_out": left.what,
                **{k: getattr(cell, k) for k in names[:4]},
                "seconds": cell.seconds,
                "predicted": seconds,
            }
            for left in (left_out(plan.measured) if plan.measured else [])
            for cell, seconds in left.cells
        ],
    }


# --------------------------------------------------------------------------- numbers for people


def size(value: float | None) -> str:
    if value is None:
        return ""
    for unit, one in (("PiB", 2**50), ("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= one:
            return f"{value / one:.3g} {unit}" if value < 999 * one else f"{value / one:,.0f} {unit}"
    return f"{value:.0f} B"


def amount(value: float | None) -> str:
    if value is None:
        return ""
    for unit, one in (("Y", 1e24), ("Z", 1e21), ("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= one:
            return f"{value / one:.3g} {unit}"
    return f"{value:.0f}"


def count(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:,.0f}" if value < 1e7 else amount(value).replace(" G", " billion").replace(" M", " million")


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, one in (("years", 365.25 * 86400), ("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * one:
            return f"{seconds / one:,.3g} {unit}" if seconds < 1000 * one else f"{seconds / one:,.0f} {unit}"
    return f"{seconds:.2g} s"
