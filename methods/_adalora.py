"""AdaLoRA's rank budget around PEFT's implementation.  Zhang et al., ICLR 2023, arXiv 2303.10512.

W = W0 + s B diag(E) A: entries of E with the least smoothed |parameter * gradient| are set to zero until the budget of
the step is met. PEFT keeps these scores in dictionaries outside the model; here they are buffers, so that a resumed
training goes on with them: ``importance`` and ``uncertainty`` of A, B and E, and ``kept``, the ranks still in use.
"""

import torch
from torch import Tensor, nn


class Budget:
    """The allocator of a model that PEFT has turned into AdaLoRA, its state in the model's buffers."""

    def __init__(self, model: nn.Module, tuner: nn.Module):
        self.tuner, self.allocator = tuner, tuner.rankallocator
        self.config = tuner.peft_config[tuner.trainable_adapter_name]
        if self.config.init_r <= self.config.target_r:
            raise ValueError(f"AdaLoRA needs init_r > target_r, not {self.config.init_r} and {self.config.target_r}")
        self.factors: dict[str, nn.Parameter] = {}
        self.importance: dict[str, Tensor] = {}
        self.uncertainty: dict[str, Tensor] = {}
        self.kept: dict[str, Tensor] = {}
        for layer_name, layer in model.named_modules():
            if not hasattr(layer, "lora_E"):
                continue
            layer.ranknum.requires_grad_(False)  # a constant, which PEFT leaves trainable on the meta device
            for kind in ("lora_A", "lora_B", "lora_E"):
                for adapter, parameter in getattr(layer, kind).items():
                    name = f"{layer_name}.{kind}.{adapter}"
                    self.factors[name] = parameter
                    self.importance[name] = _buffer(layer, f"importance_{kind}", parameter, 0)
                    self.uncertainty[name] = _buffer(layer, f"uncertainty_{kind}", parameter, 0)
                    if kind == "lora_E":
                        self.kept[name] = _buffer(layer, "kept", parameter[:, 0].bool(), True)

    def penalty(self) -> Tensor:
        """weight * mean over all A and B of the Frobenius norm of A A^T - I, or B^T B - I."""
        terms = []
        for name, parameter in self.factors.items():
            if "lora_E" not in name:
                gram = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
                eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
                terms.append(torch.linalg.matrix_norm(gram - eye))
        return self.config.orth_reg_weight * torch.stack(terms).mean()

    @torch.no_grad()
    def allocate(self, step: int) -> None:
        """After optimizer step number ``step`` (from 1): score, and drop ranks as the schedule says."""
        final = self.config.total_step - self.config.tfinal
        self.allocator.ipt = dict.fromkeys(self.importance)  # present, so PEFT does not start the averages anew
        self.allocator.exp_avg_ipt, self.allocator.exp_avg_unc = dict(self.importance), dict(self.uncertainty)
        if step > final:
            self.config.rank_pattern = {name: kept.tolist() for name, kept in self.kept.items()}
        self.tuner.update_and_allocate(step)
        for name, value in self.allocator.exp_avg_ipt.items():
            self.importance[name].copy_(value)
            self.uncertainty[name].copy_(self.allocator.exp_avg_unc[name])
        if step == final:
            for name, kept in self.config.rank_pattern.items():
                self.kept[name].copy_(torch.tensor(kept, device=self.kept[name].device))


def _buffer(layer: nn.Module, name: str, like: Tensor, value: float) -> Tensor:
    layer.register_buffer(name, torch.full_like(like, value, requires_grad=False))
    return layer.get_buffer(name)
