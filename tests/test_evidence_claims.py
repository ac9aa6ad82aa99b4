"""Claims: verdicts from paired differences and costs, and files that are wrong."""

from __future__ import annotations

import dataclasses
import json
import re
import types

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from evidence import claims
from evidence.cells import EvidenceError
from evidence.claim_costs import cost_findings, iteration_findings, size_findings
from evidence.claim_scores import score_findings
from evidence.claims import CONTRADICTED, SUPPORTED, UNDECIDED, Judged, judge_claims, read_claims
from evidence.paired import paired_difference
from evidence.pools import ItemValues, Panel, Pool
from evidence.stats import Spread
from evidence.verdicts import NOT_RUN, needed, variant_of

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
    return Judged(claim, score_findings(claim, list(found), {})).verdict


ABOVE = {"kind": "above", "method": "hybrid", "others": ["lora", "boft"]}
WITHIN = {"kind": "within", "method": "hybrid", "others": ["full"], "margin": 2.0}


def test_above_means_above_each():
    assert verdict(ABOVE, panel(hybrid=pool(5), lora=pool(0, noise=0.1), boft=pool(1, noise=0.1))) == SUPPORTED
    assert verdict(ABOVE, panel(hybrid=pool(0), lora=pool(5, noise=0.1), boft=pool(-9, noise=0.1))) == CONTRADICTED
    assert verdict(ABOVE, panel(hybrid=pool(0.1), lora=pool(0, noise=1), boft=pool(-9, noise=0.1))) == UNDECIDED
    assert verdict({**ABOVE, "margin": 6}, panel(hybrid=pool(5), lora=pool(0, noise=0.1), boft=pool(0))) == CONTRADICTED
    assert verdict(ABOVE, panel(hybrid=pool(1))) == NOT_RUN


def test_what_would_decide_is_items_where_no_number_of_seeds_can():
    """One true difference spread over 64 items: more seeds leave the items' own part of the error as it is."""
    draw = np.random.default_rng(3)
    item = draw.normal(1.0, 10.0, 64)
    texts = []
    for seeds in (3, 60):
        d = paired_difference(item + draw.normal(0, 2, (seeds, 64)), np.zeros((seeds, 64)))
        assert d.items_own == pytest.approx(item.var(ddof=1) / 64, rel=0.1)
        texts.append(needed(d, d.value, 0.95))
    assert all("no number of seeds of 64 items would decide" in text for text in texts)
    items = [int(re.search(r"fewer than ([\d,]+) items", text)[1].replace(",", "")) for text in texts]
    assert items[0] == pytest.approx(items[1], rel=0.6) and min(items) > 64
    by_seed = draw.normal(1.0, 2.0, (3, 1)) + draw.normal(0, 0.1, (3, 64))  # all of the spread is the seeds'
    d = paired_difference(by_seed, np.zeros((3, 64)))
    assert re.fullmatch(r"; at least \d+ seeds of 64 items would decide", needed(d, 1.0, 0.95))
    assert needed(paired_difference(by_seed[:2], np.zeros((2, 64))), 1.0, 0.95) == "; 3 seeds or more would be needed"


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
    assert "items only" in score_findings({"id": "x", **ABOVE}, [two], {})[0].text


def test_the_plain_variant_stands_for_its_method_and_seeds_that_would_decide_are_told():
    found = panel(**{"hybrid": pool(0.3), "hybrid-sum": pool(9), "lora-r16": pool(0, noise=1), "boft": pool(-9)})
    texts = [finding.text for finding in score_findings({"id": "x", **ABOVE}, [found], {})]
    assert len(texts) == 2 and "seeds of 400 items would decide" in texts[0] and "+9" in texts[1]


def costs(steps, memory=(10, 6, 5), models=("m",)):
    """Full, Hybrid and LoRA with these steps on each model."""
    rows = [
        {"model": model, "corpus": "c", "variant": variant, "status": "ok", "stale": "", "other_stack": "",
         "step_seconds_median": float(np.median(times)), "step_seconds_all": json.dumps(times),
         "memory_peak_bytes": size, "prepare_seconds": 0.0}
        for model in models
        for variant, times, size in zip(("full", "hybrid", "lora"), steps, memory, strict=True)
    ]  # fmt: skip
    return types.SimpleNamespace(costs=pd.DataFrame(rows))


STEPS = ([2.0, 4.0, 2.2, 8.0], [1.0, 2.1, 1.1, 4.1], [0.9, 1.9, 1.0, 3.5])
COST = {"id": "x", "claim": "c", "place": "p", "kind": "cost", "method": "hybrid", "others": ["full"]}


