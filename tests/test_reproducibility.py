"""Same seed, same run; each seed stream moves its own thing only; SIGTERM in mid-training loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from harness.measure import Curve, Phases
from harness.setup import build
from harness.suite import load_suite
from tests.dag import SUITE, Project

DROPOUT = {"lora-r2": {"method": "lora", "rank": 2, "learning_rate": 1e-2, "dropout": 0.3}}


def built(tmp_path, seed=0, **streams):
    """A training set up in this process, with a seed and other seeds for single streams."""
    path = tmp_path / "mini.yaml"
    grid = [{**SUITE["grid"][0], "variants": ["lora-r2"], "seeds": [0, 1]}]
    path.write_text(
        yaml.safe_dump(
            {**SUITE, "variants": DROPOUT, "grid": grid, "protocol": {**SUITE["protocol"], "streams": streams}}
        )
    )
    training = load_suite(str(path)).training("tiny-llama", "generated-labels", "lora-r2", seed)
    return build(training, Phases())


def adapters(setup):
    return {n: p.detach().clone() for n, p in setup.trainer.model.named_parameters() if p.requires_grad}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(setup, tmp_path):
    from harness.loop import run_steps

    path = tmp_path / f"{time.monotonic_ns()}.jsonl"
    run_steps(setup.trainer, setup.micro_batches, Curve(path))
    return [row["loss"] for row in rows_of(path) if "loss" in row]


def test_the_same_seed_gives_the_same_losses_and_another_seed_others(tmp_path):
    first, again, other = built(tmp_path), built(tmp_path), built(tmp_path, seed=1)
    assert first.order == again.order != other.order
    assert same(adapters(first), adapters(again)) and not same(adapters(first), adapters(other))
    assert losses(first, tmp_path) == losses(again, tmp_path) != losses(other, tmp_path)
    assert same(adapters(first), adapters(again))


def test_the_order_stream_moves_the_order_only(tmp_path):
    plain, moved = built(tmp_path), built(tmp_path, order=7)
    assert plain.order != moved.order and same(adapters(plain), adapters(moved))


def test_the_init_stream_moves_the_start_only(tmp_path):
    plain, moved = built(tmp_path), built(tmp_path, init=7)
    assert plain.order == moved.order and not same(adapters(plain), adapters(moved))


def test_the_dropout_stream_moves_what_is_dropped_only(tmp_path):
    plain, moved = built(tmp_path), built(tmp_path, dropout=7)
    assert plain.order == moved.order and same(adapters(plain), adapters(moved))
    assert losses(plain, tmp_path) != losses(moved, tmp_path)


@pytest.mark.parametrize("stream", ["probe", "generation"])
def test_streams_that_a_lora_training_does_not_draw_from_change_nothing(tmp_path, stream):
    plain, moved = built(tmp_path), built(tmp_path, **{stream: 7})
    assert losses(plain, tmp_path) == losses(moved, tmp_path)


def test_sigterm_in_mid_training_checkpoints_and_resumes_bit_for_bit(tmp_path):
    whole, parts = Project(tmp_path / "whole"), Project(tmp_path / "parts")
    for project in (whole, parts):
        project.write_suite(protocol={**SUITE["protocol"], "steps": 120}, variants=DROPOUT | SUITE["variants"])
    cell = "results/mini/runs/tiny-llama/generated-labels/lora-r2/seed0"
    command = [sys.executable, "-m", "harness.train", "--suite", "mini", "--model", "tiny-llama"]
    command += ["--corpus", "generated-labels", "--variant", "lora-r2", "--seed", "0"]
    subprocess.run(command, cwd=whole.folder, check=True, capture_output=True)
    process = subprocess.Popen(command, cwd=parts.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    curve = parts.folder / cell / "curves.jsonl"
    deadline = time.monotonic() + 60
    while not (curve.exists() and curve.read_text().count('"loss"') >= 5):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert (parts.folder / cell / "checkpoint" / "checkpoint.pt").is_file()
    assert not (parts.folder / cell / "train.json").exists()
    done = subprocess.run(command, cwd=parts.folder, check=True, capture_output=True, text=True)
    assert "going on from step" in done.stdout
    one, other = (json.loads((p.folder / cell / "train.json").read_text()) for p in (whole, parts))
    assert one["loss"] == other["loss"] and one["tokens"] == other["tokens"]
    assert one["files"]["delta"]["sha256"] == other["files"]["delta"]["sha256"]
    curves = [rows_of(p.folder / cell / "curves.jsonl") for p in (whole, parts)]
    kept = [[{k: v for k, v in row.items() if k not in ("seconds", "rss_bytes")} for row in rows] for rows in curves]
    assert kept[0] == kept[1]
