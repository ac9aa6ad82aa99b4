"""Butterfly products of orthogonal blocks on the inputs of frozen weights: what boft, oft and hybrid share.

    x -> x R    R = F_{m-1} ... F_1 F_0: (in, in)    F_i = P_i blockdiag(R_i1 ... R_ik) P_i^T,  k = in / b
    R_ij = (I - S)(I + S)^-1: (b, b)    S = (Q_ij - Q_ij^T) / 2    (Cayley: orthogonal for every Q)

F_i mixes half-blocks that lie 2^i half-blocks apart within groups of 2^(i+1), so R is block-diagonal in contiguous runs
of ``reach`` = b 2^(m-1) inputs and is held as (runs, reach, reach). All tokens turn by one batched product over runs:

    y_k = x_k R_k    dx_k = dy_k R_k^T    dR_k = x_k^T dy_k    x_k: (tokens, reach), the k-th run of x

Q is constant within a step: ``Rotations`` derives all layers' R at once, micro-batches add up gradients on detached
copies, and their sum goes back to Q once. Layers are batched by their m.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from harness.contract import Method, Step

from ._linear import Adapter, adapter_dtype, unwrap

Blocks = Callable[[Tensor], Tensor]  # what trains, (..., b, b), to orthogonal blocks


# --------------------------------------------------------------------------- blocks


def eye_like(blocks: Tensor) -> Tensor:
    return torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)


class _Cayley(torch.autograd.Function):
    """dS = -(I + R)^T dR (I + R)^T / 2, which needs no second solve."""

    @staticmethod
    def forward(ctx, S: Tensor) -> Tensor:
        eye = eye_like(S)
        R = torch.linalg.solve_ex(eye + S, eye - S)[0]  # the two factors commute
        ctx.save_for_backward(R)
        return R

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        (R,) = ctx.saved_tensors
        left = (R + eye_like(R)).mT
        return left @ gradient @ left / -2


def cayley(S: Tensor) -> Tensor:
    """R = (I - S)(I + S)^-1 of skew S: (..., b, b); I + S always has an inverse."""
    return _Cayley.apply(S)


def neumann(S: Tensor, terms: int) -> Tensor:
    """Cayley with (I + S)^-1 as a truncated series; R has the powers S^0 to S^(terms - 1), ``terms`` >= 3.

    Orthogonal only up to about 2 ||S||^(terms - 1), and no use from ||S|| = 1 on.
    """
    eye = eye_like(S)
    inverse = eye - S
    for _ in range(terms - 3):
        inverse = eye - S @ inverse
    return inverse - S @ inverse


def skew(Q: Tensor) -> Tensor:
    return (Q - Q.mT) / 2


def exact(Q: Tensor) -> Tensor:
    """The blocks of raw (..., b, b) parameters, of which only the skew part acts."""
    return cayley(skew(Q))


def cayley_blocks(cayley: str, neumann_terms: int) -> Blocks:
    """What methods' fields of these names ask for."""
    if cayley not in ("exact", "neumann"):
        raise ValueError(f"cayley is 'exact' or 'neumann', not {cayley!r}")
    if cayley == "neumann" and neumann_terms < 3:
        raise ValueError(
            f"neumann_terms={neumann_terms} is too few: from 3 on, a small rotation is right to first order"
        )
    return exact if cayley == "exact" else lambda Q: neumann(skew(Q), neumann_terms)


# --------------------------------------------------------------------------- their product


def butterfly_factors(in_size: int, factors: int, block: int) -> int:
    """The largest number of factors, at most ``factors``, for which the blocks fit ``in_size``; 0: none does.

    ``block`` 2^(m - 1) must divide ``in_size``; and only a single factor can do with an odd block.
    """
    fitting = (m for m in range(factors, 0, -1) if in_size % (block << (m - 1)) == 0 and (m == 1 or block % 2 == 0))
    return next(fitting, 0)


