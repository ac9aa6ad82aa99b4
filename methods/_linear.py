"""Linear modules of every architecture, seen alike, and wrapped by adapters.

``torch.nn.Linear`` stores its weight as (out, in), GPT-2's ``Conv1D`` as (in, out); ``matrix`` is (out, in) for both.
An adapter takes the module's place and holds it as ``base``, so that a merge gives the very same module back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from harness.contract import Run

Targets = str | Sequence[str]


def is_conv1d(module: nn.Module) -> bool:
    """True for the transposed linear module of GPT-2."""
    return type(module).__name__ == "Conv1D"


def matrix(module: nn.Module) -> Tensor:
    """The weight as (out, in); writing into it in place writes into the module."""
    return module.weight.t() if is_conv1d(module) else module.weight


def adapter_dtype(weight: Tensor) -> torch.dtype:
    """What trains is float32, whatever the frozen base has; float64 stays float64 (tests of exactness)."""
    return torch.promote_types(weight.dtype, torch.float32)


def train_all(model: nn.Module) -> dict[str, torch.dtype]:
    """Mark every parameter as trained, in float32 or better; the types they had, by name, for ``cast_back``."""
    had = {}
    for name, parameter in model.named_parameters():
        had[name] = parameter.dtype
        parameter.data = parameter.data.to(adapter_dtype(parameter))
        parameter.requires_grad_(True)
    return had


def cast_back(model: nn.Module, dtypes: dict[str, torch.dtype]) -> None:
    """Give parameters the types they had before ``train_all`` and freeze them: the last act of a merge."""
    for name, parameter in model.named_parameters():
        if name in dtypes:
            parameter.data = parameter.data.to(dtypes[name])
            parameter.grad = None
            parameter.requires_grad_(False)


class Adapter(nn.Module):
    """A frozen linear module and what a method adds. ``weight`` and ``bias`` are the base's: models look at them."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base
        self.out_size, self.in_size = matrix(base).shape

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def extra_repr(self) -> str:
        return f"out={self.out_size}, in={self.in_size}"


def wrap(model: nn.Module, run: Run, targets: Targets, make: Callable[[nn.Module], Adapter]) -> list[Adapter]:
    """Put ``make(module)`` in the place of every target; the adapters, in the order of the forward pass."""
    adapters = []
    for name, module in run.find(model, targets):
        try:
            adapter = make(module)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        model.set_submodule(name, adapter)
        adapters.append(adapter)
    return adapters


def adapters(model: nn.Module, kind: type[Adapter]) -> Iterator[tuple[str, Adapter]]:
    """(qualified name, adapter) of every adapter of that class."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, kind))


@torch.no_grad()
def unwrap(model: nn.Module, kind: type[Adapter], merged: Callable[[Adapter, Tensor], Tensor] | None = None) -> None:
    """Put every base module back in its place.

    ``merged(adapter, weight)`` gives the weight to leave, from the base's (out, in) in float32 or better; cast once.
    """
    for name, adapter in list(adapters(model, kind)):
        weight = matrix(adapter.base)
        if merged is not None:
            weight.copy_(merged(adapter, weight.to(adapter_dtype(weight))))
        model.set_submodule(name, adapter.base)
