"""Every method keeps the contract on every architecture family; and a method that does not is caught, by the right check."""

from __future__ import annotations

import importlib
import random
import socket
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from harness import loop
from harness.checks import CHECKS, FAMILIES, Case, attached_logits, train
from harness.conformance import run_checks
from harness.contract import Method
from harness.loss import loss_sum
from harness.plugins import ROOT, available, load_plugin

load_plugin("methods", "lora")  # registers the package that plug-ins and their shared parts are loaded under
_linear = importlib.import_module("tuning_fork_methods._linear")


def failures(method, fields=None, family="llama"):
    return [f"{r.check}: {r.detail}" for r in run_checks(method, fields or {}, (family,)) if r.status == "FAIL"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", available("methods"))
def test_method_conforms(method, family):
    assert failures(method, family=family) == []


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("lora", {"rslora": True, "targets": ("q", "v")}),
        ("boft", {"factors": 1, "block_size": 16}),
        ("boft", {"cayley": "neumann"}),
        ("boft", {"output_scale": True}),
        ("boft", {"update": "printed"}),
        ("boft", {"factors": 3, "block_size": 16, "indivisible": "fewer_factors"}),
        ("lora_ga", {"base": "subtract"}),
        ("lora_ga", {"impl": "peft"}),
        ("urnn", {"update": "riemann_exp"}),
        ("hybrid", {"mix": "update"}),
        ("hybrid", {"mix": "sum"}),
        ("hybrid", {"lambda_norm": "rms"}),
        ("galore", {"rank": 8, "refresh_every": 1, "weight_decay": 0.1}),
        ("galore", {"builder": "gram"}),
        ("galore", {"builder": "block", "rank": 8, "refresh_every": 1}),
        ("galore", {"builder": "power"}),
        ("dpi_glrp", {"backend": "block"}),
        ("dpi_glrp", {"momentum": "static", "refresh_every": 1}),
        ("dpi_glrp", {"momentum": "none", "rank": 8}),
        ("scaled_gd", {"update": "adamw"}),
        ("lora_pro", {"update": "sgd"}),
        ("lora_pro", {"update": "adamw_full"}),
        ("smt", {"warmup": "score"}),
        ("smt", {"warmup_steps": 1, "block_size": 64, "allow_smaller_blocks": True}),
        ("peft", {"type": "DORA"}),
        ("peft", {"type": "IA3"}),
        ("peft", {"type": "VERA", "config": {"r": 16}}),
        ("peft", {"type": "OFT", "config": {"oft_block_size": 8}}),
        ("peft", {"type": "ADALORA", "config": {"init_r": 4, "target_r": 2, "tinit": 4, "tfinal": 2}}),
        ("peft", {"type": "VBLORA", "config": {"vector_length": 8, "num_vectors": 16}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_variant_conforms(method, fields):
    assert failures(method, fields) == []


# --------------------------------------------------------------------------- methods that break the contract


class Gained(_linear.Adapter):
    def __init__(self, base):
        super().__init__(base)
        self.gain = nn.Parameter(
            torch.ones(self.in_size, dtype=_linear.adapter_dtype(base.weight), device=base.weight.device)
        )

    def forward(self, x):
        return self.base(x * self.gain.to(x.dtype))


@dataclass
class Right(Method):
    learning_rate: float = 1e-2

    def attach(self, model, run):
        _linear.wrap(model, run, "all-linear", Gained)

    def merge(self, model):
        _linear.unwrap(model, Gained, lambda adapter, weight: weight * adapter.gain)


class MovesTheStart(Right):
    def initialize(self, model, probe):
        for name, parameter in model.named_parameters():
            if name.endswith("gain"):
                parameter.data.mul_(1.1)


class MovesTheStartAndSaysSo(MovesTheStart):
    changes_init = "gains start at 1.1"


class NeedsValuesToAttach(Right):
    def attach(self, model, run):
        super().attach(model, run)
        for module in model.modules():
            if isinstance(module, Gained):
                float(module.base.weight.sum())


class ChangesFrozenWeights(Right):
    def after_step(self, model, step):
        next(p for p in model.parameters() if not p.requires_grad).data.add_(1e-3)


class TrainsWhatCannotMove(Right):
    def attach(self, model, run):
        super().attach(model, run)
        model.idle = nn.Parameter(torch.zeros(3, device=next(model.parameters()).device))

    def merge(self, model):
        super().merge(model)
        del model.idle


class ForgetsAParameter(Right):
    def optimizer(self, model):
        return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad][:-1], lr=1e-2)


class CountsTooMany(Right):
    def effective_parameters(self, model):
        return 10**9


class Ascends(Right):
    def optimizer(self, model):
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2, maximize=True)


class MergesNothing(Right):
    def merge(self, model):
        _linear.unwrap(model, Gained)


class LeavesItsModules(Right):
    def merge(self, model):
        pass


class TrainsInHalfPrecision(Right):
    def attach(self, model, run):
        super().attach(model, run)
        self._first = [m for m in model.modules() if isinstance(m, Gained)]

    def initialize(self, model, probe):
        for module in self._first:
            module.gain.data = module.gain.data.to(module.base.weight.dtype)


