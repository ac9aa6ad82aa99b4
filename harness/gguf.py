"""GGUF -> a plain HF folder: dequantise to float32 and save, so that later loads take a fraction of a second.

``from_pretrained(gguf_file=...)`` takes half a minute and its model refuses to be saved ("quantized with gguf"), so its
state is put into a fresh model without ``quantization_config``. The weights are then float32 numbers, but not those of
the checkpoint before quantisation: the catalogue's label must say so.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from harness.models import quiet


def convert(file: Path, folder: Path) -> None:
    """Write config, model.safetensors (float32) and tokenizer of the GGUF ``file`` into ``folder``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    settings = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(key, None)
    with torch.device("meta"):
        plain = type(model)(type(model.config).from_dict(settings))
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    with quiet():
        plain.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    if _splits_digits(file):
        _split_digits(tokenizer)
    for key in ("local_files_only", "is_local"):  # how it was loaded here, not what it is
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(folder)


def _splits_digits(file: Path) -> bool:
    """Whether the GGUF names a pre-tokenizer that puts every digit apart, which transformers does not look at.

    Looks for the key's own bytes (length, key, type 8 for text, length, text): reading all fields takes seconds.
    """
    key = b"tokenizer.ggml.pre"
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<I", 8)
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(entry)
        text = struct.pack("<Q", len(b"smollm")) + b"smollm"
        value = start + len(entry)
        return start >= 0 and content[value : value + len(text)] == text


def _split_digits(tokenizer) -> None:
    """Without it a run of spaces before a digit gets other tokens than the model was trained with."""
    from tokenizers import pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
