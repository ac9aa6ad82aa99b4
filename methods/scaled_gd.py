"""ScaledGD: LoRA with each factor's gradient scaled by the other's Gram matrix.  Zhang, Pilanci, ICML 2024, 2402.02347.

    X = s B A = s U V^T     U = B: (out, rank)    V = A^T: (in, rank)    G = dL/dX    K_U = s U^T U    K_V = s V^T V
    dU = (1/s) (s G V) (K_V + damping I)^-1       dV = (1/s) (s G^T U) (K_U + damping I)^-1
    update "sgd": U <- U - lr m_U, V <- V - lr m_V, with m <- momentum m + d         "adamw": AdamW of dU and dV

Also known as Riemannian preconditioned LoRA; scaled gradients are of Tong, Ma, Chi, JMLR 2021, arXiv 2005.08767. Both
directions are of the factors before the step. With P the projections on the factors' columns and a small damping, X
moves by -lr (P_U G + G P_V): the step sees X alone, not its factors, and not s. It is one step from the old factors of
the proximal problem <G, X> + ||X - X_old||^2 / (2 lr), and counts P_U G P_V twice. Damping ends the invariance a little;
"adamw" ends it altogether, since Adam scales entry by entry. There s acts as in LoRA.

As in the authors' code, the raw gradients are scaled first and Adam follows. Ours: the damping, which theirs lacks (where
an inverse fails it does not scale), and Adam's constants, which are those of our LoRA. Damping 1e-2 and momentum 0.9 are
from LoRSum's scripts for this method (arXiv 2602.16456). Weight decay is torch's: with "sgd" it goes through momentum.
Trains rank * (in + out) numbers a matrix, started as LoRA's. State: as many with "sgd" and momentum, twice as many with
"adamw". A step adds 4 rank^2 (in + out) FLOPs a matrix, and two inverses of (rank, rank).  Merged: W0 + s B A.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from harness.contract import Run, log_uniform

from ._factors import FactorMethod, Stack, check_damping, damped_inverses, factors, preconditioned, times

Update = Literal["sgd", "adamw"]


def _directions(stacks: list[Stack], damping: float) -> Iterator[tuple[Tensor, Tensor]]:
    """dU and dV of every stack."""
    inverses = damped_inverses([K for stack in stacks for K in stack.grams()], damping)
    for stack, inverse_U, inverse_V in zip(stacks, inverses[::2], inverses[1::2], strict=True):
        dU = times(stack.U.gradient(), inverse_V / stack.scale)
        yield dU, times(stack.V.gradient(), inverse_U / stack.scale)


@dataclass
class ScaledGD(FactorMethod):
    learning_rate: float = field(default=2e-3, metadata={"search": log_uniform(1e-3, 10.0)})
    update: Update = "sgd"
    momentum: float = 0.9  # of "sgd"
    damping: float = 1e-2

    # "adamw": the damping divides A's gradient while B is small, and so lifts rounding errors above Adam's epsilon.
    tiny: ClassVar[dict[str, Any]] = {"rank": 2, "damping": 0.1}

    def attach(self, model: nn.Module, run: Run) -> None:
        check_damping("ScaledGD", self.damping)
        if self.update not in get_args(Update):
            raise ValueError(f"ScaledGD: update is {' or '.join(get_args(Update))}, not {self.update!r}")
        super().attach(model, run)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        rates = {"lr": self.learning_rate, "weight_decay": self.weight_decay, "fused": True}
        if self.update == "sgd":
            inner = torch.optim.SGD(factors(self._layers), momentum=self.momentum, **rates)
        else:
            inner = torch.optim.AdamW(factors(self._layers), **rates)
        return preconditioned(inner, self._layers, lambda stacks: _directions(stacks, self.damping))
