"""Claims about training curves and about size: golden values by hand, each verdict, and what would decide."""

from __future__ import annotations

import types

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from evidence.claim_curves import curve_findings, fluctuation
from evidence.claim_scores import plateau_findings
from evidence.learning_rates import not_chosen
from evidence.pools import ItemValues, Panel, Pool
from evidence.stats import Spread
from evidence.verdicts import CONTRADICTED, SUPPORTED, UNDECIDED, seeds_to_decide

RNG = np.random.default_rng


def collected(rows, epoch_steps=4.0):
    """``rows``: (variant, seed, step, name, layer, value)."""
    frame = pd.DataFrame(rows, columns=["variant", "seed", "step", "name", "layer", "value"])
    frame = frame.assign(model="m", corpus="c", status="ok", stale="", other_stack="")
    runs = frame.drop_duplicates(["variant", "seed"])[["model", "corpus", "variant", "seed"]].assign(
        epoch_steps=epoch_steps, hyperparameters=""
    )
    return types.SimpleNamespace(
        curves=lambda names: frame[frame["name"].isin(names)],
        runs=runs,
        suite={"variants": list(dict.fromkeys(frame["variant"]))},
    )


def judged(claim, rows, **more):
    return curve_findings(claim, collected(rows, **more), {})


def verdicts(findings):
    return [finding.verdict for finding in findings]


# --------------------------------------------------------------------------- lambda


def lambdas(early, late, seeds=3):
    rng = RNG(0)
    return [
        ("hybrid", seed, step, "lambda", str(layer), early + (late - early) * step / 9 + rng.normal(0, 0.01))
        for seed in range(seeds)
        for step in range(10)
        for layer in range(12)
    ]


def test_low_rank_early_and_orthogonal_late():
    claim = {"kind": "shift", "method": "hybrid"}
    assert verdicts(judged(claim, lambdas(0.8, 0.2))) == [SUPPORTED] * 3
    assert verdicts(judged(claim, lambdas(0.4, 0.2))) == [CONTRADICTED, SUPPORTED, SUPPORTED]
    assert verdicts(judged(claim, lambdas(0.2, 0.8))) == [CONTRADICTED] * 3
    two = judged(claim, lambdas(0.8, 0.2, seeds=2))
    assert verdicts(two) == [UNDECIDED] * 3 and all("3 seeds or more" in finding.text for finding in two)
    assert judged(claim, [("lora", 0, 0, "loss", "", 1.0)]) == []


def test_the_change_is_that_of_the_last_fifth_less_the_first():
    rows = lambdas(0.8, 0.2)
    early = np.mean([row[5] for row in rows if row[2] < 2])
    late = np.mean([row[5] for row in rows if row[2] >= 8])
    texts = [finding.text for finding in judged({"kind": "shift", "method": "hybrid"}, rows)]
    for text, value in zip(texts, (early - 0.5, late - 0.5, late - early), strict=True):
        assert f" {value:+.3f} [" in text and "3 seeds, 12 matrices" in text


# --------------------------------------------------------------------------- losses and norms


def losses(gap, seeds=3, name="loss", every=1):
    rng = RNG(1)
    rows = []
    for seed in range(seeds):
        batch = rng.normal(0, 0.3, 41)  # the same for both: they step through the same rows
        for step in range(0, 41, every):
            fall = 2 * np.exp(-step / 20)
            rows.append(("lora", seed, step, name, "", fall + batch[step]))
            rows.append(("lora-ga", seed, step, name, "", fall + batch[step] + gap + rng.normal(0, 0.02)))
    return rows


EARLY = {"kind": "early", "method": "lora-ga", "others": ["lora"], "share": 0.25}


def test_a_lower_early_loss():
    assert verdicts(judged(EARLY, losses(-0.2))) == [SUPPORTED]
    assert verdicts(judged(EARLY, losses(0.2))) == [CONTRADICTED]
    near = judged(EARLY, losses(0.0))
    assert verdicts(near) == [UNDECIDED] and "seeds would decide" in near[0].text
    two = judged(EARLY, losses(-0.2, seeds=2))
    assert verdicts(two) == [UNDECIDED] and two[0].text.endswith("2 seeds; 3 seeds or more would be needed")


def test_the_early_loss_is_paired_and_has_student_s_interval():
    rows = losses(-0.2)
    gaps = []
    for seed in range(3):
        means = {
            v: np.mean([r[5] for r in rows if r[0] == v and r[1] == seed and r[2] < 10]) for v in ("lora", "lora-ga")
        }
        gaps.append(means["lora-ga"] - means["lora"])
    low, high = scipy_stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
    (finding,) = judged(EARLY, rows)
    assert (
        f"training loss of the first 25%, against lora: {np.mean(gaps):+.3f} [{low:+.3f}, {high:+.3f}], 3 seeds"
        in finding.text
    )


