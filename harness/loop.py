"""The training loop, whole: every step of every method goes through ``run_steps``.

A step: before_step; micro-batches (forward, backward, after_micro_batch); after_backward; clip; optimizer step;
after_step; zero_grad. Loss = sum over the step's supervised targets / their number, however it is split.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from harness.contract import Method, Probe, Step
from harness.data import MicroBatch, Row
from harness.loss import SupervisedLogits, loss_sum, training_mode
from harness.measure import Curve
from harness.models import quiet
from harness.seeds import Streams

AUTOCAST = {"bfloat16": torch.bfloat16, "bfloat16-mixed": torch.bfloat16}
"""What matrix products are in, whatever trains in float32: a method that trains the whole model would else be in float32
altogether, beside adapters on a bfloat16 base."""


class Diverged(Exception):
    """The loss or the gradient is no longer a number."""


@dataclass
class State:
    """Where a training stands; with the model's and the optimizers' state it is all that a resumption needs."""

    step: int = 0  # the next one
    schedule_start: int = 0  # the step at which the present schedule began
    supervised_tokens: int = 0
    total_tokens: int = 0
    trained: list[str] = field(default_factory=list)  # parameters that have trained at any time
    validations: list[list[float]] = field(default_factory=list)  # [step, mean loss per target]
    first_loss: float | None = None
    last_loss: float | None = None


class Trainer:
    """A model, a method and their optimizers in the middle of a training."""

    def __init__(
        self, model: nn.Module, method: Method, protocol: dict, streams: Streams, total: int, head: Sequence = ()
    ):
        self.model, self.method, self.protocol, self.streams, self.total = model, method, protocol, streams, total
        self.head = [parameter for _, parameter in head]
        self.state = State()
        self.autocast = AUTOCAST.get(protocol["precision"])
        self.device = next(model.parameters()).device
        self.optimizers: list[torch.optim.Optimizer] = []

    def build_optimizers(self) -> None:
        """The method's optimizer over what trains now. An encoder's head has an AdamW of its own under every method: one, over
        the whole training, whatever the method does to what it trains."""
        for parameter in self.head:
            parameter.requires_grad_(False)
        self.streams.seed_torch("init", "optimizer", self.state.step)
        of_head = self.optimizers[1:]
        self.optimizers = [self.method.optimizer(self.model), *of_head]
        for parameter in self.head:
            parameter.requires_grad_(True)
        if self.head and not of_head:
            rate = self.protocol["head_learning_rate"]
            self.optimizers.append(torch.optim.AdamW(self.head, lr=rate, weight_decay=0.0, fused=True))
        for group in self.groups():
            group.setdefault("peak_lr", group["lr"])
        known = set(self.state.trained)
        self.state.trained += [n for n, p in self.model.named_parameters() if p.requires_grad and n not in known]

    def groups(self) -> Iterator[dict]:
        for optimizer in self.optimizers:
            yield from optimizer.param_groups

    def set_learning_rate(self) -> float:
        """Drive every group's rate by the protocol's schedule; the first group's rate. The head's schedule is the whole
        training's; the method's begins anew where what it trains changes."""
        for place, optimizer in enumerate(self.optimizers):
            start = 0 if place else self.state.schedule_start
            factor = schedule(self.protocol, self.state.step - start, self.total - start)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
        return next(self.groups())["lr"]

    def step(self, batches: list[MicroBatch], logits: SupervisedLogits, curve: Curve) -> None:
        """One optimizer step over the micro-batches; its numbers go to the curve."""
        state, method, model = self.state, self.method, self.model
        tokens = sum(batch.tokens for batch in batches)
        step = Step(
            state.step, self.total, self.set_learning_rate(), 0, len(batches), tokens, None, curve.log, curve.clock
        )
        self._hook("before_step", step)
        total = torch.zeros((), device=self.device)
        for number, batch in enumerate(batches):
            batch = batch.to(self.device)
            step.micro_batch, step.mask = number, batch.inputs.get("attention_mask")
            self.streams.seed_torch("dropout", state.step, number)
            loss = loss_sum(model, batch, logits, self.autocast)
            total += loss.detach()
            loss = loss / tokens
            penalty = method.penalty(model) if number == len(batches) - 1 else None
            (loss if penalty is None else loss + penalty).backward()
            self._hook("after_micro_batch", step)
        self._hook("after_backward", step)
        norm = method.clip(model, self.protocol["max_grad_norm"] or math.inf)
        with curve.update_ratio(model, state.step, self.total):
            for optimizer in self.optimizers:
                optimizer.step()
        changed = self._hook("after_step", step)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.supervised_tokens += tokens
        state.total_tokens += sum(batch.total_tokens for batch in batches)
        curve.step(state.step - 1, total / tokens, step.learning_rate, norm, tokens)
        if changed and state.step < self.total:
            for parameter in model.parameters():
                parameter.grad = None
            state.schedule_start = state.step
            self.build_optimizers()

    def restore_hook(self) -> None:
        """``before_step`` once after a restore or before a validation, so that derived tensors exist."""
        rate = next(self.groups())["lr"] if self.optimizers else 0.0
        self._hook("before_step", Step(self.state.step, self.total, rate))

    def _hook(self, name: str, step: Step) -> object:
        self.streams.seed_torch("init", name, step.index, step.micro_batch)
        return getattr(self.method, name)(self.model, step)


def run_steps(
    trainer: Trainer,
    steps: Sequence[list[MicroBatch]] | Callable[[int], list[MicroBatch]],
    curve: Curve,
    *,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Train from ``trainer.state.step`` to the end. ``between`` runs after every step (checkpoints, validation, signals).

    ``steps(i)`` (or ``steps[i]``) gives the micro-batches of step i. Raises Diverged when the loss is not finite.
    """
    get = steps if callable(steps) else steps.__getitem__
    if not trainer.optimizers:
        trainer.build_optimizers()
    with SupervisedLogits(trainer.model) as logits, training_mode(trainer.model, True):
        while trainer.state.step < trainer.total:
            trainer.step(get(trainer.state.step), logits, curve)
            for number, loss, norm in curve.flush(force=trainer.state.step == trainer.total):
                if trainer.state.first_loss is None:
                    trainer.state.first_loss = loss
                trainer.state.last_loss = loss
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    what = "loss" if not math.isfinite(loss) else "gradient norm"
                    raise Diverged(f"the {what} is {loss if what == 'loss' else norm} at step {number}")
            between()


