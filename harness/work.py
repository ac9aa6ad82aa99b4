"""What operations do, by kind, told from their arguments: multiply-adds of matrix products, bytes moved, calls.

Torch's own formulas count matrix products and attention as FLOPs; decompositions of matrices have none there, so that
their calls are listed; and a pass over memory is no FLOP at all. How long a step takes depends on all of these.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from harness.decompositions import KINDS, call_of

aten = torch.ops.aten


@dataclass
class Work:
    """Sums over operations. ``flops`` as torch counts them; attention on CPU, which it leaves out, stands apart.
    ``decompositions``: how many matrices went into each kind of call of ``harness.decompositions``."""

    flops: float = 0.0
    attention: float = 0.0
    bytes: float = 0.0  # read and written
    operations: float = 0.0
    decompositions: dict[str, float] = field(default_factory=dict)

    def __add__(self, other: Work) -> Work:
        sums = (getattr(self, name) + getattr(other, name) for name in _NUMBERS)
        calls = Counter(self.decompositions)
        calls.update(other.decompositions)
        return Work(*sums, {call: count for call, count in calls.items() if count})

    def __sub__(self, other: Work) -> Work:
        return self + other * -1

    def __mul__(self, number: float) -> Work:
        products = (getattr(self, name) * number for name in _NUMBERS)
        return Work(*products, {call: count * number for call, count in self.decompositions.items()})

    def __truediv__(self, number: float) -> Work:
        return self * (1 / number)


_NUMBERS = ("flops", "attention", "bytes", "operations")


def add_work(work: Work, function: Any, arguments: tuple, keywords: dict, result: Any) -> None:
    """Add an operation, as a TorchDispatchMode sees it, to ``work``. Views and empty memory cost nothing."""
    packet = function._overloadpacket
    if packet in _FREE or _is_view(function):
        return
    work.operations += 1
    work.bytes += sum(
        value.numel() * value.element_size()
        for value in tree_leaves((arguments, keywords, result))
        if isinstance(value, Tensor)
    )
    if packet in flop_registry:
        work.flops += flop_registry[packet](*arguments, **keywords, out_val=result)
    elif packet in _ATTENTION:
        work.attention += _ATTENTION[packet](arguments)
    elif packet.__name__ in KINDS:
        call, matrices = call_of(function, arguments, keywords)
        work.decompositions[call] = work.decompositions.get(call, 0) + matrices


@functools.cache
def _is_view(function: Any) -> bool:
    returned = function._schema.returns
    return bool(returned) and all(r.alias_info is not None and not r.alias_info.is_write for r in returned)


def _forward_attention(arguments: tuple) -> int:
    query, key, value = (tensor.shape for tensor in arguments[:3])
    return sdpa_flop_count(query, key, value)


def _backward_attention(arguments: tuple) -> int:
    gradient, query, key, value = (tensor.shape for tensor in arguments[:4])
    return sdpa_backward_flop_count(gradient, query, key, value)


_FREE = {
    torch.ops.prim.device,
    aten.empty,
    aten.empty_strided,
    aten.empty_like,
    aten.detach,
    aten._unsafe_view,
    aten.lift_fresh,
}
_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: _forward_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward_attention,
}
