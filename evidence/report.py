"""The report of a suite: ``python -m evidence.report --collected results/S/collected --out results/S/report``.

One static folder that opens from disk, without a network: ``index.html``, a page for each method on a model and corpus,
plotly's library and two small files of our own. Links to records go to ``../runs``: leave the folder where it is, or copy
``runs`` with it. ``--paper hybrid`` adds that paper's claims, judged by this suite, and the audit of its numbers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from evidence import audit, claims
from evidence.cells import EvidenceError
from evidence.collected import Collected
from evidence.labels import Labelled
from evidence.pools import Panel, panels
from evidence.report_figures import SIDES, curves, differences, quality
from evidence.report_findings import findings
from evidence.report_rows import cost_rows, difference_text, page_of, score_rows, told_apart
from evidence.report_trainings import trainings
from evidence.style import styles
from evidence.summary import failed_rows
from evidence.trials import tried
from evidence.tuning_table import tuning_table

ROOT = Path(__file__).resolve().parent.parent
PARTS = Path(__file__).resolve().parent / "page"  # templates, style sheet, script
MIB = 2**20
TEXTS = (".md", ".csv", ".tex")


def build(collected: Collected, results: Path, out: Path, paper: str = "") -> Path:
    """Write the report into the folder ``out`` and return its index. ``results`` is the suite's own folder."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    collected = Labelled(collected.folder)
    pages = Environment(loader=FileSystemLoader(PARTS), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    pages.filters |= {"seconds": _seconds, "mebibytes": _mebibytes, "json": _script}
    pages.globals |= {"difference_text": difference_text, "told_apart": told_apart, "suite": collected.suite}
    temporary = out.with_name(f".{out.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "trainings").mkdir(parents=True)
    _assets(temporary / "assets")
    _trainings(pages, collected, results, temporary)
    index = pages.get_template("index.html.j2").render(_context(collected, results, paper))
    (temporary / "index.html").write_text(index, encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)
    return out / "index.html"


def _context(collected: Collected, results: Path, paper: str) -> dict[str, Any]:
    found = panels(collected)
    scores, costs, failed = score_rows(collected, found), cost_rows(collected), failed_rows(collected)
    headlines = [row for row in scores if row.headline]
    look = styles(collected.suite["variants"])
    frame = collected.curves(list(SIDES))
    frame = frame[(frame["stale"] == "") & (frame["other_stack"] == "")]
    figures = {
        "quality": quality(headlines, costs, look),
        "differences": differences(headlines, look),
        "curves": curves(frame, look),
    }
    return {
        "findings": findings(scores, costs, failed),
        "scores": scores,
        "costs": costs,
        "settings": _settings(collected),
        "tuning": tuning_table(collected, "Tuning"),
        "searched": _searched(collected),
        "failed": failed,
        "figures": figures,
        "claims": _claims(collected, paper, [panel for panel in found if panel.headline]),
        "paper": paper,
        "audit": _audit(paper),
        "static": _static(results),
        "provenance": provenance(collected),
        "problems": collected.suite.get("problems", []),
    }


def _settings(collected: Collected) -> list[tuple[str, str]]:
    """(method's label, its file and hyper-parameters) of each variant; all values where models or corpora have their own."""
    found = []
    runs = collected.runs[collected.runs["hyperparameters"] != ""]
    for (label, method), rows in runs.groupby(["variant_label", "method"], sort=False):
        each = [json.loads(text) for text in rows["hyperparameters"].unique()]
        fields = {
            name: sorted({json.dumps(one.get(name)).replace('"', "") for one in each}) for one in each for name in one
        }
        listed = [f"{name} {' or '.join(values)}" for name, values in fields.items()]
        if listed:
            found.append((label, f"methods/{method}.py; {', '.join(listed)}"))
    return found


def _searched(collected: Collected) -> dict[tuple[str, str, str], str]:
    """{(model's label, corpus's label, variant's label): the part of the page with its trials' records}."""
    labels = ("model_label", "corpus_label", "variant_label")
    return {tuple(s.identity[name] for name in labels): page_of(*s.cell, "tuning") for s in tried(collected.trials)}


def _claims(collected: Collected, paper: str, found: list[Panel]) -> list[claims.Judged]:
    path = ROOT / "papers" / paper / "claims.yaml"
    return claims.judge_claims(claims.read_claims(path), collected, found) if paper and path.is_file() else []


def _audit(paper: str) -> str:
    """The audit as HTML, its title left to the page; empty where no table of the paper's is at hand."""
    folder = ROOT / "papers" / paper / "reported"
    if not paper or not (folder / "table1.csv").is_file():
        return ""
    from markdown_it import MarkdownIt

    text = audit.report(paper, folder).partition("\n")[2].replace("\n## ", "\n### ")
    return MarkdownIt().render(text)


def _static(results: Path) -> list[tuple[str, list[str]]]:
    """(name, files from the report's folder) of each table and figure on disk."""
    found: dict[str, list[str]] = {}
    for folder, suffixes in (
        ("tables/paper", TEXTS),
        ("tables/reported", TEXTS),
        ("figures", (".svg", ".pdf", ".png")),
    ):
        for path in sorted((results / folder).glob("*")):
            if path.suffix in suffixes:
                found.setdefault(f"{folder}/{path.stem}", []).append(f"../{path.relative_to(results).as_posix()}")
    return list(found.items())


def provenance(collected: Collected) -> list[tuple[str, str]]:
    """What the numbers were made with: commits, machines, software, protocol."""
    runs, suite = collected.runs, collected.suite
    commits = Counter(
        f"{row['commit'][:12]}{' with changes' if row['dirty'] else ''}" for _, row in runs.iterrows() if row["commit"]
    )
    lines = [("Commits", ", ".join(f"{name} ({count} rows)" for name, count in commits.most_common()))]
    lines.append(("Devices", ", ".join(sorted({text for text in runs["device"] if text}))))
    if len(collected.costs):
        lines.append(("Hardware of costs", " | ".join(sorted({text for text in collected.costs["hardware"] if text}))))
    stack = json.loads(suite.get("reference_stack", {}).get("train") or "{}")
    versions = stack.get("versions") or {}
    lines.append(("Software of most trainings", ", ".join(f"{name} {version}" for name, version in versions.items())))
    others = sorted({text for text in runs["other_stack"] if text})
    lines.append(("Other software", " | ".join(others) or "none"))
    protocol = suite.get("protocol", {})
    lines.append(
        ("Protocol", ", ".join(f"{name} {value}" for name, value in protocol.items() if value not in ({}, "")))
    )
    return [(name, text or "not recorded") for name, text in lines]


def _trainings(pages: Any, collected: Collected, results: Path, out: Path) -> None:
    """A page each; with progress, as a large grid takes a while."""
    template = pages.get_template("training.html.j2")
    total = len(collected.runs.drop_duplicates(["model", "corpus", "variant"]))
    for number, (about, seeds) in enumerate(trainings(collected, results), 1):
        (out / about["page"]).write_text(template.render(about=about, seeds=seeds), encoding="utf-8")
        if number % 500 == 0:
            print(f"{number} of {total} pages of trainings", file=sys.stderr, flush=True)


def _assets(folder: Path) -> None:
    from plotly.offline import get_plotlyjs

    folder.mkdir()
    for name in ("report.css", "report.js"):
        shutil.copyfile(PARTS / name, folder / name)
    (folder / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")


def _script(value: Any) -> str:
    """JSON that may stand, unescaped, inside a script element."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("</", "<\\/")


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _mebibytes(value: float | None) -> str:
    return "" if value is None else f"{value / MIB:,.0f}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evidence.report", description=__doc__.splitlines()[0])
    parser.add_argument("--collected", type=Path, required=True, help="folder that evidence.collect wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the report, beside runs/")
    parser.add_argument("--paper", default="", help="a folder of papers/: judge its claims, audit its numbers")
    arguments = parser.parse_args(argv)
    try:
        index = build(Collected(arguments.collected), arguments.out.parent, arguments.out, arguments.paper)
    except EvidenceError as error:
        print(error, file=sys.stderr)
        return 2
    print(index)
    return 0


if __name__ == "__main__":
    sys.exit(main())
