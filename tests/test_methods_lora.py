"""LoRA and full fine-tuning against dense formulas."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from harness.contract import Run
from harness.plugins import load_plugin
from harness.tiny import tiny_model

load_plugin("methods", "lora")
low_rank = importlib.import_module("tuning_fork_methods._low_rank")
TOKENS, IN, OUT, RANK = 15, 12, 20, 4


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


def factors(dtype=torch.float64):
    """y, x, A, B, A0, B0; the first four with gradients, y no leaf, as a base's output."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(TOKENS, OUT), (TOKENS, IN), (RANK, IN), (OUT, RANK), (RANK, IN), (OUT, RANK)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [tensor.requires_grad_() for tensor in tensors[:4]] + tensors[4:]


def twin_of_add_low_rank(frozen, scale):
    """The update and its gradients against plain autograd over dense products."""
    y, x, A, B, A0, B0 = factors()
    update = B @ A - (B0 @ A0 if frozen else 0)
    expected = y + float(scale) * x @ update.t()
    gradients = torch.autograd.grad(expected.sin().sum(), (y, x, A, B))
    found = low_rank.add_low_rank(y * 1, x, A, B, scale, (A0, B0) if frozen else None)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(found.sin().sum(), (y, x, A, B)), gradients, rtol=0, atol=1e-11)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("scale", [0.7, torch.tensor(0.7, dtype=torch.float64)], ids=["number", "tensor"])
def test_the_update_and_its_gradients_equal_autograds(frozen, scale):
    twin_of_add_low_rank(frozen, scale)


@pytest.mark.parametrize(
    "mutant",
    [
        lambda h, scale, rank: h.mul_(scale)[:, :rank],  # the frozen pair is added
        lambda h, scale, rank: (h[:, rank:].mul_(-1), h[:, :rank])[1],  # no scale
        lambda h, scale, rank: (h[:, :rank].mul_(-scale), h[:, rank:].mul_(scale))[1],  # the halves change places
    ],
)
def test_the_twin_catches_a_wrong_half(mutant, monkeypatch):
    monkeypatch.setattr(low_rank, "_scale_halves", mutant)
    with pytest.raises(AssertionError):
        twin_of_add_low_rank(True, 0.7)


@pytest.mark.parametrize("frozen", [False, True])
def test_under_autocast_and_on_bfloat16_the_update_is_right_and_gradients_are_float32(frozen):
    y, x, A, B, A0, B0 = factors(torch.float32)
    pair = (A0, B0) if frozen else None
    expected = low_rank.add_low_rank(y * 1, x, A, B, 0.1, pair)
    gradients = torch.autograd.grad(expected.square().sum(), (A, B, x))
    for autocast in (True, False):
        rows = (x if autocast else x.bfloat16()).detach().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = low_rank.add_low_rank(y.bfloat16(), rows, A, B, 0.1, pair)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.05)
        for one, other in zip(torch.autograd.grad(found.float().square().sum(), (A, B, rows)), gradients, strict=True):
            torch.testing.assert_close(one.float(), other, rtol=0.05, atol=0.05 * other.abs().max().item())


def test_a_frozen_pair_costs_four_of_ten_products_and_no_memory():
    y, x, A, B, A0, B0 = factors()
    kept = []
    with saved_tensors_hooks(lambda t: (kept.append(t.shape), t)[1], lambda t: t), FlopCounterMode(display=False) as up:
        out = low_rank.add_low_rank(y * 1, x, A, B, 0.7, (A0, B0))
    assert sum(shape.numel() for shape in kept) == TOKENS * (IN + RANK) + 2 * RANK * (IN + OUT)
    with FlopCounterMode(display=False) as down:
        out.sum().backward()
    product = 2 * TOKENS * RANK * (IN + OUT)  # of one pair: down to the rank and up again
    assert up.get_total_flops() == 2 * product
    assert down.get_total_flops() == 3 * product  # dh and dx of both pairs, dA and dB of one


def test_the_update_of_a_conv1d_goes_in_place_without_copies_of_the_gradient():
    model, _ = attached(rank=4)
    names, nodes = set(), [model.v(torch.randn(3, 5, 12, dtype=torch.float64)).grad_fn]
    while nodes:
        node = nodes.pop()
        names.add(node.name())
        nodes += [following for following, _ in node.next_functions if following]
    assert "CopySlices" not in names and "_AddLowRankBackward" in names


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
