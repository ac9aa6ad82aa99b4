"""DoRA: LoRA for a weight's directions, and a trained length for each of its rows.  Liu et al., ICML 2024, arXiv 2402.09353.

    y = g * (W0 x + s B A x) + b    g = m / n: (out,)    n_i = ||row i of W0 + s B A||, no gradient    s = alpha / rank

m: (out,) starts at the lengths of W0's rows, B at zero, so g = 1 and the model starts unchanged. The bias is not scaled.
Gradients: dm = sum over tokens of dL/dy * (W0 x + s B A x) / n;  x, A and B get LoRA's, of g * dL/dy.  Merged:
diag(g) (W0 + s B A).  Trains rank * (in + out) + out numbers a matrix; 2 rank (in + out) + out FLOPs a token, forward.

The paper says "column-wise", of weights stored as (in, out): one length an output, a row here. Its section 4.3 takes n
as a constant in the gradient, as the code does. With dropout the code drops inputs of the update and of (g - 1) W0 x but
not of W0 x; so do we: y = W0 (x - x') + b + g * (W0 + s B A) x' with x' = dropped x, two products of the base, not one.
m has no weight decay, which would shrink every output.

n is constant within a step, so ``before_step`` derives all layers' n at once, without forming B A:
n_i^2 = ||w_i||^2 + 2 s <(W0 A^T)_i, b_i> + s^2 b_i (A A^T) b_i^T, in float32 or better, with ||w_i||^2 kept.
That is 2 rank in out + 2 rank^2 (in + out) FLOPs a matrix and step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from harness.contract import Method, Run, Step, choice, log_uniform

from ._linear import Targets, matrix, unwrap, wrap
from ._low_rank import LowRankLinear, add_low_rank, base_output


class _DoRALinear(LowRankLinear):
    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float):
        super().__init__(base, rank, scale, dropout)
        self.squares: Tensor | None = None  # (out,): ||w_i||^2, derived when first asked for
        self.lengths: Tensor | None = None  # (out,): this step's n
        self.magnitude = nn.Parameter(_squares(self).sqrt())

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)  # (tokens, in)
        dropped = self.dropped(rows)
        lengths = _lengths([self])[0] if self.lengths is None else self.lengths
        y = add_low_rank(dropped @ matrix(self.base).t(), dropped, self.A, self.B, self.scale)
        y = _Scaled.apply(y, self.magnitude, lengths, self.bias if dropped is rows else None)
        if dropped is not rows:
            y = y + base_output(self.base, rows - dropped)
        return y.view(*x.shape[:-1], self.out_size)


class _Scaled(torch.autograd.Function):
    """y m / n + b: two passes over y each way, and y is all that is kept. n and b get no gradient."""

    @staticmethod
    def forward(ctx, y: Tensor, magnitude: Tensor, lengths: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(y, magnitude, lengths)
        scaled = torch.mul(y, magnitude / lengths, out=torch.empty_like(y))
        return scaled if bias is None else scaled.add_(bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple:
        y, magnitude, lengths = ctx.saved_tensors
        product = gradient * y
        dm = product.sum(0, dtype=magnitude.dtype) / lengths
        return torch.mul(gradient, magnitude / lengths, out=product), dm, None, None


def _squares(layer: _DoRALinear) -> Tensor:
    return torch.linalg.vector_norm(matrix(layer.base), dim=1, dtype=layer.A.dtype).square()


@torch.no_grad()
def _lengths(layers: Sequence[_DoRALinear]) -> Sequence[Tensor]:
    """Each layer's n: with M = 2 W0 A^T + s B (A A^T), n_i^2 = ||w_i||^2 + s <M_i, b_i>."""
    for layer in layers:
        if layer.squares is None:
            layer.squares = _squares(layer)
    squares, B = torch.cat([layer.squares for layer in layers]), torch.cat([layer.B for layer in layers])
    sizes, M = [layer.out_size for layer in layers], torch.empty_like(B)
    with torch.autocast(B.device.type, enabled=False):
        for layer, rows in zip(layers, M.split(sizes), strict=True):
            A = layer.A
            torch.mm(matrix(layer.base).to(A.dtype), A.t(), out=rows)
            rows.addmm_(layer.B, A @ A.t(), beta=2, alpha=layer.scale)
    lengths = squares + layers[0].scale * M.mul_(B).sum(1)
    # Below eps ||w||^2 the sum is rounding; a row of zeros has length zero until B moves.
    limits = torch.finfo(lengths.dtype)
    return torch.maximum(lengths, limits.eps * squares).clamp_min_(limits.tiny).sqrt_().split(sizes)


@dataclass
class DoRA(Method):
    learning_rate: float = field(default=3e-3, metadata={"search": log_uniform(1e-5, 1e-2)})
    rank: int = field(default=16, metadata={"search": choice(4, 8, 16, 32, 64)})
    alpha: float = 32.0
    dropout: float = 0.0
    targets: Targets = "all-linear"

    def attach(self, model: nn.Module, run: Run) -> None:
        scale = self.alpha / self.rank
        self._layers = wrap(model, run, self.targets, lambda base: _DoRALinear(base, self.rank, scale, self.dropout))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        magnitudes = [layer.magnitude for layer in self._layers]
        lengths = {id(m) for m in magnitudes}
        factors = [p for p in model.parameters() if p.requires_grad and id(p) not in lengths]
        groups = [{"params": factors}, {"params": magnitudes, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)

    def before_step(self, model: nn.Module, step: Step) -> None:
        for layer, lengths in zip(self._layers, _lengths(self._layers), strict=True):
            layer.lengths = lengths

    def after_backward(self, model: nn.Module, step: Step) -> None:
        for layer in self._layers:
            layer.lengths = None  # A and B are about to move: until the next before_step a forward derives n itself

    def merge(self, model: nn.Module) -> None:
        unwrap(model, _DoRALinear, _merged)


def _merged(layer: _DoRALinear, weight: Tensor) -> Tensor:
    gains = layer.magnitude / _lengths([layer])[0]
    return gains.unsqueeze(1) * (weight + layer.update())
