"""LoRA: a low-rank update beside frozen weights.  Hu et al., ICLR 2022, arXiv 2106.09685.

    y = W0 x + s B (A x)    A: (rank, in)    B: (out, rank)    s = alpha / rank    (rsLoRA: alpha / sqrt(rank))

A starts uniform in +-1/sqrt(in) (Kaiming, as in the authors' code), B at zero: the model starts unchanged.
Gradients with G = dL/dy:  dA = s B^T G x^T,  dB = s G (A x)^T;  at the start only B moves.  Merged: W0 + s B A.
Trains rank * (in + out) numbers a matrix and costs 2 rank (in + out) FLOPs a token, forward.
"""

import math
from dataclasses import dataclass, field

from torch import nn

from harness.contract import Method, Run, choice, log_uniform

from ._linear import Targets, unwrap, wrap
from ._low_rank import LowRankLinear


@dataclass
class LoRA(Method):
    learning_rate: float = field(default=3e-3, metadata={"search": log_uniform(1e-5, 1e-2)})
    rank: int = field(default=16, metadata={"search": choice(4, 8, 16, 32, 64)})
    alpha: float = 32.0
    dropout: float = 0.0
    rslora: bool = False
    targets: Targets = "all-linear"

    def attach(self, model: nn.Module, run: Run) -> None:
        scale = self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
        wrap(model, run, self.targets, lambda base: LowRankLinear(base, self.rank, scale, self.dropout))

    def merge(self, model: nn.Module) -> None:
        unwrap(model, LowRankLinear, lambda layer, weight: weight + layer.update())
