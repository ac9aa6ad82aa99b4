"""What a training's record says of an interrupted training, and of one whose weights are no numbers at the end."""

from __future__ import annotations

import math
import os
import signal
import time
import types
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml

from harness import record, train
from harness.cells import train_record
from harness.contract import Method
from harness.failures import BadAnswer, UserError
from harness.suite import load_suite
from harness.tiny import tiny_model
from tests.dag import SUITE

CELL = ["--suite", "mini.yaml", "--model", "tiny-llama", "--corpus", "generated-labels", "--variant", "full"]
CELL += ["--seed", "0"]
STEP_SECONDS = 0.2
OVERHEAD = 7.0


@pytest.fixture
def training(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini.yaml").write_text(yaml.safe_dump(SUITE), encoding="utf-8")
    before = signal.getsignal(signal.SIGTERM)
    yield load_suite("mini.yaml").training("tiny-llama", "generated-labels", "full", 0)
    signal.signal(signal.SIGTERM, before)


def test_seconds_of_a_resumed_training_are_those_of_all_its_starts(training, monkeypatch):
    from harness.measure import Curve

    stops = [2]
    ratio = Curve.update_ratio

    def slow(self, model, step):
        time.sleep(STEP_SECONDS)
        if step.index + 1 in stops:
            stops.clear()
            os.kill(os.getpid(), signal.SIGTERM)

    def costly(self, *arguments):
        self.overhead += OVERHEAD
        return ratio(self, *arguments)

    monkeypatch.setattr(Method, "after_step", slow)
    monkeypatch.setattr(Curve, "update_ratio", costly)
    assert train.main(CELL) == train.INTERRUPTED
    saved = torch.load(training.folder / "checkpoint" / "checkpoint.pt", weights_only=True)
    assert saved["phases"]["train"]["seconds"] >= 2 * STEP_SECONDS
    assert saved["instrument_seconds"] >= 2 * OVERHEAD
    assert train.main(CELL) == 0
    content = record.read(train_record(training))
    steps = SUITE["protocol"]["steps"]
    assert content["status"] == "ok" and content["steps"] == steps
    assert content["phases"]["train"]["seconds"] >= steps * STEP_SECONDS
    assert content["instrument_seconds"] >= steps * OVERHEAD
    assert content["phases"]["load"]["seconds"] > saved["phases"]["load"]["seconds"]


def test_weights_that_are_no_numbers_after_the_last_step_end_as_diverged(training, monkeypatch):
    def spoil(self, model, step):
        if step.index + 1 == SUITE["protocol"]["steps"]:
            with torch.no_grad():
                next(model.parameters()).fill_(math.nan)

    monkeypatch.setattr(Method, "after_step", spoil)
    assert train.main(CELL) == 0
    content = record.read(train_record(training))
    assert content["status"] == "diverged"
    assert content["reason"] == "the validation loss is nan after step 4"
    assert "delta" not in content["files"]


def test_a_checkpoint_that_cannot_be_read_is_left_and_the_training_begins_anew(training, capsys):
    folder = training.folder / "checkpoint"
    folder.mkdir(parents=True)
    (folder / "checkpoint.pt").write_bytes(b"\0" * 100)  # a power cut
    assert train.main(CELL) == 0
    assert "cannot be read" in capsys.readouterr().out
    assert record.read(train_record(training))["status"] == "ok" and not folder.exists()


def test_facts_that_no_record_can_hold_are_told_and_the_work_stays(training, monkeypatch):
    Path("mini.yaml").write_text(yaml.safe_dump({**SUITE, "limits": {"checkpoint_every": 1}}), encoding="utf-8")
    monkeypatch.setattr(Method, "facts", lambda self, model: {"chosen": {1, 2}})
    with pytest.raises(
        BadAnswer, match=r"facts\(\) gives what a record cannot hold \(set does not belong in a record\)"
    ):
        train.main(CELL)
    assert (training.folder / "checkpoint" / "checkpoint.pt").is_file()


def test_rows_longer_than_the_model_s_positions_are_refused():
    for family, limit in (("roberta", 2048), ("gpt2", 2048), ("llama", None), ("bloom", None)):
        model, _ = tiny_model(family)
        with pytest.raises(UserError, match=f"{limit} positions, .* at most {limit}") if limit else nullcontext():
            train.check_positions(types.SimpleNamespace(model=family, protocol={"max_length": 2049}), model)
        train.check_positions(types.SimpleNamespace(model=family, protocol={"max_length": 2048}), model)
