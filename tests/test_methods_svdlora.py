"""SVDLoRA against its definition on dense matrices, and its cheaper route against its dense one. In float64."""

from __future__ import annotations

import importlib
import math

import pytest
import torch

from harness.contract import Run, Step
from harness.plugins import load_plugin
from tests.dense_als import BATCH, ROLES, ROWS, Net, gradients, loss, same, svd_r

load_plugin("methods", "svdlora")  # registers the package that plug-ins and their shared parts are loaded under
svdlora, captured = (importlib.import_module(f"tuning_fork_methods.{name}") for name in ("svdlora", "_captured"))
RANK, RATE = 3, 0.1


def built(**fields):
    fields = {"rank": RANK, "alpha": 1.5, "learning_rate": RATE, "direction": "sgd", **fields}
    net, method = Net(), load_plugin("methods", "svdlora", **fields)
    method.attach(net, Run(20, torch.float64, lambda model, _: [(role, getattr(model, role)) for role in ROLES]))
    return net, method, method.optimizer(net)


def rows_of(index, rows):
    return BATCH.roll(index, 0)[:rows]


def one_step(net, method, optimizer, index=0, split=1, rows=ROWS, max_norm=math.inf):
    step = Step(index, 20, RATE, micro_batches=split)
    method.before_step(net, step)
    for batch in rows_of(index, rows).chunk(split):
        loss(net, batch, rows).backward()
    method.after_backward(net, step)
    norm = method.clip(net, max_norm)
    optimizer.step()
    optimizer.zero_grad()
    return norm


def twin(method, steps, rows=ROWS, max_norm=math.inf):
    """({role: (Delta, target before truncation)}, norms)."""
    base = {role: getattr(Net(), role).weight.detach() for role in ROLES}
    deltas, targets = {role: torch.zeros_like(W) for role, W in base.items()}, {}
    state = {role: [0.0, 0.0] for role in ROLES}
    norms, b = [], method.betas
    for index in range(steps):
        found = gradients({role: base[role] + deltas[role] for role in ROLES}, [rows_of(index, rows)], rows)
        norms.append(torch.stack([G.square().sum() for G, _, _ in found.values()]).sum().sqrt())
        for role, (G, _, _) in found.items():
            G = G * min(1.0, max_norm / (float(norms[-1]) + 1e-6))
            one = state[role]
            if method.direction == "adamw":
                one[0], one[1] = b[0] * one[0] + (1 - b[0]) * G, b[1] * one[1] + (1 - b[1]) * G * G
                t = index + 1
                D = one[0] / (1 - b[0] ** t) / ((one[1] / (1 - b[1] ** t)).sqrt() + method.epsilon)
            else:
                D = one[0] = method.momentum * one[0] + G
            targets[role] = (1 - RATE * method.weight_decay) * deltas[role] - RATE * D
            deltas[role] = svd_r(targets[role], RANK)
    return {role: (deltas[role], targets[role]) for role in ROLES}, norms


def off_the_twin(steps=4, split=1, rows=ROWS, max_norm=math.inf, **fields):
    net, method, optimizer = built(**fields)
    expected, norms = twin(method, steps, rows, max_norm)
    worst = 0.0
    for index in range(steps):
        norm = one_step(net, method, optimizer, index, split, rows, max_norm)
        worst = max(worst, abs(float(norm / norms[index]) - 1))
    for role, (delta, _) in expected.items():
        worst = max(worst, float((getattr(net, role).update().detach() - delta).norm() / delta.norm()))
    return worst


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"momentum": 0.75, "weight_decay": 0.5},
        {"direction": "adamw", "weight_decay": 0.5},
        {"direction": "adamw", "betas": (0.8, 0.95), "epsilon": 1e-2},
        {"alpha": 9.0},
        {"route": "dense"},
        {"route": "factored"},
    ],
    ids=str,
)
@pytest.mark.parametrize("max_norm", [math.inf, 0.1])
def test_equals_its_definition(fields, max_norm):
    assert off_the_twin(max_norm=max_norm, **fields) < 1e-10


