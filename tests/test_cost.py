"""Stage cost: each kind of step has its own number, and a whole training's time is their sum."""

from __future__ import annotations

import pytest
import torch
import yaml

from harness import cost, data
from harness.suite import load_suite

VARIANTS = {
    "lora": {"method": "lora", "rank": 2},
    "galore": {"method": "galore", "rank": 4, "refresh_every": 7},
    "lora-ga": {"method": "lora-ga", "rank": 2},
    "smt": {"method": "smt", "block_size": 8, "warmup_steps": 9, "density": 0.03},
}
SUITE = {
    "suite": "costs",
    "protocol": {"steps": 30, "batch_size": 4, "micro_batch_size": 4, "max_length": 64, "validation_examples": 4},
    "limits": {"cost_steps": 3},
    "variants": VARIANTS,
    "grid": [{"models": ["tiny-llama"], "corpora": ["generated-labels"], "variants": [*VARIANTS], "seeds": [0]}],
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Records of all variants, each measured as the stage does it."""
    folder = tmp_path_factory.mktemp("costs")
    (folder / "costs.yaml").write_text(yaml.safe_dump(SUITE))
    suite = load_suite(str(folder / "costs.yaml"))
    suite.results = folder / "results"
    torch.set_num_threads(1)
    return {name: cost.run(suite.training("tiny-llama", "generated-labels", name, 0)) for name in VARIANTS}


def test_a_plain_method_has_one_kind_of_step(measured):
    record = measured["lora"]
    assert record["refresh"] is None and record["warmup"] is None
    assert record["whole"] == {"steps": 30, "seconds": record["prepare_seconds"] + 30 * record["seconds"]["median"]}


def test_every_method_is_measured_on_the_same_batches(measured):
    """Also where a warm-up or a refresh moves the trainer's count of steps on."""
    shapes = [record["shapes"] for record in measured.values()]
    lengths = [rows[0][1] for rows in shapes[0]["timed"]]
    assert len(set(lengths)) > 1, "batches that look alike would show nothing"
    assert shapes[1:] == shapes[:-1]
    assert measured["smt"]["warmup"]["shapes"]["followed"] == shapes[0]["followed"]
    tokens = {record["batch_tokens"] for record in measured.values()}
    assert len(tokens) == 1


def test_refreshes_stand_apart_with_their_interval(measured):
    record = measured["galore"]
    refresh = record["refresh"]
    assert refresh["every"] == 7 and refresh["seconds"] > 0 and refresh["first_seconds"] > 0
    assert refresh["basis_age"] == cost.WARM_STEPS + 3
    assert refresh["memory"]["peak"] >= record["memory"]["weights"] and refresh["memory"]["optimizer"] > 0
    refreshes = 5  # at steps 0, 7, 14, 21, 28
    steps = 30 * record["seconds"]["median"] + refreshes * refresh["seconds"]
    assert record["whole"]["seconds"] == pytest.approx(record["prepare_seconds"] + steps)
    # galore's own moments and bases, the timed steps having had no refresh among them
    assert record["seconds"]["n"] == 3


def test_a_warm_up_has_its_own_steps_and_memory(measured):
    record = measured["smt"]
    warmup = record["warmup"]
    assert warmup["steps"] == 9 and warmup["n"] == measured["smt"]["seconds"]["n"]
    # full fine-tuning's optimizer state in the warm-up, that of the chosen blocks afterwards
    assert warmup["memory"]["optimizer"] > 10 * record["memory"]["optimizer"]
    whole = record["prepare_seconds"] + 9 * warmup["seconds"] + 21 * record["seconds"]["median"]
    assert record["whole"]["seconds"] == pytest.approx(whole)
    assert record["parameters"]["trained"] < record["parameters"]["total"] / 10


def test_a_data_dependent_start_is_followed_for_memory(measured):
    """LoRA-GA's probe holds a gradient of a whole weight and the activations of several micro-batches at once."""
    assert measured["lora"]["start"] is None and measured["smt"]["start"] is None
    start = measured["lora-ga"]["start"]["memory"]
    assert start["optimizer"] == 0 and start["peak"] > measured["lora-ga"]["memory"]["weights"]


def test_an_epoch_of_pairs_counts_what_its_batches_do(tmp_path):
    """A sequence-to-sequence model reads sources and targets."""
    from harness.measure import Phases
    from harness.setup import build

    grid = [{"models": ["tiny-t5"], "corpora": ["generated-pairs"], "variants": ["lora"], "seeds": [0]}]
    (tmp_path / "pairs.yaml").write_text(yaml.safe_dump({**SUITE, "suite": "pairs", "grid": grid}))
    suite = load_suite(str(tmp_path / "pairs.yaml"))
    suite.results = tmp_path / "results"
    training = suite.training("tiny-t5", "generated-pairs", "lora", 0)
    made, setup = cost.run(training), build(training, Phases())
    whole = len(setup.rows["train"]) // 4
    read = sum(b.total_tokens for rows in data.order([r.length for r in setup.rows["train"]], whole, 4, 1, 0)
               for b in data.micro_batches([setup.rows["train"][i] for i in rows], 4, setup.kind, setup.pad))  # fmt: skip
    assert len(setup.rows["train"]) % 4 == 0
    assert made["epoch_seconds"] * made["tokens_per_second"] == pytest.approx(read)


def test_the_sum_counts_every_kind_of_step():
    refresh, warmup = {"every": 10, "seconds": 5.0}, {"steps": 4, "seconds": 3.0}
    assert cost.whole(20, 1.0, None, None) == 20
    assert cost.whole(20, 1.0, refresh, None) == 20 + 2 * 5
    assert cost.whole(21, 1.0, refresh, None) == 21 + 3 * 5
    assert cost.whole(20, 1.0, None, warmup) == 4 * 3 + 16
    assert cost.whole(3, 1.0, None, warmup) == 9
