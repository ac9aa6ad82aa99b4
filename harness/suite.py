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
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from harness import record, trials
from harness.cells import Training, catalogue, cost_record, predict_record, score_record, train_record
from harness.failures import UserError
from harness.plugins import ROOT, Plugin, as_number, check_fields, find_plugin, load_plugin

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
        self.name, self.path, self.raw = name, path, raw
        self.pinned = os.environ.get("TUNING_FORK_CODE") == "pinned"
        self.description: str = raw.get("description", "")
        self.variants: dict[str, dict] = raw.get("variants", {})
        self.limits = {**LIMITS, **raw.get("limits", {})}
        self.results = Path("results") / name
        self._check()
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
                scored = tuple(block.get("evals", find_plugin("corpora", corpus).names("evals")))  # []: trained only
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
            if all(facts[key] in (want if isinstance(want, list) else [want]) for key, want in rule["when"].items()):
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

    # ---------------------------------------------------------------- checks

    def _check(self) -> None:
        schema = json.loads((ROOT / "workflow" / "schemas" / "suite.schema.json").read_text(encoding="utf-8"))
        self._check_against(schema, self.raw, [])
        for name, variant in self.variants.items():
            if name in ("untuned", "majority"):
                raise UserError(
                    f"{self._where(['variants', name])}: '{name}' is the name of a baseline row, take another"
                )
            plugin = find_plugin("methods", variant["method"])
            given = {k: v for k, v in variant.items() if k != "method"}
            check_fields(plugin, given, self._where(["variants", name]))
        for kind in ("corpora", "evals"):
            for name, given in self.raw.get(kind, {}).items():
                check_fields(find_plugin(kind, name), given, self._where([kind, name]))
        self._check_grid()
        self._check_step_times()
        self._check_overrides(schema["properties"])
        trials.check(self)

    def _check_against(self, schema: dict, value: Any, place: list) -> None:
        """Refuse a value that does not fit the schema; ``place`` is where in the suite it stands."""
        errors = jsonschema.Draft202012Validator(schema).iter_errors(value)
        for error in sorted(errors, key=lambda e: list(e.path)):
            raise UserError(f"{self._where([*place, *error.path])}: {_explain(error)}")

    def _check_grid(self) -> None:
        for number, block in enumerate(self.raw["grid"]):
            where = self._where(["grid", number])
            for variant in block["variants"]:
                _known(variant, self.variants, f"{where}: variant", "add it under `variants:`")
            for model in block["models"]:
                _known(model, catalogue()["models"], f"{where}: model", "add it to config/catalogue.yaml")
            plugins: list[Plugin] = [find_plugin("corpora", name) for name in block["corpora"]]
            scored = block.get("evals", [e for plugin in plugins for e in plugin.names("evals")])
            for plugin in plugins:
                for name in set(scored) & set(plugin.attributes.get("leaked") or {}):
                    raise UserError(
                        f"{where}: {plugin.name} is not to be scored on {name}: {plugin.attributes['leaked'][name]}. "
                        "Give the block `evals:` without it, or another corpus."
                    )
            plugins += [find_plugin("evals", name) for name in scored]
            for plugin in plugins:
                for asset in plugin.names("assets"):
                    _known(asset, catalogue()["data"], f"{plugin.name}: asset", "add it to config/catalogue.yaml")

    def _check_step_times(self) -> None:
        protocol = self.raw.get("protocol", {})
        where = self._where(["protocol", "step_times"])
        for variant in protocol.get("step_times", {}):
            _known(variant, self.variants, f"{where}: variant", "add it under `variants:`")
            if not protocol.get("steps"):
                raise UserError(f"{where}: equal time is counted from `steps`: give their number")

    def _check_overrides(self, schemas: dict) -> None:
        """``schemas``: of the suite's keys. An override's value must fit as if it stood under that key."""
        shared, fields = schemas["protocol"]["properties"], schemas["variants"]["additionalProperties"]["properties"]
        for number, rule in enumerate(self.raw.get("overrides", [])):
            where = self._where(["overrides", number])
            for key, value in rule["set"].items():
                part, _, name = key.partition(".")
                if part == "protocol" and {"variant", "method", "seed"} & set(rule["when"]):
                    raise UserError(
                        f"{where}: '{key}' belongs to the protocol, which all methods of a suite share: it may depend on "
                        "model and corpus only. Give another protocol another suite."
                    )
                if part == "protocol":
                    _known(name, PROTOCOL, f"{where}: protocol field", "see harness/suite.py")
                    self._check_against(shared[name], value, ["overrides", number, "set", key])
                elif part == "variant":
                    for method in self._reached(rule["when"]):
                        check_fields(find_plugin("methods", method), {name: value}, where)
                    self._check_against(fields.get(name, {}), value, ["overrides", number, "set", key])
                else:
                    raise UserError(f"{where}: '{key}' should begin with 'protocol.' or 'variant.'")

    def _reached(self, when: dict) -> list[str]:
        """Methods of the variants that an override is for."""

        def fits(key: str, value: str) -> bool:
            return key not in when or value in (when[key] if isinstance(when[key], list) else [when[key]])

        reached = {v["method"] for n, v in self.variants.items() if fits("variant", n) and fits("method", v["method"])}
        return sorted(reached)

    def _where(self, path: Any) -> str:
        """The suite's file and the place in it, with the line where YAML can tell."""
        place = ".".join(str(part) for part in path)
        return f"{self.path}" + (f": {place}" if place else "")

    # ---------------------------------------------------------------- what will be done

    def plan(self) -> dict:
        """Cells, names and jobs for the tables and for progress."""
        models = list(dict.fromkeys(t.model for t in self.trainings))
        return {
            "suite": self.name,
            "file": str(self.path),
            "description": self.description,
            "protocol": {**PROTOCOL, **self.raw.get("protocol", {})},
            "variants": ["untuned", "majority", *self.variants],
            "models": models,
            "corpora": list(dict.fromkeys(t.corpus for t in self.trainings)),
            "cells": [self._cell(t) for t in self.trainings],
            "costs": [{**t.identity, "record": str(cost_record(t)), "key": t.computed_key} for t in self.costs],
            "tuning": trials.planned(self),
            "jobs": list(self._jobs()),
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

    def _jobs(self):
        for tuning in self.tunings.values():
            for t in tuning.trials:
                yield {"stage": "trial", "record": str(train_record(t)), "cores": t.protocol["threads"]}
            yield {"stage": "tune", "record": str(tuning.record), "cores": 1}
        for t in self.trainings:
            if t.variant != "majority":
                yield {"stage": "train", "record": str(train_record(t)), "cores": t.protocol["threads"]}
            for e in t.evals:
                if t.variant != "majority":
                    yield {"stage": "predict", "record": str(predict_record(t, e)), "cores": t.protocol["threads"]}
                yield {"stage": "score", "record": str(score_record(t, e)), "cores": 1}
        for t in self.costs:
            yield {"stage": "cost", "record": str(cost_record(t)), "cores": 0}  # 0: the whole machine


def load_suite(name: str) -> Suite:
    """The suite of that name in config/, of that folder in papers/, or at that path. Raises UserError for people."""
    candidates = [ROOT / "config" / f"{name}.yaml", ROOT / "papers" / name / "suite.yaml", Path(name)]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        known = sorted(
            p.stem for p in (ROOT / "config").glob("*.yaml") if p.stem not in ("catalogue", "revisions.lock")
        )
        raise UserError(f"no suite '{name}': neither a file nor one of {', '.join(known)}")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(raw, dict) or "suite" not in raw:
        raise UserError(f"{path}: a suite is a mapping that begins with `suite: NAME`")
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    return Suite(raw["suite"], shown, raw)


# --------------------------------------------------------------------------- small parts


def _scores(evaluation: str, variant: str) -> bool:
    return variant != "majority" or "majority" in find_plugin("evals", evaluation).methods


def _known(name: str, names: Any, where: str, remedy: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
        raise UserError(
            f"{where} '{name}' is not known. " + (f"Did you mean '{near[0]}'? " if near else "") + f"Or {remedy}."
        )


def _explain(error: jsonschema.ValidationError) -> str:
    """A schema error in words."""
    if list(error.path) == ["tuning", "trials"]:
        return f"{error.message}. It is one number: every variant gets as many trials."
    if error.validator == "additionalProperties":
        allowed = list(error.schema.get("properties", {}))
        extra = [key for key in error.instance if key not in allowed]
        near = difflib.get_close_matches(extra[0], allowed, n=1, cutoff=0.5)
        return f"unknown key '{extra[0]}'. " + (
            f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(allowed)}."
        )
    if error.validator == "type" and isinstance(error.instance, str):
        return f"{error.message}.{as_number(error.instance)}"
    return error.message


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
