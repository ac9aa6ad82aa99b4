"""uRNN: turn the inputs of frozen weights by a structured unitary matrix.  Arjovsky et al., ICML 2016, arXiv 1511.06464.

    y = W0 M_0^T (M x) + b    M: (in, in) is U on pairs z_k = x_{2k} + i x_{2k+1}    n = in / 2, so ``in`` is even
    U = D3 R2 F^-1 D2 Pi R1 F D1    D_k = diag(e^{i phases_k})    R_j = I - 2 v_j v_j^H / |v_j|^2    Pi: a permutation

Phases start uniform in +-pi, v's parts in +-1, as published: U starts random, so M_0^T, the transpose of M at the
start, goes into the frozen weight once, and the model starts unchanged. A bfloat16 weight is rounded anew by that:
such a model starts as its base to a rounding of bfloat16 only. Merged: W0 M_0^T M, rows of the weight times M, which
is the adjoint U^H on each row. Pairing neighbours instead of halves is a fixed permutation, and free.

Trains 7 n numbers a matrix by AdamW, without decay. U moves in min(n^2, 7 (n - 1)) directions: the lengths and phases
of v1 and v2, two phases that neighbouring D share and one turn of both v in their plane change nothing. About
10 n log2 n + 50 n FLOPs a token, forward; complex64 (for bfloat16 activations too). methods/_unitary.py has the product.

``update="riemann_exp"``: a dense unitary U: (n, n) instead, from U = I (W0 stays), 2 n^2 numbers; plain descent on the
group, without momentum (arXiv 2507.18076, eqs 11 and 12; cf. Wisdom et al., NeurIPS 2016, arXiv 1611.00035):

    B = G U^H - U G^H    U <- exp(-lr B) U    G = dL/dRe U + i dL/dIm U    then U <- U (3 I - U^H U) / 2

The last is a Newton step to the nearest unitary matrix: rounding errors do not add up. It wants a far higher rate than
Adam's. The paper prints exp(+lr B), which climbs the loss by lr |B|^2 / 2: ``as_printed=True`` does that. The paper
also starts at the structured product, which a dense update leaves at once, and lets U replace W0: neither is done here.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from harness.contract import Method, Run, Step, log_uniform

from ._linear import Adapter, Targets, adapter_dtype, matrix, unwrap, wrap
from ._unitary import Derived, Unitary, derive, orthogonality_defect, pairs, turn, turn_back, unpaired

UPDATES = ("adam", "riemann_exp")
_BATCH = 1 << 22  # entries of dense U that are moved at once: bounds the exponential's memory


class _TurnedLinear(Adapter):
    def __init__(self, base: nn.Module):
        super().__init__(base)
        self.width, odd = divmod(self.in_size, 2)  # n
        if odd:
            raise ValueError(
                f"uRNN pairs inputs to complex numbers and needs an even input size; here it is {self.in_size}. "
                "Leave this module out of `targets`."
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.base(self.turn(x.flatten(0, -2)).view(x.shape))

    def like(self) -> dict:
        return {"dtype": adapter_dtype(self.base.weight), "device": self.base.weight.device}

    @torch.no_grad()
    def defect(self) -> Tensor:
        """max |M^T M - I|."""
        return orthogonality_defect(self.turn(torch.eye(self.in_size, **self.like())[::2]))


class _StructuredLinear(_TurnedLinear):
    def __init__(self, base: nn.Module):
        super().__init__(base)
        n, like = self.width, self.like()
        start = torch.empty(3, n).uniform_(-math.pi, math.pi), torch.empty(2, n, 2).uniform_(-1, 1), torch.randperm(n)
        phases, reflectors, order = start  # drawn on the CPU: the same on every device
        self.phases, self.reflectors = nn.Parameter(phases.to(**like)), nn.Parameter(reflectors.to(**like))
        self.register_buffer("order", order.to(like["device"]))
        self.unitary: Unitary | None = None  # this step's, on detached leaves
        with torch.no_grad():
            weight = matrix(base)
            weight.copy_(self.turn(weight.to(like["dtype"])))  # rows of W0 M_0^T

    def present(self) -> Unitary:
        return Unitary(*(part[0] for part in derive(self.phases[None], self.reflectors[None], self.order[None])))

    def turn(self, rows: Tensor) -> Tensor:
        return turn(rows, self.present() if self.unitary is None else self.unitary)

    def turn_back(self, rows: Tensor) -> Tensor:
        return turn_back(rows, self.present())

    def directions(self) -> int:
        return min(self.width**2, 7 * (self.width - 1))


class _DenseLinear(_TurnedLinear):
    def __init__(self, base: nn.Module):
        super().__init__(base)
        eye = torch.eye(self.width, **self.like())
        self.U = nn.Parameter(torch.stack([eye, torch.zeros_like(eye)], -1))  # real and imaginary parts

    def turn(self, rows: Tensor) -> Tensor:
        U = torch.view_as_complex(self.U)
        return unpaired(pairs(rows, self.U.dtype) @ U.mT).to(rows.dtype)

    def turn_back(self, rows: Tensor) -> Tensor:
        U = torch.view_as_complex(self.U)
        return unpaired(pairs(rows, self.U.dtype) @ U.conj()).to(rows.dtype)

    def directions(self) -> int:
        return self.width**2


class _RiemannianDescent(torch.optim.Optimizer):
    """U <- exp(-lr B) U for parameters (n, n, 2); ``ascend`` flips the sign."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, ascend: bool):
        super().__init__(parameters, {"lr": lr})
        self.sign = 1.0 if ascend else -1.0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for batch in _batches([p for p in group["params"] if p.grad is not None]):
                U = torch.view_as_complex(torch.stack(batch))
                half = torch.view_as_complex(torch.stack([p.grad for p in batch])) @ U.mH  # G U^H
                U = torch.linalg.matrix_exp(self.sign * group["lr"] * (half - half.mH)) @ U
                U = 1.5 * U - 0.5 * U @ (U.mH @ U)
                torch._foreach_copy_(batch, list(torch.view_as_real(U)))


