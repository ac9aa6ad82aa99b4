"""Algorithm 2 as printed: against its lines one by one, in float64, and its divergence on the toy of perf/hybrid_toy.py."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from harness.contract import Probe, Run, Step
from harness.plugins import load_plugin
from perf.hybrid_toy import VARIANTS, Problem, gammas, train

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
GOAL = X @ torch.randn(6, 8, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Linear(6, 8).double().requires_grad_(False)

    def forward(self, x):
        return self.w(x)


def loss(y):
    return (y - GOAL).square().mean()


def weight_gradient():
    net = Net()
    loss(net.requires_grad_()(X)).backward()
    return net.w.weight.grad


class Gradients(Probe):
    def mean_gradients(self, parameters, count, visit):
        assert parameters == ["w.base.weight"]
        visit(parameters[0], weight_gradient())


def attached(**fields):
    fields = {"rank": 2, "learning_rate": 0.05, "orthogonal_learning_rate": 0.3, **fields}
    net, method = Net(), load_plugin("methods", "hybrid_literal", **fields)
    torch.manual_seed(1)
    method.attach(net, Run(10, torch.float64, lambda model, _: [("w", model.w)]))
    method.initialize(net, Gradients())
    return net, method


def ours(net, method, steps):
    optimizer = method.optimizer(net)
    for index in range(steps):
        loss(net(X)).backward()
        method.after_backward(net, Step(index, 10, 0.0))
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("start", ["eq8", "zero"])
@pytest.mark.parametrize(("accumulate", "eta_in_cayley"), [(True, True), (False, True), (True, False)])
def test_steps_are_the_printed_lines(start, accumulate, eta_in_cayley):
    net, method = attached(start=start, accumulate=accumulate, eta_in_cayley=eta_in_cayley)
    W, bias, eye, share = net.w.base.weight.clone(), net.w.bias, torch.eye(8, dtype=torch.float64), 0.5
    A, B, Q = (p.detach().clone() for p in (net.w.A, net.w.B, net.w.Q))
    eta = 0.3 if eta_in_cayley else 1.0
    for _ in range(5):
        A, B, Q = (p.detach().requires_grad_() for p in (A, B, Q))
        low = B @ A  # line 6
        R = (eye + eta * Q) @ torch.linalg.inv(eye - eta * Q)  # 8
        turn = (R - eye) @ W  # 9
        dA, dB, dQ = torch.autograd.grad(loss(X @ (W + share * low + (1 - share) * turn).T + bias), (A, B, Q))
        g_low, g_turn = math.sqrt(dA.norm() ** 2 + dB.norm() ** 2), float(dQ.norm())  # 14
        share = g_low / (g_low + g_turn)  # 15
        if accumulate:
            W = (W + share * low + (1 - share) * turn).detach()  # 16, 17
        A, B, Q = A - 0.05 * dA, B - 0.05 * dB, Q - 0.3 * (dQ - dQ.T)  # 18 to 20
    ours(net, method, 5)
    for p, expected in ((net.w.A, A), (net.w.B, B), (net.w.Q, Q), (net.w.written + net.w.base.weight, W)):
        torch.testing.assert_close(p, expected, rtol=0, atol=1e-6)  # lambda is kept in float32
    assert float(net.w.lambda_) == pytest.approx(share, abs=1e-6)
    assert torch.equal(net.w.Q, -net.w.Q.T) and torch.equal(net.w.base.weight, Net().w.weight)


def test_equation_8_adds_the_gradient_and_climbs_the_loss():
    net, method = attached()
    U, S, Vt = torch.linalg.svd(weight_gradient())
    torch.testing.assert_close((net.w.B @ net.w.A).detach(), U[:, :2] @ torch.diag(S[:2]) @ Vt[:2])
    assert loss(net(X)) > loss(Net()(X)) and method.changes_init
    net, method = attached(start="zero")
    assert torch.equal(net(X), Net()(X)) and method.changes_init is None


def test_merged_is_what_the_loss_saw():
    net, method = attached()
    ours(net, method, 3)
    before = net(X)
    method.merge(net)
    assert type(net.w) is nn.Linear
    torch.testing.assert_close(net(X), before, rtol=0, atol=1e-12)


def test_no_gradient_at_all_keeps_lambda():
    net, method = attached()
    (net(X) * 0).sum().backward()
    method.after_backward(net, Step(0, 10, 0.0))
    assert net.w.lambda_ == 0.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"start": "kaiming"}, "start is one of eq8, zero, not 'kaiming'"), ({"rank": 7}, r"^w: .*rank=7.*\(8, 6\)")],
)
def test_what_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        attached(**fields)


def test_a_large_matrix_is_refused_before_anything_is_allocated():
    model = nn.Sequential(nn.Linear(8, 4096, device="meta"))
    with pytest.raises(ValueError, match="^0: hybrid_literal keeps a dense 4096 x 4096 .* at most 1024 outputs"):
        load_plugin("methods", "hybrid_literal").attach(model, Run(1, torch.float32, lambda m, _: [("0", m[0])]))


# --------------------------------------------------------------------------- the toy


def ends(label, steps=150, seeds=(0, 1)):
    variant = next(v for v in VARIANTS if v.label == label)
    runs = [train(Problem(seed), variant, variant.rate, steps) for seed in seeds]
    return [losses[-1] for losses, _ in runs], [shares[-1] for _, shares in runs]


def test_as_printed_it_ends_far_above_where_it_began_with_one_branch_gone():
    losses, shares = ends("as printed")
    assert min(losses) > 3 and min(shares) > 0.99


@pytest.mark.parametrize(("label", "share"), [("+ start at W0", 1), ("+ W not written", 1), ("+ no eta in R", 0)])
def test_each_defect_undone_leaves_the_next(label, share):
    losses, shares = ends(label)
    assert min(losses) > 0.1 and shares == pytest.approx([share] * 2, abs=0.01)


@pytest.mark.parametrize("label", ["recommended, SGD", "recommended"])
def test_the_recommended_form_learns_with_both_branches(label):
    losses, shares = ends(label)
    assert max(losses) < 0.05 and all(0.1 < share < 0.9 for share in shares)


def test_the_sweep_of_gamma():
    rows = list(gammas([Problem(0)]))
    assert rows[0]["rms"] > rows[-1]["rms"] + 0.3
    assert rows[0]["matched"] == pytest.approx(rows[-1]["matched"], abs=1e-5)
