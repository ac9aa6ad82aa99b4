"""A paper's own tables from this project's runs: ``python -m evidence.paper_tables hybrid --collected DIR --out DIR``.

``papers/<paper>/tables.yaml`` lists them: which rows the paper has, which evals and methods those are here, and where its
own numbers stand (``reported/``). Each comes as Markdown, CSV and LaTeX. Four kinds:

    scores      a row per benchmark and method: every run, average, interval and tier, beside what the paper reports
    costs       a row per model and method: trained share, time and memory beside full fine-tuning's
    gap         the share of the gap between two methods that others close (``evidence.gap``)
    projection  GaLore's family: refreshes, their time, iterations and passes, captured energy, quality

Another suite than the paper's own says so on top of every table, and a row that it does not score is "not run".
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from evidence import checked_yaml as checked
from evidence import known_names
from evidence.cells import EvidenceError
from evidence.collected import Collected
from evidence.layout import Table
from evidence.paper_costs import costs_table, projection_table
from evidence.paper_scores import gap_table, scores_table
from evidence.tables import write_table

ROOT = Path(__file__).resolve().parent.parent
KINDS: dict[str, Callable] = {
    "scores": scores_table,
    "costs": costs_table,
    "gap": gap_table,
    "projection": projection_table,
}


def _names(value: object) -> str:
    """What is wrong with a name or a list of them; empty where nothing is."""
    return checked.text(value) and checked.list_of(checked.text)(value)


METHODS = checked.list_of(known_names.family)
EVALS = checked.list_of(known_names.eval_name)
LABELS = checked.mapping_of(checked.text, checked.text)
THEIRS = checked.mapping_of(checked.text, known_names.family)  # the paper's name of a method: ours
CALLED = checked.mapping_of(checked.text, _names)  # the table's name of a method: the source's
ROW = {"title": checked.text, "evals": EVALS}
METRIC = {"metric": checked.text}
PRINTED = checked.fields({"benchmark": _names}, {**METRIC, "model": checked.text, "source": checked.text})
SCORE_ROWS = checked.list_of(checked.fields(ROW, {**METRIC, "reported": PRINTED}))
FIELDS: dict[str, tuple[dict[str, checked.Check], dict[str, checked.Check]]] = {  # what a kind needs, and may have
    "scores": (
        {"rows": SCORE_ROWS, "methods": THEIRS},
        {"reported": checked.text, "models": LABELS, "margin": checked.positive, "called": CALLED},
    ),
    "costs": ({"methods": METHODS}, {"claims": checked.list_of(checked.text)}),
    "gap": (
        {
            "rows": checked.list_of(checked.fields(ROW, METRIC)),
            "low": known_names.family,
            "high": known_names.family,
            "methods": METHODS,
        },
        {},
    ),
    "projection": ({"methods": METHODS, "evals": EVALS}, {}),
}
COMMON = dict.fromkeys(("id", "title", "kind"), checked.text)


def read_tables(paper: str) -> list[dict]:
    """The checked list. Raises EvidenceError that names the table, the field and what is expected there."""
    path = ROOT / "papers" / paper / "tables.yaml"
    if not path.is_file():
        raise EvidenceError(f"{path} does not exist: no such paper, or none of its tables is described")
    return checked.read_entries(path, "table", _wrong)


def _wrong(spec: dict) -> str:
    """What is wrong with a table; empty where nothing is."""
    kind = spec.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        return f"kind is one of {', '.join(KINDS)}, not {kind!r}"
    needed, optional = FIELDS[kind]
    return checked.fields({**COMMON, **needed}, optional)(spec) or (_unpaired(spec) if kind == "scores" else "")


def _unpaired(spec: dict) -> str:
    """Rows say which of the reported numbers are theirs where, and only where, a table has a file of them."""
    for number, row in enumerate(spec["rows"], 1):
        if ("reported" in row) != ("reported" in spec):
            return f"rows: number {number}: reported stands in both, the table and each of its rows, or in neither"
    return ""


def build(paper: str, collected: Collected) -> dict[str, Table]:
    """Tables by their id."""
    return {
        spec["id"]: _noted(KINDS[spec["kind"]](paper, spec, collected), paper, collected) for spec in read_tables(paper)
    }


def _noted(table: Table, paper: str, collected: Collected) -> Table:
    suite = collected.suite["suite"]
    if suite != paper:
        protocol = collected.suite.get("protocol", {})
        size = f"{protocol['steps']} steps of " if protocol.get("steps") else ""
        rows = protocol.get("batch_size", "?")
        said = f"NOT the paper's protocol: suite {suite}, {size}{rows} rows unless its overrides say otherwise, other models."
        table.notes.insert(0, f"{said} Nothing here settles what the paper says.")
    return table


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evidence.paper_tables", description=__doc__.splitlines()[0])
    parser.add_argument("paper", help="a folder of papers/")
    parser.add_argument("--collected", type=Path, required=True, help="folder that evidence.collect wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    arguments = parser.parse_args(argv)
    try:
        made = build(arguments.paper, Collected(arguments.collected))
    except EvidenceError as error:
        print(error, file=sys.stderr)
        return 2
    for name, table in made.items():
        print("\n".join(map(str, write_table(table, arguments.out, name))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
