"""The plan of a suite that tunes: chosen values where there are some, and memory of the largest trial."""

from __future__ import annotations

import pytest

from harness import plan, record
from harness.plan_pages import facts, page, write_pages
from harness.suite import Suite, load_suite

SUITE = """
suite: tuned
protocol: {batch_size: 4, micro_batch_size: 4, steps: 8, max_length: 32, validation_examples: 8}
variants: {lora: {method: lora}}
tuning: {trials: 8, seeds: [1000]}
grid: [{models: [tiny-llama], corpora: [generated-labels], variants: [lora], seeds: [0]}]
"""
BEFORE = 16  # LoRA's rank
CHOSEN = {"learning_rate": 1e-3, "rank": 64}


@pytest.fixture
def suite(tmp_path, monkeypatch) -> Suite:
    monkeypatch.chdir(tmp_path)  # counts and records lie under results/
    monkeypatch.setattr(plan, "count_all", lambda requests, say: None)  # each is counted here when it is asked for
    (tmp_path / "tuned.yaml").write_text(SUITE)
    return load_suite(str(tmp_path / "tuned.yaml"))


def rows(suite: Suite, memory: str = "80GiB") -> tuple[plan.Plan, plan.Row, plan.Row]:
    """The plan, its search and its training."""
    made = plan.plan(suite, memory, [])
    search, training = made.rows
    assert (search.training.stage, training.training.stage) == ("trial", "train")
    return made, search, training


def choose(suite: Suite, key: str | None = None, text: str = "") -> None:
    (tuning,) = suite.tunings.values()
    content = {"stage": "tune", "status": "ok", "key": key or tuning.key, "chosen": {"trial": 2, "values": CHOSEN}}
    record.write(tuning.record, content)
    if text:
        tuning.record.write_text(text)


def test_the_search_is_as_large_as_its_largest_trial(suite):
    (tuning,) = suite.tunings.values()
    largest = max(trial.values["rank"] for trial in tuning.trials)
    assert largest > BEFORE
    made, search, training = rows(suite)
    assert search.held.parameters["trained"] * BEFORE == search.step.parameters["trained"] * largest
    assert search.memory["optimizer"] == pytest.approx(training.memory["optimizer"] * largest / BEFORE, rel=0.01)
    assert len(search.others) == len({trial.values["rank"] for trial in tuning.trials}) - 1  # rates are not counted
    between = (search.memory["peak"] + training.memory["peak"]) // 2
    made, search, training = rows(suite, str(between))
    assert search.obstacle and not training.obstacle
    assert "tiny-llama, lora, search (generated-labels): weights" in page(made, 9)


@pytest.mark.parametrize("damage", [None, {"key": "of another search"}, {"text": '{"schema": 1, "sta'}])
def test_without_a_choice_the_training_says_that_it_has_the_values_before_the_search(suite, damage, tmp_path):
    if damage:
        choose(suite, **damage)
    made, search, training = rows(suite)
    assert plan.BEFORE_SEARCH in training.notes and plan.OF_TRIALS in search.notes
    assert training.step.parameters == search.step.parameters
    assert f"- 1 row: {plan.BEFORE_SEARCH}" in write_pages(made, tmp_path / "out")


def test_a_training_is_planned_with_what_its_search_chose(suite):
    before = facts(rows(suite)[2])
    choose(suite)
    _, search, training = rows(suite)
    assert plan.BEFORE_SEARCH not in training.notes
    after = facts(training)
    assert after["delta_bytes"] * BEFORE == before["delta_bytes"] * CHOSEN["rank"]
    assert after["flops"] > before["flops"] and search.step.parameters["trained"] < training.step.parameters["trained"]
