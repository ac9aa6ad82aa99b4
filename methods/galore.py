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

``builder`` (methods/_projector.py) says how Q is made: "svd" is the published way. "gram" takes the eigenvectors of
G^T G (or G G^T), which are the same vectors to the root of the precision. The others approach the span: "block" by
``rank + oversampling`` vectors at once, from sums of the gradient's rows, which reads it ``passes`` times, two a round;
"power" one by one from the old basis.
The part of ||G||^2 that Q captures is on the curve of every refresh, for each matrix.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

from harness.contract import choice, log_uniform

from ._projected_adam import ProjectedMethod
from ._projector import Builder

Kind = Literal["svd", "gram", "block", "power"]


@dataclass
class GaLore(ProjectedMethod):
    learning_rate: float = field(default=1e-5, metadata={"search": log_uniform(1e-6, 1e-3)})
    rank: int = field(default=128, metadata={"search": choice(8, 32, 128)})
    scale: float = field(default=2.0, metadata={"search": choice(0.25, 1.0, 2.0, 4.0)})
    builder: Kind = "svd"
    oversampling: int = 32  # of "block"
    passes: int = 2  # of "block", over the gradient

    def projector(self) -> Builder:
        if self.builder not in get_args(Kind):
            raise ValueError(f"builder is one of {', '.join(get_args(Kind))}, not {self.builder!r}")
        if self.builder == "power":
            return Builder("sequential", momentum="none")
        return Builder(self.builder, oversampling=self.oversampling, passes=self.passes)
