"""LoRSum: LoRA's factors follow a step of the whole weight, by alternating least squares.  Almansoori et al., arXiv 2602.16456.

    y = W0 x + s U V^T x      U: (out, rank), kept as B, zero at first      V: (in, rank), kept as A = V^T, as LoRA's
    s U V^T <- nearly the best of its rank for   s U V^T - lr P^-1 D Q^-1       D: G = dL/dW, or with momentum
    by ``pairs`` times a damped half step for U and one for V, rho = lr damping (at least 1e-5 with a metric): ``_lorsum``

The method is also called PSI-LoRA. The paper's whole text was not at hand: this follows its abstract and its released code.
A step moves the weight by lr G whatever alpha is: sqrt(s) belongs to each factor, so that rho / s damps U and V, and alpha
only sizes the start. U goes first (the code: V first), since without damping V would go to 0 with U, for ever.

momentum: M ~ U_m V_m^T of rank ``momentum_rank``, U_m zero and V_m random at first. "ema": D = b M + (1 - b) G, then M is
drawn to the same; "heavy_ball": D = b M + G, and M likewise. D takes the old M; the new one is cut to its rank by as many
pairs, whose damping counts in mean eigenvalues of U_m^T U_m and V_m^T V_m (our choice: M has G's scale, which no one knows).
metric: P = (D_out + delta)^power, Q = (D_in + delta)^power, one at first, renewed by D <- b2 D + (1 - b2) new before use;
"kfac": new = rows S^T S and X^T X / rows, "shampoo": rows G G^T and rows G^T G. Diagonals, but whole matrices for sides of
at most ``full_metric_up_to``. rows: those with a gradient, so that padding is none.

The step's gradient is exact over all micro-batches, as pairs (S, X) or as a dense G (``_captured``), with equal results.
gradient "auto" keeps pairs where they are faster, within ``capture_gigabytes``. In multiply-adds, those of a product with few
columns counted twice, and with c columns of products a step, c = rank (2 pairs - 1) + 2 pairs momentum_rank:
pairs cost 2 c rows (out + in) + 2 rows^2 (out + in) with Shampoo, dense costs rows out in + 2 c out in. On SmolLM2's shapes
at 512 tokens, pairs = 1, they win. The first product is autograd's own: G V = dB / s, G^T U = dA^T / s.
The norm that is measured and clipped is that of dA and dB at the step's start; G is scaled by the same factor.

as_released: as the released scripts run it, with no pairs, which means a Jacobi step, and skips the update of their
momentum: lr (1 - b) is left of lr. Without a metric their routine then moves nothing, and is refused here.
Trains rank * (in + out) numbers a matrix. weight_decay shrinks U V^T within the sum. Merged: W0 + s U V^T.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from harness.contract import Method, Run, Step, choice, log_uniform

from ._captured import Capture, CapturedLinear
from ._linear import Targets, unwrap, wrap
from ._lorsum import Metric, Problem, low_rank_sum, metric

First = Literal["U", "V"]
Anchor = Literal["fixed", "moving"]
Momentum = Literal["none", "heavy_ball", "ema"]
MetricName = Literal["none", "kfac", "shampoo"]
Form = Literal["auto", "factored", "dense"]

THIN = 2  # a multiply-add of a product with few columns takes as long as this many of a square product
LEAST_RHO = 1e-5  # with a metric


class _Stack:
    """The layers of one shape, and their gradients' products, clipped and summed over processes. A loop over layers: each
    product is large, and a batched one would copy every S and X."""

    def __init__(self, layers: list[CapturedLinear], owner: torch.optim.Optimizer):
        self.layers, self.owner = layers, owner

    def autograd(self, name: str) -> Tensor:
        """dB or dA of each, clipped already; zero for a layer that took no part."""
        factors = [getattr(layer, name) for layer in self.layers]
        return torch.stack([torch.zeros_like(p) if p.grad is None else p.grad for p in factors])

    def times(self, V: Tensor) -> Tensor:
        return self._clipped([layer.gradient.times(one) for layer, one in zip(self.layers, V, strict=True)])

    def transposed_times(self, U: Tensor) -> Tensor:
        return self._clipped([layer.gradient.transposed_times(one) for layer, one in zip(self.layers, U, strict=True)])

    def squares(self, kind: str) -> tuple[Tensor, Tensor]:
        """What the metrics of U's and V's side take in, by K-FAC or by Shampoo: (layers, side[, side]); NaN without rows."""
        pairs = [(layer.gradient, layer.B) for layer in self.layers]
        rows = self._summed([gradient.rows_seen(like) for gradient, like in pairs])
        rows = torch.where(rows > 0, rows, math.nan)
        sums = [gradient.sums(like) if kind == "kfac" else gradient.squares(like) for gradient, like in pairs]
        out, into = (self._summed(list(side)) for side in zip(*sums, strict=True))
        squared = rows * self.owner.factor**2  # S carries 1 / rows and the clipping, G as S does
        return _each(out, squared), _each(into, rows.reciprocal() if kind == "kfac" else squared)

    def _clipped(self, products: list[Tensor]) -> Tensor:
        return self._summed(products).mul_(self.owner.factor)

    def _summed(self, tensors: list[Tensor]) -> Tensor:
        return self.owner.reduce(torch.stack(tensors))


def _each(tensors: Tensor, factors: Tensor) -> Tensor:
    """Every layer's tensor times its factor: (layers,)."""
    return tensors * factors.view(-1, *[1] * (tensors.ndim - 1))


