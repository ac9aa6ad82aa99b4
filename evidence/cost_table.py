"""What training costs: step time, throughput, time of an epoch with its number of steps, memory by kind.

Times and memory come from the ``cost`` stage, measured with the machine to itself. Each kind of memory has a column of
its own: live tensors, resident memory of the process and device memory are different things and are never mixed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evidence.layout import Group, Table
from evidence.row_marks import clean, cost_mark_notes, mark

if TYPE_CHECKING:
    import pandas as pd

    from evidence.collected import Collected

MIB = 2**20
MEMORY = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "peak": "peak",
}
EXTRA = {"refresh": "refresh, s (every)", "warmup": "warm-up, s/step (steps)"}
"""Columns that stand only where some method has such steps."""
WHOLE = "training, s (steps)"


def cost_table(collected: Collected, title: str) -> Table | None:
    """A row per model, corpus and method; None where the suite measures no cost."""
    costs = collected.costs
    if not len(costs):
        return None
    device = [name for name in costs if name.startswith("memory_cuda_") and _known_anywhere(costs, name)]
    extra = {part: title for part, title in EXTRA.items() if _known_anywhere(costs, f"{part}_seconds")}
    step = ["s/step [quartiles]", "tokens/s", "epoch, min (steps)", "× Full FT", "start, s"]
    heads = [
        ("Time", [*step, *extra.values(), WHOLE]),
        ("Live tensors, MiB", list(MEMORY.values())),
        ("Process, MiB", ["RSS peak"]),
        *([("Device, MiB", [_device_label(name) for name in device])] if device else []),
        ("Parameters", ["trained", "share"]),
    ]
    table = Table(title, ("Model, corpus", "Method"), heads, [], [])
    order = {name: index for index, name in enumerate(collected.suite["variants"])}
    for _, rows in costs.groupby(["model", "corpus"], sort=False):
        rows = rows.sort_values("variant", key=lambda column: column.map(order), kind="stable")
        full = clean(rows[rows["method"] == "full"])["step_seconds_median"]
        group = Group(_describe(rows))
        for _, row in rows.iterrows():
            texts = _cells(row, full.iloc[0] if len(full) else None, device, list(extra))
            group.rows.append([row["variant_label"], *texts])
            table.records.append({n: value for n, value in row.items() if n != "step_seconds_all" and value == value})
        table.groups.append(group)
    table.notes = _notes(costs)
    return table


def _describe(rows: pd.DataFrame) -> list[str]:
    """Model, corpus, and under which conditions the group was measured."""
    lines = [str(rows["model_label"].iloc[0]), str(rows["corpus_label"].iloc[0])]
    for column, unit in (("threads", "threads"), ("batch_tokens", "tokens a step")):
        values = sorted({round(value) for value in rows[column].dropna()})
        if values:
            unit = "thread" if unit == "threads" and values == [1] else unit
            lines.append(" to ".join(f"{value:,}" for value in values[:: max(len(values) - 1, 1)]) + f" {unit}")
    return lines


def _cells(row: pd.Series, full: float | None, device: list[str], extra: list[str]) -> list[str]:
    """The texts of one row; a failure stands where the step time would."""
    count = 7 + len(extra) + 1 + len(MEMORY) + len(device) + 1
    if row["status"] != "ok":
        return [row["status"] + mark(row), *["—"] * (count - 1)]
    step = _number(row["step_seconds_median"], _seconds)
    if _known(row["step_seconds_q25"]) and _known(row["step_seconds_q75"]):
        step += f" [{_seconds(row['step_seconds_q25'])}, {_seconds(row['step_seconds_q75'])}]"
    epoch = _number(row["epoch_seconds_median"], lambda value: _minutes(value / 60))
    if _known(row["epoch_steps"]):
        epoch += f" ({int(row['epoch_steps']):,})"
    comparable = full is not None and not mark(row) and _known(row["step_seconds_median"])
    memory = [_number(row.get(f"memory_{kind}_bytes"), _mebibytes) for kind in MEMORY]
    share = None
    if _known(row["parameters_trained"]) and _known(row["parameters_total"]):
        share = 100 * row["parameters_trained"] / row["parameters_total"]
    return [
        step + mark(row),
        _number(row["tokens_per_second"], lambda value: f"{value:,.0f}"),
        epoch,
        f"{row['step_seconds_median'] / full:.2f}" if comparable else "—",
        _number(row.get("prepare_seconds"), lambda value: f"{value:.1f}"),
        *(_counted(row, f"{part}_seconds", f"{part}_{'every' if part == 'refresh' else 'steps'}") for part in extra),
        _counted(row, "whole_seconds", "whole_steps"),
        *memory,
        _number(row.get("memory_rss_peak_bytes"), _mebibytes),
        *(_number(row.get(name), _mebibytes) for name in device),
        _number(row["parameters_trained"], lambda value: f"{int(value):,}"),
        _number(share, lambda value: f"{value:.2f} %"),
    ]


def _notes(costs: pd.DataFrame) -> list[str]:
    """How to read the columns, on what they were measured, and what failed."""
    steps = sorted({int(n) for n in costs["step_seconds_n"].dropna()})
    counted = f" of {steps[0]}" + (f" to {steps[-1]}" if len(steps) > 1 else "") + " steps" if steps else ""
    notes = [
        f"Measured with the machine to itself: median{counted} and quartiles. An epoch is one pass over the corpus as "
        "the suite limits it, its number of steps in brackets. Start: what a method does with data before its first step.",
        "An epoch's time is its tokens x the mean time per token, so it need not be the median step x the steps.",
        "s/step leaves out refreshes and warm-up steps, which have columns of their own; an epoch holds its share of the "
        "refreshes, and the whole training (so many steps as the suite asks) start, warm-up, refreshes and steps.",
        "Live tensors: bytes that tensors hold in one step; gradients at their largest, activations and work space as "
        "what the step's peak holds beyond the rest; peak: the highest of a training, with its start, warm-up and "
        "refreshes. RSS is another measure: resident memory of the whole process.",
    ]
    hardware = sorted({text for text in costs["hardware"].dropna() if text})
    if hardware:
        notes.append(f"Hardware: {' | '.join(hardware)}.")
    overhead = costs["instrument_overhead"].dropna()
    if len(overhead):
        notes.append(f"The instruments took at most {100 * overhead.max():.1f} % of a step.")
    notes += cost_mark_notes(costs)
    for _, row in costs[~costs["status"].isin(("ok", "missing"))].iterrows():
        where = f"{row['model_label']}, {row['corpus_label']}, {row['variant_label']}"
        notes.append(f"Failed: {where}: {row['status']}" + (f" ({row['reason']})." if row["reason"] else "."))
    return notes


def _device_label(column: str) -> str:
    return column.removeprefix("memory_cuda_").removesuffix("_bytes").replace("_", " ")


def _counted(row: pd.Series, seconds: str, count: str) -> str:
    """Seconds with a number of steps behind them in brackets."""
    text = _number(row.get(seconds), _seconds)
    return f"{text} ({int(row[count]):,})" if text != "—" and _known(row.get(count)) else text


def _known_anywhere(costs: pd.DataFrame, column: str) -> bool:
    return column in costs and costs[column].notna().any()


def _known(value: Any) -> bool:
    return value is not None and value == value


def _number(value: Any, form: Any) -> str:
    return form(value) if _known(value) else "—"


def _seconds(value: float) -> str:
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1}f}"


def _minutes(value: float) -> str:
    return f"{value:.2g}" if value < 1 else f"{value:,.1f}"


def _mebibytes(value: float) -> str:
    size = value / MIB
    return f"{size:.2g}" if size < 1 else f"{size:.1f}" if size < 10 else f"{size:,.0f}"
