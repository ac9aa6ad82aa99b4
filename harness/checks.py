"""The checks of conformance: what the contract promises, tried on one method and one tiny model.

Each takes a ``Case``, returns a short detail, raises ``AssertionError`` saying what does not hold, or ``Skip``.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from harness import checkpoint, data, models
from harness.contract import Method, NotMergeable, Run
from harness.loop import Trainer, TrainingProbe, run_steps
from harness.loss import training_mode
from harness.measure import Curve
from harness.plugins import load_plugin
from harness.seeds import Streams
from harness.suite import PROTOCOL
from harness.tiny import tiny_model

FAMILIES = ("llama", "qwen2", "bloom", "gpt2", "roberta", "t5", "vit")
STEPS, ROWS = 8, 8
RATE = 1e-2  # high, so that a few steps show


class Skip(Exception):
    """The check does not apply, for the reason given."""


@functools.cache
def _base(family: str) -> nn.Module:
    return tiny_model(family)[0]


@dataclass
class Case:
    """One method, with its hyper-parameters, on one family."""

    method: str
    family: str
    fields: dict = field(default_factory=dict)

    def model(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        return copy.deepcopy(_base(self.family)).to(dtype)

    def build(self) -> Method:
        kind = type(load_plugin("methods", self.method))
        return load_plugin(
            "methods", self.method, **{"learning_rate": RATE, **getattr(kind, "tiny", {}), **self.fields}
        )

    def trainer(self, dtype: torch.dtype = torch.float32, start: bool = True, device: str = "cpu") -> Trainer:
        """Attached; with ``start`` also initialized."""
        streams, method = Streams(0), self.build()
        model = self.model(dtype).to(device)
        model.tie_weights()  # the meta device unties
        head = models.head_parameters(model)
        model.requires_grad_(False)
        streams.seed_torch("init", "attach")
        method.attach(model, Run(STEPS, dtype, models.find_targets))
        for _, parameter in head:
            parameter.requires_grad_(True)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        precision = "bfloat16" if dtype == torch.bfloat16 else PROTOCOL["precision"]
        trainer = Trainer(model, method, {**PROTOCOL, "precision": precision}, streams, STEPS, head)
        if start:
            streams.seed_torch("init", "initialize")
            method.initialize(model, TrainingProbe(trainer, self.probed, self.collate))
        return trainer

    @functools.cached_property
    def whole(self) -> tuple[Trainer, list[tuple[float, float]]]:
        """One uninterrupted training and its numbers, for checks that only look at it."""
        trainer = self.trainer()
        return trainer, train(self, trainer)

    def batches(self, size: int = ROWS) -> list[data.MicroBatch]:
        """The same rows every step, in micro-batches of ``size``, longest first."""
        rows = sorted(self.rows, key=lambda row: -row.length)
        return [self.collate(rows[i : i + size]) for i in range(0, ROWS, size)]

    def collate(self, rows: list[data.Row]) -> data.MicroBatch:
        model = _base(self.family)
        return data.collate(rows, models.kind(model), getattr(model.config, "pad_token_id", None) or 0)

    def probed(self, number: int) -> list[data.Row]:
        """The rows of the probe's micro-batch of that number."""
        return self.rows[2 * number % ROWS :][:2]

    @functools.cached_property
    def rows(self) -> list[data.Row]:
        model = _base(self.family)
        kind, config = models.kind(model), model.config
        generator = torch.Generator().manual_seed(0)

        def tokens(count: int) -> list[int]:
            return torch.randint(5, config.vocab_size, (count,), generator=generator).tolist()

        rows = []
        for number in range(ROWS):
            if kind == "image":
                pixels = torch.randn(3, config.image_size, config.image_size, generator=generator)
                rows.append(data.Row(pixels, number % config.num_labels))
                continue
            ids = tokens(6 + number % 4)
            targets = {"encoder": number % max(2, getattr(config, "num_labels", 2)), "seq2seq": tokens(4)}
            rows.append(data.Row(ids, targets.get(kind, [data.IGNORE] * 2 + ids[2:])))
        return rows


class Numbers(Curve):
    """A curve that keeps (loss, gradient norm) of every step."""

    def __init__(self) -> None:
        super().__init__(None)
        self.seen: list[tuple[float, float]] = []

    def step(self, index: int, loss: Tensor, rate: float, norm: Tensor, tokens: int) -> None:
        super().step(index, loss, rate, norm, tokens)
        self.seen.append((float(loss), float(norm)))


class Pause(Exception):
    pass


def train(case: Case, trainer: Trainer, size: int = ROWS, until: int = STEPS) -> list[tuple[float, float]]:
    """Train to step ``until``; (loss, gradient norm) of each step."""
    numbers, batches = Numbers(), case.batches(size)
    for batch in batches:
        if batch.inputs.get("pixel_values") is not None:
            batch.inputs["pixel_values"] = batch.inputs["pixel_values"].to(next(trainer.model.parameters()).dtype)

    def stop() -> None:
        if trainer.state.step == until:
            raise Pause

    with contextlib.suppress(Pause):
        run_steps(trainer, lambda step: batches, numbers, between=stop)
    return numbers.seen


