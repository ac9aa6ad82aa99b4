"""A synthetic results tree for the tests of ``evidence``: four corpora x three methods x two seeds, with failures.

Numbers are made up but shaped like real ones. ``build(folder)`` writes ``plan.json`` and every record beside it.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import zstandard

from evidence import collect
from harness import record

MODELS = {"tiny-llama": "Tiny Llama 135M (Q4_1, dequantised)", "tiny-bert": "Tiny BERT 22M"}
CORPORA = {
    "headlines": "Headlines",
    "arithmetic": "Arithmetic problems (multilingual templates)",
    "phrases-en-de": "Phrases en-de",
    "snippets": "Docstring pairs (made by a program)",
}
EVALS = {"snippets": "Programs (generated)"}
VARIANTS = {"full": "full", "lora": "lora", "dora": "peft"}
MANY = {name: name for name in ("full", "lora", "dora", "oft", "boft", "lora-ga", "urnn", "hybrid")}
MATRICES = 14  # whose lambda a hybrid logs
BLOCKS = {"q": [0, 0, 2, 1], "k": [0, 0, 0, 1], "v": [0, 3, 1, 0]}  # that SMT chose in its four layers, of seed 0
STACK = {
    "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    "device": "cpu",
    "hardware": {"cpu": "Example 9000"},
}
OTHER = {**STACK, "versions": {"torch": "2.12.0", "transformers": "5.23.0"}}
ITEMS = 64
STEPS = {"headlines": 30, "arithmetic": 12, "phrases-en-de": 12, "snippets": 12}
GAIN = {"untuned": 0.0, "majority": 0.0, "full": 1.0, "lora": 0.8, "dora": 0.85}
GAIN |= {"oft": 0.5, "boft": 0.6, "lora-ga": 0.9, "urnn": 0.4, "hybrid": 0.95, "smt": 0.7}
NORM = {"full": 6.0, "lora": 2.0, "dora": 2.2, "oft": 0.7, "boft": 0.5, "lora-ga": 3.5, "urnn": 0.3, "hybrid": 1.2}


def collected(folder: Path, **options) -> Path:
    """``folder`` with the fake results of ``build`` and, in ``collected``, what evidence.collect makes of them."""
    collect.main(["--plan", str(build(folder, **options)), "--out", str(folder / "collected")])
    return folder


def build(
    root: Path,
    failures: bool = True,
    seeds: tuple[int, ...] = (0, 1),
    corpora: tuple[str, ...] = (),
    variants: dict[str, str] = VARIANTS,
) -> Path:
    """Write plan and records under ``root``; returns the plan's path. No ``corpora``: all four.

    With ``failures``: DoRA on snippets runs out of memory (seed 1), LoRA on arithmetic diverges (seed 0), full
    fine-tuning on phrases is missing (seed 1), LoRA on headlines seed 1 is stale, DoRA on headlines seed 1 comes from
    another torch, DoRA's cost on snippets failed.
    """
    cells = []
    for corpus in corpora or CORPORA:
        for model in MODELS if corpus == "headlines" else ["tiny-llama"]:
            grid = [("untuned", 0), *([("majority", 0)] if corpus == "headlines" else [])]
            for variant, seed in [*grid, *((v, s) for s in seeds for v in variants)]:
                cells.append(_cell(model, corpus, variant, seed, variants))
    plan = {
        "suite": "fake",
        "file": "config/fake.yaml",
        "description": "made up",
        "protocol": {"batch_size": 16},
        "variants": ["untuned", "majority", *variants],
        "models": list(MODELS),
        "corpora": list(corpora or CORPORA),
        "cells": cells,
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    for cell in cells:
        fate = _fate(cell) if failures else "ok"
        if fate != "missing":
            _write_cell(root, cell, fate)
    for model in MODELS:
        for corpus in corpora or CORPORA:
            if model == "tiny-bert" and corpus != "headlines":
                continue
            for variant in variants:
                _write_cost(root, model, corpus, variant, failures)
    return root / "plan.json"


def _cell(model: str, corpus: str, variant: str, seed: int, variants: dict[str, str]) -> dict:
    return {
        "model": model,
        "model_label": MODELS[model],
        "corpus": corpus,
        "corpus_label": CORPORA[corpus],
        "variant": variant,
        "method": variants.get(variant, variant),
        "seed": seed,
        "key": None if variant in ("untuned", "majority") else f"key-{variant}",
        "generated": corpus == "snippets",
        "steps": 0 if variant in ("untuned", "majority") else STEPS[corpus],
        "evals": [{"eval": f"{corpus}-test", "label": EVALS.get(corpus, CORPORA[corpus]), "key": f"score-{variant}"}],
    }


def _fate(cell: dict) -> str:
    fates = {
        ("snippets", "dora", 1): "oom",
        ("arithmetic", "lora", 0): "diverged",
        ("phrases-en-de", "full", 1): "missing",
        ("headlines", "lora", 1): "stale",
        ("headlines", "dora", 1): "other stack",
    }
    if cell["model"] != "tiny-llama":
        return "ok"
    return fates.get((cell["corpus"], cell["variant"], cell["seed"]), "ok")


def _generator(*parts: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32("/".join(map(str, parts)).encode()))


def _write_cell(root: Path, cell: dict, fate: str) -> None:
    names = ("model", "corpus", "variant", "method", "seed")
    base = {
        "suite": "fake",
        **{name: cell[name] for name in names},
        "provenance": OTHER if fate == "other stack" else STACK,
    }
    folder = root / "runs" / cell["model"] / cell["corpus"] / cell["variant"] / f"seed{cell['seed']}"
    status = fate if fate in ("oom", "diverged") else "ok"
    reason = {
        "oom": "resident memory passed the limit of 4000 MB at step 3",
        "diverged": "loss is not finite at step 7",
    }
    if cell["variant"] != "majority":
        steps = {"oom": 3, "diverged": 7}.get(fate, cell["steps"])
        curve = _curve(cell, steps)
        train = {
            **base,
            "stage": "train",
            "status": status,
            "reason": reason.get(fate, ""),
            "key": "key-of-old" if fate == "stale" else cell["key"],
            "specification": {"protocol": {"batch_size": 16}},
            "steps": steps,
            "epoch_steps": 4 * cell["steps"],
            "tokens": {"supervised": 40 * steps, "total": 900 * steps, "probe": 0},
            "parameters": {"trained": 1_000_000, "effective": 1_000_000, "total": 134_515_008, "head": 0},
            "phases": {"train": {"seconds": 2.5 * steps}},
            "memory": {"rss_peak_bytes": 2_700 * 2**20},
            "loss": {"first": 2.0, "last": 1.0, "validation": [[0, 2.1], [cell["steps"], 1.2]]},
            "facts": _facts(cell),
            "overlap": {"test_items": 1319, "equal": 1, "run": 12, "removed": 13},
        }
        if curve:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "curves.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curve), encoding="utf-8")
            train["files"] = {"curves": record.file_entry(folder / "curves.jsonl")}
        record.write(folder / "train.json", train)
    for entry in cell["evals"]:
        _write_score(folder / entry["eval"], {**base, "eval": entry["eval"], "label": entry["label"]}, cell, status)


def _facts(cell: dict) -> dict:
    """What SMT says of its blocks; a later seed's lie a layer higher. Other methods say nothing here."""
    if cell["variant"] != "smt":
        return {}
    chosen = {role: counts[-cell["seed"] :] + counts[: -cell["seed"]] for role, counts in BLOCKS.items()}
    return {"blocks": 8, "candidate_blocks": {"q": 36, "k": 12, "v": 12}, "chosen_blocks": chosen}


