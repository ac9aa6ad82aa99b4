"""Contexts that begin alike are read once: the keys and values of their common tokens serve all rows of a batch.

A batch of contexts (rows, width) comes padded on the left. With P common tokens it becomes

    [P common tokens | padding | the rest of each row]

of the same rows, whose attention mask leaves the padding out: positions are counted by the mask, so the answers are those
of the rows padded on the left, to the rounding of sums.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

LEAST = 16  # common tokens below which reading them apart gains nothing


def common_start(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with; each row keeps one of its own. 0 for a single row."""
    most = max(0, min(map(len, rows)) - 1) if len(rows) > 1 else 0
    return next((place for place in range(most) if len({row[place] for row in rows}) > 1), most)


def common_tokens(context: Tensor, mask: Tensor) -> int:
    """The same of a padded batch, padding aside."""
    return common_start([row[own.bool()].tolist() for row, own in zip(context, mask, strict=True)])


def arranged(context: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, int]:
    """Rows, mask and how many common tokens stand first: none where reading them apart gains nothing."""
    common = common_tokens(context, mask)
    return (*common_first(context, mask, common), common) if common >= LEAST else (context, mask, 0)


def read(model: nn.Module, ids: Tensor, mask: Tensor, cache: Cache | None = None, positions: int = 1):
    """The model's output after ``cache``; ``mask`` covers it and ``ids``. Logits of the last ``positions`` (0: all)."""
    known = inspect.signature(model.forward).parameters
    given = {"attention_mask": mask, "past_key_values": cache, "use_cache": True}
    if "position_ids" in known:
        given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    if "logits_to_keep" in known and positions:
        given["logits_to_keep"] = positions
    return model(ids, **given)


def common_first(context: Tensor, mask: Tensor, common: int) -> tuple[Tensor, Tensor]:
    """Rows and mask with the ``common`` tokens moved before the padding; the width is the same."""
    moved, seen = context.clone(), mask.clone()
    for row, length in enumerate(mask.sum(1).tolist()):
        start = context.shape[1] - length
        moved[row, :common] = context[row, start : start + common]
        moved[row, common : start + common] = context[row, :start]
        seen[row, :common], seen[row, common : start + common] = 1, 0
    return moved, seen


def repeated(cache: Cache, rows: int) -> DynamicCache:
    """A cache of so many equal rows, from one of a single row."""
    made = DynamicCache()
    for number, layer in enumerate(cache.layers):
        made.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), number)
    return made


def joined(caches: Sequence[Cache], width: int, common: int = 0) -> DynamicCache:
    """One cache of all rows; each part's keys and values, (rows, heads, length, size), padded after ``common`` tokens."""
    made = DynamicCache()
    for number in range(len(caches[0].layers)):
        layers = [cache.layers[number] for cache in caches]
        parts = (
            torch.cat([_padded(tensor, width, common) for tensor in tensors])
            for tensors in ([layer.keys for layer in layers], [layer.values for layer in layers])
        )
        made.update(*parts, number)
    return made


def _padded(tensor: Tensor, width: int, common: int) -> Tensor:
    padding = tensor.new_zeros(*tensor.shape[:-2], width - tensor.shape[-2], tensor.shape[-1])
    return torch.cat((tensor[..., :common, :], padding, tensor[..., common:, :]), -2)
