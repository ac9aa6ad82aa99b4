"""OFT's blocks, exact and by Neumann's series, in float64; and OFT is BOFT with one factor, to the bit.

The product of blocks, on activations and within a step, is in test_methods_boft.py.
"""

from __future__ import annotations

import importlib

import pytest
import torch

from harness.checks import Case, train
from harness.contract import Run, Step
from harness.models import find_targets
from harness.plugins import load_plugin
from harness.tiny import tiny_model

load_plugin("methods", "oft")  # registers the package that plug-ins and their shared parts are loaded under
butterfly = importlib.import_module("tuning_fork_methods._butterfly")


def same(one, other, tolerance=1e-13):
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def test_a_block_of_two_turns_by_the_closed_form():
    q = torch.linspace(-3, 3, 7, dtype=torch.float64)
    R = butterfly.cayley(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).double() * q[:, None, None])
    cosine, sine = (1 - q**2) / (1 + q**2), 2 * q / (1 + q**2)
    same(R, torch.stack([cosine, -sine, sine, cosine], -1).view(-1, 2, 2), 1e-15)


def test_cayleys_gradient_equals_autograd_through_the_solve():
    S = butterfly.skew(torch.randn(5, 6, 6, dtype=torch.float64)).requires_grad_()
    eye, G = torch.eye(6, dtype=torch.float64), torch.randn(5, 6, 6, dtype=torch.float64)
    (through,) = torch.autograd.grad(torch.linalg.solve(eye + S, eye - S, left=False), S, G)
    (ours,) = torch.autograd.grad(butterfly.cayley(S), S, G)
    same(butterfly.skew(ours), butterfly.skew(through))  # in other directions S would not stay skew
    M = torch.linalg.inv(eye + S)
    same(ours, -(eye + butterfly.cayley(S)).mT @ G @ M.mT)


@pytest.mark.parametrize(("size", "defect"), [(0.03, 1.6e-6), (0.15, 1.0e-3), (0.3, 1.6e-2), (0.6, 0.24), (0.9, 0.88)])
def test_neumann_leaves_the_defect_that_its_series_predicts(size, defect):
    S = butterfly.skew(torch.randn(8, 8, dtype=torch.float64))
    S *= size / torch.linalg.matrix_norm(S, 2)
    R = butterfly.neumann(S, 5)
    found = torch.linalg.matrix_norm(R.t() @ R - torch.eye(8), 2)
    assert found == pytest.approx(1 - (1 - size**4) ** 2, rel=1e-7) and found == pytest.approx(defect, rel=0.03)
    assert butterfly.orthogonality_defect(R) <= found * (1 + 1e-7)
    for terms in range(3, 8):
        error = torch.linalg.matrix_norm(butterfly.neumann(S, terms) - butterfly.cayley(S), 2)
        assert error == pytest.approx(size ** (terms - 1), abs=1e-14)


def test_powers_of_neumann_are_counted_as_terms():
    S = butterfly.skew(torch.randn(4, 4, dtype=torch.float64))
    for terms in (3, 4, 5, 6):
        powers = [torch.linalg.matrix_power(-S, p) for p in range(terms)]
        same(butterfly.neumann(S, terms), powers[0] + 2 * sum(powers[1:-1]) + powers[-1])


# --------------------------------------------------------------------------- the method


def attached(method="oft", **fields):
    model = tiny_model("llama", dtype=torch.float64)[0].requires_grad_(False)
    method = load_plugin("methods", method, **fields)
    method.attach(model, Run(10, torch.float64, find_targets))
    for name, parameter in model.named_parameters():
        if name.endswith("Q"):
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(len(name)))
    return model, method


@pytest.mark.parametrize("cayley", ["exact", "neumann"])
def test_it_is_boft_with_one_factor(cayley):
    (one, oft), (other, boft) = attached(cayley=cayley), attached("boft", factors=1, block_size=32, cayley=cayley)
    ids = torch.arange(5, 17).view(2, 6)
    for model, method in ((one, oft), (other, boft)):
        method.before_step(model, Step(0, 1, 0.0))
        model(input_ids=ids, labels=ids).loss.backward()
        method.after_backward(model, Step(0, 1, 0.0))
    gradients = dict(one.named_parameters())
    for name, parameter in other.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter.grad, gradients[name].grad) and parameter.grad.any()
    assert oft.facts(one) == boft.facts(other)
    assert oft.effective_parameters(one) == boft.effective_parameters(other)
    oft.merge(one), boft.merge(other)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_default_trains_a_tiny_model():
    case = Case("oft", "llama")
    trainer = case.trainer()
    losses = [loss for loss, _ in train(case, trainer)]
    assert losses[-1] < losses[0] - 0.1
    facts = trainer.method.facts(trainer.model)
    assert facts["orthogonality_defect"] <= 1e-5 and facts["factors"] == {"32": 1, "64": 1}
    assert trainer.method.effective_parameters(trainer.model) == sum(
        layer.in_size * 31 // 2 for layer in trainer.method._layers
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_size": 5}, r"q_proj: OFT needs a block_size of at least 2 that divides the input size; 5 .* 32$"),
        ({"block_size": 1}, "OFT needs a block_size of at least 2"),
        ({"block_size": 0}, "OFT needs a block_size of at least 2"),
        ({"cayley": "series"}, "cayley is 'exact' or 'neumann', not 'series'"),
    ],
)
def test_what_it_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        attached(**fields)