class KeepsItsScaleOutsideTheModel(Right):
    def attach(self, model, run):
        super().attach(model, run)
        self._steps = 0

    def after_backward(self, model, step):
        self._steps += 1
        for p in model.parameters():
            if p.grad is not None:
                p.grad.mul_((-1.0) ** (self._steps // 3))


class ScalesEachMicroBatch(Right):
    def after_micro_batch(self, model, step):
        for p in model.parameters():
            if p.grad is not None:
                p.grad.mul_(0.5)

    def optimizer(self, model):
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)


class DrawsFromTheSystem(Right):
    def after_backward(self, model, step):
        noise = torch.Generator()
        noise.seed()
        for p in model.parameters():
            if p.grad is not None:
                p.grad.add_(torch.randn(p.shape, generator=noise), alpha=0.1)


class KeepsStateInAnUnsavedBuffer(Right):
    def attach(self, model, run):
        super().attach(model, run)
        for module in model.modules():
            if isinstance(module, Gained):
                module.register_buffer(
                    "shift", torch.zeros(module.in_size, device=module.gain.device), persistent=False
                )
                module.forward = lambda x, m=module: m.base(x * m.gain.to(x.dtype) + m.shift.to(x.dtype))

    def after_step(self, model, step):
        for module in model.modules():
            if isinstance(module, Gained):
                module.shift.add_(1e-3)


class SeedsPython(Right):
    def after_step(self, model, step):
        random.seed(0)


class CallsHome(Right):
    def initialize(self, model, probe):
        socket.create_connection(("127.0.0.1", 9), timeout=0.1)


BROKEN = {
    MovesTheStart: ("starts as the base", "logits of the attached and the base model differ"),
    NeedsValuesToAttach: ("attaches without data", "meta"),
    ChangesFrozenWeights: (
        "trains what it declares",
        "frozen, but it got a gradient or moved: model.embed_tokens.weight",
    ),
    TrainsWhatCannotMove: ("trains what it declares", "declared to train, but never moved: idle"),
    ForgetsAParameter: ("trains what it declares", "requires_grad, but in no optimizer"),
    CountsTooMany: ("counts", "effective_parameters gives 1000000000"),
    Ascends: ("loss falls", "the loss went from"),
    MergesNothing: ("merges", "logits of the merged and the attached model differ"),
    LeavesItsModules: ("merges", "the merged model is not the base's tree"),
    TrainsInHalfPrecision: ("bfloat16 base", "trains in less than float32"),
    KeepsItsScaleOutsideTheModel: ("resumes", "interrupted after step"),
    ScalesEachMicroBatch: ("splits into micro batches", "losses or gradient norms differ"),
    DrawsFromTheSystem: ("repeats", "two runs of one seed"),
    KeepsStateInAnUnsavedBuffer: ("delta round trips", "logits after a round trip differ"),
    SeedsPython: ("loss falls", "changed and not put back: random's generator"),
    CallsHome: ("starts as the base", "only the stage `prepare` may use a network"),
}


def check_locally(monkeypatch, kind, only=None):
    """(check, detail) of every failure of a method defined here."""
    monkeypatch.setattr(Case, "build", lambda case: kind())
    checks = {name: check for name, check in CHECKS.items() if only in (None, name)}
    monkeypatch.setattr("harness.conformance.CHECKS", checks)
    return [(r.check, r.detail) for r in run_checks("local", {}, ("llama",)) if r.status == "FAIL"]


@pytest.mark.parametrize("kind", [Right, MovesTheStartAndSaysSo], ids=lambda kind: kind.__name__)
def test_a_right_method_passes(kind, monkeypatch):
    assert check_locally(monkeypatch, kind) == []


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_method_is_caught(kind, monkeypatch):
    check, words = BROKEN[kind]
    found = dict(check_locally(monkeypatch, kind, only=check))
    assert words in found[check]


def test_the_template_conforms(monkeypatch):
    template = importlib.import_module("tuning_fork_methods._template")
    for family in ("llama", "gpt2", "roberta", "vit"):
        monkeypatch.setattr(Case, "build", lambda case: template.InputGains(learning_rate=1e-2))
        assert [r for r in run_checks("template", {}, (family,)) if r.status == "FAIL"] == []


def test_the_command_prints_what_holds_and_refuses_a_misspelling():
    def run(*arguments):
        command = [sys.executable, "-m", "harness.conformance", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    done = run("lora", "rank=2", "--family", "llama")
    assert done.returncode == 0, done.stderr
    assert f"{len(CHECKS)} of {len(CHECKS)} hold" in done.stdout and "  ok    resumes" in done.stdout
    wrong = run("lora", "ranks=2")
    assert wrong.returncode == 2 and "Did you mean 'rank'?" in wrong.stderr


# --------------------------------------------------------------------------- decay and precision, the same for all


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("method", "fields"),
    [("lora", {}), ("dora", {}), ("oft", {}), ("boft", {"output_scale": True}), ("lora_ga", {}), ("hybrid", {}),
     ("lora_ga", {"base": "subtract"}), ("hybrid", {"mix": "update"}), ("svdlora", {}), ("lorsum", {}), ("lora_pro", {})],
)  # fmt: skip
def test_weight_decay_pulls_to_the_base(method, fields, family, monkeypatch):
    """Without a gradient, decay alone leaves the logits of an adapter, which starts as the base, where they are."""
    monkeypatch.setattr(loop, "loss_sum", lambda *arguments: 0 * loss_sum(*arguments))
    case = Case(method, family, {**fields, "weight_decay": 0.1})
    trainer = case.trainer(torch.float64)
    before = attached_logits(case, trainer)
    train(case, trainer)
    torch.testing.assert_close(attached_logits(case, trainer), before, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", ["full", "galore", "dpi_glrp", "smt", "lora"])
def test_products_on_a_bfloat16_base_are_in_bfloat16_under_every_method(method):
    case, seen = Case(method, "llama"), set()
    trainer = case.trainer(torch.bfloat16)
    for name, module in trainer.model.named_modules():
        if name.endswith("mlp"):
            module.register_forward_hook(lambda module, given, output: seen.add(output.dtype))
    train(case, trainer)
    assert seen == {torch.bfloat16}
