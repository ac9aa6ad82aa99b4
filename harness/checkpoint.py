"""What a training leaves on disk: a checkpoint to go on from, and the delta to predict with.

State is parameters that train (or have trained), persistent buffers, and optimizer state; nothing else. Seeds make the
rest: a resumed training is the same to the last bit.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.loop import State, Trainer


def persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that belong to the state, by name."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {name: value for name, value in model.state_dict().items() if name not in parameters}


def save_checkpoint(path: Path, trainer: Trainer, key: str, extra: dict) -> None:
    """Write a checkpoint under a temporary name and rename it: an interrupted write leaves the one before."""
    parameters = dict(trainer.model.named_parameters())
    content = {
        "key": key,
        "state": dataclasses.asdict(trainer.state),
        "parameters": {name: parameters[name].detach() for name in trainer.state.trained},
        "buffers": persistent_buffers(trainer.model),
        "trains": [name for name, p in parameters.items() if p.requires_grad],
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        **extra,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    try:
        torch.save(content, temporary)
    except RuntimeError as error:  # torch hides a full disk in a RuntimeError
        temporary.unlink(missing_ok=True)
        if "write" in str(error) or "iostream" in str(error):
            raise OSError(28, f"no space left to write the checkpoint: {error}", str(path)) from None
        raise
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_checkpoint(path: Path, trainer: Trainer, key: str) -> dict | None:
    """Put a checkpoint of this very training back into the trainer; None when there is none."""
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location=trainer.device, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:  # as a power cut leaves it
        print(f"{path} cannot be read ({str(error).splitlines()[0][:200]}): starting anew", flush=True)
        return None
    if content["key"] != key:
        return None
    fill(trainer.model, {**content["parameters"], **content["buffers"]})
    trains = set(content["trains"])
    for name, parameter in trainer.model.named_parameters():
        parameter.requires_grad_(name in trains)
    trainer.state = State(**content["state"])
    trainer.build_optimizers()
    for optimizer, state in zip(trainer.optimizers, content["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    return content


def fill(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy tensors into the parameters and buffers of these names. Raises KeyError for a name that is not there."""
    own = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)


def save_delta(path: Path, trainer: Trainer, base: Path | None) -> None:
    """Everything in which the trained model differs from the base: what trained, and buffers the method added."""
    tensors = {name: p for name, p in trainer.model.named_parameters() if name in set(trainer.state.trained)}
    original = _base_tensors(base)
    tensors |= {name: value for name, value in persistent_buffers(trainer.model).items() if name not in original}
    changed = {
        name: value.detach().cpu().clone().contiguous()
        for name, value in tensors.items()
        if name not in original or not _equal(value, original[name])
    }
    temporary = path.with_suffix(".part")
    save_file(changed, str(temporary))
    os.replace(temporary, path)


def _base_tensors(folder: Path | None) -> dict[str, Tensor]:
    """The base checkpoint's tensors, memory-mapped; empty where it is not one plain file."""
    file = folder / "model.safetensors" if folder else None
    return load_file(str(file)) if file and file.is_file() else {}


def _equal(value: Tensor, original: Tensor) -> bool:
    value = value.detach().cpu()
    return value.shape == original.shape and torch.equal(value, original.to(value.dtype))
