"""SMT's block gradients against slices of dense ones, its selection against a plain ranking, its switch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from harness.checks import Case, train
from harness.contract import Run, Step
from harness.plugins import load_plugin


class Net(nn.Module):
    """Two targets of different shape, one of them transposed, and one that is no target."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.v, self.o = nn.Linear(12, 8), Conv1D(16, 8), nn.Linear(16, 2)
        self.double().requires_grad_(False)

    def forward(self, x):
        return self.o(torch.tanh(self.v(torch.tanh(self.q(x)))))


def loss(net, batch):
    return (net(batch) - batch.sum(-1, keepdim=True).cos()).square().sum()


def batch(step):
    return torch.randn(3, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(step))


def built(**fields):
    net = Net()
    method = load_plugin("methods", "smt", **{"block_size": 4, "warmup_steps": 2, "density": 0.1, **fields})
    method.attach(net, Run(20, torch.float64, lambda model, _: [("q", model.q), ("v", model.v)]))
    return net, method


def one_step(net, method, optimizer, index, scale=1.0):
    """The step's optimizer afterwards; a new one when the method asked for it."""
    step = Step(index, 20, 1e-2)
    method.before_step(net, step)
    (loss(net, batch(index)) * scale).backward()
    method.after_backward(net, step)
    optimizer.step()
    changed = method.after_step(net, step)
    for p in net.parameters():
        p.grad = None
    return method.optimizer(net) if changed else optimizer


def warmed(steps=2, scale=1.0, **fields):
    net, method = built(learning_rate=1e-2, **fields)
    optimizer = method.optimizer(net)
    for index in range(steps):
        optimizer = one_step(net, method, optimizer, index, scale)
    return net, method, optimizer


def blocks_of(weight, size=4):
    rows, columns = weight.shape
    return weight.reshape(rows // size, size, columns // size, size).transpose(1, 2).reshape(-1, size, size)


def dense(net, name):
    """(out, in) of a target's gradient."""
    gradient = getattr(net, name).weight.grad
    return gradient.t() if name == "v" else gradient


def test_block_gradients_are_slices_of_the_dense_gradient():
    net, method, _ = warmed(density=0.25)
    plain = Net()
    plain.load_state_dict({k.replace(".base", ""): v for k, v in net.state_dict().items() if not k.startswith("smt")})
    plain.requires_grad_(True)
    loss(plain, batch(2)).backward()
    method.before_step(net, Step(2, 20, 0.0))
    loss(net, batch(2)).backward()
    method.after_backward(net, Step(2, 20, 0.0))
    expected = torch.cat([blocks_of(dense(plain, name)) for name in ("q", "v")])[net.smt.chosen]
    assert len(net.smt.chosen) > 2
    torch.testing.assert_close(net.smt.blocks.grad, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("warmup", ["train", "score"])
def test_unchosen_entries_stay_as_they_are_after_the_switch(warmup):
    net, method, optimizer = warmed(warmup=warmup, density=0.25)
    before = copy.deepcopy(net)
    for index in range(2, 6):
        optimizer = one_step(net, method, optimizer, index)
    assert [n for n, p in net.named_parameters() if p.requires_grad] == ["smt.blocks"]
    assert torch.equal(net.o.weight, before.o.weight) and torch.equal(net.q.base.bias, before.q.base.bias)
    pairs = [(getattr(net, n).base.weight, getattr(before, n).base.weight) for n in ("q", "v")]
    now, then = (torch.cat([blocks_of(w[i].t() if i_v else w[i]) for i_v, w in enumerate(pairs)]) for i in (0, 1))
    moved = (now != then).flatten(1).any(1).nonzero().flatten()
    assert torch.equal(moved, net.smt.chosen)
    torch.testing.assert_close(now[net.smt.chosen], net.smt.blocks.detach(), rtol=0, atol=0)


def test_with_every_block_it_is_full_training_of_the_targets():
    net, method, optimizer = warmed(density=1e9, warmup="score", warmup_steps=1, steps=1)
    plain = Net()
    weights = [plain.q.weight, plain.v.weight]
    for weight in weights:
        weight.requires_grad_(True)
    reference = torch.optim.AdamW(weights, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    for index in range(1, 7):
        optimizer = one_step(net, method, optimizer, index)
        loss(plain, batch(index)).backward()
        reference.step()
        reference.zero_grad()
        torch.testing.assert_close(net.q.base.weight, plain.q.weight, rtol=0, atol=1e-12)
        torch.testing.assert_close(net.v.base.weight, plain.v.weight, rtol=0, atol=1e-12)


def test_the_choice_is_the_blocks_of_largest_mean_gradient_whatever_its_scale():
    scores, plain = np.zeros(14), Net().requires_grad_(True)
    for index in range(2):
        plain.zero_grad()
        loss(plain, batch(index)).backward()
        blocks = torch.cat([blocks_of(dense(plain, name)) for name in ("q", "v")])
        scores += blocks.abs().mean((1, 2)).numpy()
    for scale in (1.0, 1e6):
        net, _, _ = warmed(density=0.3, warmup="score", scale=scale)
        count = len(net.smt.chosen)
        assert count == int(0.3 * (96 + 128 + 32) / 16)
        assert net.smt.chosen.tolist() == sorted(np.argsort(-scores, kind="stable")[:count].tolist())


def test_ties_go_to_the_first_layer_row_and_column():
    net, method = built(warmup="score", warmup_steps=1)
    method.before_step(net, Step(0, 20, 0.0))
    method.after_step(net, Step(0, 20, 0.0))
    assert net.smt.chosen.tolist() == [0]


def test_warmup_score_changes_no_weight_and_warmup_train_all():
    for warmup, moves in (("score", False), ("train", True)):
        net, method = built(learning_rate=1e-2, warmup=warmup)
        start = {name: value.clone() for name, value in net.state_dict().items()}
        one_step(net, method, method.optimizer(net), 0)
        for name, value in net.state_dict().items():
            if not name.startswith("smt"):
                assert torch.equal(value, start[name]) != moves, name


def test_the_new_optimizer_holds_the_blocks_alone_and_the_schedule_starts_anew():
    case = Case("smt", "llama", {"warmup_steps": 3})
    trainer = case.trainer()
    train(case, trainer)
    (group,) = trainer.groups()
    assert group["params"] == [trainer.model.smt.blocks]
    assert sum(s.numel() for s in trainer.optimizers[0].state[trainer.model.smt.blocks].values() if s.ndim) == (
        2 * trainer.model.smt.blocks.numel()
    )
    assert trainer.state.schedule_start == 3


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"^q: block_size=5 does not divide its weight of 8 x 12"):
        built(block_size=5)
    with pytest.raises(ValueError, match="warmup_steps=20 must .* leave some of the training's 20 steps"):
        built(warmup_steps=20)
    with pytest.raises(ValueError, match="warmup is 'train' or 'score', not 'scored'"):
        built(warmup="scored")


def test_smaller_blocks_are_found_when_allowed():
    net, _ = built(block_size=64, allow_smaller_blocks=True)
    assert net.smt.blocks.shape[1:] == (4, 4)
