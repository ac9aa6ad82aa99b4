"""The loss of a micro-batch: summed over its supervised targets, in float32 or better. Logits exist only where the loss looks.

Computing all logits of a decoder costs 2 * hidden * vocabulary FLOPs a token forward and twice that backward: a fifth
of SmolLM2-135M. A pre-hook on the output embedding hands it just the positions that have a target; whatever the
architecture does to logits afterwards (scaling, capping) still happens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.data import MicroBatch


class SupervisedLogits:
    """Context manager: within it ``select(positions)`` decides which positions the output embedding sees."""

    def __init__(self, model: nn.Module):
        self.head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        self.positions: Tensor | None = None

    def __enter__(self) -> SupervisedLogits:
        self.handle = self.head.register_forward_pre_hook(self._pick) if self.head is not None else None
        return self

    def __exit__(self, *exception: object) -> None:
        if self.handle is not None:
            self.handle.remove()

    def _pick(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.positions is None:
            return None
        hidden = arguments[0]  # (rows, length, hidden)
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, self.positions), *arguments[1:])


def loss_sum(
    model: nn.Module, batch: MicroBatch, head: SupervisedLogits, autocast: torch.dtype | None = None
) -> Tensor:
    """Sum of the losses of a micro-batch's targets (nats, or squared errors for a value)."""
    inputs = dict(batch.inputs)
    labels = inputs.pop("labels", None)
    if labels is not None:
        inputs["decoder_input_ids"] = _shift_right(labels, model.config)
    head.positions = batch.positions
    device = next(iter(inputs.values())).device.type
    context = torch.autocast(device, autocast) if autocast else contextlib.nullcontext()
    try:
        with context:
            extra = {} if batch.positions is None else {"use_cache": False}
            logits = model(**inputs, **extra).logits
    finally:
        head.positions = None
    if batch.positions is not None and logits.shape[:-1].numel() != len(batch.targets):  # head not hooked: pick here
        logits = logits.reshape(-1, logits.shape[-1]).index_select(0, batch.positions)
    logits = logits.reshape(-1, logits.shape[-1])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if batch.targets.is_floating_point():
        return F.mse_loss(logits.squeeze(-1), batch.targets.to(logits.dtype), reduction="sum")
    return F.cross_entropy(logits, batch.targets, reduction="sum")


def _shift_right(labels: Tensor, config: object) -> Tensor:
    """Decoder inputs of a sequence-to-sequence model: the start token, then the targets without their last."""
    start = config.decoder_start_token_id
    shifted = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted < 0, config.pad_token_id)


@contextlib.contextmanager
def training_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Dropout on or off within the block."""
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)


def validation_loss(
    model: nn.Module, batches: list[MicroBatch], head: SupervisedLogits, autocast: torch.dtype | None = None
) -> float:
    """Mean loss per target over the validation micro-batches, without dropout."""
    with torch.no_grad(), training_mode(model, False):
        device = next(model.parameters()).device
        total = sum(loss_sum(model, batch.to(device), head, autocast).double() for batch in batches)
    return float(total) / max(1, sum(batch.tokens for batch in batches))
