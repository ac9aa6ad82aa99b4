"""The comparison with stock evaluation: both sides answer the same, and made-up rows are named."""

from __future__ import annotations

import json

import pytest

from perf import evaluation


@pytest.fixture
def found(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TUNING_FORK_CACHE", str(tmp_path / "nothing"))
    options = ["--model", "tiny-llama", "--threads", "1", "--items", "6", "--max-tokens", "6", "--rounds", "2"]
    evaluation.main([*options, "--batch-size", "4", "--out", str(tmp_path)])
    return json.loads((tmp_path / "evaluation.json").read_text()), capsys.readouterr().out


def test_all_tasks_are_timed_in_turn_and_answered_alike(found):
    made, said = found
    assert [row["kind"] for row in made["tasks"].values()] == ["share of texts that differ"] * 2 + ["nats"]
    for row in made["tasks"].values():
        assert row["requests"] == 6 and len(row["seconds"]["ours"]) == len(row["seconds"]["stock"]) == 2
        assert row["apart"] < 1e-3 and row["ratio"][1] <= row["ratio"][0] <= row["ratio"][2]
    assert said.count("NOT RUN: ") == len(evaluation.LIKELIHOODS)
    assert "NOT prepared" in made["settings"]["source"] and "NOT prepared" in said


def test_answers_that_differ_are_seen():
    assert evaluation.difference(["a", "b"], ["a", "c"]) == 0.5
    assert evaluation.difference([1.0, 2.0], [1.0, 2.5]) == 0.5
