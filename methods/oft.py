"""OFT: rotate the inputs of frozen weights by a block-diagonal matrix.  Qiu et al., NeurIPS 2023, arXiv 2306.07280.

    y = W0 (R^T x) + b   R = blockdiag(R_1 ... R_k): (in, in)   k = in / block
    R_j = (I - S)(I + S)^-1: (block, block)   S = (Q_j - Q_j^T) / 2           (Cayley)

The products are in methods/_butterfly.py: x turns, not W0, and all layers' R are derived once a step. Q starts at
zero: R = I. Merged: W0 R^T. Q trains, in * block numbers a matrix; the skew part alone acts, so degrees of freedom are
in * (block - 1) / 2. A token costs 2 in block FLOPs, forward.
The paper writes Cayley as (I + S)(I - S)^-1; PEFT's exact OFT is as here and its Neumann OFT is as in the paper, so
that the one rotates by the inverse of the other. Here both have one sign. Of the paper's variants, neither the radius
constraint (COFT), nor blocks that share one R, nor a trained magnitude is here.

``cayley="neumann"``: the inverse as a truncated series (OFTv2, Qiu et al., 2025, arXiv 2506.19847), R with
``neumann_terms`` powers of S; orthogonal only while ||S|| is small, so each step's defect max |R^T R - I| is logged.
"""

from dataclasses import dataclass, field

from torch import nn

from harness.contract import Run, choice, log_uniform

from ._butterfly import RotatedLinear, RotationMethod, Rotations, butterfly_factors, cayley_blocks
from ._linear import Targets, matrix, wrap


@dataclass
class OFT(RotationMethod):
    learning_rate: float = field(default=1e-3, metadata={"search": log_uniform(1e-5, 1e-2)})
    block_size: int = field(default=32, metadata={"search": choice(8, 16, 32, 64)})
    targets: Targets = "all-linear"

    def attach(self, model: nn.Module, run: Run) -> None:
        self._blocks = cayley_blocks(self.cayley, self.neumann_terms)
        self._rotations = Rotations(self._blocks)
        self._layers = wrap(model, run, self.targets, self._rotated)

    def _rotated(self, base: nn.Module) -> RotatedLinear:
        in_size = matrix(base).shape[1]
        if self.block_size < 2 or not butterfly_factors(in_size, 1, self.block_size):
            raise ValueError(
                f"OFT needs a block_size of at least 2 that divides the input size; {self.block_size} does not "
                f"divide {in_size}"
            )
        return RotatedLinear(base, 1, self.block_size, self._blocks)