@pytest.mark.parametrize("split", [1, 2, 3])
@pytest.mark.parametrize("route", ["dense", "factored", "auto"])
def test_routes_agree_over_micro_batches(route, split):
    assert off_the_twin(route=route, split=split, rows=5) < 1e-10
    assert off_the_twin(route=route, split=split) < 1e-10


def test_few_rows_take_the_cheaper_route_by_themselves(monkeypatch):
    taken = []
    for name in ("_dense", "_factored"):
        right = getattr(svdlora._TruncatedSteps, name)
        monkeypatch.setattr(
            svdlora._TruncatedSteps,
            name,
            lambda self, *given, n=name, right=right: taken.append(n) or right(self, *given),
        )
    for fields, rows, split, expected in (
        ({}, 6, 1, ["_factored"] * 3),
        ({}, 8, 1, ["_factored", "_factored", "_dense"]),  # 3 + 8 rows is below 12 of q and k, not below 10 of o
        ({}, 9, 1, ["_dense"] * 3),
        ({}, 6, 2, ["_factored"] * 3),
        ({}, 10, 3, ["_dense"] * 3),  # the micro-batches have 4, 4 and 2 rows
        ({}, 5, 5, ["_factored"] * 3),
        ({"momentum": 0.5}, 6, 1, ["_dense"] * 3),
        ({"direction": "adamw"}, 6, 1, ["_dense"] * 3),
    ):
        net, method, optimizer = built(**fields)
        taken.clear()
        one_step(net, method, optimizer, rows=rows, split=split)
        assert taken == expected, (fields, rows, split)


def test_more_rows_than_the_first_micro_batch_promised_end_dense():
    """Kept as pairs in the hope of few rows, then there were many: the step is dense, and the same."""
    found = []
    for route in ("auto", "dense"):
        net, method, optimizer = built(route=route)
        method.before_step(net, Step(0, 20, RATE, micro_batches=2))
        for batch in (BATCH[:3], BATCH[3:]):
            loss(net, batch, len(BATCH)).backward()
        if route == "auto":
            assert net.q.gradient.pairs and net.q.gradient.dense is not None
        method.after_backward(net, Step(0, 20, RATE))
        assert not net.q.gradient.pairs
        optimizer.step()
        found.append(net.q.update().detach())
    same(*found)


@pytest.mark.parametrize("route", ["dense", "factored"])
def test_rank_tail_and_balance(route):
    """rank(Delta) <= r, ||Delta - target|| is the target's tail and is what is logged, U^T U = V^T V."""
    net, method, optimizer = built(route=route)
    for index in range(3):
        one_step(net, method, optimizer, index)
    logged = {}
    method.after_step(net, Step(2, 20, RATE, _log=logged.__setitem__))
    expected, _ = twin(method, 3)
    for role, share in zip(ROLES, logged["energy_cut_off"], strict=True):
        delta, target = getattr(net, role).update().detach(), expected[role][1]
        tail = torch.linalg.svdvals(target)[RANK:]
        assert torch.linalg.matrix_rank(delta, rtol=1e-10) == RANK
        same((delta - target).norm(), tail.norm(), 1e-9)
        assert tail.norm() > 1e-3 * target.norm()
        same(share, tail.square().sum() / target.square().sum(), 1e-9)
        A, B = getattr(net, role).A.detach(), getattr(net, role).B.detach()
        same(A @ A.T, B.T @ B, 1e-9)


def test_neither_gauge_nor_alpha_is_seen():
    found = []
    for alpha, turn in ((1.5, False), (1.5, True), (12.0, False)):
        net, method, optimizer = built(alpha=alpha)
        for index in range(3):
            one_step(net, method, optimizer, index)
            if turn:
                torch.manual_seed(3)
                R = torch.randn(RANK, RANK, dtype=torch.float64) + 3 * torch.eye(RANK)
                with torch.no_grad():
                    net.q.B.copy_(net.q.B @ R)
                    net.q.A.copy_(torch.linalg.inv(R) @ net.q.A)
        found.append(net.q.update().detach())
    same(found[0], found[1], 1e-10)
    same(found[0], found[2], 1e-10)


