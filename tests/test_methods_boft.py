"""BOFT's structured product against dense matrices, and its once-a-step gradient against plain autograd. In float64."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from torch import nn

from harness.contract import Run, Step
from harness.plugins import load_plugin

load_plugin("methods", "boft")  # registers the package that plug-ins and their shared parts are loaded under
butterfly = importlib.import_module("tuning_fork_methods._butterfly")
STEP = Step(0, 10, 0.0)


class Net(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.o = nn.Linear(width, 24), nn.Linear(24, width, bias=False)
        self.double().requires_grad_(False)

    def forward(self, x):
        return self.o(torch.tanh(self.q(x)))


def attached(roles=("q", "o"), spread=0.3, dtype=torch.float64, **fields):
    net, method = Net().to(dtype), load_plugin("methods", "boft", **fields)
    method.attach(net, Run(10, dtype, lambda model, _: [(role, getattr(model, role)) for role in roles]))
    for parameter in (p for p in net.parameters() if p.requires_grad):
        parameter.data += spread * torch.randn_like(parameter)
    return net, method


def dense_factor(Q, i):
    """F_i: (in, in) of Q: (in/b, b, b) by a permutation matrix and explicit inverses."""
    count, b, _ = Q.shape
    size, half, eye = count * b, b // 2, torch.eye(b, dtype=Q.dtype)
    S = (Q - Q.mT) / 2
    diagonal = torch.block_diag(*((eye - S[k]) @ torch.linalg.inv(eye + S[k]) for k in range(count)))
    order = []  # half-blocks that lie 2^i apart become neighbours
    for start in range(0, size // half, 2 << i):
        for j in range(1 << i):
            order += [start + j, start + j + (1 << i)]
    index = torch.tensor([h * half + e for h in order for e in range(half)])
    P = torch.eye(size, dtype=Q.dtype)[:, index]
    return P @ diagonal @ P.t()


def dense_rotation(Q):
    """R = F_{m-1} ... F_0: (in, in) of Q: (m, in/b, b, b)."""
    R = torch.eye(Q.shape[1] * Q.shape[2], dtype=Q.dtype)
    for i, factor in enumerate(Q):
        R = dense_factor(factor, i) @ R
    return R


def same(one, other, tolerance=1e-13):
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def check_against_the_dense_product(**fields):
    """Forward, gradients and merged weight of one layer; R is orthogonal."""
    net, method = attached(("q",), **fields)
    W, bias = net.q.base.weight, net.q.base.bias
    Q = net.q.Q.detach().requires_grad_()
    s = torch.ones(24, dtype=W.dtype) if net.q.output_scale is None else net.q.output_scale.detach().requires_grad_()
    R = dense_rotation(Q)
    x = torch.randn(3, 5, 32, dtype=torch.float64, requires_grad=True)
    expected = x @ R @ W.t() * s + bias
    dy = torch.randn_like(expected)
    inputs = [x, Q] + [s] * s.requires_grad
    gradients = torch.autograd.grad(expected, inputs, dy)
    same(net.q(x), expected)
    method.before_step(net, STEP)
    y = net.q(x)
    same(y, expected)
    same(net.q.rotation.mT @ net.q.rotation, torch.eye(net.q.rotation.shape[-1]).double().expand_as(net.q.rotation))
    y.backward(dy)
    method.after_backward(net, STEP)
    for ours, theirs in zip([x, net.q.Q] + [net.q.output_scale] * s.requires_grad, gradients, strict=True):
        same(ours.grad, theirs)
    merged = s[:, None] * W @ R.t()
    method.merge(net)
    same(net.q.weight, merged)
    same(net.q(x), expected)


@pytest.mark.parametrize("scale", [False, True], ids=["rotation", "and_scale"])
@pytest.mark.parametrize(("factors", "block"), [(1, 8), (2, 8), (3, 8), (3, 4), (4, 4), (5, 2)])
def test_forward_gradients_and_merge_equal_the_dense_product(factors, block, scale):
    check_against_the_dense_product(factors=factors, block_size=block, output_scale=scale)


def transposed_on_the_way_back(ctx, gradient):
    x, R = ctx.saved_tensors
    return butterfly._product(gradient, R), torch.bmm(butterfly._runs(x, R).mT, butterfly._runs(gradient, R))


def product_in_place(*factors):
    """As if all factors mixed neighbours, so that nothing leaves its block."""
    first, *others = factors
    for factor in others:
        first = factor @ first
    return first


RIGHT = butterfly.block_rotations
MUTANTS = {
    "merge by Q of the other sign": ("RotatedLinear.merged", lambda a, w: butterfly.rotate(w, RIGHT([-a.Q]).mT)),
    "merge by R, not its transpose": ("RotatedLinear.merged", lambda a, w: butterfly.rotate(w, RIGHT([a.Q]))),
    "R, not its transpose, in dx": ("_Rotate.backward", staticmethod(transposed_on_the_way_back)),
    "Q of the other sign": ("block_rotations", lambda Qs, _: RIGHT([-Q for Q in Qs])),
    "factors in reversed order": ("block_rotations", lambda Qs, _: RIGHT([-Q for Q in Qs]).mT),
    "strides in reversed order": ("block_rotations", lambda Qs, _: RIGHT([-Q.flip(0) for Q in Qs]).mT),
    "one stride for all factors": ("block_rotations", lambda Qs, _: product_in_place(*butterfly.exact(Qs[0]))),
    "R scaled": ("block_rotations", lambda Qs, _: 1.001 * RIGHT(Qs)),
    "raw Q for its skew part": ("skew", lambda Q: Q),
    "skew part not halved": ("skew", lambda Q: Q - Q.mT),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_product_is_caught(mutant, monkeypatch):
    where, wrong = MUTANTS[mutant]
    monkeypatch.setattr(f"tuning_fork_methods._butterfly.{where}", wrong)
    with pytest.raises(AssertionError, match="not close"):
        check_against_the_dense_product(factors=3, block_size=4)


def test_the_product_couples_exactly_the_run_of_inputs_that_it_should():
    net, _ = attached(("q",), factors=3, block_size=4)
    R, dense = torch.block_diag(*net.q.derived().detach()), dense_rotation(net.q.Q.detach())
    assert (dense.abs() > 1e-14).double().mean() == 0.5
    assert torch.equal(dense.abs() > 1e-14, torch.block_diag(*[torch.ones(16, 16)] * 2) > 0)
    same(R, dense, 2e-15)
    same(R @ R.t(), torch.eye(32, dtype=R.dtype), 3e-15)


# --------------------------------------------------------------------------- on activations


@pytest.mark.parametrize("shape", [(7, 24), (2, 3, 24)], ids=["rank2", "rank3"])
def test_rotate_and_its_gradients(shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    R = torch.randn(3, 8, 8, dtype=torch.float64, requires_grad=True)
    same(butterfly.rotate(x, R), x @ torch.block_diag(*R))
    assert torch.autograd.gradcheck(butterfly.rotate, (x, R))
    assert torch.autograd.gradcheck(lambda x, R: butterfly.rotate(x.mT.contiguous().mT, R.mT), (x, R))
    (gradient,) = torch.autograd.grad(butterfly.rotate(x, R).sum(), x)  # a gradient without strides
    same(gradient, torch.block_diag(*R).sum(1).expand(shape))


def test_rotate_keeps_x_and_r_alone_for_the_way_back():
    saved = []
    x, R = torch.randn(6, 16, requires_grad=True), torch.randn(2, 8, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        butterfly.rotate(x, R)
    assert saved == [x.data_ptr(), R.data_ptr()]


def test_rotate_copies_nothing_but_its_result():
    x, R = torch.randn(64, 96), torch.randn(3, 32, 32)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        butterfly.rotate(x, R)
    events = profile.key_averages()
    assert "aten::copy_" not in {event.key for event in events}
    assert max(event.cpu_memory_usage for event in events) == x.nbytes


@pytest.mark.parametrize("autocast", [False, True], ids=["bf16", "autocast"])
def test_rotate_in_bfloat16_gathers_its_gradient_in_float32(autocast):
    x, R = torch.randn(6, 16), torch.randn(2, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = butterfly.rotate(x if autocast else x.bfloat16(), R)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert R.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), x @ torch.block_diag(*R), rtol=0.02, atol=0.05)


# --------------------------------------------------------------------------- within a step


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


def test_layers_of_unlike_sizes_are_derived_in_groups():
    """Three factors on 32 inputs, one on 24; and a layer that took no part has no gradient, but zeros."""
    net, method = attached(factors=3, block_size=8, indivisible="fewer_factors")
    Q = {role: getattr(net, role).Q.detach().clone().requires_grad_() for role in ("q", "o")}
    assert [len(q) for q in Q.values()] == [3, 1]
    x = torch.randn(5, 32, dtype=torch.float64)
    plain = Net()
    (plain.o(torch.tanh(plain.q(x @ dense_rotation(Q["q"]))) @ dense_rotation(Q["o"])) ** 3).sum().backward()
    method.before_step(net, STEP)
    (net(x) ** 3).sum().backward()
    method.after_backward(net, STEP)
    for role, q in Q.items():
        torch.testing.assert_close(getattr(net, role).Q.grad, q.grad, rtol=1e-10, atol=1e-9)
    method.before_step(net, STEP)
    net.zero_grad()
    net.q(x).sum().backward()
    method.after_backward(net, STEP)
    assert net.q.Q.grad.any() and not net.o.Q.grad.any()


def test_a_mixture_with_the_identity_is_derived_and_its_gradient_weighted():
    net, method = attached(factors=3, block_size=8, indivisible="fewer_factors")
    layers, weights = [net.q, net.o], torch.tensor([0.25, 0.7])
    rotations = butterfly.Rotations()
    for w in (weights, torch.zeros(2), torch.ones(2)):
        rotations.derive(layers, w)
        for layer, weight in zip(layers, w.double(), strict=True):
            Q = layer.Q.detach().requires_grad_()
            R = torch.eye(layer.in_size).double() * (1 - weight) + weight * dense_rotation(Q)
            same(torch.block_diag(*layer.rotation.detach()), R.detach())
            G = torch.randn_like(layer.rotation)
            (layer.expected,) = torch.autograd.grad(R, Q, torch.block_diag(*G))
            (layer.rotation * G).sum().backward()
        rotations.collect(lambda gradient: gradient)
        for layer in layers:
            same(layer.Q.grad, layer.expected)
            layer.Q.grad = None


def test_a_step_without_before_step_uses_the_present_q():
    net, method = attached(factors=1, block_size=8)
    x = torch.randn(4, 32, dtype=torch.float64)
    method.before_step(net, STEP)
    net(x).sum().backward()
    method.after_backward(net, STEP)
    old = net(x)
    nn.init.normal_(net.q.Q)
    assert not torch.allclose(net(x), old)


@pytest.mark.parametrize("fields", [{}, {"cayley": "neumann"}, {"output_scale": True}, {"update": "printed"}], ids=str)
def test_it_starts_at_the_identity_to_the_bit(fields):
    net, method = attached(spread=0.0, factors=2, block_size=4, **fields)
    x = torch.randn(4, 32, dtype=torch.float64)
    assert torch.equal(net(x), Net()(x))
    method.before_step(net, STEP)
    assert torch.equal(net(x), Net()(x))


def trained(steps=200, rate=1e-2, **fields):
    """(net, method, losses) after AdamW in float32; the target is another net's answer."""
    net, method = attached(spread=0.0, dtype=torch.float32, **{"factors": 2, "block_size": 4, **fields})
    generator = torch.Generator().manual_seed(0)
    x, target = torch.randn(64, 32, generator=generator), torch.randn(64, 32, generator=generator)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    losses = []
    for index in range(steps):
        step = Step(index, steps, rate)
        method.before_step(net, step)
        loss = ((net(x) - target) ** 2).mean()
        loss.backward()
        method.after_backward(net, step)
        optimizer.step()
        method.after_step(net, step)
        optimizer.zero_grad()
        losses.append(loss.item())
    return net, method, losses