class _ProximalSubspace(torch.optim.Optimizer):
    """LoRSum of all layers, those of one shape at once. State of a shape stands under its first layer's B (U's side) and
    A (V's side): "momentum" (layers, side, momentum rank), "metric" (layers, side) or (layers, side, side)."""

    def __init__(self, layers: list[CapturedLinear], method: Method, share: float):
        factors = [p for layer in layers for p in (layer.B, layer.A)]
        super().__init__(factors, {"lr": method.learning_rate, "weight_decay": method.weight_decay})
        self.method, self.share = method, share
        self.reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor
        self.factor: float | Tensor = 1.0  # by which the gradient was clipped
        shapes = list(dict.fromkeys(layer.gradient.shape for layer in layers))
        self.stacks = [_Stack([one for one in layers if one.gradient.shape == shape], self) for shape in shapes]
        for stack in self.stacks:
            self._start(stack)

    def _start(self, stack: _Stack) -> None:
        layer, count = stack.layers[0], len(stack.layers)
        rank = self.method.momentum_rank or self.method.rank
        for side, p in enumerate((layer.B, layer.A)):
            size = layer.gradient.shape[side]
            if self.method.momentum != "none":
                start = p.new_zeros(count, size, rank)
                self.state[p]["momentum"] = start if side == 0 else start.normal_(std=size**-0.5)
            if self.method.metric != "none":
                full = layer.gradient.is_full(side)
                one = torch.eye(size, dtype=p.dtype, device=p.device) if full else p.new_ones(size)
                self.state[p]["metric"] = one.repeat(count, *[1] * one.ndim)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        method, group = self.method, self.param_groups[0]
        problems = [self._weights(stack, group["lr"], group["weight_decay"]) for stack in self.stacks]
        if method.momentum != "none":
            problems += [self._momentum(stack) for stack in self.stacks]
        found = low_rank_sum(problems, method.pairs, method.first, method.anchor == "moving")
        count = len(self.stacks)
        for stack, (U, V) in zip(self.stacks, found[:count], strict=True):
            torch._foreach_copy_([layer.B for layer in stack.layers], list(U.unbind()))
            torch._foreach_copy_([layer.A for layer in stack.layers], list(V.mT.unbind()))
            for layer in stack.layers:
                layer.gradient.clear()
        if method.momentum != "none":
            for stack, pair in zip(self.stacks, found[count:], strict=True):
                torch._foreach_copy_(self._state(stack, "momentum"), list(pair))

    def _state(self, stack: _Stack, key: str) -> list[Tensor]:
        layer = stack.layers[0]
        return [self.state[layer.B][key], self.state[layer.A][key]]

    def _weights(self, stack: _Stack, rate: float, decay: float) -> Problem:
        """The sum that the factors follow, divided by s, and so the damping."""
        method, scale = self.method, stack.layers[0].scale
        P, Q = self._metrics(stack)
        taken = 1 - method.momentum_decay if method.momentum == "ema" else self.share
        terms = []
        if method.momentum != "none":
            terms.append((-rate * method.momentum_decay / scale, *self._state(stack, "momentum")))
        least = 0.0 if method.metric == "none" else LEAST_RHO
        U, V = (torch.stack(factors) for factors in zip(*((layer.B, layer.A) for layer in stack.layers), strict=True))
        return Problem(
            U,
            V.mT,
            stack,
            weight=-rate * taken / scale,
            rho=max(rate * method.damping, least) / scale,
            terms=terms,
            keep=1 - rate * decay,
            P=P,
            Q=Q,
            known=(stack.autograd("B") / scale, stack.autograd("A").mT / scale),
        )

    def _momentum(self, stack: _Stack) -> Problem:
        method = self.method
        taken = 1 - method.momentum_decay if method.momentum == "ema" else 1.0
        U, V = self._state(stack, "momentum")
        return Problem(U, V, stack, taken, method.momentum_damping, keep=method.momentum_decay, relative=True)

    def _metrics(self, stack: _Stack) -> tuple[Metric, Metric]:
        method = self.method
        if method.metric == "none":
            return Metric(), Metric()
        found = []
        for D, new in zip(self._state(stack, "metric"), stack.squares(method.metric), strict=True):
            D.copy_(torch.where(new.isfinite(), torch.lerp(new, D, method.metric_decay), D))  # NaN: not seen, or broken
            found.append(metric(D, method.metric_damping, method.power))
        return found[0], found[1]


