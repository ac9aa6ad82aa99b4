"""Gradients of a real model's matrices: of a batch, and of another one after some steps of full fine-tuning."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from harness import assets, data
from harness.loss import SupervisedLogits, loss_sum
from harness.models import find_targets, load_model
from harness.plugins import load_plugin
from perf import contest


class Gradients:
    """``before`` and ``after``, for each matrix; ``others``: gradients of all parameters. Kept in a file if one is named,
    as the training takes most of the time and no timing."""

    def __init__(self, options: argparse.Namespace, device: torch.device):
        self.model, tokenizer = load_model(options.model, None, torch.float32, 0)
        self.model.to(device).requires_grad_(True).train()
        self.matrices = [module.weight for _, module in find_targets(self.model, "all-linear")]
        asked = [options.model, options.rows, options.length, options.steps]
        if options.gradients and options.gradients.exists():
            kept = torch.load(options.gradients, map_location=device)
            if kept["asked"] != asked:
                raise SystemExit(
                    f"{options.gradients} holds gradients of {kept['asked']}, not of {asked}: name another"
                )
            self.source, self.before, every = kept["source"], kept["before"], kept["every"]
        else:
            self.source, self.before, every = self.made(options, tokenizer, device)
            if options.gradients:
                kept = {"asked": asked, "source": self.source, "before": self.before, "every": every}
                torch.save(kept, options.gradients)
        self.others = dict(zip(self.model.parameters(), every, strict=True))
        self.after = [self.others[p] for p in self.matrices]

    def made(self, options: argparse.Namespace, tokenizer: object, device: torch.device) -> tuple[str, list, list]:
        batches, source = batches_of(options, self.model, tokenizer)
        batches = [batch.to(device) for batch in batches]
        with SupervisedLogits(self.model) as self.logits:
            before = self.gradients(batches[0], self.matrices)
            self.train(batches[1:-1])
            return source, before, self.gradients(batches[-1], list(self.model.parameters()))

    def gradients(self, batch: data.MicroBatch, of: list[Tensor]) -> list[Tensor]:
        self.model.zero_grad()
        (loss_sum(self.model, batch, self.logits) / batch.tokens).backward()
        return [p.grad for p in of]

    def train(self, batches: list[data.MicroBatch]) -> None:
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, weight_decay=0.0, fused=True)
        for number, batch in enumerate(batches):
            self.gradients(batch, [])
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            if number % 50 == 49:
                print(f"full fine-tuning, step {number + 1}/{len(batches)}", flush=True)

    def give(self, gradients: list[Tensor]) -> None:
        for p, gradient in zip(self.matrices, gradients, strict=True):
            p.grad = gradient


def batches_of(options: argparse.Namespace, model: nn.Module, tokenizer: object) -> tuple[list, str]:
    """``steps`` + 2 batches of headlines as running text, or of random tokens where these are not prepared; what they
    are. All tokens carry the loss: the fewer do, the fewer directions a gradient has, and the easier it is."""
    count, rows, length = options.steps + 2, options.rows, options.length
    try:
        examples = load_plugin("corpora", "headlines").examples("train", assets.asset_folder)
    except assets.AssetMissing as error:
        print(f"random tokens instead of headlines: {error}", flush=True)
        made = contest.batches(model.config.vocab_size, rows, length, length - 1, count)
        return made, f"{rows} x {length} random tokens"
    text = "\n".join(example.input for example in examples[: count * rows * length // 8])  # of eight tokens, or more
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    parts = [ids[start : start + length] for start in range(0, count * rows * length, length)]
    made = [data.Row(part, [data.IGNORE, *part[1:]]) for part in parts]
    batches = [data.collate(made[start : start + rows], "causal", 0) for start in range(0, len(made), rows)]
    return batches, f"{rows} x {length} tokens of headlines, all supervised"
