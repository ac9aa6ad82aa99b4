"""A low-rank linear layer that keeps what its weight's gradient is made of, exactly, over the micro-batches of a step.

    G = dL/dW = sum_j S_j^T X_j: (out, in)      X_j: (rows, in), the layer's input      S_j = dL/dy: (rows, out)

S_j carries the loss's own weights, so the sum is the whole step's gradient whatever the split. A pair (S_j, X_j) is kept as
references, no copies: X_j is alive for autograd anyway, and q, k, v share one, as gate and up do. Or it is added to a
dense G at once and let go. Products with k columns, in multiply-adds:

    pairs:   G V = S^T (X V)      G^T U = X^T (S U)      rows k (out + in) each
    dense:   rows out in to form, then out in k each

A mixture of both is the same G; which pairs are kept is the method's rule (``Capture``), and changes no result.

For K-FAC, sums over rows are taken on the way back: S^T S and X^T X or their diagonals, and how many rows there were.
Rows are those with a nonzero gradient: padding has none, and so the sums do not depend on how a step is split and padded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ._low_rank import LowRankLinear, add_low_rank, base_output

Keep = Callable[[int, int, int], bool]


class Capture:
    """What the layers of one model share: ``keep(rows of the step, out, in)``, and how much is kept.

    ``most``: bytes of pairs; past it they are added to dense gradients. ``counts``: are sums over rows wanted, and which:
    None, "rows" (their number alone) or "squares"; ``full_up_to``: sides of at most this size get a whole matrix.
    """

    def __init__(self, keep: Keep, most: float = math.inf, counts: str | None = None, full_up_to: int = 0):
        self.keep, self.most, self.counts, self.full_up_to = keep, most, counts, full_up_to
        self.micro_batches, self.held, self.inputs = 1, 0, set()

    def begin(self, layers: Sequence[CapturedLinear], micro_batches: int) -> None:
        """Before a step's first forward."""
        self.micro_batches, self.held, self.inputs = micro_batches, 0, set()
        for layer in layers:
            layer.gradient.clear()

    def keeps(self, S: Tensor, X: Tensor) -> bool:
        """Keep this pair? If so, its bytes count, an input that several layers share once."""
        if not self.keep(len(X) * self.micro_batches, S.shape[1], X.shape[1]):
            return False
        storage = X.untyped_storage()._cdata  # its address; what is held keeps it from being another's
        size = S.numel() * S.element_size() + (storage not in self.inputs) * X.numel() * X.element_size()
        if self.held + size > self.most:
            return False
        self.held += size
        self.inputs.add(storage)
        return True


