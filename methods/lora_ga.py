"""LoRA-GA: LoRA started from the gradient of the weights.  Wang et al., NeurIPS 2024, arXiv 2407.05000.

    y = W0 x + s (B A - B0 A0) x      s = alpha / sqrt(rank)      A: (rank, in), B: (out, rank) start at A0, B0

A0 and B0 come from singular vectors of the mean gradient G of each weight over a few batches (``_gradient_start``), so
that the first step moves W0 along G's best approximation of rank 2 rank; subtracting them keeps the model unchanged at
the start. At the start ||s B0 A0|| = s sqrt(out) / gamma, and both A and B get a gradient: dA = s B0^T G, dB = s G A0^T.

base "centred" (default) leaves W0 as it is and multiplies by [B, -B0] [A; A0]: 4 rank (in + out) FLOPs a token, forward.
"subtract", as the authors do, puts W0 - s B0 A0 in W0's place: a step then costs exactly LoRA's, 2 rank (in + out), but
the base is another one, rounded anew in its own type (s B0 A0 is as large as W0). In exact arithmetic they are the same.
A0 and B0 are saved with the model, so a reload needs neither gradients nor the changed weights.

The gradient is the mean over the supervised tokens of ``probe_batches`` micro-batches, which go through the model at once;
each weight's is used and freed as it comes. impl "peft" and init "printed_eq8" are other starts, for comparison; the
latter adds G's best approximation of rank r to the weight, a step up the loss, and starts there. Learning rates are near
full fine-tuning's, below LoRA's. The record says what numerical rank the gradients had, looked for up to 4 rank, and how
many of the 2 rank directions a matrix they lacked.
Trains rank * (in + out) numbers a matrix, and keeps as many.  Merged: W0 + s (B A - B0 A0).
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from harness.contract import Method, Probe, Run, Step, choice, log_uniform

from ._gradient_start import Impl, Init, add_start, check_rank, decay_to_start, start_facts, start_layer
from ._linear import Targets, adapters, matrix, unwrap, wrap
from ._low_rank import LowRankLinear, add_low_rank, base_output

Base = Literal["centred", "subtract"]


class _StartedLinear(LowRankLinear):
    def __init__(self, base: nn.Module, rank: int, scale: float):
        super().__init__(base, rank, scale)
        check_rank("LoRA-GA", rank, self.out_size, self.in_size)
        add_start(self)
        self.subtracted = False  # is - s B0 A0 in the base's weight?

    def forward(self, x: Tensor) -> Tensor:
        if self.subtracted:
            return super().forward(x)
        rows = x.flatten(0, -2)  # (tokens, in)
        y = add_low_rank(base_output(self.base, rows), rows, self.A, self.B, self.scale, (self.A0, self.B0))
        return y.view(*x.shape[:-1], self.out_size)

    def started(self) -> Tensor:
        """s B0 A0: (out, in)."""
        return self.scale * (self.B0 @ self.A0)

    @torch.no_grad()
    def subtract(self) -> None:
        if not self.subtracted:
            weight = matrix(self.base)
            weight.copy_(weight.to(self.A0.dtype) - self.started())
            self.subtracted = True


@dataclass
class LoRAGA(Method):
    learning_rate: float = field(default=3e-4, metadata={"search": log_uniform(1e-6, 1e-2)})
    rank: int = field(default=16, metadata={"search": choice(4, 8, 16, 32, 64)})
    alpha: float = 16.0
    gamma: float = 64.0
    base: Base = "centred"
    probe_batches: int = 4
    init: Init = "paper"
    impl: Impl = "authors"
    targets: Targets = "all-linear"

    # Of width 32 a rank of 16 would take every direction, those without a gradient, too: Adam then follows rounding.
    tiny: ClassVar[dict[str, Any]] = {"rank": 4}

    def __post_init__(self) -> None:
        if self.init == "printed_eq8":
            self.changes_init = (
                "eq. 8 of arXiv 2507.18076 adds the gradient's low-rank part to the weights and starts there"
            )

    def attach(self, model: nn.Module, run: Run) -> None:
        for name, known in (("base", get_args(Base)), ("init", get_args(Init)), ("impl", get_args(Impl))):
            if getattr(self, name) not in known:
                raise ValueError(f"LoRA-GA: {name} is {' or '.join(known)}, not {getattr(self, name)!r}")
        if self.init == "printed_eq8" and self.impl == "peft":
            raise ValueError("LoRA-GA: init='printed_eq8' and impl='peft' are two starts; choose one")
        scale = self.alpha / math.sqrt(self.rank)
        self._layers = wrap(model, run, self.targets, lambda base: _StartedLinear(base, self.rank, scale))

    def initialize(self, model: nn.Module, probe: Probe) -> None:
        layers = {f"{name}.base.weight": layer for name, layer in adapters(model, _StartedLinear)}
        how = self.gamma, self.init, self.impl, probe.autocast
        probe.mean_gradients(list(layers), self.probe_batches, lambda name, G: start_layer(layers[name], G, *how))
        self._subtract()

    def before_step(self, model: nn.Module, step: Step) -> None:
        self._subtract()  # after a restore or a reload; else it is done

    def after_step(self, model: nn.Module, step: Step) -> None:
        if self.weight_decay:
            decay_to_start(self._layers, step.learning_rate * self.weight_decay)

    def _subtract(self) -> None:
        if self.base == "subtract":
            for layer in self._layers:
                layer.subtract()

    def merge(self, model: nn.Module) -> None:
        self._subtract()
        unwrap(model, _StartedLinear, _merged)

    def facts(self, model: nn.Module) -> dict[str, Any]:
        return start_facts(adapters(model, _StartedLinear), self.rank)


def _merged(layer: _StartedLinear, weight: Tensor) -> Tensor:
    return weight + layer.update() - (0 if layer.subtracted else layer.started())
