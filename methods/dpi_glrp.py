"""DPI-GLRP: gradient low-rank projection by dynamic power iteration.  Kuang et al., J. Front. Comput. Sci. Tech., 2026.

Our reading of an abstract: there is neither a full text nor code at hand. The abstract fixes full-parameter training
with projected gradients, a gradient as a sum of rank-one matrices whose vectors power iteration finds one at a time, in
place of GaLore's SVD, and iteration parameters that adapt. Which ones, when to stop, and all settings are ours. The
nearest published construction is Austin, Pollock and Zhu, 2024, arXiv 2403.09618: momentum from the ratio of residuals.

Training is GaLore's (arXiv 2403.03507; methods/_projected_adam.py): Adam on R = G Q^T or Q G, Q made anew every
``refresh_every`` steps. Q's vectors are eigenvectors of C = G^T G (or G G^T, the smaller), formed once a refresh. For
each i, from the old basis's i-th vector (at first a random one), with P = I - sum_{j<i} q_j q_j^T:

    v = P C x    lambda = x^T v    r_k = ||v - lambda x||    q = min(r_k / r_{k-1}, 1)
    beta = (lambda 2 q / (1 + q^2))^2 / 4, and 0 for k < 2
    u = P (v - beta / h x_old)    x_old, h, x <- x, ||u||, u / ||u||

Done when r_k <= tolerance lambda, after ``max_iterations``, or when lambda <= precision * lambda_1: a gradient of fewer
directions than ``rank`` (few supervised tokens) has no more, and x completes the basis. (Without that, what is left of
the iteration is rounding errors, which repeat earlier vectors.) ``momentum``: "dynamic" as above; "none" is plain power
iteration; "static" has beta = lambda_{i+1}^2 / 4, estimated by the next start vector, for comparison.
Power iteration needs about 1 / gap products a vector, with either momentum 1 / sqrt(gap), the gap between eigenvalues,
which are squared singular values.

``backend="sequential"``: that, for all matrices of a shape at once, each at its own pace. ``backend="block"``: all
``rank + oversampling`` vectors at once, from sums of G's rows, ``passes`` over G (methods/_projector.py): the gap within
the block does not matter then. Only the span matters for training; it is cheaper by a factor of five or more, and no
longer what the abstract says. The record names the backend, products, passes and share captured.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import nn

from harness.contract import choice, log_uniform

from ._projected_adam import ProjectedMethod
from ._projector import Builder, Momentum

Backend = Literal["sequential", "block"]


@dataclass
class DPIGLRP(ProjectedMethod):
    learning_rate: float = field(default=1e-5, metadata={"search": log_uniform(1e-6, 1e-3)})
    rank: int = field(default=128, metadata={"search": choice(8, 32, 128)})  # ours
    scale: float = field(default=2.0, metadata={"search": choice(0.25, 1.0, 2.0, 4.0)})
    refresh_every: int = 200  # ours
    backend: Backend = "sequential"
    momentum: Momentum = "dynamic"  # of "sequential"
    tolerance: float = 5e-2  # of "sequential": residual over eigenvalue; ours (methods/_projector.py)
    max_iterations: int = 100  # of "sequential", for a vector
    oversampling: int = 32  # of "block"
    passes: int = 2  # of "block", over the gradient

    def projector(self) -> Builder:
        if self.backend not in get_args(Backend):
            raise ValueError(f"backend is one of {', '.join(get_args(Backend))}, not {self.backend!r}")
        block = {"oversampling": self.oversampling, "passes": self.passes}
        search = {"tolerance": self.tolerance, "max_iterations": self.max_iterations}
        return Builder(self.backend, momentum=self.momentum, **block, **search)

    def facts(self, model: nn.Module) -> dict[str, Any]:
        return {
            "reading": "ours, of the abstract alone; nearest published construction: arXiv 2403.09618",
            **super().facts(model),
        }
