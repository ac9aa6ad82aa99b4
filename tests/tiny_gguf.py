"""A tiny Llama as a GGUF file, converted back: weights, tokenizer and config must be those that went in."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.gguf import convert
from harness.tiny import VOCABULARY, byte_tokenizer, tiny_model

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write(path: Path, model) -> None:
    """The model and its byte tokenizer as GGUF (which stores q and k with the halves of each head interleaved)."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = byte_tokenizer().get_vocab()
    tokens = [*sorted(vocabulary, key=vocabulary.get), "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if number < 3 else 1 for number in range(len(tokens))])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            weight = weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        stem = name.removesuffix(".weight")
        layer = stem.split(".")[2] if ".layers." in stem else None
        stem = NAMES[stem.split(".", 3)[3]] if layer else NAMES[stem]
        writer.add_tensor(f"blk.{layer}.{stem}.weight" if layer else f"{stem}.weight", weight.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check(folder: Path) -> None:
    path, out = folder / "model.gguf", folder / "out"
    model, _ = tiny_model("llama", tied=True, vocabulary=VOCABULARY + 1)
    write(path, model)
    convert(path, out)
    settings = json.loads((out / "config.json").read_text())
    assert not {"quantization_config", "_name_or_path"} & set(settings), settings
    back = AutoModelForCausalLM.from_pretrained(out)
    assert back.dtype == torch.float32 and back.lm_head.weight is back.model.embed_tokens.weight
    state = back.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.decode(tokenizer("Tuning  42")["input_ids"]) == "Tuning  42"
    assert len(tokenizer("abc")["input_ids"]) == 2
    splitter = tokenizer.backend_tokenizer.pre_tokenizer
    assert [piece for piece, _ in splitter.pre_tokenize_str("x  42")] == ["x", "ĠĠ", "4", "2"]
    assert not (set(json.loads((out / "tokenizer_config.json").read_text())) & {"local_files_only", "is_local"})