def test_costs_are_ratios_step_by_step():
    logs = np.log(np.array(STEPS[1]) / np.array(STEPS[0]))
    low, high = np.exp(scipy_stats.ttest_1samp(logs, 0).confidence_interval(0.95))
    (found,) = cost_findings({**COST, "of": "time", "ratio": 0.6}, costs(STEPS), {})
    assert found.verdict == SUPPORTED and f"{np.exp(logs.mean()):.2f} [{low:.2f}, {high:.2f}]" in found.text
    assert "4 steps of the same batches" in found.text
    assert cost_findings({**COST, "of": "time", "ratio": 0.4}, costs(STEPS), {})[0].verdict == CONTRADICTED
    (near,) = cost_findings({**COST, "of": "time", "ratio": 0.51}, costs(STEPS), {})
    assert near.verdict == UNDECIDED and near.text.endswith("more timed steps would decide")
    (uneven,) = cost_findings({**COST, "of": "time", "ratio": 0.9}, costs((STEPS[0][:3], *STEPS[1:])), {})
    assert uneven.verdict == UNDECIDED and "not paired" in uneven.text


def test_a_step_bears_its_share_of_the_refreshes():
    refreshing = costs(STEPS)
    refreshing.costs["refresh_seconds"] = [np.nan, 60.0, np.nan]  # Hybrid's alone
    refreshing.costs["refresh_every"] = [np.nan, 20, np.nan]
    ratio = np.exp(np.log((np.array(STEPS[1]) + 3) / np.array(STEPS[0])).mean())
    (found,) = cost_findings({**COST, "of": "time", "ratio": 0.6}, refreshing, {})
    assert found.verdict == CONTRADICTED
    assert f"time {ratio:.2f} " in found.text and "share of the refreshes" in found.text


def test_memory_is_counted_and_what_is_stale_enters_no_ratio():
    both = {**COST, "others": ["full", "lora"], "of": "memory", "ratio": 0.6}
    assert [f.verdict for f in cost_findings(both, costs(STEPS), {})] == [SUPPORTED, CONTRADICTED]
    stale = costs(STEPS)
    stale.costs.loc[stale.costs["variant"] == "full", "stale"] = "cost"
    found = cost_findings(both, stale, {})
    assert [f.verdict for f in found] == [CONTRADICTED, UNDECIDED]
    assert found[1].text == "full: nothing that can be compared on m, c"


def test_up_to_is_a_claim_about_the_smallest_ratio():
    claim = {**COST, "others": ["full", "lora"], "of": "memory", "best": True}  # 0.6 of full's, 1.2 of LoRA's
    one, none = (cost_findings({**claim, "ratio": ratio}, costs(STEPS), {}) for ratio in (0.6, 0.5))
    assert [f.verdict for f in one] == [SUPPORTED] and [f.verdict for f in none] == [CONTRADICTED]
    assert "memory 0.60 of full's" in one[0].text and "memory 1.20 of lora's" in one[0].text


def test_memory_is_that_of_a_whole_training_and_says_what_a_warm_up_costs():
    warming = costs(STEPS, memory=(10, 10, 5))
    warming.costs["memory_step_peak_bytes"] = [10, 4, 5]
    (found,) = cost_findings({**COST, "of": "memory", "ratio": 0.6}, warming, {})
    assert found.verdict == CONTRADICTED and "0.40 in a step of its own" in found.text


def test_savings_at_all_sizes_need_two_models():
    claim = {**COST, "kind": "sizes", "ratios": {"time": 0.6, "memory": 0.6}}
    one, two = (size_findings(claim, costs(STEPS, models=models), {}) for models in (("m",), ("m", "n")))
    assert [f.verdict for f in one] == [UNDECIDED] * 2 and all("a second would be needed" in f.text for f in one)
    assert [f.verdict for f in two] == [SUPPORTED] * 2 and "m, c: " in two[0].text and "n, c: " in two[0].text
    wrong = size_findings({**claim, "ratios": {"memory": 0.5}}, costs(STEPS, models=("m", "n")), {})
    assert [f.verdict for f in wrong] == [CONTRADICTED]


