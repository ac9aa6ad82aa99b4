"""A training step without numbers: what it computes and what it holds, from shapes alone.

The loop's own step (``harness.loop``) runs on fake tensors (torch's FakeTensorMode: a shape and a type, no memory) of a
model of one block and of two. Blocks do the same work, so that sums for any number of blocks follow. A peak does not
add up like a sum: it is followed in the parts of a step (below), each of which grows in its own way with the blocks.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from transformers import masking_utils

from harness import models
from harness.data import MicroBatch
from harness.loop import Trainer
from harness.loss import SupervisedLogits, training_mode
from harness.measure import Curve, LiveTensors
from harness.plugins import load_plugin
from harness.seeds import Streams
from harness.setup import DTYPE, attach
from harness.shape_cost import make_fake
from harness.suite import PROTOCOL
from harness.work import Work, add_work

TOTAL = 1 << 20  # steps of the training that is counted: no warm-up of a method outlasts it
BEFORE, FORWARD, BLOCKS, FIRST, END, AFTER = "before", "forward", "blocks", "first", "end", "after"
"""Parts of a step: ``before_step``; forward passes, the loss and the backward pass down to the last block; the backward
pass of all blocks but the first; of the first block and what lies under it; ``after_micro_batch``, where a method may
free the gradients; everything after the last one."""


@dataclass(frozen=True)
class Shape:
    """A micro-batch: rows, tokens of a row with padding, how many of all its positions have a target, and whether any
    position is padding: where none is, transformers' models make no mask, and attention keeps none."""

    rows: int
    length: int
    supervised: int
    padded: bool = True


@dataclass(frozen=True)
class Subject:
    """What is trained and how: all that a step's counts depend on, besides its micro-batches."""

    model: str
    method: str
    fields: str  # of the method, as JSON
    labels: int | None
    precision: str
    checkpointing: bool


@dataclass
class Level:
    """Bytes that live at one moment, and gradients among them."""

    live: int = 0
    gradients: int = 0


@dataclass
class Counts:
    """A step on a model of so many blocks."""

    micro: Work  # of one micro-batch
    step: Work  # of all else in a step
    opening: Work  # of all in the first step of a training that later steps do not have
    weights: int
    gradients: int  # at their largest
    optimizer: int
    trained: int
    head: int
    total: int
    peaks: dict[str, Level]  # of each part
    levels: dict[str, Level]  # at the last beginning of each part
    note: str = ""


class NotCountable(Exception):
    """The method cannot attach to the model, or its step looks at numbers that only a training has."""


def count(subject: Subject, blocks: int | None, shape: Shape, micro_batches: int) -> Counts:
    """The first step and a later one, on ``blocks`` blocks (None: all of the model's).

    Of several micro-batches two are run: from the second on gradients lie beside the activations. Where the first step
    looks at numbers, as a refresh may, it is left out, with a note.
    """
    try:
        try:
            return _count(subject, blocks, shape, micro_batches, 0)
        except DataDependentOutputException as error:
            looked = str(error.func)
        found = _count(subject, blocks, shape, micro_batches, 1)
    except DataDependentOutputException:
        raise NotCountable(f"its step looks at numbers that only a training has ({looked})") from None
    except RuntimeError as error:  # a library's method may keep tensors of its own beside the model
        raise NotCountable(f"its step does not run on shapes alone: {str(error).splitlines()[0]}") from None
    return dataclasses.replace(
        found, opening=Work(), note=f"its first step is not counted: it looks at numbers ({looked})"
    )


def _count(subject: Subject, blocks: int | None, shape: Shape, micro_batches: int, start: int) -> Counts:
    model, method = _attached(subject, blocks)
    protocol = {**PROTOCOL, "precision": subject.precision}
    with FakeTensorMode(allow_non_fake_inputs=True), _unpacked_rows():
        make_fake(model)
        if subject.checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        trainer = Trainer(model, method, protocol, Streams(0, {}), TOTAL, models.head_parameters(model))
        trainer.state.step = start
        trainer.build_optimizers()
        with SupervisedLogits(model) as logits, training_mode(model, True):
            first = _step(trainer, logits, [_micro_batch(model, shape)])
            later = _step(trainer, logits, [_micro_batch(model, shape) for _ in range(min(2, micro_batches))])
        head = sum(parameter.numel() for parameter in trainer.head)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad) - head
        total = sum(p.numel() for p in model.parameters())
    return Counts(
        micro=later.micro,
        step=later.step,
        opening=(first.micro + first.step) - (later.micro + later.step),
        weights=later.split["weights"],
        gradients=later.split["gradients"],
        optimizer=later.split["optimizer"],
        trained=trained,
        head=head,
        total=total,
        peaks=later.live.peaks,
        levels=later.live.levels,
    )


def _unpacked_rows() -> contextlib.AbstractContextManager:
    """Rows are never packed; without a mask transformers looks at position ids for that, and fake ones tell nothing."""
    return mock.patch.object(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)


def _attached(subject: Subject, blocks: int | None) -> tuple[nn.Module, Any]:
    model = empty(subject, blocks)
    method = load_plugin("methods", subject.method, **json.loads(subject.fields))
    if getattr(method, "warmup_steps", 0):
        method.warmup_steps = TOTAL - 1  # what trains after it depends on numbers
    try:
        attach(model, method, TOTAL, DTYPE[subject.precision], Streams(0, {}))
    except ValueError as error:
        raise NotCountable(str(error)) from None
    return model, method


