"""SMT on two small matrices: gradients of blocks against dense ones, the choice against a plain ranking, the switch."""

from __future__ import annotations

import copy
import importlib

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from harness.contract import Run, Step
from harness.plugins import load_plugin

load_plugin("methods", "smt")  # registers the package that plug-ins and their shared parts are loaded under
smt = importlib.import_module("tuning_fork_methods.smt")
_blocks = importlib.import_module("tuning_fork_methods._blocks")
SCORES, PATHS = ("abs_mean", "official_code", "per_step"), {"gathered": 2.0, "whole": 0.0}  # FILLED: never, always
RATE = 1e-2


class Net(nn.Module):
    """Two targets of different shape, one of them transposed, and one that is no target."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.v, self.o = nn.Linear(12, 8), Conv1D(16, 8), nn.Linear(16, 2)
        nn.init.normal_(self.v.weight, std=0.3)
        self.double().requires_grad_(False)

    def forward(self, x):
        return self.o(torch.tanh(self.v(torch.tanh(self.q(x)))))


def loss(net, batch):
    return (net(batch) - batch.sum(-1, keepdim=True).cos()).square().sum()


def batch(step):
    return torch.randn(3, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(step))


def built(net=None, **fields):
    net = net or Net()
    given = {"learning_rate": RATE, "block_size": 4, "warmup_steps": 2, "density": 0.25, **fields}
    method = load_plugin("methods", "smt", **given)
    method.attach(net, Run(20, torch.float64, lambda model, _: [("q", model.q), ("v", model.v)]))
    return net, method


def one_step(net, method, optimizer, index, scale=1.0):
    """The step's optimizer afterwards; a new one when the method asked for it."""
    step = Step(index, 20, RATE)
    method.before_step(net, step)
    (loss(net, batch(index)) * scale).backward()
    method.after_backward(net, step)
    optimizer.step()
    changed = method.after_step(net, step)
    for p in net.parameters():
        p.grad = None
    return method.optimizer(net) if changed else optimizer


def warmed(steps=2, scale=1.0, **fields):
    net, method = built(**fields)
    optimizer = method.optimizer(net)
    for index in range(steps):
        optimizer = one_step(net, method, optimizer, index, scale)
    return net, method, optimizer


