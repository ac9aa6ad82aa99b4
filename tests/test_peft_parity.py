"""Our methods and our bridge against the PEFT library: same weights, same batches, same losses."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch.nn import functional as F

from harness.checks import Case, train
from harness.contract import Run, Step
from harness.models import find_targets
from harness.plugins import load_plugin
from harness.tiny import tiny_model

STEPS = 20
RATE = 5e-3


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def base(family="llama", dtype=torch.float32):
    return tiny_model(family, dtype=dtype)[0].requires_grad_(False)


def names(model):
    return [name for name, _ in find_targets(model, "all-linear")]


def in_peft(model, kind, **config):
    """(the model with PEFT's adapters, the PeftModel around it), as PEFT's documentation does it."""
    import peft

    around = peft.get_peft_model(model, getattr(peft, kind)(target_modules=names(model), **config))
    return model, around


def in_ours(model, method, total=STEPS, **fields):
    method = load_plugin("methods", method, learning_rate=RATE, **fields)
    method.attach(model, Run(total, torch.float32, find_targets))
    return model, method


def losses(model, method=None, around=None, after=lambda index: None, steps=STEPS, rate=RATE):
    """Losses of a bare loop over fixed batches, with the method's hooks where there is one."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    seen = []
    for index in range(steps):
        generator = torch.Generator().manual_seed(index % 4)
        ids = torch.randint(5, 200, (4, 12), generator=generator)
        if method:
            method.before_step(model, Step(index, steps, rate))
        if around is not None:
            loss = around(input_ids=ids, labels=ids).loss
        else:
            logits = model(input_ids=ids).logits
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
            penalty = method.penalty(model) if method else None
            loss = loss if penalty is None else loss + penalty
        loss.backward()
        if method:
            method.after_backward(model, Step(index, steps, rate))
        optimizer.step()
        if method:
            method.after_step(model, Step(index, steps, rate))
        after(index)
        optimizer.zero_grad()
        seen.append(loss.item())
    return torch.tensor(seen)


@pytest.mark.parametrize("family", ["llama", "bloom", "gpt2"])
def test_lora_trains_as_pefts_lora(family):
    theirs, _ = in_peft(base(family), "LoraConfig", r=4, lora_alpha=8, fan_in_fan_out=family == "gpt2")
    ours, method = in_ours(base(family), "lora", rank=4, alpha=8.0)
    for name in names(base(family)):
        from_module, to_module = theirs.get_submodule(name), ours.get_submodule(name)
        to_module.A.data.copy_(from_module.lora_A["default"].weight)
        to_module.B.data.copy_(from_module.lora_B["default"].weight)
    one, other = losses(theirs), losses(ours, method)
    assert one[-1] < one[0] - 0.2
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


class DenseBlockDiagonal:
    """What PEFT's CUDA extension computes: (m, k, b, b) -> (m, k b, k b)."""

    @staticmethod
    def apply(blocks):
        return torch.stack([torch.block_diag(*factor) for factor in blocks])


@pytest.mark.parametrize("factors", [1, 2, 3])
def test_boft_trains_as_pefts_boft(factors, monkeypatch):
    """Without CUDA PEFT falls back to one factor; here its own permutations and products run densely."""
    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", lambda: True)
    monkeypatch.setattr("peft.tuners.boft.layer.FastBlockDiag", DenseBlockDiagonal)
    config = {"boft_block_size": 8, "boft_n_butterfly_factor": factors, "boft_block_num": 0}
    theirs, _ = in_peft(base(), "BOFTConfig", **config)
    for name, parameter in theirs.named_parameters():
        if "boft_s" in name:  # PEFT also trains an output scale
            parameter.requires_grad_(False)
    ours, method = in_ours(base(), "boft", factors=factors, block_size=8)
    one, other = losses(theirs), losses(ours, method)
    assert one[-1] < one[0] - 0.3
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    trained = [p for p in theirs.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == sum(p.numel() for p in ours.parameters() if p.requires_grad)


def test_boft_with_one_factor_trains_as_pefts_oft():
    theirs, _ = in_peft(base(), "OFTConfig", oft_block_size=8, use_cayley_neumann=False)
    ours, method = in_ours(base(), "boft", factors=1, block_size=8)
    torch.testing.assert_close(losses(theirs), losses(ours, method), rtol=0, atol=1e-4)
    trained = sum(p.numel() for p in theirs.parameters() if p.requires_grad)  # PEFT packs the skew part
    assert trained == method.effective_parameters(ours)


@pytest.mark.parametrize(
    ("kind", "config", "given"),
    [
        ("DORA", "LoraConfig", {"r": 4, "use_dora": True}),
        ("OFT", "OFTConfig", {"oft_block_size": 8}),
        ("VERA", "VeraConfig", {"r": 16}),
    ],
)
def test_the_bridge_trains_as_get_peft_model(kind, config, given):
    torch.manual_seed(0)
    theirs, _ = in_peft(base(), config, **given)
    torch.manual_seed(0)
    ours, method = in_ours(base(), "peft", type=kind, config={k: v for k, v in given.items() if k != "use_dora"})
    assert torch.equal(losses(theirs), losses(ours, method))


def test_adalora_through_the_bridge_has_pefts_penalty_and_budget():
    config = {"init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 4, "deltaT": 2}
    torch.manual_seed(0)
    theirs, around = in_peft(base(), "AdaLoraConfig", total_step=STEPS, **config)
    torch.manual_seed(0)
    ours, method = in_ours(base(), "peft", type="ADALORA", config=config)
    tuner = around.base_model  # whose forward adds the penalty; PeftModel's own, without a task type, goes past it
    one = losses(theirs, around=tuner, after=lambda index: tuner.update_and_allocate(index + 1), rate=5e-2)
    other = losses(ours, method, rate=5e-2)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    E = {name: p.flatten() for name, p in ours.named_parameters() if "lora_E" in name}
    alive = sum(int((e != 0).sum()) for e in E.values())
    assert alive == 2 * len(E), "the budget is the target rank on average"
    for name, p in theirs.named_parameters():
        if "lora_E" in name:
            torch.testing.assert_close(p.flatten(), E[name.removeprefix("base_model.model.")], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_ia3_scales_inputs_of_the_down_projection_and_outputs_elsewhere(family):
    model, _ = in_ours(base(family), "peft", type="IA3")
    down = {name for name, _ in find_targets(base(family), "down")}
    assert down
    for name in names(base(family)):
        layer = model.get_submodule(name)
        assert layer.is_feedforward == (name in down), name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "LORAX"}, "PEFT has no adapter of layers 'LORAX'. It has: DORA, .*LORA"),
        ({"type": "PREFIX_TUNING"}, "PEFT has no adapter of layers 'PREFIX_TUNING'"),
        ({"config": {"rank": 8}}, "PEFT's LoraConfig has no field 'rank' to set.*It has: .*lora_alpha"),
        ({"config": {"lora_aplha": 8}}, "Did you mean 'lora_alpha'?"),
        ({"type": "ADALORA", "config": {"total_step": 8}}, "has no field 'total_step' to set"),
        ({"type": "ADALORA", "config": {"init_r": 4}}, "AdaLoRA needs init_r > target_r, not 4 and 8"),
        ({"config": {"init_lora_weights": "eva"}}, "init_lora_weights='eva' needs data"),
        ({"type": "BOFT", "config": {"boft_n_butterfly_factor": 2}}, "PEFT's BOFT cannot build 2 butterfly factors"),
    ],
)
def test_what_the_bridge_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        in_ours(base(), "peft", **fields)


def test_a_failed_merge_leaves_the_attached_model_as_it_was():
    case = Case("peft", "qwen2", {"type": "LILY"})
    trainer = case.trainer()
    train(case, trainer)
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(Exception, match="PEFT's LILY does not merge"):
        trainer.method.merge(trainer.model)
    after = trainer.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_pefts_merge_is_in_float32_and_cast_once():
    model, method = in_ours(base(dtype=torch.bfloat16), "peft", config={"r": 4})
    name = names(base())[0]
    layer = model.get_submodule(name)
    torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    update = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    expected = (layer.base_layer.weight.float() + update).bfloat16()
    method.merge(model)
    assert torch.equal(model.get_submodule(name).weight, expected)
