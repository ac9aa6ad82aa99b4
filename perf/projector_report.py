"""What ``perf.projector`` found, as tables, CSV files and JSON; the figures are in ``projector_figure``."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from perf import projector_figure
from perf.contest import ratio

BARS = (("block", "", 32, 20), ("block", "", 128, 6), ("dynamic", "warm", 32, 3))
"""(builder, start, rank, how many times faster than galore-torch's refresh it has to be)."""
ENERGY = 0.99
NOTES = """
Energy: what the basis captures over the most that one of its rank can; angle: sine of the largest principal angle to the
exact basis. Products: of a vector (one by one) or of the block with G^T G. Passes read G; one by one, C = G^T G is formed
in one. Warm: one matrix at a time, from the basis of the same matrix with a fifth of its norm as noise; the whole model,
from the builder's own basis of another batch's gradient before the training. A block starts from the gradient itself, at
every refresh alike. Cold static momentum is told the eigenvalues. A refresh's time is the optimizer's call with it less
the call without. Ratios: medians over alternated rounds with 95 % bootstrap intervals; above 1: faster than the yardstick.
"""


def write(found: dict, out: Path) -> None:
    """Print the tables; write them with CSV, JSON and figures to ``out``."""
    found = {"whole": [], "spectra": [], "gaps": [], "seconds": {}, "steps": {}, **found}
    seconds = found["seconds"]
    yardstick = next((name for name in ("galore-torch", "svd") if name in seconds), "")
    for row in found["whole"]:
        key = f"{row['builder']} {row['start']} {row['rank']}"
        if key in seconds:
            row["seconds"] = statistics.median(seconds[key])
            row |= compared(seconds[yardstick], seconds[key], "times_faster")
    text = markdown(found, yardstick)
    print("\n" + text, flush=True)
    (out / "projector.md").write_text(text, encoding="utf-8")
    (out / "projector.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, rows in (("projector", "spectra"), ("projector_model", "whole"), ("projector_gap", "gaps")):
        if found[rows]:
            save(out / f"{name}.csv", found[rows])
    projector_figure.draw(found, yardstick, out)


def compared(one: list[float], other: list[float], column: str) -> dict[str, float]:
    middle, low, high = ratio(one, other)
    return {column: middle, f"{column}_low": low, f"{column}_high": high}


def save(path: Path, rows: Sequence[dict]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def markdown(found: dict, yardstick: str) -> str:
    settings, seconds = found["settings"], found["seconds"]
    parts = [f"{settings['threads']} threads, torch {settings['torch']}, float32, CPU times in seconds."]
    if "missing" in settings:
        parts.append(f"NOT RUN: the gradients of {settings['model']}. {settings['missing']}")
    elif seconds:
        theirs = statistics.median(seconds[yardstick])
        name = "galore-torch"
        if yardstick != name:
            name = "galore-torch is not installed; LAPACK's SVD as it calls it"
        parts.append(
            f"All {settings['matrices']} matrices of {settings['model']}, batches of {settings['source']}, "
            f"{settings['steps']} steps of full fine-tuning apart; {len(seconds[yardstick])} rounds. {name}: "
            f"{theirs:.3g} s a refresh at any rank ({min(seconds[yardstick]):.3g} to {max(seconds[yardstick]):.3g})."
        )
        parts += [table(model_lines(found["whole"])), "\n".join(verdicts(found["whole"], yardstick))]
    if found["steps"]:
        parts += [table(step_lines(found["steps"])), "\n".join(step_verdicts(found["steps"]))]
    if found["spectra"]:
        parts += ["One matrix at a time, singular values i^-a.", table(spectrum_lines(found["spectra"]))]
    return "\n\n".join([*parts, NOTES.strip()]) + "\n"


def model_lines(rows: list[dict]) -> list[Sequence[str]]:
    head = ("rank", "builder", "s a refresh", "times faster", "products", "passes", "energy, median", "lowest", "angle")
    return [
        head,
        *(
            (str(r["rank"]), r["label"], f"{r['seconds']:.3g}", interval(r), f"{r['iterations']:.3g}", f"{r['passes']:g}",
             f"{r['energy']:.4f}", f"{r['energy_lowest']:.4f}", f"{r['angle']:.2g}")
            for r in rows if "seconds" in r
        ),
    ]  # fmt: skip


def interval(row: dict) -> str:
    return f"{row['times_faster']:.3g} [{row['times_faster_low']:.3g}, {row['times_faster_high']:.3g}]"


def verdicts(rows: list[dict], yardstick: str) -> list[str]:
    """A line a bar: met only if the whole interval is."""
    against = "galore-torch" if yardstick == "galore-torch" else "LAPACK's SVD, which stands in for galore-torch"
    said = []
    for builder, start, rank, bar in BARS:
        for row in rows:
            if (row["builder"], row["start"], row["rank"]) == (builder, start, rank) and "seconds" in row:
                verdict = "met" if row["times_faster_low"] >= bar else "NOT met"
                said.append(
                    f"- {row['label']}, rank {rank}: {interval(row)} times faster than {against}; bar {bar}: {verdict}"
                )
                if builder == "block":
                    verdict = "met" if row["energy_lowest"] >= ENERGY else "NOT met"
                    said.append(
                        f"- its energy after {row['passes']:g} passes, median {row['energy']:.4f}, lowest of all matrices "
                        f"{row['energy_lowest']:.4f}; bar {ENERGY}: {verdict}"
                    )
    return said


def step_lines(steps: dict[str, dict[str, list[float]]]) -> list[Sequence[str]]:
    lines = [("rank", "ours, s a step without refresh", "galore-torch, s", "ours / galore-torch")]
    for rank, there in steps.items():
        theirs = there.get("galore-torch")
        compared_to = "{:.3f} [{:.3f}, {:.3f}]".format(*ratio(there["ours"], theirs)) if theirs else ""
        median = f"{statistics.median(theirs):.3g}" if theirs else "not installed"
        lines.append((str(rank), f"{statistics.median(there['ours']):.3g}", median, compared_to))
    return lines


def step_verdicts(steps: dict[str, dict[str, list[float]]]) -> list[str]:
    return [
        f"- rank {rank}, a step without refresh at most galore-torch's: "
        + ("met" if ratio(there["ours"], there["galore-torch"])[2] <= 1 else "NOT met")
        for rank, there in steps.items()
        if "galore-torch" in there
    ]


def spectrum_lines(rows: list[dict]) -> list[Sequence[str]]:
    head = ("spectrum", "shape", "rank", "builder", "s", "products", "passes", "energy", "angle")
    return [
        head,
        *(
            (r["spectrum"], r["shape"], str(r["rank"]), r["label"], f"{r['seconds']:.3g}", f"{r['iterations']:.3g}",
             f"{r['passes']:g}", f"{r['energy']:.4f}", f"{r['angle']:.2g}")
            for r in rows
        ),
    ]  # fmt: skip


def table(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in lines) for i in range(len(lines[0]))]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in lines]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)
