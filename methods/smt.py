"""SMT: train only those blocks of the attention weights whose gradient is largest.  He et al., ICLR 2025, arXiv 2405.15525.

The first ``warmup_steps`` steps score every block x block piece of q, k and v. Then the n pieces that score highest,
``density`` of the model's matrix entries, train in place and everything else freezes, under a new AdamW and schedule:

    y = W x    dx = W^T S    dW_ij = S[:, rows i]^T X[:, columns j] for chosen blocks only    S = dL/dy: (tokens, out)

Below the lowest layer with a chosen block nothing gets a gradient: a step takes two thirds of full training's FLOPs or less.

With G_t the gradient of warm-up step t, whole and before clipping, and means over a block's entries, ``score`` is

    "abs_mean"       mean |sum_t G_t|    the paper's. The sum is kept for every entry, in float32, during the warm-up
    "official_code"  |mean sum_t G_t|    what the authors' code takes for attention: entries of one block cancel
    "per_step"       sum_t mean |G_t|    ours: nothing cancels, neither within a block nor from step to step

``choice`` "global": the best of all matrices; "per_matrix": of every matrix the same number, rounded down.
``warmup`` "train": its steps train the whole model, as published; so what is saved is the whole model. "score": they
change nothing but an encoder's task head; what is saved is the blocks and where they are.

The blocks are one parameter (n, block, block) in float32, written into the weights after each step: where these are in
bfloat16, steps too small for them still add up. After warmup="train" the model stays in float32 until it is merged. n is
known beforehand. A block is 256 wide, halved until that divides every target's sides: 64 on SmolLM2.
"""

import contextlib
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from harness.contract import Method, Run, Step, log_uniform
from harness.contract import choice as one_of

from ._blocks import Places, Score, add_gradients, best, block_output, block_scores, empty_sum, grid
from ._linear import Adapter, Targets, adapter_dtype, cast_back, is_conv1d, matrix, train_all, unwrap, wrap

WarmUp = Literal["train", "score"]
Choice = Literal["global", "per_matrix"]
ROLES = ("q", "k", "v", "o", "gate", "up", "down")


