"""The linear modules of a transformer by the role they play, whatever its architecture calls them.

Roles: q, k, v, o (attention), gate, up, down (MLP), and all-linear, which is all of these. Heads, embeddings, poolers
and norms play none. A fused projection (BLOOM's and GPT-2's qkv) answers each role it holds and is found once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

ROLES = ("q", "k", "v", "o", "gate", "up", "down")
ALL_LINEAR = "all-linear"

# The end of a module's qualified name -> its roles. The longest end that fits decides: BERT's "output.dense" is the
# MLP's way down, but "attention.output.dense" is the attention's output.
PLAYED_BY = {
    # Llama, Qwen2, Mistral, Gemma, OLMo; ViT's and DINOv2's attention
    "q_proj": ("q",),
    "k_proj": ("k",),
    "v_proj": ("v",),
    "o_proj": ("o",),
    "mlp.gate_proj": ("gate",),
    "mlp.up_proj": ("up",),
    "mlp.down_proj": ("down",),
    "mlp.fc1": ("up",),
    "mlp.fc2": ("down",),
    # BLOOM
    "self_attention.query_key_value": ("q", "k", "v"),
    "self_attention.dense": ("o",),
    "mlp.dense_h_to_4h": ("up",),
    "mlp.dense_4h_to_h": ("down",),
    # GPT-2 (Conv1D)
    "attn.c_attn": ("q", "k", "v"),
    "attn.c_proj": ("o",),
    "mlp.c_fc": ("up",),
    "mlp.c_proj": ("down",),
    # BERT, RoBERTa
    "attention.self.query": ("q",),
    "attention.self.key": ("k",),
    "attention.self.value": ("v",),
    "attention.output.dense": ("o",),
    "intermediate.dense": ("up",),
    "output.dense": ("down",),
    # T5
    **{f"{attention}.{role}": (role,) for attention in ("SelfAttention", "EncDecAttention") for role in "qkvo"},
    "DenseReluDense.wi": ("up",),
    "DenseReluDense.wi_0": ("gate",),
    "DenseReluDense.wi_1": ("up",),
    "DenseReluDense.wo": ("down",),
}


def find_targets(model: nn.Module, roles: str | Sequence[str]) -> list[tuple[str, nn.Module]]:
    """(qualified name, ``nn.Linear`` or ``Conv1D``) of the modules that play ``roles``, in forward order.

    ``roles``: one name or several of q, k, v, o, gate, up, down, all-linear. A role that an architecture lacks (RoBERTa
    has no gate) adds nothing; ValueError if the name is no role, or if nothing at all is found.
    """
    wanted = {roles} if isinstance(roles, str) else set(roles)
    unknown = sorted(wanted - {*ROLES, ALL_LINEAR})
    if unknown:
        raise ValueError(f"no role {', '.join(unknown)}: targets are named {', '.join(ROLES)} or {ALL_LINEAR}")
    if ALL_LINEAR in wanted:
        wanted = set(ROLES)
    linear = [(name, module, _roles(name)) for name, module in model.named_modules() if _is_linear(module)]
    found = [(name, module) for name, module, played in linear if wanted & played]
    if not found:
        present = sorted({role for _, _, played in linear for role in played}, key=ROLES.index)
        raise ValueError(
            f"{type(model).__name__} has no linear module with the role {', '.join(sorted(wanted, key=ROLES.index))}; "
            f"it has {', '.join(present) or 'none that harness/roles.py knows: add its names there'}"
        )
    return found


def _roles(name: str) -> set[str]:
    """Roles of the module with this qualified name."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        played = PLAYED_BY.get(".".join(parts[-length:]))
        if played:
            return set(played)
    return set()


def _is_linear(module: nn.Module) -> bool:
    from torch import nn

    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
