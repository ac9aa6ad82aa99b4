"""Does a paper's claim hold? ``python -m evidence.claims hybrid --collected results/hybrid/collected``.

``papers/<paper>/claims.yaml`` lists claims: a paraphrase, where it stands, and the comparison that would support it.

    above    the method's score is above each other method's by more than ``margin``
    within   it is no more than ``margin`` below
    cost     a ratio of costs (``of``: time, memory or start) to the other method's is at most ``ratio``
    none     nothing here decides it; ``why`` says so

A comparison of scores is ``evidence.paired``'s: supported or contradicted where its interval lies on one side, else
undecided, with the seeds that it would take at least, if the difference stayed what it is. A claim is contradicted where
one of its comparisons is, and supported where all are; its intervals hold together with 95 % confidence. Another suite
than the paper's own says "protocol differs" beside the verdict.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import yaml

from evidence.cells import EvidenceError
from evidence.collected import Collected
from evidence.names import family_of
from evidence.paired import CONFIDENCE, Difference, paired_difference
from evidence.pools import Panel, on_shared_seeds, panels

ROOT = Path(__file__).resolve().parent.parent
SUPPORTED, CONTRADICTED, UNDECIDED, NOT_RUN = "supported", "contradicted", "undecided", "not run"
KINDS = ("above", "within", "cost", "none")
FIELDS = {"id", "claim", "place", "kind", "method", "others", "evals", "margin", "of", "ratio", "why"}
COSTS = {"time": "step_seconds_median", "memory": "memory_peak_bytes", "start": "prepare_seconds"}


@dataclass(frozen=True)
class Finding:
    """One comparison: its verdict and the numbers behind it."""

    verdict: str
    text: str


@dataclass
class Judged:
    """A claim with all its findings."""

    claim: dict[str, Any]
    findings: list[Finding] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        found = [finding.verdict for finding in self.findings]
        if not found:
            return NOT_RUN
        if CONTRADICTED in found:
            return CONTRADICTED
        return SUPPORTED if set(found) == {SUPPORTED} else UNDECIDED


def read_claims(path: Path) -> list[dict]:
    """Checked claims. Raises EvidenceError naming the claim and what is wrong with it."""
    claims = yaml.safe_load(path.read_text(encoding="utf-8"))
    seen = set()
    for number, claim in enumerate(claims, 1):
        name = claim.get("id", f"number {number}")
        unknown, kind = set(claim) - FIELDS, claim.get("kind")
        wanted = {"id", "claim", "place"} | {"none": {"why"}, "cost": {"method", "others", "of", "ratio"}}.get(
            kind, {"method", "others"}
        )
        if kind not in KINDS or unknown or wanted - set(claim) or name in seen:
            raise EvidenceError(
                f"{path}: claim {name}: kind is one of {', '.join(KINDS)}; missing: {', '.join(sorted(wanted - set(claim)))}; "
                f"unknown: {', '.join(sorted(unknown))}" + ("; its id is taken" if name in seen else "")
            )
        seen.add(name)
    return claims


def judge_claims(claims: list[dict], collected: Collected) -> list[Judged]:
    """Each claim against the evidence of a suite."""
    found = panels(collected, reference=False)
    judged = []
    for claim in claims:
        if claim["kind"] == "cost":
            findings = list(_cost_findings(claim, collected))
        else:
            findings = _score_findings(claim, found) if claim["kind"] != "none" else []
        judged.append(Judged(claim, findings))
    return judged


# --------------------------------------------------------------------------- scores


def _score_findings(claim: dict, found: list[Panel]) -> list[Finding]:
    """Every comparison of the claim; their intervals hold together (Bonferroni), as one of them may decide it."""
    pairs = list(_pairs(claim, found))
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(pairs))
    return [_finding(claim, *about, paired_difference(*arrays, confidence), confidence) for *about, arrays in pairs]


def _pairs(claim: dict, found: list[Panel]) -> Iterator[tuple]:
    """(panel, model, other method, (its values, the other's) on shared seeds) of each comparison that can be made."""
    for panel in found:
        if not any(panel.eval.startswith(name) for name in claim.get("evals", [""])):
            continue
        for model in dict.fromkeys(model for _, model in panel.pools):
            own = _variant(panel, model, claim["method"])
            for other in claim["others"]:
                beside = _variant(panel, model, other)
                arrays = own and beside and on_shared_seeds(panel.pools[own, model], panel.pools[beside, model])
                if arrays:
                    yield panel, model, other, arrays


def _variant(panel: Panel, model: str, family: str) -> str | None:
    """The suite's first variant of that family on this model: the plain one, before its ablations."""
    return next((v for v, m in panel.pools if m == model and family_of(v) == family), None)


def _finding(claim: dict, panel: Panel, model: str, other: str, d: Difference, confidence: float) -> Finding:
    sign = -1 if panel.first("lower_is_better", False) else 1
    value, (low, high) = sign * d.value, sorted((sign * d.low, sign * d.high))
    bar = claim.get("margin", 0.0) * (1 if claim["kind"] == "above" else -1)
    verdict = SUPPORTED if low > bar else CONTRADICTED if high < bar else UNDECIDED
    text = f"{panel.label}, {model}: {value:+.2f} [{low:+.2f}, {high:+.2f}] against {other}"
    if d.kind == "items only":
        text += ", items only"
        verdict = UNDECIDED  # another seed might have it otherwise
    if verdict == UNDECIDED and d.error and value != bar:
        text += f"; at least {seeds_to_decide(d, value - bar, confidence)} seeds of {d.items} items would decide"
    return Finding(verdict, text)


def seeds_to_decide(d: Difference, distance: float, confidence: float) -> int:
    """Seeds at which an interval whose error shrinks with the root of their number excludes the bar."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    return max(d.seeds + 1, math.ceil(d.seeds * (z * d.error / distance) ** 2))


# --------------------------------------------------------------------------- costs


def _cost_findings(claim: dict, collected: Collected) -> Iterator[Finding]:
    """Ratios of medians; the machine had nothing else to do, and there is no interval over machines."""
    column = COSTS[claim["of"]]
    costs = collected.costs
    costs = costs[costs["status"] == "ok"] if len(costs) else costs
    for (model, corpus), rows in costs.groupby(["model", "corpus"], sort=False) if len(costs) else []:
        values = {}
        for variant, value in zip(rows["variant"], rows[column], strict=True):
            values.setdefault(family_of(variant), value)
        for other in claim["others"]:
            one, base = values.get(claim["method"]), values.get(other)
            if one is None or not base or one != one or base != base:
                continue
            ratio = one / base
            verdict = SUPPORTED if ratio <= claim["ratio"] else CONTRADICTED
            yield Finding(
                verdict,
                f"{model}, {corpus}: {claim['of']} {ratio:.2f} of {other}'s; claimed at most {claim['ratio']:g}",
            )


# --------------------------------------------------------------------------- the page


def page(paper: str, judged: list[Judged], suite: dict) -> str:
    """Markdown: a row a claim, and under the table every comparison."""
    own = suite["suite"] == paper
    lines = [f"# Claims of `{paper}` against suite `{suite['suite']}`", ""]
    if not own:
        lines += [
            f"Protocol differs: this is not the paper's own (`papers/{paper}/suite.yaml`), so no verdict settles its claim.",
            "",
        ]
    lines += ["| claim | where | verdict | comparisons |", "|---|---|---|---|"]
    for each in judged:
        verdict = each.verdict if own or each.verdict == NOT_RUN else f"{each.verdict} (protocol differs)"
        counts = {v: sum(f.verdict == v for f in each.findings) for v in (SUPPORTED, CONTRADICTED, UNDECIDED)}
        shown = ", ".join(f"{count} {v}" for v, count in counts.items() if count) or each.claim.get(
            "why", "nothing to compare"
        )
        lines.append(f"| {each.claim['claim']} | {each.claim['place']} | {verdict} | {shown} |")
    for each in judged:
        if each.findings:
            lines += ["", f"## {each.claim['claim']}", "", *(f"- {f.verdict}: {f.text}" for f in each.findings)]
    return "\n".join(lines) + "\n"


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
        text = page(arguments.paper, judge_claims(read_claims(path), collected), collected.suite)
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
