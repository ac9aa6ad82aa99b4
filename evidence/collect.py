"""Records become Parquet: ``python -m evidence.collect --plan results/S/plan.json --out results/S/collected``.

Every row begins with its cell: suite, model, model_label, corpus, corpus_label, variant, variant_label, method, seed.
What failed, is missing or is stale keeps its rows, with the reason; nothing is averaged here.

runs.parquet: one row per training x eval x metric (a single one with an empty value where there is no score)
    eval, eval_label, generated (rows made by a program), stand_in; metric, value, unit, headline, reference (likelihood
    of the reference text), lower_is_better, floor, at_floor, texts (JSON: signatures); numerator, denominator, scale:
    value = scale x sum / sum of these fields of items.parquet (no denominator: the number of items; no numerator: the
    value is no such mean); n_items, eval_version
    status (ok, missing, "no value" of a headline that is no number, or the failure), with its stage and reason; stale: the
    stage whose record was made from another specification than the plan's, or with other values than its search chose;
    stack: hash of software versions and device; other_stack: where it, or the revision
    of the model or of data, differs from that of most complete runs, in words
    steps, epoch_steps, batch_size (rows), hyperparameters (JSON), tokens_supervised, tokens_total
    (without padding, of all steps), tokens_probe (read before the first step, in no other count),
    parameters_{trained,effective,total}, loss_{first,last}, validation_{first,last} (nats/token, or squared error where
    a value is predicted), train_seconds (beside other jobs: for times to quote see costs) and of these refresh_seconds in
    so many refreshes, rss_peak_bytes, facts (JSON: what the method says of the training), overlap (JSON: training rows
    that test items give away), commit, dirty, device
curves.parquet: one row per number: status, stale, other_stack, step, name (loss, gradient_norm, validation_loss and
    what the method logs), layer, value
items.parquet: one row per training x eval x item: eval, stale, item, grade (JSON), its numeric fields as grade.<field>
costs.parquet: one row per model x corpus x variant, measured with the machine to itself: status, reason, stale, stack,
    other_stack, threads, batch_tokens (of a step), tokens_per_second, epoch_steps (of one pass),
    step_seconds_{median,q25,q75,n,all (JSON, of the same batches for each method)}, epoch_seconds_{median,q25,q75},
    memory_{weights,gradients,gradients_at_peak,optimizer,activations,step_peak}_bytes (live tensors of a step),
    memory_peak_bytes (of a training: start, warm-up, refreshes), memory_rss_peak_bytes (process), memory_cuda_*_bytes,
    flops_per_step, attach_seconds, prepare_seconds, start_peak_bytes, instrument_overhead (share of a step),
    refresh_{seconds,first_seconds,every,peak_bytes}, warmup_{seconds (a step),steps,peak_bytes}, whole_{seconds,steps}
    (a training), parameters_{trained,effective,total}, hardware, device
trials.parquet: one row per trial of the tuning and seed of it (none of a suite that does not tune): trial, seed, status,
    reason, stale, other_stack (where it differs from most trials', in words), values (JSON: of the searched fields),
    searched (JSON: their spaces), chosen, no_choice (why the search has none that belongs to the plan's),
    validation_{first,last} (as in runs), validation_examples, steps, tokens, seconds (of all its phases, beside other jobs),
    parameters_trained
suite.json: names and orders for tables and figures, protocol, reference stacks, problems met; written last
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from evidence.cells import EvidenceError
from evidence.curves import write_curves
from evidence.gather import Gathered
from evidence.trials import COLUMNS

ITEM_COLUMNS = ("suite", "model", "corpus", "variant", "method", "eval", "stale", "seed", "item", "grade")


def write(gathered: Gathered, out: Path) -> dict[str, int]:
    """Write the five Parquet files and ``suite.json`` into the folder ``out``. Returns the number of rows of each."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir(parents=True, exist_ok=True)
    (out / "suite.json").unlink(missing_ok=True)  # an interrupted collection must not look like a finished one
    for name, rows, columns in (
        ("runs", gathered.runs, None),
        ("costs", gathered.costs, None),
        ("trials", gathered.trials, COLUMNS),
    ):
        frame = pd.DataFrame(rows, columns=columns)
        _replace(out / f"{name}.parquet", lambda path, f=frame: f.to_parquet(path, index=False, compression="zstd"))
    empty = pa.table({name: pa.array([], pa.string()) for name in ITEM_COLUMNS})
    items = pa.concat_tables(gathered.items or [empty], promote_options="default").unify_dictionaries()
    _replace(out / "items.parquet", lambda path: pq.write_table(items, path, compression="zstd"))
    counts = {"runs": len(gathered.runs), "items": items.num_rows, "costs": len(gathered.costs)}
    counts["trials"] = len(gathered.trials)

    def curves(path: Path) -> None:
        reference = gathered.reference_stack.get("train", "")
        counts["curves"] = write_curves(gathered.plan, gathered.root, reference, gathered.problems, path)

    _replace(out / "curves.parquet", curves)
    text = json.dumps(gathered.suite(), indent=1, ensure_ascii=False) + "\n"
    _replace(out / "suite.json", lambda path: path.write_text(text, encoding="utf-8"))
    return counts


def _replace(path: Path, writer: Callable[[Path], object]) -> None:
    """Let ``writer`` fill a temporary file, then rename it: a reader sees all of it or none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        writer(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evidence.collect", description="Collect records into Parquet.")
    parser.add_argument("--plan", type=Path, required=True, help="results/SUITE/plan.json; the records lie beside it")
    parser.add_argument("--out", type=Path, required=True, help="folder for the Parquet files")
    arguments = parser.parse_args(argv)
    try:
        gathered = Gathered(arguments.plan)
        counts = write(gathered, arguments.out)
    except EvidenceError as error:
        print(error, file=sys.stderr)
        return 2
    headlines = [row for row in gathered.runs if row["headline"]]
    statuses = Counter("stale" if row["stale"] and row["status"] == "ok" else row["status"] for row in headlines)
    print(f"{arguments.out}: " + ", ".join(f"{count} rows of {name}" for name, count in sorted(counts.items())))
    print("scores: " + ", ".join(f"{count} {status}" for status, count in statuses.most_common()))
    for problem in gathered.problems:
        print(f"note: {problem}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