def cut(matrix, size=4):
    """All blocks of a matrix, row by row."""
    rows, columns = matrix.shape
    return matrix.reshape(rows // size, size, columns // size, size).transpose(1, 2).reshape(-1, size, size)


def all_blocks(net, of=lambda weight: weight):
    q, v = (getattr(getattr(net, name), "base", getattr(net, name)).weight for name in ("q", "v"))
    return torch.cat([cut(of(q)), cut(of(v).t())])


def plain(net):
    """A plain copy of the weights, all trained."""
    twin = Net()
    twin.load_state_dict({k.replace(".base", ""): v for k, v in net.state_dict().items() if not k.startswith("smt")})
    return twin.requires_grad_(True)


# --------------------------------------------------------------------------- gradients of blocks


def gradient_error():
    """The largest relative error of the blocks' gradients, against those cut from the dense gradient."""
    net, method, _ = warmed()
    twin = plain(net)
    loss(twin, batch(2)).backward()
    method.before_step(net, Step(2, 20, 0.0))
    loss(net, batch(2)).backward()
    method.after_backward(net, Step(2, 20, 0.0))
    expected = all_blocks(twin, lambda weight: weight.grad)[net.smt.chosen]
    return float((net.smt.blocks.grad - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("path", PATHS)
def test_block_gradients_are_slices_of_the_dense_gradient(path, monkeypatch):
    monkeypatch.setattr(_blocks, "FILLED", PATHS[path])
    assert gradient_error() < 1e-12


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("defect", ["transposed", "another column", "another row"])
def test_wrong_block_gradients_are_caught(defect, path, monkeypatch):
    class Shifted(_blocks.Places):
        def __init__(self, numbers, width):
            super().__init__(numbers, width)
            for name in {"another column": ["column_of"], "another row": ["row", "row_of"]}.get(defect, []):
                setattr(self, name, getattr(self, name).flip(0))

    right = _blocks.block_gradient
    monkeypatch.setattr(_blocks, "FILLED", PATHS[path])
    monkeypatch.setattr(smt, "Places", Shifted)
    if defect == "transposed":
        monkeypatch.setattr(_blocks, "block_gradient", lambda *parts: right(*parts).mT)
    assert gradient_error() > 1e-2


# --------------------------------------------------------------------------- scores and choice


def ranked(score, choice, count):
    """The chosen blocks by a plain ranking of dense gradients, whose model does not move."""
    twin, steps = Net().requires_grad_(True), []
    for index in range(2):
        twin.zero_grad()
        loss(twin, batch(index)).backward()
        steps.append(all_blocks(twin, lambda weight: weight.grad).numpy())
    scores = {
        "abs_mean": np.abs(steps[0] + steps[1]).mean((1, 2)),
        "official_code": np.abs((steps[0] + steps[1]).mean((1, 2))),
        "per_step": np.abs(steps[0]).mean((1, 2)) + np.abs(steps[1]).mean((1, 2)),
    }[score]
    if choice == "global":
        return sorted(np.argsort(-scores, kind="stable")[:count].tolist())
    parts = [np.argsort(-scores[part], kind="stable")[: count // 2] for part in (slice(6), slice(6, None))]
    return sorted([*parts[0].tolist(), *(6 + parts[1]).tolist()])


@pytest.mark.parametrize("choice", ["global", "per_matrix"])
@pytest.mark.parametrize("score", SCORES)
def test_the_choice_is_a_plain_ranking_whatever_the_gradients_scale(score, choice):
    for scale in (1.0, 1e6):
        net, _, _ = warmed(density=0.3, warmup="score", scale=scale, score=score, choice=choice)
        assert net.smt.chosen.tolist() == ranked(score, choice, 4)


def test_the_rankings_differ_so_that_one_taken_for_another_is_caught():
    assert len({tuple(ranked(score, choice, 4)) for score in SCORES for choice in ("global", "per_matrix")}) >= 5


@pytest.mark.parametrize("score", ["abs_mean", "official_code"])
def test_scores_without_their_absolute_value_are_caught(score, monkeypatch):
    signed = {"abs_mean": lambda total, *_: cut(total).mean((1, 2)), "official_code": lambda total, *_: total.flatten()}
    monkeypatch.setattr(smt, "block_scores", signed[score])
    net, _, _ = warmed(density=0.3, warmup="score", score=score)
    assert net.smt.chosen.tolist() != ranked(score, "global", 4)


# --------------------------------------------------------------------------- training


@pytest.mark.parametrize("warmup", ["train", "score"])
def test_unchosen_entries_stay_to_the_bit_after_the_switch(warmup):
    net, method, optimizer = warmed(warmup=warmup)
    before = copy.deepcopy(net)
    for index in range(2, 7):
        optimizer = one_step(net, method, optimizer, index)
    assert [n for n, p in net.named_parameters() if p.requires_grad] == ["smt.blocks"]
    assert torch.equal(net.o.weight, before.o.weight) and torch.equal(net.q.base.bias, before.q.base.bias)
    assert torch.equal((all_blocks(net) != all_blocks(before)).flatten(1).any(1).nonzero().flatten(), net.smt.chosen)


def write_error():
    net, method, optimizer = warmed()
    for index in range(2, 5):
        optimizer = one_step(net, method, optimizer, index)
    return float((all_blocks(net)[net.smt.chosen] - net.smt.blocks).detach().abs().max())


def test_the_weights_hold_the_blocks_after_every_step_and_not_writing_them_is_caught(monkeypatch):
    assert write_error() == 0
    monkeypatch.setattr(smt._SparseLinear, "write", lambda layer: None)
    assert write_error() > RATE


def test_small_steps_add_up_in_float32_where_bfloat16_weights_would_lose_them():
    net, method = built(Net().bfloat16(), warmup="score", warmup_steps=1, learning_rate=1e-4)
    optimizer = method.optimizer(net)
    alone = Net().bfloat16().q.weight.requires_grad_()
    lossy, start, unmoved = torch.optim.AdamW([alone], lr=1e-4, weight_decay=0.0), alone.detach().clone(), []
    for index in range(101):
        method.before_step(net, Step(index, 20, 0.0))
        x = torch.ones(1, 12, dtype=torch.bfloat16)
        (net.q(x).sum() + net.v(x[:, :8]).sum()).backward()
        method.after_backward(net, Step(index, 20, 0.0))
        optimizer.step()
        optimizer = method.optimizer(net) if method.after_step(net, Step(index, 20, 0.0)) else optimizer
        alone.grad = torch.ones_like(alone)
        lossy.step()
        unmoved.append(float((net.q.base.weight == start).float().mean()))
    assert net.smt.blocks.dtype == torch.float32 and net.q.base.weight.dtype == torch.bfloat16
    chosen = all_blocks(net)[net.smt.chosen]
    moved = (chosen.float() - all_blocks(Net().bfloat16())[net.smt.chosen].float()).detach()
    torch.testing.assert_close(moved, torch.full_like(moved, -1e-2), rtol=0, atol=2e-3)
    assert torch.equal(chosen, net.smt.blocks.bfloat16())
    assert unmoved[1] > 0.8  # one step alone is too small for most entries
    assert (alone == start).float().mean() > 0.5  # and without the float32 copy most never move


def test_warmup_score_changes_no_weight_and_warmup_train_all():
    for warmup, moves in (("score", False), ("train", True)):
        net, method = built(warmup=warmup)
        start = {name: value.clone() for name, value in net.state_dict().items()}
        one_step(net, method, method.optimizer(net), 0)
        for name, value in net.state_dict().items():
            if not name.startswith("smt"):
                assert torch.equal(value, start[name]) != moves, name
        assert all(p.grad is None for p in net.parameters()) and net.q.listener is None


def test_what_gathers_outside_a_parameters_grad_is_reduced_over_processes_and_nothing_else(monkeypatch):
    reduced = []
    monkeypatch.setattr(Step, "all_reduce_", lambda step, tensor: reduced.append(tensor) or tensor)
    net, method, optimizer = warmed(warmup="train")
    assert reduced == []
    one_step(net, method, optimizer, 2)
    assert [tensor.shape for tensor in reduced] == [net.smt.blocks.shape]
    reduced.clear()
    warmed(warmup="score")
    assert [tensor.shape for tensor in reduced] == 2 * [(8, 12), (8, 16)]


# --------------------------------------------------------------------------- the switch


def first_step_error(carry):
    """The first step of the blocks, against a fresh AdamW's; ``carry``: with the warm-up's moments, a defect."""
    net, method = built()
    old = method.optimizer(net)
    for index in range(2):
        optimizer = one_step(net, method, old, index)
    assert optimizer is not old
    if carry:
        first, second = (
            all_blocks(net, lambda w, i=i: old.state[w][i])[net.smt.chosen] for i in ("exp_avg", "exp_avg_sq")
        )
        kept = {"step": torch.tensor(2.0), "exp_avg": first, "exp_avg_sq": second}
        optimizer.state[net.smt.blocks] = kept
    blocks = net.smt.blocks.detach().clone().requires_grad_()
    twin = plain(net)
    loss(twin, batch(2)).backward()
    blocks.grad = all_blocks(twin, lambda weight: weight.grad)[net.smt.chosen]
    torch.optim.AdamW([blocks], lr=RATE, betas=(0.9, 0.95), weight_decay=0.0).step()
    one_step(net, method, optimizer, 2)
    return float((net.smt.blocks - blocks).detach().abs().max())


def test_the_blocks_start_without_momentum_and_momentum_kept_is_caught():
    assert first_step_error(carry=False) < 1e-12
    assert first_step_error(carry=True) > RATE / 10


def test_the_choice_is_made_when_no_gradient_takes_memory_any_more(monkeypatch):
    net, method = built()
    select, alive = method._select, []

    def noting(model):
        alive.append([name for name, p in model.named_parameters() if p.grad is not None])
        select(model)

    monkeypatch.setattr(method, "_select", noting)
    optimizer = one_step(net, method, method.optimizer(net), 0)
    one_step(net, method, optimizer, 1)
    assert alive == [[]]


def test_the_lowest_layer_is_that_of_the_lowest_block():
    net, method, _ = warmed(density=0.07)  # one block; q counts as layer 0, v as layer 1
    assert len(net.smt.chosen) == 1 and method.facts(net)["lowest_layer"] == int(net.smt.chosen[0] >= 6)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"block_size": 5, "allow_smaller_blocks": False}, r"^q: block_size=5 does not divide its weight of 8 x 12"),
        ({"block_size": 0}, "block_size is at least 1, not 0"),
        ({"warmup_steps": 20}, "warmup_steps=20 must .* leave some of the training's 20 steps"),
        ({"warmup": "scored"}, "warmup is 'train' or 'score', not 'scored'"),
        ({"score": "mean_abs"}, "score is 'abs_mean' or 'official_code' or 'per_step', not 'mean_abs'"),
        ({"choice": "all"}, "choice is 'global' or 'per_matrix', not 'all'"),
        ({"density": 0.0}, "gives 0 blocks of 4 x 4 for 2 matrices; set it above 0.062, or block_size lower"),
        ({"density": 0.1, "choice": "per_matrix"}, "gives 1 blocks of 4 x 4 for 2 matrices; set it above 0.12"),
    ],
)
def test_bad_settings_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        built(**fields)


def test_smaller_blocks_are_found():
    net, _ = built(block_size=256)
    assert net.smt.blocks.shape[1:] == (4, 4)