def test_iterations_are_those_that_trainings_count():
    def rows(plain, dynamic):
        return pd.DataFrame(
            {"model": "m", "corpus": "c", "variant": variant, "seed": seed, "status": "ok", "stale": "", "other_stack": "",
             "facts": json.dumps({"iterations": count})}
            for variant, counts in (("galore-power", plain), ("dpi-glrp", dynamic), ("full", [0, 0, 0]))
            for seed, count in enumerate(counts)
        )  # fmt: skip

    claim = {"method": "dpi-glrp", "others": [{"method": "galore", "builder": "power"}]}
    fields = {"galore-power": {"method": "galore", "builder": "power"}}

    def judged(plain, dynamic):
        (finding,) = iteration_findings(claim, types.SimpleNamespace(runs=rows(plain, dynamic)), fields)
        return finding

    fewer = judged([300, 310, 305], [200, 205, 210])
    assert fewer.verdict == SUPPORTED and "galore (builder power): 0.67 [" in fewer.text
    assert judged([200, 205, 210], [300, 310, 305]).verdict == CONTRADICTED
    assert judged([300, 310, 305], [290, 330, 301]).verdict == UNDECIDED
    two = judged([300, 310], [200, 205])
    assert two.verdict == UNDECIDED and two.text.endswith("2 seeds; 3 seeds or more would be needed")


def test_variants_of_one_method_are_told_by_hyper_parameters():
    fields = {
        "lorsum-k1": {"method": "lorsum", "metric": "kfac", "targets": ["q", "v"], "pairs": 1},
        "lorsum-shampoo": {"method": "lorsum", "metric": "shampoo", "targets": ["q", "v"], "pairs": 1},
    }
    assert (
        variant_of(fields, {"method": "lorsum", "metric": "shampoo", "targets": ["q", "v"]}, fields) == "lorsum-shampoo"
    )
    assert variant_of(fields, {"method": "lorsum", "metric": "none"}, fields) is None
    assert variant_of(fields, "lorsum", fields) == "lorsum-k1" and variant_of(["lora-r8"], "lorsum", fields) is None
    found = panel(**{"lorsum-k1": pool(5), "lorsum-shampoo": pool(0, noise=0.1)})
    claim = {"id": "x", "kind": "above", "method": {"method": "lorsum", "metric": "kfac"},
             "others": [{"method": "lorsum", "metric": "shampoo"}]}  # fmt: skip
    (finding,) = score_findings(claim, [found], fields)
    assert finding.verdict == SUPPORTED and "against lorsum (metric shampoo)" in finding.text


def test_what_lies_at_the_floor_decides_nothing():
    found = panel(hybrid=pool(0), lora=pool(0), boft=pool(0))
    for made in found.pools.values():
        made.at_floor = True
    findings = score_findings({"id": "x", **WITHIN, "others": ["lora"]}, [found], {})
    assert [f.verdict for f in findings] == [UNDECIDED] and "within noise of the floor" in findings[0].text


@pytest.mark.parametrize("kind", ["within", "above", "equal"])
def test_methods_that_answer_every_item_alike_decide_nothing(kind):
    claim = {"kind": kind, "id": "x", "method": "hybrid", "others": ["full"], "margin": 2.0}
    (finding,) = score_findings(claim, [panel(hybrid=pool(0), full=pool(0))], {})
    assert finding.verdict == UNDECIDED and "every item gives the same difference" in finding.text
    assert "nan" not in finding.text


def test_equal_means_within_the_margin_on_both_sides():
    claim = {"kind": "equal", "method": "hybrid", "others": ["full"], "margin": 2.0}
    assert verdict(claim, panel(hybrid=pool(0.5), full=pool(0, noise=0.3))) == SUPPORTED
    assert verdict(claim, panel(hybrid=pool(9), full=pool(0, noise=0.3))) == CONTRADICTED
    assert verdict(claim, panel(hybrid=pool(-9), full=pool(0, noise=0.3))) == CONTRADICTED
    near = panel(hybrid=pool(2.1), full=pool(0, noise=1))
    (finding,) = score_findings({"id": "x", **claim}, [near], {})
    assert finding.verdict == UNDECIDED and "seeds of 400 items would decide" in finding.text
    assert verdict(claim, panel(hybrid=pool(0, 2), full=pool(0, 2, 0.1))) == UNDECIDED
    three = panel(hybrid=pool(0), full=pool(0, noise=0.3), lora=pool(0, noise=0.3))
    several = score_findings({"id": "x", **claim, "others": ["full", "lora"]}, [three], {})
    assert all("95 % [" in finding.text for finding in several)  # two comparisons: each at 0.025