@torch.no_grad()
def logits(case: Case, model: nn.Module) -> Tensor:
    """What the model answers to the rows, without dropout."""
    inputs = dict(case.batches()[0].inputs)
    if "labels" in inputs:
        inputs["decoder_input_ids"] = inputs.pop("labels").clamp_min(0)
    with training_mode(model, False):
        return model(**inputs).logits


def attached_logits(case: Case, trainer: Trainer) -> Tensor:
    trainer.restore_hook()
    return logits(case, trainer.model)


def same(one: Tensor, other: Tensor, what: str, tolerance: float = 1e-5) -> str:
    error = float((one - other).abs().max())
    if not error <= tolerance * max(1.0, float(other.abs().max())):
        raise AssertionError(f"{what} differ by {error:.2g}")
    return f"{error:.1g}"


# --------------------------------------------------------------------------- the checks


def starts_as_the_base(case: Case) -> str:
    """Logits after attach and initialize are the base's, unless ``changes_init`` says why not."""
    trainer = case.trainer()
    if trainer.method.changes_init:
        raise Skip(trainer.method.changes_init)
    return same(attached_logits(case, trainer), logits(case, case.model()), "logits of the attached and the base model")


def attaches_without_data(case: Case) -> str:
    """On the meta device and twice in a row: the same parameters and buffers, and the same ones train."""

    def shape(device: str) -> dict:
        model = case.trainer(start=False, device=device).model
        buffers = checkpoint.persistent_buffers(model)
        return {n: (tuple(p.shape), p.requires_grad) for n, p in model.named_parameters()} | {
            n: tuple(b.shape) for n, b in buffers.items()
        }

    first = shape("cpu")
    for device, where in (("cpu", "a second attach"), ("meta", "attach on the meta device")):
        other = shape(device)
        wrong = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if wrong:
            raise AssertionError(f"{where} gives other parameters or buffers: {', '.join(wrong[:4])}")
    a, b = (dict(case.trainer(start=False).model.state_dict()) for _ in range(2))
    unequal = [name for name in a if not torch.equal(a[name], b[name])]
    if unequal:
        raise AssertionError(f"a second attach gives other values: {', '.join(unequal[:4])}")
    return ""