def _write_score(folder: Path, base: dict, cell: dict, status: str) -> None:
    if cell["variant"] != "majority":
        predicted = {"status": "ok"} if status == "ok" else {"status": "skipped", "reason": f"train {status}"}
        record.write(folder / "predict.json", {**base, "stage": "predict", **predicted})
    if status != "ok":
        record.write(
            folder / "score.json", {**base, "stage": "score", "status": "skipped", "reason": f"train {status}"}
        )
        return
    grades, metrics, about = grade(cell)
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps({"item": f"item-{i}", **g}) + "\n" for i, g in enumerate(grades))
    (folder / "grades.jsonl.zst").write_bytes(zstandard.compress(text.encode()))
    files = {"grades": record.file_entry(folder / "grades.jsonl.zst")}
    score = {**base, "stage": "score", "status": "ok", "reason": "", "key": f"score-{cell['variant']}", "files": files}
    record.write(folder / "score.json", {**score, "metrics": metrics, "n_items": ITEMS, "eval_version": 1, **about})


def grade(cell: dict) -> tuple[list[dict], dict, dict]:
    """Grades, metrics and the eval's declarations for a cell, by the kind of its corpus."""
    corpus, variant = cell["corpus"], cell["variant"]
    rng = _generator("items", corpus, variant, cell["seed"], cell["model"])
    gain = GAIN.get(variant, 0.7)
    nll = rng.gamma(4.0, 6.0 * (1 - 0.3 * gain), ITEMS)
    tokens = rng.integers(8, 30, ITEMS)
    grades = [{"nll": float(a), "tokens": int(b)} for a, b in zip(nll, tokens, strict=True)]
    metrics = {"reference_nll": float(nll.sum() / tokens.sum())}
    about = {"units": {"reference_nll": "nats/token"}, "lower_is_better": ["reference_nll"]}
    if corpus == "headlines":
        share = 0.53 if variant == "majority" else 0.56 + 0.15 * gain
        correct = (np.arange(ITEMS) < share * ITEMS) if variant == "majority" else rng.random(ITEMS) < share
        grades = [{"correct": bool(c), "gold": "1", "predicted": "1" if c else "0"} for c in correct]
        metrics = {"accuracy": 100 * float(correct.mean())}
        about = {"headline": "accuracy", "units": {"accuracy": "%"}, "floors": {"accuracy": 0.0}}
    elif corpus == "arithmetic":
        correct = rng.random(ITEMS) < 0.015 * gain
        grades = [{**g, "exact_match": int(c)} for g, c in zip(grades, correct, strict=True)]
        metrics["exact_match"] = 100 * float(correct.mean())
        about |= {"headline": "exact_match", "floors": {"exact_match": 0.0}}
        about["units"]["exact_match"] = "%"
    elif corpus == "phrases-en-de":
        grades = [{**g, "bleu_counts": [5, 3, 2, 1]} for g in grades]
        metrics["bleu"] = 2.0 + 6 * gain + float(rng.normal(0, 0.4))
        about |= {"headline": "bleu", "signatures": {"bleu": "nrefs:1|case:mixed|eff:no|tok:13a"}}
        about["units"]["bleu"] = "BLEU"
    else:
        correct = rng.random(ITEMS) < 0.05 + 0.1 * gain
        grades = [{**g, "n": 1, "c": int(c)} for g, c in zip(grades, correct, strict=True)]
        metrics["pass@1"] = 100 * float(correct.mean())
        about |= {"headline": "pass@1", "floors": {"pass@1": 0.0}}
        about["units"]["pass@1"] = "%"
    return grades, metrics, about