def empty(subject: Subject, blocks: int | None) -> nn.Module:
    """The model without weights, of ``blocks`` blocks."""
    dtype = DTYPE[subject.precision]
    whole = _whole(subject.model, subject.labels)
    config = copy.deepcopy(whole.config)
    if getattr(config, "is_encoder_decoder", False) and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = 0  # as a checkpoint says; any token has the same shape
    if blocks is not None:
        config.num_hidden_layers = blocks
        if getattr(config, "num_decoder_layers", None):
            config.num_decoder_layers = blocks
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:blocks]
    with torch.device("meta"):
        model = type(whole)._from_config(config, dtype=dtype)
    if hasattr(whole, "fresh_head"):
        model.fresh_head = whole.fresh_head
    return model.requires_grad_(False).eval()


def block_count(subject: Subject) -> int:
    return _whole(subject.model, subject.labels).config.num_hidden_layers


@functools.cache
def _whole(model: str, labels: int | None) -> nn.Module:
    return models.empty_model(model, labels)


def _micro_batch(model: nn.Module, shape: Shape) -> MicroBatch:
    """Fake rows of this shape; what a mask hides changes no shape."""
    kind = models.kind(model)
    labels = torch.zeros(shape.rows, dtype=torch.long)
    if kind == "image":
        side, channels = model.config.image_size, model.config.num_channels
        pixels = torch.zeros(shape.rows, channels, side, side)
        return MicroBatch({"pixel_values": pixels}, None, labels, shape.rows, shape.rows)
    ids = torch.zeros(shape.rows, shape.length, dtype=torch.long)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} if shape.padded else {"input_ids": ids}
    tokens = shape.rows * shape.length
    if kind == "encoder":
        if getattr(model.config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = torch.zeros_like(ids)
        targets = labels.float() if model.config.num_labels == 1 else labels
        return MicroBatch(inputs, None, targets, shape.rows, tokens)
    if kind == "seq2seq":
        inputs["labels"] = torch.zeros(shape.rows, -(-shape.supervised // shape.rows), dtype=torch.long)
    positions = torch.zeros(shape.supervised, dtype=torch.long)
    return MicroBatch(inputs, positions, torch.zeros_like(positions), shape.supervised, tokens)


# --------------------------------------------------------------------------- one step, followed


@dataclass
class _Followed:
    micro: Work
    step: Work
    live: PartedTensors
    split: dict[str, int]


class PartedTensors(LiveTensors):
    """Live tensors with a peak, and work, of each part of a step."""

    def __init__(self, model: nn.Module, optimizers: list[torch.optim.Optimizer]):
        super().__init__(model, optimizers)
        self.peaks: dict[str, Level] = {}
        self.levels: dict[str, Level] = {}
        self.works = {part: Work() for part in (BEFORE, FORWARD, BLOCKS, FIRST, END, AFTER, "")}
        self.part = ""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple = (), keywords: dict | None = None) -> Any:
        result = super().__torch_dispatch__(function, types, arguments, keywords)
        add_work(self.works[self.part], function, arguments, keywords or {}, result)
        return result

    def begin(self, part: str) -> None:
        """End the present part; ``part`` begins."""
        if self.rising:
            self.gradients_at_peak, self.rising = self.gradient_bytes(), False
        known = self.peaks.get(self.part)
        if self.part and (known is None or known.live < self.peak):
            self.peaks[self.part] = Level(self.peak, self.gradients_at_peak)
        self.part, self.peak = part, self.now
        self.gradients_at_peak = self.gradient_bytes()
        self.levels[part] = Level(self.now, self.gradients_at_peak)


def _step(trainer: Trainer, logits: SupervisedLogits, batches: list[MicroBatch]) -> _Followed:
    gradients: list[int] = []
    with PartedTensors(trainer.model, trainer.optimizers) as live, _parts(trainer, live, len(batches), gradients):
        live.begin(BEFORE)
        trainer.step(batches, logits, Curve(None))
        live.begin("")
    works = live.works
    micro = sum((works[part] for part in (FORWARD, BLOCKS, FIRST, END)), Work())
    live.peak = 0
    return _Followed(micro / len(batches), works[BEFORE] + works[AFTER], live, live.split(max(gradients)))


@contextlib.contextmanager
def _parts(trainer: Trainer, live: PartedTensors, batches: int, gradients: list[int]) -> Iterator[None]:
    """Within the block the step's parts are told to ``live``, and the gradients' size before clipping is noted."""
    method, handles = trainer.method, []
    before, after_micro, after, clip = method.before_step, method.after_micro_batch, method.after_backward, method.clip

    def before_step(model, step):
        before(model, step)
        live.begin(FORWARD)

    def after_micro_batch(model, step):
        live.begin(END)
        after_micro(model, step)
        if step.micro_batch < batches - 1:
            live.begin(FORWARD)

    def after_backward(model, step):
        live.begin(AFTER)
        after(model, step)

    def noting_clip(model, norm):
        gradients.append(live.gradient_bytes())
        return clip(model, norm)

    for part, block in zip((FIRST, BLOCKS), _ends(trainer.model), strict=True):
        handles.append(block.register_forward_hook(lambda _, __, output, part=part: _at_gradient(output, live, part)))
    method.before_step, method.after_micro_batch = before_step, after_micro_batch
    method.after_backward, method.clip = after_backward, noting_clip
    try:
        yield
    finally:
        for name in ("before_step", "after_micro_batch", "after_backward", "clip"):
            delattr(method, name)
        for handle in handles:
            handle.remove()


def _at_gradient(output: Any, live: PartedTensors, part: str) -> None:
    """``part`` begins when the gradient of a block's output is there."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    if hidden.requires_grad:
        hidden.register_hook(lambda gradient: live.begin(part))


def _ends(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The first and the last block: of the outermost lists of modules (T5 has two, the encoder's first)."""
    lists, inside = [], ()
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not name.startswith(inside or ("\0",)):
            lists.append(module)
            inside = (*inside, f"{name}.")
    return lists[0][0], lists[-1][-1]
