"""What ``perf.step_cost`` found, as a table, a CSV, a JSON with every step's time, and a figure."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evidence.style import MEMORY_KINDS, PAGE_WIDTH, footer, styles, use_print_style
from perf.contest import ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIB = 2**20
REFERENCE, FULL, OWN_LOSS = "lora", "full", "peft-lora-own-loss"
KINDS = ("weights", "gradients", "optimizer", "activations", "peak")
NOTES = """
Ratios: medians over the steps of one round, with 95 % bootstrap intervals; below 1: the method on the left is faster.
Floor: the frozen base's forward products and their input gradients, and the adapter's own products by its formula (of
which the first block's need a little less, as its inputs take no gradient); Full FT: all gradients. Time / floor: a
step's median time over that of the floor's products at the rate of the model's own products. FLOPs are matrix products
and attention as torch counts them; the FFTs of uRNN are neither. Memory: live tensors in MiB; gradients at their
largest, the other kinds add up to the peak with the gradients that are there then. Free: degrees of freedom.
Prepare: a start from data, once a training, and the most bytes of weights' gradients held at once in it; for
SMT the peak of the step that selects its blocks. Refresh: what
a step that renews the bases takes beyond the others, which have none.
"""


def rows(found: Sequence[dict], rounds: Sequence[dict[str, list[float]]], rates: dict[str, float]) -> list[dict]:
    """One flat row a contestant, for the CSV; None where nothing was measured."""

    def compared(name: str, other: str, column: str) -> dict:
        """Columns of the ratio of two contestants, from the round that they shared."""
        shared = next((r for r in rounds if name in r and other in r), None) if name != other else None
        parts = ratio(shared[name], shared[other]) if shared else (None, None, None)
        return {column: parts[0], f"{column}_low": parts[1], f"{column}_high": parts[2]}

    made = []
    for result in found:
        entry = result["entry"]
        seconds = [value for r in rounds for value in r.get(entry.name, [])]
        low, middle, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
        row = {"name": entry.name, "label": entry.label, "steps": len(seconds), "seconds": middle}
        row |= {"seconds_q25": low, "seconds_q75": high, **compared(entry.name, REFERENCE, "over_lora")}
        row |= compared(entry.name, FULL, "over_full") | compared(entry.name, entry.peer, "over_peer")
        row |= compared(entry.name, OWN_LOSS if entry.name == REFERENCE else "", "over_peft_own_loss")
        row |= {"flops": result["flops"], "floor_flops": result["floor"], "flops_per_second": result["flops"] / middle}
        row |= {"floor_seconds": result["floor"] / rates["own"]}
        row |= {"time_over_floor": middle / row["floor_seconds"]}
        row |= {"refresh_seconds": _median(result["refresh"]) - middle if result["refresh"] else None}
        row |= {"foreign": entry.foreign, "trained": result["trained"], "effective": result["effective"]}
        row |= {f"{what}_seconds": _median(result[what]) for what in ("attach", "prepare")}
        row |= {f"{name}_bytes": result.get(name) for name in ("prepare_gradients", "prepare_peak")}
        row |= {f"{kind}_bytes": size for kind, size in result["memory"].items()}
        made.append(row)
    return made


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def write(rows: list[dict], rounds: list[dict], settings: dict, out: Path) -> None:
    """Print the tables; write them with CSV, JSON and figure to ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    text = markdown(rows, settings)
    print("\n" + text, flush=True)
    (out / "step_cost.md").write_text(text, encoding="utf-8")
    (out / "step_cost.json").write_text(json.dumps({"settings": settings, "rounds": rounds}, indent=1) + "\n")
    with open(out / "step_cost.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    drawn = figure(rows, settings)
    drawn.savefig(out / "step_cost.png")
    drawn.savefig(out / "step_cost.pdf", metadata={"CreationDate": None, "ModDate": None})


# --------------------------------------------------------------------------- tables


def markdown(rows: list[dict], settings: dict) -> str:
    rates = settings["rates"]
    head = (
        f"{settings['model']}, {settings['batch']}, float32, {settings['device']}, {settings['threads']}, "
        f"{settings['blocks']} steps of each in turn. Products of the model's own shapes run at "
        f"{rates['own'] / 1e9:.0f} GFLOP/s here, a square product at {rates['square'] / 1e9:.0f}."
    )
    time = [
        ("s a step", "/ our LoRA", "/ full FT", "/ its counterpart's", "refresh, s", "GFLOP", "floor, GFLOP", "GFLOP/s",
         "time / floor"),
        *((f"{r['seconds']:.4g}", *(_ratio(r, f"over_{other}") for other in ("lora", "full", "peer")),
           _number(r["refresh_seconds"]), f"{r['flops'] / 1e9:.4g}", f"{r['floor_flops'] / 1e9:.4g}",
           f"{r['flops_per_second'] / 1e9:.3g}", f"{r['time_over_floor']:.3g}")
          for r in rows),
    ]  # fmt: skip
    memory = [
        ("trained", "free", "attach, s", "prepare, s", "its gradients", "its peak", *KINDS),
        *((f"{r['trained']:,}", f"{r['effective']:,}", _number(r["attach_seconds"]), _number(r["prepare_seconds"]),
           _size(r["prepare_gradients_bytes"]), _size(r["prepare_peak_bytes"]), *(_size(r[f"{k}_bytes"]) for k in KINDS))
          for r in rows),
    ]  # fmt: skip
    names = ["", *(r["label"] for r in rows)]
    whole = next((_ratio(r, "over_peft_own_loss") for r in rows if r["name"] == REFERENCE), "")
    line = f"Our LoRA's whole step / PEFT's LoRA with the model's own loss over all positions: {whole}"
    return "\n\n".join([head, _table(names, time), line, _table(names, memory), NOTES.strip()]) + "\n"


def _table(names: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    full = [[name, *cells] for name, cells in zip(names, lines, strict=True)]
    widths = [max(len(row[i]) for row in full) for i in range(len(full[0]))]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in full]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def _ratio(row: dict, column: str) -> str:
    if row[column] is None:
        return ""
    return f"{row[column]:.3f} [{row[f'{column}_low']:.3f}, {row[f'{column}_high']:.3f}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _size(value: int | None) -> str:
    return "" if value is None else f"{value / MIB:,.1f}"


# --------------------------------------------------------------------------- figure


def figure(rows: list[dict], settings: dict) -> Figure:
    """Bars: time over our LoRA's, with intervals; memory by kind at its peak. Other libraries' are hatched and pale."""
    use_print_style()
    import matplotlib.pyplot as plt

    size = (PAGE_WIDTH, 0.9 + 0.26 * len(rows))
    drawn, (time, memory) = plt.subplots(1, 2, figsize=size, layout="constrained", width_ratios=(1.0, 1.1))
    _times(time, rows)
    _memory(memory, rows)
    for axis in (time, memory):
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.set_xlim(0, axis.dataLim.xmax * 1.18)
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
    time.set_yticks(range(len(rows)), [row["label"] for row in rows])
    memory.set_yticks([])
    drawn.legend(loc="outside upper right", ncols=4, handlelength=1.4, columnspacing=1.2)
    batch = f"{settings['model']}, {settings['batch']}, {settings['device']}, {settings['threads']}."
    footer(drawn, f"{batch} Whiskers: 95 % bootstrap intervals over steps. Hatched and pale: other libraries.")
    return drawn


def _times(axis: Axes, rows: list[dict]) -> None:
    looks = styles([row["name"] for row in rows])
    for place, row in enumerate(rows):
        theirs, colour = row["foreign"], looks[row["name"]].colour
        alpha, hatch = (0.45, "////") if theirs else (1.0, "")
        low, middle, high = (1.0, 1.0, 1.0) if row["over_lora"] is None else _interval(row)
        axis.barh(place, middle, 0.68, color=colour, alpha=alpha, hatch=hatch, edgecolor="black", linewidth=0.4)
        if row["over_lora"] is not None:
            axis.errorbar(
                middle, place, xerr=[[middle - low], [high - middle]], color="#444444", capsize=2, linewidth=0.9
            )
        _say(axis, place, max(middle, high), f"{middle:.2f}")
    axis.axvline(1.0, color="black", linewidth=0.7, linestyle=(0, (4, 2)), zorder=0)
    axis.set_xlabel("time of a step / our LoRA's")


def _interval(row: dict) -> tuple[float, float, float]:
    return row["over_lora_low"], row["over_lora"], row["over_lora_high"]


def _memory(axis: Axes, rows: list[dict]) -> None:
    for kind, (colour, label, hatch) in MEMORY_KINDS.items():
        left = [sum(row[f"{earlier}_bytes"] for earlier in _before(kind)) / MIB for row in rows]
        sizes = [row[f"{kind}_bytes"] / MIB for row in rows]
        look = {"color": colour, "hatch": hatch, "edgecolor": "black", "linewidth": 0.4, "label": label}
        axis.barh(range(len(rows)), sizes, 0.68, left=left, **look)
    for place, row in enumerate(rows):
        _say(axis, place, row["peak_bytes"] / MIB, _size(row["peak_bytes"]))
    axis.set_xlabel("live tensors at their peak, MiB")


def _before(kind: str) -> list[str]:
    kinds = list(MEMORY_KINDS)
    return kinds[: kinds.index(kind)]


def _say(axis: Axes, place: int, end: float, text: str) -> None:
    axis.annotate(text, (end, place), (3, 0), textcoords="offset points", va="center", fontsize=7)
