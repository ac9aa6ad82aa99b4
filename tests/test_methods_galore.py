"""GaLore against a naive loop of its formulas, in float64, and the traps that its first implementations fell into."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from harness.contract import Run, Step
from harness.plugins import load_plugin


class Net(nn.Module):
    """A tall, a wide and a square matrix, and biases that are not projected."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tall, self.wide, self.square = nn.Linear(6, 14), nn.Linear(14, 8, bias=False), nn.Linear(8, 8)
        self.double().requires_grad_(False)

    def forward(self, x):
        return self.square(torch.tanh(self.wide(torch.tanh(self.tall(x)))))


TARGETS = ("tall", "wide", "square")


def built(**fields):
    net = Net()
    fields = {"learning_rate": 1e-2, "rank": 3, "scale": 0.5, "refresh_every": 3, **fields}
    method = load_plugin("methods", "galore", **fields)
    method.attach(net, Run(20, torch.float64, lambda model, _: [(name, getattr(model, name)) for name in TARGETS]))
    return net, method, method.optimizer(net)


def loss(net, batch):
    return (net(batch) - batch.sum(1, keepdim=True).cos()).square().sum()


def batches(step, micro=2):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(micro, 5, 6, dtype=torch.float64, generator=generator)


def one_step(net, method, optimizer, index, max_norm=math.inf):
    step = Step(index, 20, 1e-2)
    for batch in batches(index):
        loss(net, batch).backward()
        method.after_micro_batch(net, step)
    method.after_backward(net, step)
    norm = method.clip(net, max_norm)
    optimizer.step()
    optimizer.zero_grad()
    return norm


def naive(net, steps, rank, scale, every, lr=1e-2, decay=0.0, epsilon=1e-6, max_norm=math.inf):
    """The algorithm as the paper's code states it, one matrix and one formula at a time."""
    state = {name: {"M": 0.0, "V": 0.0} for name, _ in net.named_parameters()}
    for t in range(steps):
        for p in net.parameters():
            p.requires_grad_(True)
            p.grad = None
        for batch in batches(t):
            loss(net, batch).backward()
        small = {}
        for name, p in net.named_parameters():
            R, own = p.grad, state[name]
            if name.endswith("weight"):
                m, n = p.shape
                if t % every == 0:
                    U, _, Vh = torch.linalg.svd(p.grad)
                    rows = Vh[:rank] if m >= n else U[:, :rank].t()
                    own["Q"] = torch.stack([row if max(row, key=abs) > 0 else -row for row in rows])
                R = p.grad @ own["Q"].t() if m >= n else own["Q"] @ p.grad
            small[name] = R
        norm = torch.stack([R.norm() for R in small.values()]).norm()
        for name, p in net.named_parameters():
            R, own = small[name] * min(1.0, max_norm / (norm + 1e-6)), state[name]
            own["M"] = 0.9 * own["M"] + 0.1 * R
            own["V"] = 0.999 * own["V"] + 0.001 * R * R
            correction = math.sqrt(1 - 0.999 ** (t + 1)) / (1 - 0.9 ** (t + 1))
            N = own["M"] / (own["V"].sqrt() + epsilon) * correction
            if "Q" in own:
                N = scale * (N @ own["Q"] if p.shape[0] >= p.shape[1] else own["Q"].t() @ N)
            with torch.no_grad():
                p.sub_(lr * N)
                p.sub_(lr * decay * p)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("max_norm", [math.inf, 0.5])
def test_equals_the_naive_loop(decay, max_norm):
    net, method, optimizer = built(weight_decay=decay)
    expected = Net()
    naive(expected, 8, rank=3, scale=0.5, every=3, decay=decay, max_norm=max_norm)
    for index in range(8):
        one_step(net, method, optimizer, index, max_norm)
    for (name, p), q in zip(net.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10, msg=name)


def test_updates_between_refreshes_have_the_rank_of_the_basis():
    net, method, optimizer = built(refresh_every=5)
    before = copy.deepcopy(net)
    for index in range(5):
        one_step(net, method, optimizer, index)
    for name in TARGETS:
        change = getattr(net, name).weight - getattr(before, name).weight
        assert torch.linalg.matrix_rank(change.detach(), rtol=1e-9) == 3
    one_step(net, method, optimizer, 5)
    assert torch.linalg.matrix_rank((net.wide.weight - before.wide.weight).detach(), rtol=1e-9) > 3


def test_a_whole_gradient_lives_on_refresh_steps_only():
    net, method, optimizer = built()
    for index in (0, 1):
        loss(net, batches(index)[0]).backward()
        method.after_micro_batch(net, Step(index, 20, 1e-2))
        assert (net.wide.weight.grad is None) == (index == 1)
        assert net.square.bias.grad is not None
        method.after_backward(net, Step(index, 20, 1e-2))
        assert net.wide.weight.grad is None
        optimizer.step()
        optimizer.zero_grad()


def test_the_norm_is_the_projected_gradients():
    net, method, optimizer = built(rank=2)
    whole = copy.deepcopy(net)
    for batch in batches(0):
        loss(whole, batch).backward()
    norm = one_step(net, method, optimizer, 0)
    kept = [torch.linalg.svdvals(getattr(whole, name).weight.grad)[:2] for name in TARGETS]
    rest = [p.grad for p in (whole.tall.bias, whole.square.bias)]
    torch.testing.assert_close(norm, torch.stack([t.norm() for t in kept + rest]).norm())


def test_bases_are_orthonormal_with_a_fixed_sign_and_state_has_its_size():
    net, method, optimizer = built()
    one_step(net, method, optimizer, 0)
    for name in TARGETS:
        p, state = getattr(net, name).weight, optimizer.state[getattr(net, name).weight]
        basis = state["basis"]
        assert basis.shape == (3, min(p.shape))
        assert state["first"].numel() == state["second"].numel() == 3 * max(p.shape)
        torch.testing.assert_close(basis @ basis.t(), torch.eye(3, dtype=basis.dtype), rtol=0, atol=1e-12)
        assert (basis.gather(1, basis.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_zero_or_broken_gradient_keeps_the_old_basis(bad):
    net, method, optimizer = built()
    one_step(net, method, optimizer, 0)
    old = optimizer.state[net.wide.weight]["basis"].clone()
    for batch in batches(3):
        loss(net, batch).backward()
    net.wide.weight.grad.fill_(bad)
    logged = {}
    method.after_backward(net, Step(3, 20, 1e-2, _log=logged.__setitem__))
    assert torch.equal(optimizer.state[net.wide.weight]["basis"], old)
    assert int(logged["bases_kept"]) == 1


def test_a_rank_above_the_matrix_is_cut_to_it():
    net, method, optimizer = built(rank=100)
    one_step(net, method, optimizer, 0)
    assert optimizer.state[net.tall.weight]["basis"].shape == (6, 6)


def test_state_is_tensors_and_numbers_so_a_safe_load_restores_it(tmp_path):
    net, method, optimizer = built()
    for index in range(4):
        one_step(net, method, optimizer, index)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    other, again, restored = built()
    other.load_state_dict(net.state_dict())
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for index in range(4, 8):
        one_step(net, method, optimizer, index)
        one_step(other, again, restored, index)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