def test_validations_are_used_where_there_are_enough():
    rows = losses(0.3) + losses(-0.3, name="validation_loss", every=2)
    (finding,) = judged(EARLY, rows)
    assert finding.verdict == SUPPORTED and "mean validation loss" in finding.text
    (finding,) = judged(EARLY, losses(0.3) + losses(-0.3, name="validation_loss", every=10))
    assert finding.verdict == CONTRADICTED and "mean training loss" in finding.text


def norms(scale, shake, variant, seeds=3, steps=41, trend=0.0):
    rng = RNG(2)
    return [
        (variant, seed, step, "gradient_norm", "", scale * np.exp(trend * step + rng.normal(0, shake)))
        for seed in range(seeds)
        for step in range(steps)
    ]


def test_steadiness_has_no_scale_and_hardly_a_trend():
    frame = collected(norms(1.0, 0.3, "urnn")).curves(["gradient_norm"])
    plain = fluctuation(frame)
    assert plain[0] == pytest.approx(np.abs(np.diff(np.log(frame[frame["seed"] == 0]["value"]))).mean())
    assert fluctuation(frame.assign(value=50 * frame["value"])) == pytest.approx(plain)
    falling = fluctuation(collected(norms(1.0, 0.3, "urnn", trend=-0.05)).curves(["gradient_norm"]))
    assert falling == pytest.approx(plain, rel=0.05)


def test_steadier_gradients():
    claim = {"kind": "steady", "method": "urnn", "others": ["lora", "full"]}
    found = judged(claim, norms(9.0, 0.1, "urnn") + norms(1.0, 0.5, "lora") + norms(2.0, 0.02, "full"))
    assert verdicts(found) == [SUPPORTED, CONTRADICTED] and "(ours), against lora" in found[0].text
    assert judged(claim, norms(9.0, 0.1, "lora")) == []


def test_norms_that_start_high_and_level_off():
    claim = {"kind": "norms", "method": "hybrid", "others": [], "start": 5, "epoch": 5}
    level = judged(claim, norms(20.0, 0.01, "hybrid"))
    assert (
        verdicts(level) == [SUPPORTED, SUPPORTED]
        and "norm of the first 3 steps 19.98 [19.88, 20.09], 3 seeds" in level[0].text
    )
    assert verdicts(judged(claim, norms(1.0, 0.01, "hybrid", trend=-0.1))) == [CONTRADICTED, CONTRADICTED]
    claim["others"] = ["lora"]
    alone = judged(claim, norms(20.0, 0.01, "hybrid"))
    assert verdicts(alone) == [SUPPORTED, SUPPORTED, UNDECIDED] and alone[2].text.startswith("lora: nothing")
    short = judged(claim, norms(20.0, 0.01, "hybrid") + norms(20.0, 0.01, "lora"), epoch_steps=30.0)
    assert verdicts(short) == [SUPPORTED, SUPPORTED, UNDECIDED]  # one line for both methods
    assert "trains 1.4 epochs; 6 or more would show" in short[2].text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("odd", [0.0, np.nan, np.inf])
def test_norms_without_a_logarithm_are_left_out(odd):
    claim = {"kind": "norms", "method": "hybrid", "others": ["lora"], "start": 5, "epoch": 5}
    harmed = {0: [1], 1: [0, 1, 2], 2: [30]}  # steps by seed: seed 1 has no start
    rows = [(*row[:5], odd) if row[2] in harmed[row[1]] else row for row in norms(20.0, 0.01, "hybrid")]
    start, level, gap = judged(claim, rows + [(*row[:5], odd) for row in norms(20.0, 0.01, "lora")])
    assert "norm of the first 3 steps 19." in start.text and "2 seeds" in start.text and level.verdict == SUPPORTED
    assert gap.text.startswith("lora: nothing")
    ended = [(*row[:5], odd) if 20 <= row[2] < 24 else row for row in norms(20.0, 0.01, "hybrid", steps=28)]
    assert judged({**claim, "others": []}, ended)[1].text.endswith("no norms of epoch 5 and the next")


def test_a_search_without_the_curve_has_no_finding():
    found = collected(norms(9.0, 0.1, "lora-1e-3") + norms(9.0, 0.1, "lora-1e-2"))
    rates = found.runs["variant"].str.removeprefix("lora-").astype(float)
    found.runs = found.runs.assign(
        method="lora", model_label="M", corpus_label="C", status="ok", stale="", other_stack="", parameters_trained=1,
        validation_last=rates, hyperparameters=[f'{{"learning_rate": {rate}}}' for rate in rates],
    )  # fmt: skip
    assert curve_findings({"kind": "shift", "method": "hybrid"}, found, {}) == []


