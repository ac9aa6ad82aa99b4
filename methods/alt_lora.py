"""AltLoRA: LoRA that moves one factor a step, by the projected gradient.  Yu et al., NeurIPS 2025, arXiv 2505.12455.

    X = s B A = s U V^T     U = B: (out, rank)    V = A^T: (in, rank)    G = dL/dX    K_U = s U^T U    K_V = s V^T V
    steps 0, 2, 4 ...   M_U <- b M_U (s V_was^T V) (K_V + damping I)^-1 + (1 - b) (1/s) (s G V) (K_V + damping I)^-1
                        U <- U - lr M_U / (1 - b^k)         k = 1, 2, ... counts U's steps, b is ``momentum``
    steps 1, 3, 5 ...   the same for V, with U and V exchanged and a fresh gradient, at the new U

Without momentum X moves by -lr G P_V, then by -lr P_U G: P projects on a factor's columns. M_U belongs to V_was, the V
of U's step before; the product in front projects it on the columns of the present V, so that it is a momentum of X. With
a small damping a step sees X alone, not its factors, and not s. U = B moves first: at the start B = 0 leaves A without a
gradient. The resting factor's gradient is freed before the clip, whose norm is the moving one's.

As in the authors' code, the momentum is a mean with bias correction, counted factor by factor. Their b and damping
differ from script to script; b = 0.9 and LoRSum's damping of 1e-2 are ours. Its form with Adam, AltLoRA+, is not here.
Instead of V_was the state keeps s V_was^T V, written when V moves: rank * (in + out) + rank^2 numbers a matrix, half of
Adam's. Trains rank * (in + out), started as LoRA's. A backward pass makes both gradients.  Merged: W0 + s B A.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from harness.contract import Run, Step, log_uniform

from ._factors import FactorMethod, Side, Stack, check_damping, damped_inverses, factors, stacks, times


class _AltLoRA(torch.optim.Optimizer):
    def __init__(self, layers: list, momentum: float, damping: float, lr: float, weight_decay: float):
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "damping": damping, "count": 0}
        super().__init__(factors(layers), defaults)
        self.stacks = stacks(layers)
        for stack in self.stacks:
            for side in (stack.U, stack.V):
                self.state[side.parameters[0]]["momentum"] = side.zeros()
            B = stack.U.parameters[0]
            self.state[B]["overlap"] = B.new_zeros(len(stack.U.parameters), B.shape[1], B.shape[1])

    def turn(self, stack: Stack) -> tuple[Side, Side]:
        """The factor that moves this step, and the one that rests."""
        return (stack.V, stack.U) if self.param_groups[0]["count"] % 2 else (stack.U, stack.V)

    def free_resting_gradients(self) -> None:
        for stack in self.stacks:
            for parameter in self.turn(stack)[1].parameters:
                parameter.grad = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        group = self.param_groups[0]
        resting = [self.turn(stack)[1].factor() for stack in self.stacks]
        grams = [stack.scale * (F.mT @ F) for stack, F in zip(self.stacks, resting, strict=True)]
        for stack, inverse in zip(self.stacks, damped_inverses(grams, group["damping"]), strict=True):
            self._move(group, stack, inverse)
        group["count"] += 1

    def _move(self, group: dict, stack: Stack, inverse: Tensor) -> None:
        side, beta = self.turn(stack)[0], group["momentum"]
        overlap = self.state[stack.U.parameters[0]]["overlap"]  # of the resting factor before and after its last step
        kept = side.tall(self.state[side.parameters[0]]["momentum"])
        kept.copy_(times(kept, beta * (overlap @ inverse)) + times(side.gradient(), (1 - beta) / stack.scale * inverse))
        old = side.factor()
        side.decay_(1 - group["lr"] * group["weight_decay"])
        side.add_(kept, alpha=-group["lr"] / (1 - beta ** (group["count"] // 2 + 1)))
        overlap.copy_(stack.scale * (old.mT @ side.factor()))


@dataclass
class AltLoRA(FactorMethod):
    learning_rate: float = field(default=5e-3, metadata={"search": log_uniform(1e-3, 10.0)})
    momentum: float = 0.9
    damping: float = 1e-2

    def attach(self, model: nn.Module, run: Run) -> None:
        check_damping("AltLoRA", self.damping)
        super().attach(model, run)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        rates = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        self._optimizer = _AltLoRA(self._layers, self.momentum, self.damping, **rates)
        return self._optimizer

    def after_backward(self, model: nn.Module, step: Step) -> None:
        self._optimizer.free_resting_gradients()
