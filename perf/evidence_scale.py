"""Does the evidence keep up with a large grid? Time and memory of collecting and tabulating 10,000 cells, a million items.

``python -m perf.evidence_scale --source results/quick --folder /tmp/scale`` generates a results tree: the records and curves of
a finished run stand for those of ten models x ten corpora x twenty variants x five seeds, each with a hundred items whose
grades are drawn from the run's own; then it runs ``evidence.collect`` and ``evidence.tables`` on it as a user would.
The scores mean nothing; the files are as many, as large and as varied as those of a real grid.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zstandard
from tqdm import tqdm

from evidence.cells import cost_cells, evals_of, folder_of, read_plan
from evidence.grades import formula, numbers, read_grades
from harness import record

MODELS, CORPORA, VARIANTS, SEEDS, ITEMS = 10, 10, 20, 5, 100


@dataclass
class Template:
    """One finished cell of the source: where its records lie, its eval and its items' grades."""

    cell: dict
    folder: Path
    evaluation: str
    grades: list[dict]

    @property
    def train(self) -> dict:
        return record.read(self.folder / "train.json")

    @property
    def score(self) -> dict:
        return record.read(self.folder / self.evaluation / "score.json")


def templates(source: Path) -> dict[str, list[Template]]:
    """The cells of a run whose training and score ended ok, by corpus. Raises SystemExit where there are none."""
    found: dict[str, list[Template]] = {}
    for cell in read_plan(source / "plan.json")["cells"]:
        folder = folder_of(source, cell)
        for entry in evals_of(cell):
            paths = (folder / "train.json", folder / entry["eval"] / "score.json")
            if cell["method"] in ("untuned", "majority") or not all(path.is_file() for path in paths):
                continue
            train, score = map(record.read, paths)
            if train["status"] == score["status"] == "ok":
                graded = read_grades(folder / entry["eval"], score)
                found.setdefault(cell["corpus"], []).append(Template(cell, folder, entry["eval"], graded))
    if not found:
        raise SystemExit(f"{source}: no training with a score. Run a suite first: make run SUITE=smoke")
    return found


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
                cell |= {"seed": seed, "suite": "scale", "evals": evals_of(template.cell)[:1]}
                write_cell(folder_of(root, cell), cell, template, rng)
                cells.append(cell)
            cost.append({**place, "key": None})
            write(root / "cost" / "/".join(place.values()) / "cost.json", {**costs[variant % len(costs)], **place})
    plan = {"suite": "scale", "description": "generated", "protocol": {}, "cells": cells, "costs": cost}
    (root / "plan.json").write_text(json.dumps(plan), encoding="utf-8")


def cost_records(source: Path) -> list[dict]:
    """The cost records of the source."""
    plan = read_plan(source / "plan.json")
    paths = [source / "cost" / c["model"] / c["corpus"] / c["variant"] / "cost.json" for c in cost_cells(plan)]
    return [record.read(path) for path in paths if path.is_file()]


def write_cell(folder: Path, cell: dict, template: Template, rng: np.random.Generator) -> None:
    """Records, curve and grades of one training and its score; item names are those of every other cell."""
    place = {name: cell[name] for name in ("suite", "model", "corpus", "variant", "seed")}
    below = folder / template.evaluation
    below.mkdir(parents=True)
    shutil.copy(template.folder / "curves.jsonl", folder)
    drawn = rng.integers(len(template.grades), size=ITEMS)
    grades = [{**template.grades[index], "item": f"item{number}"} for number, index in enumerate(drawn)]
    lines = "".join(json.dumps(grade, ensure_ascii=False) + "\n" for grade in grades)
    (below / "grades.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    files = {"grades": record.file_entry(below / "grades.jsonl.zst")}
    metrics = rescored(template, grades)
    score = {**template.score, **place, "files": files, "n_items": ITEMS, "metrics": metrics}
    write(folder / "train.json", {**template.train, **place})
    write(below / "predict.json", {**record.read(template.folder / template.evaluation / "predict.json"), **place})
    write(below / "score.json", score)


def rescored(template: Template, drawn: list[dict]) -> dict:
    """The template's metrics, those that are means over items computed again from the drawn grades."""
    metrics = dict(template.score["metrics"])
    before, now = numbers(template.grades), numbers(drawn)
    for name, value in metrics.items():
        found = (
            formula(name, value, before, template.score["units"].get(name, "")) if isinstance(value, float) else None
        )
        if found:
            total = sum(now[found.denominator]) if found.denominator else len(drawn)
            metrics[name] = found.scale * sum(now[found.numerator]) / total if total else 0.0
    return metrics


def write(path: Path, content: dict) -> None:
    """A record without the flush to disk that makes 30,000 of them slow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def measured(*module: str) -> tuple[float, float]:
    """Seconds and peak memory (GB) of ``python -m`` these words, in a process of its own."""
    code = "import resource, subprocess, sys; done = subprocess.run([sys.executable, '-m', *sys.argv[1:]]).returncode; " \
           "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, file=sys.stderr); sys.exit(done)"  # fmt: skip
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *module], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    took = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.stderr)
    return took, int(done.stderr.split()[-1]) / 1e9


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