def schedule(protocol: dict, index: int, span: int) -> float:
    """Learning-rate factor of step ``index`` of ``span``: linear warm-up, then constant, linear or cosine to zero."""
    warmup = math.ceil(protocol["warmup_fraction"] * span)
    if index < warmup:
        return (index + 1) / warmup
    progress = (index - warmup) / max(1, span - warmup)
    kind = protocol["schedule"]
    return {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[kind]


class TrainingProbe(Probe):
    """Micro-batches of the training's own stream, counted in its budget of tokens.

    ``rows(number)`` gives a micro-batch's rows, ``collate`` makes a batch of any number of them.
    """

    def __init__(
        self, trainer: Trainer, rows: Callable[[int], Sequence[Row]], collate: Callable[[Sequence[Row]], MicroBatch]
    ):
        self.trainer, self.rows, self.collate, self.tokens = trainer, rows, collate, 0
        self.autocast = trainer.autocast

    def batches(self, count: int) -> Iterator[dict]:
        for number in range(count):
            yield self._take(self.rows(number)).inputs

    def mean_gradients(self, parameters: Sequence[str], count: int, visit: Callable[[str, Tensor], None]) -> None:
        """See the contract. Activations are those of all rows at once: checkpointed, where the model offers it."""
        model, streams = self.trainer.model, self.trainer.streams
        named = dict(model.named_parameters())
        before = [(parameter, parameter.requires_grad) for parameter in named.values()]
        unseen = set(parameters)

        def use(name: str, parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            unseen.discard(name)
            streams.seed_torch("init", "initialize", name)
            visit(name, gradient)

        with contextlib.ExitStack() as stack:
            for parameter, required in before:
                stack.callback(parameter.requires_grad_, required)
                parameter.requires_grad_(False)
            for name in parameters:
                named[name].requires_grad_(True)
                hook = named[name].register_post_accumulate_grad_hook(functools.partial(use, name))
                stack.callback(hook.remove)
            logits = stack.enter_context(SupervisedLogits(model))
            stack.enter_context(training_mode(model, True))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(_checkpointed(model))
            batch = self._take([row for number in range(count) for row in self.rows(number)])
            streams.seed_torch("probe", "dropout")
            (loss_sum(model, batch, logits, self.trainer.autocast) / batch.tokens).backward()
        if unseen:
            raise ValueError(f"no gradient reached {', '.join(sorted(unseen)[:4])}: the loss does not depend on it")

    def _take(self, rows: Sequence[Row]) -> MicroBatch:
        batch = self.collate(rows).to(self.trainer.device)
        self.tokens += batch.total_tokens
        return batch


@contextlib.contextmanager
def _checkpointed(model: nn.Module) -> Iterator[None]:
    """Activations recomputed in the backward within the block, where the model offers it and does not do so already."""
    offered = getattr(model, "supports_gradient_checkpointing", False) and not model.is_activation_checkpointing
    if not offered:
        yield
        return
    with quiet():  # an encoder's configuration may ask for a cache, which is then left out
        model.activation_checkpointing_enable({"use_reentrant": False})
        try:
            yield
        finally:
            model.activation_checkpointing_disable()
            model.disable_input_require_grads()  # which enabling switched on
