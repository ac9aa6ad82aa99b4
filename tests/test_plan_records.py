"""Cost records that a plan calibrates on: damaged ones and those that tell too little are left out, and it says so."""

from __future__ import annotations

import json
import types

import pytest

from harness.measured_cells import cost_records
from harness.plan_pages import errors
from harness.provenance import provenance

GOOD = {
    "schema": 1,
    "stage": "cost",
    "status": "ok",
    **{"suite": "s", "model": "tiny-llama", "corpus": "c", "variant": "lora", "method": "lora", "threads": 1},
    "seconds": {"median": 1.0, "q25": 0.9, "q75": 1.1},
    "memory": {},
    "warmup": None,
    "refresh": None,
    "specification": {"corpus": {"name": "c", "fields": {}}, "hyperparameters": {}, "protocol": {}},
}


@pytest.fixture
def written(tmp_path):
    """Writes one cost record; its text or its content."""

    def write(content: dict | str):
        path = tmp_path / "s/cost/m/c/v/cost.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_a_good_record_of_this_machine_is_found(written, tmp_path):
    good = {**GOOD, "provenance": provenance()}
    written(good)
    assert cost_records([tmp_path]) == ([good], [])
    written({**good, "provenance": {**good["provenance"], "hardware": {"cpu": "another"}}})
    assert cost_records([tmp_path]) == ([], [])


@pytest.mark.parametrize("lost", ["provenance", "specification", "warmup", "method"])
def test_a_record_that_tells_too_little_is_left_out(written, tmp_path, lost):
    path = written({k: v for k, v in {**GOOD, "provenance": provenance()}.items() if k != lost})
    assert cost_records([tmp_path]) == ([], [path])


def test_a_truncated_record_is_left_out_and_told(written, tmp_path):
    path = written('{"schema": 1, "sta')
    found, damaged = cost_records([tmp_path])
    assert (found, damaged) == ([], [path])
    said = errors(types.SimpleNamespace(measured=[], uncounted=[], damaged=damaged)).splitlines()
    assert said[1:] == [f"- left out, as damaged or without what a plan needs: {path}"]


def test_a_failed_record_is_none_to_compare_with(written, tmp_path):
    written({"schema": 1, "stage": "cost", "status": "oom", "reason": "memory"})
    assert cost_records([tmp_path]) == ([], [])
