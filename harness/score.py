"""Stage ``score``: grades and metrics from one eval's predictions. Imports no torch.

``python -m harness.score --suite quick --model M --corpus C --variant V --seed 0 --eval E`` works from a shell, too.
Every item's grade is kept in ``grades.jsonl.zst``; metrics are ``aggregate`` of them and nothing else, so that a
bootstrap can call it again. The ``majority`` row is graded from the training labels, without predictions.
"""

from __future__ import annotations

import argparse
import json
import math
import numbers
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from harness import record
from harness.assets import asset_folder, revisions
from harness.contract import Eval
from harness.failures import UserError, guard
from harness.provenance import provenance
from harness.rows import read_rows, write_rows
from harness.sandbox import SandboxError, require
from harness.suite import Training, find_plugin, load_plugin, load_suite, predict_record, score_record

RESAMPLES = 200  # of the items, to tell whether a headline can be told from its floor


def main(argv: list[str] | None = None) -> int:
    arguments = _parse(argv)
    suite = load_suite(arguments.suite)
    training = suite.training(arguments.model, arguments.corpus, arguments.variant, arguments.seed)
    target = arguments.out or score_record(training, arguments.eval)
    started = time.perf_counter()
    predictions = arguments.predictions or predict_record(training, arguments.eval)
    content = score(training, arguments.eval, predictions, target.parent)
    seconds = {"score": {"seconds": time.perf_counter() - started}}
    record.write(target, {**_opening(training, arguments.eval), **content, "phases": seconds})
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m harness.score", description="Grade one eval of one training.")
    for name in ("suite", "model", "corpus", "variant", "eval"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--predictions", type=Path, help="the record of predictions, instead of the suite's own place")
    parser.add_argument("--out", type=Path, help="the record to write, instead of the suite's own place")
    return parser.parse_args(argv)


def _opening(training: Training, evaluation: str) -> dict:
    plugin = find_plugin("evals", evaluation)
    return {
        "stage": "score",
        **training.identity,
        "eval": evaluation,
        "label": plugin.label,
        "generated": plugin.attributes.get("generated") is True,
        "reason": "",
        "key": training.score_key(evaluation),
        "assets": revisions(plugin.names("assets")),
        "provenance": provenance(1),
    }


def score(training: Training, evaluation: str, predictions: Path, folder: Path) -> dict:
    """Grade every item and write the grades into ``folder``; what the record says of it."""
    plugin: Eval = load_plugin("evals", evaluation, **training.suite.settings("evals", evaluation))
    facts = {"eval_version": plugin.version, "headline": plugin.headline, "units": dict(plugin.units)}
    facts["lower_is_better"] = list(plugin.lower_is_better)
    try:
        if "sandbox" in plugin.signatures():
            require(training.suite.limits["sandbox"])
        if training.variant == "majority":
            items = plugin.items(asset_folder)
            grades = _majority(training, evaluation, plugin, items)
        else:
            predicted = _predicted(training, evaluation, predictions)
            if predicted["status"] != "ok":
                return {**facts, "status": "skipped", "reason": predicted["reason"] or f"predict {predicted['status']}"}
            if reason := plugin.pending():
                return {**facts, "status": "judge_pending", "reason": reason}
            items = plugin.items(asset_folder)
            grades = _grades(plugin, items, read_rows(record.checked_file(predictions, predicted, "predictions")))
        metrics = _metrics(plugin, grades)
    except (GradingFailed, SandboxError) as error:
        return {**facts, "status": "error", "reason": str(error)}
    rows = [{"item": item["id"], **grade} for item, grade in zip(items, grades, strict=True)]
    if getattr(plugin, "corpus_level", False) and len(rows) > 1:
        for row, part in zip(rows, parts(plugin, grades), strict=True):
            row[f"{plugin.headline}_part"] = part
    path = folder / "grades.jsonl.zst"
    write_rows(path, rows)
    return {
        **facts,
        "status": "ok",
        "metrics": metrics,
        "n_items": len(items),
        "floors": dict(plugin.floors),
        "at_floor": at_floor(plugin, grades, training.score_key(evaluation)),
        **_signatures(plugin),
        "files": {"grades": record.file_entry(path)},
    }


def _metrics(plugin: Eval, grades: Sequence[dict]) -> dict:
    """What ``aggregate`` gives; None is no value. Raises GradingFailed where a metric is no number, or the headline not there."""
    metrics = plugin.aggregate(grades)
    if not isinstance(metrics, dict) or plugin.headline not in metrics:
        given = ", ".join(metrics) if isinstance(metrics, dict) else type(metrics).__name__
        raise GradingFailed(
            f"aggregate() gives no {plugin.headline!r}, which is the headline; it gives {given or 'nothing'}"
        )
    for name, value in metrics.items():
        if value is not None and not (isinstance(value, numbers.Real) and math.isfinite(value)):
            raise GradingFailed(f"aggregate() gives {name} = {value!r}, which is no number")
    return metrics


# --------------------------------------------------------------------------- grades


class GradingFailed(Exception):
    """An eval could not grade an item; the message names it."""


def _predicted(training: Training, evaluation: str, path: Path) -> dict:
    """The record of the predictions. Raises UserError where there is none, or another specification's."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: predict first (python -m harness.predict with the same arguments)")
    predicted, key = record.read(path), training.predict_key(evaluation)
    if predicted["status"] == "ok" and predicted.get("key") != key:
        raise UserError(
            f"{path} belongs to another specification (key {predicted.get('key')}, now {key}): the suite or the code has "
            "changed since. Predict again, or go back to what it was predicted with."
        )
    return predicted


def _grades(plugin: Eval, items: Sequence[dict], rows: Sequence[dict]) -> list[dict]:
    """A grade an item, in the order of the items. Raises GradingFailed naming the first item that cannot be graded."""
    outputs = {row["item"]: row["outputs"] for row in rows}
    grades = []
    for item in items:
        if item["id"] not in outputs:
            raise GradingFailed(f"item {item['id']} has no prediction: the eval's items changed, predict again")
        try:
            grades.append(plugin.grade(item, tuple(outputs[item["id"]])))
        except Exception as error:  # whatever a plug-in raises is a row, not a crash
            raise GradingFailed(f"grading item {item['id']}: {type(error).__name__}: {error}") from error
    return grades


def _majority(training: Training, evaluation: str, plugin: Eval, items: Sequence[dict]) -> list[dict]:
    """Grades of always giving the training data's commonest answer."""
    corpus = load_plugin("corpora", training.corpus, **training.corpus_fields())
    grades = plugin.majority(corpus.examples("train", asset_folder), items)
    if grades is None:
        raise UserError(f"eval {evaluation} has no majority row")
    return grades


def at_floor(plugin: Eval, grades: Sequence[dict], key: str) -> bool | None:
    """True where the headline cannot be told from its floor: the middle 95 % of resampled items reach down to it.

    None where the eval names no floor. ``key`` seeds the resampling.
    """
    floor = plugin.floors.get(plugin.headline)
    if floor is None:
        return None
    generator = random.Random(key)
    value = getattr(plugin, "floor_value", lambda chosen: plugin.aggregate(chosen).get(plugin.headline, floor))
    values = sorted(value(generator.choices(grades, k=len(grades))) for _ in range(RESAMPLES))
    return values[int(0.025 * RESAMPLES)] <= floor


def parts(plugin: Eval, grades: Sequence[dict]) -> list[float]:
    """Each item's part of a headline that is no mean over items, such as BLEU; the parts' mean is the headline, to rounding.

    The jackknife's pseudo-values (J. W. Tukey, Ann. Math. Statist. 29, 1958), centred: with n items, t the headline and t_i
    the one without item i, part_i = t + (n - 1) (mean(t_j) - t_i). Items with equal grades share one t_i.
    """
    whole = plugin.aggregate(grades)[plugin.headline]
    keys, without = [json.dumps(grade, sort_keys=True) for grade in grades], {}
    for index, key in enumerate(keys):
        if key not in without:
            rest = [*grades[:index], *grades[index + 1 :]]
            without[key] = plugin.aggregate(rest).get(plugin.headline, whole)
    mean = statistics.fmean(without[key] for key in keys)
    return [whole + (len(grades) - 1) * (mean - without[key]) for key in keys]


def _signatures(plugin: Eval) -> dict:
    """How a library describes the metrics it computed, where the eval says."""
    return {"signatures": plugin.signatures()} if hasattr(plugin, "signatures") else {}


if __name__ == "__main__":
    sys.exit(guard(main)())
