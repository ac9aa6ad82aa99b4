"""Orthonormal bases of gradients' leading directions, for stacks of matrices of one shape: four ways, one contract.

    A: (L, long, short), the gradients, turned where they are wider than tall          C = A^T A / ||A||^2
    Q: (L, rank, short), orthonormal rows that approach A's top right singular vectors, which are C's top eigenvectors

``svd``         LAPACK's, the oracle.      ``gram``   C and its eigenvectors: exact too, to the root of the precision.
``block``       Y: ``rank + oversampling`` sums of A's own rows. Z = Y (C + shift), which reads A twice; ``rank`` leading
                right singular vectors of L^-1 Z, where L L^T = Z Y^T: Nystroem's (Tropp et al., arXiv 1706.05736).
                Sums of rows are nearer than an old basis is: on SmolLM2's gradients of other rows, 200 steps on, that
                holds 0.7 of the energy (docs/projector.md). So this builder needs none.
``sequential``  power iteration, one vector at a time, each kept orthogonal to those before it (``deflated``), from the
                old basis.

A basis is one whatever the gradient: with fewer directions than ``rank`` (few supervised tokens) it is completed; for one
that is zero or not finite (or so that its square would be) the old basis stays, or coordinate axes where there is none.
The largest entry of each row is positive, as a sign is otherwise left open. Everything is masked tensors; only
``sequential`` looks at a number, once in a few iterations, to see whether all are done.
"""

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Kind = Literal["svd", "gram", "block", "sequential"]
Momentum = Literal["dynamic", "static", "none"]
Side = Literal["right", "left"]

SHIFT = 100.0  # of C in the block iteration, in units of the precision: directions that A lacks stay in the block
SUMS = 3  # times as many sums of A's rows, on which a block's first round is made, as it has rows
FEW_SHIFT = 1e-3  # of that round: more than SHIFT, so that one factor is enough
# Length of the random part of its rows: 1e-5 of the energy a direction, where A has fewer than are asked for.
STRAY = 0.1
STRIPS = 4  # of columns that a Gram matrix is made by: 5/8 of the products
STRIDE = 8  # iterations between two looks at how far the search is
GUESS = 0.95  # of an eigenvalue: the most that static momentum takes for the next one, unless told; at 1 it stalls
STIR = 1e-3  # length of the random part of a warm start: a vector may lie in the span of those before it


class Report(NamedTuple):
    """What making the bases took and gave, a number a matrix: (L,)."""

    iterations: Tensor  # products of a vector, or of a whole block, with A^T A
    passes: Tensor  # products that read the gradient to make the basis
    share: Tensor  # ||A Q^T||^2 / ||A||^2
    kept: Tensor  # true where the gradient made no basis


def side_of(shape: torch.Size) -> Side:
    """Which side of a weight of this shape is projected: always the shorter one."""
    return "right" if shape[-2] >= shape[-1] else "left"


