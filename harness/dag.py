"""What the Snakefile's rules ask of a suite: keys, inputs, limits. Imports no torch."""

from __future__ import annotations

import difflib
import json
import os
import re
import sys

from harness import cells, trials
from harness.closure import code_hash
from harness.failures import UserError
from harness.plugins import ROOT, find_plugin
from harness.processes import has_gpu
from harness.sandbox import SandboxError, require
from harness.sources import mirror_files
from harness.suite import Suite, Training, catalogue, load_suite

SETTINGS = ("suite", "code", "device_memory")
"""What ``--config`` may set; ``device_memory`` is read by workflow/rules/plan.smk."""


def suite(config: dict, cores: int | None) -> Suite:
    """The suite that ``--config suite=`` names (``quick``), checked; ends Snakemake with one clear message if it is wrong.

    ``--config code=pinned`` keeps finished runs whose code has changed since, and marks them stale in the tables.
    """
    for key in config:
        if key not in SETTINGS:
            near = difflib.get_close_matches(str(key), SETTINGS, n=1, cutoff=0.5)
            hint = f"Did you mean '{near[0]}'?" if near else f"There are {', '.join(SETTINGS)}."
            sys.exit(f"--config {key}={config[key]}: there is no setting '{key}'. {hint}")
    code = config.get("code", os.environ.get("TUNING_FORK_CODE", "current"))
    if code not in ("current", "pinned"):
        sys.exit(
            f"--config code={code}: it is 'current' (run again what has changed) or 'pinned' (keep it, marked stale)"
        )
    os.environ["TUNING_FORK_CODE"] = code
    if cores:
        os.environ["TUNING_FORK_CORES"] = str(cores)  # for the time that is left
    try:
        loaded = load_suite(str(config.get("suite", "quick")))
        for tuning in loaded.tunings.values():
            tuning.key  # noqa: B018 (of its trials, too)
        for training in loaded.trainings:  # every key now: a defect in any plug-in shows before anything runs
            for evaluation in training.evals:
                training.score_key(evaluation)
        if loaded.limits["sandbox"]:
            require(loaded.limits["sandbox"])
        return loaded
    except (UserError, ValueError, SandboxError) as error:
        sys.exit(f"\n{error}\n")


def stages(loaded: Suite) -> str:
    """One line: how many cells each stage has, done or not."""
    evaluated = [(t, e) for t in loaded.trainings for e in t.evals]
    trained = sum(t.trains for t in loaded.trainings)
    searched = list(loaded.tunings.values())
    counts = {
        **({"trial": sum(len(tuning.trials) for tuning in searched), "tune": len(searched)} if searched else {}),
        "train": trained,
        "cost": len(loaded.costs),
        "predict": sum(t.variant != "majority" for t, _ in evaluated),
    }
    listed = ", ".join(f"{stage} {count:,}" for stage, count in {**counts, "score": len(evaluated)}.items())
    without = trials.untuned(loaded)
    note = f" Not tuned, as no field of theirs is searched: {', '.join(without)}." if without else ""
    return f"Suite {loaded.name}, cells by stage: {listed}.{note}"


def paper(loaded: Suite) -> str | None:
    """The paper of papers/ whose suite, or small form, this is, if its claims are written down."""
    name = loaded.name.removesuffix("-small")
    return name if (ROOT / "papers" / name / "claims.yaml").is_file() else None


def reported(loaded: Suite) -> list[str]:
    """The files of numbers that the suite's paper reports."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "papers" / str(paper(loaded))).glob("reported/*.csv"))


def plan_key(loaded: Suite) -> str:
    return cells.hash_of(loaded.plan())


def asset_key(name: str) -> str:
    """Hash of where an asset comes from; of one that a mirror has, also of its files' sizes and times."""
    kind = "models" if name in catalogue()["models"] else "data"
    mirrored = {}
    for source in catalogue()[kind][name].get("sources", []):
        mirrored = mirrored or mirror_files("model" if kind == "models" else kind, source)
    stats = {file: (path.stat().st_size, path.stat().st_mtime_ns) for file, path in mirrored.items()}
    return cells.hash_of([cells.sources(kind, name), stats] if stats else cells.sources(kind, name))


def is_fetched(name: str) -> bool:
    """Whether an asset comes from somewhere: a random-init model is made where it is used."""
    return "tiny" not in catalogue()["models"].get(name, {})


