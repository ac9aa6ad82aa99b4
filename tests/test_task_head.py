"""The task head of an encoder or image model is the protocol's: float32 under every method, trained, merged, predicted."""

from __future__ import annotations

import pytest
import torch
import yaml

from harness import predict, record, train
from harness.cells import predict_record, train_record
from harness.models import head_parameters
from harness.predict import restore_for_prediction
from harness.suite import load_suite

METHODS = ("full", "galore", "smt", "dpi-glrp", "lora")
SMALL = {"galore": {"rank": 2}, "dpi-glrp": {"rank": 2}, "smt": {"block_size": 8, "warmup_steps": 1, "density": 0.03}}
SUITE = {
    "suite": "head",
    "protocol": {
        "precision": "bfloat16",
        "steps": 2,
        "batch_size": 2,
        "micro_batch_size": 2,
        "max_length": 24,
        "validation_examples": 2,
        "eval_batch_size": 4,
    },
    "corpora": {"generated-labels": {"rows": 16}},
    "evals": {"generated-labels": {"rows": 4}},
    "variants": {name: {"method": name, **SMALL.get(name, {})} for name in METHODS},
    "grid": [{"models": ["tiny-roberta"], "corpora": ["generated-labels"], "variants": [*METHODS], "seeds": [0]}],
}


@pytest.fixture
def suite(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "head.yaml").write_text(yaml.safe_dump(SUITE), encoding="utf-8")
    return load_suite("head.yaml")


@pytest.mark.parametrize("variant", [*METHODS, "untuned"])
def test_a_bfloat16_encoder_has_a_float32_head_under_every_method(suite, variant):
    named = ["--suite", "head.yaml", "--model", "tiny-roberta", "--corpus", "generated-labels"]
    named += ["--variant", variant, "--seed", "0"]
    assert train.main(named) == 0
    assert predict.main([*named, "--eval", "generated-labels"]) == 0
    training = suite.training("tiny-roberta", "generated-labels", variant, 0)
    predicted = record.read(predict_record(training, "generated-labels"))
    assert predicted["status"] == "ok" and predicted["merged"]
    asked = _first_requests(suite)
    (model, _, _), _ = restore_for_prediction(training, record.read(train_record(training)), asked)
    head = dict(head_parameters(model))
    assert head and {parameter.dtype for parameter in head.values()} == {torch.float32}
    assert {p.dtype for name, p in model.named_parameters() if name not in head} == {torch.bfloat16}


def _first_requests(suite):
    from harness.assets import asset_folder
    from harness.plugins import load_plugin

    plugin = load_plugin("evals", "generated-labels", **suite.settings("evals", "generated-labels"))
    return predict._first_requests(plugin, plugin.items(asset_folder))
