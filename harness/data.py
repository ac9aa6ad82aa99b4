"""Examples -> rows of token ids -> the rows of each step -> padded micro-batches.

Loss looks at ``targets``: for a decoder the completion and the end-of-text token, for an encoder the label.
A row is cut to ``max_length`` tokens, its prompt from the left first; running text and conversations lose their end.
Rows of a step are sorted by length, so a micro-batch is padded to its own longest row only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from harness import conversation
from harness.contract import Completion, Conversation, Corpus, Example, Labelled, SequenceToSequence, Text
from harness.failures import BadRow

IGNORE = -100  # a target position without loss, as in transformers


@dataclass(frozen=True)
class Row:
    """One encoded example. ``targets[i]`` is the token that ``ids[i]`` is (decoder) or its own sequence (seq2seq)."""

    ids: Any  # list of token ids, or an image array (channels, height, width)
    targets: Any  # list of ids with IGNORE where there is no loss; or the label
    types: tuple[int, ...] | None = None  # token types of a pair (BERT)
    cut: bool = False

    @property
    def length(self) -> int:
        return len(self.ids) if isinstance(self.ids, list) else 1

    @property
    def supervised(self) -> int:
        return sum(t != IGNORE for t in self.targets) if isinstance(self.targets, list) else 1


def encode(examples: Sequence[Example], corpus: Corpus, tokenizer: Any, kind: str, max_length: int) -> list[Row]:
    """Rows of all examples for a model of that kind. Raises BadRow naming the first row that cannot be trained on."""
    rows = []
    for number, example in enumerate(examples):
        try:
            rows.append(_encode(example, corpus, tokenizer, kind, max_length))
        except ValueError as error:
            raise BadRow(f"corpus {type(corpus).__name__} row {number}: {error}") from None
    if not rows:
        raise BadRow(f"corpus {type(corpus).__name__} {corpus.task} has no examples in this split")
    return rows


def _encode(example: Example, corpus: Corpus, tokenizer: Any, kind: str, max_length: int) -> Row:
    if kind in ("encoder", "image"):
        if not isinstance(example, Labelled):
            raise ValueError(f"a model with a task head needs Labelled examples, not {type(example).__name__}")
        return _labelled(example, tokenizer, kind, max_length)
    if kind == "seq2seq" and isinstance(example, Conversation | Text):
        raise ValueError(
            f"a sequence-to-sequence model learns a target from a source, and a {type(example).__name__} has none; "
            "train a decoder on this corpus, or give it Completion or SequenceToSequence examples"
        )
    if isinstance(example, Conversation):
        return _conversation(example, tokenizer, max_length)
    if isinstance(example, Text):
        ids = tokenizer(example.text, add_special_tokens=False)["input_ids"]
        if len(ids) < 2:
            raise ValueError("running text of fewer than two tokens has nothing to predict")
        return Row(ids[:max_length], [IGNORE, *ids[1:max_length]], cut=len(ids) > max_length)
    prompt, completion = _as_completion(example, corpus)
    if not completion.strip():
        raise ValueError("the completion is empty; remove the row or give it a text")
    if kind == "seq2seq":
        source = tokenizer(prompt)["input_ids"]
        target = tokenizer(completion.strip())["input_ids"]
        # From the left, as evaluation does: the question and the end token stand on the right.
        return Row(source[-max_length:], target[:max_length], cut=max(len(source), len(target)) > max_length)
    return _completion(prompt, completion, tokenizer, max_length)


def _as_completion(example: Example, corpus: Corpus) -> tuple[str, str]:
    if isinstance(example, Completion):
        return example.prompt, example.completion
    if isinstance(example, SequenceToSequence):
        return corpus.prompt(example), " " + example.target
    word = corpus.classes[int(example.label)] if corpus.classes else f"{example.label:g}"
    return corpus.prompt(example), " " + word


def _completion(prompt: str, completion: str, tokenizer: Any, max_length: int) -> Row:
    """Tokens of prompt + completion encoded as one text, as lm-evaluation-harness scores it; then the end of text."""
    whole, start = _tokens(prompt + completion, tokenizer), len(_tokens(prompt, tokenizer))
    start = max(1, min(start, len(whole) - 1))  # a decoder predicts nothing before its first token
    whole = [*whole, tokenizer.eos_token_id]
    over = max(0, len(whole) - max_length)
    lost = min(over, start - 1)  # of the prompt, from the left
    ids = whole[lost:][:max_length]
    first = start - lost
    if first >= len(ids):
        raise ValueError(f"max_length {max_length} leaves no room for the completion")
    return Row(ids, [IGNORE] * first + ids[first:], cut=over > 0)


def _tokens(text: str, tokenizer: Any) -> list[int]:
    """Token ids with what the tokenizer puts before a text (Llama's begin token), without an end token after it."""
    ids = tokenizer(text)["input_ids"]
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def _conversation(example: Conversation, tokenizer: Any, max_length: int) -> Row:
    """The conversation in the model's form; assistant turns are supervised. Too long a one loses its last turns."""
    ids, spans = conversation.encoded(example.turns, tokenizer)
    targets = [IGNORE] * len(ids)
    for first, end in spans:
        targets[first:end] = ids[first:end]
    if all(t == IGNORE for t in targets[1:max_length]):
        raise ValueError(f"no assistant turn within max_length {max_length}: nothing to learn")
    targets[0] = IGNORE
    return Row(ids[:max_length], targets[:max_length], cut=len(ids) > max_length)


def _labelled(example: Labelled, tokenizer: Any, kind: str, max_length: int) -> Row:
    if kind == "image":
        pixels = torch.as_tensor(np.asarray(example.input)).permute(2, 0, 1).float() / 127.5 - 1
        return Row(pixels, example.label)
    pair = example.input if isinstance(example.input, tuple) else (example.input,)
    encoded = tokenizer(*pair, truncation=True, max_length=max_length)
    types = encoded.get("token_type_ids")
    return Row(list(encoded["input_ids"]), example.label, tuple(types) if types else None)


# --------------------------------------------------------------------------- order


def order(lengths: Sequence[int], steps: int, batch_size: int, bucketing: int, seed: int) -> list[list[int]]:
    """Row numbers of each step: passes over shuffled rows, sorted by length within ``bucketing`` steps.

    The order depends on rows, protocol and seed only, and fewer steps are the first of more, so every method of a suite sees
    the same. A window of steps ends where a pass has no whole batch left; what is left over begins the next.
    """
    generator = np.random.default_rng(seed)
    batches: list[list[int]] = []
    stream: list[int] = []
    while True:
        stream += generator.permutation(len(lengths)).tolist()
        whole = len(stream) // batch_size * batch_size
        for start in range(0, whole, bucketing * batch_size):
            window = stream[start : min(start + bucketing * batch_size, whole)]
            rows = sorted(window, key=lambda row: -lengths[row])
            cut = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
            batches += [cut[i] for i in generator.permutation(len(cut))]
            if len(batches) >= steps:
                return batches[:steps]
        stream = stream[whole:]


# --------------------------------------------------------------------------- micro-batches


@dataclass
class MicroBatch:
    """Model inputs, where the loss looks, and how many targets there are.

    ``positions``: (n,) indices into the flattened (rows * length) logits; None for a task head.
    ``targets``: (n,) token ids or classes (int64), or values (float32).
    """

    inputs: dict[str, torch.Tensor]
    positions: torch.Tensor | None
    targets: torch.Tensor
    tokens: int  # supervised
    total_tokens: int  # without padding

    def to(self, device: torch.device) -> MicroBatch:
        if device.type == "cpu":
            return self
        self.inputs = {k: v.to(device, non_blocking=True) for k, v in self.inputs.items()}
        self.positions = None if self.positions is None else self.positions.to(device, non_blocking=True)
        self.targets = self.targets.to(device, non_blocking=True)
        return self


def micro_batches(rows: Sequence[Row], size: int, kind: str, pad: int) -> list[MicroBatch]:
    """The rows of one step as micro-batches of at most ``size`` rows, longest first."""
    rows = sorted(rows, key=lambda row: -row.length)
    return [collate(rows[i : i + size], kind, pad) for i in range(0, len(rows), size)]


def collate(rows: Sequence[Row], kind: str, pad: int) -> MicroBatch:
    """Pad to the longest of these rows, on the right."""
    total = sum(row.length for row in rows)
    if kind == "image":
        inputs = {"pixel_values": torch.stack([row.ids for row in rows])}
        return MicroBatch(inputs, None, _labels(rows), len(rows), total)
    inputs = {
        "input_ids": _padded([r.ids for r in rows], pad),
        "attention_mask": _padded([[1] * r.length for r in rows], 0),
    }
    if kind == "encoder":
        if rows[0].types is not None:
            inputs["token_type_ids"] = _padded([list(r.types) for r in rows], 0)
        return MicroBatch(inputs, None, _labels(rows), len(rows), total)
    targets = _padded([r.targets for r in rows], IGNORE)
    if kind == "seq2seq":
        inputs["labels"] = targets  # taken out by the loop, which derives the decoder's inputs
        positions = (targets.flatten() != IGNORE).nonzero().squeeze(1)
        chosen = targets.flatten()[positions]
        return MicroBatch(inputs, positions, chosen, len(chosen), total + len(chosen))
    shifted = torch.full_like(targets, IGNORE)
    shifted[:, :-1] = targets[:, 1:]  # logits at position t predict the token at t + 1
    positions = (shifted.flatten() != IGNORE).nonzero().squeeze(1)
    return MicroBatch(inputs, positions, shifted.flatten()[positions], len(positions), total)


def _padded(lists: Sequence[list[int]], value: int) -> torch.Tensor:
    width = max(len(ids) for ids in lists)
    return torch.tensor([[*ids, *[value] * (width - len(ids))] for ids in lists])


def _labels(rows: Sequence[Row]) -> torch.Tensor:
    floating = any(isinstance(row.targets, float) for row in rows)
    return torch.tensor([row.targets for row in rows], dtype=torch.float32 if floating else torch.int64)
