"""lambda, the share of a low-rank branch against an orthogonal one, from the two branches' gradients: one a matrix.

    target = g_L / (g_L + g_B)      lambda <- clamp(ema lambda + (1 - ema) target)

g is the size of a branch's gradient over the weight that the forward gave the branch. A gradient carries that weight
as a factor; left in, it would multiply the odds of lambda by the same ratio every step, until one branch is gone.

Sizes, where q is the packed upper triangle of Q (a raw b x b gradient is antisymmetric and holds each number twice:
|dq|_2 = sqrt(2) |dQ|_2, |dq|_1 = |dQ|_1):

    decrease   learning rate * |gradient|_1: the loss that the branch's next step of Adam buys, to first order
    rms        |gradient|_2 / sqrt(its free entries)
    raw        |gradient|_2

``decrease`` is in units of the loss for both branches, and so the same in any parametrisation whose rate moves the
weights as far. gamma enters it only as it enters the step: with a learning rate times sqrt(gamma) each step moves W as
far, and lambda is the same for every gamma. ``rms`` and ``raw`` compare slopes in A and B with slopes in Q, which have other
units: dA and dB grow with the start's scale, 1 / sqrt(gamma), and dQ with W0; ``raw`` also grows with the
number of entries. So gamma and the sizes set them whatever the data say, and no rate makes up for it.
"""

import math
from collections.abc import Sequence
from statistics import median
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["decrease", "rms", "raw"]


def branch_sizes(
    low_rank: Sequence[Tensor], turns: Sequence[Tensor], norm: Norm, rates: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """(g_L, g_B), each (layers,), of the gradients [dA, dB of the first layer, dA, dB of the second, ...] and [dQ, ...].

    ``rates``: the learning rates of the two branches.
    """
    power = 1 if norm == "decrease" else 2
    sizes = torch.stack(torch._foreach_norm([*low_rank, *turns], power))
    both, turn = sizes.split([len(low_rank), len(turns)])
    low = torch.linalg.vector_norm(both.view(-1, 2), power, dim=1)
    if norm == "decrease":
        return low * rates[0], turn * rates[1]
    turn = turn * math.sqrt(2)
    if norm == "raw":
        return low, turn
    free = [A.numel() + B.numel() for A, B in zip(low_rank[::2], low_rank[1::2], strict=True)]
    packed = [Q.numel() * (Q.shape[-1] - 1) // (2 * Q.shape[-1]) for Q in turns]
    return _over_roots(low, free), _over_roots(turn, packed)


def _over_roots(sizes: Tensor, counts: Sequence[int]) -> Tensor:
    """Each size over the root of its count, without moving the counts to the device."""
    return torch.stack(torch._foreach_div(list(sizes.unbind()), [math.sqrt(count) for count in counts]))


def follow(
    lambda_: Tensor,
    sizes: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor] | None,
    ema: float,
    clamp: tuple[float, float],
) -> Tensor:
    """The next lambda: (layers,). ``weights`` with which the forward took the branches; None: both 1, nothing to divide.

    Where the target is not a number (both branches without a gradient) lambda stays.
    """
    low, turn = sizes
    if weights is not None:
        low, turn = low / weights[0].clamp_min(1e-8), turn / weights[1].clamp_min(1e-8)
    target = low / (low + turn)
    target = torch.where(target.isfinite(), target, lambda_).to(lambda_.dtype)
    return lambda_.lerp(target, 1 - ema).clamp(*clamp)


def spread(values: Sequence[Tensor]) -> dict[str, float]:
    """Smallest, median and largest, for the record."""
    numbers = torch.stack(list(values)).tolist()
    return {"min": min(numbers), "median": median(numbers), "max": max(numbers)}