@pytest.mark.parametrize("fields", [{}, {"output_scale": True}, {"update": "printed"}], ids=str)
def test_trained_in_float32_the_rotations_stay_orthogonal(fields):
    net, method, losses = trained(**fields)
    start = attached(spread=0.0, dtype=torch.float32, factors=2, block_size=4, **fields)[0]
    assert all(
        (a - b).abs().max() > 0.1 for a, b in zip(net.parameters(), start.parameters(), strict=True) if a.requires_grad
    )
    assert losses[-1] < 0.9 * losses[0]
    assert method.facts(net)["orthogonality_defect"] <= 1e-5


# --------------------------------------------------------------------------- options


def test_the_printed_update_projects_free_blocks_and_is_another_training():
    net, method, losses = trained(5, update="printed")
    same(net.q.Q @ net.q.Q.mT, torch.eye(4).expand_as(net.q.Q), 1e-6)
    other = trained(5)[2]
    assert losses[0] == other[0] and abs(losses[4] - other[4]) > 1e-4 * other[4]
    F = torch.eye(4) + 0.1 * torch.randn(3, 4, 4)
    U, _, V = torch.linalg.svd(F)
    net.q.Q.data[0, :3] = F
    net.q.Q.data[0, 3, 0, 0] = math.nan
    method.after_step(net, STEP)
    same(net.q.Q.detach()[0, :3], U @ V, 1e-5)
    assert net.q.Q.detach()[0, 3].isnan().any(), "the loop reports what is no number; the projection lets it pass"


