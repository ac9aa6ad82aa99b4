"""BOFT: rotate the inputs of frozen weights by butterfly factors.  Liu et al., ICLR 2024, arXiv 2311.06243.

    y = W0 (R^T x) + b   R = F_{m-1} ... F_1 F_0: (in, in)   F_i = P_i blockdiag(R_i1 ... R_ik) P_i^T,   k = in / block
    R_ij = (I - S)(I + S)^-1: (block, block)   S = (Q_ij - Q_ij^T) / 2        (Cayley; ``factors=1`` is OFT)

The products are in methods/_butterfly.py. R is block-diagonal with runs of ``block_size`` 2^(factors - 1) inputs, which
must divide ``in``; where it does not, ``indivisible="fewer_factors"`` takes the largest m that does, and the record
says where. Q starts at zero: R = I. Merged: W0 R^T. Q trains, m * in * block numbers a matrix; the skew part alone
acts, so degrees of freedom are m * in * (block - 1) / 2. A token costs 2 in block 2^(m-1) FLOPs, forward.
Papers write Cayley as (I + S)(I - S)^-1, PEFT as here; the rotations are the same ones, with S of the other sign.

``cayley="neumann"``: the inverse as a truncated series (Qiu et al., 2025, arXiv 2506.19847), R with ``neumann_terms``
powers of S; orthogonal only while ||S|| is small, so each step's defect max |R^T R - I| is logged.
``output_scale``: also train s: (out,), y = s * (W0 R^T x) + b, as PEFT does; W0 is then no longer only rotated.
``update="printed"``: not BOFT, but eqs 3 to 6 of arXiv 2507.18076: the blocks R_ij themselves take the optimizer's step
as if they were free and are then projected to the nearest orthogonal matrices (polar factor). The paper lets the
product replace W0; here it multiplies W0, as the blocks start at I.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from harness.contract import Run, Step, choice, log_uniform

from ._butterfly import RotatedLinear, RotationMethod, Rotations, cayley_blocks, eye_like, fitting_factors
from ._linear import Targets, adapters, matrix, wrap

_CHOICES = {"indivisible": ("error", "fewer_factors"), "update": ("cayley", "printed")}


@dataclass
class BOFT(RotationMethod):
    learning_rate: float = field(default=1e-3, metadata={"search": log_uniform(1e-5, 1e-2)})
    factors: int = field(default=3, metadata={"search": choice(1, 2, 3)})
    block_size: int = field(default=8, metadata={"search": choice(4, 8, 16)})
    indivisible: str = "error"  # or "fewer_factors"
    output_scale: bool = False
    update: str = "cayley"  # or "printed", which is not BOFT
    targets: Targets = "all-linear"

    def attach(self, model: nn.Module, run: Run) -> None:
        self._check()
        # a function of the blocks as they train: itself, where they are free
        self._blocks = _as_it_is if self.update == "printed" else cayley_blocks(self.cayley, self.neumann_terms)
        self._rotations = Rotations(self._blocks)
        self._layers = wrap(model, run, self.targets, self._rotated)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        scales = [layer.output_scale for layer in self._layers if layer.output_scale is not None]
        turns = {"params": [layer.Q for layer in self._layers]}
        groups = [turns, {"params": scales, "weight_decay": 0.0}] if scales else [turns]  # s = 1 is the base, not 0
        return torch.optim.AdamW(groups, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: Step) -> None:
        if self.update == "printed":
            every = [layer.Q.flatten(0, 1) for layer in self._layers]
            projected = _polar(torch.cat(every)).split([len(blocks) for blocks in every])
            for layer, blocks in zip(self._layers, projected, strict=True):
                layer.Q.copy_(blocks.view_as(layer.Q))

    def facts(self, model: nn.Module) -> dict[str, Any]:
        fewer = {name: len(layer.Q) for name, layer in adapters(model, RotatedLinear) if len(layer.Q) < self.factors}
        return super().facts(model) | ({"fewer_factors": fewer} if fewer else {})

    def _rotated(self, base: nn.Module) -> RotatedLinear:
        in_size = matrix(base).shape[1]
        factors = fitting_factors("BOFT", in_size, self.factors, self.block_size, self.indivisible)
        layer = RotatedLinear(base, factors, self.block_size, self._blocks, self.output_scale)
        if self.update == "printed":
            layer.Q.data += eye_like(layer.Q)
        return layer

    def _check(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"BOFT: {name} is {' or '.join(map(repr, known))}, not {getattr(self, name)!r}")
        if self.factors < 1 or self.block_size < 2:
            raise ValueError(f"BOFT needs factors >= 1 and block_size >= 2, not {self.factors} and {self.block_size}")
        if self.update == "printed" and self.cayley != "exact":
            raise ValueError("BOFT: update='printed' has no Cayley transform, so cayley='neumann' does not go with it")


def _as_it_is(blocks: Tensor) -> Tensor:
    return blocks


def _polar(blocks: Tensor) -> Tensor:
    """The orthogonal matrices nearest to (n, b, b). What is not finite stays so, for the training loop to report."""
    finite = blocks.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    left, _, right = torch.linalg.svd(torch.where(finite, blocks, eye_like(blocks)))
    return torch.where(finite, left @ right, blocks)