@dataclass
class LoRSum(Method):
    learning_rate: float = field(default=0.2, metadata={"search": log_uniform(1e-3, 100.0)})
    """Of the step of the weight; without a metric near SGD's."""
    rank: int = field(default=16, metadata={"search": choice(4, 8, 16, 32, 64)})
    alpha: float = 16.0
    pairs: int = field(default=1, metadata={"search": choice(1, 2)})
    first: First = "U"
    damping: float = 1e-2
    anchor: Anchor = "fixed"
    momentum: Momentum = "ema"
    momentum_decay: float = 0.9
    momentum_rank: int = 0
    """0: the rank of the factors."""
    momentum_damping: float = 1e-3
    metric: MetricName = "kfac"
    power: float = 0.5
    metric_decay: float = 0.99
    metric_damping: float = 1e-5
    full_metric_up_to: int = 0
    gradient: Form = "auto"
    capture_gigabytes: float = 4.0
    as_released: bool = False
    targets: Targets = "all-linear"

    tiny: ClassVar[dict] = {"rank": 4, "alpha": 4.0}

    def attach(self, model: nn.Module, run: Run) -> None:
        self._check()
        counts = {"none": None, "kfac": "squares", "shampoo": "rows"}[self.metric]
        self._capture = Capture(self._keeps, self.capture_gigabytes * 1e9, counts, self.full_metric_up_to)
        scale = self.alpha / self.rank
        self._layers: list[CapturedLinear] = wrap(
            model, run, self.targets, lambda base: CapturedLinear(base, self.rank, scale, self._capture)
        )

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        run, share = self, 1.0
        if self.as_released:
            run, share = replace(self, pairs=0, momentum="none"), 1 - self.momentum_decay
        self._optimizer = _ProximalSubspace(self._layers, run, share)
        return self._optimizer

    def before_step(self, model: nn.Module, step: Step) -> None:
        self._capture.begin(self._layers, step.micro_batches)

    def after_backward(self, model: nn.Module, step: Step) -> None:
        self._optimizer.reduce = step.all_reduce_

    def clip(self, model: nn.Module, max_norm: float) -> Tensor:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self._optimizer.factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, self._optimizer.factor)
        return norm

    def merge(self, model: nn.Module) -> None:
        unwrap(model, CapturedLinear, lambda layer, weight: weight + layer.update())

    def _keeps(self, rows: int, out_size: int, in_size: int) -> bool:
        """Are pairs to be kept, and no dense G? By time, see above."""
        if self.gradient != "auto":
            return self.gradient == "factored"
        columns = self.rank * max(0, 2 * self.pairs - 1)
        if self.momentum != "none":
            columns += (self.momentum_rank or self.rank) * 2 * max(1, self.pairs)
        pairs = THIN * columns * rows * (out_size + in_size)
        if self.metric == "shampoo":
            pairs += 2 * rows**2 * (out_size + in_size)
        return pairs < rows * out_size * in_size + THIN * columns * out_size * in_size

    def _check(self) -> None:
        options = {"first": First, "anchor": Anchor, "momentum": Momentum, "metric": MetricName, "gradient": Form}
        for name, known in options.items():
            if getattr(self, name) not in get_args(known):
                choices = " or ".join(map(repr, get_args(known)))
                raise ValueError(f"LoRSum: {name} is {choices}, not {getattr(self, name)!r}")
        if self.pairs < 0 or self.damping < 0 or self.momentum_damping < 0:
            raise ValueError(
                f"LoRSum: pairs={self.pairs}, damping={self.damping} and momentum_damping={self.momentum_damping} "
                "must not be negative"
            )
        if not 0 < self.power <= 1:
            raise ValueError(f"LoRSum: power={self.power} must be above 0 and at most 1; for no metric, metric: none")
        if self.as_released and self.metric == "none":
            raise ValueError(
                "LoRSum: as released, the routine without a metric computes its factors and does not assign them, so "
                "nothing would train; set metric to kfac or shampoo, or leave as_released out"
            )
