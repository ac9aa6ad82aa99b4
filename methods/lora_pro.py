"""LoRA-Pro: LoRA whose two gradients together are nearest to the weight's.  Wang et al., ICLR 2025, arXiv 2407.18242.

    X = s B A = s U V^T     U = B: (out, rank)    V = A^T: (in, rank)    G = dL/dX    G_U = s G V    G_V = s G^T U
    K = s U^T U + damping I    L = s V^T V + damping I: (rank, rank)    P = s U K^-1 U^T
    dU = (1/s) (I - P) G_U L^-1 + U Y     dV = (1/s) G_V K^-1 - V Y^T     K Y + Y L = K^-1 G_V^T V

s (dU V^T + U dV^T) is the best fit of G for every Y: P_U G + G P_V - P_U G P_V, the projection on the tangent space of
matrices of this rank. The Y of this Sylvester equation moves dU and dV as near to G_U and G_V as can be. It is solved by
eigendecompositions of K and L, of all layers in one batch, which give the inverses too.

    update "sgd":         U <- U - lr dU, V <- V - lr dV
    update "adamw":       AdamW of dU and dV: the released code's mode "efficient", its README's choice. As LoRA's state.
    update "adamw_full":  E = s (dU V^T + U dV^T), N = Adam's direction for E: (out, in); then dU and dV as above with N
                          in G's place. The paper's algorithm. State 2 out in numbers a matrix, as full fine-tuning, and
                          for a moment as many again for all layers of the shape at work.

B = 0 at the start makes K the damping alone, P and G_V zero and Y zero: U moves by G P_V, V waits. The code adds 1e-8 to
s-free Gram matrices and takes pseudo-inverses; ours has the damping in K and L, the Sylvester equation's too. Weight
decay is on U and V, for "sgd" and "adamw" as torch's; the paper's full form shrinks W0 as well. With a small damping a
step of X sees X alone up to lr^2, not for "adamw", which scales entry by entry.
Trains rank * (in + out) numbers a matrix, started as LoRA's.  Merged: W0 + s B A.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from harness.contract import Run, log_uniform

from ._factors import FactorMethod, Stack, check_damping, factors, finite_or_nan, preconditioned, stacks, times

Update = Literal["adamw", "adamw_full", "sgd"]


@dataclass
class _Gram:
    """A damped Gram matrix, vectors diag(values) vectors^T: (layers, rank), (layers, rank, rank)."""

    values: Tensor
    vectors: Tensor

    def inverse(self) -> Tensor:
        return (self.vectors / self.values.unsqueeze(-2)) @ self.vectors.mT


def _grams(alike: list[Stack], damping: float) -> Iterator[tuple[_Gram, _Gram]]:
    """K and L of every stack."""
    matrices = [K for stack in alike for K in stack.grams()]
    values, vectors = finite_or_nan(torch.linalg.eigh, torch.cat(matrices))
    sizes = [len(matrix) for matrix in matrices]
    values = (values.clamp_min(0.0) + damping).split(sizes)
    found = [_Gram(*pair) for pair in zip(values, vectors.split(sizes), strict=True)]
    return zip(found[::2], found[1::2], strict=True)


def _sylvester(K: _Gram, L: _Gram, right: Tensor) -> Tensor:
    """Y with K Y + Y L = right."""
    rotated = K.vectors.mT @ right @ L.vectors
    return K.vectors @ (rotated / (K.values.unsqueeze(-1) + L.values.unsqueeze(-2))) @ L.vectors.mT


def _corrected(U: Tensor, V: Tensor, G_U: Tensor, G_V: Tensor, K: _Gram, L: _Gram, s: float) -> tuple[Tensor, Tensor]:
    """dU and dV."""
    K_inverse, L_inverse = K.inverse(), L.inverse()
    Y = _sylvester(K, L, K_inverse @ (G_V.mT @ V))
    dU = times(G_U, L_inverse / s) + times(U, Y - K_inverse @ (U.mT @ G_U) @ L_inverse)
    return dU, times(G_V, K_inverse / s) - times(V, Y.mT)


def _directions(alike: list[Stack], damping: float) -> Iterator[tuple[Tensor, Tensor]]:
    """dU and dV of every stack."""
    for stack, (K, L) in zip(alike, _grams(alike, damping), strict=True):
        U, V = stack.U, stack.V
        yield _corrected(U.factor(), V.factor(), U.gradient(), V.gradient(), K, L, stack.scale)


class _FullAdamW(torch.optim.Optimizer):
    """Moments of the equivalent gradient E of every matrix, (layers, out, in), with the first B of its stack."""

    def __init__(self, layers: list, damping: float, lr: float, weight_decay: float):
        rates = {"lr": lr, "weight_decay": weight_decay, "betas": (0.9, 0.999), "epsilon": 1e-8}
        super().__init__(factors(layers), {**rates, "damping": damping, "count": 0})
        self.stacks = stacks(layers)
        for stack in self.stacks:
            B, A = stack.U.parameters[0], stack.V.parameters[0]
            size = len(stack.U.parameters), len(B), A.shape[1]
            self.state[B].update(first=B.new_zeros(size), second=B.new_zeros(size))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        group = self.param_groups[0]
        group["count"] += 1
        for stack, (K, L) in zip(self.stacks, _grams(self.stacks, group["damping"]), strict=True):
            U, V, s = stack.U.factor(), stack.V.factor(), stack.scale
            dU, dV = _corrected(U, V, stack.U.gradient(), stack.V.gradient(), K, L, s)
            N = self._adam(group, stack, torch.cat((s * dU, s * U), -1) @ torch.cat((V, dV), -1).mT)
            dU, dV = _corrected(U, V, s * (N @ V), s * (N.mT @ U), K, L, s)
            for side, direction in ((stack.U, dU), (stack.V, dV)):
                side.decay_(1 - group["lr"] * group["weight_decay"])
                side.add_(direction, alpha=-group["lr"])

    def _adam(self, group: dict, stack: Stack, E: Tensor) -> Tensor:
        first, second = (self.state[stack.U.parameters[0]][key] for key in ("first", "second"))
        corrections = [1 - beta ** group["count"] for beta in group["betas"]]
        first.lerp_(E, 1 - group["betas"][0])
        second.mul_(group["betas"][1]).addcmul_(E, E, value=1 - group["betas"][1])
        size = torch.sqrt(second, out=E).div_(math.sqrt(corrections[1])).add_(group["epsilon"])
        return torch.div(first, size, out=size).div_(corrections[0])


@dataclass
class LoRAPro(FactorMethod):
    learning_rate: float = field(default=2e-4, metadata={"search": log_uniform(1e-5, 1e-2)})
    update: Update = "adamw"
    damping: float = 1e-6

    # Beside factors as small as after a few steps, a smaller damping makes rounding errors into gradients, and Adam into steps.
    tiny: ClassVar[dict[str, Any]] = {"rank": 2, "damping": 1e-3}

    def attach(self, model: nn.Module, run: Run) -> None:
        check_damping("LoRA-Pro", self.damping)
        if self.update not in get_args(Update):
            raise ValueError(f"LoRA-Pro: update is {' or '.join(get_args(Update))}, not {self.update!r}")
        super().attach(model, run)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        rates = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        if self.update == "adamw_full":
            return _FullAdamW(self._layers, self.damping, **rates)
        kind = torch.optim.AdamW if self.update == "adamw" else torch.optim.SGD
        inner = kind(factors(self._layers), fused=True, **rates)
        return preconditioned(inner, self._layers, lambda alike: _directions(alike, self.damping))
