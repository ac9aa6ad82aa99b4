"""Hybrid: a gradient-started low-rank branch and an orthogonal branch, mixed by lambda, a number a matrix that follows
their gradients.  Qi, Dai, Huang 2025, arXiv 2507.18076, made well-defined (printed to the letter: ``hybrid_literal``).

    W = W0 + lambda s (B A - B0 A0) + (1 - lambda) (W0 R^T - W0)        s = alpha / sqrt(rank)
    y = W0 (x R') + lambda s (B A x - B0 A0 x)      R' = lambda I + (1 - lambda) R: one product with W0

A: (rank, in), B: (out, rank) start at A0, B0, LoRA-GA's vectors of the gradient (_gradient_start.py); R is BOFT's
butterfly product of ``factors`` with blocks of ``block_size`` (_butterfly.py) and starts at I: the model starts unchanged
for every lambda. A, B and Q train: rank (in + out) + factors * in * block_size numbers a matrix, of which
factors * in * (block_size - 1) / 2 of Q's act. A token costs 4 rank (in + out) + 2 in * reach FLOPs, forward, with
reach = block_size 2^(factors - 1). Merged: W. Between 0 and 1 R' is no rotation: it shrinks what R turns.

lambda (_mixing.py) starts at ``lambda_init`` and moves once an optimizer step, by the whole step's gradients before
clipping, for the next step's forward. It is the share g_L / (g_L + g_B), each g the branch's gradient over the weight
that the forward gave the branch; smoothed (``ema``), kept within ``clamp``, and fixed for the last ``freeze_fraction`` of
the steps, as a moving lambda moves the model by |d lambda| |dL - dB|. ``lambda_norm``: _mixing.py says what
"decrease" measures, and why "rms" and "raw" depend on sizes and on gamma.

mix "forward" is the above. "update": both branches whole in the forward; lambda and 1 - lambda multiply the branches'
steps after Adam, and the model does not move with lambda. "sum": both whole. "constant": lambda stays.

The paper's text and its Algorithm 2, and what we chose: Algorithm 2 adds the whole update to W every step (here: the
update is part of the model, W0 stays); it takes lambda from gradients that lambda has scaled, so that lambda runs to 0
or 1 (here: divided out); eta stands in R (not here); eq. 8 starts with a step up the loss (here LoRA-GA's centred start);
R turns outputs and is dense, of cost out^3, where the text claims out log out (here: inputs, by butterfly factors, as in
BOFT); plain SGD (here AdamW, where scaling a gradient does nothing, so that "update" scales the step).
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from harness.contract import Method, Probe, Run, Step, choice, log_uniform

from ._butterfly import RotatedLinear, Rotations, block_rotations, eye_like, fitting_factors, rotate, rotation_facts
from ._gradient_start import add_start, check_rank, decay_to_start, start_facts, start_layer
from ._linear import Targets, adapters, matrix, unwrap, wrap
from ._low_rank import add_low_rank, base_output
from ._mixing import Norm, branch_sizes, follow, spread

Mix = Literal["forward", "update", "sum", "constant"]
Indivisible = Literal["error", "fewer_factors"]


class _HybridLinear(RotatedLinear):
    """Both branches. ``mixed``: lambda weighs them in the forward, else each counts whole."""

    def __init__(self, base: nn.Module, rank: int, scale: float, factors: int, block: int, share: float, mixed: bool):
        super().__init__(base, factors, block)
        self.scale, self.mixed = scale, mixed
        like = {"dtype": self.Q.dtype, "device": self.Q.device}
        self.A = nn.Parameter(torch.zeros(rank, self.in_size, **like))
        self.B = nn.Parameter(torch.zeros(self.out_size, rank, **like))
        add_start(self)
        self.register_buffer("lambda_", torch.full((), share, dtype=torch.float32, device=self.Q.device))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)  # (tokens, in)
        y = base_output(self.base, rotate(rows, self.derived()))
        y = add_low_rank(y, rows, self.A, self.B, self._low_rank_weight(), (self.A0, self.B0))
        return y.view(*x.shape[:-1], self.out_size)

    def derived(self) -> Tensor:
        """This step's R', or R where nothing is mixed; outside a step, that of the present Q and lambda."""
        if self.rotation is not None:
            return self.rotation
        R = block_rotations([self.Q], self.blocks)
        return torch.lerp(eye_like(R), R, 1 - self.lambda_.to(R.dtype)) if self.mixed else R

    def merged(self, weight: Tensor) -> Tensor:
        low_rank = self.B @ self.A - self.B0 @ self.A0
        return rotate(weight, self.derived().mT) + self._low_rank_weight() * low_rank

    def _low_rank_weight(self) -> float | Tensor:
        return self.lambda_.to(self.A.dtype) * self.scale if self.mixed else self.scale


@dataclass
class Hybrid(Method):
    learning_rate: float = field(default=3e-5, metadata={"search": log_uniform(1e-6, 1e-2)})
    """Of A and B: near full fine-tuning's, as LoRA-GA's."""
    orthogonal_learning_rate: float = field(default=3e-4, metadata={"search": log_uniform(1e-5, 1e-2)})
    """Of Q."""
    rank: int = field(default=16, metadata={"search": choice(4, 8, 16, 32, 64)})
    alpha: float = 16.0
    gamma: float = 64.0
    probe_batches: int = 8
    """Micro-batches of the gradient that A0 and B0 come from."""
    factors: int = field(default=3, metadata={"search": choice(1, 2, 3)})
    block_size: int = field(default=8, metadata={"search": choice(4, 8, 16)})
    indivisible: Indivisible = "error"
    """"fewer_factors": as many as fit the input size; the record says where they are fewer."""
    mix: Mix = "forward"
    lambda_norm: Norm = "decrease"
    lambda_init: float = 0.5
    ema: float = 0.95
    clamp: tuple[float, float] = (0.05, 0.95)
    freeze_fraction: float = 0.1
    targets: Targets = "all-linear"

    # The tiny models' gradients have fewer than 2 * 16 directions; the gradients of the others are rounding, which Adam
    # makes into whole steps, so that nothing repeats to the digit.
    tiny: ClassVar[dict[str, Any]] = {"rank": 4}

    def attach(self, model: nn.Module, run: Run) -> None:
        self._check()
        self._rotations = Rotations()
        self._layers = wrap(model, run, self.targets, self._adapted)

    def initialize(self, model: nn.Module, probe: Probe) -> None:
        layers = {f"{name}.base.weight": layer for name, layer in adapters(model, _HybridLinear)}
        how = {"gamma": self.gamma, "autocast": probe.autocast}
        probe.mean_gradients(list(layers), self.probe_batches, lambda name, G: start_layer(layers[name], G, **how))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        low_rank = [p for layer in self._layers for p in (layer.A, layer.B)]
        turns = {"params": [layer.Q for layer in self._layers], "lr": self.orthogonal_learning_rate}
        return torch.optim.AdamW(
            [{"params": low_rank}, turns], lr=self.learning_rate, weight_decay=self.weight_decay, fused=True
        )

    def before_step(self, model: nn.Module, step: Step) -> None:
        self._rotations.derive(self._layers, 1 - self._lambdas().to(self._layers[0].Q.dtype) if self._mixed else None)

    @torch.no_grad()
    def after_backward(self, model: nn.Module, step: Step) -> None:
        self._rotations.collect(step.all_reduce_)
        if self.mix in ("sum", "constant"):
            return
        before = self._lambdas()
        after = self._next(before) if step.index < (1 - self.freeze_fraction) * step.total else before
        torch._foreach_copy_([layer.lambda_ for layer in self._layers], list(after.unbind()))
        if self.mix == "update":
            self._old = torch._foreach_clone(self._trained())
        step.log("lambda", after if self.mix == "update" else before)  # the one that acts in this step

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: Step) -> None:
        if self.weight_decay:
            decay_to_start(self._layers, step.learning_rate * self.weight_decay)
        if self.mix == "update":
            low_rank = self._lambdas().to(self._old[0].dtype)
            shares = torch.stack((low_rank, low_rank, 1 - low_rank), 1)  # of A, B and Q
            torch._foreach_lerp_(self._old, self._trained(), list(shares.flatten().unbind()))
            torch._foreach_copy_(self._trained(), self._old)
            self._old = None

    def merge(self, model: nn.Module) -> None:
        unwrap(model, _HybridLinear, _HybridLinear.merged)

    def effective_parameters(self, model: nn.Module) -> int:
        return sum(layer.A.numel() + layer.B.numel() + layer.degrees_of_freedom() for layer in self._layers)

    def facts(self, model: nn.Module) -> dict[str, Any]:
        named = list(adapters(model, _HybridLinear))
        fewer = {name: len(layer.Q) for name, layer in named if len(layer.Q) < self.factors}
        return {
            **({} if self.mix == "sum" else {"lambda": spread([layer.lambda_ for layer in self._layers])}),
            **start_facts(named, self.rank),
            **rotation_facts(self._layers),
            **({"fewer_factors": fewer} if fewer else {}),
        }

    @property
    def _mixed(self) -> bool:
        """Does lambda weigh the branches in the forward?"""
        return self.mix in ("forward", "constant")

    def _lambdas(self) -> Tensor:
        return torch.stack([layer.lambda_ for layer in self._layers])

    def _trained(self) -> list[Tensor]:
        return [p for layer in self._layers for p in (layer.A, layer.B, layer.Q)]

    def _next(self, lambda_: Tensor) -> Tensor:
        """lambda after this step's gradients: (layers,)."""
        low_rank = [_gradient(p) for layer in self._layers for p in (layer.A, layer.B)]
        turns = [_gradient(layer.Q) for layer in self._layers]
        rates = (self.learning_rate, self.orthogonal_learning_rate)  # one schedule drives both: their ratio stays
        sizes = branch_sizes(low_rank, turns, self.lambda_norm, rates)
        return follow(lambda_, sizes, (lambda_, 1 - lambda_) if self._mixed else None, self.ema, self.clamp)

    def _adapted(self, base: nn.Module) -> _HybridLinear:
        out_size, in_size = matrix(base).shape
        check_rank("Hybrid", self.rank, out_size, in_size)
        factors = fitting_factors("Hybrid", in_size, self.factors, self.block_size, self.indivisible)
        scale = self.alpha / math.sqrt(self.rank)
        return _HybridLinear(base, self.rank, scale, factors, self.block_size, self.lambda_init, self._mixed)

    def _check(self) -> None:
        for name, known in (("mix", Mix), ("lambda_norm", Norm), ("indivisible", Indivisible)):
            if getattr(self, name) not in get_args(known):
                choices = " or ".join(map(repr, get_args(known)))
                raise ValueError(f"Hybrid: {name} is {choices}, not {getattr(self, name)!r}")
        if self.factors < 1 or self.block_size < 2:
            raise ValueError(f"Hybrid needs factors >= 1 and block_size >= 2, not {self.factors} and {self.block_size}")
        low, high = self.clamp if self.mix in ("forward", "update") else (0.0, 1.0)
        if not 0 <= low <= self.lambda_init <= high <= 1:
            raise ValueError(
                f"Hybrid: lambda_init={self.lambda_init} lies outside {low} to {high}, in which lambda stays "
                "(clamp, itself within 0 to 1)"
            )
        if not (0 <= self.ema <= 1 and 0 <= self.freeze_fraction <= 1):
            raise ValueError(
                f"Hybrid: ema and freeze_fraction are within 0 to 1, not {self.ema} and {self.freeze_fraction}"
            )


def _gradient(parameter: Tensor) -> Tensor:
    """Zero for a matrix that took no part in this step."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
