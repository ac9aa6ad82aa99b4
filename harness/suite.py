"""Suites: a YAML of grid blocks becomes cells, each with a resolved specification and its hash. Imports no torch.

``python -m harness.suite NAME --out plan.json`` writes what the suite will do, for progress and for the tables; without
``--out`` it prints where the suite's results are.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from harness import record, suite_checks, trials
from harness.cells import Training, catalogue, cost_record, predict_record, score_record, train_record
from harness.failures import UserError
from harness.plugins import ROOT, find_plugin, load_plugin
from harness.strict_yaml import read_yaml

__all__ = [
    "Suite",
    "Training",
    "catalogue",
    "cost_record",
    "find_plugin",
    "load_plugin",
    "load_suite",
    "predict_record",
]
__all__ += ["score_record", "train_record"]

PROTOCOL = {
    "precision": "float32",  # or "bfloat16": the frozen base and all products; "bfloat16-mixed": a float32 base, autocast
    "batch_size": 16,  # rows of an optimizer step
    "micro_batch_size": 16,  # rows of one forward
    "steps": 0,  # optimizer steps; 0: as many as `epochs` passes make
    "epochs": 1.0,
    "step_times": {},  # variant: its step time over the reference's; it takes so many times fewer of `steps` (equal time)
    "max_length": 256,  # tokens of a row; longer rows are cut
    "schedule": "linear",  # "linear" and "cosine" fall to zero; "constant"
    "warmup_fraction": 0.1,
    "max_grad_norm": 1.0,  # 0: no clipping
    "activation_checkpointing": False,
    "length_bucketing": 8,  # rows are sorted by length within so many steps; 1: not at all
    "head_learning_rate": 1e-3,  # of an encoder's task head, under every method
    "remove_overlap": True,  # training rows that test items give away (harness/overlap.py); False: counted only
    "validate_every": 0,  # steps; 0: at the start and at the end only
    "validation_examples": 64,
    "threads": 1,  # of one training or prediction on CPU
    "eval_batch_size": 16,
    "streams": {},  # seeds of single streams (init, order, dropout, probe, generation), where they differ from the cell's
}
LIMITS = {"checkpoint_every": 0, "memory_mb": 0, "wall_minutes": 0, "cost_steps": 8, "sandbox": ""}
"""What a suite may set that changes no result: steps between checkpoints, the supervisor's limits, timed steps of `cost`,
the weakest level of isolation at which programs that a model wrote may run (harness/sandbox.py; "": any)."""


class Suite:
    """A validated suite. ``trainings`` are its cells in the order in which they should run."""

    def __init__(self, name: str, path: Path, raw: dict):
        suite_checks.check_schema(path, raw, suite_checks.schema())
        self.name, self.path, self.raw = name, path, raw
        self.pinned = os.environ.get("TUNING_FORK_CODE") == "pinned"
        self.description: str = raw.get("description", "")
        self.variants: dict[str, dict] = raw.get("variants", {})
        self.limits = {**LIMITS, **raw.get("limits", {})}
        self.results = Path("results") / name
        suite_checks.check_names(self, catalogue())
        trials.check(self)
        self.tunings: dict[tuple[str, str, str], trials.Tuning] = {}
        self.trainings = self._expand()
        self.tunings.update(trials.tunings(self, self.trainings))
        self._by_name = {t.name: t for t in self.trainings}

    # ---------------------------------------------------------------- cells

    def _expand(self) -> list[Training]:
        """Trainings of all grid blocks, without repetition, baselines first."""
        evals: dict[tuple, list[str]] = {}
        for block in self.raw["grid"]:
            for corpus, model in itertools.product(block["corpora"], block["models"]):
                scored = suite_checks.scored_evals(block, corpus)
                cells = [(v, s) for s in block["seeds"] for v in block["variants"]]
                baselines = [("untuned", 0)] if scored else []
                if any("majority" in find_plugin("evals", e).methods for e in scored):
                    baselines.append(("majority", 0))
                for variant, seed in baselines + cells:
                    known = evals.setdefault((model, corpus, variant, seed), [])
                    known += [e for e in scored if e not in known and _scores(e, variant)]
        return [Training(self, *cell, tuple(scored)) for cell, scored in evals.items()]

    def training(self, model: str, corpus: str, variant: str, seed: int | str) -> Training:
        name = f"{model}/{corpus}/{variant}/seed{seed}"
        if name not in self._by_name:
            near = difflib.get_close_matches(name, self._by_name, n=2)
            raise UserError(f"suite {self.name} has no cell {name}." + (f" Near: {', '.join(near)}." if near else ""))
        return self._by_name[name]

    @functools.cached_property
    def tuning_points(self) -> list[list[float]]:
        return trials.points_of(self)

    def trial(self, model: str, corpus: str, variant: str, seed: int | str, number: int | str) -> trials.Trial:
        tuning = self.tunings.get((model, corpus, variant))
        for trial in tuning.trials if tuning else []:
            if (trial.number, trial.seed) == (int(number), int(seed)):
                return trial
        raise UserError(f"suite {self.name} has no trial {model}/{corpus}/{variant}/trial{number}/seed{seed}")

    @property
    def costs(self) -> list[Training]:
        """One training per (model, corpus, variant) to be measured alone: its lowest seed."""
        chosen: dict[tuple, Training] = {}
        only = self.raw.get("cost", {})
        for t in self.trainings:
            wanted = t.corpus in only.get("corpora", [t.corpus]) and t.variant in only.get("variants", [t.variant])
            if t.trains and wanted:
                chosen.setdefault((t.model, t.corpus, t.variant), t)
        return list(chosen.values())

    def assets(self, training: Training) -> list[str]:
        """Assets a training reads."""
        return [training.model, *find_plugin("corpora", training.corpus).names("assets")]

    def settings(self, kind: str, name: str) -> dict:
        """The suite's own values for a corpus's or an eval's fields."""
        return dict(self.raw.get(kind, {}).get(name, {}))

    def resolve(self, training: Training, part: str, last: dict | None = None) -> dict:
        """The protocol or the variant's hyper-parameters for a cell, overrides applied in order, then ``last``."""
        if part == "protocol":
            values = {**PROTOCOL, **self.raw.get("protocol", {})}
        else:
            values = {k: v for k, v in self.variants[training.variant].items() if k != "method"}
        facts = training.identity
        for rule in self.raw.get("overrides", []):
            if suite_checks.applies(rule["when"], facts):
                for key, value in rule["set"].items():
                    where, _, name = key.partition(".")
                    if where == part:
                        values[name] = value
        values |= last or {}
        if part == "protocol":
            share = values.pop("step_times").get(training.variant, 1)
            values["steps"] = max(1, round(values["steps"] / share)) if values["steps"] else 0
        return values

    def recorded_key(self, path: Path) -> str | None:
        """With code=pinned, the key of a finished record; else None."""
        if not self.pinned or not path.is_file():
            return None
        return record.read(path).get("key")

    # ---------------------------------------------------------------- what will be done

    def plan(self) -> dict:
        """Cells, names and jobs for the tables and for progress."""
        models = list(dict.fromkeys(t.model for t in self.trainings))
        found = [self._cell(t) for t in self.trainings]
        return {
            "suite": self.name,
            "file": str(self.path),
            "description": self.description,
            "protocol": {**PROTOCOL, **self.raw.get("protocol", {})},
            "variants": ["untuned", "majority", *self.variants],
            "models": models,
            "corpora": list(dict.fromkeys(t.corpus for t in self.trainings)),
            "cells": found,
            "costs": [{**t.identity, "record": str(cost_record(t)), "key": t.computed_key} for t in self.costs],
            "tuning": trials.planned(self),
            "jobs": [{**job, "key": None if self.pinned else job["key"]} for job in self._jobs(found)],
        }

    def _cell(self, t: Training) -> dict:
        corpus = find_plugin("corpora", t.corpus)
        return {
            **t.identity,
            "key": t.computed_key if t.trains else None,
            "model_label": catalogue()["models"][t.model]["label"],
            "corpus_label": corpus.label,
            "generated": bool(corpus.attributes.get("generated") is True),
            "steps": t.protocol["steps"],
            "evals": [
                {
                    "eval": e,
                    "label": find_plugin("evals", e).label,
                    "predict_key": None if t.variant == "majority" else t.computed_predict_key(e),
                    "key": t.score_key(e),
                    "record": str(score_record(t, e)),
                }
                for e in t.evals
            ],
        }

    def _jobs(self, found: list[dict]) -> Iterator[dict]:
        """What a run has to make, of the cells ``found``: each record with its key, None where any will do."""
        for tuning in self.tunings.values():
            for t in tuning.trials:
                yield _job("trial", train_record(t), t.computed_key, t.protocol["threads"])
            yield _job("tune", tuning.record, tuning.computed_key, 1)
        for t, cell in zip(self.trainings, found, strict=True):
            threads = t.protocol["threads"]
            if t.variant != "majority":
                yield _job("train", train_record(t), cell["key"], threads)
            for each in cell["evals"]:
                if t.variant != "majority":
                    yield _job("predict", predict_record(t, each["eval"]), each["predict_key"], threads)
                yield _job("score", score_record(t, each["eval"]), each["key"], 1)
        for t in self.costs:
            yield _job("cost", cost_record(t), t.computed_key, 0)