class _SparseLinear(Adapter):
    """A matrix of ``candidates`` blocks. ``blocks``: (k, size, size), its part of the one parameter, as a leaf that
    gathers gradients in its part of their one buffer; None where it has none. ``listener``: the weight as such a leaf."""

    def __init__(self, base: nn.Module, size: int):
        super().__init__(base)
        if self.in_size % size or self.out_size % size:
            raise ValueError(
                f"block_size={size} does not divide its weight of {self.out_size} x {self.in_size}; "
                "choose one that does, or set allow_smaller_blocks"
            )
        self.size = size
        self.candidates = self.out_size * self.in_size // size**2
        self.blocks: Tensor | None = None
        self.places: Places | None = None
        self.listener: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.listener is not None:
            return functional_call(self.base, {"weight": self.listener}, (x,))
        y = self.base(x)
        return y if self.blocks is None else block_output(y, x, self.blocks, self.places)

    def listen(self) -> None:
        """From here on a gradient of the whole weight gathers, though it is frozen."""
        self.listener = self.base.weight.detach().requires_grad_()

    def heard(self, step: Step) -> Tensor | None:
        """The step's gradient of the whole weight, (out, in), wherever it gathered; None: this matrix took no part."""
        gradient = self.base.weight.grad
        if self.listener is not None:
            gradient, self.listener = self.listener.grad, None
            if gradient is not None:
                step.all_reduce_(gradient)  # the harness reduces what is in a parameter's .grad; this is not
        return gradient.t() if gradient is not None and is_conv1d(self.base) else gradient

    def choose(self, numbers: Tensor, blocks: Tensor, gradient: Tensor) -> None:
        """Train the blocks of these numbers; none: this matrix is frozen."""
        self.places = self.blocks = self.listener = None
        if len(numbers):
            self.places = Places(numbers, self.in_size // self.size)
            self.blocks = blocks.detach().requires_grad_()
            self.blocks.grad = gradient

    def read(self) -> None:
        self.blocks.data.copy_(grid(matrix(self.base).data, self.size)[self.places.row, self.places.column])

    def write(self) -> None:
        weight = matrix(self.base).data
        grid(weight, self.size)[self.places.row, self.places.column] = self.blocks.detach().to(weight.dtype)


class _Selection(nn.Module):
    """What the method keeps: the numbers of the chosen blocks, ascending over all matrices, and their values."""

    def __init__(self, count: int, size: int, like: Tensor, trains: bool):
        super().__init__()
        self.blocks = nn.Parameter(like.new_zeros(count, size, size, dtype=adapter_dtype(like)), requires_grad=trains)
        self.register_buffer("chosen", torch.zeros(count, dtype=torch.int64, device=like.device))
        self.register_buffer("selected", torch.zeros((), dtype=torch.bool, device=like.device))

    def versions(self) -> tuple[int, int]:
        """Others after a write to the buffers."""
        return self.chosen._version, self.selected._version


class _WarmUpAdamW(torch.optim.AdamW):
    """AdamW, and the sums that the blocks are scored by: saved with it, gone when the selection replaces it."""

    def __init__(self, trained: list[Tensor], sums: list[Tensor], **rates: Any):
        super().__init__(trained, **rates)
        self.sums = sums

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "sums": self.sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for total, saved in zip(self.sums, state_dict["sums"], strict=True):
            total.copy_(saved)


@dataclass
class SMT(Method):
    learning_rate: float = field(default=1e-4, metadata={"search": log_uniform(1e-6, 1e-2)})
    density: float = field(default=0.0084, metadata={"search": one_of(0.0042, 0.0084, 0.0168)})
    block_size: int = 256
    allow_smaller_blocks: bool = True  # halve block_size until it divides every target
    score: Score = "abs_mean"
    choice: Choice = "global"
    warmup: WarmUp = "train"
    warmup_steps: int = 100
    targets: Targets = ("q", "k", "v")

    tiny: ClassVar[dict] = {"block_size": 8, "warmup_steps": 3, "density": 0.03}

    def attach(self, model: nn.Module, run: Run) -> None:
        self._check(run)
        entries = sum(p.numel() for p in model.parameters() if p.ndim == 2)
        self._labels, size = _labels(model, run, self.targets), self._block_size(model, run)
        self._dtypes = train_all(model) if self.warmup == "train" else {}
        self._layers: list[_SparseLinear] = wrap(model, run, self.targets, lambda base: _SparseLinear(base, size))
        self._counts = self._budget(entries, size)
        like = self._layers[0].base.weight
        model.smt = _Selection(sum(self._counts), size, like, trains=self.warmup == "score")
        self._sparse, self._seen, self._optimizer = False, model.smt.versions(), None

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        self._follow(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        rates = {"lr": self.learning_rate, "weight_decay": self.weight_decay, "betas": (0.9, 0.95), "fused": True}
        if self._sparse:
            return torch.optim.AdamW(trained, **rates)
        sums = [empty_sum(matrix(layer.base), self.score, layer.size) for layer in self._layers]
        self._optimizer = _WarmUpAdamW(trained, sums, **rates)
        return self._optimizer

    def before_step(self, model: nn.Module, step: Step) -> None:
        self._follow(model)
        if self._sparse:
            self._gradient.zero_()
        elif self.warmup == "score":
            for layer in self._layers:
                layer.listen()

    @torch.no_grad()
    def after_backward(self, model: nn.Module, step: Step) -> None:
        if self._sparse:
            model.smt.blocks.grad = step.all_reduce_(self._gradient)
            return
        heard = [layer.heard(step) for layer in self._layers]
        sums = [total for total, gradient in zip(self._optimizer.sums, heard, strict=True) if gradient is not None]
        gradients = [gradient for gradient in heard if gradient is not None]
        add_gradients(sums, gradients, self.score, self._layers[0].size)

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: Step) -> bool | None:
        if self._sparse:
            for layer in self._chosen:
                layer.write()
            return None
        if step.index + 1 < self.warmup_steps:
            return None
        model.zero_grad(set_to_none=True)  # nobody reads them any more; choosing needs room
        with step.clock("selection"):
            self._select(model)
        model.requires_grad_(False)
        model.smt.blocks.requires_grad_(True)
        return True

    def merge(self, model: nn.Module) -> None:
        self._follow(model)
        unwrap(model, _SparseLinear)
        del model.smt
        cast_back(model, self._dtypes)

    def facts(self, model: nn.Module) -> dict[str, Any]:
        """``chosen_blocks``: by role, how many in each layer; ``candidate_blocks``: by role, of how many in all."""
        self._follow(model)
        found = {
            "block_size": self._layers[0].size,
            "blocks": len(model.smt.chosen),
            "score": self.score,
            "choice": self.choice,
            "warmup": self.warmup,
            "candidate_blocks": dict.fromkeys((role for role, _ in self._labels), 0),
        }
        depth = 1 + max(number for _, number in self._labels)
        chosen: dict[str, list[int]] = {role: [0] * depth for role in found["candidate_blocks"]}
        for (role, number), layer in zip(self._labels, self._layers, strict=True):
            found["candidate_blocks"][role] += layer.candidates
            chosen[role][number] += 0 if layer.blocks is None else len(layer.blocks)
        if not self._sparse:
            return found
        lowest = min(number for by_layer in chosen.values() for number, count in enumerate(by_layer) if count)
        return {**found, "chosen_blocks": chosen, "lowest_layer": lowest}

    def _select(self, model: nn.Module) -> None:
        """Choose by the sums; the blocks start at the weights' values."""
        scores = [block_scores(total, self.score, self._layers[0].size) for total in self._optimizer.sums]
        if self.choice == "global":
            scores = [torch.cat(scores)]
        model.smt.chosen.copy_(best(scores, self._counts))
        model.smt.selected.fill_(True)
        self._lay_out(model)
        for layer in self._chosen:
            layer.read()

    @torch.no_grad()
    def _follow(self, model: nn.Module) -> None:
        """After a restore: lay the layers out as the buffers say, and write the blocks into the weights."""
        if model.smt.versions() == self._seen:
            return
        self._seen = model.smt.versions()
        if model.smt.selected:
            self._lay_out(model)
            for layer in self._chosen:
                layer.write()

    def _lay_out(self, model: nn.Module) -> None:
        """Give each layer its part of the blocks and of their gradients; nothing of the warm-up stays."""
        selection = model.smt
        self._sparse, self._seen, self._optimizer = True, selection.versions(), None
        self._gradient = torch.zeros_like(selection.blocks)
        ends = torch.tensor([layer.candidates for layer in self._layers], device=selection.chosen.device).cumsum(0)
        bounds = [0, *torch.searchsorted(selection.chosen, ends).tolist()]
        for number, layer in enumerate(self._layers):
            part = slice(bounds[number], bounds[number + 1])
            numbers = selection.chosen[part] - (ends[number] - layer.candidates)
            layer.choose(numbers, selection.blocks.data[part], self._gradient[part])
        self._chosen = [layer for layer in self._layers if layer.blocks is not None]
        if hasattr(model, "disable_input_require_grads"):  # activation checkpointing's, which need no such gradient
            model.disable_input_require_grads()

    def _check(self, run: Run) -> None:
        for name, known in (("score", Score), ("choice", Choice), ("warmup", WarmUp)):
            if getattr(self, name) not in get_args(known):
                choices = " or ".join(map(repr, get_args(known)))
                raise ValueError(f"SMT: {name} is {choices}, not {getattr(self, name)!r}")
        if self.block_size < 1:
            raise ValueError(f"SMT: block_size is at least 1, not {self.block_size}")
        if self.warmup_steps < 1 or self.warmup_steps >= run.total_steps:
            raise ValueError(
                f"SMT: warmup_steps={self.warmup_steps} must be at least 1 and leave some of the training's "
                f"{run.total_steps} steps; set warmup_steps lower, or train longer"
            )

    def _block_size(self, model: nn.Module, run: Run) -> int:
        size = self.block_size
        if self.allow_smaller_blocks:
            sides = [side for _, module in run.find(model, self.targets) for side in matrix(module).shape]
            while any(side % size for side in sides):
                size //= 2
        return size

    def _budget(self, entries: int, size: int) -> list[int]:
        """How many blocks to choose: of all matrices together, or of each."""
        count, matrices = int(self.density * entries / size**2), len(self._layers)
        least = 1 if self.choice == "global" else matrices
        if count < least:
            raise ValueError(
                f"SMT: density={self.density:g} gives {count} blocks of {size} x {size} for {matrices} matrices; "
                f"set it above {least * size**2 / entries:.2g}, or block_size lower"
            )
        if self.choice == "global":
            return [min(count, sum(layer.candidates for layer in self._layers))]
        return [min(count // matrices, layer.candidates) for layer in self._layers]


def _labels(model: nn.Module, run: Run, targets: Targets) -> list[tuple[str, int]]:
    """Of each target: what it plays, such as "q", or "q+k+v" where they are fused; and its layer's number.

    A layer is what shares a name up to its first number, counted in the order of the forward pass.
    """
    played: dict[str, list[str]] = {}
    for role in ROLES:
        with contextlib.suppress(ValueError):  # this architecture has no such module
            for name, _ in run.find(model, role):
                played.setdefault(name, []).append(role)
    names = [name for name, _ in run.find(model, targets)]
    stems = [re.match(r"\D*\d*", name).group() for name in names]
    numbers = {stem: number for number, stem in enumerate(dict.fromkeys(stems))}
    return [("+".join(played[name]), numbers[stem]) for name, stem in zip(names, stems, strict=True)]