def trains_what_it_declares(case: Case) -> str:
    """Frozen weights get no gradient and stay as they are, or become what is saved makes of them; what trains moves; the
    optimizer holds only what trains."""
    trainer = case.trainer()
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    train(case, trainer, until=STEPS // 2)
    middle = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    train(case, trainer)
    frozen = {n: p for n, p in trainer.model.named_parameters() if n not in set(trainer.state.trained)}
    touched = [n for n, p in frozen.items() if p.grad is not None or not torch.equal(p, before[n])]
    if touched:
        again = dict(_restored(case, trainer).model.named_parameters())
        touched = [n for n in touched if frozen[n].grad is not None or not torch.equal(again[n], frozen[n])]
    if touched:
        raise AssertionError(f"frozen, but it got a gradient or moved: {', '.join(touched[:4])}")
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    held = {id(p) for group in trainer.groups() for p in group["params"]}
    missing = [n for n, p in trained.items() if id(p) not in held]
    if missing:
        raise AssertionError(f"requires_grad, but in no optimizer: {', '.join(missing[:4])}")
    if held - {id(p) for p in trained.values()}:
        raise AssertionError("the optimizer holds parameters that do not require a gradient")
    still = [n for n, p in trained.items() if torch.equal(p, before[n]) and torch.equal(middle[n], before[n])]
    if still:
        raise AssertionError(f"declared to train, but never moved: {', '.join(still[:4])}")
    return f"{len(trained)} tensors"


def counts(case: Case) -> str:
    """``effective_parameters`` is a number of degrees of freedom: positive, and no more than what trains."""
    trainer = case.trainer()
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    trained -= sum(p.numel() for p in trainer.head)
    effective = trainer.method.effective_parameters(trainer.model)
    if effective is not None and not (isinstance(effective, int) and 0 < effective <= trained):
        raise AssertionError(f"effective_parameters gives {effective!r}, with {trained} numbers trained")
    json.dumps([asdict(trainer.method), trainer.method.facts(trainer.model)])
    return f"{trained:,}" if effective is None else f"{trained:,} ({effective:,} free)"


def loss_falls(case: Case) -> str:
    """The loss on rows seen again and again falls."""
    losses = [loss for loss, _ in case.whole[1]]
    if not losses[-1] < losses[0]:
        raise AssertionError(f"the loss went from {losses[0]:.4f} to {losses[-1]:.4f} at learning rate {RATE:g}")
    return f"{losses[0]:.2f} to {losses[-1]:.2f}"


def merges(case: Case) -> str:
    """The merged model answers as the attached one, and has the base's modules, tensors, types and no hooks."""
    trainer = case.trainer()
    train(case, trainer)
    attached = attached_logits(case, trainer)
    try:
        trainer.method.merge(trainer.model)
    except NotMergeable as error:
        same(attached_logits(case, trainer), attached, "logits before and after a refused merge")
        raise Skip(f"not mergeable: {error}") from None
    _same_tree(trainer.model, case.model())
    return same(logits(case, trainer.model), attached, "logits of the merged and the attached model")


def _same_tree(model: nn.Module, base: nn.Module) -> None:
    def tree(m: nn.Module) -> dict:
        named = {f"module {n}": type(p).__name__ for n, p in m.named_modules()}
        return named | {f"tensor {n}": (tuple(t.shape), t.dtype) for n, t in m.state_dict().items()}

    ours, theirs = tree(model), tree(base)
    wrong = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if wrong:
        found = f"{wrong[0]}: {ours.get(wrong[0])}, in the base {theirs.get(wrong[0])}"
        raise AssertionError(f"the merged model is not the base's tree, in {len(wrong)} places, first {found}")
    hooked = [n for n, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks]
    if hooked:
        raise AssertionError(f"hooks are left on {', '.join(hooked[:4])}")


def bfloat16_base(case: Case) -> str:
    """On a bfloat16 base what trains is float32, a step works, and the merged model is bfloat16 again."""
    if models.head_parameters(case.model()):
        raise Skip("a task head is float32; its model runs in float32")
    trainer = case.trainer(torch.bfloat16)
    wrong = [n for n, p in trainer.model.named_parameters() if p.requires_grad and p.dtype != torch.float32]
    if wrong:
        raise AssertionError(f"trains in less than float32: {', '.join(wrong[:4])}")
    losses = [loss for loss, _ in train(case, trainer)]
    if not all(map(math.isfinite, losses)):
        raise AssertionError(f"losses are {losses}")
    try:
        trainer.method.merge(trainer.model)
    except NotMergeable as error:
        raise Skip(str(error)) from None
    _same_tree(trainer.model, case.model(torch.bfloat16))
    return ""


def delta_round_trips(case: Case) -> str:
    """What is saved after training, put into a freshly attached model, gives the same logits to the bit."""
    trainer, _ = case.whole
    fresh = _restored(case, trainer)
    return same(attached_logits(case, fresh), attached_logits(case, trainer), "logits after a round trip", 0.0)


def _restored(case: Case, trainer: Trainer) -> Trainer:
    """A freshly attached model, filled with what is saved of the trained one."""
    fresh = case.trainer(start=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "delta.safetensors"
        checkpoint.save_delta(path, trainer, None)
        checkpoint.fill(fresh.model, checkpoint.load_file(str(path)))
    fresh.restore_hook()
    return fresh


def splits_into_micro_batches(case: Case) -> str:
    """Uneven micro-batches train as one batch does: in float32 to 1e-5, in float64 to 1e-6 (losses are float32)."""
    worst = 0.0
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-6)):
        whole = torch.tensor(train(case, case.trainer(dtype), until=STEPS // 2))
        split = torch.tensor(train(case, case.trainer(dtype), size=3, until=STEPS // 2))
        error = float(((whole - split).abs() / whole.abs().clamp_min(1.0)).max())
        if not error <= tolerance:
            raise AssertionError(f"losses or gradient norms differ by {error:.2g} in {dtype}: {whole} and {split}")
        worst = max(worst, error)
    return f"{worst:.1g}"


def resumes(case: Case) -> str:
    """Interrupted, saved, attached anew and restored, the training goes on to the same bits."""
    whole, numbers = case.whole
    points = (1, 3, 6) if case.family == FAMILIES[0] else (STEPS // 2,)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        for point in points:
            first = case.trainer()
            seen = train(case, first, until=point)
            checkpoint.save_checkpoint(path, first, "key", {})
            second = case.trainer(start=False)
            checkpoint.load_checkpoint(path, second, "key")
            second.restore_hook()
            seen += train(case, second)
            _same_state(whole, second, f"interrupted after step {point}")
            if seen != numbers:
                raise AssertionError(f"interrupted after step {point}, losses or norms differ: {seen}, not {numbers}")
    return f"{len(points)} places"


def _same_state(one: Trainer, other: Trainer, when: str) -> None:
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    wrong = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    if wrong:
        raise AssertionError(f"{when}, these end with other values: {', '.join(wrong[:4])}")


def repeats(case: Case) -> str:
    """The same seed gives the same training to the bit."""
    (one, numbers), two = case.whole, case.trainer()
    if train(case, two) != numbers:
        raise AssertionError("two runs of one seed have different losses or norms")
    _same_state(one, two, "run twice")
    return ""


CHECKS: dict[str, Callable[[Case], str]] = {
    check.__name__.replace("_", " "): check
    for check in (starts_as_the_base, attaches_without_data, trains_what_it_declares, counts, loss_falls, merges)
    + (bfloat16_base, delta_round_trips, splits_into_micro_batches, resumes, repeats)
}
