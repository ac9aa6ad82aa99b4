"""Notices what code leaves behind in the process: settings of torch, random generators, hooks, connections."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
from torch.nn.modules import module as torch_module


@contextlib.contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Raises AssertionError at the end of the block naming what changed, ConnectionError on any connection."""
    before = _state()
    with mock.patch.object(socket.socket, "connect", _refuse):
        yield
    after = _state()
    changed = [name for name in before if before[name] != after[name]]
    if changed:
        raise AssertionError(f"changed and not put back: {', '.join(changed)}")


def _state() -> dict:
    """torch's own generator is left out: the harness seeds it around every hook."""
    hooks = (
        "_global_forward_hooks",
        "_global_forward_pre_hooks",
        "_global_backward_hooks",
        "_global_backward_pre_hooks",
    )
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "number of threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "random's generator": random.getstate(),
        "numpy's generator": str(np.random.get_state()),
        "global module hooks": [len(getattr(torch_module, name)) for name in hooks],
    }


def _refuse(self: socket.socket, address: object) -> None:
    raise ConnectionError(f"opened a connection to {address}; only the stage `prepare` may use a network")