def identity(training: Training, key: str, evaluation: str | None = None) -> str:
    """What a record written by the supervisor says of its cell; ``key`` is the stage's own."""
    stage = {"stage": training.stage} if training.stage != "train" else {}  # a trial is run by stage train
    return json.dumps({**training.identity, **stage, "key": key, **({"eval": evaluation} if evaluation else {})})


def limits(loaded: Suite) -> str:
    """The supervisor's limits as the suite sets them."""
    memory, minutes = loaded.limits["memory_mb"], loaded.limits["wall_minutes"]
    options = [f"--memory-mb {memory}"] if memory else []
    options += [f"--wall-seconds {minutes * 60:g}"] if minutes else []
    return " ".join(options)


def gpus() -> int:
    """GPUs that a job with a model takes: none on a machine without one, where the cores are the limit."""
    return int(has_gpu())


def cost_cell(loaded: Suite, wildcards: object) -> Training:
    """The training that stands for a (model, corpus, variant) in stage cost."""
    wanted = (wildcards.model, wildcards.corpus, wildcards.variant)
    return next(t for t in loaded.costs if (t.model, t.corpus, t.variant) == wanted)


def eval_assets(evaluation: str) -> list[str]:
    return list(find_plugin("evals", evaluation).names("assets"))


def score_inputs(loaded: Suite, w: object, assets: object) -> list[str]:
    """Predictions; the majority row needs the rows themselves instead."""
    training = loaded.training(w.model, w.corpus, w.variant, w.seed)
    if w.variant == "majority":
        corpus = find_plugin("corpora", w.corpus).names("assets")
        return assets([*corpus, *eval_assets(w.eval)])
    return [str(cells.predict_record(training, w.eval)), *assets(eval_assets(w.eval))]


def scores(loaded: Suite, corpus: str | None = None) -> list[str]:
    """Score records of the suite, or of one corpus; of a training that nothing scores, its own record."""
    chosen = [t for t in loaded.trainings if corpus in (None, t.corpus)]
    found = [[cells.score_record(t, e) for e in t.evals] or [cells.train_record(t)] for t in chosen]
    return [str(path) for paths in found for path in paths]


def tuned(loaded: Suite, model: str, corpus: str, variant: str) -> list[str]:
    """The record of the search that a cell's trainings wait for, if the suite tunes it."""
    tuning = loaded.tunings.get((model, corpus, variant))
    return [str(tuning.record)] if tuning else []


def tuned_records(loaded: Suite, corpus: str | None = None) -> list[str]:
    return [str(tuning.record) for tuning in loaded.tunings.values() if corpus in (None, tuning.corpus)]


def tuned_identity(loaded: Suite, w: object) -> str:
    tuning = loaded.tunings[w.model, w.corpus, w.variant]
    return json.dumps({**tuning.identity, "key": tuning.key})


def trial_records(loaded: Suite, w: object) -> list[str]:
    return [str(cells.train_record(trial)) for trial in loaded.tunings[w.model, w.corpus, w.variant].trials]


def needs(paths: list[str]) -> str:
    """The supervisor's options for records that must be ok."""
    return " ".join(f"--needs {path}" for path in paths)


def costs(loaded: Suite) -> list[str]:
    return [str(cells.cost_record(t)) for t in loaded.costs]


def corpora(loaded: Suite) -> list[str]:
    return list(dict.fromkeys(t.corpus for t in loaded.trainings))


def evidence_key(module: str) -> str:
    """Hash of a module of evidence/ and what it imports: changing a plot draws that plot again."""
    code = code_hash([ROOT / "evidence" / f"{module}.py"])
    parts = sorted((ROOT / "evidence" / "page").iterdir()) if module == "report" else []  # its templates and style
    return cells.hash_of([code, *(path.read_text(encoding="utf-8") for path in parts)]) if parts else code


def notebook_key(name: str) -> str:
    """Hash of what runs a notebook and of what it imports: a corrected interval is in it at once, too."""
    found = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    code = "\n".join("".join(cell["source"]) for cell in found["cells"] if cell["cell_type"] == "code")
    modules = sorted(set(re.findall(r"^from evidence\.(\w+) import", code, re.MULTILINE)))
    return cells.hash_of([evidence_key(module) for module in ("notebook", *modules)])