def test_neumann_logs_its_defect_and_records_its_terms():
    seen = []
    net, method = attached(factors=2, block_size=4, cayley="neumann", neumann_terms=6)
    method.before_step(net, Step(0, 10, 0.0, _log=lambda *row: seen.append(row)))
    facts = method.facts(net)
    assert facts == {"orthogonality_defect": float(seen[0][1]), "factors": {"32": 2, "24": 2}, "terms": 6}
    assert [name for name, _ in seen] == ["orthogonality_defect"] and 1e-5 < facts["orthogonality_defect"] < 1.0
    S = butterfly.skew(net.q.Q.detach())
    same(net.q.rotation.detach(), RIGHT([S], lambda S: butterfly.neumann(S, 6)))


def test_fewer_factors_where_the_input_does_not_divide_are_in_the_record():
    net, method = attached(spread=0.0, factors=3, block_size=8, indivisible="fewer_factors")
    facts = method.facts(net)
    assert facts["factors"] == {"32": 3, "24": 1} and facts["fewer_factors"] == {"o": 1}
    net, method = attached(("q",), factors=3, block_size=8, indivisible="fewer_factors")
    assert "fewer_factors" not in method.facts(net)


@pytest.mark.parametrize(
    ("sizes", "factors"),
    [((32, 3, 8), 3), ((48, 3, 8), 2), ((24, 3, 8), 1), ((20, 3, 8), 0), ((15, 3, 5), 1), ((40, 9, 2), 3)],
)
def test_the_largest_number_of_factors_that_fits(sizes, factors):
    assert butterfly.butterfly_factors(*sizes) == factors


