"""Optimizers of other libraries as methods, to run beside ours in the same loop. Yardsticks: the product imports none.

``pip install -e '.[perf]'`` brings them, each its authors' code: galore-torch (Zhao et al., arXiv 2403.03507), apollo-torch
(Zhu et al., arXiv 2412.05270), fira (Chen et al., arXiv 2410.01623). A projector is made in the optimizer's first call and
refreshed, by SVD or for APOLLO from random numbers, when the count of calls is a multiple of its gap.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from harness.contract import Method, Run

NEVER = 1 << 62


@dataclass
class _Projected(Method):
    """Another library's AdamW on all linear weights of attention and MLP; other weights take the same AdamW."""

    rank: int = 128
    scale: float = 2.0
    library: ClassVar[str]  # as pip calls it
    module: ClassVar[str]
    optimizer_class: ClassVar[str]

    @classmethod
    def missing(cls) -> str:
        """What to install, where the library is not there; else nothing."""
        found = importlib.util.find_spec(cls.module)
        return "" if found else f"{cls.library.split('==')[0]} is not installed: pip install {cls.library}"

    def attach(self, model: nn.Module, run: Run) -> None:
        model.requires_grad_(True)
        self._matrices = [module.weight for _, module in run.find(model, "all-linear")]

    def group(self) -> dict[str, object]:
        """The library's settings for projected weights, but for rank, gap and side."""
        raise NotImplementedError

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        make = getattr(importlib.import_module(self.module), self.optimizer_class)
        projected = {id(p) for p in self._matrices}
        others = [p for p in model.parameters() if id(p) not in projected]
        settings = {"rank": self.rank, "update_proj_gap": NEVER, "proj_type": "std", **self.group()}
        groups = [{"params": self._matrices, **settings}, {"params": others}]
        self._optimizer = make(groups, lr=self.learning_rate, weight_decay=0.0, no_deprecation_warning=True)
        return self._optimizer

    def refresh_next(self, on: bool) -> None:
        """Whether coming steps refresh every projector."""
        for state in self._optimizer.state.values():
            if "projector" in state:
                state["projector"].update_proj_gap = 1 if on else NEVER


class GaLoreTorch(_Projected):
    library, module, optimizer_class = "galore-torch==1.0", "galore_torch", "GaLoreAdamW"

    def group(self) -> dict[str, object]:
        return {"scale": self.scale}


class Apollo(_Projected):
    """Gradients of the weights' own size, scaled channel by channel as Adam in a random subspace would scale them."""

    library, module, optimizer_class = "apollo-torch==1.0.3", "apollo_torch", "APOLLOAdamW"

    def group(self) -> dict[str, object]:
        return {"scale": self.scale, "scale_type": "channel", "proj": "random"}


class Fira(_Projected):
    """GaLore's step, and what the subspace leaves of the gradient, scaled column by column."""

    library, module, optimizer_class = "fira==1.0.2", "fira", "FiraAdamW"

    def group(self) -> dict[str, object]:
        return {"alpha": self.scale}