@pytest.mark.filterwarnings("error")
def test_losses_that_are_no_numbers_enter_no_difference():
    rows = [(*row[:5], np.nan) if row[:2] == ("lora", 0) and row[2] == 1 else row for row in losses(-0.2)]
    assert "2 seeds" in curve_findings(EARLY, collected(rows), {})[0].text


def test_failed_and_stale_curves_enter_nothing():
    found = collected(losses(-0.2))
    frame = found.curves(["loss"])
    found.curves = lambda names: frame.assign(stale=np.where(frame["seed"] == 2, "train", ""))
    (finding,) = curve_findings(EARLY, found, {})
    assert "2 seeds" in finding.text and finding.verdict == UNDECIDED


def test_so_many_seeds_would_decide():
    n = seeds_to_decide(3, 1.0, 0.5, 0.95)
    assert 1.96 * 1.0 * np.sqrt(3 / n) <= 0.5 < 1.96 * 1.0 * np.sqrt(3 / (n - 1))
    assert seeds_to_decide(3, 0.1, 5.0, 0.95) == 4


# --------------------------------------------------------------------------- quality against size

SIZES = (8, 16, 32, 64)


def ladder(slopes, seeds=3):
    """A panel and its runs: each method's score moves by its slope with every doubling."""
    rng, pools, rows = RNG(3), {}, []
    shared = rng.normal(50, 20, (seeds, 300))
    for method, slope in slopes.items():
        for place, size in enumerate(SIZES):
            for rate in (0.1, 0.01):
                variant = f"{method}-r{size}-{rate:.0e}"
                gain = slope * place if rate == 0.1 else 60.0  # the other rate has the worse validation loss
                values = shared + gain + rng.normal(0, 2, shared.shape)
                items = ItemValues(values, tuple(map(str, range(300))))
                pools[variant, "m"] = Pool(
                    [], Spread(values.mean(), 0, seeds), None, tuple(range(seeds)), "", 300, None, items
                )
                rows += [
                    {"model": "m", "model_label": "M", "corpus": "c", "corpus_label": "C", "variant": variant, "seed": seed,
                     "method": method, "status": "ok", "stale": "", "other_stack": "",
                     "validation_last": 1.0 + (rate == 0.01), "parameters_trained": 1000 * size,
                     "hyperparameters": f'{{"rank": {size}, "learning_rate": {rate}}}'}
                    for seed in range(seeds)
                ]  # fmt: skip
    facts = pd.DataFrame({"eval_label": ["GLUE"], "generated": [False], "lower_is_better": [False]})
    return Panel("c", "glue-sst2", "accuracy", facts, pools), pd.DataFrame(rows)


def test_a_plateau_is_a_smaller_slope():
    claim = {"kind": "plateau", "method": "smt", "others": ["lora", "dora"]}
    panel, runs = ladder({"smt": 2.0, "lora": 0.0, "dora": 4.0})
    found = plateau_findings(claim, [panel], runs)
    assert verdicts(found) == [SUPPORTED, SUPPORTED, CONTRADICTED]
    best = [panel.pools[f"smt-r{size}-1e-01", "m"].items.values.mean() for size in SIZES]
    assert f"{np.polyfit(np.log2(SIZES), best, 1)[0]:+.2f} [" in found[0].text and "over 4 sizes" in found[0].text
    assert verdicts(plateau_findings(claim, [panel], runs[runs["method"] != "smt"])) == []
    flat, runs = ladder({"smt": 0.0, "lora": 0.0})
    found = plateau_findings(claim, [flat], runs)
    assert verdicts(found) == [UNDECIDED] * 3 and "dora: nothing that can be compared on " in found[2].text


def test_two_sizes_have_no_trend():
    panel, runs = ladder({"smt": 2.0, "lora": 0.0})
    few = runs[runs["parameters_trained"] <= 16000]
    assert plateau_findings({"method": "smt", "others": ["lora"]}, [panel], few) == []


def test_the_rate_that_a_search_chose_stands_for_its_method():
    panel, runs = ladder({"smt": 2.0, "lora": 0.0})
    kept = panel.without(not_chosen(runs)).pools
    assert [*kept] == [(f"{method}-r{size}-1e-01", "m") for method in ("smt", "lora") for size in SIZES]
    failed = runs.assign(status=np.where(runs["hyperparameters"].str.contains("0.1"), "oom", "ok"))
    assert all("1e-02" in variant for variant, _ in panel.without(not_chosen(failed)).pools)
