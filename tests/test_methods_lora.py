"""LoRA and full fine-tuning against dense formulas."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from harness.contract import Run
from harness.plugins import load_plugin
from harness.tiny import tiny_model


class Pair(nn.Module):
    """A Linear and GPT-2's transposed Conv1D."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.v = nn.Linear(12, 20), Conv1D(20, 12)
        self.v.bias.data.normal_()
        self.to(dtype).requires_grad_(False)


def attached(dtype=torch.float64, **fields):
    model, method = Pair(dtype), load_plugin("methods", "lora", **fields)
    method.attach(model, Run(10, dtype, lambda model, roles: [("q", model.q), ("v", model.v)]))
    for adapter in (model.q, model.v):
        nn.init.normal_(adapter.B)
    return model, method


@pytest.mark.parametrize(("rslora", "scale"), [(False, 8 / 4), (True, 8 / math.sqrt(4))])
def test_forward_and_gradients_are_those_of_w0_plus_s_b_a(rslora, scale):
    model, _ = attached(rank=4, alpha=8.0, rslora=rslora)
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    for name in ("q", "v"):
        adapter, base = getattr(model, name), getattr(Pair(), name)
        weight = base.weight.t() if name == "v" else base.weight
        A, B = (p.detach().clone().requires_grad_() for p in (adapter.A, adapter.B))
        expected = x @ (weight + scale * B @ A).t() + base.bias
        torch.testing.assert_close(adapter(x), expected, rtol=0, atol=1e-12)
        expected.square().sum().backward()
        adapter(x).square().sum().backward()
        torch.testing.assert_close(adapter.A.grad, A.grad, rtol=1e-12, atol=1e-10)
        torch.testing.assert_close(adapter.B.grad, B.grad, rtol=1e-12, atol=1e-10)


def test_merge_gives_back_the_very_modules():
    model, method = attached(rank=4)
    x = torch.randn(7, 12, dtype=torch.float64)
    bases = model.q.base, model.v.base
    before = model.q(x), model.v(x)
    method.merge(model)
    assert (model.q, model.v) == bases
    torch.testing.assert_close((model.q(x), model.v(x)), before, rtol=0, atol=1e-12)


def test_dropout_acts_in_training_only_and_on_the_update_only():
    model, _ = attached(rank=4, dropout=0.5)
    x = torch.randn(64, 12, dtype=torch.float64)
    model.train()
    assert not torch.equal(model.q(x), model.q(x))
    nn.init.zeros_(model.q.B)
    assert torch.equal(model.q(x), model.q.base(x))
    model.eval()
    assert torch.equal(model.v(x), model.v(x))


def test_adapters_of_a_bfloat16_base_are_float32_and_the_merge_rounds_once():
    model, method = attached(torch.bfloat16, rank=4, alpha=4.0)
    assert {p.dtype for p in (model.q.A, model.q.B)} == {torch.float32}
    assert model.q(torch.randn(2, 3, 12, dtype=torch.bfloat16)).dtype == torch.bfloat16
    expected = (model.q.base.weight.float() + model.q.B @ model.q.A).bfloat16()
    method.merge(model)
    assert torch.equal(model.q.weight, expected)


def test_a_starts_within_the_kaiming_bound_and_the_seed_decides_it():
    torch.manual_seed(5)
    first = attached()[0].q.A
    assert first.abs().max() <= 1 / math.sqrt(12)
    torch.manual_seed(5)
    assert torch.equal(attached()[0].q.A, first)


def test_full_trains_a_tied_weight_once_in_float32_and_gives_the_type_back():
    model = tiny_model("gpt2", dtype=torch.bfloat16)[0].requires_grad_(False)
    count = model.num_parameters()
    method = load_plugin("methods", "full")
    method.attach(model, Run(10, torch.bfloat16, None))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count
    assert sum(p.numel() for group in method.optimizer(model).param_groups for p in group["params"]) == count
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.transformer.wte.weight
    method.merge(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.lm_head.weight is model.transformer.wte.weight


def test_shared_parts_are_not_methods():
    linear = importlib.import_module("tuning_fork_methods._linear")
    assert linear.is_conv1d(Conv1D(2, 2)) and not linear.is_conv1d(nn.Linear(2, 2))
    assert linear.adapter_dtype(torch.zeros(1, dtype=torch.bfloat16)) == torch.float32
