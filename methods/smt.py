"""SMT: train only those blocks of the attention weights whose gradient is largest.  He et al., ICLR 2025, 2405.15525.

The first ``warmup_steps`` steps score every block x block piece of q, k and v by mean |g|, summed over steps, with g
the whole step's gradient. Then the blocks that score highest over all layers, ``density`` of the model's matrix
entries, train in place, and everything else freezes, under a new optimizer and a new schedule:

    y = W x    dx = W^T S    dW_ij = S[:, rows i]^T X[:, columns j] for chosen blocks only    S = dL/dy: (tokens, out)

``warmup="train"``: these steps train the whole model, as published. ``warmup="score"``: they change nothing but an
encoder's task head. The paper scores the summed gradient, whose signs cancel across steps; here each step counts.
The n chosen blocks are one parameter (n, block, block) in float32, copied into the weights after each step; n is known
beforehand. A block is 64 wide, so that it divides the heads of small models too (the paper: 256).
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from harness.contract import Method, Run, Step, choice, log_uniform

from ._linear import Adapter, Targets, adapter_dtype, cast_back, is_conv1d, matrix, train_all, unwrap, wrap


class _BlockGradient(torch.autograd.Function):
    """y unchanged; on the way back, the gradient of the chosen blocks of the weight that made y from x."""

    @staticmethod
    def forward(ctx, y: Tensor, x: Tensor, blocks: Tensor, rows: Tensor, columns: Tensor, column_of: Tensor) -> Tensor:
        size = blocks.shape[-1]
        inputs = x.detach().reshape(-1, x.shape[-1] // size, size).index_select(1, columns)  # (tokens, columns, B)
        ctx.save_for_backward(inputs, rows, column_of)
        ctx.dtype = blocks.dtype
        return y.view_as(y)

    @staticmethod
    def backward(ctx, S: Tensor) -> tuple:
        inputs, rows, column_of = ctx.saved_tensors
        size = inputs.shape[-1]
        left = S.reshape(-1, S.shape[-1] // size, size).index_select(1, rows).permute(1, 2, 0)  # (blocks, B, tokens)
        right = inputs.index_select(1, column_of).transpose(0, 1)  # (blocks, tokens, B)
        return S, None, torch.bmm(left.to(inputs.dtype), right).to(ctx.dtype), None, None, None


class _SparseLinear(Adapter):
    """``blocks``: (k, B, B), this matrix's part of the one parameter, or None; a leaf that gathers gradients."""

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

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x.to(self.base.weight.dtype)).to(x.dtype)  # unequal where a bfloat16 base's q, k, v are float32
        return y if self.blocks is None else _BlockGradient.apply(y, x, self.blocks, *self.where)

    def grid(self, values: Tensor) -> Tensor:
        """A view (out / B, in / B, B, B) of the weight, or of its gradient."""
        values = values.t() if is_conv1d(self.base) else values
        return values.unflatten(1, (-1, self.size)).unflatten(0, (-1, self.size)).transpose(1, 2)

    def choose(self, numbers: Tensor, blocks: Tensor | None, gradient: Tensor | None) -> None:
        """Train the blocks of these numbers (row-major in the grid); none: this matrix is frozen."""
        self.blocks = None
        if len(numbers):
            width = self.in_size // self.size
            self.at = numbers // width, numbers % width
            self.where = self.at[0], *torch.unique(self.at[1], return_inverse=True)
            self.blocks = blocks.detach().requires_grad_()
            self.blocks.grad = gradient

    def write(self) -> None:
        if self.blocks is not None:
            self.grid(self.base.weight.data)[self.at] = self.blocks.detach().to(self.base.weight.dtype)


class _Selection(nn.Module):
    """What the method keeps: the scores of all candidates, the numbers of the chosen ones, and their values."""

    def __init__(self, candidates: int, count: int, size: int, like: Tensor):
        super().__init__()
        self.blocks = nn.Parameter(like.new_zeros(count, size, size, dtype=adapter_dtype(like)), requires_grad=False)
        self.register_buffer("chosen", torch.zeros(count, dtype=torch.int64, device=like.device))  # ascending
        self.register_buffer("scores", like.new_zeros(candidates, dtype=adapter_dtype(like)))
        self.register_buffer("selected", torch.zeros((), dtype=torch.bool, device=like.device))


