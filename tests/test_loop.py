"""The loop against a bare torch loop, accumulation against one batch, resumption against no interruption."""

from __future__ import annotations

import contextlib
import copy
import json
import weakref
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from harness import checkpoint, data
from harness.checks import Case
from harness.contract import Method
from harness.loop import Diverged, Trainer, TrainingProbe, run_steps, schedule
from harness.loss import SupervisedLogits, loss_sum, training_mode
from harness.measure import Curve, LiveTensors
from harness.models import find_targets
from harness.seeds import Streams
from harness.suite import PROTOCOL
from harness.tiny import tiny_model

STEPS = 6


@dataclass
class Everything(Method):
    """All parameters train."""

    learning_rate: float = 1e-3

    def attach(self, model, run):
        for parameter in model.parameters():
            parameter.requires_grad_(True)


def rows(count=24, vocabulary=100, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        ids = torch.randint(0, vocabulary, (5 + number % 7,), generator=generator).tolist()
        made.append(data.Row(ids, [data.IGNORE] * 3 + ids[3:]))
    return made


def steps(micro, batch=4, count=STEPS):
    encoded = rows()
    order = data.order([r.length for r in encoded], count, batch, 2, 0)
    return [data.micro_batches([encoded[i] for i in chosen], micro, "causal", 0) for chosen in order]


def trainer_for(model, seed=0, total=STEPS, **protocol):
    trainer = Trainer(model, Everything(), {**PROTOCOL, **protocol}, Streams(seed), total)
    trainer.method.attach(model, None)
    return trainer


def losses(path):
    return [row["loss"] for row in map(json.loads, path.read_text().splitlines()) if "loss" in row]


@pytest.fixture
def model():
    return tiny_model("llama")[0]


def test_full_fine_tuning_equals_a_bare_torch_loop_bit_for_bit(model, tmp_path):
    bare = copy.deepcopy(model).train()
    run_steps(trainer_for(model), steps(4), Curve(tmp_path / "c.jsonl"))
    for parameter in bare.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    expected = []
    for index, (batch,) in enumerate(steps(4)):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * schedule(PROTOCOL, index, STEPS)
        hidden = bare.model(**batch.inputs, use_cache=False).last_hidden_state
        picked = hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.positions)
        loss = F.cross_entropy(bare.lm_head(picked).float(), batch.targets, reduction="sum") / batch.tokens
        loss.backward()
        torch.nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(float(loss.detach()))
    assert losses(tmp_path / "c.jsonl") == expected
    for (name, ours), theirs in zip(model.named_parameters(), bare.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_micro_batches_equal_one_batch(model, micro, tmp_path):
    split = copy.deepcopy(model)
    run_steps(trainer_for(model), steps(4), Curve(tmp_path / "one.jsonl"))
    run_steps(trainer_for(split), steps(micro), Curve(tmp_path / "many.jsonl"))
    torch.testing.assert_close(torch.tensor(losses(tmp_path / "one.jsonl")), torch.tensor(losses(tmp_path / "many.jsonl")),
                               rtol=1e-5, atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "bloom", "gpt2", "qwen2", "t5"])
