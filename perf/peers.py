"""Optimizers of other libraries as methods, to run beside ours in the same loop. Yardsticks: the product imports none.

``pip install -e '.[perf]'`` brings galore-torch (Zhao et al., arXiv 2403.03507, the authors' code). Its projector is made in
the optimizer's first call and refreshed by SVD when the count of calls is a multiple of its gap.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch
from torch import nn

from harness.contract import Method, Run

NEVER = 1 << 62


@dataclass
class GaLoreTorch(Method):
    """galore-torch's AdamW on all linear weights of attention and MLP; other weights take the same AdamW."""

    rank: int = 128
    scale: float = 2.0

    @staticmethod
    def missing() -> str:
        """What to install, where the library is not there; else nothing."""
        found = importlib.util.find_spec("galore_torch")
        return "" if found else "galore-torch is not installed: pip install galore-torch==1.0"

    def attach(self, model: nn.Module, run: Run) -> None:
        model.requires_grad_(True)
        self._matrices = [module.weight for _, module in run.find(model, "all-linear")]

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        from galore_torch import GaLoreAdamW

        projected = {id(p) for p in self._matrices}
        others = [p for p in model.parameters() if id(p) not in projected]
        galore = {"rank": self.rank, "update_proj_gap": NEVER, "scale": self.scale, "proj_type": "std"}
        groups = [{"params": self._matrices, **galore}, {"params": others}]
        self._optimizer = GaLoreAdamW(groups, lr=self.learning_rate, weight_decay=0.0, no_deprecation_warning=True)
        return self._optimizer

    def refresh_next(self, on: bool) -> None:
        """Whether coming steps refresh every projector."""
        for state in self._optimizer.state.values():
            if "projector" in state:
                state["projector"].update_proj_gap = 1 if on else NEVER
