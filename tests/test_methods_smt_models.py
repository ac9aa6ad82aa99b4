"""SMT on two-layer models: full training's twin, what the switch frees, what gets no gradient, what is saved and said."""

from __future__ import annotations

import copy
import importlib
import json
import weakref

import pytest
import torch
from transformers import PreTrainedModel

from harness import checkpoint, shape_cost
from harness.checks import STEPS, Case, Numbers, train
from harness.conformance import run_checks
from harness.contract import Run, Step
from harness.loop import run_steps
from harness.measure import LiveTensors
from harness.models import quiet
from harness.plugins import load_plugin
from harness.roles import find_targets
from harness.tiny import tiny_model

load_plugin("methods", "smt")  # registers the package that plug-ins and their shared parts are loaded under
smt = importlib.import_module("tuning_fork_methods.smt")
_blocks = importlib.import_module("tuning_fork_methods._blocks")
PATHS = {"gathered": 2.0, "whole": 0.0}  # FILLED: never, always


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_with_every_block_it_is_full_training_of_q_k_and_v(dtype, tolerance, path, monkeypatch):
    """On grouped queries, where k and v are half as high as q; step by step over 20 steps."""
    monkeypatch.setattr(_blocks, "FILLED", PATHS[path])
    model = tiny_model("llama", dtype=dtype)[0].requires_grad_(False)
    twin, targets = copy.deepcopy(model), [module for _, module in find_targets(model, ("q", "k", "v"))]
    weights = [module.weight.requires_grad_() for _, module in find_targets(twin, ("q", "k", "v"))]
    assert len({weight.shape for weight in weights}) == 2
    reference = torch.optim.AdamW(weights, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    fields = {"density": 1e9, "block_size": 8, "warmup": "score", "warmup_steps": 1}
    method = load_plugin("methods", "smt", learning_rate=1e-3, **fields)
    method.attach(model, Run(30, dtype, find_targets))
    optimizer = method.optimizer(model)
    for index in range(21):
        ids = torch.randint(3, 250, (2, 12), generator=torch.Generator().manual_seed(index))
        method.before_step(model, Step(index, 30, 0.0))
        for each in (model, twin) if index else (model,):
            each(input_ids=ids, labels=ids).loss.backward()
        method.after_backward(model, Step(index, 30, 0.0))
        for each in (optimizer, reference):
            each.step()
            each.zero_grad()
        optimizer = method.optimizer(model) if method.after_step(model, Step(index, 30, 0.0)) else optimizer
        for module, weight in zip(targets, weights, strict=True):
            torch.testing.assert_close(module.weight, weight, rtol=0, atol=tolerance)


# --------------------------------------------------------------------------- the switch


def test_the_new_optimizer_holds_the_blocks_alone_and_the_schedule_starts_anew():
    case = Case("smt", "llama", {"warmup_steps": 3})
    trainer = case.trainer()
    train(case, trainer)
    (group,) = trainer.groups()
    blocks = trainer.model.smt.blocks
    assert group["params"] == [blocks] and group["betas"] == (0.9, 0.95)
    state = trainer.optimizers[0].state[blocks].values()
    assert sum(s.numel() for s in state if s.ndim) == 2 * len(blocks) * 8**2 == 2 * blocks.numel()
    assert trainer.state.schedule_start == 3


def head_rates(method, fields):
    """(learning rate, Adam's steps) of the task head's own optimizer after each step."""
    case = Case(method, "bert", fields)
    trainer, found = case.trainer(), []
    optimizers = []

    def note():
        head = trainer.optimizers[1]
        optimizers.append(head)
        found.append((head.param_groups[0]["lr"], int(next(iter(head.state.values()))["step"])))

    with torch.random.fork_rng():
        run_steps(trainer, lambda step: case.batches(), Numbers(), between=note)
    assert all(each is optimizers[0] for each in optimizers)
    return found


def test_the_task_head_is_trained_as_under_every_method():
    """Neither its moments nor its schedule begin anew where the blocks are chosen."""
    assert head_rates("smt", {"warmup_steps": 3}) == head_rates("lora", {})


def alive_after_the_selection(warmup, monkeypatch, kept=None):
    """How many tensors of the warm-up's optimizer, of its gradients and of its sums there are, and how many are left."""
    case, watched, after_step = Case("smt", "llama", {"warmup_steps": 3, "warmup": warmup}), [], smt.SMT.after_step

    def watch(method, model, step):
        if step.index == 2:  # the step that ends the warm-up
            states = [value for state in method._optimizer.state.values() for value in state.values()]
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            watched.extend(weakref.ref(t.untyped_storage()) for t in [*states, *gradients, *method._optimizer.sums])
            if kept is not None:
                kept.append(method._optimizer)
        return after_step(method, model, step)

    monkeypatch.setattr(smt.SMT, "after_step", watch)
    trainer = case.trainer()
    train(case, trainer, until=3)
    monkeypatch.undo()
    return len(watched), sum(reference() is not None for reference in watched)


@pytest.mark.parametrize(("warmup", "least"), [("train", 4 * 20), ("score", 6)])
def test_gradients_moments_and_sums_of_the_warm_up_are_freed_at_the_selection(warmup, least, monkeypatch):
    count, left = alive_after_the_selection(warmup, monkeypatch)
    assert count >= least and left == 0
    assert alive_after_the_selection(warmup, monkeypatch, kept=[])[1] >= 6  # a forgotten reference is seen


def held_bytes(method, **fields):
    """Weights, gradients and optimizer state of a step after the selection."""
    case = Case(method, "llama", fields)
    trainer, seen = case.trainer(), []
    train(case, trainer, until=STEPS - 1)
    clip = trainer.method.clip
    with LiveTensors(trainer.model, trainer.optimizers) as live:
        trainer.method.clip = lambda *arguments: seen.append(live.gradient_bytes()) or clip(*arguments)
        train(case, trainer)
    split = live.split(seen[0])
    return split["weights"] + split["gradients"] + split["optimizer"]


@pytest.mark.parametrize("warmup", ["train", "score"])
def test_after_the_selection_it_holds_at_most_27_percent_of_full_training(warmup):
    assert held_bytes("smt", warmup=warmup, density=0.0084, block_size=4) <= 0.27 * held_bytes("full")


def watched_layers(prepare=lambda model: None):
    """Layers of a four-layer Llama whose attention had a gradient (-1: the embeddings), with blocks in layer 2 alone."""
    model = tiny_model("llama", layers=4)[0].requires_grad_(False).train()
    method = load_plugin("methods", "smt", warmup="score", warmup_steps=1, block_size=8, density=0.01)
    method.attach(model, Run(10, torch.float32, find_targets))
    method.optimizer(model).sums[7].fill_(1.0)  # layer 2's k; sums are q, k and v of each layer
    method.after_step(model, Step(0, 10, 0.0))
    assert {number for number, layer in enumerate(method._layers) if layer.blocks is not None} == {7}
    prepare(model)
    reached, ids = [], torch.randint(3, 250, (2, 12))

    def watch(number):
        def hook(module, arguments, output):
            if output.requires_grad:
                output.register_hook(lambda gradient: reached.append(number))

        return hook

    modules = [model.model.embed_tokens, *(layer.self_attn.o_proj for layer in model.model.layers)]
    for number, module in enumerate(modules, -1):
        module.register_forward_hook(watch(number))
    method.before_step(model, Step(1, 10, 0.0))
    model(input_ids=ids, labels=ids).loss.backward()
    method.after_backward(model, Step(1, 10, 0.0))
    assert model.smt.blocks.grad.abs().sum() > 0
    return set(reached)


def embeddings_ask(model):
    """As adapters on the embeddings' side would want it."""
    model.get_input_embeddings().register_forward_hook(lambda module, arguments, output: output.requires_grad_())


def checkpointing(model):
    """It makes the embeddings' output ask for a gradient, too."""
    with quiet():
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.smt.selected.fill_(True)  # as a restore does: the layers are laid out anew


def test_nothing_below_the_lowest_chosen_layer_gets_a_gradient():
    assert watched_layers() == {2, 3}
    assert watched_layers(embeddings_ask) == {-1, 0, 1, 2, 3}  # so the watch can see it


def test_activation_checkpointing_asks_for_no_gradient_below(monkeypatch):
    assert watched_layers(checkpointing) == {2, 3}
    monkeypatch.setattr(PreTrainedModel, "disable_input_require_grads", lambda model: None)
    assert -1 in watched_layers(checkpointing)


# --------------------------------------------------------------------------- what is saved and said


def delta(tmp_path, warmup):
    case = Case("smt", "llama", {"warmup": warmup})
    trainer = case.trainer()
    train(case, trainer)
    checkpoint.save_delta(tmp_path / f"{warmup}.safetensors", trainer, None)
    return checkpoint.load_file(str(tmp_path / f"{warmup}.safetensors")), trainer.model


def test_the_delta_is_blocks_and_numbers_where_the_warm_up_changed_nothing_and_else_the_whole_model(tmp_path):
    found, model = delta(tmp_path, "score")
    assert set(found) == {"smt.blocks", "smt.chosen", "smt.selected"}
    count = len(model.smt.chosen)
    assert sum(t.numel() * t.element_size() for t in found.values()) == count * (8 * 8 * 4 + 8) + 1
    found, model = delta(tmp_path, "train")
    assert set(found) == {*dict(model.named_parameters()), "smt.chosen", "smt.selected"}


FAMILIES = {
    "llama": ({"q": 32, "k": 16, "v": 16}, 2),
    "gpt2": ({"q+k+v": 96}, 2),
    "t5": ({"q": 96, "k": 96, "v": 96}, 4),  # two layers of the encoder, two of the decoder with two attentions each
}


@pytest.mark.parametrize("family", FAMILIES)
def test_facts_count_blocks_by_role_and_layer(family):
    case = Case("smt", family, {"choice": "per_matrix", "density": 0.1})
    trainer = case.trainer()
    method, (candidates, depth) = trainer.method, FAMILIES[family]
    assert "chosen_blocks" not in method.facts(trainer.model)
    train(case, trainer)
    facts = json.loads(json.dumps(method.facts(trainer.model)))
    assert facts["candidate_blocks"] == candidates and facts["block_size"] == 8
    assert {len(counts) for counts in facts["chosen_blocks"].values()} == {depth}
    assert sum(map(sum, facts["chosen_blocks"].values())) == facts["blocks"] == len(trainer.model.smt.chosen)
    assert (facts["score"], facts["choice"], facts["warmup"]) == ("abs_mean", "per_matrix", "train")
    assert facts["lowest_layer"] == 0 and all(map(all, facts["chosen_blocks"].values()))


def test_on_smollm2_blocks_are_64_wide_and_275_of_4050():
    model, method = shape_cost._standard().attached("smt", 30)
    facts = method.facts(model)
    assert facts["block_size"] == 64 and facts["candidate_blocks"] == {"q": 2430, "k": 810, "v": 810}
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2)
    assert len(model.smt.blocks) == int(0.0084 * matrices / 64**2) == 275


@pytest.mark.parametrize(
    "fields",
    [
        {"score": "official_code", "choice": "per_matrix"},
        {"score": "per_step", "warmup": "score"},
        {"warmup": "score", "choice": "per_matrix", "targets": "all-linear", "density": 0.2},
    ],
    ids=str,
)
def test_options_conform(fields):
    assert [f"{r.check}: {r.detail}" for r in run_checks("smt", fields, ("llama",)) if r.status == "FAIL"] == []
