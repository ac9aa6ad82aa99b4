"""Adam in a subspace of each matrix's gradient, for any way of making the subspace (_projector.py).

For a weight W: (m, n) with gradient G, every ``refresh_every`` steps the basis Q is made anew from the present G, on the
shorter side; then, with s = scale, t = 1, 2, ... and c = sqrt(1 - b2^t) / (1 - b1^t):

    m >= n:  Q: (rank, n)   R = G Q^T: (m, rank)        m < n:  Q: (rank, m)   R = Q G: (rank, n)
    M = b1 M + (1 - b1) R      V = b2 V + (1 - b2) R*R      N = M / (sqrt(V) + epsilon)
    W <- W - lr c s N Q  (or Q^T N);   W <- W - lr decay W

All weights but the matrices take the same AdamW unprojected. Matrices of one shape are a bucket of L: its bases, M, V and
R are stacks (L, ...), of which the optimizer keeps all but R as the state of the bucket's first matrix. Projection is
linear, so each micro-batch's gradient is projected into the stack, added up and freed; only a refresh step needs the
whole gradient. The norm that is measured and clipped is the projected gradients'.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from harness.contract import Method, Run, Step

from ._linear import Targets, cast_back, train_all
from ._projector import Builder, Report, side_of

_FUSED = {"fused": True, "amsgrad": False, "maximize": False}
_WORK = 1 << 18  # entries of a stack that Adam moves at once: what it writes is read again while in the cache


class _Bucket:
    """Matrices of one shape, and their projected gradients of this step: (L, m, rank) or (L, rank, n)."""

    def __init__(self, matrices: list[Tensor], rank: int, places: list[int]):
        self.matrices, self.places = matrices, places  # places: among all matrices
        self.side, (m, n) = side_of(matrices[0].shape), matrices[0].shape
        self.rank = min(rank, m, n)
        self.basis_shape = (len(matrices), self.rank, min(m, n))
        self.shape = (len(matrices), m, self.rank) if self.side == "right" else (len(matrices), self.rank, n)
        self.projected: Tensor | None = None
        self.seen: set[int] = set()  # matrices that a gradient has reached in this step

    def project(self, basis: Tensor) -> None:
        """Add every gradient's projection to ``projected`` and free it."""
        if self.projected is None and any(p.grad is not None for p in self.matrices):
            self.projected = self.matrices[0].new_empty(self.shape)
        if self.projected is None:
            return
        for number, (p, Q, R) in enumerate(zip(self.matrices, basis.unbind(), self.projected.unbind(), strict=True)):
            if p.grad is None:
                continue
            factors = (p.grad, Q.t()) if self.side == "right" else (Q, p.grad)
            R.addmm_(*factors) if number in self.seen else torch.mm(*factors, out=R)
            self.seen.add(number)
            p.grad = None

    def stacked(self, entries: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Parts of the bucket: where, all gradients there, and where their projections go; then they are freed."""
        self.projected = self.matrices[0].new_empty(self.shape)
        space = None  # one for all parts: fresh memory costs more than the copy
        for part in self.parts(self.matrices[0].numel(), entries):
            there = self.matrices[part]
            space = self.matrices[0].new_empty(len(there), *there[0].shape) if space is None else space
            torch.stack([torch.zeros_like(p) if p.grad is None else p.grad for p in there], out=space[: len(there)])
            yield part, space[: len(there)], self.projected[part]
            self.seen |= {part.start + number for number, p in enumerate(there) if p.grad is not None}
            for p in there:
                p.grad = None
        if not self.seen:
            self.projected = None

    def gradient(self) -> Tensor | None:
        """The whole stack; zero where no gradient came."""
        if self.projected is not None:
            for number in set(range(len(self.matrices))) - self.seen:
                self.projected[number].zero_()
        return self.projected

    def parts(self, entries: int, most: int) -> Iterator[slice]:
        """Slices of the stack of at most ``most`` entries, where a matrix has so many; one matrix at least."""
        size = max(1, most // entries)
        return (slice(start, start + size) for start in range(0, len(self.matrices), size))


class ProjectedAdamW(torch.optim.Optimizer):
    """One group a bucket of matrices, which take their gradient from the bucket, and one group of all else."""

    def __init__(self, matrices: list, others: list, rank: int, scale: float, epsilon: float, lr: float, decay: float):
        alike: dict[tuple, list[int]] = {}
        for place, p in enumerate(matrices):
            alike.setdefault((p.shape, p.dtype, p.device), []).append(place)
        self.buckets = [_Bucket([matrices[i] for i in places], rank, places) for places in alike.values()]
        groups = [{"params": bucket.matrices, "scale": scale, "refreshes": 0} for bucket in self.buckets]
        defaults = {"lr": lr, "weight_decay": decay, "betas": (0.9, 0.999), "epsilon": epsilon, "count": 0}
        super().__init__([*groups, {"params": others}], defaults)
        for bucket in self.buckets:
            p, state = bucket.matrices[0], self.stacks(bucket)
            state["basis"] = p.new_zeros(bucket.basis_shape)
            state["first"], state["second"] = p.new_zeros(bucket.shape), p.new_zeros(bucket.shape)
            for name in Report._fields:  # sums over the refreshes
                state[name] = p.new_zeros(len(bucket.matrices))
        for p in others:
            self.state[p]["step"] = torch.zeros((), device=p.device)
            self.state[p]["first"], self.state[p]["second"] = torch.zeros_like(p), torch.zeros_like(p)

    def stacks(self, bucket: _Bucket) -> dict[str, Tensor]:
        """The bucket's part of the state."""
        return self.state[bucket.matrices[0]]

    @torch.no_grad()
    def refresh(self, builder: Builder, generator: torch.Generator) -> Report:
        """New bases from the gradients in ``.grad``, and their projections; what it took, a number a matrix."""
        reports = []
        for bucket, group in zip(self.buckets, self.param_groups[:-1], strict=True):
            state, cold = self.stacks(bucket), group["refreshes"] == 0
            noise = builder.noise(bucket.rank, bucket.basis_shape[2], state["basis"], generator)
            for part, stack, projected in bucket.stacked(builder.at_once):
                warm = None if cold else state["basis"][part]
                state["basis"][part], report = builder(stack, bucket.rank, bucket.side, noise, warm, projected)
                for name, value in report._asdict().items():
                    state[name][part] += value
                reports.append(report)
            group["refreshes"] += 1
        places = [place for bucket in self.buckets for place in bucket.places]
        order = torch.tensor(places, device=noise.device).argsort()
        return Report(*(torch.cat(values)[order] for values in zip(*reports, strict=True)))

    @torch.no_grad()
    def project(self) -> None:
        for bucket in self.buckets:
            bucket.project(self.stacks(bucket)["basis"])

    def projected(self) -> list[Tensor]:
        """The projected gradients of this step: stacks, to be reduced and scaled in place."""
        return [stack for stack in (bucket.gradient() for bucket in self.buckets) if stack is not None]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for bucket, group in zip(self.buckets, self.param_groups[:-1], strict=True):
            if bucket.projected is not None:
                self._step_bucket(bucket, group)
        group = self.param_groups[-1]
        moved = [p for p in group["params"] if p.grad is not None]
        if moved:
            group["count"] += 1
            states = [self.state[p] for p in moved]
            stacks = ([s[key] for s in states] for key in ("first", "second"))
            self._adam(group, moved, [p.grad for p in moved], *stacks, [s["step"] for s in states])
            _decay(group, moved)

    def _step_bucket(self, bucket: _Bucket, group: dict) -> None:
        """Adam's step from zero is N times its rates; then W moves. A matrix without a gradient stays as it is."""
        group["count"] += 1
        state, R = self.stacks(bucket), bucket.projected
        whole = len(bucket.seen) == len(bucket.matrices)
        parts = list(bucket.parts(R[0].numel(), _WORK if whole else 1))
        parts = parts if whole else [parts[number] for number in sorted(bucket.seen)]
        work = torch.empty_like(R[parts[0]])
        for part in parts:
            r = R[part]
            update = work[: len(r)].zero_()
            before = torch.full((), group["count"] - 1.0, device=R.device)  # steps; Adam adds one
            self._adam(group, [update], [r], [state["first"][part]], [state["second"][part]], [before])
            for p, N, Q in zip(bucket.matrices[part], update.unbind(), state["basis"][part].unbind(), strict=True):
                p.addmm_(*((N, Q) if bucket.side == "right" else (Q.t(), N)), alpha=group["scale"])
        _decay(group, [bucket.matrices[number] for number in sorted(bucket.seen)])
        bucket.projected = None
        bucket.seen.clear()

    @staticmethod
    def _adam(group: dict, targets: list, gradients: list, first: list, second: list, steps: list) -> None:
        """Move ``targets`` by Adam's step. Epsilon before bias correction is epsilon / sqrt(correction) to torch."""
        beta1, beta2 = group["betas"]
        epsilon = group["epsilon"] / math.sqrt(1 - beta2 ** group["count"])
        rates = {"lr": group["lr"], "beta1": beta1, "beta2": beta2, "eps": epsilon, "weight_decay": 0.0}
        adamw(targets, gradients, first, second, [], steps, **rates, **_FUSED)


def _decay(group: dict, moved: list[Tensor]) -> None:
    if group["weight_decay"]:
        torch._foreach_mul_(moved, 1 - group["lr"] * group["weight_decay"])


@dataclass
class ProjectedMethod(Method):
    """The hooks. A method says by ``projector`` how its bases are made."""

    rank: int = 128
    scale: float = 2.0
    refresh_every: int = 200
    epsilon: float = 1e-6
    targets: Targets = "all-linear"

    tiny: ClassVar[dict[str, Any]] = {"rank": 4, "refresh_every": 3, "scale": 1.0}

    def projector(self) -> Builder:
        """How bases are made. Raises ValueError for options that make none."""
        raise TypeError(f"{type(self).__name__} must define projector()")

    def attach(self, model: nn.Module, run: Run) -> None:
        name = type(self).__name__
        if self.rank < 1 or self.refresh_every < 1:
            raise ValueError(f"{name} needs rank >= 1 and refresh_every >= 1, not {self.rank} and {self.refresh_every}")
        try:
            self._builder = self.projector()
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        self._seed = torch.initial_seed()  # of what a refresh draws, however many micro-batches its step has
        self._dtypes = train_all(model)
        self._modules = [module for _, module in run.find(model, self.targets)]
        self._optimizer: ProjectedAdamW | None = None

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        matrices = [module.weight for module in self._modules]
        projected = {id(p) for p in matrices}
        others = [p for p in model.parameters() if p.requires_grad and id(p) not in projected]
        rates = self.scale, self.epsilon, self.learning_rate, self.weight_decay
        self._optimizer = ProjectedAdamW(matrices, others, self.rank, *rates)
        return self._optimizer

    def after_micro_batch(self, model: nn.Module, step: Step) -> None:
        if step.index % self.refresh_every:
            self._optimizer.project()

    def after_backward(self, model: nn.Module, step: Step) -> None:
        if step.index % self.refresh_every:
            for gradient in self._optimizer.projected():  # the harness reduces what is in .grad; this is not
                step.all_reduce_(gradient)
            return
        generator = torch.Generator(self._modules[0].weight.device).manual_seed((self._seed + step.index) % 2**63)
        with step.clock("refresh"):
            report = self._optimizer.refresh(self._builder, generator)
        step.log("bases_kept", report.kept.sum())
        step.log("captured_share", report.share)
        step.log("iterations", report.iterations)
        step.log("passes", report.passes)

    def clip(self, model: nn.Module, max_norm: float) -> Tensor:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        gradients += self._optimizer.projected()
        norm = torch.nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def merge(self, model: nn.Module) -> None:
        cast_back(model, self._dtypes)

    @torch.no_grad()
    def facts(self, model: nn.Module) -> dict[str, Any]:
        """Of all refreshes, per matrix and refresh: products, passes over the gradient, captured share, bases kept."""
        if self._optimizer is None or not self._optimizer.param_groups[0].get("refreshes"):
            return {}
        groups, buckets = self._optimizer.param_groups, self._optimizer.buckets
        states = [self._optimizer.stacks(bucket) for bucket in buckets]
        sums = {name: torch.cat([state[name] for state in states]) for name in Report._fields}
        refreshes = groups[0]["refreshes"]
        bases = [state["basis"].double() for state in states]
        defects = [(Q @ Q.mT - torch.eye(Q.shape[1], dtype=Q.dtype, device=Q.device)).abs().max() for Q in bases]
        return {
            "projector": self._builder.kind,
            "refreshes": refreshes,
            "iterations": float(sums["iterations"].mean()) / refreshes,
            "passes": float(sums["passes"].mean()) / refreshes,
            "captured_share": float(sums["share"].mean()) / refreshes,
            "captured_share_lowest": float(sums["share"].min()) / refreshes,
            "bases_kept": int(sums["kept"].sum()),
            "orthogonality_error": float(max(defects)),
        }