@pytest.mark.parametrize("route", ["dense", "factored"])
def test_a_gradient_of_low_rank_or_none_is_no_trouble(route):
    net, method, optimizer = built(route=route)
    one_step(net, method, optimizer, rows=1)
    assert all(p.isfinite().all() for p in net.parameters()) and net.q.update().any()
    before = net.q.update().detach()
    method.before_step(net, Step(1, 20, RATE))
    (0 * net(BATCH)).sum().backward()
    method.after_backward(net, Step(1, 20, RATE))
    assert float(method.clip(net, 1.0)) == 0.0
    optimizer.step()
    same(net.q.update().detach(), before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("fields", [{"route": "dense"}, {"route": "factored"}, {"direction": "adamw"}], ids=str)
def test_a_broken_gradient_leaves_the_factors(bad, fields):
    net, method, optimizer = built(**fields)
    one_step(net, method, optimizer)
    before = {role: getattr(net, role).update().detach() for role in ROLES}
    method.before_step(net, Step(1, 20, RATE))
    (bad * loss(net)).backward()
    method.after_backward(net, Step(1, 20, RATE))
    assert not method.clip(net, 1.0).isfinite()
    optimizer.step()
    for role in ROLES:
        assert torch.equal(getattr(net, role).update(), before[role])


def test_no_gradient_of_the_factors_is_computed():
    net, method, _ = built()
    method.before_step(net, Step(0, 20, RATE))
    loss(net).backward()
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("fields", [{}, {"momentum": 0.5}, {"direction": "adamw"}], ids=str)
def test_resumes_to_the_bit(fields, tmp_path):
    net, method, optimizer = built(**fields)
    for index in range(3):
        one_step(net, method, optimizer, index)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    other, again, restored = built(**fields)
    other.load_state_dict(net.state_dict())
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for index in range(3, 6):
        one_step(net, method, optimizer, index)
        one_step(other, again, restored, index)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_state_has_the_size_it_says():
    for fields, copies in (({}, 0), ({"momentum": 0.5}, 1), ({"direction": "adamw"}, 2)):
        net, _, optimizer = built(**fields)
        held = sum(v.numel() for one in optimizer.state.values() for k, v in one.items() if k != "step")
        assert held == copies * sum(getattr(net, role).base.weight.numel() for role in ROLES)


def unbalanced_scale(self, layer, rate, keep, right=svdlora._TruncatedSteps._factored):
    U, V, cut = right(self, layer, rate, keep)
    return U * layer.scale**0.5, V, cut


def uphill(self, layer, rate, keep, right=svdlora._TruncatedSteps._factored):
    return right(self, layer, -rate, keep)


MUTANTS = {
    "the scale half left": (svdlora._TruncatedSteps, "_factored", unbalanced_scale),
    "uphill": (svdlora._TruncatedSteps, "_factored", uphill),
    "clipping unseen": (svdlora._TruncatedSteps, "factor", property(lambda self: 1.0, lambda self, value: None)),
    "half of S": (captured.Capture, "keeps", lambda self, S, X: S.mul_(0.5) is not None),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_definition_sees(mutant, monkeypatch):
    where, name, wrong = MUTANTS[mutant]
    monkeypatch.setattr(where, name, wrong, raising=False)
    assert off_the_twin(max_norm=0.1, route="factored") > 1e-3


@pytest.mark.parametrize(
    ("fields", "say"),
    [
        ({"direction": "adam"}, "direction is 'sgd' or 'adamw'"),
        ({"route": "fast"}, "route is 'auto' or 'dense' or 'factored'"),
        ({"direction": "adamw", "momentum": 0.9}, "belongs to direction 'sgd'"),
        ({"direction": "adamw", "route": "factored"}, "moments are dense"),
        ({"rank": 11}, "o: rank=11 is above"),
    ],
)
def test_wrong_options_are_refused_in_words(fields, say):
    with pytest.raises(ValueError, match=say):
        built(**fields)
