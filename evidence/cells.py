"""What became of every cell of a plan: reads ``plan.json`` and the records under its folder.

A plan is what the suite promised (``python -m harness.suite NAME --out results/NAME/plan.json``); the records beside it
are what happened. Every cell of the plan gets an outcome, be it a value, a failure with its reason, or "missing".
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evidence.fitting import misfit
from evidence.names import label_of
from harness.record import read

BASELINES = ("untuned", "majority")
NO_VALUE = "no value"  # of a score that ended well, and whose headline is no number
FAILED = ("diverged", "oom", "timeout", "error", "skipped", NO_VALUE)


class EvidenceError(Exception):
    """Something a person must put right: the message says what, where, and how."""


@dataclass
class Outcome:
    """One training scored by one eval. ``status`` is that of the first stage that did not end ok."""

    status: str
    stage: str
    reason: str = ""
    stale: str = ""  # the stage whose record was made from another specification than the plan's
    records: dict[str, dict] = field(default_factory=dict)  # "train", "predict", "score" where readable


def read_plan(path: Path) -> dict:
    """The plan at ``path``, with names and orders filled in where the suite left them out."""
    path = Path(path)
    if not path.is_file():
        raise EvidenceError(f"{path}: no such plan. Write it with `python -m harness.suite SUITE --out {path}`.")
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise EvidenceError(f"{path}: not valid JSON ({error}). Delete it and write it again.") from None
    if not isinstance(plan, dict) or not plan.get("cells"):
        raise EvidenceError(f"{path}: a plan has a list `cells`, and this one has none. Write it again.")
    plan.setdefault("suite", path.resolve().parent.name)
    for cell in plan["cells"]:
        if missing := [name for name in ("model", "corpus", "variant", "seed") if name not in cell]:
            raise EvidenceError(f"{path}: a cell lacks {', '.join(missing)}: {json.dumps(cell)[:200]}")
    for plural, name in (("models", "model"), ("corpora", "corpus"), ("variants", "variant")):
        listed = [entry[name] if isinstance(entry, dict) else entry for entry in plan.get(plural) or []]
        plan[plural] = list(dict.fromkeys([*listed, *(cell[name] for cell in plan["cells"])]))
    plan["variants"].sort(key=lambda variant: BASELINES.index(variant) if variant in BASELINES else len(BASELINES))
    return plan


def identity(plan: dict, cell: dict) -> dict[str, Any]:
    """The columns that name a training in every Parquet file."""
    return {
        "suite": plan["suite"],
        "model": cell["model"],
        "model_label": cell.get("model_label") or cell["model"],
        "corpus": cell["corpus"],
        "corpus_label": cell.get("corpus_label") or cell["corpus"],
        "variant": cell["variant"],
        "variant_label": cell.get("variant_label") or label_of(cell["variant"]),
        "method": cell.get("method") or cell["variant"],
        "seed": int(cell["seed"]),
    }


def evals_of(cell: dict) -> list[dict]:
    """The evals of a cell as mappings with at least "eval"."""
    return [entry if isinstance(entry, dict) else {"eval": entry} for entry in cell.get("evals") or []]


def folder_of(root: Path, cell: dict) -> Path:
    """Where a cell's records are."""
    return root / "runs" / cell["model"] / cell["corpus"] / cell["variant"] / f"seed{cell['seed']}"


def cost_path(cell: dict) -> Path:
    """The cost record of a (model, corpus, variant), below the results."""
    return Path("cost") / cell["model"] / cell["corpus"] / cell["variant"] / "cost.json"


def search_folder(search: dict) -> Path:
    """Where the trials of a search are, and ``tuned.json`` with its choice, below the results."""
    return Path("tune") / search["model"] / search["corpus"] / search["variant"]


def trial_path(search: dict, trial: dict) -> Path:
    """The record of one trial under one seed, below the results."""
    return search_folder(search) / f"trial{trial['trial']}" / f"seed{trial['seed']}" / "train.json"


def searches(plan: dict) -> list[dict]:
    """The searches of a plan; none of a suite that does not tune."""
    return (plan.get("tuning") or {}).get("cells", [])


def outcome(root: Path, cell: dict, entry: dict | None) -> Outcome:
    """What became of ``cell`` under the eval ``entry`` (None: of its training alone)."""
    folder = folder_of(root, cell)
    stages = [("train", folder / "train.json", cell.get("key"))]
    if entry:
        stages.append(("predict", folder / entry["eval"] / "predict.json", entry.get("predict_key")))
        stages.append(("score", folder / entry["eval"] / "score.json", entry.get("key")))
    if cell["variant"] == "majority":
        stages = [stage for stage in stages if stage[0] == "score"]
    result = Outcome("ok", stages[-1][0] if stages else "train")
    for stage, path, key in stages:
        record = read_record(path)
        result.records[stage] = record
        if key and record.get("key") and record["key"] != key:
            result.stale = result.stale or stage
        if result.status == "ok" and record["status"] != "ok":
            result.status, result.stage = record["status"], stage
            result.reason = record.get("reason") or ""
    return result


