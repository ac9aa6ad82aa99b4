"""The three contracts: Method, Corpus, Eval, and the few types that pass between them and the harness.

A plug-in is one file with one public class, found by its file name: ``methods/lora.py`` is the method ``lora``.
This module imports no torch at import time, so corpora and evals load, and predictions are graded, without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


# --------------------------------------------------------------------------- examples: what a corpus gives


@dataclass(frozen=True)
class Completion:
    """A prompt and what should follow it; the loss looks at ``completion`` and the end-of-text token only.

    ``prompt`` has no trailing space and ``completion`` starts with its own separator (usually one space),
    as lm-evaluation-harness joins context and continuation.
    """

    prompt: str
    completion: str


@dataclass(frozen=True)
class Labelled:
    """A text, a pair of texts or an image (a file path or an array (height, width, 3) of uint8), with a class or a value.

    An encoder gets ``input`` and learns ``label`` with a task head. A decoder gets ``corpus.prompt(example)`` and
    learns the label's word, ``" " + corpus.classes[label]``.
    """

    input: Any
    label: int | float


@dataclass(frozen=True)
class SequenceToSequence:
    """A source and a target text. A decoder sees ``corpus.prompt(example)`` and learns ``" " + target``."""

    source: str
    target: str


@dataclass(frozen=True)
class Text:
    """Running text; every token is supervised."""

    text: str


@dataclass(frozen=True)
class Conversation:
    """Turns of (role, content), roles "system", "user", "assistant"; the loss looks at assistant turns only."""

    turns: tuple[tuple[str, str], ...]


Example = Completion | Labelled | SequenceToSequence | Text | Conversation


# --------------------------------------------------------------------------- search spaces of hyper-parameters


def log_uniform(low: float, high: float) -> dict:
    """Tuning space of a positive real: ``field(metadata={"search": log_uniform(1e-5, 1e-2)})``."""
    return {"space": "log_uniform", "low": low, "high": high}


def choice(*values: Any) -> dict:
    """Tuning space of a finite set."""
    return {"space": "choice", "values": list(values)}


# --------------------------------------------------------------------------- what the harness hands to a method


@dataclass(frozen=True)
class Run:
    """What ``attach`` may know of the training. ``total_steps`` counts optimizer steps; ``dtype`` is the frozen base's."""

    total_steps: int
    dtype: torch.dtype
    find: Callable[[nn.Module, str | Sequence[str]], list[tuple[str, nn.Module]]]
    """``find(model, roles)``: (qualified name, module) of the linear modules that play these roles
    ("q", "k", "v", "o", "gate", "up", "down", "all-linear"), in the order of the forward pass."""


class NotMergeable(Exception):
    """Raised by ``merge`` when the method cannot become a plain model; it is then predicted as attached, and said so."""


@dataclass
class Step:
    """One optimizer step as a hook sees it."""

    index: int  # 0-based
    total: int
    learning_rate: float  # of the method's first parameter group, this step
    micro_batch: int = 0
    micro_batches: int = 1
    tokens: int = 0  # supervised tokens of the whole step
    mask: Tensor | None = None  # (rows, length) of the current micro-batch: 1 where a token is real
    _log: Callable[[str, Any], None] = lambda name, value: None
    _clock: Callable[[str], contextlib.AbstractContextManager] = lambda name: contextlib.nullcontext()

    def log(self, name: str, value: Any) -> None:
        """Put a number or a small tensor on the curve of this step; tensors are read later, without a synchronisation here."""
        self._log(name, value)

    def clock(self, name: str) -> contextlib.AbstractContextManager:
        """``with step.clock("refresh"):`` — time a part of this step on its own curve."""
        return self._clock(name)

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """Sum in place over the processes of one training (a no-op for one process)."""
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(tensor)
        return tensor


