"""Orthonormal bases of gradients' leading directions, for stacks of matrices of one shape: four ways, one contract.

    A: (L, long, short), the gradients, turned where they are wider than tall          C = A^T A / ||A||^2
    Q: (L, rank, short), orthonormal rows that approach A's top right singular vectors, which are C's top eigenvectors

``svd``         LAPACK's, the oracle.      ``gram``   C and its eigenvectors: exact too, to the root of the precision.
``block``       Y <- orth((A^T A + shift) Y) on ``rank + oversampling`` rows, from the old basis and random rows; then
                the eigenvectors of (A Y^T)^T (A Y^T) turn Y and choose ``rank`` of it (Halko et al., arXiv 0909.4061).
``sequential``  power iteration, one vector at a time, each kept orthogonal to those before it (``deflated``).

A basis is one whatever the gradient: with fewer directions than ``rank`` (few supervised tokens) it is completed; for one
that is zero or not finite (or so that its square would be) the old basis stays, or coordinate axes where there is none.
The largest entry of each row is positive, as a sign is otherwise left open. Everything is masked tensors; only
``sequential`` looks at a number, once in a few iterations, to see whether all are done.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Kind = Literal["svd", "gram", "block", "sequential"]
Momentum = Literal["dynamic", "static", "none"]
Side = Literal["right", "left"]

COLD_PASSES = 9  # of the block iteration where there is no old basis, at least
CACHE = 16 * 2**20  # bytes of matrices that ``sequential`` has in hand at once on a CPU: they are read again and again
SHIFT = 100.0  # of A^T A in the block iteration, in units of the precision: directions that A lacks stay in the block
STRIDE = 8  # iterations between two looks at how far the search is
GUESS = 0.95  # of an eigenvalue: the most that static momentum takes for the next one, unless told; at 1 it stalls
STIR = 1e-3  # length of the random part of a warm start: a vector may lie in the span of those before it


class Report(NamedTuple):
    """What making the bases took and gave, a number a matrix: (L,)."""

    iterations: Tensor  # products of a vector, or of a whole block, with A^T A
    passes: Tensor  # products that read the gradient
    share: Tensor  # ||A Q^T||^2 / ||A||^2
    kept: Tensor  # true where the gradient made no basis


def side_of(shape: torch.Size) -> Side:
    """Which side of a weight of this shape is projected: always the shorter one."""
    return "right" if shape[-2] >= shape[-1] else "left"


@dataclass(frozen=True)
class Builder:
    """A way to make bases, with its options. ``passes`` read the gradient: two a round, and one to choose."""

    kind: Kind = "svd"
    oversampling: int = 8
    passes: int = 3  # of ``block``
    momentum: Momentum = "dynamic"  # of ``sequential``, as the other two
    tolerance: float = 5e-2  # of the residual, over the eigenvalue: 0.997 of the best energy, or more, from i^-0.25 on
    max_iterations: int = 100  # for a vector

    def __post_init__(self) -> None:
        for name, known in (("kind", Kind), ("momentum", Momentum)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(get_args(known))}")
        if self.passes < 3 or self.passes % 2 == 0:
            raise ValueError(f"passes={self.passes}: two a round and one to choose, so 3, 5, 7, ...")
        if self.oversampling < 0 or self.max_iterations < 1 or not self.tolerance > 0:
            raise ValueError(
                f"oversampling={self.oversampling} must be 0 or more, max_iterations={self.max_iterations} at least 1 "
                f"and tolerance={self.tolerance} above 0"
            )

    def noise(self, rank: int, short: int, like: Tensor, generator: torch.Generator) -> Tensor:
        """Random rows that a build starts from: (rank + oversampling, short), about of length one."""
        rows = min(rank + self.oversampling * (self.kind == "block"), short)
        noise = torch.empty(rows, short, dtype=like.dtype, device=like.device)
        return noise.normal_(generator=generator).mul_(short**-0.5)

    @torch.no_grad()
    def __call__(
        self, gradients: Tensor, rank: int, side: Side, noise: Tensor, warm: Tensor | None = None
    ) -> tuple[Tensor, Report]:
        """(basis, report) of gradients (L, m, n); ``warm``: (L, rank, short) from the last refresh; ``noise`` as above."""
        A = gradients if side == "right" else gradients.mT
        rank = min(rank, A.shape[2])
        size = torch.linalg.vector_norm(gradients.flatten(1), dim=1)
        good = size.isfinite() & (size > math.sqrt(torch.finfo(size.dtype).tiny))
        inverse = torch.where(good, 1 / size, 0)[:, None, None]
        mask = good[:, None, None]
        if self.kind == "svd":
            rows, share, counts = _svd(A, inverse, mask, rank)
        elif self.kind == "block":
            passes = max(self.passes, COLD_PASSES) if warm is None else self.passes
            rows, share, counts = _block(A, inverse, mask, rank, block_start(A, rank, noise, warm), passes)
        else:
            C = torch.where(mask, torch.bmm(A.mT, A) * inverse**2, 0)
            if self.kind == "gram":
                rows, share, counts = _top(C, rank)
            else:
                options = self.momentum, self.tolerance, self.max_iterations
                rows, values, iterations = deflated(C, vector_start(A, rank, noise, warm), *options)
                share, counts = values.sum(1), (iterations, 1)
        old = torch.eye(rank, A.shape[2], dtype=A.dtype, device=A.device) if warm is None else warm
        iterations, passes = (torch.zeros_like(size) + count for count in counts)
        share = torch.where(good, share, 0)
        return torch.where(mask, fix_signs(rows), old), Report(iterations, passes, share, ~good)


def fix_signs(basis: Tensor) -> Tensor:
    """Rows turned so that the largest entry of each is positive."""
    peak = basis.gather(-1, basis.abs().argmax(dim=-1, keepdim=True))
    return torch.where(peak < 0, -basis, basis)


# --------------------------------------------------------------------------- exact


def _svd(A: Tensor, inverse: Tensor, mask: Tensor, rank: int) -> tuple[Tensor, Tensor, tuple]:
    _, values, right = torch.linalg.svd(torch.where(mask, A, 0), full_matrices=False)
    return right[:, :rank], (values[:, :rank] * inverse[:, 0]).square().sum(1), (0, 1)


def _top(C: Tensor, rank: int) -> tuple[Tensor, Tensor, tuple]:
    values, vectors = torch.linalg.eigh(C)
    return vectors[..., -rank:].flip(-1).mT, values[:, -rank:].sum(1), (0, 1)


# --------------------------------------------------------------------------- block


def block_start(A: Tensor, rank: int, noise: Tensor, warm: Tensor | None) -> Tensor:
    """(L, rank + oversampling, short): the old basis, and random rows."""
    noise = noise.expand(len(A), -1, -1)
    return noise if warm is None else torch.cat((warm, noise[:, rank:]), 1)


def _block(
    A: Tensor, inverse: Tensor, mask: Tensor, rank: int, start: Tensor, passes: int
) -> tuple[Tensor, Tensor, tuple]:
    """Subspace iteration and Rayleigh-Ritz. In A^T A + shift no direction is lost, so that rows cannot become dependent:
    after a round their condition is at most that of the shifted matrix, which ``orthonormal_rows`` bears."""
    shift, rounds = SHIFT * torch.finfo(A.dtype).eps, passes // 2
    Y = orthonormal_rows(start, 1)  # near enough: an old basis, and random rows that are nearly orthogonal to it
    for number in range(rounds):
        H = torch.bmm(A, (Y * inverse**2).mT)  # (L, long, k)
        Y = orthonormal_rows(torch.baddbmm(Y * shift, H.mT, A), 2 if number + 1 < rounds else 3)
    H = torch.bmm(A, (Y * inverse).mT)
    values, vectors = torch.linalg.eigh(torch.where(mask, torch.bmm(H.mT, H), 0))
    return torch.bmm(vectors[..., -rank:].flip(-1).mT, Y), values[:, -rank:].sum(1), (rounds, passes)


def orthonormal_rows(Y: Tensor, times: int) -> Tensor:
    """An orthonormal basis of the span of Y's rows: (L, k, short), by Cholesky factors of Gram matrices.

    Each time squares the condition in the Gram matrix, so once is not enough; the first is shifted, so that it succeeds
    up to a condition of about 0.01 / precision, and wants a third. Where a factor fails, rows are only normalised.
    The small factors are inverted and multiplied: five times faster than solving for Y on a CPU.
    """
    eps, eye = torch.finfo(Y.dtype).eps, torch.eye(Y.shape[1], dtype=Y.dtype, device=Y.device)
    for number in range(times):
        gram = torch.bmm(Y, Y.mT)
        lengths = gram.diagonal(dim1=1, dim2=2)
        if number == 0:
            lengths += 4 * eps * lengths.sum(1, keepdim=True)
        factor, failed = torch.linalg.cholesky_ex(gram)
        factor = torch.where((failed == 0)[:, None, None], factor, torch.diag_embed(lengths.clamp_min(eps).sqrt()))
        Y = torch.bmm(torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False), Y)
    return Y


# --------------------------------------------------------------------------- one vector at a time


class Search(NamedTuple):
    """Where the power iteration of one vector stands, a matrix a row."""

    x: Tensor  # (L, short), of length one
    before: Tensor  # (L, short), the x before it
    length: Tensor  # (L, 1), of x before it was normalised
    residual: Tensor  # (L, 1), of the iteration before
    number: Tensor  # (L, 1), iterations so far


def started(x: Tensor) -> Search:
    """The search from x, which need not be of length one."""
    one = torch.ones_like(x[:, :1])
    return Search(x / x.norm(dim=1, keepdim=True), torch.zeros_like(x), one, one * math.inf, one * 0)


def power_step(
    v: Tensor, at: Search, momentum: Momentum, second: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(u, eigenvalue, residual): the next x before it is normalised, from v = C x.

        u = v - beta / length * before        which is x_{k+1} = C x_k - beta x_{k-1}, each normalised

    static: beta = second^2 / 4, given the second eigenvalue, (L, 1). dynamic: with the ratio q of two residuals,
    beta = (value * 2 q / (1 + q^2))^2 / 4, as q is what momentum tuned to the eigenvalues' ratio 2 q / (1 + q^2) gives.
    """
    value = (at.x * v).sum(1, keepdim=True)
    residual = (v - value * at.x).norm(dim=1, keepdim=True)
    if momentum == "none":
        return v, value, residual
    if momentum == "dynamic":
        q = (residual / at.residual.clamp_min(torch.finfo(v.dtype).tiny)).clamp(max=1)
        second = torch.where(at.number >= 2, value * 2 * q / (1 + q * q), 0)
    return v - second.square() / 4 / at.length * at.before, value, residual


