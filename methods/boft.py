"""BOFT: rotate the inputs of frozen weights by butterfly factors.  Liu et al., ICLR 2024, arXiv 2311.06243.

    y = W0 (R^T x) + b   R = F_{m-1} ... F_1 F_0: (in, in)   F_i = P_i blockdiag(R_i1 ... R_ik) P_i^T,   k = in / block
    R_ij = (I - S)(I + S)^-1: (block, block)   S = (Q_ij - Q_ij^T) / 2        (Cayley; ``m = 1`` is OFT)

F_i mixes half-blocks that lie 2^i half-blocks apart within runs of 2^(i+1), so R is block-diagonal with contiguous
blocks of ``block * 2^(m-1)`` inputs, and needs ``in`` to be a multiple of that. Q starts at zero: R = I. No output
scale is trained. Merged: W0 R^T.

Q is constant within a step, so ``before_step`` derives all layers' R at once, by one batched solve and m batched
products; micro-batches add up gradients on a detached copy, and ``after_backward`` sends their sum back to Q once.
Trained entries: m * in * block a matrix; the skew part alone acts, so degrees of freedom are m * in * (block - 1) / 2.
Orthogonal methods want about four times LoRA's learning rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from harness.contract import Method, Run, Step, choice, log_uniform

from ._linear import Adapter, Targets, adapter_dtype, unwrap, wrap


class _RotatedLinear(Adapter):
    def __init__(self, base: nn.Module, factors: int, block: int):
        super().__init__(base)
        reach = block << (factors - 1)
        if self.in_size % reach or block % 2:
            raise ValueError(
                f"BOFT with factors={factors} and block_size={block} needs an even block_size and an input size that "
                f"is a multiple of block_size * 2^(factors - 1) = {reach}; here it is {self.in_size}. "
                "Choose fewer factors or smaller blocks."
            )
        like = {"dtype": adapter_dtype(base.weight), "device": base.weight.device}
        self.Q = nn.Parameter(torch.zeros(factors, self.in_size // block, block, block, **like))
        self.rotation: Tensor | None = None  # (runs, reach, reach): this step's R, detached, gathering its gradient

    def forward(self, x: Tensor) -> Tensor:
        R = (_rotations([self.Q]) if self.rotation is None else self.rotation).to(x.dtype)
        runs = x.reshape(-1, *R.shape[:2]).transpose(0, 1)  # (runs, tokens, reach)
        return self.base(torch.bmm(runs, R).transpose(0, 1).reshape(x.shape))


class _Cayley(torch.autograd.Function):
    """R = (I - S)(I + S)^-1 of (..., b, b); dS = -(I + R)^T dR (I + R)^T / 2, which needs no second solve."""

    @staticmethod
    def forward(ctx, S: Tensor) -> Tensor:
        eye = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device)
        R = torch.linalg.solve_ex(eye + S, eye - S)[0]  # the two factors commute
        ctx.save_for_backward(R)
        return R

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (R,) = ctx.saved_tensors
        left = (R + torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)).mT
        return left @ gradient @ left / -2


def _rotations(parameters: Sequence[Tensor]) -> Tensor:
    """(runs of all layers, reach, reach): the blocks of R, from each layer's Q: (m, in / block, block, block)."""
    m, _, block, _ = parameters[0].shape
    Q = torch.cat([q.unflatten(1, (-1, 1 << (m - 1))) for q in parameters], dim=1)  # (m, runs, blocks of a run, b, b)
    factors = _Cayley.apply((Q - Q.mT) / 2)
    reach = block << (m - 1)
    transposed = torch.eye(reach, dtype=Q.dtype, device=Q.device).expand(Q.shape[1], reach, reach)
    for i in reversed(range(m)):  # R^T = F_0^T F_1^T ... : rows move as whole half-blocks, so that little is copied
        transposed = _rotate(transposed, factors[i], i)
    return transposed.mT


def _rotate(columns: Tensor, factor: Tensor, i: int) -> Tensor:
    """F_i^T @ columns for columns: (runs, reach, n) and F_i's blocks: (runs, blocks of a run, b, b)."""
    half = factor.shape[-1] // 2
    paired = columns.unflatten(1, (-1, 2, 1 << i, half)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    turned = factor.mT @ paired  # (runs, blocks, b, n)
    return turned.unflatten(2, (2, half)).unflatten(1, (-1, 1 << i)).transpose(2, 3).flatten(1, 4)


@dataclass
class BOFT(Method):
    learning_rate: float = field(default=8e-4, metadata={"search": log_uniform(1e-5, 1e-2)})
    factors: int = field(default=3, metadata={"search": choice(1, 2, 3)})
    block_size: int = field(default=8, metadata={"search": choice(4, 8, 16)})
    targets: Targets = "all-linear"

    def attach(self, model: nn.Module, run: Run) -> None:
        self._layers = wrap(model, run, self.targets, lambda base: _RotatedLinear(base, self.factors, self.block_size))

    def before_step(self, model: nn.Module, step: Step) -> None:
        with torch.enable_grad():
            self._derived = _rotations([layer.Q for layer in self._layers])
        runs = [layer.Q.shape[1] >> (self.factors - 1) for layer in self._layers]
        for layer, rotation in zip(self._layers, self._derived.detach().split(runs), strict=True):
            layer.rotation = rotation.requires_grad_()

    def after_backward(self, model: nn.Module, step: Step) -> None:
        gradients = []
        for layer in self._layers:
            gradient = layer.rotation.grad
            gradients.append(torch.zeros_like(layer.rotation) if gradient is None else gradient)
            layer.rotation = None  # Q is about to move: until the next before_step a forward derives R from Q itself
        self._derived.backward(torch.cat(gradients))
        self._derived = None

    def merge(self, model: nn.Module) -> None:
        unwrap(model, _RotatedLinear, _merged)

    def effective_parameters(self, model: nn.Module) -> int:
        return sum(layer.Q.numel() // self.block_size * (self.block_size - 1) // 2 for layer in self._layers)


def _merged(layer: _RotatedLinear, weight: Tensor) -> Tensor:
    R = _rotations([layer.Q]).to(weight.dtype)
    runs = weight.unflatten(1, (len(R), -1)).transpose(0, 1)  # (runs, out, reach)
    return torch.bmm(runs, R.mT).transpose(0, 1).flatten(1)