def fitting_factors(method: str, in_size: int, factors: int, block: int, indivisible: str) -> int:
    """``butterfly_factors``, where ``indivisible`` lets them be fewer than asked; else ValueError with the remedies."""
    fitting = butterfly_factors(in_size, factors, block)
    if fitting < (factors if indivisible == "error" else 1):
        raise ValueError(
            f"{method} with factors={factors} and block_size={block} needs an input size that is a multiple of "
            f"block_size * 2^(factors - 1) = {block << (factors - 1)}, and an even block_size for more than one factor; "
            f"here it is {in_size}. Choose a smaller block_size"
            + (f", or up to {fitting} factors, or set indivisible='fewer_factors'." if fitting else ".")
        )
    return fitting


def block_rotations(Qs: Sequence[Tensor], blocks: Blocks = exact) -> Tensor:
    """(runs of all layers, reach, reach): R, from each layer's Q: (m, in / b, b, b)."""
    m, _, b, _ = Qs[0].shape
    factors = blocks(torch.cat(list(Qs), dim=1) if len(Qs) > 1 else Qs[0])
    R = factors[0]  # the product so far: each F_i joins two neighbouring runs of it into one twice as wide
    for i in range(1, m):
        half, width = b // 2, b << (i - 1)
        left = factors[i].view(-1, 1 << i, 2, half, 2, half)  # (runs, pair k, row's side, row, column's side, column)
        R = R.view(-1, 2, 1 << i, half, width)  # (runs, side, half-block k, row, column): two runs of the last round
        R = torch.einsum("nkaecf,nckfs->nakecs", left, R).reshape(-1, 2 * width, 2 * width)
    return R


def orthogonality_defect(R: Tensor) -> Tensor:
    """max |R^T R - I| over blocks, a scalar tensor."""
    return (R.mT @ R - eye_like(R)).abs().max()


# --------------------------------------------------------------------------- on activations


class _Rotate(torch.autograd.Function):
    """Saves x and R. Products read and write (tokens, in) by strides, where it lies: nothing is transposed in memory."""

    @staticmethod
    def forward(ctx, x: Tensor, R: Tensor) -> Tensor:
        ctx.save_for_backward(x, R)
        return _product(x, R)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, R = ctx.saved_tensors
        dx = _product(gradient, R.mT) if ctx.needs_input_grad[0] else None
        dR = torch.bmm(_runs(x, R).mT, _runs(gradient, R)).to(R.dtype) if ctx.needs_input_grad[1] else None
        return dx, dR


def _runs(x: Tensor, R: Tensor) -> Tensor:
    """x: (..., in) as (runs, tokens, reach), a view where x is contiguous."""
    return x.reshape(-1, len(R), R.shape[-1]).transpose(0, 1)


def _product(x: Tensor, R: Tensor) -> Tensor:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    torch.bmm(_runs(x, R), R.to(x.dtype), out=_runs(y, R))
    return y


def rotate(x: Tensor, R: Tensor) -> Tensor:
    """x R over contiguous runs: x (..., in), R (runs, reach, reach), in = runs * reach; in x's dtype (autocast's, if on)."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(device))
    return _Rotate.apply(x, R)


# --------------------------------------------------------------------------- layers


class RotatedLinear(Adapter):
    """y = W0 (R^T x) + b, or s * (W0 R^T x) + b with a trained ``output_scale`` s: (out,)."""

    def __init__(self, base: nn.Module, factors: int, block: int, blocks: Blocks = exact, output_scale: bool = False):
        super().__init__(base)
        self.blocks = blocks
        like = {"dtype": adapter_dtype(base.weight), "device": base.weight.device}
        self.Q = nn.Parameter(torch.zeros(factors, self.in_size // block, block, block, **like))
        self.output_scale = nn.Parameter(torch.ones(self.out_size, **like)) if output_scale else None
        self.rotation: Tensor | None = None  # (runs, reach, reach): this step's R, detached, gathering its gradient

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(rotate(x, self.derived()))
        if self.output_scale is None:
            return y
        if self.bias is None:
            return (y * self.output_scale).to(y.dtype)
        return torch.addcmul(self.bias * (1 - self.output_scale), y, self.output_scale).to(y.dtype)

    def derived(self) -> Tensor:
        """This step's R; outside a step, R of the present Q."""
        return block_rotations([self.Q], self.blocks) if self.rotation is None else self.rotation

    def merged(self, weight: Tensor) -> Tensor:
        """s * W0 R^T, in the dtype of ``weight``: (out, in)."""
        weight = rotate(weight, block_rotations([self.Q], self.blocks).mT)
        return weight if self.output_scale is None else weight * self.output_scale[:, None]

    def degrees_of_freedom(self) -> int:
        block = self.Q.shape[-1]
        scales = 0 if self.output_scale is None else self.output_scale.numel()
        return self.Q.numel() // block * (block - 1) // 2 + scales


