"""The loop against a bare torch loop, accumulation against one batch, resumption against no interruption."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional as F

from harness import checkpoint, data
from harness.contract import Method
from harness.loop import Diverged, Trainer, run_steps, schedule
from harness.loss import SupervisedLogits, loss_sum
from harness.measure import Curve, LiveTensors
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
