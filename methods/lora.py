"""LoRA: a low-rank update beside frozen weights.  Hu et al., ICLR 2022, arXiv 2106.09685.

    y = W0 x + s B (A x)    A: (rank, in)    B: (out, rank)    s = alpha / rank    (rsLoRA: alpha / sqrt(rank))

A starts uniform in +-1/sqrt(in) (Kaiming, as in the authors' code), B at zero: the model starts unchanged.
Gradients with G = dL/dy:  dA = s B^T G x^T,  dB = s G (A x)^T;  at the start only B moves.  Merged: W0 + s B A.
Trains rank * (in + out) numbers a matrix and costs 2 rank (in + out) FLOPs a token, forward.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.contract import Method, Run, choice, log_uniform

from ._linear import Adapter, Targets, adapter_dtype, unwrap, wrap


class _LoRALinear(Adapter):
    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float):
        super().__init__(base)
        self.scale, self.dropout = scale, dropout
        like = {"dtype": adapter_dtype(base.weight), "device": base.weight.device}
        self.A = nn.Parameter(torch.empty(rank, self.in_size, **like))
        self.B = nn.Parameter(torch.zeros(self.out_size, rank, **like))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)  # (tokens, in)
        y = self.base(rows)  # (tokens, out)
        rows = F.dropout(rows, self.dropout, self.training)
        if rows.dtype == y.dtype == self.A.dtype:
            y.addmm_(F.linear(rows, self.A), self.B.t(), alpha=self.scale)  # one pass over y
        else:
            update = F.linear(F.linear(rows.to(self.A.dtype), self.A), self.B) * self.scale
            y = y + update.to(y.dtype)
        return y.view(*x.shape[:-1], self.out_size)


@dataclass
class LoRA(Method):
    learning_rate: float = field(default=2e-4, metadata={"search": log_uniform(1e-5, 1e-2)})
    rank: int = field(default=16, metadata={"search": choice(4, 8, 16, 32, 64)})
    alpha: float = 32.0
    dropout: float = 0.0
    rslora: bool = False
    targets: Targets = "all-linear"

    def attach(self, model: nn.Module, run: Run) -> None:
        scale = self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
        wrap(model, run, self.targets, lambda base: _LoRALinear(base, self.rank, scale, self.dropout))

    def merge(self, model: nn.Module) -> None:
        unwrap(model, _LoRALinear, lambda adapter, weight: weight + adapter.scale * (adapter.B @ adapter.A))
