"""What operations do, by kind, told from their arguments: multiply-adds of matrix products, bytes moved, calls.

Torch's own formulas count matrix products and attention as FLOPs; decompositions of matrices have none there, and a pass
over memory is no FLOP at all. How long a step takes depends on all of these.
"""

from __future__ import annotations

import functools
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten


@dataclass
class Work:
    """Sums over operations. ``flops`` as torch counts them; attention on CPU, which it leaves out, stands apart."""

    flops: float = 0.0
    attention: float = 0.0
    decompositions: float = 0.0  # multiply-adds of SVD, eigenvectors, QR, solving: n^2 m each
    bytes: float = 0.0  # read and written
    operations: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Work) -> Work:
        return self + other * -1

    def __mul__(self, number: float) -> Work:
        return Work(*(a * number for a in astuple(self)))

    def __truediv__(self, number: float) -> Work:
        return self * (1 / number)


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
    elif packet in _DECOMPOSITIONS:
        work.decompositions += _cube(arguments[0])


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


def _cube(matrix: Tensor) -> int:
    """n^2 m of every matrix of a batch of n x m or m x n, n <= m."""
    *batch, rows, columns = matrix.shape
    count = 1
    for size in batch:
        count *= size
    return count * min(rows, columns) * rows * columns


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
_DECOMPOSITIONS = {
    aten._linalg_svd,
    aten._linalg_eigh,
    aten.linalg_qr,
    aten.linalg_inv_ex,
    aten._linalg_solve_ex,
    aten.linalg_lu_factor_ex,
    aten.linalg_cholesky_ex,
    aten.linalg_solve_triangular,
    aten.geqrf,
    aten.linalg_householder_product,
    aten.cholesky_inverse,
    aten.cholesky_solve,
}