def load_suite(name: str) -> Suite:
    """The suite of that name in config/, of that folder in papers/, or at that path. Raises UserError for people."""
    candidates = [ROOT / "config" / f"{name}.yaml", ROOT / "papers" / name / "suite.yaml", Path(name)]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        known = sorted(
            p.stem for p in (ROOT / "config").glob("*.yaml") if p.stem not in ("catalogue", "revisions.lock")
        )
        raise UserError(f"no suite '{name}': neither a file nor one of {', '.join(known)}")
    raw = read_yaml(path)
    if not isinstance(raw, dict) or "suite" not in raw:
        raise UserError(f"{path}: a suite is a mapping that begins with `suite: NAME`")
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    return Suite(raw["suite"], shown, raw)


# --------------------------------------------------------------------------- small parts


def _job(stage: str, path: Path, key: str | None, cores: int) -> dict:
    """``path``: of its record; ``cores``: 0 for the whole machine."""
    return {"stage": stage, "record": str(path), "key": key, "cores": cores}


def _scores(evaluation: str, variant: str) -> bool:
    return variant != "majority" or "majority" in find_plugin("evals", evaluation).methods


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m harness.suite", description="Write what a suite will do.")
    parser.add_argument("suite", help="its name, or the path of its file")
    parser.add_argument("--out", type=Path, help="where to write it; without it, print the suite's results folder")
    arguments = parser.parse_args(argv)
    try:
        suite = load_suite(arguments.suite)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if not arguments.out:
        print(suite.results)
        return 0
    plan = suite.plan()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
