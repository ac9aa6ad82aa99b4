"""SVDLoRA: a full step of the weight's change, then the best approximation of low rank.  Reference of arXiv 2602.16456.

    Delta <- SVD_r(Delta - lr D)      Delta = s U V^T      y = W0 x + Delta x      D: (out, in), r = rank
    U: (out, r), kept as B, and V: (in, r), kept as A = V^T: balanced, U^T U = V^T V; both zero at first

direction "sgd": D = G = dL/dW, with ``momentum`` M <- momentum M + G, D = M; "adamw": Adam's direction from dense moments,
which are not projected, as in the authors' code. ||Delta - target|| is the target's tail beyond r; it is logged as the
share of the energy that was cut off. Neither U and V's gauge nor alpha is seen by the product. weight_decay shrinks Delta.

route "dense": the target is formed, and its economy SVD taken: out in min(out, in) a matrix and step, which is for tests
and small models. "factored", for D = G = S^T X over rows: QR of [U, -lr S^T] and [V, X^T] and the SVD of their core, the
same in exact arithmetic, (out + in) (r + rows)^2 + (r + rows)^3. "auto": factored where r + rows of a step < min(out, in)
and nothing dense is kept anyway; this never is so for a language model's tokens, where LoRSum comes near for less.

Gradients of A and B are not computed. The norm that is measured and clipped is G's, as in full training of Delta. A
gradient that is not finite leaves the factors as they are. Over several processes the route is "dense".
Trains rank * (in + out) numbers a matrix. State: out in numbers a matrix with momentum, twice that with adamw, else none.
Merged: W0 + s U V^T.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from harness.contract import Method, Run, Step, choice, log_uniform

from ._captured import Capture, CapturedLinear
from ._linear import Targets, unwrap, wrap
from ._lorsum import truncated

Direction = Literal["sgd", "adamw"]
Route = Literal["auto", "dense", "factored"]


class _TruncatedSteps(torch.optim.Optimizer):
    """State stands under each layer's B. ``cut``: (layers,), the share of each target's energy that the last step cut off."""

    def __init__(self, layers: list[CapturedLinear], method: Method):
        factors = [p for layer in layers for p in (layer.B, layer.A)]
        super().__init__(factors, {"lr": method.learning_rate, "weight_decay": method.weight_decay})
        self.layers, self.method = layers, method
        self.factor: float | Tensor = 1.0  # by which the gradient was clipped
        self.cut: Tensor | None = None
        kept = {"sgd": ("velocity",) if method.momentum else (), "adamw": ("first", "second")}[method.direction]
        for layer in layers:
            for name in kept:
                self.state[layer.B][name] = layer.B.new_zeros(layer.gradient.shape)
            if method.direction == "adamw":
                self.state[layer.B]["step"] = torch.zeros((), device=layer.B.device)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One matrix after another, as LAPACK takes them: a stack would only hold all targets at once."""
        group = self.param_groups[0]
        keep = 1 - group["lr"] * group["weight_decay"]
        shares = []
        for layer in self.layers:
            truncate = self._dense if layer.gradient.dense is not None else self._factored
            U, V, cut = truncate(layer, group["lr"], keep)
            kept = U.square().sum(0).square().sum()  # U's columns are as long as the roots of the singular values
            cut = cut / (kept + cut).clamp_min(torch.finfo(cut.dtype).tiny)
            root = layer.scale**0.5
            for p, new in ((layer.B, U / root), (layer.A, V.t() / root)):
                p.copy_(torch.where(cut.isfinite(), new, p))
            shares.append(cut)
            layer.gradient.clear()
        self.cut = torch.stack(shares)

    def _factored(self, layer: CapturedLinear, rate: float, keep: float) -> tuple[Tensor, Tensor, Tensor]:
        left, right = [layer.B * (layer.scale * keep)], [layer.A.t()]
        for S, X in layer.gradient.pairs:
            left.append(S.to(layer.B.dtype).t() * (-rate * self.factor))
            right.append(X.to(layer.A.dtype).t())
        left, right = torch.cat(left, 1), torch.cat(right, 1)
        good = left.isfinite().all() & right.isfinite().all()
        U, V, cut = truncated(_or_zero(good, left), _or_zero(good, right), layer.A.shape[0])
        return U, V, torch.where(good, cut, torch.nan)

    def _dense(self, layer: CapturedLinear, rate: float, keep: float) -> tuple[Tensor, Tensor, Tensor]:
        G = layer.gradient.whole(layer.B).mul_(self.factor)
        target = self._moved(self.state[layer.B], G, rate).addmm_(layer.B, layer.A, alpha=layer.scale * keep)
        good = target.isfinite().all()
        U, values, Vh = torch.linalg.svd(_or_zero(good, target), full_matrices=False)
        rank = layer.A.shape[0]
        root = values[:rank].sqrt()
        return U[:, :rank] * root, Vh[:rank].t() * root, torch.where(good, values[rank:].square().sum(), torch.nan)

    def _moved(self, state: dict, G: Tensor, rate: float) -> Tensor:
        """- lr D: (out, in)."""
        if self.method.direction == "sgd":
            return (state["velocity"].mul_(self.method.momentum).add_(G) if "velocity" in state else G) * -rate
        update = torch.zeros_like(G)  # Adam's step from zero is the update
        beta1, beta2 = self.method.betas
        rates = {"lr": rate, "beta1": beta1, "beta2": beta2, "eps": self.method.epsilon, "weight_decay": 0.0}
        moments = [state["first"]], [state["second"]], [], [state["step"]]
        adamw([update], [G], *moments, **rates, fused=True, amsgrad=False, maximize=False)
        return update