@dataclass(frozen=True)
class Builder:
    """A way to make bases, with its options."""

    kind: Kind = "svd"
    oversampling: int = 32  # of ``block``
    passes: int = 2  # of ``block``, two a round
    momentum: Momentum = "dynamic"  # of ``sequential``, as the other two
    tolerance: float = 5e-2  # of the residual, over the eigenvalue: 0.997 of the best energy, or more, from i^-0.25 on
    max_iterations: int = 100  # for a vector

    def __post_init__(self) -> None:
        for name, known in (("kind", Kind), ("momentum", Momentum)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(get_args(known))}")
        if self.passes < 2 or self.passes % 2:
            raise ValueError(f"passes={self.passes}: two a round, so 2, 4, 6, ...")
        if self.oversampling < 0 or self.max_iterations < 1 or not self.tolerance > 0:
            raise ValueError(
                f"oversampling={self.oversampling} must be 0 or more, max_iterations={self.max_iterations} at least 1 "
                f"and tolerance={self.tolerance} above 0"
            )

    @property
    def at_once(self) -> int:
        """Gradient entries that are best taken at once: what a block reads twice stays in the cache."""
        return {"block": 1 << 22, "sequential": 1 << 25}.get(self.kind, 1 << 23)

    def noise(self, rank: int, short: int, like: Tensor, generator: torch.Generator) -> Tensor:
        """Random rows that a build starts from: (rank + oversampling, short), about of length one."""
        rows = min(rank + self.oversampling * (self.kind == "block"), short)
        noise = torch.empty(rows, short, dtype=like.dtype, device=like.device)
        return noise.normal_(generator=generator).mul_(short**-0.5)

    @torch.no_grad()
    def __call__(
        self,
        gradients: Tensor,
        rank: int,
        side: Side,
        noise: Tensor,
        warm: Tensor | None = None,
        projected: Tensor | None = None,
    ) -> tuple[Tensor, Report]:
        """(basis, report) of gradients (L, m, n); ``warm``: (L, rank, short) from the last refresh; ``noise`` as above;
        ``projected``: where the gradients' projections go."""
        A = gradients if side == "right" else gradients.mT
        rank = min(rank, A.shape[2])
        size = torch.linalg.vector_norm(gradients.flatten(1), dim=1)
        good = size.isfinite() & (size > math.sqrt(torch.finfo(size.dtype).tiny))
        inverse = torch.where(good, 1 / size, 0)[:, None, None]
        mask = good[:, None, None]
        if self.kind == "svd":
            rows, counts = _svd(A, mask, rank), (0, 1)
        elif self.kind == "block":
            rows, counts = _block(A, inverse, mask, rank, noise, self.passes), (self.passes // 2, self.passes)
        else:
            C = gram(A, inverse, mask)
            if self.kind == "gram":
                rows, counts = torch.linalg.eigh(C)[1][..., -rank:].flip(-1).mT, (0, 1)
            else:
                options = self.momentum, self.tolerance, self.max_iterations
                rows, _, iterations = deflated(C, vector_start(A, rank, noise, warm), *options)
                counts = iterations, 1
        old = torch.eye(rank, A.shape[2], dtype=A.dtype, device=A.device) if warm is None else warm
        basis = torch.where(mask, fix_signs(rows), old)
        projected = torch.bmm(*((gradients, basis.mT) if side == "right" else (basis, gradients)), out=projected)
        share = torch.where(
            good, (torch.linalg.vector_norm(projected.flatten(1), dim=1) * inverse[:, 0, 0]).square(), 0
        )
        iterations, passes = (torch.zeros_like(size) + count for count in counts)
        return basis, Report(iterations, passes, share, ~good)


def fix_signs(basis: Tensor) -> Tensor:
    """Rows turned so that the largest entry of each is positive."""
    peak = basis.gather(-1, basis.abs().argmax(dim=-1, keepdim=True))
    return torch.where(peak < 0, -basis, basis)


# --------------------------------------------------------------------------- exact


def _svd(A: Tensor, mask: Tensor, rank: int) -> Tensor:
    return torch.linalg.svd(torch.where(mask, A, 0), full_matrices=False)[2][:, :rank]


def gram(A: Tensor, inverse: Tensor, mask: Tensor) -> Tensor:
    """A^T A * inverse^2 by strips of columns: what lies below the diagonal is copied. (L, short, short)."""
    C = A.new_empty(len(A), A.shape[2], A.shape[2])
    width = -(-A.shape[2] // STRIPS)
    for start in range(0, A.shape[2], width):
        strip = slice(start, start + width)
        C[:, strip, start:] = torch.bmm(A[:, :, strip].mT, A[:, :, start:])
        C[:, start + width :, strip] = C[:, strip, start + width :].mT
    return torch.where(mask, C.mul_(inverse**2), 0)


# --------------------------------------------------------------------------- block


def _block(A: Tensor, inverse: Tensor, mask: Tensor, rank: int, noise: Tensor, passes: int) -> Tensor:
    """Nystroem's approximation of C + shift from one product with it. In that no direction is lost, so that rows cannot
    become dependent: after a round their condition is at most that of the shifted matrix. Where the rows are few, a first
    round is made on sums of A's rows, more of them, instead of A."""
    shift, k = SHIFT * torch.finfo(A.dtype).eps, len(noise)

    def product(Y: Tensor, rows: Tensor, shift: float) -> Tensor:
        return torch.baddbmm(Y, torch.bmm(rows, (Y * inverse**2).mT).mT, rows, beta=shift)

    few = row_sums(A, SUMS * k, noise) if 2 * SUMS * k <= A.shape[2] else None
    Y = row_sums(A if few is None else few, k, noise) * inverse * k**0.5 + STRAY * noise
    Y = orthonormal_rows(Y, 1)
    if few is not None:
        Y = product(Y, few, FEW_SHIFT)
        Y = torch.bmm(_inverse_factor(torch.bmm(Y, Y.mT), shifted=True), Y)  # orthonormal enough: its span counts
    for _ in range(passes // 2 - 1):
        Y = orthonormal_rows(product(Y, A, shift), 2)
    Z = product(Y, A, shift)  # (L, k, short)
    W = torch.bmm(_inverse_factor(torch.bmm(Z, Y.mT)), Z)
    values, vectors = torch.linalg.eigh(torch.where(mask, torch.bmm(W, W.mT), 0))
    turn = vectors[..., -rank:].flip(-1) / values[:, None, -rank:].flip(-1).clamp_min(shift).sqrt()
    return orthonormal_rows(torch.bmm(turn.mT, W), 1)


def row_sums(A: Tensor, k: int, noise: Tensor) -> Tensor:
    """k sums of A's rows, with signs from the noise: every row is in one of them. (L, k, short)."""
    signs = noise.flatten().sign()
    made = A[:, :k] * signs[0]
    for number, start in enumerate(range(k, A.shape[1], k), 1):
        rows = A[:, start : start + k]
        made[:, : rows.shape[1]].addcmul_(rows, signs[number % len(signs)])
    return made


def orthonormal_rows(Y: Tensor, times: int) -> Tensor:
    """An orthonormal basis of the span of Y's rows: (L, k, short), by Cholesky factors of Gram matrices.

    Each time squares the condition in the Gram matrix, so once is enough only for rows that are nearly orthonormal or
    need not be more; all times but the last are shifted, so that they succeed up to a condition of about
    0.01 / precision, which wants three. The small factors are inverted and multiplied: five times faster than solving
    for Y on a CPU.
    """
    for number in range(times):
        Y = torch.bmm(_inverse_factor(torch.bmm(Y, Y.mT), shifted=number + 1 < times), Y)
    return Y


def _inverse_factor(gram: Tensor, shifted: bool = False) -> Tensor:
    """F^-1 of the Cholesky factor F of each; where that fails, rows are only normalised."""
    eps, lengths = torch.finfo(gram.dtype).eps, gram.diagonal(dim1=1, dim2=2)
    if shifted:
        lengths += 4 * eps * lengths.sum(1, keepdim=True)
    factor, failed = torch.linalg.cholesky_ex(gram)
    factor = torch.where((failed == 0)[:, None, None], factor, torch.diag_embed(lengths.clamp_min(eps).sqrt()))
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)


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
    parts = max(1, _cache() // C[0].nbytes) if C.device.type == "cpu" else len(C)
    given = C.split(parts), start.split(parts), [None] * len(C) if second is None else second.split(parts)
    found = [_deflated(*part, momentum, tolerance, max_iterations) for part in zip(*given, strict=False)]
    return tuple(torch.cat(each) for each in zip(*found, strict=True))


@functools.cache
def _cache() -> int:
    """Bytes of matrices to have in hand at once on a CPU, as they are read again and again: half of its last cache."""
    try:
        size = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text(encoding="ascii")  # Linux: "32768K"
        return int(size.strip().removesuffix("K")) * 2**9
    except (OSError, ValueError):
        return 16 * 2**20


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
    return torch.baddbmm(x[:, None], torch.bmm(x[:, None], known.mT), known, alpha=-1)[:, 0]


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
