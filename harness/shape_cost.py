"""What a method costs by its shapes alone: parameters, FLOPs and bytes on a model without weights, in a second.

The method attaches to a model on the meta device; then its tensors become fake ones (torch's FakeTensorMode: a shape and
a type, no memory) that run a step of the real code under a FLOP counter. Every block of a transformer does the same work
on every row, so that counts of one and two blocks on one and two rows give those of all blocks, and tell what a token
costs from what a step costs however many tokens it has.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from harness import assets
from harness.contract import Method, Run, Step
from harness.plugins import load_plugin
from harness.roles import find_targets
from harness.shapes import configuration
from harness.tiny import SIZES, model_class, tiny_configuration

ROWS, LENGTH = 4, 128
GRID = ((1, 1), (1, 2), (2, 1), (2, 2))  # (blocks, rows)
STANDARD = "smollm2-135m"


@dataclass
class Cost:
    """FLOPs and bytes of a method's defaults; ``forward``, ``training`` and ``kept`` are per token."""

    model: str
    total: int  # parameters of the model without the method
    base_forward: float  # of the model without the method
    trained: int
    effective: int
    tensors: dict[str, int]  # last parts of trained parameters' names, and how many of each
    added: int  # bytes of weights and buffers
    gradients: int
    optimizer: str
    state: int
    forward: float
    training: float
    once: int  # FLOPs of a step that do not depend on its tokens
    kept: float
    kept_once: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Place:
    """A model of which any number of blocks can be made."""

    label: str
    layers: int
    configuration: Callable[[int], object]  # of so many blocks
    fields: tuple[tuple[str, Any], ...] = ()  # of the method

    def empty(self, layers: int) -> nn.Module:
        with torch.device("meta"):
            return model_class("causal").from_config(self.configuration(layers)).requires_grad_(False).train()

    def attached(self, name: str, layers: int) -> tuple[nn.Module, Method]:
        model, method = self.empty(layers), load_plugin("methods", name, **dict(self.fields))
        method.attach(model, Run(1000, torch.float32, find_targets))
        return model, method


def cost(name: str) -> Cost:
    """Of the method's defaults on SmolLM2-135M; a method that refuses it is counted on the tiny Llama, with a note why."""
    standard = _standard()
    try:
        standard.attached(name, 1)
    except ValueError as error:
        return _cost(name, _tiny(name), f"Not on {standard.label}: {error}")
    return _cost(name, standard)


@functools.cache
def _standard() -> _Place:
    entry = assets.entry(STANDARD)[1]
    shape, family = entry["shape"], entry["family"]
    return _Place(
        "SmolLM2-135M's shapes", shape["layers"], lambda layers: configuration(family, **{**shape, "layers": layers})
    )


def _tiny(name: str) -> _Place:
    fields = getattr(type(load_plugin("methods", name)), "tiny", {})
    given = ", ".join(f"{key} {value}" for key, value in fields.items())
    label = "the tiny Llama" + (f" with {given}" if given else "")
    make = functools.partial(tiny_configuration, "llama")
    return _Place(label, SIZES["layers"], lambda layers: make(layers=layers), tuple(fields.items()))


def _cost(name: str, place: _Place, *notes: str) -> Cost:
    dry = {at: _dry_step(place, name, *at) for at in GRID}

    def whole(number: str) -> tuple[int, int]:
        return _whole(place.layers, {at: getattr(step, number) for at, step in dry.items()})

    (forward, _), (training, once), (kept, kept_once) = whole("forward"), whole("training"), whole("kept")
    total, size, base_forward = _bare(place)
    names = dry[1, 1].tensors
    return Cost(
        place.label,
        total=total,
        base_forward=base_forward / LENGTH,
        trained=whole("trained")[1],
        effective=whole("effective")[1],
        tensors={n: _at(place.layers, {i: dry[i, 1].tensors[n] for i in (1, 2)}) for n in names},
        added=whole("size")[1] - size,
        gradients=whole("gradients")[1],
        optimizer=dry[1, 1].optimizer,
        state=whole("state")[1],
        forward=forward / LENGTH,
        training=training / LENGTH,
        once=once,
        kept=kept / LENGTH,
        kept_once=kept_once,
        notes=(*notes, *dry[1, 1].notes),
    )


