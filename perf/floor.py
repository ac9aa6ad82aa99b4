"""The least that a step must compute, and how fast this machine multiplies matrices: what a measured step is held against.

Floor of a method on a frozen base: the base's forward products and their gradients to the inputs, counted by torch on
the base itself, and the adapter's own products by its formula. No weight gradient of the base, no second pass, no
product that another arrangement would save.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from harness import data
from harness.loss import SupervisedLogits, loss_sum, training_mode
from harness.measure import synchronize
from harness.models import find_targets
from methods._linear import matrix

Own = Callable[[int, int], int]
"""FLOPs of a method's own products beside an (out, in) weight, a token's forward and backward, from (in, out)."""


def low_rank(rank: int) -> Own:
    """x A^T and h B^T, and for each the gradients of both factors."""
    return lambda inputs, outputs: 6 * rank * (inputs + outputs)


def centred(rank: int) -> Own:
    """The same with a frozen pair subtracted, which takes part in all but the gradients of what trains."""
    return lambda inputs, outputs: 10 * rank * (inputs + outputs)


def proximal(rank: int) -> Own:
    """LoRA's products and one more: the new U against the output gradients, and that against the inputs."""
    return lambda inputs, outputs: 8 * rank * (inputs + outputs)


def projected(rank: int) -> Own:
    """FLOPs a step, whatever its tokens: the gradient into the subspace and the update back."""
    return lambda inputs, outputs: 4 * min(rank, inputs, outputs) * inputs * outputs


def rotation(reach: int) -> Own:
    """x R with blocks of ``reach`` inputs, dx and dR."""
    return lambda inputs, outputs: 6 * reach * inputs


def both(one: Own, other: Own) -> Own:
    return lambda inputs, outputs: one(inputs, outputs) + other(inputs, outputs)


def nothing(inputs: int, outputs: int) -> int:
    """No matrix product of its own."""
    return 0


def base_flops(model: nn.Module, batch: data.MicroBatch, trained: bool) -> int:
    """FLOPs of the base's forward and backward pass; ``trained``: with the gradients of all weights.

    Else the first adapted modules' outputs ask for a gradient, as an adapter beside them would make them.
    """
    with contextlib.ExitStack() as stack:
        if trained:
            model.requires_grad_(True)
            stack.callback(model.zero_grad, set_to_none=True)
            stack.callback(model.requires_grad_, False)
        else:
            for _, module in find_targets(model, "all-linear"):
                stack.callback(module.register_forward_hook(_ask_for_gradient).remove)
        logits = stack.enter_context(SupervisedLogits(model))
        stack.enter_context(training_mode(model, True))
        counter = stack.enter_context(FlopCounterMode(display=False))
        (loss_sum(model, batch, logits) / batch.tokens).backward()
        return counter.get_total_flops()


def _ask_for_gradient(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
    if not output.requires_grad:
        output.requires_grad_(True)


def own_flops(model: nn.Module, own: Own, tokens: int) -> int:
    """FLOPs of a step that adapters beside every linear module spend on their own products."""
    return sum(tokens * own(*reversed(matrix(module).shape)) for _, module in find_targets(model, "all-linear"))


@torch.no_grad()
def product_rates(model: nn.Module, tokens: int, repeats: int = 9, size: int = 1024) -> dict[str, float]:
    """FLOPs a second: of the model's own products one after another, and of a square product, in the model's type.

    Medians; the first pass, which touches memory for the first time, is left out.
    """
    weights = [matrix(module) for _, module in find_targets(model, "all-linear")]
    inputs = {n: torch.randn(tokens, n).to(weights[0]) for n in {weight.shape[1] for weight in weights}}
    square = torch.randn(size, size).to(weights[0])

    def own() -> None:
        for weight in weights:
            F.linear(inputs[weight.shape[1]], weight)

    work = 2 * tokens * sum(weight.numel() for weight in weights)
    whole = 2 * size**3 / _median_seconds(lambda: square @ square, repeats)
    return {"own": work / _median_seconds(own, repeats), "square": whole}


def _median_seconds(call: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats + 1):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
