"""LoRA-GA's start: A and B from the singular vectors of a weight's gradient.  Wang et al., NeurIPS 2024, arXiv 2407.05000.

With G = U S V^T: (out, in), the mean gradient of the untouched weight, r = rank and c = out^(1/4) / sqrt(gamma):

    paper, as the authors' code:   A0 = c V[:, :r]^T        B0 = c U[:, r:2r]
    impl "peft", as PEFT 0.21:     A0 = V[:, :r]^T          B0 = c U[:, r:2r] diag(S[r:2r])
    init "printed_eq8":            A0 = sqrt(S_r / s) V_r^T   B0 = U_r sqrt(S_r / s),   so that s B0 A0 = G_r

The paper's text has gamma where its code has sqrt(gamma); the code is followed. One step of SGD from the paper's start
changes the weight by -lr s^2 c^2 (U_{r..2r} U_{r..2r}^T G + G V_r V_r^T): the best approximation of G of rank 2r, as
the two sets of indices are disjoint. Eq. 8 is the LoRA-GA of arXiv 2507.18076: the same r directions twice, scaled by
the gradient, and added to the weight, a step up the loss. PEFT has a Conv1D's inputs for out; here out is out.

The SVD is truncated and randomised, as the authors' (4r directions, four iterations); where 4r is all there is, the
exact one costs no more. A gradient over few tokens has a rank k below 2r: its own directions are kept, and the sets are
completed by random orthonormal ones. Where out < 2r, B0 has the last r left directions, some of which A0 has, too.
"""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ._linear import Adapter, is_conv1d

Init = Literal["paper", "printed_eq8"]
Impl = Literal["authors", "peft"]


class GradientStart(NamedTuple):
    A0: Tensor  # (rank, in)
    B0: Tensor  # (out, rank)
    numerical_rank: int  # of the gradient, as far as 4 rank


@torch.no_grad()
def start_from_gradient(
    G: Tensor,
    rank: int,
    scale: float,
    gamma: float,
    init: Init = "paper",
    impl: Impl = "authors",
    autocast: torch.dtype | None = None,
) -> GradientStart:
    """A0 and B0, in float32 or better, from G: (out, in), whose products were in ``autocast`` or else in G's own type.

    Draws from the global generator, which the harness seeds.
    """
    U, S, V, known = _directions(G, rank, torch.finfo(autocast or G.dtype).eps)
    if init == "printed_eq8":
        root = (S[:rank] / scale).sqrt()
        return GradientStart(root.unsqueeze(1) * V[:, :rank].t(), U[:, :rank] * root, known)
    out = len(U)
    stable = out**0.25 / gamma**0.5
    A0 = _completed(V, min(known, rank), rank).t()
    left = min(2 * rank, out)
    B0 = _completed(U, min(known, left), left)[:, -rank:]
    if impl == "peft":
        return GradientStart(A0, B0 * S[left - rank : left] * stable, known)
    return GradientStart(A0 * stable, B0 * stable, known)


def check_rank(method: str, rank: int, out_size: int, in_size: int) -> None:
    """Raises ValueError where a gradient has fewer than ``rank`` orthogonal directions."""
    if rank > min(in_size, out_size):
        raise ValueError(
            f"{method} takes rank={rank} orthogonal directions from a gradient of ({out_size}, {in_size}). "
            f"Choose a rank of at most {min(in_size, out_size)}, or other targets."
        )


def add_start(layer: nn.Module) -> None:
    """Give a layer with A and B the buffers that a start fills: A0, B0 and ``gradient_rank``."""
    layer.register_buffer("A0", layer.A.detach().clone())
    layer.register_buffer("B0", layer.B.detach().clone())
    layer.register_buffer("gradient_rank", torch.zeros((), dtype=torch.int64, device=layer.A.device))


@torch.no_grad()
def start_layer(
    layer: Adapter,
    gradient: Tensor,
    gamma: float,
    init: Init = "paper",
    impl: Impl = "authors",
    autocast: torch.dtype | None = None,
) -> None:
    """Fill A, B and what ``add_start`` gave, from the gradient of the base's weight as the module stores it.

    ``printed_eq8`` keeps zeros for A0 and B0: nothing is subtracted.
    """
    G = gradient.t() if is_conv1d(layer.base) else gradient
    start = start_from_gradient(G, len(layer.A), layer.scale, gamma, init, impl, autocast)
    for trained, kept, value in ((layer.A, layer.A0, start.A0), (layer.B, layer.B0, start.B0)):
        trained.copy_(value)
        kept.copy_(value if init == "paper" else torch.zeros_like(value))
    layer.gradient_rank.fill_(start.numerical_rank)


@torch.no_grad()
def decay_to_start(layers: Iterable[nn.Module], share: float) -> None:
    """After a decay of A and B to zero by ``share``: make it one to A0 and B0, where the model is the base."""
    for layer in layers:
        layer.A.add_(layer.A0, alpha=share)
        layer.B.add_(layer.B0, alpha=share)


def start_facts(layers: Iterable[tuple[str, nn.Module]], rank: int) -> dict[str, Any]:
    """For the record: each gradient's numerical rank, and how many of the 2 rank directions a matrix were missing."""
    ranks = {name: int(layer.gradient_rank) for name, layer in layers}
    return {"gradient_rank": ranks, "directions_missing": sum(max(0, 2 * rank - found) for found in ranks.values())}


def _directions(G: Tensor, rank: int, epsilon: float) -> tuple[Tensor, Tensor, Tensor, int]:
    """U: (out, q), S: (2 rank or more,) with zeros beyond the numerical rank, V: (in, q), and that rank.

    ``epsilon``: of the type to which G's entries are rounded.
    """
    wide = G.to(torch.promote_types(G.dtype, torch.float32))
    count = min(4 * rank, *G.shape)
    if count == min(G.shape):
        U, S, Vh = torch.linalg.svd(wide, full_matrices=False)
        V = Vh.t()
    else:
        U, S, V = torch.svd_lowrank(wide, q=count, niter=4)
    # What the SVD's rounding can make of nothing, and what rounding every entry of G can.
    noise = max(G.shape) * torch.finfo(wide.dtype).eps * S[0]
    rounding = epsilon * wide.norm() * sum(n**-0.5 for n in G.shape)
    tolerance = torch.maximum(noise, rounding)
    known = int(S.gt(tolerance).sum())
    padded = S.new_zeros(max(2 * rank, count))
    padded[:known] = S[:known]
    return U, padded, V, known


def _completed(directions: Tensor, known: int, count: int) -> Tensor:
    """(n, count): the first ``known`` columns, and random ones that make the set orthonormal."""
    kept = directions[:, :known]
    if known == count:
        return kept
    random = torch.randn(len(kept), count - known, dtype=kept.dtype, device=kept.device)
    return torch.cat((kept, torch.linalg.qr(torch.cat((kept, random), 1)).Q[:, known:]), 1)
