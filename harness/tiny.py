"""Tiny random models of every architecture family, and a byte-level tokenizer, made in code: nothing is fetched.

They show that the machinery works on an architecture; they say nothing of how well a method learns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.shapes import ARCHITECTURE, configuration

if TYPE_CHECKING:
    import torch
    from torch import nn

PAD, START, END = "<pad>", "<s>", "</s>"  # ids 0, 1, 2; the 256 bytes follow
VOCABULARY = 3 + 256
POSITIONS = 2048
SIZES = {"hidden": 32, "layers": 2, "heads": 4, "ffn": 64}
# Wide enough that logits differ from token to token and a loss falls within a few steps, as 0.02 is not at this width.
INITIAL_STD = 0.15
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
OWN = {
    "llama": {"kv_heads": 2, "vocabulary": VOCABULARY, "max_position_embeddings": POSITIONS, **SPECIAL},
    "qwen2": {"kv_heads": 2, "vocabulary": VOCABULARY, "max_position_embeddings": POSITIONS, "tied": True, **SPECIAL},
    "bloom": {"ffn": 128, "vocabulary": VOCABULARY, **SPECIAL},
    "gpt2": {"vocabulary": VOCABULARY, "n_positions": POSITIONS, **SPECIAL},
    "bert": {"vocabulary": VOCABULARY, "max_position_embeddings": POSITIONS, "pad_token_id": 0},
    "roberta": {"vocabulary": VOCABULARY, "max_position_embeddings": POSITIONS + 1, "type_vocab_size": 1, **SPECIAL},
    "t5": {"vocabulary": VOCABULARY, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2},
    "vit": {"image_size": 32, "patch_size": 8},
}
FAMILIES = tuple(OWN)
DROPOUTS = {
    "bloom": ("hidden_dropout", "attention_dropout"),
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "roberta": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "t5": ("dropout_rate",),
}
"""Set to zero unless an override says otherwise, so that a tiny model is a function of its inputs alone."""


def tiny_model(
    family: str, seed: int = 0, dtype: torch.dtype | str = "float32", **overrides
) -> tuple[nn.Module, object | None]:
    """A two-layer model of width 32 with weights from ``seed`` alone, in eval mode, and its tokenizer (vit: None).

    ``overrides``: sizes (hidden, layers, heads, kv_heads, ffn, vocabulary) or fields of the family's configuration,
    such as ``num_labels``. Encoders and vit carry a classification head. Leaves torch's random state as it was.
    """
    import torch

    config = tiny_configuration(family, **overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(ARCHITECTURE[family]).from_config(config)
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return model.to(dtype).eval(), None if family == "vit" else byte_tokenizer(ARCHITECTURE[family])


def tiny_configuration(family: str, **overrides):
    """The family's configuration at tiny sizes."""
    std = {"initializer_factor": 1.0} if family == "t5" else {"initializer_range": INITIAL_STD}
    quiet = dict.fromkeys(DROPOUTS.get(family, ()), 0.0)
    return configuration(family, **{**SIZES, **std, **quiet, **OWN.get(family, {}), **overrides})


def model_class(architecture: str):
    """transformers' auto class for an architecture of the catalogue: causal, seq2seq, encoder or image."""
    import transformers

    return {
        "causal": transformers.AutoModelForCausalLM,
        "seq2seq": transformers.AutoModelForSeq2SeqLM,
        "encoder": transformers.AutoModelForSequenceClassification,
        "image": transformers.AutoModelForImageClassification,
    }[architecture]


def byte_tokenizer(architecture: str = "causal"):
    """One token a byte of UTF-8. Adds "</s>" for seq2seq, "<s>" and "</s>" (pairs too) for encoders, else nothing."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([PAD, START, END, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    single, pair = {
        "encoder": (f"{START} $A {END}", f"{START} $A {END} {END} $B {END}"),
        "seq2seq": (f"$A {END}", f"$A {END} $B {END}"),
    }.get(architecture, ("$A", "$A $B"))
    special = [(START, 1), (END, 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        model_max_length=POSITIONS - 2,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
