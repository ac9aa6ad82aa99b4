"""Does a paper's claim hold? ``python -m evidence.claims hybrid --collected results/hybrid/collected``.

``papers/<paper>/claims.yaml`` lists claims: a paraphrase, where it stands, and the comparison that would support it. A method
is a family (its plain variant is meant, at the rate that a search chose) or ``{method: lorsum, metric: shampoo}``, the first
variant with these values.

    above       the method's score is above each other method's by more than ``margin``
    below       it is below each other's
    within      it is no more than ``margin`` below
    equal       it is within ``margin`` on either side (``evidence.equivalence``)
    plateau     its score rises with its size, and faster than each other's
    cost        a ratio of costs (``of``: time, memory or start) to the other method's is at most ``ratio``; with ``best``, the
                smallest of all is ("up to")
    sizes       such ``ratios`` hold on every model, of two or more
    iterations  a refresh takes fewer iterations than each other's
    shift, early, steady, norms    what happens during training (``evidence.claim_curves``)
    none        nothing here decides it; ``why`` says so

A comparison is supported or contradicted where its interval lies on one side, else undecided, with the seeds or items that
it would take at least, if the difference stayed what it is; fewer than three seeds decide nothing. A claim is contradicted
where one of its comparisons is, and supported where all that it needs are made and are supported; its intervals hold together
with 95 % confidence. Another suite than the paper's own says "protocol differs" beside the verdict.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from evidence import checked_yaml as checked
from evidence import known_names
from evidence.cells import EvidenceError
from evidence.claim_costs import COSTS, cost_findings, iteration_findings, size_findings
from evidence.claim_curves import KINDS as CURVE_KINDS
from evidence.claim_curves import curve_findings
from evidence.claim_scores import plateau_findings, score_findings
from evidence.collected import Collected
from evidence.learning_rates import not_chosen
from evidence.pools import Panel, panels
from evidence.score_notes import left_out
from evidence.score_table import names_of
from evidence.verdicts import CONTRADICTED, SUPPORTED, UNDECIDED, Finding, Judged, fields_of

ROOT = Path(__file__).resolve().parent.parent
COMMON = {"id", "claim", "place", "kind"}
PAIR = {"method", "others"}
KINDS: dict[str, tuple[set[str], set[str]]] = {  # fields that a kind needs, and those that it may have
    "above": (PAIR, {"margin", "evals"}),
    "below": (PAIR, {"margin", "evals"}),
    "within": (PAIR, {"margin", "evals"}),
    "equal": (PAIR | {"margin"}, {"evals"}),
    "plateau": (PAIR, set()),
    "cost": (PAIR | {"of", "ratio"}, {"best"}),
    "sizes": (PAIR | {"ratios"}, set()),
    "iterations": (PAIR, set()),
    "shift": ({"method"}, set()),
    "early": (PAIR, {"share"}),
    "steady": (PAIR, set()),
    "norms": (PAIR | {"start", "epoch"}, set()),
    "none": ({"why"}, set()),
}


def _method(value: Any) -> str:
    """A family's name, or a mapping with a method's and hyper-parameters."""
    named = value.get("method") if isinstance(value, dict) else value
    if not isinstance(named, str) or not named:
        return checked.unlike("a method's name, or a mapping with method and hyper-parameters", value)
    return known_names.method(named) if isinstance(value, dict) else known_names.family(named)


CHECKS: dict[str, checked.Check] = {  # of a field's value; a field that is not here may hold anything
    **dict.fromkeys(("id", "claim", "place", "kind", "why"), checked.text),
    "method": _method,
    "others": checked.list_of(_method),
    "evals": checked.list_of(known_names.eval_start),
    "margin": checked.not_negative,
    "of": checked.one_of(COSTS),
    "ratio": checked.positive,
    "best": checked.boolean,
    "ratios": checked.mapping_of(checked.one_of(COSTS), checked.positive),
    "share": checked.share,
    "start": checked.positive,
    "epoch": checked.count,
}
STRICTER: dict[str, dict[str, checked.Check]] = {
    "equal": {"margin": checked.positive},  # nothing is equal to within nothing
    # a whole family, of all its sizes
    "plateau": {"method": known_names.family, "others": checked.list_of(known_names.family)},
}


def read_claims(path: Path) -> list[dict]:
    """Checked claims. Raises EvidenceError naming the claim, the field and what is expected there."""
    return checked.read_entries(path, "claim", _wrong)


def _wrong(claim: dict) -> str:
    """What is wrong with a claim; empty where nothing is."""
    kind = claim.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        return f"kind is one of {', '.join(KINDS)}, not {kind!r}"
    checks = {**CHECKS, **STRICTER.get(kind, {})}
    needed, optional = (
        {name: checks.get(name, lambda _: "") for name in sorted(names)}
        for names in (COMMON | KINDS[kind][0], KINDS[kind][1])
    )
    return checked.fields(needed, optional)(claim)


def judge_claims(claims: list[dict], collected: Collected, found: list[Panel] | None = None) -> list[Judged]:
    """Each claim against the evidence of a suite; ``found``: its headline panels, where they are made already."""
    found = panels(collected, reference=False) if found is None else found
    aside = not_chosen(collected.runs)
    found = [panel.without(aside) for panel in found]
    fields = fields_of(collected.runs)
    return [Judged(claim, _findings(claim, collected, found, fields)) for claim in claims]


def _findings(claim: dict, collected: Collected, found: list[Panel], fields: dict) -> list[Finding]:
    kind = claim["kind"]
    if kind in ("above", "below", "within", "equal"):
        return score_findings(claim, found, fields)
    if kind == "plateau":
        return plateau_findings(claim, found, collected.runs)
    if kind in CURVE_KINDS:
        return curve_findings(claim, collected, fields)
    costs = {"cost": cost_findings, "sizes": size_findings, "iterations": iteration_findings}
    return costs[kind](claim, collected, fields) if kind in costs else []


# --------------------------------------------------------------------------- the page


def page(paper: str, judged: list[Judged], suite: dict, missing: list[str]) -> str:
    """Markdown: a row a claim, and under the table every comparison. ``missing``: runs that enter none of them."""
    own = suite["suite"] == paper
    lines = [f"# Claims of `{paper}` against suite `{suite['suite']}`", ""]
    if not own:
        lines += [
            f"Protocol differs: this is not the paper's own (`papers/{paper}/suite.yaml`), so no verdict settles its claim.",
            "",
        ]
    lines += ["| claim | where | verdict | comparisons |", "|---|---|---|---|"]
    for each in judged:
        verdict = each.verdict if each.settles(own) else f"{each.verdict} (protocol differs)"
        counts = {v: sum(f.verdict == v for f in each.findings) for v in (SUPPORTED, CONTRADICTED, UNDECIDED)}
        shown = ", ".join(f"{count} {v}" for v, count in counts.items() if count) or each.claim.get(
            "why", "nothing to compare"
        )
        lines.append(f"| {each.claim['claim']} | {each.claim['place']} | {verdict} | {shown} |")
    for each in judged:
        if each.findings:
            lines += ["", f"## {each.claim['claim']}", "", *(f"- {f.verdict}: {f.text}" for f in each.findings)]
    if missing:
        lines += ["", "## Runs that enter no comparison", "", *(f"- {line}" for line in missing)]
    return "\n".join(lines) + "\n"


def _without_cost(collected: Collected) -> list[str]:
    """Costs that failed, are missing or may not be compared."""
    lines = []
    for row in collected.costs.to_dict("records"):
        why = row["status"] if row["status"] != "ok" else "stale" if row["stale"] else ""
        why = why or (f"other software ({row['other_stack']})" if row["other_stack"] else "")
        if why:
            because = f" ({row['reason']})" if row["reason"] else ""
            where = f"{row['model_label']}, {row['corpus_label']}, {row['variant_label']}"
            lines.append(f"Left out: cost of {where}: {why}{because}.")
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evidence.claims", description=__doc__.splitlines()[0])
    parser.add_argument("paper", help="a folder of papers/")
    parser.add_argument("--collected", type=Path, required=True, help="folder that evidence.collect wrote")
    parser.add_argument("--out", type=Path, help="write the page there, too")
    arguments = parser.parse_args(argv)
    path = ROOT / "papers" / arguments.paper / "claims.yaml"
    try:
        if not path.is_file():
            raise EvidenceError(f"{path} does not exist: no such paper, or none of its claims is written down")
        collected = Collected(arguments.collected)
        claims, found = read_claims(path), panels(collected, reference=False)
        missing = left_out(found, names_of(collected)) + _without_cost(collected)
        text = page(arguments.paper, judge_claims(claims, collected, found), collected.suite, missing)
    except EvidenceError as error:
        print(error, file=sys.stderr)
        return 2
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