class Rotations:
    """The once-a-step business of layers with ``Q`` and ``rotation``: ``derive`` before it, ``collect`` after backward."""

    def __init__(self, blocks: Blocks = exact):
        self.blocks = blocks
        self._groups: list[tuple[list, Tensor, Tensor | None]] = []  # (layers, R with its graph, weight of each run)

    def derive(self, layers: Sequence[nn.Module], mix: Tensor | None = None) -> None:
        """Give each layer its R as a detached leaf; with ``mix`` w: (layers,), (1 - w) I + w R."""
        places: dict[int, list[int]] = {}
        for place, layer in enumerate(layers):
            places.setdefault(len(layer.Q), []).append(place)
        self._groups = []
        for m, group in places.items():
            with torch.enable_grad():
                R = block_rotations([layers[place].Q for place in group], self.blocks)
            runs = [layers[place].Q.shape[1] >> (m - 1) for place in group]
            weight, leaves = None, R.detach()
            if mix is not None:
                of_runs = [mix[place].expand(count) for place, count in zip(group, runs, strict=True)]
                weight = torch.cat(of_runs).to(R.dtype)[:, None, None]
                leaves = torch.lerp(eye_like(R), leaves, weight)
            for place, leaf in zip(group, leaves.split(runs), strict=True):
                layers[place].rotation = leaf.requires_grad_()
            self._groups.append(([layers[place] for place in group], R, weight))

    def collect(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Send what gathered on the leaves, ``reduce``d over processes, back to every ``Q.grad``, and drop the leaves."""
        for layers, R, weight in self._groups:
            gradients = []
            for layer in layers:
                gradient = layer.rotation.grad
                gradients.append(torch.zeros_like(layer.rotation) if gradient is None else gradient)
                layer.rotation = None
            gradient = reduce(torch.cat(gradients))
            R.backward(gradient if weight is None else gradient.mul_(weight))
        self._groups = []

    def defect(self) -> Tensor:
        """The orthogonality defect of this step's R, over all layers."""
        return torch.stack([orthogonality_defect(R.detach()) for _, R, _ in self._groups]).max()


@torch.no_grad()
def rotation_facts(layers: Sequence[RotatedLinear]) -> dict[str, Any]:
    """For the record: how far R is from orthogonal, and the number of factors of each input size."""
    defects = [orthogonality_defect(block_rotations([layer.Q], layer.blocks)) for layer in layers]
    factors = {str(layer.in_size): len(layer.Q) for layer in layers}
    return {"orthogonality_defect": float(torch.stack(defects).max()), "factors": factors}


@dataclass
class RotationMethod(Method):
    """Hooks of a method whose layers are rotated and nothing else. ``attach`` sets ``_layers`` and ``_rotations``."""

    cayley: str = "exact"  # or "neumann"
    neumann_terms: int = 5

    def before_step(self, model: nn.Module, step: Step) -> None:
        self._rotations.derive(self._layers)
        if self.cayley == "neumann":
            step.log("orthogonality_defect", self._rotations.defect())

    def after_backward(self, model: nn.Module, step: Step) -> None:
        self._rotations.collect(step.all_reduce_)

    def merge(self, model: nn.Module) -> None:
        unwrap(model, RotatedLinear, RotatedLinear.merged)

    def effective_parameters(self, model: nn.Module) -> int:
        return sum(layer.degrees_of_freedom() for layer in self._layers)

    def facts(self, model: nn.Module) -> dict[str, Any]:
        return rotation_facts(self._layers) | ({"terms": self.neumann_terms} if self.cayley == "neumann" else {})
