"""The factors of all LoRA layers in stacks, and their Gram matrices: what the preconditioned forms of LoRA share.

    X = s B A = s U V^T     U = B: (out, rank)    V = A^T: (in, rank)    s = alpha / rank    G = dL/dX: (out, in)
    G_U = dL/dU = s G V    G_V = dL/dV = s G^T U      K_U = s U^T U    K_V = s V^T V: (rank, rank)

Half of the scale belongs to each factor: the papers' formulas are taken in sqrt(s) U and sqrt(s) V, whose product is X
and whose Gram matrices are K_U and K_V. So a step of X is the papers' for every s, and it does not matter how a number
is shared out between s and the factors.

Layers of one shape are stacked and move by a few batched products; the Gram matrices of all layers are inverted by one
batched Cholesky. LoRA starts at U = 0, where K_U is singular and G_V is zero: damping must be positive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.contract import Method, Run, choice

from ._linear import Targets, unwrap, wrap
from ._low_rank import LowRankLinear


class Side:
    """One factor of the layers of a stack, U or V, as (layers, size, rank); A is V's transpose."""

    def __init__(self, parameters: list[nn.Parameter], transposed: bool):
        self.parameters, self.transposed = parameters, transposed

    def tall(self, stacked: Tensor) -> Tensor:
        """A view (layers, size, rank) of what has the parameters' layout, or the other way round."""
        return stacked.mT if self.transposed else stacked

    def factor(self) -> Tensor:
        return self.tall(torch.stack(self.parameters))

    def gradient(self) -> Tensor:
        """Zeros where a layer took no part."""
        return self.tall(torch.stack([torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]))

    def zeros(self) -> Tensor:
        """Room for a moment, in the parameters' layout."""
        return self.parameters[0].new_zeros(len(self.parameters), *self.parameters[0].shape)

    def copy_(self, values: Tensor) -> None:
        torch._foreach_copy_(self.parameters, self.tall(values).unbind())

    def add_(self, steps: Tensor, alpha: float) -> None:
        torch._foreach_add_(self.parameters, self.tall(steps).unbind(), alpha=alpha)

    def decay_(self, factor: float) -> None:
        if factor != 1:
            torch._foreach_mul_(self.parameters, factor)

    def set_gradient(self, gradient: Tensor) -> None:
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        torch._foreach_copy_([p.grad for p in self.parameters], self.tall(gradient).unbind())


class Stack:
    """The layers of one shape."""

    def __init__(self, layers: Sequence[LowRankLinear]):
        self.U = Side([layer.B for layer in layers], transposed=False)
        self.V = Side([layer.A for layer in layers], transposed=True)
        self.scale = layers[0].scale

    def grams(self) -> tuple[Tensor, Tensor]:
        """K_U and K_V: (layers, rank, rank)."""
        return tuple(self.scale * (F.mT @ F) for F in (self.U.factor(), self.V.factor()))


def stacks(layers: Iterable[LowRankLinear]) -> list[Stack]:
    shapes: dict[tuple[int, int], list[LowRankLinear]] = {}
    for layer in layers:
        shapes.setdefault((layer.out_size, layer.in_size), []).append(layer)
    return [Stack(alike) for alike in shapes.values()]


def factors(layers: Iterable[LowRankLinear]) -> list[nn.Parameter]:
    return [parameter for layer in layers for parameter in (layer.B, layer.A)]


def times(tall: Tensor, small: Tensor) -> Tensor:
    """tall @ small of (layers, size, rank) and (layers, rank, rank), laid out in memory as ``tall`` is."""
    return tall @ small if tall.is_contiguous() else (small.mT @ tall.mT).mT


def damped_inverses(matrices: Sequence[Tensor], damping: float) -> tuple[Tensor, ...]:
    """(K + damping I)^-1 of stacks of Gram matrices, all by one batched Cholesky.

    Where that fails, by rounding, a matrix gets ten times the damping and what rounding asks for at its size. One that is
    all zeros gets the identity: what it would precondition is zero too.
    """
    K = torch.cat(tuple(matrices))
    rank, eye = K.shape[-1], torch.eye(K.shape[-1], dtype=K.dtype, device=K.device)
    size = K.diagonal(dim1=-2, dim2=-1).mean(-1)
    more = torch.where(size > 0, 10 * damping + 10 * rank * torch.finfo(K.dtype).eps * size, 1.0)
    first, failed = torch.linalg.cholesky_ex(K + damping * eye)
    second = torch.linalg.cholesky_ex(K + more[:, None, None] * eye)[0]
    inverses = torch.cholesky_inverse(torch.where((failed != 0)[:, None, None], second, first))
    return inverses.split([len(matrix) for matrix in matrices])


def finite_or_nan(function: Callable[[Tensor], Any], matrices: Tensor) -> Any:
    """``function`` of stacked matrices, NaN for those that are not finite: LAPACK would stop on them, while the loop
    reports a training that diverges."""
    poison = (0 * matrices).sum((-2, -1))  # zero or NaN
    found = function(torch.where(poison.isnan()[:, None, None], 0.0, matrices))

    def poisoned(result: Tensor) -> Tensor:
        return result + poison.view(-1, *(1,) * (result.ndim - 1))

    return poisoned(found) if isinstance(found, Tensor) else tuple(map(poisoned, found))


Directions = Callable[[list[Stack]], Iterable[tuple[Tensor, Tensor]]]


def preconditioned(optimizer: torch.optim.Optimizer, layers: Iterable[LowRankLinear], directions: Directions):
    """``optimizer``, one of torch's over the layers' factors, made to take ``directions`` as their gradients.

    ``directions(stacks)`` gives those of U and of V, stack by stack, from the clipped gradients.
    """
    alike = stacks(layers)

    @torch.no_grad()
    def replace(*_: Any) -> None:
        for stack, (dU, dV) in zip(alike, directions(alike), strict=True):
            stack.U.set_gradient(dU)
            stack.V.set_gradient(dV)

    optimizer.register_step_pre_hook(replace)
    return optimizer


@dataclass
class FactorMethod(Method):
    """Trains LoRA's layers; a method that derives from it says by which optimizer. Clips on the factors' gradients."""

    rank: int = field(default=16, metadata={"search": choice(4, 8, 16, 32, 64)})
    alpha: float = 32.0
    dropout: float = 0.0
    targets: Targets = "all-linear"

    # Of width 32 a rank of 4 and more would take directions without a gradient, which a preconditioner makes large from rounding.
    tiny: ClassVar[dict[str, Any]] = {"rank": 2}

    def attach(self, model: nn.Module, run: Run) -> None:
        self._layers: list[LowRankLinear] = wrap(model, run, self.targets, self._layer)

    def _layer(self, base: nn.Module) -> LowRankLinear:
        return LowRankLinear(base, self.rank, self.alpha / self.rank, self.dropout)

    def merge(self, model: nn.Module) -> None:
        unwrap(model, LowRankLinear, lambda layer, weight: weight + layer.update())


def check_damping(name: str, damping: float) -> None:
    if not damping > 0:
        raise ValueError(
            f"{name}: damping={damping:g} must be positive: B starts at zero, where its Gram matrix has no inverse"
        )