def test_logits_at_supervised_positions_equal_the_slow_way(family):
    model = tiny_model(family, dtype=torch.float64)[0].eval()
    kind = "seq2seq" if family == "t5" else "causal"
    vocabulary = model.config.vocab_size
    batch = data.collate(
        [data.Row([3, 4, 5, 6], [data.IGNORE, data.IGNORE, 5, 6]), data.Row([7, 8], [data.IGNORE, 8])], kind, 0
    )
    with SupervisedLogits(model) as logits:
        fast = loss_sum(model, batch, logits)
    inputs = dict(batch.inputs)
    labels = inputs.pop("labels", None)
    if labels is None:
        labels = torch.tensor([[-100, -100, 5, 6], [-100, 8, -100, -100]])
    slow = model(**inputs, labels=labels).loss * (labels != -100).sum()
    assert vocabulary > 8
    torch.testing.assert_close(fast, slow.to(fast.dtype), rtol=1e-6, atol=1e-6)  # our loss is float32 by design


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_resumption_is_bit_equal(model, stop_after, tmp_path):
    whole, parts = copy.deepcopy(model), copy.deepcopy(model)
    run_steps(trainer_for(whole), steps(2), Curve(tmp_path / "whole.jsonl"))

    class Stop(Exception):
        pass

    first = trainer_for(parts)

    def between():
        if first.state.step == stop_after:
            checkpoint.save_checkpoint(tmp_path / "c.pt", first, "key", {})
            raise Stop

    with pytest.raises(Stop):
        run_steps(first, steps(2), Curve(tmp_path / "parts.jsonl"), between=between)
    second = trainer_for(copy.deepcopy(model))
    assert checkpoint.load_checkpoint(tmp_path / "c.pt", second, "another key") is None
    assert checkpoint.load_checkpoint(tmp_path / "c.pt", second, "key") is not None
    run_steps(second, steps(2), Curve(tmp_path / "parts.jsonl"))
    assert losses(tmp_path / "parts.jsonl") == losses(tmp_path / "whole.jsonl")
    for one, other in zip(whole.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_loss_that_is_no_number_ends_the_training(model, tmp_path):
    trainer = trainer_for(model)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(Diverged, match="loss is nan at step 0"):
        run_steps(trainer, steps(4), Curve(tmp_path / "c.jsonl"))
    assert json.loads((tmp_path / "c.jsonl").read_text().splitlines()[0])["loss"] == "nan"


def test_schedules_warm_up_and_fall():
    linear = [schedule({**PROTOCOL, "warmup_fraction": 0.2, "schedule": "linear"}, i, 10) for i in range(10)]
    assert linear[:3] == [0.5, 1.0, 1.0] and linear[-1] == pytest.approx(1 / 8)
    cosine = [schedule({**PROTOCOL, "warmup_fraction": 0.0, "schedule": "cosine"}, i, 10) for i in range(10)]
    assert cosine[0] == 1.0 and cosine[5] == pytest.approx(0.5)


def test_seed_streams_change_only_their_own_thing():
    lengths = [r.length for r in rows()]
    plain, other_order = Streams(1), Streams(1, {"order": 2})
    assert plain.seed("init", "attach") == other_order.seed("init", "attach")
    assert plain.seed("dropout", 3, 0) == other_order.seed("dropout", 3, 0)
    first = data.order(lengths, 6, 4, 2, plain.seed("order"))
    assert first == data.order(lengths, 6, 4, 2, Streams(1).seed("order"))
    assert first != data.order(lengths, 6, 4, 2, other_order.seed("order"))
    assert first != data.order(lengths, 6, 4, 2, Streams(2).seed("order"))


def test_every_row_is_seen_once_a_pass():
    chosen = data.order(list(range(24)), 6, 4, 3, 0)
    assert sorted(row for step in chosen for row in step) == list(range(24))


@pytest.mark.parametrize("count", [3, 50, 300, 5000])
def test_fewer_steps_are_the_first_of_more(count):
    """As where methods train for equal times: what the slower one sees is the beginning of what the faster one sees."""
    lengths = np.random.default_rng(0).integers(4, 200, count).tolist()
    most = data.order(lengths, 60, 8, 16, 5)
    assert all(data.order(lengths, steps, 8, 16, 5) == most[:steps] for steps in (1, 15, 16, 17, 40, 46, 52))
    seen = np.bincount([row for step in most for row in step], minlength=count)
    assert seen.sum() == 480 and seen.max() - seen.min() <= 2


def test_live_tensors_sees_adamw_on_full_fine_tuning(model):
    trainer = trainer_for(model)
    trainer.build_optimizers()
    (batch,) = steps(4)[0]
    size = sum(p.numel() * 4 for p in model.parameters())
    seen = []
    trainer.method.clip = lambda m, n: (seen.append(live.gradient_bytes()), Method.clip(trainer.method, m, n))[1]
    with SupervisedLogits(model) as logits, LiveTensors(model, trainer.optimizers) as live:
        trainer.step([batch], logits, Curve(None))
    kinds = live.split(seen[0])
    assert kinds["gradients"] == size
    assert size <= kinds["weights"] <= size * 1.1  # rotary buffers beside the parameters
    assert 2 * size <= kinds["optimizer"] <= 2.05 * size
    assert kinds["peak"] >= kinds["weights"] + kinds["gradients"]
    at_peak = ("weights", "gradients_at_peak", "optimizer", "activations")
    assert sum(kinds[kind] for kind in at_peak) == kinds["peak"]


# --------------------------------------------------------------------------- the probe


def probe_of(case, **overrides):
    """(probe, trainer, weights of all linear modules by name), nothing trains but two of the parameters."""
    model = tiny_model(case.family, **overrides)[0].requires_grad_(False)
    parameters = dict(model.named_parameters())
    for name in list(parameters)[:2]:
        parameters[name].requires_grad_(True)
    trainer = Trainer(model, Method(), PROTOCOL, Streams(0), STEPS)
    weights = {f"{name}.weight": module.weight for name, module in find_targets(model, "all-linear")}
    return TrainingProbe(trainer, case.probed, case.collate), trainer, weights


@pytest.mark.parametrize("family", ["llama", "gpt2", "roberta", "t5", "vit"])
def test_the_probes_gradients_are_those_of_the_mean_loss_of_all_rows(family):
    case = Case("", family)
    probe, trainer, weights = probe_of(case)
    found = {}
    probe.mean_gradients(list(weights), 3, lambda name, gradient: found.update({name: gradient.clone()}))
    batch = case.collate([row for number in range(3) for row in case.probed(number)])
    assert probe.tokens == batch.total_tokens and batch.inputs[trainer.model.main_input_name].shape[0] == 6
    for weight in weights.values():
        weight.requires_grad_(True)
    with SupervisedLogits(trainer.model) as logits, training_mode(trainer.model, True):
        (loss_sum(trainer.model, batch, logits) / batch.tokens).backward()
    assert found.keys() == weights.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, weights[name].grad, rtol=1e-5, atol=1e-7)