class Gradient:
    """One matrix's gradient in the present step. ``out_sum``: (out,) or (out, out); ``in_sum``: (in,) or (in, in)."""

    def __init__(self, capture: Capture, out_size: int, in_size: int, dtype: torch.dtype):
        self.capture, self.dtype = capture, dtype
        self.shape = out_size, in_size
        self.clear()

    def clear(self) -> None:
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.dense: Tensor | None = None
        self.rows = self.out_sum = self.in_sum = None

    def is_full(self, side: int) -> bool:
        """Is the sum of that side (0: out, 1: in) a whole matrix?"""
        return self.shape[side] <= self.capture.full_up_to

    def add(self, S: Tensor, X: Tensor) -> None:
        if self.capture.counts:
            self._count(S.to(self.dtype), X.to(self.dtype))
        if self.capture.keeps(S, X):
            self.pairs.append((S, X))
        else:
            self._add_dense(S, X)

    def times(self, V: Tensor) -> Tensor:
        """G V: (out, k) of V: (in, k)."""
        found = [S.to(V.dtype).t() @ (X.to(V.dtype) @ V) for S, X in self.pairs]
        found += [] if self.dense is None else [self.dense @ V]
        return sum(found[1:], found[0]) if found else V.new_zeros(self.shape[0], V.shape[1])

    def transposed_times(self, U: Tensor) -> Tensor:
        """G^T U: (in, k) of U: (out, k)."""
        found = [X.to(U.dtype).t() @ (S.to(U.dtype) @ U) for S, X in self.pairs]
        found += [] if self.dense is None else [self.dense.t() @ U]
        return sum(found[1:], found[0]) if found else U.new_zeros(self.shape[1], U.shape[1])

    def whole(self, like: Tensor) -> Tensor:
        """G: (out, in); from here on it is dense. ``like`` gives the device of a gradient that is zero."""
        for S, X in self.pairs:
            self._add_dense(S, X)
        self.pairs = []
        if self.dense is None:
            self.dense = like.new_zeros(self.shape, dtype=self.dtype)
        return self.dense

    def square_norm(self, like: Tensor) -> Tensor:
        """||G||^2; of pairs by <S_j S_k^T, X_j X_k^T>, 2 rows^2 (out + in) FLOPs."""
        if self.dense is not None or not self.pairs:
            return self.whole(like).square().sum()
        pairs = [(S.to(self.dtype), X.to(self.dtype)) for S, X in self.pairs]
        return sum(((S @ T.t()) * (X @ Y.t())).sum() for S, X in pairs for T, Y in pairs)

    def rows_seen(self, like: Tensor) -> Tensor:
        return like.new_zeros(()) if self.rows is None else self.rows

    def sums(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """S^T S and X^T X over all rows, or their diagonals; zero where there were none."""
        if self.rows is None:
            return tuple(like.new_zeros([n] * (1 + self.is_full(side))) for side, n in enumerate(self.shape))
        return self.out_sum, self.in_sum

    def squares(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """G G^T and G^T G, or their diagonals. Of pairs by G^T G = sum_jk X_j^T (S_j S_k^T) X_k, without G."""
        if self.dense is not None or not self.pairs:
            G = self.whole(like)
            left = G @ G.t() if self.is_full(0) else G.square().sum(1)
            return left, G.t() @ G if self.is_full(1) else G.square().sum(0)
        S, X = ([pair[side].to(self.dtype) for pair in self.pairs] for side in (0, 1))
        return _gram(S, X, self.is_full(0)), _gram(X, S, self.is_full(1))

    def _add_dense(self, S: Tensor, X: Tensor) -> None:
        S, X = S.to(self.dtype), X.to(self.dtype)
        self.dense = S.t() @ X if self.dense is None else self.dense.addmm_(S.t(), X)

    def _count(self, S: Tensor, X: Tensor) -> None:
        squares = S.square()
        active = (squares.sum(1) > 0).to(self.dtype)
        self.rows = active.sum() + (0 if self.rows is None else self.rows)
        if self.capture.counts == "rows":
            return
        out_sum = S.t() @ S if self.is_full(0) else squares.sum(0)
        in_sum = (X * active.unsqueeze(1)).t() @ X if self.is_full(1) else X.square().t() @ active
        self.out_sum = out_sum + (0 if self.out_sum is None else self.out_sum)
        self.in_sum = in_sum + (0 if self.in_sum is None else self.in_sum)


def _gram(outer: Sequence[Tensor], inner: Sequence[Tensor], full: bool) -> Tensor:
    """sum_jk outer_j^T (inner_j inner_k^T) outer_k, or its diagonal."""
    found = []
    for left, of_left in zip(outer, inner, strict=True):
        right = sum((of_left @ of_right.t()) @ at for at, of_right in zip(outer, inner, strict=True))
        found.append(left.t() @ right if full else (left * right).sum(0))
    return sum(found[1:], found[0])


class CapturedLinear(LowRankLinear):
    """y = W0 x + s B A x, with ``gradient`` for W0's gradient. ``differentiated``: do A and B get gradients of their own?"""

    def __init__(self, base: nn.Module, rank: int, scale: float, capture: Capture, differentiated: bool = True):
        super().__init__(base, rank, scale)
        if rank > min(self.out_size, self.in_size):
            raise ValueError(
                f"rank={rank} is above what a matrix of {self.out_size} x {self.in_size} can have. "
                f"Choose a rank of at most {min(self.out_size, self.in_size)}, or other targets."
            )
        self.differentiated = differentiated
        self.gradient = Gradient(capture, self.out_size, self.in_size, self.A.dtype)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)  # (tokens, in)
        A, B = (self.A, self.B) if self.differentiated else (self.A.detach(), self.B.detach())
        y = add_low_rank(base_output(self.base, rows), rows, A, B, self.scale)
        y = _Captured.apply(y, rows, self.A, self.gradient)
        return y.view(*x.shape[:-1], self.out_size)


class _Captured(torch.autograd.Function):
    """y unchanged; on the way back ``gradient`` gets S = dL/dy beside the x that made y.

    ``trained`` only makes y part of the graph where nothing before it is.
    """

    @staticmethod
    def forward(ctx, y: Tensor, x: Tensor, trained: Tensor, gradient: Gradient) -> Tensor:
        ctx.save_for_backward(x)
        ctx.gradient = gradient
        return y.view_as(y)

    @staticmethod
    def backward(ctx, S: Tensor) -> tuple:
        (x,) = ctx.saved_tensors
        ctx.gradient.add(S.detach(), x.detach())  # detached: what is kept must not keep the graph
        return S, None, None, None
