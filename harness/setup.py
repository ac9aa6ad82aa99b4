"""From a cell to a model, a method and batches, ready to train: shared by the stages train, cost and plan."""

from __future__ import annotations

from pathlib import Path

import torch

from harness import data, models
from harness.assets import asset_folder
from harness.contract import Corpus, Example, Run
from harness.device import choose_device
from harness.failures import UserError
from harness.loop import Trainer, TrainingProbe
from harness.loss import SupervisedLogits, validation_loss
from harness.measure import Curve, Phases
from harness.overlap import counted, overlaps
from harness.seeds import Streams
from harness.suite import Training, catalogue, load_plugin

DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "bfloat16-mixed": torch.float32}


class Setup:
    """One training, built and attached; nothing has trained yet."""

    def __init__(
        self,
        training: Training,
        trainer: Trainer,
        rows: dict[str, list[data.Row]],
        order: list[list[int]],
        pad: int,
        overlap: dict[str, int],
    ):
        self.training, self.trainer, self.rows, self.order, self.pad = training, trainer, rows, order, pad
        self.overlap = overlap
        self.steps = _steps(training.protocol, len(rows["train"]))
        self.kind = models.kind(trainer.model)
        self.base = base_folder(training.model)
        self.tokens_probed = 0
        self._validation: list[data.MicroBatch] | None = None

    def micro_batches(self, step: int) -> list[data.MicroBatch]:
        """The micro-batches of a step."""
        size = self.trainer.protocol["micro_batch_size"]
        return data.micro_batches([self.rows["train"][i] for i in self.order[step]], size, self.kind, self.pad)

    def initialize(self) -> None:
        """The method's data-dependent start, on batches of the probe's own order."""
        protocol, streams = self.trainer.protocol, self.trainer.streams
        size = protocol["micro_batch_size"]
        rows = self.rows["train"]
        lengths = [row.length for row in rows]

        def chosen(number: int) -> list[data.Row]:
            return [rows[i] for i in data.order(lengths, 1, size, 1, streams.seed("probe", number))[0]]

        probe = TrainingProbe(self.trainer, chosen, lambda rows: data.collate(rows, self.kind, self.pad))
        streams.seed_torch("init", "initialize")
        self.trainer.method.initialize(self.trainer.model, probe)
        self.tokens_probed = probe.tokens

    def validate(self, curve: Curve, phases: Phases) -> None:
        """Mean validation loss now, into the curve and the record."""
        if self._validation is None:
            size = self.trainer.protocol["eval_batch_size"]
            self._validation = data.micro_batches(self.rows["validation"], size, self.kind, self.pad)
        with phases("validate"), SupervisedLogits(self.trainer.model) as logits:
            self.trainer.restore_hook()
            loss = validation_loss(self.trainer.model, self._validation, logits, self.trainer.autocast)
        self.trainer.state.validations.append([self.trainer.state.step, loss])
        curve.validation(self.trainer.state.step, loss)

    def facts(self) -> dict:
        """Counts of the record: parameters, tokens, the steps of one pass."""
        model, state = self.trainer.model, self.trainer.state
        parameters = dict(model.named_parameters())
        head = sum(p.numel() for p in self.trainer.head)
        trained = sum(p.numel() for n, p in parameters.items() if p.requires_grad) - head
        effective = self.trainer.method.effective_parameters(model)
        rows = self.rows["train"]
        batch = self.trainer.protocol["batch_size"]
        return {
            "epoch_steps": -(-len(rows) // batch),
            "examples": {
                "train": len(rows),
                "validation": len(self.rows["validation"]),
                "cut": sum(r.cut for r in rows),
            },
            "overlap": self.overlap,
            "tokens": {"supervised": state.supervised_tokens, "total": state.total_tokens, "probe": self.tokens_probed},
            "parameters": {
                "trained": trained,
                "effective": trained if effective is None else effective,
                "head": head,
                "total": sum(p.numel() for p in parameters.values()),
            },
        }


def base_folder(model: str) -> Path | None:
    """The base checkpoint's folder; None for a random-init model, which is made anew from its own seed."""
    return None if "tiny" in catalogue()["models"][model] else asset_folder(model)


def labels(corpus: object, architecture: str) -> int | None:
    """Outputs of the task head: the number of classes, 1 for a value, None for a model without a head."""
    if architecture not in ("encoder", "image"):
        return None
    return len(corpus.classes) or 1


def build(training: Training, phases: Phases, at_least: int = 0) -> Setup:
    """Load, attach and encode, for the protocol's number of steps or ``at_least`` so many (stage cost)."""
    protocol = training.protocol
    device = choose_device(protocol["threads"])
    streams = Streams(training.seed, protocol["streams"])
    with phases("load"):
        corpus = load_plugin("corpora", training.corpus, **training.corpus_fields())
        architecture = catalogue()["models"][training.model]["architecture"]
        dtype = DTYPE[protocol["precision"]]
        head_seed = streams.seed("init", "head")
        model, tokenizer = models.load_model(training.model, labels(corpus, architecture), dtype, head_seed)
        model.to(device)
        train, validation, overlap = split_examples(corpus, protocol["remove_overlap"])
        validation = validation[: protocol["validation_examples"]]
        rows = {
            split: data.encode(examples, corpus, tokenizer, models.kind(model), protocol["max_length"])
            for split, examples in (("train", train), ("validation", validation))
        }
        total = max(_steps(protocol, len(rows["train"])), at_least)
        order = data.order(
            [row.length for row in rows["train"]],
            total,
            protocol["batch_size"],
            protocol["length_bucketing"],
            streams.seed("order"),
        )
        method = load_plugin("methods", training.method, **training.hyperparameters_given())
        head = attach(model, method, total, dtype, streams)
        if protocol["activation_checkpointing"]:
            model.activation_checkpointing_enable({"use_reentrant": False})
    trainer = Trainer(model, method, protocol, streams, total, head)
    return Setup(training, trainer, rows, order, models.padding_id(tokenizer), overlap)


def split_examples(corpus: Corpus, remove: bool) -> tuple[list[Example], list[Example], dict[str, int]]:
    """The corpus's training and validation rows, without those that its test rows give away, and how many these are.

    A search chooses by the validation rows, so what the tests have in common with them would be a look at the tests.
    Counts are empty where the corpus has no test rows at hand; ``remove`` False keeps all and counts.
    """
    train, validation = (list(corpus.examples(split, asset_folder)) for split in ("train", "validation"))
    tests = corpus.tests(asset_folder)
    if not tests:
        return train, validation, {}
    found = overlaps([*train, *validation], tests)
    kept, held = (
        [example for example, how in zip(rows, hows, strict=True) if not (how and remove)]
        for rows, hows in ((train, found[: len(train)]), (validation, found[len(train) :]))
    )
    if not kept:
        raise UserError(
            f"corpus {type(corpus).__name__} {corpus.task}: all {len(train)} training rows overlap with its test rows "
            "(harness/overlap.py). Is its training file the test file? protocol.remove_overlap: false would keep them."
        )
    removed = {"removed": len(train) - len(kept), "validation_removed": len(validation) - len(held)}
    return kept, held, {**counted(found[: len(train)], len(tests)), **removed}


def _steps(protocol: dict, rows: int) -> int:
    """Optimizer steps of a whole training: the protocol's, or its number of passes over the rows."""
    return max(1, protocol["steps"] or round(protocol["epochs"] * rows / protocol["batch_size"]))


def attach(model: torch.nn.Module, method: object, total: int, dtype: torch.dtype, streams: Streams) -> list:
    """Freeze everything, let the method attach, make what trains float32; the task head's (name, parameter) pairs."""
    head = float32_head(model)  # first: a method that notes the base's types must find the head's own
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    streams.seed_torch("init", "attach")
    method.attach(model, Run(total, dtype, models.find_targets))
    for _, parameter in head:
        parameter.requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    return head


def float32_head(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """Raise the task head to float32 where the base is bfloat16; its (name, parameter) pairs.

    The head belongs to the protocol: it is the same for every method, trained, merged and predicted with, and for the
    untuned model. Its modules take their inputs in float32.
    """
    head = models.head_parameters(model)
    low = {id(parameter) for _, parameter in head if parameter.dtype == torch.bfloat16}
    for module in model.modules():
        if any(id(parameter) in low for parameter in module.parameters(recurse=False)):
            module.register_forward_pre_hook(lambda _, inputs: tuple(x.float() for x in inputs))
    for _, parameter in head:
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    return head
