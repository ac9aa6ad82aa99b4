"""BOFT's structured product against dense matrices, and its once-a-step gradient against plain autograd. In float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.contract import Run, Step
from harness.plugins import load_plugin

STEP = Step(0, 10, 0.0)


class Net(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.o = nn.Linear(width, 24), nn.Linear(24, width, bias=False)
        self.double().requires_grad_(False)

    def forward(self, x):
        return self.o(torch.tanh(self.q(x)))


def attached(roles=("q", "o"), spread=0.3, **fields):
    net, method = Net(), load_plugin("methods", "boft", **fields)
    method.attach(net, Run(10, torch.float64, lambda model, _: [(role, getattr(model, role)) for role in roles]))
    for role in roles:
        nn.init.normal_(getattr(net, role).Q, std=spread)
    return net, method


def dense_rotation(Q):
    """R: (in, in) of Q: (m, in/b, b, b) by permutation matrices and explicit inverses, factor by factor."""
    m, count, b, _ = Q.shape
    size, half = count * b, b // 2
    eye = torch.eye(b, dtype=Q.dtype)
    R = torch.eye(size, dtype=Q.dtype)
    for i in range(m):
        S = (Q[i] - Q[i].mT) / 2
        diagonal = torch.block_diag(*((eye - S[k]) @ torch.linalg.inv(eye + S[k]) for k in range(count)))
        order = []  # half-blocks that lie 2^i apart become neighbours
        for start in range(0, size // half, 2 << i):
            for j in range(1 << i):
                order += [start + j, start + j + (1 << i)]
        index = torch.tensor([h * half + e for h in order for e in range(half)])
        P = torch.eye(size, dtype=Q.dtype)[:, index]
        R = P @ diagonal @ P.t() @ R  # R = F_{m-1} ... F_0
    return R


@pytest.mark.parametrize(("factors", "block"), [(1, 8), (2, 8), (3, 8), (3, 4), (4, 4), (5, 2)])
def test_forward_and_merge_equal_the_dense_product(factors, block):
    net, method = attached(("q",), factors=factors, block_size=block)
    R = dense_rotation(net.q.Q.detach())
    torch.testing.assert_close(R @ R.t(), torch.eye(32, dtype=R.dtype), rtol=0, atol=1e-12)
    x = torch.randn(3, 5, 32, dtype=torch.float64)
    expected = x @ R @ net.q.base.weight.t() + net.q.base.bias
    torch.testing.assert_close(net.q(x), expected, rtol=0, atol=1e-12)
    method.before_step(net, STEP)
    torch.testing.assert_close(net.q(x), expected, rtol=0, atol=1e-12)
    merged = net.q.base.weight @ R.t()
    method.merge(net)
    torch.testing.assert_close(net.q.weight, merged, rtol=0, atol=1e-12)
    torch.testing.assert_close(net.q(x), expected, rtol=0, atol=1e-12)


def test_the_product_couples_exactly_the_run_of_inputs_that_it_should():
    net, _ = attached(("q",), factors=3, block_size=4)
    R = dense_rotation(net.q.Q.detach())
    reach = torch.block_diag(*[torch.ones(16, 16)] * 2)
    assert torch.equal((R.abs() > 1e-14).double(), reach.double())


def test_gradients_of_micro_batches_go_back_once_and_equal_autograd(monkeypatch):
    net, method = attached(factors=2, block_size=4)
    batches = torch.randn(3, 6, 32, dtype=torch.float64)
    Q = {role: getattr(net, role).Q.detach().clone().requires_grad_() for role in ("q", "o")}
    plain, R = Net(), {role: dense_rotation(q) for role, q in Q.items()}
    (plain.o(torch.tanh(plain.q(batches @ R["q"])) @ R["o"]) ** 3).sum().backward()
    calls = []
    solve = torch.linalg.solve_ex
    monkeypatch.setattr(torch.linalg, "solve_ex", lambda *a, **k: calls.append(1) or solve(*a, **k))
    method.before_step(net, STEP)
    for batch in batches:
        (net(batch) ** 3).sum().backward()
        assert net.q.Q.grad is None
    method.after_backward(net, STEP)
    assert len(calls) == 1
    for role, q in Q.items():
        gradient = getattr(net, role).Q.grad
        torch.testing.assert_close(gradient, q.grad, rtol=1e-10, atol=1e-9)
        torch.testing.assert_close(gradient, -gradient.mT, rtol=0, atol=1e-9)


def test_a_step_without_before_step_uses_the_present_q():
    net, method = attached(factors=1, block_size=8)
    x = torch.randn(4, 32, dtype=torch.float64)
    method.before_step(net, STEP)
    net(x).sum().backward()
    method.after_backward(net, STEP)
    old = net(x)
    nn.init.normal_(net.q.Q)
    assert not torch.allclose(net(x), old)


def test_it_starts_at_the_identity_to_the_bit():
    net, method = attached(spread=0.0, factors=2, block_size=4)
    x = torch.randn(4, 32, dtype=torch.float64)
    assert torch.equal(net(x), Net()(x))
    method.before_step(net, STEP)
    assert torch.equal(net(x), Net()(x))


def test_counts_trained_and_effective():
    net, method = attached(factors=2, block_size=4)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 2 * 4 * (32 + 24)
    assert method.effective_parameters(net) == 2 * (32 + 24) * 3 // 2


@pytest.mark.parametrize("fields", [{"factors": 4, "block_size": 8}, {"factors": 1, "block_size": 5}])
def test_sizes_that_do_not_divide_are_refused_by_name(fields):
    with pytest.raises(ValueError, match=r"^q: BOFT with factors=\d and block_size=\d.*; here it is 32"):
        attached(("q",), **fields)
