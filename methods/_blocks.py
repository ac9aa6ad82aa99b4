"""Square blocks of weight matrices: which of them score best, and the gradient of these alone.

    dW_ij = S[:, rows i]^T X[:, columns j]: (block, block)     y = X W^T    S = dL/dy: (tokens, out)    X: (tokens, in)

A grid is a matrix (out, in) seen as (out / block, in / block, block, block); its blocks are numbered row by row. Of X the
backward pass keeps the columns that a chosen block looks at, each once; where these are all, X itself and no copy. The
products of a matrix's k blocks are one batched product over blocks, with columns of X and S gathered for each; or, where
the chosen blocks fill enough of the block rows x block columns that they span (``FILLED``), one product of those whole, of
which the blocks are taken: it gathers a row or column once instead of for each of its blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ._linear import adapter_dtype

Score = Literal["abs_mean", "official_code", "per_step"]
FILLED = 0.75  # share of rows x columns from which on one whole product is taken: it costs what all of them would


def grid(values: Tensor, size: int) -> Tensor:
    """A view (out / size, in / size, size, size) of a matrix (out, in)."""
    return values.unflatten(1, (-1, size)).unflatten(0, (-1, size)).transpose(1, 2)


# --------------------------------------------------------------------------- scores and choice


def empty_sum(weight: Tensor, score: Score, size: int) -> Tensor:
    """Zeros to add a matrix's gradients to: as large as the matrix for "abs_mean", else a number a block."""
    shape = weight.shape if score == "abs_mean" else grid(weight, size).shape[:2]
    return torch.zeros(shape, dtype=adapter_dtype(weight), device=weight.device)


def add_gradients(sums: Sequence[Tensor], gradients: Sequence[Tensor], score: Score, size: int) -> None:
    """Add a step's gradients, (out, in) each, to the sums of their matrices."""
    if score == "abs_mean":
        torch._foreach_add_(sums, gradients)
        return
    for total, gradient in zip(sums, gradients, strict=True):
        blocks = grid(gradient, size)
        total += (blocks.abs() if score == "per_step" else blocks).mean((2, 3), dtype=total.dtype)


def block_scores(total: Tensor, score: Score, size: int) -> Tensor:
    """The scores of a matrix's blocks, from its sum: (blocks,), none negative."""
    return (grid(total, size).abs().mean((2, 3)) if score == "abs_mean" else total.abs()).flatten()


def best(scores: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """Of each of ``scores`` the highest so many, as ascending numbers that count through all; ties go to the first."""
    chosen, first = [], 0
    for values, count in zip(scores, counts, strict=True):
        order = values.nan_to_num(nan=-1.0).sort(descending=True, stable=True).indices
        chosen.append(first + order[:count].sort().values)
        first += len(values)
    return torch.cat(chosen)


# --------------------------------------------------------------------------- the gradient of chosen blocks


class Places:
    """Where a matrix's k chosen blocks stand in its grid of ``width`` block columns.

    Made once, so that no step looks at numbers on a device. ``rows[row_of]`` is ``row``, and so are columns.
    """

    def __init__(self, numbers: Tensor, width: int):
        self.row, self.column = numbers // width, numbers % width  # (k,) each
        self.rows, self.row_of = torch.unique(self.row, return_inverse=True)
        self.columns, self.column_of = torch.unique(self.column, return_inverse=True)
        self.whole = len(numbers) >= FILLED * len(self.rows) * len(self.columns)


def block_output(y: Tensor, x: Tensor, blocks: Tensor, places: Places) -> Tensor:
    """``y``, made from ``x`` by a frozen matrix; on the way back ``blocks``, (k, size, size), get their gradient."""
    return _BlockGradient.apply(y, x, blocks, places)


def block_gradient(S: Tensor, inputs: Tensor, places: Places) -> Tensor:
    """(k, size, size) from S: (tokens, out) and the columns of X in use, (tokens, columns, size)."""
    size = inputs.shape[-1]
    outputs = S.unflatten(1, (-1, size))  # (tokens, out / size, size)
    if places.whole:
        product = _take(outputs, places.rows).flatten(1).t() @ inputs.flatten(1)
        return grid(product, size)[places.row_of, places.column_of]
    left = outputs.index_select(1, places.row).permute(1, 2, 0)  # (k, size, tokens)
    return torch.bmm(left, inputs.index_select(1, places.column_of).transpose(0, 1))


class _BlockGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y: Tensor, x: Tensor, blocks: Tensor, places: Places) -> Tensor:
        size = blocks.shape[-1]
        tiles = x.detach().reshape(-1, x.shape[-1] // size, size)
        ctx.save_for_backward(_take(tiles, places.columns).to(y.dtype))
        ctx.places, ctx.dtype = places, blocks.dtype
        return y.view_as(y)

    @staticmethod
    def backward(ctx, S: Tensor) -> tuple:
        (inputs,) = ctx.saved_tensors
        return S, None, block_gradient(S.flatten(0, -2), inputs, ctx.places).to(ctx.dtype), None


def _take(tiles: Tensor, which: Tensor) -> Tensor:
    """Tiles (tokens, n, size) of these ascending numbers, each once: all of them are no copy."""
    return tiles if len(which) == tiles.shape[1] else tiles.index_select(1, which)
