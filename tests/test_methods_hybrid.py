"""Hybrid against the dense weight that it stands for, its two halves, and lambda's rule. In float64."""

from __future__ import annotations

import importlib
import json
import math

import pytest
import torch
from torch import nn

from harness.contract import Probe, Run, Step
from harness.plugins import load_plugin

load_plugin("methods", "hybrid")  # registers the package that plug-ins and their shared parts are loaded under
hybrid, mixing, butterfly = (
    importlib.import_module(f"tuning_fork_methods.{name}") for name in ("hybrid", "_mixing", "_butterfly")
)

TOTAL = 40
DATA = torch.randn(12, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
SMALL = {"rank": 3, "factors": 2, "block_size": 4, "learning_rate": 3e-3, "orthogonal_learning_rate": 1e-2}
OFF = {"clamp": (0.0, 1.0)}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.o = nn.Linear(16, 24), nn.Linear(24, 8, bias=False)
        self.double().requires_grad_(False)

    def forward(self, x):
        return self.o(torch.tanh(self.q(x)))


def loss(net, x=DATA):
    return (net(x) - x[:, :8].cos()).square().sum() / len(DATA)


class Gradients(Probe):
    """The mean gradients of the untouched weights."""

    def mean_gradients(self, parameters, count, visit):
        net = Net().requires_grad_()
        loss(net).backward()
        torch.manual_seed(1)
        for name in parameters:
            visit(name, getattr(net, name.split(".")[0]).weight.grad)


def attached(method="hybrid", total=TOTAL, **fields):
    if method == "hybrid":
        fields = SMALL | fields
    net, method = Net(), load_plugin("methods", method, **fields)
    method.attach(net, Run(total, torch.float64, lambda model, _: [("q", model.q), ("o", model.o)]))
    method.initialize(net, Gradients())
    return net, method


def moved(**fields):
    """Attached, with A, B, Q and lambda anywhere."""
    net, method = attached(**fields)
    torch.manual_seed(2)
    for share, layer in zip((0.3, 0.8), (net.q, net.o), strict=True):
        for parameter in (layer.A, layer.B, layer.Q):
            parameter.data += 0.3 * torch.randn_like(parameter)
        layer.lambda_.fill_(share)
    return net, method


def gradient_step(net, method, index=0, total=TOTAL, parts=1, logged=None):
    step = Step(index, total, 0.0, _log=(lambda *_: None) if logged is None else logged)
    method.before_step(net, step)
    for part in DATA.chunk(parts):
        value = loss(net, part)
        value.backward()
    method.after_backward(net, step)
    return value


def train(net, method, steps=TOTAL, **options):
    """Losses, with each step's lambda of all layers."""
    optimizer, losses, shares = method.optimizer(net), [], []
    for index in range(steps):
        losses.append(float(gradient_step(net, method, index, **options).detach()))
        optimizer.step()
        method.after_step(net, Step(index, TOTAL, 0.0))
        optimizer.zero_grad()
        if hasattr(net.q, "lambda_"):
            shares.append([float(net.q.lambda_), float(net.o.lambda_)])
    return torch.tensor(losses, dtype=torch.float64), torch.tensor(shares)


# --------------------------------------------------------------------------- what the model is


def weights(net, method):
    """(W of q, W of o) by the formula, and the leaves A, B, Q of both that they depend on."""
    effective, leaves = [], []
    for layer in (net.q, net.o):
        A, B, Q = (p.detach().clone().requires_grad_() for p in (layer.A, layer.B, layer.Q))
        share = layer.lambda_.double()
        low, turn = (share, 1 - share) if method.mix in ("forward", "constant") else (1.0, 1.0)
        R = torch.block_diag(*butterfly.block_rotations([Q]))
        W0, s = layer.base.weight, method.alpha / math.sqrt(method.rank)
        effective.append(W0 + low * s * (B @ A - layer.B0 @ layer.A0) + turn * (W0 @ R.T - W0))
        leaves += [A, B, Q]
    return effective, leaves


def check_against_the_dense_weight(mix):
    net, method = moved(mix=mix)
    (Wq, Wo), leaves = weights(net, method)
    plain = torch.tanh(DATA @ Wq.T + net.q.bias) @ Wo.T
    torch.testing.assert_close(net(DATA), plain, rtol=0, atol=1e-12)
    ((plain - DATA[:, :8].cos()).square().sum() / len(DATA)).backward()
    gradient_step(net, method, parts=3)
    ours = [p for layer in (net.q, net.o) for p in (layer.A, layer.B, layer.Q)]
    for p, leaf in zip(ours, leaves, strict=True):
        torch.testing.assert_close(p.grad, leaf.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mix", ["forward", "update", "sum", "constant"])
def test_forward_and_gradients_equal_autograd_through_the_dense_weight(mix):
    check_against_the_dense_weight(mix)


class Unweighed(butterfly.Rotations):
    def derive(self, layers, mix=None):
        super().derive(layers, mix)
        self._groups = [(layers, R, None) for layers, R, _ in self._groups]


MUTANTS = {
    "shares swapped": ("_HybridLinear._low_rank_weight", lambda self: (1 - self.lambda_) * self.scale),
    "no scale": ("_HybridLinear._low_rank_weight", lambda self: self.lambda_),
    "rotated backwards": ("rotate", lambda x, R: butterfly.rotate(x, R.mT)),
    "start added": ("add_low_rank", lambda y, x, A, B, s, f: hybrid_add(y, x, A, B, s, (-f[0], f[1]))),
    "start forgotten": ("add_low_rank", lambda y, x, A, B, s, f: hybrid_add(y, x, A, B, s)),
    "dQ without its share": ("Rotations", Unweighed),
}
hybrid_add = hybrid.add_low_rank


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_formula_is_caught(mutant, monkeypatch):
    name, wrong = MUTANTS[mutant]
    place = hybrid
    for part in name.split(".")[:-1]:
        place = getattr(place, part)
    monkeypatch.setattr(place, name.split(".")[-1], wrong)
    with pytest.raises(AssertionError):
        check_against_the_dense_weight("forward")


@pytest.mark.parametrize("mix", ["forward", "update", "sum", "constant"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95, 1.0])
def test_it_starts_as_the_base_for_every_lambda(mix, share):
    net, method = attached(mix=mix, lambda_init=share, **OFF)
    assert net.q.A.any() and net.q.B.any(), "the start came from a gradient"
    for hook in (lambda *_: None, method.before_step):
        hook(net, Step(0, TOTAL, 0.0))
        torch.testing.assert_close(net(DATA), Net()(DATA), rtol=0, atol=1e-13)


@pytest.mark.parametrize("mix", ["forward", "sum"])
def test_merged_is_the_forward(mix):
    net, method = moved(mix=mix)
    (Wq, Wo), _ = weights(net, method)
    before = net(DATA)
    method.merge(net)
    torch.testing.assert_close(net.q.weight, Wq, rtol=0, atol=1e-12)
    torch.testing.assert_close(net(DATA), before, rtol=0, atol=1e-12)
    assert type(net.o) is nn.Linear


def test_the_base_multiplies_once():
    net, method = moved()
    calls = []
    net.q.base.register_forward_hook(lambda *_: calls.append(1))
    gradient_step(net, method)
    assert len(calls) == 1


# --------------------------------------------------------------------------- its two halves


@pytest.mark.parametrize("mix", ["constant", "forward"])
def test_lambda_one_trains_as_lora_ga(mix):
    ours, shares = train(*attached(mix=mix, lambda_init=1.0, **OFF))
    theirs, _ = train(*attached("lora_ga", rank=3, learning_rate=SMALL["learning_rate"]))
    assert (shares == 1).all() and ours[-1] < 0.8 * ours[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mix", ["constant", "forward"])
def test_lambda_zero_trains_as_boft(mix):
    ours, shares = train(*attached(mix=mix, lambda_init=0.0, **OFF))
    rate = SMALL["orthogonal_learning_rate"]
    net, method = attached("boft", factors=2, block_size=4, learning_rate=rate)
    theirs, _ = train(net, method)
    assert (shares == 0).all() and ours[-1] < 0.8 * ours[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_update_scales_adams_steps_and_the_model_does_not_depend_on_lambda():
    net, method = attached(mix="update", ema=0.0, **OFF)
    free, other = attached(mix="sum")
    for model, own in ((net, method), (free, other)):
        optimizer = own.optimizer(model)
        gradient_step(model, own)
        old = [p.detach().clone() for p in own._trained()]
        optimizer.step()
        own.after_step(model, Step(0, TOTAL, 0.0))
    shares = [s for layer in (net.q, net.o) for s in (layer.lambda_, layer.lambda_, 1 - layer.lambda_)]
    assert all(0 < s < 1 and s != 0.5 for s in shares)
    for p, start, whole, share in zip(method._trained(), old, other._trained(), shares, strict=True):
        torch.testing.assert_close(p - start, share * (whole - start), rtol=1e-6, atol=1e-12)
    now = loss(net)
    net.q.lambda_.fill_(0.9)
    assert torch.equal(loss(net), now) and now < loss(Net())


# --------------------------------------------------------------------------- lambda


def test_the_clamp_holds_in_training():
    _, shares = train(*attached(clamp=(0.49, 0.51), ema=0.0))
    assert shares.min() > 0.49 - 1e-6 and shares.max() < 0.51 + 1e-6


def test_a_step_without_any_gradient_keeps_lambda_and_all_that_trains():
    net, method = attached()
    optimizer, before = method.optimizer(net), [p.detach().clone() for p in method._trained()]
    method.before_step(net, Step(0, TOTAL, 0.0))
    (loss(net) * 0).backward()
    net.o.A.grad = None
    method.after_backward(net, Step(0, TOTAL, 0.0))
    optimizer.step()
    assert net.q.lambda_ == net.o.lambda_ == 0.5
    assert all(torch.equal(p, old) for p, old in zip(method._trained(), before, strict=True))


def branch(net, norm, rates=(1.0, 1.0)):
    low, turn = mixing.branch_sizes([net.q.A.grad, net.q.B.grad], [net.q.Q.grad], norm, rates)
    return float(low), float(turn)


def test_decrease_is_what_the_next_step_of_adam_buys():
    net, method = attached(mix="sum")
    gradient_step(net, method)
    low, turn = branch(net, "decrease", (1e-7, 1e-7))
    with torch.no_grad():
        for size, moving in ((low, (net.q.A, net.q.B)), (turn, (net.q.Q,))):
            before = loss(net)
            for p in moving:
                p -= 1e-7 * p.grad.sign()
            assert float(before - loss(net)) == pytest.approx(size, rel=1e-4)


def first_target(**fields):
    net, method = attached(ema=0.0, **OFF, **fields)
    gradient_step(net, method)
    return float(net.q.lambda_)


def test_gamma_sets_rms_but_not_decrease_at_a_rate_that_moves_the_weights_as_far():
    targets = {
        norm: [first_target(lambda_norm=norm, gamma=g, learning_rate=1e-3 * math.sqrt(g)) for g in (1, 16, 256)]
        for norm in ("decrease", "rms")
    }
    assert targets["decrease"] == pytest.approx([targets["decrease"][0]] * 3, rel=1e-5)
    odds = [share / (1 - share) for share in targets["rms"]]
    assert odds == pytest.approx([odds[0], odds[0] / 4, odds[0] / 16], rel=1e-4)


@pytest.mark.parametrize("mix", ["forward", "update"])
def test_lambda_is_logged_as_it_acted(mix):
    """In the forward from the next step on; on Adam's steps at once."""
    net, method = moved(mix=mix, ema=0.0)
    logged = {}
    before = torch.stack([net.q.lambda_, net.o.lambda_])
    method.before_step(net, Step(0, TOTAL, 0.0))
    acted = net.q.rotation.detach().clone()
    gradient_step(net, method, logged=logged.__setitem__)
    after = torch.stack([net.q.lambda_, net.o.lambda_])
    assert (after != before).all() and after.shape == logged["lambda"].shape == (2,)
    assert torch.equal(logged["lambda"], before if mix == "forward" else after)
    R = butterfly.block_rotations([net.q.Q.detach()])
    eye = torch.eye(8, dtype=R.dtype)
    torch.testing.assert_close(acted, R if mix == "update" else eye + (1 - before[0].double()) * (R - eye))


def test_lambda_stands_still_in_the_last_tenth():
    _, shares = train(*attached(ema=0.5))
    assert (shares[35] != shares[34]).all() and (shares[36:] == shares[35]).all()


@pytest.mark.parametrize("mix", ["sum", "constant"])
def test_lambda_stands_still_where_it_is_given(mix):
    _, shares = train(*attached(mix=mix), steps=5)
    assert (shares == 0.5).all()


@pytest.mark.parametrize("norm", ["decrease", "rms", "raw"])
def test_micro_batches_give_the_lambda_of_one_batch(norm):
    one, other = (train(*attached(lambda_norm=norm), parts=parts)[1] for parts in (1, 4))
    assert (one[-1] - 0.5).abs().max() > 0.01
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_lambda_is_saved_and_goes_on_where_it_was():
    whole = train(*attached())[1]
    net, method = attached()
    train(net, method, steps=7)
    other, again = attached()
    other.load_state_dict(net.state_dict())
    assert other.q.lambda_.dtype == torch.float32
    assert torch.equal(torch.stack([other.q.lambda_, other.o.lambda_]), whole[6])


# --------------------------------------------------------------------------- the record, and what is refused


def test_facts_and_counts():
    net, method = attached()
    train(net, method, steps=5)
    facts = method.facts(net)
    json.dumps(facts)
    shares = sorted(float(layer.lambda_) for layer in (net.q, net.o))
    assert (facts["lambda"]["min"], facts["lambda"]["max"]) == tuple(shares)
    assert facts["lambda"]["median"] == pytest.approx(sum(shares) / 2)
    assert facts["orthogonality_defect"] < 1e-12
    assert facts["gradient_rank"] == {"q": 12, "o": 8} and facts["directions_missing"] == 0
    assert method.effective_parameters(net) == 3 * (16 + 24 + 24 + 8) + 2 * (16 + 24) * 3 // 2
    assert "lambda" not in attached(mix="sum")[1].facts(attached(mix="sum")[0])


def test_fewer_factors_where_the_size_asks_for_them():
    net, method = attached(factors=3, indivisible="fewer_factors")
    assert (len(net.q.Q), len(net.o.Q)) == (3, 2)
    assert method.facts(net)["fewer_factors"] == {"o": 2}
    ours, _ = train(net, method, steps=10)
    assert ours[-1] < ours[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mix": "geodesic"}, "mix is 'forward' or .*, not 'geodesic'"),
        ({"lambda_norm": "relative"}, "lambda_norm is 'decrease' or 'rms' or 'raw', not 'relative'"),
        ({"lambda_init": 0.01}, "lambda_init=0.01 lies outside 0.05 to 0.95"),
        ({"clamp": (-0.1, 0.9)}, "clamp"),
        ({"ema": 1.5}, "within 0 to 1, not 1.5"),
        ({"factors": 0}, "factors >= 1"),
        (
            {"factors": 3},
            r"^o: Hybrid with factors=3 and block_size=4.*multiple.* = 16.*here it is 24.*up to 2 factors",
        ),
        ({"rank": 9}, r"^o: Hybrid takes rank=9.*\(8, 24\)"),
    ],
)
def test_what_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        attached(**fields)