def test_two_seeds_decide_nothing_either():
    two = panel(hybrid=pool(0, 2), full=pool(0, 2, noise=0.01))
    (finding,) = score_findings({"id": "x", **WITHIN}, [two], {})
    assert finding.verdict == UNDECIDED and "items only" in finding.text


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
            "- {id: a, claim: c, place: p, kind: cost, method: lora, others: [full], of: money, ratio: 1}",
            "of: .*not 'money'",
        ),
        ("- {id: a, claim: c, place: p, kind: norms, method: m, others: [x], start: 5}", "missing: epoch"),
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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "hybird"}, "there is no method 'hybird'. Did you mean 'hybrid'"),
        ({"others": ["lora", "nosuch"]}, "there is no method 'nosuch'"),
        ({"others": [{"method": "pissa"}]}, "there is no method 'pissa'"),  # a label: PEFT's bridge is the method
        ({"evals": ["glue-ssst2"]}, "there is no eval 'glue-ssst2'. Did you mean 'glue-sst2'"),
    ],
)
def test_a_claim_of_what_is_nowhere_in_the_project_is_refused(fields, message, tmp_path):
    claim = {"id": "a", "claim": "c", "place": "p", "kind": "above", "method": "hybrid", "others": ["pissa", "lora"]}
    path = tmp_path / "claims.yaml"
    path.write_text(json.dumps([{**claim, "evals": ["glue", "gsm8k", "glue-mnli"]}]))
    assert read_claims(path)
    path.write_text(json.dumps([{**claim, **fields}]))
    with pytest.raises(EvidenceError, match=f"claim a: .*{message}"):
        read_claims(path)


def test_the_page_says_whose_protocol_it_is_and_what_is_left_out():
    claim = {
        "id": "x",
        "claim": "Hybrid wins",
        "place": "abstract",
        "kind": "above",
        "method": "hybrid",
        "others": ["lora"],
    }
    collected = types.SimpleNamespace(runs=pd.DataFrame(columns=["variant", "method", "hyperparameters"]))
    found = [panel(hybrid=pool(5), lora=pool(0, noise=0.1))]
    judged = judge_claims([claim, {**claim, "id": "y", "kind": "none", "why": "no data"}], collected, found)
    own, other = (claims.page("hybrid", judged, {"suite": name}, ["Left out: a"]) for name in ("hybrid", "quick"))
    assert "| Hybrid wins | abstract | supported | 1 supported |" in own and "protocol differs" not in own.lower()
    assert "supported (protocol differs)" in other and "Protocol differs: this is not the paper's own" in other
    assert "| not run | no data |" in own and "## Runs that enter no comparison\n\n- Left out: a" in own


def test_errors_are_told(capsys, tmp_path):
    assert claims.main(["nothing", "--collected", str(tmp_path)]) == 2 and "no such paper" in capsys.readouterr().err
    assert (
        claims.main(["smt", "--collected", str(tmp_path)]) == 2
        and "nothing collected here yet" in capsys.readouterr().err
    )


def test_a_claim_is_supported_only_if_all_that_it_needs_is_compared():
    good = {"hybrid": pool(5), "lora": pool(0, noise=0.1), "boft": pool(1, noise=0.1)}
    failed = Pool([], Spread(np.nan, np.nan, 0), None, (), "", None, None)
    stale = dataclasses.replace(good["boft"], mark="‡")
    for boft in ({}, {"boft": failed}, {"boft": stale}):
        found = score_findings(
            {"id": "x", **ABOVE}, [panel(**{k: v for k, v in good.items() if k != "boft"}, **boft)], {}
        )
        assert [f.verdict for f in found] == [SUPPORTED, UNDECIDED]
        assert found[1].text == "boft: nothing that can be compared on GLUE, m"


def test_below_is_the_worse_of_each_pair_and_shows_the_difference_as_it_is():
    claim = {**ABOVE, "kind": "below"}
    low = panel(hybrid=pool(-5), lora=pool(0, noise=0.1), boft=pool(-1, noise=0.1))
    assert verdict(claim, low) == SUPPORTED and verdict({**claim, "margin": 6}, low) == CONTRADICTED
    assert ": -5." in score_findings({"id": "x", **claim}, [low], {})[0].text
    assert verdict(claim, panel(hybrid=pool(5), lora=pool(0, noise=0.1), boft=pool(9, noise=0.1))) == CONTRADICTED


def test_two_that_lie_at_the_floor_decide_nothing_beside_one_that_does_not():
    found = panel(hybrid=pool(9), lora=pool(0, noise=0.1), boft=pool(20, noise=0.1))
    found.pools["hybrid", "m"].at_floor = found.pools["lora", "m"].at_floor = True
    findings = score_findings({"id": "x", **ABOVE}, [found], {})
    assert [f.verdict for f in findings] == [UNDECIDED, CONTRADICTED] and "both lie within" in findings[0].text


def test_a_ratio_of_steps_has_that_of_whole_trainings_beside_it():
    made = costs(STEPS)
    made.costs["whole_seconds"] = [20.0, 30.0, 20.0]  # full, hybrid, lora
    (found,) = cost_findings({**COST, "of": "time", "ratio": 0.6}, made, {})
    assert "1.50 of the whole training of this suite" in found.text and found.verdict == SUPPORTED
