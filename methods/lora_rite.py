"""LoRA-RITE: a one-sided Adam on LoRA's factors that sees their product alone.  Yen et al., ICLR 2025, arXiv 2410.20625.

    X = s B A = s U V^T     U = B: (out, rank)    V = A^T: (in, rank)    G = dL/dX    G_U = s G V    G_V = s G^T U
    U = Q R by QR           Q: (out, rank)        R: (rank, rank)        and the same for V
    For V, in the basis Q of U (and for U, in that of V), at step t, with b1 and b2 corrected for bias:
    g = (1/s) G_V R^+                                           unmagnified, = G^T Q            (in, rank)
    T = Q_t^T Q_(t-1)                                           from the last basis to this     (rank, rank)
    e <- b2 (e + the mass of S that T S T^T lacks)              escaped                         a number
    S <- b2 T S T^T + (1 - b2) g^T g / in                       second moment                   (rank, rank)
    M <- b1 M T^T + (1 - b1) g ((S + e I)^1/2 + epsilon I)^-1   mean of preconditioned g        (in, rank)
    V <- V - lr (1/s) M (R^+)^T                                 so that X moves by -lr Q M^T

X moves by -lr (M_U Q_V^T + Q_U M_V^T) + O(lr^2), exactly the same for all factors of one X that have full rank and for
every s, over any number of steps. The rate is one of X: the authors' code, which has no s, moves X by s times as much.
The missing mass is the lesser of the largest fall of an eigenvalue and the fall of the trace, as in that code, where it
is off; here it is on, as in the paper. Not from there: a clip and a limit for g. Gradients are clipped as every method's
are, by the norm of the factors' gradients, which alone depends on the factors. b1, b2 = 0.9, 0.999.

R^+ is a pseudo-inverse without singular values below size * machine epsilon of the largest: directions that a factor
lacks get no step. At the start B = 0, its R^+ is zero, and A waits one step while B moves.
Trains rank * (in + out) numbers a matrix, started as LoRA's. State: M and the last Q, twice as many, as Adam's, and
2 rank^2 + 2. A step adds two QR and, of (rank, rank) and batched over all layers, two singular value and six eigenvalue
problems a matrix.  Merged: W0 + s B A.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from harness.contract import log_uniform

from ._factors import FactorMethod, factors, finite_or_nan, stacks, times
from ._low_rank import LowRankLinear


def _pseudo_inverses(triangles: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """R^+ of every stack of R: (layers, rank, rank), of factors with so many rows."""
    counts = [len(R) for R in triangles]
    left, values, right = finite_or_nan(torch.linalg.svd, torch.cat(tuple(triangles)))
    epsilon = torch.finfo(values.dtype).eps
    limits = torch.cat([values.new_full((count, 1), size * epsilon) for count, size in zip(counts, sizes, strict=True)])
    kept = values > limits * values[:, :1]
    inverted = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0 * values)
    return (right.mT @ (inverted.unsqueeze(-1) * left.mT)).split(counts)


class _LoRARite(torch.optim.Optimizer):
    """Each side's moments and its own last basis are with the first parameter of its stack."""

    def __init__(self, layers: list, epsilon: float, lr: float, weight_decay: float):
        rates = {"lr": lr, "weight_decay": weight_decay, "betas": (0.9, 0.999), "epsilon": epsilon}
        super().__init__(factors(layers), {**rates, "count": 0})
        self.stacks = stacks(layers)
        self.sides = [side for stack in self.stacks for side in (stack.U, stack.V)]  # side i acts in side i ^ 1's basis
        self.scales = [stack.scale for stack in self.stacks for _ in range(2)]
        for side in self.sides:
            first, rank = side.parameters[0], min(side.parameters[0].shape)
            self._own(side).update(momentum=side.zeros(), basis=side.zeros())
            self._own(side).update(second=first.new_zeros(len(side.parameters), rank, rank))
            self._own(side).update(escaped=first.new_zeros(len(side.parameters)))

    def _own(self, side) -> dict[str, Tensor]:
        return self.state[side.parameters[0]]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        group, sides = self.param_groups[0], self.sides
        group["count"] += 1
        beta1, beta2 = (
            beta * (1 - beta ** (group["count"] - 1)) / (1 - beta ** group["count"]) for beta in group["betas"]
        )
        bases, triangles = zip(*(torch.linalg.qr(side.factor()) for side in sides), strict=True)
        inverses = _pseudo_inverses(triangles, [basis.shape[1] for basis in bases])
        turns, unmagnified = [], []
        for i, side in enumerate(sides):
            last = sides[i ^ 1].tall(self._own(sides[i ^ 1])["basis"])
            turns.append(bases[i ^ 1].mT @ last)
            unmagnified.append(times(side.gradient(), inverses[i ^ 1] / self.scales[i]))
        roots = self._inverse_roots(turns, unmagnified, beta2)
        for i, side in enumerate(sides):
            kept = side.tall(self._own(side)["momentum"])
            kept.copy_(times(kept, beta1 * turns[i].mT) + times(unmagnified[i], (1 - beta1) * roots[i]))
            side.decay_(1 - group["lr"] * group["weight_decay"])
            side.add_(times(kept, inverses[i ^ 1].mT), alpha=-group["lr"] / self.scales[i])
            side.tall(self._own(side)["basis"]).copy_(bases[i])

    def _inverse_roots(self, turns: list[Tensor], unmagnified: list[Tensor], beta2: float) -> tuple[Tensor, ...]:
        """((S + e I)^1/2 + epsilon I)^-1 of every side, its S and e brought up to date. All layers in one batch."""
        owns = [self._own(side) for side in self.sides]
        T, S, e = (torch.cat(t) for t in (turns, [own["second"] for own in owns], [own["escaped"] for own in owns]))
        moved = T @ S @ T.mT
        was, now = finite_or_nan(torch.linalg.eigvalsh, torch.cat((S, moved))).chunk(2)
        fallen = was - now
        e = beta2 * (e + torch.minimum(fallen.amax(-1), fallen.sum(-1)).clamp_min(0.0))
        S = beta2 * moved + (1 - beta2) * torch.cat([g.mT @ g / g.shape[1] for g in unmagnified])
        values, vectors = finite_or_nan(torch.linalg.eigh, (S + S.mT) / 2)
        scales = 1 / ((values.clamp_min(0.0) + e[:, None]).sqrt() + self.param_groups[0]["epsilon"])
        counts = [len(own["escaped"]) for own in owns]
        for own, second, escaped in zip(owns, S.split(counts), e.split(counts), strict=True):
            own["second"].copy_(second)
            own["escaped"].copy_(escaped)
        return ((vectors * scales.unsqueeze(-2)) @ vectors.mT).split(counts)


@dataclass
class LoRARITE(FactorMethod):
    learning_rate: float = field(default=2e-4, metadata={"search": log_uniform(1e-5, 1e-2)})
    epsilon: float = 1e-6

    def _layer(self, base: nn.Module) -> LowRankLinear:
        layer = super()._layer(base)
        if self.rank > min(layer.in_size, layer.out_size):
            raise ValueError(
                f"LoRA-RITE needs bases of rank={self.rank} vectors in ({layer.out_size}, {layer.in_size}). "
                f"Choose a rank of at most {min(layer.in_size, layer.out_size)}, or other targets."
            )
        return layer

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return _LoRARite(self._layers, self.epsilon, self.learning_rate, self.weight_decay)