def _or_zero(good: Tensor, value: Tensor) -> Tensor:
    return torch.where(good, value, 0.0)


@dataclass
class SVDLoRA(Method):
    learning_rate: float = field(default=1e-4, metadata={"search": log_uniform(1e-5, 1e-2)})
    """Of the weight: near full fine-tuning's with the same direction."""
    rank: int = field(default=16, metadata={"search": choice(4, 8, 16, 32, 64)})
    alpha: float = 16.0
    direction: Direction = "adamw"
    betas: tuple[float, float] = (0.9, 0.99)
    epsilon: float = 1e-8
    momentum: float = 0.0
    """Of direction "sgd"."""
    route: Route = "auto"
    targets: Targets = "all-linear"

    tiny: ClassVar[dict] = {"rank": 4}

    def attach(self, model: nn.Module, run: Run) -> None:
        self._check()
        self._capture = Capture(self._keeps)
        scale = self.alpha / self.rank
        self._layers: list[CapturedLinear] = wrap(
            model, run, self.targets, lambda base: CapturedLinear(base, self.rank, scale, self._capture, False)
        )
        for layer in self._layers:
            nn.init.zeros_(layer.A)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        self._optimizer = _TruncatedSteps(self._layers, self)
        return self._optimizer

    def before_step(self, model: nn.Module, step: Step) -> None:
        self._capture.begin(self._layers, step.micro_batches)

    def after_backward(self, model: nn.Module, step: Step) -> None:
        """Dense where the step turned out to have more rows than its first micro-batch let expect."""
        for layer in self._layers:
            rows = sum(len(X) for _, X in layer.gradient.pairs)
            if layer.gradient.dense is not None or not self._keeps(rows, *layer.gradient.shape):
                step.all_reduce_(layer.gradient.whole(layer.B))

    @torch.no_grad()
    def clip(self, model: nn.Module, max_norm: float) -> Tensor:
        others = [p.grad for p in model.parameters() if p.grad is not None]  # an encoder's head
        squares = [layer.gradient.square_norm(layer.B) for layer in self._layers]
        norm = torch.stack([*squares, *(g.square().sum() for g in others)]).sum().sqrt()
        self._optimizer.factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        if others:
            torch._foreach_mul_(others, self._optimizer.factor)
        return norm

    def after_step(self, model: nn.Module, step: Step) -> None:
        step.log("energy_cut_off", self._optimizer.cut)

    def merge(self, model: nn.Module) -> None:
        unwrap(model, CapturedLinear, lambda layer, weight: weight + layer.update())

    def _keeps(self, rows: int, out_size: int, in_size: int) -> bool:
        if self.route == "auto":
            return self._plain and self._few(rows, out_size, in_size)
        return self.route == "factored"

    def _few(self, rows: int, out_size: int, in_size: int) -> bool:
        return self.rank + rows < min(out_size, in_size)

    @property
    def _plain(self) -> bool:
        """Is D this step's gradient alone?"""
        return self.direction == "sgd" and not self.momentum

    def _check(self) -> None:
        for name, known in (("direction", Direction), ("route", Route)):
            if getattr(self, name) not in get_args(known):
                choices = " or ".join(map(repr, get_args(known)))
                raise ValueError(f"SVDLoRA: {name} is {choices}, not {getattr(self, name)!r}")
        if self.momentum and self.direction == "adamw":
            raise ValueError(f"SVDLoRA: momentum={self.momentum} belongs to direction 'sgd'; adamw has betas")
        if self.route == "factored" and not self._plain:
            raise ValueError(
                "SVDLoRA: route 'factored' needs the step's gradient alone; moments are dense. Set route to 'auto' or "
                "'dense', or direction to 'sgd' with momentum 0"
            )