def cost_cells(plan: dict) -> list[dict]:
    """One cell per (model, corpus, variant) whose cost is measured; if the plan lists none, every one that trains."""
    by_name = {}
    for cell in plan["cells"]:
        if cell["variant"] not in BASELINES:
            by_name.setdefault((cell["model"], cell["corpus"], cell["variant"]), cell)
    if "costs" not in plan:
        return list(by_name.values())
    return [{**by_name.get((c["model"], c["corpus"], c["variant"]), {}), **c} for c in plan["costs"]]


def cost_outcome(root: Path, cell: dict) -> Outcome:
    """The cost record of a (model, corpus, variant)."""
    record = read_record(root / cost_path(cell))
    key = cell.get("key")
    stale = "cost" if key and record.get("key") and record["key"] != key else ""
    return Outcome(record["status"], "cost", record.get("reason") or "", stale, {"cost": record})


def stack_of(record: dict, hardware: bool = False) -> str:
    """A text that is equal for records of one software stack: versions and device (for times, the hardware too)."""
    provenance = record.get("provenance") or {}
    parts = {"versions": provenance.get("versions"), "device": str(provenance.get("device") or "").partition(":")[0]}
    if hardware:
        parts["hardware"] = provenance.get("hardware")
    return json.dumps(parts, sort_keys=True) if any(parts.values()) else ""


def stack_difference(stack: str, reference: str) -> str:
    """What of ``stack`` differs from ``reference``, for people: "torch 2.12.0 (2.13.0)"."""
    ours, theirs = (_flat(json.loads(text)) if text else {} for text in (stack, reference))
    names = sorted({*ours, *theirs})
    return ", ".join(f"{n} {ours.get(n, '-')} ({theirs.get(n, '-')})" for n in names if ours.get(n) != theirs.get(n))


def commonest(stacks: list[str]) -> str:
    """The stack of most records. Ties go to the one that came first."""
    counts = Counter(stack for stack in stacks if stack)
    return counts.most_common(1)[0][0] if counts else ""


def reference_stacks(ended: list[dict[str, str]], every: list[dict[str, str]]) -> dict[str, str]:
    """{stage: the stack that others are compared with}, from the stacks of runs by stage: those that ended well, and all.

    The stages of most complete runs together: chosen stage by stage they may come from different runs, and then no run is
    comparable. What has fewer stages (a majority class is only scored) does not choose, unless nothing else has the stage.
    """
    chosen = {
        stage: commonest([run.get(stage, "") for run in every]) for stage in dict.fromkeys(s for r in every for s in r)
    }
    most = max(map(len, ended), default=0)
    whole = Counter(tuple(run.items()) for run in ended if len(run) == most)
    return chosen | (dict(whole.most_common(1)[0][0]) if whole else {})


def short_hash(text: str) -> str:
    """Eight hexadecimal digits that name a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:8] if text else ""


def unplanned_records(plan: dict, root: Path) -> list[Path]:
    """Trainings, scores, costs and trials under ``root`` that the plan does not name, below it."""
    planned = {cost_path(cell) for cell in cost_cells(plan)}
    for cell in plan["cells"]:
        folder = folder_of(Path(), cell)
        planned |= {folder / "train.json", *(folder / entry["eval"] / "score.json" for entry in evals_of(cell))}
    planned |= {trial_path(search, trial) for search in searches(plan) for trial in search["trials"]}
    kinds = ("runs/*/*/*/seed*/train.json", "runs/*/*/*/seed*/*/score.json", "cost/*/*/*/cost.json",
             "tune/*/*/*/trial*/seed*/train.json")  # fmt: skip
    found = (path.relative_to(root) for kind in kinds for path in sorted(root.glob(kind)))
    return [path for path in found if path not in planned]


def unplanned(plan: dict, root: Path) -> list[str]:
    """What the plan does not name enters no table, so it is mentioned; of a training that it does not name, once."""
    lost = unplanned_records(plan, root)
    trainings = {path.parent for path in lost if path.name == "train.json"}
    return sorted(f"{path.parent}: not in the plan, left out" for path in lost if path.parent.parent not in trainings)


def dig(record: dict, *names: str) -> Any:
    """``record[a][b]...`` or None where a part is missing."""
    for name in names:
        record = record.get(name) if isinstance(record, dict) else None
    return record


def read_record(path: Path) -> dict:
    """The record at ``path``, or one that says why there is none."""
    if not path.is_file():
        return {"status": "missing", "reason": f"no {path.name} yet"}
    try:
        record = read(path)
    except (ValueError, OSError) as error:
        return {"status": "error", "reason": f"unreadable record: {error}"}
    wrong = misfit(record)
    return {"status": "error", "reason": wrong} if wrong else record


def _flat(stack: dict) -> dict[str, str]:
    flat = {}
    for name, value in stack.items():
        flat.update({k: str(v) for k, v in value.items()} if isinstance(value, dict) else {name: str(value)})
    return flat