def _batches(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters of one shape together, up to ``_BATCH`` entries."""
    shapes: dict[torch.Size, list[Tensor]] = {}
    for p in parameters:
        shapes.setdefault(p.shape, []).append(p)
    for alike in shapes.values():
        count = max(1, 2 * _BATCH // alike[0].numel())
        yield from (alike[i : i + count] for i in range(0, len(alike), count))


@dataclass
class URNN(Method):
    learning_rate: float = field(default=1e-3, metadata={"search": log_uniform(1e-4, 1e-1)})
    update: str = "adam"  # or "riemann_exp"
    as_printed: bool = False  # of riemann_exp: the paper's sign, which climbs the loss
    targets: Targets = "all-linear"

    def attach(self, model: nn.Module, run: Run) -> None:
        if self.update not in UPDATES:
            raise ValueError(f"update={self.update!r} is not one of {', '.join(UPDATES)}")
        if self.as_printed and self.update != "riemann_exp":
            raise ValueError("as_printed is the sign of update='riemann_exp'; it has no meaning for 'adam'")
        if self.weight_decay:
            raise ValueError("urnn has no weight_decay: phases and a unitary U have no origin to decay to; set it to 0")
        kind = _StructuredLinear if self.update == "adam" else _DenseLinear
        self._layers: list[_TurnedLinear] = wrap(model, run, self.targets, kind)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        if self.update == "adam":
            return super().optimizer(model)
        return _RiemannianDescent([layer.U for layer in self._layers], self.learning_rate, self.as_printed)

    def before_step(self, model: nn.Module, step: Step) -> None:
        if self.update == "adam":
            self._derived = Derived(self._layers)

    def after_backward(self, model: nn.Module, step: Step) -> None:
        if self.update == "adam":
            self._derived.collect(step.all_reduce_)

    def merge(self, model: nn.Module) -> None:
        unwrap(model, _TurnedLinear, lambda layer, weight: layer.turn_back(weight))

    def effective_parameters(self, model: nn.Module) -> int:
        return sum(layer.directions() for layer in self._layers)

    def facts(self, model: nn.Module) -> dict:
        return {"orthogonality_defect": max(float(layer.defect()) for layer in self._layers)}
