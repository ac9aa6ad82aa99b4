"""Claims: verdicts from paired differences and costs, and files that are wrong."""

from __future__ import annotations

import types

import numpy as np
import pandas as pd
import pytest

from evidence import claims
from evidence.cells import EvidenceError
from evidence.claims import CONTRADICTED, NOT_RUN, SUPPORTED, UNDECIDED, Judged, judge_claims, read_claims
from evidence.pools import ItemValues, Panel, Pool
from evidence.stats import Spread

RNG = np.random.default_rng(0)
NOISE = RNG.normal(0, 10, (3, 400))


def pool(shift, seeds=3, noise=0.0):
    values = NOISE[:seeds] + shift + noise * RNG.normal(0, 10, (seeds, 400))
    return Pool(
        [],
        Spread(0, 0, seeds),
        None,
        tuple(range(seeds)),
        "",
        400,
        None,
        ItemValues(values, tuple(map(str, range(400)))),
    )


def panel(lower=False, **pools):
    facts = pd.DataFrame({"eval_label": ["GLUE"], "generated": [False], "lower_is_better": [lower]})
    return Panel("c", "glue-sst2", "accuracy", facts, {(name, "m"): made for name, made in pools.items()})


def verdict(claim, *found):
    claim = {"id": "x", "claim": "c", "place": "p", **claim}
    return Judged(claim, claims._score_findings(claim, list(found))).verdict


ABOVE = {"kind": "above", "method": "hybrid", "others": ["lora", "boft"]}
WITHIN = {"kind": "within", "method": "hybrid", "others": ["full"], "margin": 2.0}


def test_above_means_above_each():
    assert verdict(ABOVE, panel(hybrid=pool(5), lora=pool(0, noise=0.1), boft=pool(1, noise=0.1))) == SUPPORTED
    assert verdict(ABOVE, panel(hybrid=pool(0), lora=pool(5, noise=0.1), boft=pool(-9, noise=0.1))) == CONTRADICTED
    assert verdict(ABOVE, panel(hybrid=pool(0.1), lora=pool(0, noise=1), boft=pool(-9, noise=0.1))) == UNDECIDED
    assert verdict({**ABOVE, "margin": 6}, panel(hybrid=pool(5), lora=pool(0, noise=0.1), boft=pool(0))) == CONTRADICTED
    assert verdict(ABOVE, panel(hybrid=pool(1))) == NOT_RUN


def test_lower_scores_are_better_where_the_metric_says_so():
    found = panel(lower=True, hybrid=pool(-5), lora=pool(0, noise=0.1), boft=pool(0, noise=0.1))
    assert verdict(ABOVE, found) == SUPPORTED


def test_within_a_margin():
    assert verdict(WITHIN, panel(hybrid=pool(-1), full=pool(0, noise=0.1))) == SUPPORTED
    assert verdict(WITHIN, panel(hybrid=pool(-4), full=pool(0, noise=0.1))) == CONTRADICTED
    assert verdict(WITHIN, panel(hybrid=pool(-2), full=pool(0, noise=1))) == UNDECIDED


def test_two_seeds_decide_nothing_and_evals_may_be_named():
    two = panel(hybrid=pool(5, 2), lora=pool(0, 2, 0.1), boft=pool(0, 2, 0.1))
    assert verdict(ABOVE, two) == UNDECIDED
    assert verdict({**ABOVE, "evals": ["gsm8k"]}, two) == NOT_RUN
    assert "items only" in claims._score_findings({"id": "x", **ABOVE}, [two])[0].text


def test_the_plain_variant_stands_for_its_method_and_seeds_that_would_decide_are_told():
    found = panel(**{"hybrid": pool(0.3), "hybrid-sum": pool(9), "lora-r16": pool(0, noise=1), "boft": pool(-9)})
    texts = [finding.text for finding in claims._score_findings({"id": "x", **ABOVE}, [found])]
    assert len(texts) == 2 and "seeds of 400 items would decide" in texts[0] and "+9" in texts[1]


def test_costs_are_ratios_on_each_model():
    rows = {"model": ["m"] * 3, "corpus": ["c"] * 3, "variant": ["full", "hybrid", "lora"], "status": ["ok"] * 3}
    costs = pd.DataFrame({**rows, "step_seconds_median": [2.0, 1.0, np.nan], "memory_peak_bytes": [10, 6, 5]})
    collected = types.SimpleNamespace(costs=costs)

    def found(**claim):
        base = {"id": "x", "claim": "c", "place": "p", "kind": "cost", "method": "hybrid", "others": ["full", "lora"]}
        return [f.verdict for f in claims._cost_findings({**base, **claim}, collected)]

    assert found(of="time", ratio=0.5) == [SUPPORTED] and found(of="time", ratio=0.4) == [CONTRADICTED]
    assert found(of="memory", ratio=0.6) == [SUPPORTED, CONTRADICTED]


@pytest.mark.parametrize("paper", ["hybrid", "smt", "lorsum", "dpi-glrp"])
def test_the_papers_claims_are_whole(paper):
    found = read_claims(claims.ROOT / "papers" / paper / "claims.yaml")
    assert all(claim["claim"] and claim["place"] for claim in found)


def test_there_are_enough_claims():
    files = (claims.ROOT / "papers").glob("*/claims.yaml")
    assert sum(len(read_claims(path)) for path in files) >= 25


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {id: a, claim: c, place: p, kind: over, method: m, others: [x]}", "claim a: kind is one of"),
        ("- {id: a, claim: c, place: p, kind: above, method: m}", "claim a: .*missing: others"),
        ("- {id: a, claim: c, place: p, kind: none, why: w, colour: red}", "claim a: .*unknown: colour"),
        (
            "- {id: a, claim: c, place: p, kind: none, why: w}\n- {id: a, claim: c, place: p, kind: none, why: w}",
            "its id is taken",
        ),
    ],
)
def test_a_wrong_claim_is_named(text, message, tmp_path):
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises(EvidenceError, match=message):
        read_claims(tmp_path / "claims.yaml")


def test_the_page_says_whose_protocol_it_is(monkeypatch):
    monkeypatch.setattr(claims, "panels", lambda collected, reference: [panel(hybrid=pool(5), lora=pool(0, noise=0.1))])
    claim = {
        "id": "x",
        "claim": "Hybrid wins",
        "place": "abstract",
        "kind": "above",
        "method": "hybrid",
        "others": ["lora"],
    }
    judged = judge_claims([claim, {**claim, "id": "y", "kind": "none", "why": "no data"}], types.SimpleNamespace())
    own, other = (claims.page("hybrid", judged, {"suite": name}) for name in ("hybrid", "quick"))
    assert "| Hybrid wins | abstract | supported | 1 supported |" in own and "protocol differs" not in own.lower()
    assert "supported (protocol differs)" in other and "Protocol differs: this is not the paper's own" in other
    assert "| not run | no data |" in own


def test_errors_are_told(capsys, tmp_path):
    assert claims.main(["nothing", "--collected", str(tmp_path)]) == 2 and "no such paper" in capsys.readouterr().err
    assert (
        claims.main(["smt", "--collected", str(tmp_path)]) == 2
        and "nothing collected here yet" in capsys.readouterr().err
    )
