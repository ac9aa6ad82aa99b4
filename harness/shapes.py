"""A family's name and a few sizes -> the transformers configuration of that model, without fetching anything.

Sizes: hidden, layers, heads, kv_heads, ffn, vocabulary, tied; any other key is handed to the configuration as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.failures import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ARCHITECTURE = {
    "llama": "causal",
    "qwen2": "causal",
    "bloom": "causal",
    "gpt2": "causal",
    "bert": "encoder",
    "roberta": "encoder",
    "t5": "seq2seq",
    "vit": "image",
    "dinov2": "image",
}
_COMMON = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "ffn": "intermediate_size",
    "vocabulary": "vocab_size",
    "tied": "tie_word_embeddings",
}
_NAMES = {
    "bloom": _COMMON | {"layers": "n_layer", "heads": "n_head"},
    "gpt2": _COMMON | {"hidden": "n_embd", "layers": "n_layer", "heads": "n_head", "ffn": "n_inner"},
    "t5": _COMMON | {"hidden": "d_model", "layers": "num_layers", "heads": "num_heads", "ffn": "d_ff"},
}
_TIED = {"llama": False, "qwen2": False}  # where untied is the rule; the other families tie


def configuration(family: str, **sizes) -> PreTrainedConfig:
    """The configuration of a ``family`` (llama, qwen2, bloom, gpt2, bert, roberta, t5, vit, dinov2) at these sizes."""
    from transformers import AutoConfig

    if family not in ARCHITECTURE:
        raise UserError(f"no model family '{family}': there are {', '.join(ARCHITECTURE)}")
    sizes = {"tied": _TIED[family], **sizes} if family in _TIED else dict(sizes)
    if family == "bloom" and sizes.get("ffn", 4 * sizes["hidden"]) != 4 * sizes["hidden"]:
        raise UserError(f"BLOOM's ffn is four times its hidden size, {4 * sizes['hidden']}, not {sizes['ffn']}")
    if family == "bloom":
        sizes.pop("ffn", None)
    if family == "t5":
        sizes.setdefault("d_kv", sizes["hidden"] // sizes["heads"])
    names = _NAMES.get(family, _COMMON)
    return AutoConfig.for_model(family, **{names.get(key, key): value for key, value in sizes.items()})
