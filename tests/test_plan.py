"""The plan: its counts are those of a real step, what does not fit is named, and the largest grid is planned quickly."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from harness import decompositions, plan, step_profile
from harness.calibration import Measured, fit, leave_out
from harness.counted_step import NotCountable, Shape, Subject, count
from harness.data import MicroBatch
from harness.decompositions import seconds_each
from harness.failures import UserError
from harness.loop import Trainer
from harness.loss import SupervisedLogits, training_mode
from harness.measure import Curve, LiveTensors
from harness.models import head_parameters
from harness.plan_pages import write_pages
from harness.plugins import ROOT, load_plugin
from harness.seeds import Streams
from harness.setup import attach
from harness.step_profile import extrapolated
from harness.suite import PROTOCOL, load_suite
from harness.tiny import tiny_model
from harness.work import Work, add_work

METHODS = {
    "full": {},
    "lora": {"rank": 4},
    "hybrid": {},
    "boft": {"factors": 2, "block_size": 4},
    "galore": {"rank": 4, "refresh_every": 5},
    "dora": {"rank": 4},
}


@pytest.fixture(autouse=True)
def _counts_of_this_test(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # counts are kept under results/, by the workers too


def subject(method: str, fields: dict, model: str = "tiny-llama", labels: int | None = None) -> Subject:
    return Subject(model, method, json.dumps(fields), labels, "float32", False)


def real_step(method: str, fields: dict, shape: Shape) -> tuple[dict, int]:
    """Live bytes by kind and FLOPs of a real second step on the tiny Llama."""
    model, _ = tiny_model("llama")
    streams, made = Streams(0, {}), load_plugin("methods", method, **fields)
    attach(model, made, 1000, torch.float32, streams)
    trainer = Trainer(model, made, PROTOCOL, streams, 1000, head_parameters(model))
    trainer.build_optimizers()
    generator = torch.Generator().manual_seed(0)

    def batch() -> MicroBatch:
        ids = torch.randint(3, 200, (shape.rows, shape.length), generator=generator)
        mask = torch.ones_like(ids)
        mask[-1, -3:] = int(not shape.padded)
        positions = torch.arange(shape.supervised)
        inputs = {"input_ids": ids, "attention_mask": mask}
        return MicroBatch(inputs, positions, ids.flatten()[positions], shape.supervised, ids.numel())

    with SupervisedLogits(model) as logits, training_mode(model, True):
        trainer.step([batch()], logits, Curve(None))
        seen, clip = [], made.clip
        made.clip = lambda m, norm: (seen.append(live.gradient_bytes()), clip(m, norm))[1]
        second = [batch()]
        with LiveTensors(model, trainer.optimizers) as live:
            trainer.step(second, logits, Curve(None))
        del made.clip
        third = [batch()]
        with FlopCounterMode(display=False) as counter:
            trainer.step(third, logits, Curve(None))
    return live.split(seen[0]), counter.get_total_flops()


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_counts_are_those_of_a_real_step(method, padded):
    shape = Shape(3, 24, 20, padded)
    memory, flops = real_step(method, METHODS[method], shape)
    counted = step_profile.profile(subject(method, METHODS[method]), shape, 1)
    found = counted.memory(sampled=False)
    assert counted.work(1).flops == flops
    assert found == memory  # to the byte


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    ("model", "labels", "shape"),
    [
        ("minilm-l6", 2, Shape(4, 16, 4)),
        ("t5-small", None, Shape(2, 16, 16)),
        pytest.param("smollm2-135m", None, Shape(2, 16, 8), marks=pytest.mark.slow),
    ],
)
def test_one_and_two_blocks_tell_of_all(method, model, labels, shape):
    """The slow twin: the whole model is counted, block by block."""
    asked = subject(method, {}, model, labels)
    whole = count(asked, None, shape, 2)
    twin, found = extrapolated(whole, whole, 1), step_profile.profile(asked, shape, 2)
    assert (found.micro, found.step) == (twin.micro, twin.step)
    assert found.parameters == twin.parameters
    for kind, size in twin.memory(False).items():
        if kind in ("weights", "gradients", "optimizer", "peak"):
            assert found.memory(False)[kind] == pytest.approx(size, rel=0.02), kind


@pytest.mark.slow
def test_the_peak_holds_gradients_that_a_method_frees_after_it():
    """GaLore projects and frees each gradient once the backward pass has ended, so there all of them are alive."""
    asked, shape = subject("galore", {"rank": 32}, "smollm2-135m"), Shape(2, 16, 8)
    whole, found = count(asked, None, shape, 1), step_profile.profile(asked, shape, 1).memory(False)
    for kind, size in extrapolated(whole, whole, 1).memory(False).items():
        assert found[kind] == pytest.approx(size, rel=0.02), kind


def test_what_a_method_makes_while_it_frees_gradients_grows_with_the_blocks():
    """GaLore's first projected gradients lie beside all others: the step's peak, with rows as short as these."""
    asked, shape = subject("galore", {"rank": 32}, "minilm-l6", 2), Shape(16, 14, 16)
    whole = count(asked, None, shape, 1)
    assert step_profile.profile(asked, shape, 1).memory(False) == extrapolated(whole, whole, 1).memory(False)


def test_supervised_positions_alone_need_no_second_count_of_two_blocks():
    asked = subject("lora", {"rank": 2})
    step_profile.profile(asked, Shape(2, 10, 4), 1)
    shortcut = step_profile._counted(asked, Shape(2, 10, 18), 1)
    straight = [step_profile._count(asked, blocks, Shape(2, 10, 18), 1) for blocks in (1, 2)]
    assert shortcut == extrapolated(*straight, 2)


def test_what_cannot_attach_says_why():
    with pytest.raises(NotCountable, match="at most 1024 outputs"):
        step_profile.profile(subject("hybrid-literal", {}, "smollm2-135m"), Shape(1, 8, 4), 1)
    with pytest.raises(NotCountable, match="at most 1024 outputs"):  # as it was kept
        step_profile.profile(subject("hybrid-literal", {}, "smollm2-135m"), Shape(1, 8, 4), 1)


def test_a_librarys_method_that_keeps_tensors_of_its_own_says_why():
    adalora = {"type": "ADALORA", "config": {"init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 2}}
    with pytest.raises(NotCountable, match="does not run on shapes alone"):
        step_profile.profile(subject("peft", adalora), Shape(1, 8, 4), 1)


def test_a_decomposition_is_counted_by_its_call_and_timed_at_its_shape():
    step = step_profile.profile(subject("svdlora", {"rank": 2}), Shape(1, 8, 4), 1).step
    counted = {json.loads(call)[0].partition(".")[0]: count for call, count in step.decompositions.items()}
    assert sum(count for name, count in counted.items() if name in ("_linalg_svd", "_linalg_eigh")) > 0
    assert all(seconds_each(call, 1) > 0 for call in step.decompositions)


def test_a_matrix_too_large_to_time_is_timed_smaller_and_grown_by_the_cube(monkeypatch):
    monkeypatch.setattr(decompositions, "LARGE", 300**3)
    monkeypatch.setattr(decompositions, "_timed", lambda function, made, keywords: float(made[0].shape[-1]))
    large, small = (
        json.dumps(["linalg_qr.default", [{"dtype": "float32", "shape": [n, n]}, "reduced"], {}]) for n in (600, 300)
    )
    assert seconds_each(large, 1) == pytest.approx(8 * 300) and seconds_each(small, 1) == 300


@pytest.mark.parametrize(
    "decompose",
    [
        lambda a: torch.linalg.svd(a, full_matrices=False),
        lambda a: torch.linalg.eigh(a @ a.mT),
        torch.linalg.qr,
        lambda a: torch.linalg.cholesky_ex(a @ a.mT),
        lambda a: torch.linalg.solve(a @ a.mT, a),
        lambda a: torch.linalg.solve_triangular(a @ a.mT, a, upper=True),
        lambda a: torch.cholesky_solve(a, a @ a.mT),
        lambda a: torch.linalg.inv(a @ a.mT),
    ],
)
def test_every_decomposition_can_be_timed_from_its_description(decompose):
    work = Work()

    class Listed(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            result = function(*arguments, **(keywords or {}))
            add_work(work, function, arguments, keywords or {}, result)
            return result

    with Listed():
        decompose(torch.randn(5, 3, 4))
    (call, count), *more = work.decompositions.items()
    assert count == 5 and not more and seconds_each(call, 1) > 0


def test_work_adds_up_with_its_decompositions():
    one, two = Work(1, 2, 3, 4, {"a": 2}), Work(1, 1, 1, 1, {"a": 2, "b": 3})
    assert one + two == Work(2, 3, 4, 5, {"a": 4, "b": 3})
    assert two - one == Work(0, -1, -2, -3, {"b": 3})
    assert two / 2 == Work(0.5, 0.5, 0.5, 0.5, {"a": 1, "b": 1.5})


MEMORY = {"weights": 50, "optimizer": 30, "gradients_at_peak": 10, "activations": 5, "peak": 95}


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (40, "weights alone"),
        (70, "weights + optimizer state"),
        (85, "weights + optimizer state + gradients"),
        (92, "weights + optimizer state + gradients + activations"),
        (95, ""),
    ],
)
def test_what_does_not_fit_is_named_by_its_kinds(device, reason):
    assert plan.obstacle(MEMORY, device) == reason


@pytest.mark.parametrize("text", ["eighty", "", "80XiB", "1.2.3GiB", "0GiB", "-4GiB"])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="--device-memory"):
        plan.parse_bytes(text)


def test_sizes_and_folders(tmp_path):
    assert plan.parse_bytes("80GiB") == plan.parse_bytes("80 G") == 80 * 2**30
    assert plan.parse_bytes("512") == 512
    with pytest.raises(UserError, match="no such folder"):
        plan.plan(load_suite("smoke"), records=[tmp_path / "nowhere"])


def cell(model: str, method: str, length: int, work: Work) -> Measured:
    seconds = 1e-11 * work.flops + 2e-10 * work.bytes + 1e-5 * work.operations
    return Measured("s", model, "c", method, method, length, work, seconds, 0.1, None, {}, {}, 1, "float32")


def test_rates_are_found_again_and_left_out_groups_predicted():
    works = [Work(1e9 * (i + 1), 0, 1e8 * (7 - i) ** 2, 300.0 + 100 * i % 400) for i in range(8)]
    cells = [cell("a" if i < 4 else "b", f"m{i % 3}", 10 * (i % 2), work) for i, work in enumerate(works)]
    assert fit(cells).cost == pytest.approx((1e-11, 2e-10, 1e-5), rel=1e-6)
    assert fit(cells[:5]) is None
    left = leave_out([*cells, *cells], "method", lambda c: c.method)
    assert len(left.cells) == 16 and max(map(abs, left.errors)) < 1e-6
    assert leave_out(cells, "suite", lambda c: c.suite) is None


SUITE = """
suite: planned
protocol: {batch_size: 4, micro_batch_size: 2, steps: 7, max_length: 32}
variants: {lora: {method: lora, rank: 2}, peft: {method: peft, type: LORA, config: {r: 2}}}
grid: [{models: [tiny-llama], corpora: [CORPUS], variants: [lora, peft], seeds: [0, 1]}]
"""


def test_a_suite_from_the_command_to_its_files(tmp_path, capsys):
    smoke = load_suite("smoke")
    (tmp_path / "none").mkdir()
    (tmp_path / "planned.yaml").write_text(SUITE.replace("CORPUS", smoke.trainings[0].corpus))
    arguments = ["--suite", str(tmp_path / "planned.yaml"), "--records", str(tmp_path / "none")]
    assert plan.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out" / "cost_plan.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["variant"], row["trainings"], row["steps"]) for row in rows] == [
        ("lora", "2", "7"),
        ("peft", "2", "7"),
    ]
    assert all(float(row["peak_bytes"]) > float(row["weights_bytes"]) > 0 for row in rows)
    assert all(float(row["flops"]) == 7 * float(row["flops_a_step"]) > 0 for row in rows)
    assert "a lower bound from a measured matrix product" in said and "No cost records" in said
    assert json.loads((tmp_path / "out" / "cost_plan.json").read_text())["rows"][0]["steps"] == 7


def test_the_trials_of_a_search_are_planned_beside_what_they_search_for(tmp_path):
    smoke = load_suite("smoke")
    searching = "tuning: {trials: 3, seeds: [1000], steps: 5}\n"
    tuned = SUITE.replace("CORPUS", smoke.trainings[0].corpus).replace("steps: 7,", "steps: 7, validation_examples: 4,")
    (tmp_path / "planned.yaml").write_text(tuned + searching)
    made = plan.plan(load_suite(str(tmp_path / "planned.yaml")), records=[])
    rows = {(row.training.variant, row.training.stage): (row.trainings, row.batches.steps) for row in made.rows}
    assert rows["lora", "trial"] == rows["peft", "trial"] == (3, 5) and rows["lora", "train"] == (2, 7)
    assert "10 trainings in 4 rows, 6 of them trials of the search" in write_pages(made, tmp_path / "out")


@pytest.mark.slow
def test_the_grid_of_405_billion_parameters_is_planned_within_four_gigabytes(tmp_path):
    (tmp_path / "none").mkdir()
    arguments = ["--suite", "hybrid", "--device-memory", "80GiB", "--records", str(tmp_path / "none"), "--out"]
    code = (
        "import re, resource, sys; from pathlib import Path; from harness import step_profile, plan;"
        f"plan.main({[*arguments, str(tmp_path)]!r});"
        # not this process's ru_maxrss: it begins at that of the process which started it
        "own = 1024 * int(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1]);"
        "worker = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss;"
        "Path('peaks').write_text(f'{own} {worker}')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TUNING_FORK_CACHE": str(tmp_path / "empty")}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=600)
    text = (tmp_path / "cost_plan.md").read_text()
    assert re.search(r"llama-3.1-405b, full .*weights alone exceed 80 GiB", text)
    assert "504 trainings" in text
    itself, worker = map(int, (tmp_path / "peaks").read_text().split())
    assert itself + 2 * worker <= 4 * 10**9  # the process and its two workers, each at its largest
