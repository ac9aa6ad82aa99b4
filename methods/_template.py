"""Copy me: ``cp methods/_template.py methods/mine.py``, change it, then ``make check METHOD=mine``.

A method's file opens with its formula, its paper and its shapes. This one, complete and working, trains one gain per
input of every linear module (the scaling of IA3, Liu et al., NeurIPS 2022, arXiv 2205.05638, on all inputs):

    y = W0 (g * x) + b        g: (in,), starts at one        merged: W0 * g, column by column
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from harness.contract import Method, Run, log_uniform

from ._linear import Adapter, Targets, adapter_dtype, unwrap, wrap


class _GainedLinear(Adapter):  # takes a linear module's place and holds it as self.base; the underscore hides it
    def __init__(self, base: nn.Module):
        super().__init__(base)
        like = {"dtype": adapter_dtype(base.weight), "device": base.weight.device}
        self.gain = nn.Parameter(torch.ones(self.in_size, **like))  # what trains is float32, whatever the base is

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x * self.gain.to(x.dtype))


@dataclass
class InputGains(Method):  # the one public class; its fields are the hyper-parameters that a suite may set
    learning_rate: float = field(default=1e-3, metadata={"search": log_uniform(1e-5, 1e-1)})
    targets: Targets = "all-linear"  # roles: "q", "k", "v", "o", "gate", "up", "down", or "all-linear"

    def attach(self, model: nn.Module, run: Run) -> None:  # structure only: no data, the same result each call
        wrap(model, run, self.targets, _GainedLinear)

    def merge(self, model: nn.Module) -> None:  # leave the base's own modules; the weight is (out, in), in float32
        unwrap(model, _GainedLinear, lambda adapter, weight: weight * adapter.gain)

    # All other hooks are optional; harness/contract.py says when each is called. The default optimizer is AdamW over
    # everything with requires_grad. Whatever must survive an interruption belongs in parameters, persistent buffers or
    # the optimizer's state. `tiny = {...}` may give hyper-parameters fit for the two-layer models of `make check`.