def test_the_probe_holds_one_gradient_at_a_time():
    probe, trainer, weights = probe_of(Case("", "llama"), hidden=128, layers=6, ffn=256)
    held = []

    def visit(name, gradient):
        assert not any(reference() is not None for reference in held)
        assert all(p.grad is None for p in trainer.model.parameters())
        held.append(weakref.ref(gradient))

    with LiveTensors(trainer.model, []) as live:
        probe.mean_gradients(list(weights), 1, visit)
    assert len(held) == len(weights) == 42
    own = sum(t.numel() * 4 for t in [*trainer.model.parameters(), *trainer.model.buffers()])
    assert live.peak - own < sum(w.numel() * 4 for w in weights.values()) / 4


@pytest.mark.parametrize("already", [False, True], ids=["", "checkpointed before"])
@pytest.mark.parametrize("fails", [False, True], ids=["", "the visit fails"])
def test_the_probe_leaves_the_model_as_it_was(already, fails):
    probe, trainer, weights = probe_of(Case("", "llama"))
    model = trainer.model
    if already:
        model.activation_checkpointing_enable()

    def state():
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        trains = [(p.requires_grad, p.grad, p._post_accumulate_grad_hooks) for p in model.parameters()]
        return model.training, model.is_activation_checkpointing, hooks, [(t, g, bool(h)) for t, g, h in trains]

    def visit(name, gradient):
        assert model.training and model.is_activation_checkpointing
        if fails:
            raise KeyError(name)

    before = state()
    with pytest.raises(KeyError) if fails else contextlib.nullcontext():
        probe.mean_gradients(list(weights), 2, visit)
    assert state() == before


def test_a_visit_draws_the_same_numbers_whatever_came_before_it():
    def drawn(names):
        probe, _, _ = probe_of(Case("", "llama"))
        seen = {}
        probe.mean_gradients(names, 1, lambda name, _: seen.update({name: torch.rand(3)}))
        return seen

    first, second = list(probe_of(Case("", "llama"))[2])[:2]
    both, one = drawn([first, second]), drawn([second])
    assert torch.equal(both[second], one[second]) and not torch.equal(both[first], both[second])


def test_a_weight_that_the_loss_does_not_see_is_named():
    probe, trainer, _ = probe_of(Case("", "llama"))
    trainer.model.aside = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="no gradient reached aside.weight"):
        probe.mean_gradients(["aside.weight"], 1, lambda name, gradient: None)