@pytest.mark.parametrize(
    ("fields", "scales"),
    [({}, 0), ({"output_scale": True}, 24 + 32), ({"update": "printed"}, 0), ({"cayley": "neumann"}, 0)],
    ids=str,
)
def test_counts_trained_and_effective(fields, scales):
    net, method = attached(factors=2, block_size=4, **fields)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 2 * 4 * (32 + 24) + scales
    assert method.effective_parameters(net) == 2 * (32 + 24) * 3 // 2 + scales
    net, method = attached(factors=3, block_size=8, indivisible="fewer_factors", **fields)
    assert method.effective_parameters(net) == (3 * 32 + 24) * 7 // 2 + scales


@pytest.mark.parametrize("fields", [{"factors": 4, "block_size": 8}, {"factors": 1, "block_size": 5}])
def test_sizes_that_do_not_divide_are_refused_by_name(fields):
    with pytest.raises(ValueError, match=r"^q: BOFT with factors=\d and block_size=\d.*; here it is 32"):
        attached(("q",), **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"factors": 4}, "up to 3 factors, or set indivisible='fewer_factors'"),
        ({"block_size": 5, "indivisible": "fewer_factors"}, r"is 32. Choose a smaller block_size\.$"),
        ({"factors": 2, "block_size": 1}, "block_size >= 2, not 2 and 1"),
        ({"indivisible": "skip"}, "indivisible is 'error' or 'fewer_factors', not 'skip'"),
        ({"update": "polar"}, "update is 'cayley' or 'printed', not 'polar'"),
        ({"cayley": "series"}, "cayley is 'exact' or 'neumann', not 'series'"),
        ({"cayley": "neumann", "neumann_terms": 2}, "neumann_terms=2 is too few"),
        ({"cayley": "neumann", "update": "printed"}, "cayley='neumann' does not go with it"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_it_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        attached(("q",), **fields)
