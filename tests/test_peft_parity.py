"""Our methods and our bridge against the PEFT library: same weights, same batches, same losses."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch.nn import functional as F

from harness.checks import Case, train
from harness.contract import Probe, Run, Step
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


def both_doras(family, dropout=0.0):
    """(PEFT's model, ours, our method) with the same weights, some way from the start."""
    given = {"r": 4, "lora_alpha": 8, "lora_dropout": dropout, "use_dora": True, "fan_in_fan_out": family == "gpt2"}
    theirs, around = in_peft(base(family), "LoraConfig", **given)
    ours, method = in_ours(base(family), "dora", rank=4, alpha=8.0, dropout=dropout)
    for name in names(base(family)):
        from_module, to_module = theirs.get_submodule(name), ours.get_submodule(name)
        m = from_module.lora_magnitude_vector["default"].weight
        torch.testing.assert_close(to_module.magnitude, m, rtol=1e-6, atol=0)
        torch.nn.init.normal_(from_module.lora_B["default"].weight, std=0.1)
        m.data.mul_(torch.rand_like(m) + 0.5)
        for ours_, theirs_ in zip(dora_parts(to_module), dora_parts(from_module), strict=True):
            ours_.data.copy_(theirs_)
    return theirs, around, ours, method


def dora_parts(module):
    if hasattr(module, "magnitude"):
        return module.A, module.B, module.magnitude
    vector = module.lora_magnitude_vector["default"].weight
    return module.lora_A["default"].weight, module.lora_B["default"].weight, vector


@pytest.mark.parametrize("family", ["llama", "bloom", "gpt2"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_dora_is_pefts_dora_forward_backward_and_merged(family, dropout):
    theirs, around, ours, method = both_doras(family, dropout)
    ids = torch.randint(5, 200, (4, 12), generator=torch.Generator().manual_seed(0))
    method.before_step(ours, Step(0, STEPS, RATE))
    logits = []
    for model in (theirs, ours):
        torch.manual_seed(0)  # the same mask: both drop the same inputs in the same order
        logits.append(model.train()(input_ids=ids).logits)
        logits[-1].logsumexp(-1).mean().backward()
    torch.testing.assert_close(*logits, rtol=0, atol=2e-5)
    for name in names(base(family)):
        for one, other in zip(
            dora_parts(theirs.get_submodule(name)), dora_parts(ours.get_submodule(name)), strict=True
        ):
            torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-5 * max(1, one.grad.abs().max().item()))
    method.merge(ours)
    merged = around.merge_and_unload()
    for name in names(base(family)):
        weights = merged.get_submodule(name).weight, ours.get_submodule(name).weight
        torch.testing.assert_close(*weights, rtol=0, atol=1e-5)


def test_dora_trains_as_pefts_dora():
    theirs, _, ours, method = both_doras("llama")
    one, other = losses(theirs), losses(ours, method)
    assert one[-1] < one[0] - 0.2
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


class GivenGradients(Probe):
    """A probe that visits the gradients of one loss on the plain model."""

    def __init__(self, model, ids):
        for name in names(model):
            model.get_submodule(name).weight.requires_grad_(True)
        model(input_ids=ids, labels=ids).loss.backward()
        self.gradients = {f"{name}.base.weight": model.get_submodule(name).weight.grad for name in names(model)}

    def mean_gradients(self, parameters, count, visit):
        for name in parameters:
            visit(name, self.gradients[name])


def test_lora_ga_in_pefts_manner_starts_where_pefts_does(monkeypatch):
    """Both with the exact SVD: PEFT's is random, and its draws depend on the order of its layers."""
    import peft
    from peft.tuners.lora.loraga import preprocess_loraga

    def exact(matrix, q, niter):
        U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
        return U[:, :q], S[:q], Vh[:q].t()

    monkeypatch.setattr(torch, "svd_lowrank", exact)
    ids = torch.randint(5, 200, (4, 12), generator=torch.Generator().manual_seed(0))
    config = peft.LoraConfig(
        r=4, lora_alpha=16, use_rslora=True, init_lora_weights="lora_ga", target_modules=names(base()),
        lora_ga_config=peft.LoraGAConfig(stable_gamma=16),
    )  # fmt: skip
    theirs = base()
    preprocess_loraga(theirs, config, lambda: theirs(input_ids=ids, labels=ids).loss.backward())
    peft.get_peft_model(theirs, config)
    ours, method = in_ours(base(), "lora_ga", rank=4, alpha=16.0, gamma=16.0, impl="peft", base="subtract")
    method.initialize(ours, GivenGradients(base(), ids))
    for name in names(base()):
        one, other = theirs.get_submodule(name), ours.get_submodule(name)
        assert other.scale == one.scaling["default"]
        torch.testing.assert_close(other.A, one.lora_A["default"].weight, rtol=0, atol=1e-5)
        torch.testing.assert_close(other.B, one.lora_B["default"].weight, rtol=0, atol=1e-5)
        torch.testing.assert_close(other.base.weight, one.base_layer.weight, rtol=0, atol=1e-5)
    torch.testing.assert_close(losses(theirs), losses(ours, method), rtol=0, atol=1e-4)


class DenseBlockDiagonal:
    """What PEFT's CUDA extension computes: (m, k, b, b) -> (m, k b, k b)."""

    @staticmethod
    def apply(blocks):
        return torch.stack([torch.block_diag(*factor) for factor in blocks])


@pytest.fixture
def dense_boft(monkeypatch):
    """Without CUDA PEFT falls back to one factor; with this its own permutations and products run densely."""
    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", lambda: True)
    monkeypatch.setattr("peft.tuners.boft.layer.FastBlockDiag", DenseBlockDiagonal)


@pytest.mark.parametrize(("factors", "scale"), [(1, True), (2, False), (3, False)])
def test_boft_trains_as_pefts_boft(factors, scale, dense_boft):
    config = {"boft_block_size": 8, "boft_n_butterfly_factor": factors, "boft_block_num": 0}
    theirs, _ = in_peft(base(), "BOFTConfig", **config)
    for name, parameter in theirs.named_parameters():
        if "boft_s" in name:  # PEFT always trains an output scale
            parameter.requires_grad_(scale)
    ours, method = in_ours(base(), "boft", factors=factors, block_size=8, output_scale=scale)
    one, other = losses(theirs), losses(ours, method)
    assert one[-1] < one[0] - 0.3
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    trained = [p for p in theirs.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == sum(p.numel() for p in ours.parameters() if p.requires_grad)


def skew(packed, module):
    """PEFT's packed upper triangles as skew blocks."""
    full = packed.new_zeros(len(packed), module.block_size, module.block_size)
    full[:, module.rows, module.cols] = packed
    return full - full.mT


def random_rotations(theirs, ours, sign=1):
    """Draw PEFT's parameters, copy them; (name, theirs, how to read its gradient off ours) of each."""
    pairs = []
    for name in names(base()):
        from_module, to_module = theirs.get_submodule(name), ours.get_submodule(name)
        if hasattr(from_module, "boft_R"):
            R, s = from_module.boft_R["default"], from_module.boft_s["default"]
            to_module.Q.data.copy_(torch.nn.init.normal_(R.data, std=0.1))
            to_module.output_scale.data.copy_(torch.nn.init.normal_(s.data, mean=1.0, std=0.1).flatten())
            pairs += [(name, R, lambda layer: layer.Q.grad), (name, s, lambda layer: layer.output_scale.grad[:, None])]
        else:
            module = from_module.oft_R["default"]
            packed = torch.nn.init.normal_(module.weight.data, std=0.03)
            to_module.Q.data.copy_(sign * skew(packed, module)[None])
            rows, cols = module.rows, module.cols
            pairs.append((name, module.weight, lambda layer, r=rows, c=cols: 2 * sign * layer.Q.grad[0][:, r, c]))
    return pairs


ROTATIONS = {
    **{
        f"boft, {m} factors": (
            ("BOFTConfig", {"boft_block_size": 8, "boft_n_butterfly_factor": m, "boft_block_num": 0}),
            ("boft", {"block_size": 8, "factors": m, "output_scale": True}),
        )
        for m in (1, 2, 3)
    },
    "oft": (("OFTConfig", {"oft_block_size": 32, "use_cayley_neumann": False}), ("oft", {})),
    **{
        f"oft, {terms} terms": (
            ("OFTConfig", {"oft_block_size": 8, "num_cayley_neumann_terms": terms}),
            ("oft", {"block_size": 8, "cayley": "neumann", "neumann_terms": terms}),
        )
        for terms in (4, 5, 6)
    },
}


@pytest.mark.parametrize("case", ROTATIONS)
def test_rotations_gradients_and_merged_weights_are_pefts(case, dense_boft):
    (kind, config), (method, fields) = ROTATIONS[case]
    theirs, around = in_peft(base(), kind, **config)
    ours, method = in_ours(base(), method, **fields)
    torch.manual_seed(0)
    pairs = random_rotations(theirs, ours, sign=-1 if "terms" in case else 1)  # PEFT's series turns the other way
    ids = torch.randint(5, 200, (4, 12))
    method.before_step(ours, Step(0, STEPS, RATE))
    answers = [model(input_ids=ids, labels=ids) for model in (theirs, ours)]
    for answer in answers:
        answer.loss.backward()
    method.after_backward(ours, Step(0, STEPS, RATE))
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(answers[1].logits, answers[0].logits, **close)
    assert (answers[0].logits - base()(input_ids=ids).logits).abs().max() > 0.1
    for name, parameter, gradient in pairs:
        torch.testing.assert_close(gradient(ours.get_submodule(name)), parameter.grad, **close)
    merged = around.merge_and_unload()
    method.merge(ours)
    for name in names(base()):
        torch.testing.assert_close(ours.get_submodule(name).weight, merged.get_submodule(name).weight, **close)


def test_oft_trains_as_pefts_oft():
    theirs, _ = in_peft(base(), "OFTConfig", oft_block_size=8, use_cayley_neumann=False)
    ours, method = in_ours(base(), "oft", block_size=8)
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
        ({"type": "LN_TUNING"}, "PEFT has no adapter of layers 'LN_TUNING'"),  # it would train the linear layers whole
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


def test_biases_of_the_base_train_in_its_own_type_or_not_at_all():
    method = load_plugin("methods", "peft", config={"bias": "all"})
    with pytest.raises(ValueError, match="bias='all' trains the base's own biases, .* beside torch.bfloat16 weights"):
        method.attach(base("qwen2", torch.bfloat16), Run(STEPS, torch.bfloat16, find_targets))
    method.attach(base("qwen2"), Run(STEPS, torch.float32, find_targets))


def test_starts_from_the_base_s_weights_can_be_planned_and_random_ones_are_declared():
    shapes = [
        {name: p.shape for name, p in in_ours(model, "peft", config={"init_lora_weights": "pissa", "r": 4})[0].named_parameters()}
        for model in (base(), base().to("meta"))
    ]  # fmt: skip
    assert shapes[0] == shapes[1]
    _, method = in_ours(base(), "peft", config={"init_lora_weights": False})
    assert method.changes_init == "PEFT's LORA starts with a random update"
    assert in_ours(base(), "peft")[1].changes_init is None


@pytest.mark.parametrize("fields", [{"type": "LILY"}, {"config": {"lora_bias": True, "r": 4}}, {"type": "BEFT"}])
def test_a_failed_merge_leaves_the_attached_model_as_it_was(fields):
    case = Case("peft", "qwen2", fields)  # some of whose linears have biases, which PEFT has merged when it fails
    trainer = case.trainer()
    train(case, trainer)
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(Exception, match=f"PEFT's {fields.get('type', 'LORA')} does not merge"):
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
