"""Hybrid to the letter, as printed, not recommended: Algorithm 2 of Qi, Dai, Huang 2025, arXiv 2507.18076.

    the loss sees W + D          D = lambda B A + (1 - lambda) (R - I) W        R = (I + eta Q)(I - eta Q)^-1
    after the backward pass:     lambda = |dA, dB| / (|dA, dB| + |dQ|)          W <- W + D, with this lambda
    then A <- A - lr dA          B <- B - lr dB          Q <- Q - eta (dQ - dQ^T)

A: (rank, in)   B: (out, rank)   Q: (out, out), skew   W: (out, in); every step writes into it, so W - W0 is a float32 buffer.
The printed names are the other way round in Algorithm 2 (A B) and equation (1) (B A); here B A, as everywhere.
Trains rank * (in + out) + out^2 numbers a matrix; a step costs order out^3 + out^2 in beside the layer's own products.

What it does, and why ``hybrid`` differs: the whole of D is added every step, so it goes on growing when A, B and Q
stand still. Equation (8) starts from B A = +G_r, the gradient's best rank-r part: a step up the loss. eta stands in R
and in Q's step, so Q's effect is of order eta^3, its gradient vanishes beside dA and dB, and lambda goes to 1. Without
eta, lambda feeds on itself: each branch's gradient carries its own share as a factor. |dA, dB| and |dQ| have
unlike sizes and units. Q turns outputs here, inputs in BOFT. ``accumulate``, ``eta_in_cayley`` and ``start`` undo
these one at a time; perf/hybrid_toy.py measures each.

Left open by the text, and chosen here: the loss sees W + D with the lambda of the step before, 0.5 at first; eta in R
is the peak rate, as R must follow from the state alone; 0 / 0 keeps lambda; predictions come from what the loss saw.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.contract import Method, Probe, Run, Step, log_uniform

from ._gradient_start import start_from_gradient
from ._linear import Adapter, Targets, adapter_dtype, adapters, is_conv1d, matrix, unwrap, wrap
from ._mixing import spread

_LARGEST = 1024  # outputs: Q has their square, and every forward solves a system of that size
_STARTS = ("eq8", "zero")


class _LiteralLinear(Adapter):
    def __init__(self, base: nn.Module, rank: int, eta: float):
        super().__init__(base)
        if self.out_size > _LARGEST:
            raise ValueError(
                f"hybrid_literal keeps a dense {self.out_size} x {self.out_size} matrix Q and inverts one in every "
                f"forward pass; it is for small models, of at most {_LARGEST} outputs. Use hybrid."
            )
        if rank > min(self.out_size, self.in_size):
            raise ValueError(
                f"hybrid_literal takes rank={rank} directions from a gradient of ({self.out_size}, {self.in_size}). "
                f"Choose a rank of at most {min(self.out_size, self.in_size)}, or other targets."
            )
        self.eta = eta
        like = {"dtype": adapter_dtype(base.weight), "device": base.weight.device}
        self.A = nn.Parameter(torch.empty(rank, self.in_size, **like).normal_(std=self.in_size**-0.5))
        self.B = nn.Parameter(torch.zeros(self.out_size, rank, **like))
        self.Q = nn.Parameter(torch.zeros(self.out_size, self.out_size, **like))
        self.register_buffer("written", torch.zeros(self.out_size, self.in_size, **like))
        self.register_buffer("lambda_", torch.full((), 0.5, device=base.weight.device))

    def seen(self) -> Tensor:
        """W + D: (out, in)."""
        W = matrix(self.base).to(self.written.dtype) + self.written
        turn = self.eta * self.Q
        eye = torch.eye(self.out_size, dtype=turn.dtype, device=turn.device)
        R = torch.linalg.solve_ex(eye - turn, eye + turn)[0]  # the two factors commute
        return W + self.lambda_ * (self.B @ self.A) + (1 - self.lambda_) * (R @ W - W)

    def forward(self, x: Tensor) -> Tensor:
        W = self.seen()
        bias = None if self.bias is None else self.bias.to(W.dtype)
        return F.linear(x.to(W.dtype), W, bias).to(x.dtype)


@dataclass
class HybridLiteral(Method):
    learning_rate: float = field(default=1e-3, metadata={"search": log_uniform(1e-5, 1e-1)})
    orthogonal_learning_rate: float = field(default=1e-3, metadata={"search": log_uniform(1e-5, 1e-1)})
    """eta: of Q's step and, as printed, inside R."""
    rank: int = 16
    probe_batches: int = 8
    """Micro-batches of the gradient that the start factors."""
    start: str = "eq8"
    """"eq8" or "zero" (B = 0)."""
    accumulate: bool = True
    """Write D into W every step."""
    eta_in_cayley: bool = True
    targets: Targets = "all-linear"

    changes_init: ClassVar[str | None] = "equation (8) starts at W0 + lambda G_r, up the loss"
    # Unit steps up the loss are no start for a check that the loss falls.
    tiny: ClassVar[dict[str, Any]] = {"rank": 4, "start": "zero", "orthogonal_learning_rate": 0.1}

    def attach(self, model: nn.Module, run: Run) -> None:
        if self.start not in _STARTS:
            raise ValueError(f"start is one of {', '.join(_STARTS)}, not {self.start!r}")
        if self.start == "zero":
            self.changes_init = None
        eta = self.orthogonal_learning_rate if self.eta_in_cayley else 1.0
        self._layers = wrap(model, run, self.targets, lambda base: _LiteralLinear(base, self.rank, eta))

    def initialize(self, model: nn.Module, probe: Probe) -> None:
        if self.start == "zero":
            return
        layers = {f"{name}.base.weight": layer for name, layer in adapters(model, _LiteralLinear)}

        @torch.no_grad()
        def visit(name: str, gradient: Tensor) -> None:
            layer = layers[name]
            G = gradient.t() if is_conv1d(layer.base) else gradient
            start = start_from_gradient(G, self.rank, 1.0, 1.0, "printed_eq8")
            layer.A.copy_(start.A0)
            layer.B.copy_(start.B0)

        probe.mean_gradients(list(layers), self.probe_batches, visit)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        low_rank = [p for layer in self._layers for p in (layer.A, layer.B)]
        turns = {"params": [layer.Q for layer in self._layers], "lr": self.orthogonal_learning_rate}
        return torch.optim.SGD(
            [{"params": low_rank}, turns], lr=self.learning_rate, weight_decay=self.weight_decay, foreach=True
        )

    @torch.no_grad()
    def after_backward(self, model: nn.Module, step: Step) -> None:
        step.log("lambda", torch.stack([layer.lambda_ for layer in self._layers]))
        for layer in self._layers:
            low_rank, turn = torch.stack([layer.A.grad.norm(), layer.B.grad.norm()]).norm(), layer.Q.grad.norm()
            share = low_rank / (low_rank + turn)
            layer.lambda_.copy_(torch.where(share.isnan(), layer.lambda_, share))
            if self.accumulate:
                layer.written.copy_(layer.seen() - matrix(layer.base))
            layer.Q.grad = layer.Q.grad - layer.Q.grad.mT

    def merge(self, model: nn.Module) -> None:
        unwrap(model, _LiteralLinear, lambda layer, weight: layer.seen().to(weight.dtype))

    def effective_parameters(self, model: nn.Module) -> int:
        return sum(layer.A.numel() + layer.B.numel() + layer.out_size * (layer.out_size - 1) // 2
                   for layer in self._layers)  # fmt: skip

    def facts(self, model: nn.Module) -> dict[str, Any]:
        return {"lambda": spread([layer.lambda_ for layer in self._layers])}
