"""DoRA's scaled product and its norm without B A, against dense formulas and plain autograd. In float64."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from harness.contract import Run, Step
from harness.plugins import load_plugin

load_plugin("methods", "dora")
dora = importlib.import_module("tuning_fork_methods.dora")
STEP = Step(0, 10, 0.0)
NAMES = ("q", "v", "o")


class Trio(nn.Module):
    """A Linear, GPT-2's transposed Conv1D, and a Linear without bias."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.v, self.o = nn.Linear(12, 20), Conv1D(20, 20), nn.Linear(20, 12, bias=False)
        self.v.bias.data.normal_()
        self.v.weight.data.normal_()
        self.to(dtype).requires_grad_(False)

    def forward(self, x):
        return self.o(torch.tanh(self.v(torch.tanh(self.q(x)))))


def attached(dtype=torch.float64, started=False, **fields):
    model, method = Trio(dtype), load_plugin("methods", "dora", **{"rank": 4, "alpha": 6.0, **fields})
    method.attach(model, Run(10, dtype, lambda model, _: [(name, getattr(model, name)) for name in NAMES]))
    for name in () if started else NAMES:
        layer = getattr(model, name)
        nn.init.normal_(layer.B)
        layer.magnitude.data.mul_(torch.rand_like(layer.magnitude) + 0.5)
    return model, method


def dense(layer, x, dropped=None):
    """y as the paper has it, with the norm of each output's row of the whole matrix as a constant."""
    weight = layer.base.weight.t() if isinstance(layer.base, Conv1D) else layer.base.weight
    V = weight + layer.scale * layer.B @ layer.A
    scaled = (layer.magnitude / V.norm(dim=1).detach()).unsqueeze(1) * V
    y = x @ scaled.t() if dropped is None else x @ weight.t() + dropped @ (scaled - weight).t()
    return y if layer.bias is None else y + layer.bias


def twin(once_a_step=True, **fields):
    """Two micro-batches' outputs and gradients against the dense twin's."""
    model, method = attached(**fields)
    batches = torch.randn(2, 3, 5, 12, dtype=torch.float64)
    trained = [p for p in model.parameters() if p.requires_grad]
    if once_a_step:
        method.before_step(model, STEP)
    for x in batches:
        x = x.requires_grad_()
        expected, y = x, model(x)
        for name in NAMES:
            expected = dense(getattr(model, name), expected if name == "q" else torch.tanh(expected))
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-11)
        gradients = torch.autograd.grad(expected.sin().sum(), [x, *trained])
        torch.testing.assert_close(torch.autograd.grad(y.sin().sum(), [x, *trained]), gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("once_a_step", [True, False])
def test_forward_and_gradients_equal_the_dense_ones(once_a_step):
    twin(once_a_step)


def whole(layer):
    return dora.matrix(layer.base) + layer.update()


class Plain:
    @staticmethod
    def apply(y, magnitude, lengths, bias):
        return y * (magnitude / lengths) + (0 if bias is None else bias)


class BiasScaled(Plain):
    @staticmethod
    def apply(y, magnitude, lengths, bias):
        return (y if bias is None else y + bias) * (magnitude / lengths)


MUTANTS = {
    "norm of columns": {"_lengths": lambda layers: [whole(n).norm(dim=int(n.in_size != n.out_size)) for n in layers]},
    "norm of the base": {"_lengths": lambda layers: [dora._squares(n).sqrt() for n in layers]},
    "no cross term": {
        "_lengths": lambda layers: [(dora._squares(n) + n.update().square().sum(1)).sqrt().detach() for n in layers]
    },
    "norm not detached": {"_lengths": lambda layers: [whole(n).norm(dim=1) for n in layers], "_Scaled": Plain},
    "bias scaled": {"_Scaled": BiasScaled},
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_dense_twin_catches(mutant, monkeypatch):
    for name, value in MUTANTS[mutant].items():
        monkeypatch.setattr(dora, name, value)
    with pytest.raises(AssertionError):
        twin(once_a_step=False)


def test_with_dropout_the_update_and_the_scaled_excess_see_the_dropped_inputs():
    model, method = attached(dropout=0.4)
    model.train()
    x = torch.randn(2, 3, 12, dtype=torch.float64)
    torch.manual_seed(1)
    dropped = nn.functional.dropout(x, 0.4)
    torch.manual_seed(1)
    y = model.q(x)
    torch.testing.assert_close(y, dense(model.q, x, dropped), rtol=0, atol=1e-12)
    trained = [p for p in model.q.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(dense(model.q, x, dropped).sin().sum(), trained)
    torch.testing.assert_close(torch.autograd.grad(y.sin().sum(), trained), gradients, rtol=1e-10, atol=1e-10)
    model.eval()
    torch.testing.assert_close(model.q(x), dense(model.q, x), rtol=0, atol=1e-12)


def test_the_norm_is_never_that_of_an_earlier_step():
    model, method = attached()
    x = torch.randn(4, 12, dtype=torch.float64)
    method.before_step(model, STEP)
    model(x).sum().backward()
    method.after_backward(model, STEP)
    nn.init.normal_(model.q.B)
    torch.testing.assert_close(model.q(x), dense(model.q, x), rtol=0, atol=1e-12)


def test_merge_gives_back_the_very_modules():
    model, method = attached()
    x = torch.randn(7, 12, dtype=torch.float64)
    bases, before = [getattr(model, name).base for name in NAMES], model(x)
    weight = model.v.magnitude.unsqueeze(1) * nn.functional.normalize(whole(model.v), dim=1)
    method.merge(model)
    assert [getattr(model, name) for name in NAMES] == bases
    torch.testing.assert_close(model.v.weight.t(), weight, rtol=0, atol=1e-12)
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-11)


def test_it_starts_as_the_base_also_where_a_row_is_zero():
    model, method = attached(started=True)
    model.q.base.weight.data[3] = 0
    model.q.magnitude.data[3] = 0
    plain = Trio()
    plain.q.weight.data[3] = 0
    method.before_step(model, STEP)
    x = torch.randn(4, 12, dtype=torch.float64)
    torch.testing.assert_close(
        model(x), plain(x), rtol=1e-14, atol=1e-14
    )  # a bias is added inside or outside the product
    model(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_on_a_bfloat16_base_lengths_are_float32_and_gains_below_its_resolution_are_not_lost():
    model, method = attached(torch.bfloat16, started=True)
    method.before_step(model, STEP)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {model.q.lengths.dtype} == {torch.float32}
    x = torch.randn(64, 12).bfloat16()
    before = model.q(x)
    model.q.magnitude.data.mul_(1.003)  # in bfloat16 that is 1
    assert not torch.equal(model.q(x), before)
    model(x).float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_autocast_leaves_the_norm_in_float32():
    model, method = attached(torch.float32)
    x = torch.randn(8, 12)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        inside = model(x)
        method.before_step(model, STEP)
    torch.testing.assert_close(model.q.lengths, whole(model.q).norm(dim=1), rtol=1e-6, atol=0)
    assert inside.dtype == torch.bfloat16
    torch.testing.assert_close(inside.float(), expected, rtol=0.05, atol=0.1)


def test_lengths_do_not_decay():
    model, method = attached(weight_decay=0.1)
    decays = {id(p): g["weight_decay"] for g in method.optimizer(model).param_groups for p in g["params"]}
    assert {decays[id(getattr(model, name).magnitude)] for name in NAMES} == {0.0}
    assert {decays[id(p)] for name in NAMES for p in (getattr(model, name).A, getattr(model, name).B)} == {0.1}