class Probe:
    """Batches of the training's own stream for ``initialize``; their tokens count in the run's budget.

    The harness gives the implementation (``harness.loop.TrainingProbe``). ``autocast``: what products are cast to, if
    they are: gradients then have its rounding, whatever their type.
    """

    autocast: torch.dtype | None = None

    def batches(self, count: int) -> Iterator[dict]:
        """Model inputs of ``count`` micro-batches, as the loop would feed them."""
        raise RuntimeError("the harness provides the probe")

    def mean_gradients(self, parameters: Sequence[str], count: int, visit: Callable[[str, Tensor], None]) -> None:
        """``visit(name, gradient)`` for each named weight, during one backward over ``count`` micro-batches joined.

        The gradient is that of the mean loss over their supervised tokens, in training mode, in the weight's shape and
        type. It is freed after its visit, so that one weight's is held at a time; the order is the backward's. The
        global generator is seeded before each visit by the weight's name. ``visit`` may change what the method trains,
        but not the named weights: the backward still needs those.
        """
        raise RuntimeError("the harness provides the probe")


# --------------------------------------------------------------------------- Method


@dataclass
class Method:
    """A fine-tuning method. Subclass as a dataclass: its fields are the hyper-parameters and ``asdict`` is the record.

    Every hook but ``attach`` is optional. State lives in parameters, persistent buffers and the optimizer's
    ``state_dict`` only, and shapes never depend on data: then checkpoints and resumption need no help from the method.
    The global random generator is seeded by the harness around every hook.

    Two names of fields are known to stage ``cost``, which times such steps apart: ``refresh_every`` (steps between two
    runs of what stands under ``step.clock("refresh")``) and ``warmup_steps`` (steps before ``after_step`` returns True).
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.0

    changes_init: ClassVar[str | None] = None
    """The reason why logits after ``attach`` and ``initialize`` differ from the base model's, if they do."""
    tiny: ClassVar[dict[str, Any]] = {}
    """Hyper-parameters fit for the two-layer models of ``make check``, where the defaults are not."""

    def attach(self, model: nn.Module, run: Run) -> None:
        """Change the model's structure and set ``requires_grad`` on what trains. All parameters arrive frozen.

        Called once when a training starts, and again before resume, predict and plan: no data, the same result each
        call, valid on the meta device. Timed as ``load``.
        """
        raise TypeError(f"{type(self).__name__} must define attach(model, run)")

    def initialize(self, model: nn.Module, probe: Probe) -> None:
        """A data-dependent start. Called once per training, not on resume, predict or plan. Timed as ``prepare``."""

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """A torch optimizer over what trains, at peak learning rates: the protocol owns the schedule and drives ``group["lr"]``.

        The harness trains an encoder's task head by an optimizer of its own. Called after ``initialize``, on resume, and
        after an ``after_step`` that returned True.
        """
        import torch

        trained = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)

    def before_step(self, model: nn.Module, step: Step) -> None:
        """Before a step's first forward, before a validation, and once after a restore: derive tensors. Timed as ``train``."""

    def penalty(self, model: nn.Module) -> Tensor | None:
        """A scalar added to the step's loss once. Timed as ``train``."""
        return None

    def after_micro_batch(self, model: nn.Module, step: Step) -> None:
        """One micro-batch's gradients are in ``.grad``, added to the earlier ones'. Timed as ``train``."""

    def after_backward(self, model: nn.Module, step: Step) -> None:
        """Every micro-batch is done and reduced, nothing is clipped. Timed as ``train``."""

    def clip(self, model: nn.Module, max_norm: float) -> Tensor:
        """Scale the gradient in place to ``max_norm`` and return its global norm before that, as a scalar tensor.

        Covers everything that trains, an encoder's head too. ``max_norm`` may be infinite: then only measure.
        """
        import torch

        trained = [p for p in model.parameters() if p.grad is not None]
        return torch.nn.utils.clip_grad_norm_(trained, max_norm)

    def after_step(self, model: nn.Module, step: Step) -> bool | None:
        """After ``optimizer.step``, before ``zero_grad``. True: what trains has changed, so ``optimizer`` is asked again
        and the schedule runs anew over the remaining steps. Timed as ``train``."""

    def merge(self, model: nn.Module) -> None:
        """Leave a plain model with the base's module tree, computed in float32 and cast once. Timed as ``load`` of predict.

        Raise ``NotMergeable`` where that is impossible.
        """

    def effective_parameters(self, model: nn.Module) -> int | None:
        """Degrees of freedom, where they differ from the number of trained entries; None: they do not."""
        return None

    def facts(self, model: nn.Module) -> dict[str, Any]:
        """What the training's record should say of this method, JSON-able: read off parameters and persistent buffers.

        Asked once, when the training is over: a numerical rank found at the start, a defect of orthogonality.
        """
        return {}