@dataclass
class SMT(Method):
    learning_rate: float = field(default=1e-4, metadata={"search": log_uniform(1e-6, 1e-2)})
    density: float = field(default=0.0084, metadata={"search": choice(0.0042, 0.0084, 0.0168)})
    block_size: int = 64
    allow_smaller_blocks: bool = False  # halve block_size until it divides every target
    warmup_steps: int = 100
    warmup: str = "train"
    targets: Targets = ("q", "k", "v")

    tiny: ClassVar[dict] = {"block_size": 8, "warmup_steps": 3, "density": 0.03}

    def attach(self, model: nn.Module, run: Run) -> None:
        self._check(run)
        entries = sum(p.numel() for p in model.parameters() if p.ndim == 2)
        size = self._block_size(model, run)
        self._dtypes = {name: p.dtype for name, p in model.named_parameters()}
        if self.warmup == "train":
            train_all(model)
        self._layers: list[_SparseLinear] = wrap(model, run, self.targets, lambda base: _SparseLinear(base, size))
        for layer in self._layers:
            layer.base.to(adapter_dtype(layer.base.weight)).weight.requires_grad_(True)
        candidates = sum(layer.candidates for layer in self._layers)
        count = min(candidates, max(1, int(self.density * entries / size**2)))
        model.smt = _Selection(candidates, count, size, self._layers[0].base.weight)
        self._seen: tuple | None = None

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        if not model.smt.selected and self.warmup == "score":
            return torch.optim.SGD([layer.base.weight for layer in self._layers], lr=0.0)
        trained = [p for p in model.parameters() if p.requires_grad]
        rates = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        return torch.optim.AdamW(trained, betas=(0.9, 0.95), fused=True, **rates)

    def before_step(self, model: nn.Module, step: Step) -> None:
        self._follow(model.smt)
        if self._sparse:
            self._gradient.zero_()

    @torch.no_grad()
    def after_backward(self, model: nn.Module, step: Step) -> None:
        if self._sparse:
            model.smt.blocks.grad = self._gradient
            return
        scores = [layer.grid(layer.base.weight.grad).abs().mean((2, 3)).flatten() for layer in self._layers]
        model.smt.scores += torch.cat(scores)

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: Step) -> bool | None:
        selection = model.smt
        if self._sparse:
            for layer in self._layers:
                layer.write()
            return None
        if step.index + 1 < self.warmup_steps:
            return None
        scores = selection.scores.nan_to_num(nan=-1.0)
        best = scores.sort(descending=True, stable=True).indices[: len(selection.chosen)]  # ties: layer, row, column
        selection.chosen.copy_(best.sort().values)
        weights = torch.cat([layer.grid(layer.base.weight).flatten(0, 1) for layer in self._layers])
        selection.blocks.copy_(weights[selection.chosen])
        selection.selected.fill_(True)
        model.requires_grad_(False)
        selection.blocks.requires_grad_(True)
        return True

    def merge(self, model: nn.Module) -> None:
        self._follow(model.smt)
        unwrap(model, _SparseLinear)
        del model.smt
        cast_back(model, self._dtypes)

    @torch.no_grad()
    def _follow(self, selection: _Selection) -> None:
        """Lay the layers out as the buffers say, when these have changed: after the selection and after a restore."""
        versions = tuple(tensor._version for tensor in (selection.selected, selection.chosen))
        if versions == self._seen:
            return
        self._seen, self._sparse = versions, bool(selection.selected)
        if not self._sparse:
            return
        self._gradient = torch.zeros_like(selection.blocks)
        ends = torch.tensor([layer.candidates for layer in self._layers], device=selection.chosen.device).cumsum(0)
        bounds = [0, *torch.searchsorted(selection.chosen, ends).tolist()]
        for number, layer in enumerate(self._layers):
            part = slice(bounds[number], bounds[number + 1])
            first = ends[number] - layer.candidates
            layer.choose(selection.chosen[part] - first, selection.blocks.data[part], self._gradient[part])
            layer.write()

    def _check(self, run: Run) -> None:
        if self.warmup not in ("train", "score"):
            raise ValueError(f"SMT: warmup is 'train' or 'score', not {self.warmup!r}")
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