def following(at: Search, u: Tensor, residual: Tensor) -> Search:
    """The search one iteration on."""
    length = u.norm(dim=1, keepdim=True).clamp_min(torch.finfo(u.dtype).tiny)
    return Search(u / length, at.x, length, residual, at.number + 1)


def vector_start(A: Tensor, rank: int, noise: Tensor, warm: Tensor | None) -> Tensor:
    """(L, rank, short): the old basis, stirred a little."""
    noise = noise[:rank].expand(len(A), -1, -1)
    return noise if warm is None else warm + STIR * noise


def deflated(
    C: Tensor,
    start: Tensor,
    momentum: Momentum,
    tolerance: float,
    max_iterations: int,
    second: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, eigenvalues, iterations) of the leading vectors of C, (L, n, n) and positive, one after another.

    Every matrix of the stack goes on to its next vector by itself. A vector is done when its residual is ``tolerance``
    of its eigenvalue, or after ``max_iterations``, or when the eigenvalue is lost in the precision of the first: then
    what it started from, made orthogonal, completes the basis. ``second``: (L, rank), for static momentum the
    eigenvalue after each vector's; without it, what the next start vector gives (and none for the last vector).
    """
    parts = max(1, CACHE // C[0].nbytes) if C.device.type == "cpu" else len(C)
    given = C.split(parts), start.split(parts), [None] * len(C) if second is None else second.split(parts)
    found = [_deflated(*part, momentum, tolerance, max_iterations) for part in zip(*given, strict=False)]
    return tuple(torch.cat(each) for each in zip(*found, strict=True))


def _deflated(
    C: Tensor, start: Tensor, second: Tensor | None, momentum: Momentum, tolerance: float, max_iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    L, rank, eps = *start.shape[:2], torch.finfo(C.dtype).eps
    estimated = momentum == "static" and second is None
    if estimated:
        unit = start / start.norm(dim=2, keepdim=True)
        second = torch.nn.functional.pad((torch.bmm(unit, C) * unit).sum(2)[:, 1:], (0, 1))
    rows, values = torch.zeros_like(start), start.new_zeros(L, rank)
    each, index = torch.arange(L, device=C.device), torch.zeros(L, dtype=torch.int64, device=C.device)
    iterations, at, ahead = start.new_zeros(L), started(start[:, 0]), 0
    while True:
        known = rows[:, : ahead + STRIDE]  # no search gets further until the next look
        for _ in range(STRIDE):
            place = index.clamp(max=rank - 1)
            v = _without(known, _times(at.x, C))
            guess = None if second is None else second[each, place][:, None]
            if estimated:
                guess = torch.minimum(guess, GUESS * (at.x * v).sum(1, keepdim=True))
            u, value, residual = power_step(v, at, momentum, guess)
            # of a start ||v||: its own eigenvalue may be small though there are larger ones
            size = torch.where(at.number == 0, torch.hypot(value, residual), value)
            lost = size <= eps * values[:, :1]
            active = (index < rank)[:, None]
            done = active & (lost | (residual <= tolerance * value) | (at.number + 1 >= max_iterations))
            rows[each, place] = torch.where(done, at.x, rows[each, place])
            values[each, place] = torch.where(done, value, values[each, place][:, None])[:, 0]
            iterations += active[:, 0]
            index += done[:, 0]
            fresh = start[each, index.clamp(max=rank - 1)]
            at = following(at, _without(known, torch.where(done, fresh, u)), residual)
            at = _reset(at, done)
        behind, ahead = torch.stack(index.aminmax()).tolist()
        if behind == rank:
            return orthonormal_rows(rows, 2), values, iterations


def _without(known: Tensor, x: Tensor) -> Tensor:
    """x, (L, short), less its part along the known rows, (L, k, short); rows not yet known are zero."""
    return x - _times(_times(x, known.mT), known)


def _times(x: Tensor, M: Tensor) -> Tensor:
    """x M of each matrix: (L, k). As a row: a batched product with one column takes five times as long on a CPU."""
    return torch.bmm(x[:, None], M)[:, 0]


def _reset(at: Search, done: Tensor) -> Search:
    """Where done, x is a start."""
    return Search(
        at.x,
        torch.where(done, 0, at.before),
        torch.where(done, 1, at.length),
        torch.where(done, math.inf, at.residual),
        torch.where(done, 0, at.number),
    )
