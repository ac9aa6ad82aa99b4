"""GaLore: full training with Adam in a low-rank subspace of the gradient.  Zhao et al., ICML 2024, arXiv 2403.03507.

For a weight W: (m, n) with gradient G, every ``refresh_every`` steps the basis Q becomes the top ``rank`` singular
vectors of the present G, on the shorter side; then, with s = scale, t = 1, 2, ... and c = sqrt(1 - b2^t) / (1 - b1^t):

    m >= n:  Q: (rank, n)   R = G Q^T: (m, rank)        m < n:  Q: (rank, m)   R = Q G: (rank, n)
    M = b1 M + (1 - b1) R      V = b2 V + (1 - b2) R*R      N = M / (sqrt(V) + epsilon)
    W <- W - lr c s N Q  (or Q^T N);   W <- W - lr decay W

As in the authors' code: epsilon stands before the bias correction, M and V stay as they are when the basis changes,
all other weights take the same AdamW unprojected. State a matrix: 2 rank max(m, n) + rank min(m, n) numbers.

Projection is linear, so each micro-batch's gradient is projected, added up and freed; only a refresh step needs the
whole gradient. The norm that is measured and clipped is the projected gradient's. A gradient that is zero or not
finite keeps the old basis. Each basis vector's largest entry is positive, which fixes the sign that an SVD leaves open;
vectors beyond the gradient's rank (few supervised tokens) are any that complete an orthonormal set.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from harness.contract import Method, Run, Step, choice, log_uniform

from ._linear import Targets, cast_back, train_all

_FUSED = {"fused": True, "amsgrad": False, "maximize": False}


class _GaLoreAdamW(torch.optim.Optimizer):
    """AdamW whose first group's matrices take their gradient from ``projected`` instead of ``.grad``."""

    def __init__(self, matrices: list, others: list, rank: int, scale: float, epsilon: float, lr: float, decay: float):
        groups = [{"params": matrices, "scale": scale}, {"params": others}]
        defaults = {"lr": lr, "weight_decay": decay, "betas": (0.9, 0.999), "epsilon": epsilon, "count": 0}
        super().__init__(groups, defaults)
        self.matrices, self.projected = matrices, {}
        for p in matrices:
            size = min(rank, *p.shape)
            self.state[p]["basis"] = p.new_zeros(size, min(p.shape))
            shape = (p.shape[0], size) if p.shape[0] >= p.shape[1] else (size, p.shape[1])
            self._start(p, p.new_zeros(shape))
        for p in others:
            self._start(p, p)

    def _start(self, p: Tensor, like: Tensor) -> None:
        """``like`` gives the shape of the gradient that Adam sees."""
        self.state[p]["step"] = torch.zeros((), device=p.device)
        self.state[p]["first"], self.state[p]["second"] = torch.zeros_like(like), torch.zeros_like(like)

    @torch.no_grad()
    def refresh(self) -> Tensor:
        """New bases from the gradients in ``.grad``; how many kept their old one."""
        kept = torch.zeros((), device=self.matrices[0].device)
        for p in self.matrices:
            if p.grad is not None:
                good = p.grad.isfinite().all() & (p.grad != 0).any()
                basis = self.state[p]["basis"]
                basis.copy_(torch.where(good, _basis(torch.where(good, p.grad, 0.0), len(basis)), basis))
                kept += ~good
        return kept

    @torch.no_grad()
    def project(self) -> None:
        """Add every matrix's ``.grad``, projected, to ``projected`` and free it."""
        for p in self.matrices:
            if p.grad is None:
                continue
            basis = self.state[p]["basis"]
            small = p.grad @ basis.t() if p.shape[0] >= p.shape[1] else basis @ p.grad
            self.projected[p] = self.projected[p].add_(small) if p in self.projected else small
            p.grad = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            gradients = {p: self.projected.get(p) if "scale" in group else p.grad for p in group["params"]}
            gradients = {p: g for p, g in gradients.items() if g is not None}
            if not gradients:
                continue
            group["count"] += 1
            if "scale" not in group:
                self._adam(group, list(gradients), gradients)
            else:
                updates = [torch.zeros_like(g) for g in gradients.values()]  # Adam's step from zero is the update
                self._adam(group, updates, gradients)
                for p, update in zip(gradients, updates, strict=True):
                    basis = self.state[p]["basis"]
                    factors = (update, basis) if p.shape[0] >= p.shape[1] else (basis.t(), update)
                    p.addmm_(*factors, alpha=group["scale"])
            if group["weight_decay"]:
                torch._foreach_mul_(list(gradients), 1 - group["lr"] * group["weight_decay"])
        self.projected.clear()

    def _adam(self, group: dict, targets: list[Tensor], gradients: dict[Tensor, Tensor]) -> None:
        """Move ``targets`` by Adam's step. Epsilon before bias correction is epsilon / sqrt(correction) to torch."""
        first, second, steps = ([self.state[p][key] for p in gradients] for key in ("first", "second", "step"))
        beta1, beta2 = group["betas"]
        epsilon = group["epsilon"] / math.sqrt(1 - beta2 ** group["count"])
        rates = {"lr": group["lr"], "beta1": beta1, "beta2": beta2, "eps": epsilon, "weight_decay": 0.0}
        adamw(targets, list(gradients.values()), first, second, [], steps, **rates, **_FUSED)


def _basis(gradient: Tensor, rank: int) -> Tensor:
    """(rank, short side): the top singular vectors of the shorter side, each with its largest entry positive."""
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    basis = right[:rank] if gradient.shape[0] >= gradient.shape[1] else left.t()[:rank]
    peak = basis.gather(1, basis.abs().argmax(dim=1, keepdim=True))
    return torch.where(peak < 0, -basis, basis)


@dataclass
class GaLore(Method):
    learning_rate: float = field(default=1e-5, metadata={"search": log_uniform(1e-6, 1e-3)})
    rank: int = field(default=128, metadata={"search": choice(8, 32, 128)})
    scale: float = field(default=2.0, metadata={"search": choice(0.25, 1.0, 2.0, 4.0)})
    refresh_every: int = 200
    epsilon: float = 1e-6
    targets: Targets = "all-linear"

    tiny: ClassVar[dict] = {"rank": 4, "refresh_every": 3, "scale": 1.0}

    def attach(self, model: nn.Module, run: Run) -> None:
        self._dtypes = train_all(model)
        self._matrices = [module.weight for _, module in run.find(model, self.targets)]

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        projected = {id(p) for p in self._matrices}
        others = [p for p in model.parameters() if p.requires_grad and id(p) not in projected]
        rates = self.scale, self.epsilon, self.learning_rate, self.weight_decay
        self._optimizer = _GaLoreAdamW(self._matrices, others, self.rank, *rates)
        return self._optimizer

    def after_micro_batch(self, model: nn.Module, step: Step) -> None:
        if step.index % self.refresh_every:
            self._optimizer.project()

    def after_backward(self, model: nn.Module, step: Step) -> None:
        if step.index % self.refresh_every:
            for gradient in self._optimizer.projected.values():  # the harness reduces what is in .grad; this is not
                step.all_reduce_(gradient)
            return
        with step.clock("refresh"):
            step.log("bases_kept", self._optimizer.refresh())
        self._optimizer.project()

    def clip(self, model: nn.Module, max_norm: float) -> Tensor:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        gradients += self._optimizer.projected.values()
        norm = torch.nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def merge(self, model: nn.Module) -> None:
        cast_back(model, self._dtypes)
