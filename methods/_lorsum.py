"""Low-rank sums without their dense form: proximal alternating least squares, its metrics and its solves.  arXiv 2602.16456.

A stack of L matrices of one shape goes through every formula at once. U0, U: (L, m, r), V0, V: (L, n, r), and

    M = keep U0 V0^T + P^-1 (weight G + sum_i c_i U_i V_i^T) Q^-1        U_i: (L, m, k), V_i: (L, n, k)
    min over U, V of  ||U V^T - M||^2_{P,Q} + rho ||U - U0||^2_{P,I} + rho ||V - V0||^2_{Q,I}      ||A||^2_{P,Q} = tr(A^T P A Q)

    U = (rho U0 + keep U0 (V0^T Q V) + P^-1 (weight G V + sum_i c_i U_i (V_i^T V))) (V^T Q V + rho I)^-1
    V = (rho V0 + keep V0 (U0^T P U) + Q^-1 (weight G^T U + sum_i c_i V_i (U_i^T U))) (U^T P U + rho I)^-1

in turn, ``pairs`` times. G enters by G V and G^T U alone. Each r x r system is damped by rho I, as in the authors' code; a
reading of the paper's eq. 14 has rho times another metric there. P: (m, m) and Q: (n, n) are powers (D + delta)^g, or
their diagonals, or the identity.

rho = 0: a pair is one subspace iteration on M^T M, error (s_{r+1} / s_r)^2, towards the best approximation of rank r.
rho > 0: rho U0 and rho V0 hold to the start ("fixed"), which biases the limit by about rho; or to the iterate before
("moving"), whose limit is the best approximation again. pairs = 0: Jacobi, both sides from the old other one, which is
ScaledGD with damping rho; it counts what both sides hold twice, and is of first order in the step. A pair in turn is of
second, so that one is enough.

All r x r systems of a half step, of every stack, go into one batched Cholesky. A system that is not positive definite
is damped tenfold, in the anchor too; if it was not damped at all, by ten rounding errors of its mean eigenvalue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]  # (U, V)


class Products(Protocol):
    """A stack of gradients G: (L, m, n), known by its products."""

    def times(self, V: Tensor) -> Tensor:
        """G V: (L, m, k)."""

    def transposed_times(self, U: Tensor) -> Tensor:
        """G^T U: (L, n, k)."""


class Metric(NamedTuple):
    """(D + delta)^g and its inverse: (L, d, d), of a diagonal (L, d, 1); None: the identity."""

    power: Tensor | None = None
    inverse: Tensor | None = None


@dataclass
class Problem:
    """One stack. ``known``: (G V0, G^T U0) as far as they are there already, as autograd's gradients of U and V are.

    ``relative``: rho counts in mean eigenvalues of each system's matrix.
    """

    U: Tensor
    V: Tensor
    gradient: Products
    weight: float
    rho: float
    terms: Sequence[tuple[float, Tensor, Tensor]] = ()
    keep: float = 1.0
    P: Metric = Metric()
    Q: Metric = Metric()
    known: tuple[Tensor | None, Tensor | None] = (None, None)
    relative: bool = False


def metric(D: Tensor, delta: float, power: float) -> Metric:
    """Of D: (L, d), a diagonal, or (L, d, d), symmetric; delta is added before the power is taken."""
    if D.ndim == 2:
        values = (D + delta).pow(power).unsqueeze(-1)
        return Metric(values, values.reciprocal())
    values, vectors = torch.linalg.eigh(D)
    values = (values.clamp_min(0) + delta).pow(power).unsqueeze(-2)
    return Metric((vectors * values) @ vectors.mT, (vectors / values) @ vectors.mT)


def low_rank_sum(problems: Sequence[Problem], pairs: int, first: str = "U", moving: bool = False) -> list[Pair]:
    """(U, V) of every problem after ``pairs`` pairs of half steps, U's or V's first; 0: one Jacobi step."""
    start = [(problem.U, problem.V) for problem in problems]
    if pairs == 0:
        both = [_half_step(problems, side, start, start, known=True) for side in (0, 1)]
        return list(zip(*both, strict=True))
    now = start
    order = (0, 1) if first == "U" else (1, 0)
    for half in range(2 * pairs):
        side = order[half % 2]
        new = _half_step(problems, side, now, now if moving else start, known=half == 0)
        now = [(found, V) if side == 0 else (U, found) for found, (U, V) in zip(new, now, strict=True)]
    return now


def _half_step(
    problems: Sequence[Problem], side: int, now: Sequence[Pair], anchors: Sequence[Pair], known: bool
) -> list[Tensor]:
    """The new U (side 0) or V (side 1) of every problem, from the present other factor."""
    systems = [_system(p, side, pair[1 - side], known) for p, pair in zip(problems, now, strict=True)]
    grams, rights = [gram for gram, _ in systems], [right for _, right in systems]
    rhos = [_damping(problem, gram) for problem, gram in zip(problems, grams, strict=True)]
    return damped_solve(grams, rights, [pair[side] for pair in anchors], rhos)


def _system(problem: Problem, side: int, other: Tensor, known: bool) -> Pair:
    """The matrix (L, r, r) of a half step, without damping, and its right-hand side (L, m or n, r), without anchor."""
    if side == 0:
        own, start, own_metric, across = problem.U, problem.V, problem.P, problem.Q
    else:
        own, start, own_metric, across = problem.V, problem.U, problem.Q, problem.P
    weighted = _applied(across.power, other)
    product = problem.known[side] if known else None
    if product is None:
        product = problem.gradient.times(other) if side == 0 else problem.gradient.transposed_times(other)
    moved = product * problem.weight
    for coefficient, U, V in problem.terms:
        mine, theirs = (U, V) if side == 0 else (V, U)
        moved = torch.baddbmm(moved, mine, theirs.mT @ other, alpha=coefficient)
    moved = _applied(own_metric.inverse, moved)
    return other.mT @ weighted, torch.baddbmm(moved, own, start.mT @ weighted, alpha=problem.keep)


def _damping(problem: Problem, gram: Tensor) -> Tensor:
    """rho: (L,)."""
    if problem.relative:
        return problem.rho * gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    return gram.new_full((len(gram),), problem.rho)


def damped_solve(
    grams: Sequence[Tensor], rights: Sequence[Tensor], anchors: Sequence[Tensor], rhos: Sequence[Tensor]
) -> list[Tensor]:
    """(rights + rho anchors) (grams + rho I)^-1 of every stack; one batched Cholesky for all of one rank."""
    found: dict[int, Tensor] = {}
    for rank in sorted({gram.shape[-1] for gram in grams}):
        numbers = [number for number, gram in enumerate(grams) if gram.shape[-1] == rank]
        counts = [len(grams[number]) for number in numbers]
        factor, rho = _factor(torch.cat([grams[n] for n in numbers]), torch.cat([rhos[n] for n in numbers]))
        for number, one, damping in zip(numbers, factor.split(counts), rho.split(counts), strict=True):
            right = rights[number] + damping[:, None, None] * anchors[number]
            found[number] = torch.cholesky_solve(right.mT, one).mT
    return [found[number] for number in range(len(grams))]


def _factor(gram: Tensor, rho: Tensor) -> Pair:
    """Cholesky factor of gram + rho I and the rho that it has; without a look at which of them failed."""
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    limits = torch.finfo(gram.dtype)
    floor = limits.eps * gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    more = 10 * torch.maximum(rho, floor).clamp_min(limits.tiny)
    factor, failed = torch.linalg.cholesky_ex(gram + rho[:, None, None] * eye)
    again, _ = torch.linalg.cholesky_ex(gram + more[:, None, None] * eye)
    failed = failed != 0
    return torch.where(failed[:, None, None], again, factor), torch.where(failed, more, rho)


def _applied(factor: Tensor | None, Y: Tensor) -> Tensor:
    """A metric's power or inverse times Y: (L, d, k)."""
    if factor is None:
        return Y
    return factor * Y if factor.shape[-1] == 1 else factor @ Y


def truncated(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U: (m, rank), V: (n, rank) with U V^T the best approximation of left right^T and U^T U = V^T V; the energy cut off.

    Exact, without the product: QR of left: (m, k) and right: (n, k), SVD of the (k, k) core.
    """
    left_basis, left_core = torch.linalg.qr(left)
    right_basis, right_core = torch.linalg.qr(right)
    W, values, Z = torch.linalg.svd(left_core @ right_core.mT, full_matrices=False)
    root = values[..., :rank].sqrt().unsqueeze(-2)
    U, V = left_basis @ (W[..., :rank] * root), right_basis @ (Z.mT[..., :rank] * root)
    return U, V, values[..., rank:].square().sum(-1)
