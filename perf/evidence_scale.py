"""Does the evidence keep up with a large grid? Time and memory of collecting and tabulating 10,000 cells, a million items.

``python -m perf.evidence_scale --source results/quick --folder /tmp/scale`` generates a results tree: the records and curves of
a finished run stand for those of ten models x ten corpora x twenty variants x five seeds, each with a hundred items whose
grades are drawn from the run's own; then it runs ``evidence.collect`` and ``evidence.tables`` on it as a user would.
The scores mean nothing; the files are as many, as large and as varied as those of a real grid.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zstandard
from tqdm import tqdm

from evidence.cells import BASELINES, cost_cells, cost_outcome, cost_path, evals_of, folder_of, outcome, read_plan
from evidence.grades import Formula, formula, numbers, read_grades
from harness import record

MODELS, CORPORA, VARIANTS, SEEDS, ITEMS = 10, 10, 20, 5, 100


@dataclass
class Template:
    """One finished cell of the source: its records by stage, its curve and its items' grades."""

    cell: dict
    records: dict[str, dict]
    curve: Path
    grades: list[dict]
    formulas: dict[str, Formula]  # of the metrics that are means over items


def templates(source: Path) -> dict[str, list[Template]]:
    """The cells of a run whose training and score ended ok, by corpus. Raises SystemExit where there are none."""
    found: dict[str, list[Template]] = {}
    trained = (cell for cell in read_plan(source / "plan.json")["cells"] if cell["variant"] not in BASELINES)
    for cell in trained:
        for entry in evals_of(cell)[:1]:
            records = outcome(source, cell, entry).records
            if all(known["status"] == "ok" for known in records.values()):
                found.setdefault(cell["corpus"], []).append(_template(folder_of(source, cell), cell, entry, records))
    if not found:
        raise SystemExit(f"{source}: no training with a score. Run a suite first: make run SUITE=smoke")
    return found


def _template(folder: Path, cell: dict, entry: dict, records: dict[str, dict]) -> Template:
    score = records["score"]
    grades = read_grades(folder / entry["eval"], score)
    columns = numbers(grades)
    values = {name: value for name, value in score["metrics"].items() if isinstance(value, int | float)}
    formulas = {name: formula(name, value, columns, score["units"].get(name, "")) for name, value in values.items()}
    known = {name: found for name, found in formulas.items() if found}
    return Template({**cell, "evals": [entry]}, records, folder / "curves.jsonl", grades, known)


def generate(source: Path, root: Path) -> None:
    """Write ``plan.json`` and every record below ``root``."""
    known = templates(source)
    costs = cost_records(source)
    rng = np.random.default_rng(0)
    cells, cost = [], []
    names = [(m, c) for m in range(MODELS) for c in range(CORPORA)]
    for model, corpus in tqdm(names, desc="generating", unit="model x corpus"):
        of_corpus = known[sorted(known)[corpus % len(known)]]
        for variant in range(VARIANTS):
            template = of_corpus[variant % len(of_corpus)]
            place = {"model": f"model{model}", "corpus": f"corpus{corpus}", "variant": f"variant{variant}"}
            for seed in range(SEEDS):
                cell = {**template.cell, **place, "model_label": f"Model {model}", "corpus_label": f"Corpus {corpus}"}
                cell |= {"seed": seed, "suite": "scale"}
                write_cell(folder_of(root, cell), cell, template, rng)
                cells.append(cell)
            if costs:
                cost.append({**place, "key": None})
                write(root / cost_path(place), {**costs[variant % len(costs)], **place})
    plan = {"suite": "scale", "description": "generated", "protocol": {}, "cells": cells, "costs": cost}
    (root / "plan.json").write_text(json.dumps(plan), encoding="utf-8")


def cost_records(source: Path) -> list[dict]:
    """The cost records of the source that ended ok."""
    found = [cost_outcome(source, cell) for cell in cost_cells(read_plan(source / "plan.json"))]
    return [known.records["cost"] for known in found if known.status == "ok"]


def write_cell(folder: Path, cell: dict, template: Template, rng: np.random.Generator) -> None:
    """Records, curve and grades of one training and its score; item names are those of every other cell."""
    place = {name: cell[name] for name in ("suite", "model", "corpus", "variant", "seed")}
    below = folder / cell["evals"][0]["eval"]
    below.mkdir(parents=True)
    shutil.copy(template.curve, folder)
    drawn = rng.integers(len(template.grades), size=ITEMS)
    grades = [{**template.grades[index], "item": f"item{number}"} for number, index in enumerate(drawn)]
    lines = "".join(json.dumps(grade, ensure_ascii=False) + "\n" for grade in grades)
    (below / "grades.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    files = {"grades": record.file_entry(below / "grades.jsonl.zst")}
    metrics = {**template.records["score"]["metrics"], **means(template, grades)}
    records = {stage: {**known, **place} for stage, known in template.records.items()}
    records["score"] |= {"files": files, "n_items": ITEMS, "metrics": metrics}
    for stage, content in records.items():
        write((folder if stage == "train" else below) / f"{stage}.json", content)


def means(template: Template, drawn: list[dict]) -> dict[str, float]:
    """The metrics that are means over items, of the drawn grades."""
    columns, found = numbers(drawn), {}
    for name, known in template.formulas.items():
        total = sum(columns[known.denominator]) if known.denominator else len(drawn)
        found[name] = known.scale * sum(columns[known.numerator]) / total if total else 0.0
    return found


def write(path: Path, content: dict) -> None:
    """A record without the flush to disk that makes 30,000 of them slow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def measured(*module: str) -> tuple[float, float]:
    """Seconds and peak memory (GB) of ``python -m`` these words, in a process of its own."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", *module], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(module)} failed")
    return time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e9


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m perf.evidence_scale", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--source", type=Path, default=Path("results/quick"), help="a finished run to take records from"
    )
    parser.add_argument(
        "--folder", type=Path, required=True, help="for the generated tree; kept, and used again if there"
    )
    options = parser.parse_args(argv)
    root = options.folder
    if not (root / "plan.json").is_file():
        generate(options.source, root)
    count = MODELS * CORPORA * VARIANTS * SEEDS
    print(f"{count:,} cells, {count * ITEMS:,} item rows, generated\n")
    print("| stage | seconds | peak GB |\n|---|---|---|")
    collected, total = str(root / "collected"), 0.0
    for name, words in (
        ("collect", ("evidence.collect", "--plan", str(root / "plan.json"), "--out", collected)),
        ("tables", ("evidence.tables", "--collected", collected, "--out", str(root / "tables"))),
    ):
        seconds, peak = measured(*words)
        total += seconds
        print(f"| {name} | {seconds:.0f} | {peak:.2f} |", flush=True)
    print(f"| both | {total:.0f} | |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
