"""How long SVD, eigenvectors, QR, solving take here: each timed once, at its own shape and with its own arguments.

They have no common rate: a singular vector costs twenty times the multiply-adds of a Cholesky factor, and small matrices
run far below the speed of large ones. So a plan does not fit them to records of trainings but runs each kind that a step
has, on made-up matrices (their time hardly depends on the numbers).
"""

from __future__ import annotations

import functools
import json
import time
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from harness.measure import synchronize

LARGE = 10**8  # n^2 m up to which a matrix is timed as it is; a larger one is shrunk, and its time grown by the cube
BATCH = 64  # matrices timed at once, where they are small
KINDS = {
    "_linalg_svd",
    "_linalg_eigh",
    "linalg_qr",
    "linalg_inv_ex",
    "_linalg_solve_ex",
    "linalg_lu_factor_ex",
    "linalg_cholesky_ex",
    "linalg_solve_triangular",
    "geqrf",
    "linalg_householder_product",
    "cholesky_inverse",
    "cholesky_solve",
}


def call_of(function: Any, arguments: tuple, keywords: dict) -> tuple[str, int]:
    """A call of one matrix as text, without its batch, and the number of matrices in it."""
    matrix = next(value for value in arguments if isinstance(value, Tensor))
    name = f"{function._overloadpacket.__name__}.{function._overloadname}"
    text = json.dumps([name, tree_map(_described, list(arguments)), tree_map(_described, keywords)])
    return text, matrix.shape[:-2].numel()


def _described(value: Any) -> Any:
    """A tensor by its type and the sizes of its matrix (of a vector for each matrix: of the vector)."""
    if not isinstance(value, Tensor):
        return value
    return {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape[-2:])}


@functools.cache
def seconds_each(call: str, threads: int) -> float:
    """Seconds of one matrix of a call that ``call_of`` described, in a batch where it is small, on this process's device."""
    name, arguments, keywords = json.loads(call)
    packet, overload = name.split(".")
    function = getattr(getattr(torch.ops.aten, packet), overload)
    shapes = [value["shape"] for value in arguments if isinstance(value, dict)]
    cube = max(shape[0] * shape[-1] * min(shape) for shape in shapes)
    shrink = max(1.0, cube / LARGE) ** (1 / 3)
    batch = int(min(BATCH, max(1, LARGE // cube)))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        made = [_made(value, batch, shrink) for value in arguments]
        return min(_timed(function, made, keywords) for _ in range(3)) * shrink**3 / batch
    finally:
        torch.set_num_threads(before)


def _made(value: Any, batch: int, shrink: float) -> Any:
    """A batch of matrices as described: square ones symmetric and positive definite, so that any decomposition exists."""
    if not isinstance(value, dict):
        return value
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = [max(1, round(size / shrink)) for size in value["shape"]]
    generator = torch.Generator(device).manual_seed(0)
    matrix = torch.randn(batch, *shape, generator=generator, device=device) / shape[-1] ** 0.5
    if len(shape) == 2 and shape[0] == shape[1]:
        matrix = matrix @ matrix.mT + torch.eye(shape[0], device=device)
    return matrix.to(getattr(torch, value["dtype"]))


def _timed(function: Any, arguments: list, keywords: dict) -> float:
    synchronize()
    start = time.perf_counter()
    function(*arguments, **keywords)
    synchronize()
    return time.perf_counter() - start