def _curve(cell: dict, steps: int) -> list[dict]:
    rng = _generator("curve", cell["corpus"], cell["variant"], cell["seed"], cell["model"])
    scale = NORM.get(cell["variant"], 1.0)
    rows = []
    for step in range(steps):
        fall = np.exp(-3 * step / max(cell["steps"], 1))
        rows.append(
            {
                "step": step,
                "loss": float(1.2 + 0.9 * fall + rng.normal(0, 0.05)),
                "learning_rate": 1e-3 * (1 - step / cell["steps"]),
                "gradient_norm": float(scale * (0.4 + fall) * np.exp(rng.normal(0, 0.2))),
                "tokens": 900,
                "seconds": 2.5,
                "rss_bytes": 2_700 * 2**20,
                "nonfinite": 0,
            }
        )
        rows.append({"step": step, "name": "update_ratio", "value": 1e-3 * fall})
        if cell["variant"] == "hybrid":
            for layer in range(MATRICES):
                share = 0.5 + (layer / (MATRICES - 1) - 0.4) * (1 - fall) + rng.normal(0, 0.01)
                rows.append({"step": step, "name": "lambda", "value": float(share), "layer": layer})
    for step in range(0, steps + 1, max(cell["steps"] // 4, 1)):
        fall = np.exp(-2 * step / max(cell["steps"], 1))
        level = 1.3 - 0.15 * GAIN.get(cell["variant"], 0.7)
        rows.append({"step": step, "validation_loss": float(level + (2.1 - level) * fall + rng.normal(0, 0.01))})
    return rows if steps else []


def _write_cost(root: Path, model: str, corpus: str, variant: str, failures: bool) -> None:
    folder = root / "cost" / model / corpus / variant
    base = {
        "stage": "cost",
        "model": model,
        "corpus": corpus,
        "variant": variant,
        "key": f"key-{variant}",
        "provenance": STACK,
    }
    if failures and (corpus, variant) == ("snippets", "dora"):
        record.write(folder / "cost.json", {**base, "status": "timeout", "reason": "longer than 5 minutes"})
        return
    rng = _generator("cost", model, corpus, variant)
    slow = {"full": 1.36, "lora": 1.0, "dora": 1.19}.get(variant, 1.3) * (0.25 if model == "tiny-bert" else 1.0)
    times = sorted(2.6 * slow * np.exp(rng.normal(0, 0.03, 20)))
    weights = (513 if model == "tiny-llama" else 87) * 2**20
    trained = weights if variant == "full" else weights // 40
    memory = {
        "weights": weights,
        "gradients": trained,
        "gradients_at_peak": trained,
        "optimizer": 2 * trained,
        "activations": int(1.6 * weights * slow),
    }
    memory["peak"] = sum(memory.values()) - trained  # the gradients stand there twice
    memory["rss_peak_bytes"] = memory["peak"] + 900 * 2**20
    cost = {
        **base,
        "status": "ok",
        "threads": 2,
        "batch_tokens": 512,
        "seconds": {"median": times[10], "q25": times[5], "q75": times[15], "n": 20, "all": times},
        "tokens_per_second": 512 / times[10],
        "epoch_steps": 4 * STEPS[corpus],
        "memory": memory,
        "flops_per_step": 4.131e11,
        "attach_seconds": 0.1,
        "prepare_seconds": 0.0,
        "refresh": {"every": 50, "first_seconds": 13.0, "seconds": 12.0} if variant == "lora" else None,
        "warmup": None,
        "whole": {"steps": STEPS[corpus], "seconds": STEPS[corpus] * times[10]},
        "instrument_overhead": 0.011,
        "parameters": {"trained": trained // 4, "effective": trained // 4, "total": weights // 4, "head": 0},
    }
    record.write(folder / "cost.json", cost)
