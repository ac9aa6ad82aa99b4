"""Phases that lie one within the other, on a clock and a device of the test's own; what an optimizer holds beside its state."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness import measure
from harness.measure import LiveTensors, Phases


class Device:
    """Time and device memory that pass when told to; it stands in for ``time`` and ``torch.cuda``."""

    def __init__(self):
        self.now, self.peak = 0.0, 0

    def perf_counter(self):
        return self.now

    def is_initialized(self):
        return True

    def synchronize(self):
        pass

    def reset_peak_memory_stats(self):
        self.peak = 0

    def max_memory_allocated(self):
        return self.peak

    max_memory_reserved = max_memory_allocated

    def work(self, seconds, peak=0):
        self.now, self.peak = self.now + seconds, max(self.peak, peak)


@pytest.fixture
def device(monkeypatch):
    made = Device()
    monkeypatch.setattr(measure.time, "perf_counter", made.perf_counter)
    monkeypatch.setattr(torch, "cuda", made)
    return made


def test_seconds_of_a_phase_leave_out_those_of_phases_within_it(device):
    phases = Phases()
    with phases("train"):
        device.work(1)
        for _ in range(2):
            with phases("validate"):
                device.work(10)
                with phases("save"):
                    device.work(100)
        device.work(2)
    assert {name: entry["seconds"] for name, entry in phases.record.items()} == {
        "train": 3,
        "validate": 20,
        "save": 200,
    }


def test_a_phase_keeps_its_peak_when_one_within_it_resets_the_device(device):
    phases = Phases()
    with phases("train"):
        device.work(1, peak=700)
        with phases("validate"):
            device.work(1, peak=50)
        with phases("validate"):
            device.work(1, peak=20)
    peaks = {name: entry["cuda_allocated_bytes"] for name, entry in phases.record.items()}
    assert peaks == {"train": 700, "validate": 50}


def test_a_peak_within_is_the_outer_phase_s_too(device):
    phases = Phases()
    with phases("train"):
        with phases("validate"):
            device.work(1, peak=900)
        with phases("save"):
            device.work(1, peak=20)
    assert phases.record["train"]["cuda_reserved_bytes"] == 900


def test_running_phases_are_told_so_far_and_an_interrupted_start_adds_up(device):
    phases = Phases()
    with phases("train"):
        device.work(3)
        with phases("save"):
            device.work(10)
            saved = phases.so_far()
            device.work(10)
    assert {name: entry["seconds"] for name, entry in saved.items()} == {"train": 3, "save": 10}
    again = Phases()
    with again("load"):
        device.work(4)
    again.go_on_from({**saved, "load": {"seconds": 5.0, "rss_bytes": 1 << 60}})
    with again("train"):
        device.work(2)
    assert {name: entry["seconds"] for name, entry in again.record.items()} == {"load": 9, "train": 5, "save": 10}
    assert again.record["load"]["rss_bytes"] == 1 << 60


class Summing(torch.optim.SGD):
    """Keeps a sum of its own beside the state of its parameters."""

    def __init__(self, parameters, total):
        super().__init__(parameters, lr=0.1)
        self.total = total

    def state_dict(self):
        return {**super().state_dict(), "sums": [self.total]}


def test_what_an_optimizer_saves_beside_its_state_counts_as_its_state():
    model = nn.Linear(8, 8, bias=False)
    optimizer = Summing(model.parameters(), torch.zeros(1000))
    with LiveTensors(model, [optimizer]) as live:
        model(torch.ones(1, 8)).sum().backward()
        gradients = live.gradient_bytes()
    split = live.split(gradients)
    assert split["optimizer"] == 4000
    assert split["peak"] >= 4000 + split["weights"]
