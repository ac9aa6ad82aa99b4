"""uRNN's structured product against dense matrices made factor by factor, and its updates. In float64 where exact."""

from __future__ import annotations

import importlib
import json
import math

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from harness.contract import Run, Step
from harness.plugins import load_plugin

load_plugin("methods", "urnn")  # registers the package that plug-ins and their shared parts are loaded under
urnn = importlib.import_module("tuning_fork_methods.urnn")
_unitary = importlib.import_module("tuning_fork_methods._unitary")
STEP = Step(0, 10, 0.0)
RIEMANN = {"update": "riemann_exp"}
close = torch.testing.assert_close


class Net(nn.Module):
    def __init__(self, width=20, middle=14, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.o = nn.Linear(width, middle), nn.Linear(middle, width, bias=False)
        self.to(dtype).requires_grad_(False)

    def forward(self, x):
        return self.o(torch.tanh(self.q(x)))


def attached(net=None, seed=1, moved=0.0, **fields):
    """(net, method); ``moved``: how far from the start all that trains is put."""
    net, method = net or Net(), load_plugin("methods", "urnn", **fields)
    torch.manual_seed(seed)
    method.attach(net, Run(10, net.q.weight.dtype, lambda model, _: [(role, getattr(model, role)) for role in "qo"]))
    with torch.no_grad():
        for p in trained(net):
            p += moved * torch.randn_like(p)
    return net, method


def trained(net):
    return [p for p in net.parameters() if p.requires_grad]


# --------------------------------------------------------------------------- the product


def dense(phases, reflectors, order, wrong=""):
    """U: (n, n) by explicit matrices, differentiable; ``wrong`` names a mistake to make."""
    n = len(order)
    k = torch.arange(n, dtype=torch.float64)
    F = torch.polar(torch.full((n, n), n**-0.5, dtype=torch.float64), -2 * math.pi / n * torch.outer(k, k))
    F = F.conj() if wrong == "transform" else F
    turns = torch.polar(torch.ones_like(phases), phases)
    D1, D2, D3 = (torch.diag(t) for t in (turns.conj() if wrong == "phase sign" else turns))
    v = torch.view_as_complex(reflectors)
    v = v.flip(0) if wrong == "reflections swapped" else v
    scale = 1 if wrong == "projection" else 2
    R1, R2 = (torch.eye(n) - scale * torch.outer(a, a.conj()) / (a.abs() ** 2).sum() for a in v)
    Pi = torch.eye(n, dtype=torch.complex128)[order]
    Pi = Pi.T if wrong == "permutation" else Pi
    return D3 @ R2 @ F.mH @ D2 @ Pi @ R1 @ F @ D1


def real(U):
    """M: (in, in) of U on neighbours: each entry a + ib becomes [[a, -b], [b, a]]."""
    M = torch.stack([torch.stack([U.real, -U.imag], -1), torch.stack([U.imag, U.real], -1)], -2)  # (n, n, 2, 2)
    return M.transpose(1, 2).flatten(2).flatten(0, 1)


def layer_matrix(layer):
    """M from the layer's own numbers, without its code."""
    return real(dense(layer.phases.detach().double(), layer.reflectors.detach().double(), layer.order))


def random_factors(n, seed=0):
    torch.manual_seed(seed)
    phases = torch.empty(1, 3, n, dtype=torch.float64).uniform_(-math.pi, math.pi).requires_grad_()
    reflectors = torch.empty(1, 2, n, 2, dtype=torch.float64).uniform_(-1, 1).requires_grad_()
    return phases, reflectors, torch.randperm(n)[None]


def one(factors):
    return _unitary.Unitary(*(part[0] for part in _unitary.derive(*factors)))


@pytest.mark.parametrize("n", [1, 2, 5, 7, 8, 12, 27])
def test_product_transpose_and_gradients_equal_the_dense_ones(n):
    factors = random_factors(n)
    x = torch.randn(6, 2 * n, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(6, 2 * n, dtype=torch.float64)
    M = real(dense(*(f[0] for f in factors)))
    close(M @ M.T, torch.eye(2 * n, dtype=M.dtype), rtol=0, atol=1e-12)
    close(torch.linalg.det(M.detach()), torch.ones((), dtype=M.dtype), rtol=0, atol=1e-11)
    ours, expected = _unitary.turn(x, one(factors)), x @ M.T
    close(ours, expected, rtol=0, atol=1e-12)
    close(_unitary.turn_back(x.detach(), one(factors)), (x @ M).detach(), rtol=0, atol=1e-12)
    inputs = [x, *factors[:2]]
    found, wanted = (torch.autograd.grad((y * weights).sum(), inputs) for y in (ours, expected))
    close(found, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("wrong", ["transform", "phase sign", "reflections swapped", "projection", "permutation"])
def test_each_factor_matters(wrong):
    factors = random_factors(8)
    x = torch.randn(6, 16, dtype=torch.float64)
    expected = x @ real(dense(*(f[0] for f in factors), wrong)).T
    assert float((_unitary.turn(x, one(factors)) - expected).abs().max().detach()) > 0.1


def test_gradcheck():
    phases, reflectors, order = random_factors(4)
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: _unitary.turn(a[0], one((*a[1:], order))), (x, phases, reflectors))


def test_lengths_of_inputs_and_gradients_are_kept():
    x = torch.randn(5, 18, dtype=torch.float64, requires_grad=True)
    y = _unitary.turn(x, one(random_factors(9)))
    close(y.norm(dim=1), x.norm(dim=1), rtol=1e-12, atol=0)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    close(x.grad.norm(dim=1), gradient.norm(dim=1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("n", [3, 6, 8, 11])
def test_u_moves_in_as_many_directions_as_counted(n):
    phases, reflectors, order = random_factors(n)
    parts = torch.autograd.functional.jacobian(
        lambda p, v: torch.view_as_real(dense(p, v, order[0])), (phases[0], reflectors[0])
    )
    singular = torch.linalg.svdvals(torch.cat([part.flatten(0, 2).flatten(1) for part in parts], 1))
    net, method = attached(Net(2 * n, 2 * n), targets=("q",))
    assert int((singular > 1e-9 * singular[0]).sum()) == net.q.directions() == min(n**2, 7 * (n - 1))
    assert method.effective_parameters(net) == 2 * net.q.directions()
    assert sum(p.numel() for p in trained(net)) == 2 * 7 * n


# --------------------------------------------------------------------------- the adapter


def test_it_starts_as_the_base_though_u_starts_random():
    net, method = attached()
    x = torch.randn(3, 4, 20, dtype=torch.float64)
    assert float((layer_matrix(net.q) - torch.eye(20)).abs().max()) > 0.5
    close(net(x), Net()(x), rtol=0, atol=1e-12)
    close(net.q.weight, Net().q.weight @ layer_matrix(net.q).T, rtol=0, atol=1e-12)
    method.before_step(net, STEP)
    close(net(x), Net()(x), rtol=0, atol=1e-12)


def merge_error(**fields):
    """How far the merged model is from the attached one, and q's weight from W M for the M that q turns by."""
    net, method = attached(moved=0.3, **fields)
    with torch.no_grad():
        if "update" in fields:
            for layer in (net.q, net.o):  # moving entry by entry leaves the unitary group
                layer.U.copy_(torch.view_as_real(torch.linalg.qr(torch.view_as_complex(layer.U))[0]))
    x = torch.randn(3, 4, 20, dtype=torch.float64)
    M = real(torch.view_as_complex(net.q.U)).detach() if "update" in fields else layer_matrix(net.q)
    before, weight = net(x).detach(), net.q.base.weight @ M
    method.merge(net)
    assert type(net.q) is type(net.o) is nn.Linear
    return float((net(x) - before).abs().max()), float((net.q.weight - weight).abs().max())


@pytest.mark.parametrize("fields", [{}, RIEMANN], ids=["adam", "riemann"])
def test_merge_leaves_the_weight_times_m(fields):
    assert max(merge_error(**fields)) < 1e-12


@pytest.mark.parametrize(("kind", "fields"), [("_StructuredLinear", {}), ("_DenseLinear", RIEMANN)])
def test_merging_by_u_instead_of_its_adjoint_is_caught(kind, fields, monkeypatch):
    kind = getattr(urnn, kind)
    monkeypatch.setattr(kind, "turn_back", kind.turn)
    assert min(merge_error(**fields)) > 0.1


def test_a_saved_state_answers_alike_in_a_fresh_model_of_the_same_seed_only():
    x = torch.randn(4, 20, dtype=torch.float64)
    net, _ = attached(moved=0.1)
    state = {n: v for n, v in net.state_dict().items() if "base" not in n}
    assert {n.split(".")[1] for n in state} == {"phases", "reflectors", "order"}
    for seed, same in ((1, True), (2, False)):
        fresh, _ = attached(seed=seed)
        fresh.load_state_dict(state, strict=False)
        assert torch.equal(fresh(x), net(x)) is same


@pytest.mark.parametrize("before_each", [False, True])
def test_gradients_of_micro_batches_go_back_once_and_equal_autograd(before_each, monkeypatch):
    net, method = attached(Net(20, 20))  # one size: one derivation
    own = {
        role: [p.detach().clone().requires_grad_() for p in getattr(net, role).parameters(recurse=False)]
        for role in "qo"
    }
    M = {role: real(dense(*own[role], getattr(net, role).order)) for role in "qo"}
    batches = torch.randn(3, 6, 20, dtype=torch.float64)
    q, o = net.q.base, net.o.base
    (o(torch.tanh(q(batches @ M["q"].T)) @ M["o"].T) ** 3).sum().backward()
    calls, inner = [], _unitary.derive
    monkeypatch.setattr(_unitary, "derive", lambda *a: calls.append(1) or inner(*a))
    method.before_step(net, STEP)
    if before_each:
        method.before_step(net, STEP)  # as a validation between steps does
    for batch in batches:
        (net(batch) ** 3).sum().backward()
        assert net.q.phases.grad is None
    method.after_backward(net, STEP)
    assert len(calls) == 1 + before_each
    for role, parameters in own.items():
        for p, expected in zip(getattr(net, role).parameters(recurse=False), parameters, strict=True):
            close(p.grad, expected.grad, rtol=1e-10, atol=1e-9)


def test_layers_of_several_sizes_and_one_that_saw_nothing():
    net, method = attached()
    x = torch.randn(4, 20, dtype=torch.float64)
    method.before_step(net, STEP)
    net.q(x).square().sum().backward()
    method.after_backward(net, STEP)
    assert net.q.phases.grad.abs().sum() > 0 and not net.o.phases.grad.any()
    old = net.q(x)
    with torch.no_grad():
        net.q.phases += 0.1
    assert not torch.allclose(net.q(x), old)  # after the step a forward uses the present parameters


def test_bfloat16_base_autocast_and_conv1d():
    x = torch.randn(4, 20)
    exact = Net(dtype=torch.float32)
    net, _ = attached(Net(dtype=torch.float32).bfloat16())
    assert {p.dtype for p in trained(net)} == {torch.float32}
    y = net(x.bfloat16())
    y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16 and net.q.phases.grad.isfinite().all()
    close(y.float(), exact(x), rtol=0, atol=0.03)
    net, _ = attached(Net(dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        y = net.q.turn(x)
        y.square().sum().backward()  # the products' gradients too are in float32
    close(y, x @ layer_matrix(net.q).float().T, rtol=0, atol=1e-5)
    net = Net()
    net.q = Conv1D(14, 20).double().requires_grad_(False)
    before = net(x.double())
    net, method = attached(net)
    close(net(x.double()), before, rtol=0, atol=1e-12)
    method.merge(net)
    close(net(x.double()), before, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("net", "fields", "words"),
    [
        (Net(21, 14), {}, r"^q: uRNN pairs .* even input size; here it is 21"),
        (Net(20, 7), RIEMANN, r"^o: uRNN pairs .* even input size; here it is 7"),
        (Net(), {"update": "sgd"}, "'sgd' is not one of adam, riemann_exp"),
        (Net(), {"as_printed": True}, "as_printed is the sign of update='riemann_exp'"),
        (Net(), {"weight_decay": 0.1}, "no weight_decay"),
    ],
)
def test_what_cannot_be_is_refused_by_name(net, fields, words):
    with pytest.raises(ValueError, match=words):
        attached(net, **fields)


# --------------------------------------------------------------------------- training


def distance(net, x, target):
    return 0.5 * (net(x) - target).square().sum()


def steps(net, method, count, clip=True):
    """``count`` steps of the method's own optimizer towards random targets; the losses."""
    x, target = torch.randn(2, 8, net.q.in_size, dtype=net.q.weight.dtype)
    optimizer, losses = method.optimizer(net), []
    for _ in range(count):
        method.before_step(net, STEP)
        loss = distance(net, x, target)
        loss.backward()
        method.after_backward(net, STEP)
        if clip:
            method.clip(net, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_m_stays_orthogonal_under_adam():
    net, method = attached(Net(20, 54, dtype=torch.float32), learning_rate=1e-2)
    assert method.facts(net)["orthogonality_defect"] < 1e-5
    losses = steps(net, method, 200)
    assert losses[-1] < 0.7 * losses[0]
    facts = json.loads(json.dumps(method.facts(net)))
    assert facts["orthogonality_defect"] < 1e-5
    for layer in (net.q, net.o):
        M = layer.turn(torch.eye(layer.in_size)).detach().T.double()
        direct = float((M.T @ M - torch.eye(layer.in_size)).abs().max())
        assert 0 < direct <= facts["orthogonality_defect"] + 1e-6
        assert abs(float(torch.linalg.det(M)) - 1) < 1e-4


@pytest.mark.parametrize("as_printed", [False, True])
def test_riemann_changes_the_loss_by_half_the_square_of_b_with_the_right_sign(as_printed):
    rate = 1e-6
    net, method = attached(learning_rate=rate, as_printed=as_printed, **RIEMANN)
    x, target = torch.randn(2, 8, 20, dtype=torch.float64)
    before = distance(net, x, target)
    before.backward()
    expected = 0.0
    for layer in (net.q, net.o):
        U, G = torch.view_as_complex(layer.U.detach()), torch.view_as_complex(layer.U.grad)
        expected += float((G @ U.mH - U @ G.mH).abs().square().sum()) * rate / 2
    method.optimizer(net).step()
    change = float((distance(net, x, target) - before).detach())
    assert change == pytest.approx(expected if as_printed else -expected, rel=1e-3)


def test_riemann_descends_and_as_printed_climbs():
    net, method = attached(learning_rate=1e-3, **RIEMANN)
    losses = steps(net, method, 30, clip=False)
    assert all(later < earlier for earlier, later in zip(losses, losses[1:], strict=False))
    net, method = attached(learning_rate=1e-3, as_printed=True, **RIEMANN)
    losses = steps(net, method, 30, clip=False)
    assert all(later > earlier for earlier, later in zip(losses, losses[1:], strict=False))


def test_riemann_starts_as_the_base_and_stays_unitary_for_a_thousand_steps():
    net, method = attached(Net(16, 16, dtype=torch.float32), learning_rate=0.05, **RIEMANN)
    assert torch.equal(net.q.base.weight, Net(16, 16, dtype=torch.float32).q.weight)
    assert method.effective_parameters(net) == 2 * 8**2
    optimizer = method.optimizer(net)
    for _ in range(1000):
        for p in trained(net):
            p.grad = torch.randn_like(p) / 16
        optimizer.step()
    assert float((net.q.U.detach()[..., 0] - torch.eye(8)).abs().max()) > 0.1
    assert method.facts(net)["orthogonality_defect"] <= 1e-6


def test_riemann_moves_many_matrices_as_it_moves_one(monkeypatch):
    moved = []
    for entries in (1, 1 << 22):
        monkeypatch.setattr(urnn, "_BATCH", entries)
        net, method = attached(Net(16, 16), learning_rate=0.1, **RIEMANN)
        torch.manual_seed(2)
        steps(net, method, 3)
        moved.append(torch.stack([net.q.U, net.o.U]))
    close(*moved, rtol=0, atol=1e-12)
