"""Images as a model was trained on them: its side, its mean and standard deviation.

Batches hold pixels of any side, scaled to [-1, 1] (``harness.data``); the catalogue's ``pixels`` of a model say what it
takes. A data set of 50,000 images stays as small as it came, since they grow on their way into the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def adapt(model: nn.Module, side: int, mean: Sequence[float], std: Sequence[float]) -> None:
    """Let ``model`` take ``pixel_values`` (rows, 3, height, width) in [-1, 1] of any height and width."""

    def before(_: nn.Module, positional: tuple, named: dict) -> tuple[tuple, dict]:
        return positional, {**named, "pixel_values": adapted(named["pixel_values"], side, mean, std)}

    model.register_forward_pre_hook(before, with_kwargs=True)


def adapted(pixels: Tensor, side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(rows, 3, side, side): resized as image processors do (bilinear, antialiased), then standardised."""
    if pixels.shape[-2:] != (side, side):
        pixels = nn.functional.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
    shape = (1, 3, 1, 1)
    centre, spread = (torch.tensor(v, dtype=pixels.dtype, device=pixels.device).view(shape) for v in (mean, std))
    return ((pixels + 1) / 2 - centre) / spread
