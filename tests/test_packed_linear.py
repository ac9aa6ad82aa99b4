"""Packed linear layers: the model's own logits to float noise, and a model that is as it was afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from harness import packed_linear
from harness.packed_linear import PackedLinears
from harness.tiny import tiny_model


@pytest.mark.parametrize("family", ["llama", "qwen2", "bloom", "gpt2", "t5", "roberta"])
def test_logits_are_the_model_s_own_and_the_model_is_left_as_it_was(family):
    model, tokenizer = tiny_model(family)
    given = {"input_ids": torch.tensor([tokenizer("the old tree").input_ids])}
    if family == "t5":
        given["decoder_input_ids"] = given["input_ids"][:, :3]
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    with torch.no_grad():
        expected = model(**given).logits
        packed = PackedLinears(model)
        with packed:
            assert packed and "forward" in str([vars(module).keys() for module in model.modules()])
            found = model(**given).logits
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(model(**given).logits, expected)
    assert before == {name: dict(vars(module)) for name, module in model.named_modules()}


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 5, 7), (1, 1, 7)])
def test_any_shape_and_strides(shape):
    torch.manual_seed(0)
    layer = nn.Linear(7, 11).requires_grad_(False)
    rows = torch.randn(*shape[:-1], 14)[..., ::2]
    expected = layer(rows)
    with PackedLinears(layer):
        torch.testing.assert_close(layer(rows), expected)


def test_what_is_not_a_plain_float32_layer_keeps_its_own_forward(monkeypatch):
    class Doubling(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    turned = nn.Linear(3, 3)
    parametrize.register_parametrization(turned, "weight", nn.Tanh())
    for layer in (Doubling(3, 3), nn.Linear(3, 3, dtype=torch.bfloat16), turned):
        assert not PackedLinears(layer)
    assert PackedLinears(nn.Linear(3, 3))
    monkeypatch.setattr(packed_linear, "MOST_BYTES", 8)
    assert not PackedLinears(nn.Linear(3, 3))
