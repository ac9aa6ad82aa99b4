"""Linear layers by oneDNN with weights packed once, for a model that only answers.

PyTorch multiplies float32 matrices by MKL, which on AMD processors does without AVX-512: half their speed, and less for few
rows. oneDNN uses it, in the same float32. Only layers of torch's and transformers' own classes take part, on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

MOST_BYTES = 4 * 2**30  # of packed weights, which stand beside the model's own
ROWS = 64  # that packing is told; from 16 to 512 make no difference of more than the spread


class PackedLinears:
    """``with`` it, ``model`` multiplies by packed weights; outside it the model is as it was.

    Weights must not change as long as this is in use. Gradients do not pass.
    """

    def __init__(self, model: nn.Module):
        suited = list(_suited(model)) if _available() else []
        size = sum(module.weight.numel() * module.weight.element_size() for module in suited)
        self._forwards = {module: _forward(module) for module in suited} if size <= MOST_BYTES else {}

    def __bool__(self) -> bool:
        return bool(self._forwards)

    def __enter__(self) -> None:
        for module, forward in self._forwards.items():
            module.forward = forward

    def __exit__(self, *_: object) -> None:
        for module in self._forwards:
            del module.forward


def _available() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def _suited(model: nn.Module) -> Iterator[nn.Module]:
    """Layers whose forward nobody else has replaced. A parametrized layer is of another class."""
    for module in model.modules():
        if type(module) in (nn.Linear, Conv1D) and "forward" not in vars(module):
            weight = module.weight
            if weight.device.type == "cpu" and weight.dtype == torch.float32:
                yield module


def _forward(module: nn.Module) -> Callable[[Tensor], Tensor]:
    weight = module.weight.detach()
    weight = (weight.t() if isinstance(module, Conv1D) else weight).contiguous()  # (out, in)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    bias = None if module.bias is None else module.bias.detach()

    def forward(input: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(input.contiguous(), packed, bias, "none", [], "")

    return forward