@functools.cache
def _bare(place: _Place) -> tuple[int, int, int]:
    """(parameters, bytes, FLOPs of a row's forward pass) of the model without a method."""
    counts, numbers, sizes = {}, {}, {}
    for layers, rows in GRID:
        model = place.empty(layers)
        numbers[layers] = sum(p.numel() for p in model.parameters())
        sizes[layers] = bytes_of([*model.parameters(), *model.buffers()])
        with FakeTensorMode(), Flops() as flops:
            make_fake(model)
            _body(model, rows)
        counts[layers, rows] = flops.count
    return _at(place.layers, numbers), _at(place.layers, sizes), _whole(place.layers, counts)[0]


def _whole(layers: int, counts: dict[tuple[int, int], int]) -> tuple[int, int]:
    """(a row's, a step's) part of a number, in the model of so many blocks, from its values on ``GRID``."""
    slopes = {n: counts[n, 2] - counts[n, 1] for n in (1, 2)}
    return _at(layers, slopes), _at(layers, {n: counts[n, 1] - slopes[n] for n in (1, 2)})


def _at(layers: int, values: dict[int, int]) -> int:
    """The value for so many blocks, from those for one and two."""
    return values[1] + (layers - 1) * (values[2] - values[1])


# --------------------------------------------------------------------------- a step without numbers


@dataclass
class _Dry:
    """One step: FLOPs of its forward pass and of all but the optimizer, bytes kept for the backward pass; and the method's
    counts on that model."""

    forward: int
    training: int
    kept: int
    trained: int
    effective: int
    tensors: Counter
    size: int  # bytes of parameters and buffers
    gradients: int
    optimizer: str
    state: int
    notes: list[str]


def _dry_step(place: _Place, name: str, layers: int, rows: int) -> _Dry:
    """One step of the method on so many blocks and rows. Hooks that look at numbers are left out, with a note."""
    model, method = place.attached(name, layers)
    step, left_out, kept = Step(0, 1000, 1e-4, tokens=rows * LENGTH), [], {}

    def tried(what: str, call: Callable[[], object]) -> object:
        try:
            return call()
        except DataDependentOutputException:
            left_out.append(what)

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # held, so that no other takes its address
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True):
        make_fake(model)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        raw = sum(p.numel() for p in trained.values())
        effective = method.effective_parameters(model)
        size = bytes_of([*model.parameters(), *model.buffers()])
        optimizer = tried("optimizer", lambda: method.optimizer(model))
        with Flops() as flops:
            tried("before_step", lambda: method.before_step(model, step))
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), Flops() as forward:
                hidden = _body(model, rows)
            hidden.sum().backward()
            if "before_step" not in left_out:
                tried("after_backward", lambda: method.after_backward(model, step))
        for tensor in (*model.parameters(), *model.buffers()):
            kept.pop(tensor.untyped_storage()._cdata, None)
        return _Dry(
            forward=forward.count,
            training=flops.count,
            kept=sum(storage.nbytes() for storage in kept.values()),
            trained=raw,
            effective=raw if effective is None else effective,
            tensors=Counter(n.rpartition(".")[2] for n in trained),
            size=size,
            gradients=bytes_of(trained.values()),
            optimizer=type(optimizer).__name__.lstrip("_") if optimizer else "",
            state=_state_bytes(optimizer) if optimizer else 0,
            notes=[f"Not counted: {' and '.join(left_out)}, looking at numbers that only a training has."]
            * bool(left_out),
        )


class Flops(TorchDispatchMode):
    """FLOPs by torch's own formulas. FlopCounterMode gives the same numbers, and takes operations apart to find more."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple = (), keywords: dict | None = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        formula = flop_registry.get(function._overloadpacket)
        if formula:
            self.count += formula(*arguments, **(keywords or {}), out_val=result)
        return result


def _body(model: nn.Module, rows: int) -> Tensor:
    ids = torch.zeros(rows, LENGTH, dtype=torch.long)
    mask = torch.ones(rows, 1, LENGTH, LENGTH, dtype=torch.bool)  # a whole mask: nothing is derived from its values
    return model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state


def make_fake(model: nn.Module) -> None:
    """Put a fake tensor of the CPU in the place of every parameter and buffer; tied ones stay tied."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for key, tensor in table.items():
                if tensor is not None and id(tensor) not in made:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    made[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if table is module._parameters else fake
                if tensor is not None:
                    table[key] = made[id(tensor)]


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of state after the first step; an optimizer that makes its state at once is not stepped."""
    if not optimizer.state:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.empty_like(parameter)
        optimizer.step()
    return bytes_of(v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor))


def bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