# --------------------------------------------------------------------------- Corpus


@dataclass
class Corpus:
    """What is trained on. ``corpora/glue.py`` with ``tasks = ("sst2", ...)`` gives ``glue-sst2`` and so on."""

    task: str = ""

    tasks: ClassVar[tuple[str, ...]] = ()
    """Names that may follow the file's name after a hyphen; empty: the file is one corpus."""
    assets: ClassVar[tuple[str, ...]] = ()
    """Names of ``data`` in config/catalogue.yaml that must be there; "{task}" stands for the task."""
    evals: ClassVar[tuple[str, ...]] = ()
    """Its usual evals; "{task}" stands for the task."""
    leaked: ClassVar[dict[str, str]] = {}
    """Evals whose test items are known to be among its training rows, and why: a suite that scores one is refused."""
    label: ClassVar[str] = ""
    """How tables name it; "{task}" stands for the task."""
    example: ClassVar[type] = Completion
    classes: tuple[str, ...] = ()
    """The classes' words of a Labelled corpus (empty: a value is predicted, by regression)."""
    generated: ClassVar[bool] = False
    """True: rows are made by a program, not real data; tables say so."""

    def examples(self, split: Literal["train", "validation"], data: Callable[[str], Any]) -> Sequence[Example]:
        """All examples of a split, in a fixed order. ``validation`` is carved from the training data, never from the test.

        ``data(asset)`` is the folder (``pathlib.Path``) of an asset named in ``assets``.
        """
        raise TypeError(f"{type(self).__name__} must define examples(split, data)")

    def tests(self, data: Callable[[str], Any]) -> Sequence[Example]:
        """All rows that its evals score, in the form of ``examples``: training rows that overlap with them are removed.

        None where no data set's own test rows are at hand, as in generated rows; nothing is searched for then.
        """
        return []

    def prompt(self, example: Labelled | SequenceToSequence) -> str:
        """The text a decoder sees before the label's word or the target; no trailing space."""
        raise TypeError(f"{type(self).__name__} must define prompt(example) for a decoder")


# --------------------------------------------------------------------------- Eval


@dataclass(frozen=True)
class Choices:
    """Log-likelihood of each continuation after ``context``. A model with a task head classifies ``input`` instead.

    Output: ``{"loglikelihoods": [float, ...], "greedy": [bool, ...]}``; from a head, log-softmax over the classes,
    or ``{"value": float}`` for a regression head.
    """

    context: str
    continuations: tuple[str, ...]
    input: Any = None


