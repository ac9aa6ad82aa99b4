"""Tables of a suite, one command: ``python -m evidence.tables --collected results/S/collected --out results/S/tables/paper``.

Writes ``scores`` (the Hybrid paper's Table I layout), ``overview``, ``differences``, ``cost`` and, where a suite has them,
``learning_rates`` (it searched for one) and ``tuning`` (it tuned), each as Markdown, CSV and LaTeX.
``python -m evidence.tables --plan results/S/plan.json --corpus C --out results/S/tables/corpora`` writes ``C.md`` in a second,
straight from the records, as soon as one corpus is done.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

from evidence.cells import EvidenceError
from evidence.collected import Collected, FromRecords
from evidence.cost_table import cost_table
from evidence.difference_table import difference_table
from evidence.labels import Labelled
from evidence.layout import Table, csv_text, latex, markdown
from evidence.learning_rates import rates_table
from evidence.overview import overview_table
from evidence.pools import panels
from evidence.score_table import score_table
from evidence.tuning_table import tuning_table


def write_table(table: Table, out: Path, name: str) -> list[Path]:
    """Write ``name``.md, .csv and .tex into the folder ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    texts = {".md": markdown(table), ".csv": csv_text(table), ".tex": latex(table, f"tab:{name}")}
    for suffix, text in texts.items():
        (out / f"{name}{suffix}").write_text(text, encoding="utf-8")
    return [out / f"{name}{suffix}" for suffix in texts]


def titles(collected: Collected) -> dict[str, str]:
    """Captions, with the suite's name."""
    suite = collected.suite["suite"]
    return {
        "scores": f"Suite {suite}: scores by benchmark, method and model",
        "overview": f"Suite {suite}: methods over all benchmarks",
        "differences": f"Suite {suite}: differences of methods",
        "cost": f"Suite {suite}: what training costs",
        "learning_rates": f"Suite {suite}: validation loss by learning rate",
        "tuning": f"Suite {suite}: how each method was tuned",
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evidence.tables", description="Write the tables of a suite.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--collected", type=Path, help="folder that evidence.collect wrote")
    source.add_argument("--plan", type=Path, help="plan.json: read the records beside it directly")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    parser.add_argument("--corpus", help="this corpus only, into CORPUS.md")
    arguments = parser.parse_args(argv)
    try:
        if arguments.plan:
            collected: Collected = FromRecords(arguments.plan, arguments.corpus)
        else:
            collected = Labelled(arguments.collected)
        if arguments.corpus:
            written = [_early(collected, arguments.corpus, arguments.out)]
        else:
            headlines = panels(collected, reference=False)  # intervals of a large grid take a while: once for both
            made = {
                "scores": score_table,
                "overview": functools.partial(overview_table, found=headlines),
                "differences": functools.partial(difference_table, headlines=headlines),
                "cost": cost_table,
                "learning_rates": rates_table,
                "tuning": tuning_table,
            }
            written = []
            arguments.out.mkdir(parents=True, exist_ok=True)  # also of a suite that trains, scores and searches nothing
            for name, make in made.items():
                if (table := make(collected, titles(collected)[name])) and table.groups:
                    written += write_table(table, arguments.out, name)
    except EvidenceError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(map(str, written)))
    return 0


def _early(collected: Collected, corpus: str, out: Path) -> Path:
    """The Markdown table of one corpus."""
    known = list(collected.runs["corpus"].unique())
    if corpus not in known:
        raise EvidenceError(f"no rows of corpus '{corpus}'. There are: {', '.join(known)}.")
    collected.runs = collected.runs[collected.runs["corpus"] == corpus]
    title = f"Suite {collected.suite['suite']}: {collected.runs['corpus_label'].iloc[0]}"
    table = score_table(collected, title, tiers=False)
    if not table.groups:  # nothing is scored: a search by validation
        table = rates_table(collected, title) or table
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{corpus}.md"
    path.write_text(markdown(table), encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
