"""A low-rank update added to a frozen module's output, shared by the methods built on LoRA.

    y <- y + s x A^T B^T      x: (tokens, in)   A: (rank, in)   B: (out, rank)   y: (tokens, out)

With a frozen pair (A0, B0) the update is s (x A^T B^T - x A0^T B0^T), by one product of rank 2 rank each way:
h = x [A; A0]^T, y <- y + s [h_1, -h_2] [B, B0]^T. Backward, with g = dL/dy: dh = s g [B, -B0], dx = dh [A; A0],
dA = dh_1^T x, dB = s g^T h_1; nothing is computed for A0 and B0. Kept for it: x in its own dtype, and s h_1.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._linear import Adapter, adapter_dtype, is_conv1d


def add_low_rank(
    y: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float | Tensor, frozen: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Add the update to y in place, and return it. ``scale`` may be a tensor without dimensions, which gets no gradient.

    Products are in A's dtype, or in autocast's; y keeps its own.
    """
    return _AddLowRank.apply(y, x, A, B, scale, *(frozen or (None, None)))


def base_output(base: nn.Module, rows: Tensor) -> Tensor:
    """``base(rows)`` as a tensor that may be changed in place: GPT-2's Conv1D gives a view, whose gradient is then copied."""
    return torch.addmm(base.bias, rows, base.weight) if is_conv1d(base) else base(rows)


class LowRankLinear(Adapter):
    """y = W0 x + s B A x, with A from Kaiming's uniform and B zero; dropout acts on the update's input."""

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float = 0.0):
        super().__init__(base)
        self.scale, self.dropout = scale, dropout
        like = {"dtype": adapter_dtype(base.weight), "device": base.weight.device}
        self.A = nn.Parameter(torch.empty(rank, self.in_size, **like))
        self.B = nn.Parameter(torch.zeros(self.out_size, rank, **like))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)  # (tokens, in)
        y = add_low_rank(base_output(self.base, rows), self.dropped(rows), self.A, self.B, self.scale)
        return y.view(*x.shape[:-1], self.out_size)

    def dropped(self, rows: Tensor) -> Tensor:
        return F.dropout(rows, self.dropout) if self.training and self.dropout else rows

    def update(self) -> Tensor:
        """s B A: (out, in)."""
        return self.scale * (self.B @ self.A)


class _AddLowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float | Tensor, A0, B0) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else A.dtype
        down, up = _stacked(A, A0, 0).to(dtype), _stacked(B, B0, 1).to(dtype)
        h = torch.mm(x.to(dtype), down.t())
        first = _scale_halves(h, scale, len(A))
        if y.dtype == dtype:
            torch.addmm(y, h, up.t(), out=y)  # one pass over y
        else:
            y.add_(torch.mm(h, up.t()))
        ctx.save_for_backward(x, first if A0 is None else first.contiguous(), A, B, A0, B0)
        ctx.scale = scale
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple:
        x, h, A, B, A0, B0 = ctx.saved_tensors
        needs_x, needs_A, needs_B = ctx.needs_input_grad[1:4]
        g = gradient.to(h.dtype)
        dx = dA = dB = None
        if needs_x or needs_A:
            up = _stacked(B, B0, 1) if needs_x else B
            dh = torch.mm(g, up.to(h.dtype))
            first = _scale_halves(dh, ctx.scale, len(A))
            if needs_x:
                dx = torch.mm(dh, _stacked(A, A0, 0).to(h.dtype)).to(x.dtype)
            if needs_A:
                dA = torch.mm(first.t(), x.to(h.dtype)).to(A.dtype)
        if needs_B:
            dB = torch.mm(g.t(), h).to(B.dtype)
        return gradient, dx, dA, dB, None, None, None


def _stacked(trained: Tensor, frozen: Tensor | None, axis: int) -> Tensor:
    return trained if frozen is None else torch.cat((trained, frozen), axis)


def _scale_halves(h: Tensor, scale: float | Tensor, rank: int) -> Tensor:
    """Multiply the first ``rank`` columns by ``scale`` and the frozen pair's, if any, by its negative; the first ones."""
    if h.shape[1] == rank:
        return h.mul_(scale)
    h[:, rank:].mul_(-scale)
    return h[:, :rank].mul_(scale)