@dataclass(frozen=True)
class Generate:
    """Text after ``context`` up to a stop string or ``max_tokens``. Output: ``{"texts": [str] * samples, "tokens": [int]}``.

    ``temperature`` 0 is greedy; ``samples`` > 1 needs a temperature. ``turns``, pairs of role and content, are a
    conversation that the assistant goes on with. They are shown in the form in which a model is trained on them: its
    chat template's, or else lines of "role: content" and the end token (harness/conversation.py).
    """

    context: str
    until: tuple[str, ...]
    max_tokens: int
    temperature: float = 0.0
    samples: int = 1
    turns: tuple[tuple[str, str], ...] = ()

    @classmethod
    def conversation(
        cls, turns: Sequence[tuple[str, str]], until: tuple[str, ...], max_tokens: int, temperature: float = 0.0
    ) -> Generate:
        """The assistant's next turn; ``context`` names the turns for records, it is not what is shown."""
        told = "".join(f"{role}: {content}\n" for role, content in turns) + "assistant:"
        return cls(told, until, max_tokens, temperature, turns=tuple(turns))


@dataclass(frozen=True)
class Reference:
    """Teacher-forced negative log-likelihood of the reference. Output: ``{"nll": float (nats, summed), "tokens": int}``."""

    context: str
    continuation: str


Request = Choices | Generate | Reference


@dataclass
class Eval:
    """What is scored. Prompts and extraction follow lm-evaluation-harness's task of the same name where there is one.

    A headline that is no mean and no ratio of sums over items (BLEU, a correlation, a perplexity) is told by
    ``corpus_level = True``: scoring then keeps each item's part of it, for intervals and paired comparisons. One that is
    smoothed away from its floor (BLEU) has a method ``floor_value(grades)``, which gives it without that.
    """

    task: str = ""

    tasks: ClassVar[tuple[str, ...]] = ()
    assets: ClassVar[tuple[str, ...]] = ()
    label: ClassVar[str] = ""
    """How tables name it; a stand-in has a name of its own, never the benchmark's."""
    headline: ClassVar[str] = ""
    """The key of ``aggregate`` that tables print first; "{task}" is not filled: use a property where it depends on the task."""
    units: ClassVar[dict[str, str]] = {}
    """Unit of each metric: "%", "BLEU", "nats/token"..."""
    lower_is_better: ClassVar[tuple[str, ...]] = ()
    floors: ClassVar[dict[str, float]] = {}
    """Where a metric cannot fall below this: a column whose every row is within noise of it is "not resolvable at this scale"."""
    version: ClassVar[int] = 1
    """Bumped whenever a number could change."""
    generated: ClassVar[bool] = False
    grading_fields: ClassVar[tuple[str, ...]] = ()
    """Fields that change grades and no answer: other values score again and predict nothing anew."""

    def items(self, data: Callable[[str], Any]) -> Sequence[dict]:
        """All test items in a fixed order: JSON-able dicts with a unique string ``"id"``."""
        raise TypeError(f"{type(self).__name__} must define items(data)")

    def requests(self, item: dict, outputs: Sequence[dict] = ()) -> list[Request]:
        """The next round of requests, given every output so far (``outputs`` is flat, in order of request); [] ends it."""
        raise TypeError(f"{type(self).__name__} must define requests(item, outputs)")

    def grade(self, item: dict, outputs: Sequence[dict]) -> dict:
        """Sufficient statistics of one item (correct; gold and predicted; n-gram counts; n and c of pass@k): JSON-able."""
        raise TypeError(f"{type(self).__name__} must define grade(item, outputs)")

    def aggregate(self, grades: Sequence[dict]) -> dict[str, float]:
        """Corpus-level metrics from the grades; pure, called by every bootstrap."""
        raise TypeError(f"{type(self).__name__} must define aggregate(grades)")

    def signatures(self) -> dict[str, str]:
        """What a reader needs to repeat a metric, by name: sacreBLEU's signature, the sandbox's level."""
        return {}

    def pending(self) -> str:
        """Why answers cannot be graded now, such as a judge that nobody has named; "" where they can.

        The row is then ``judge_pending``: the answers are kept, and grading them later needs no model.
        """
        return ""

    def majority(self, train: Sequence[Example], items: Sequence[dict]) -> list[dict] | None:
        """Grades of always answering the training data's commonest class, item by item; None: the eval has no such row."""
        return None
