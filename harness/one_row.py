"""Log-likelihoods of several continuations of one context, all of them in one row with it, which is read in one pass.

    row        context | first continuation | second | ...       each continuation without its last token, which nothing follows
    seen       by a token of the context: those before it; by one of a continuation: the context and its own before it
    positions  of each continuation: on from the end of the context

Equal to reading each pair as a whole, to the rounding of sums. What all contexts begin with is read once.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Cache

from harness.loss import SupervisedLogits
from harness.shared_prefix import LEAST, common_start, read, repeated

LONGEST = 4096  # tokens of a context and a continuation: the mask grows with their square


def possible(model: nn.Module) -> bool:
    """Whether the model takes positions and a mask of every pair of tokens: not where distances are biases (ALiBi)."""
    takes = "position_ids" in inspect.signature(model.forward).parameters
    return takes and model.config._attn_implementation == "sdpa" and not getattr(model.config, "alibi", False)


@dataclass(frozen=True)
class Row:
    """A context's tokens after what all contexts begin with, and its continuations'."""

    context: Sequence[int]
    continuations: Sequence[Sequence[int]]

    @property
    def length(self) -> int:
        return len(self.context) + sum(len(tokens) - 1 for tokens in self.continuations)


def scores(
    model: nn.Module,
    contexts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
    tokens: int,
    device: torch.device,
) -> list[tuple[float, bool]]:
    """(log-likelihood in nats, whether greedy decoding would write it) of each context's continuations, one after another;
    so many padded ``tokens`` are read at a time. Every context has two tokens or more."""
    common = common_start(contexts)
    common, cache = common if common >= LEAST else 0, None
    if common:
        head = torch.tensor([contexts[0][:common]], device=device)
        cache = read(model, head, torch.ones_like(head)).past_key_values
    rows = [Row(context[common:], own) for context, own in zip(contexts, continuations, strict=True)]
    order = sorted(range(len(rows)), key=lambda number: -rows[number].length)  # so that padding is little
    found: dict[int, list[tuple[float, bool]]] = {}
    with SupervisedLogits(model) as logits:
        while order:
            size = max(1, tokens // rows[order[0]].length)
            part, order = order[:size], order[size:]
            found.update(zip(part, _scored(model, logits, [rows[n] for n in part], cache, common, device), strict=True))
    return [pair for number in range(len(rows)) for pair in found[number]]


def _scored(
    model: nn.Module,
    logits: SupervisedLogits,
    rows: Sequence[Row],
    cache: Cache | None,
    common: int,
    device: torch.device,
) -> list[list[tuple[float, bool]]]:
    width = rows[0].length
    ids, positions, part = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
    part -= 1  # padding; 0: the context, 1: the first continuation, ...
    looked: list[int] = []  # at the logits of these places, rows laid end to end
    wanted: list[list[tuple[list[int], Sequence[int]]]] = []  # of each continuation: which of those, and its tokens
    for number, row in enumerate(rows):
        size = len(row.context)
        ids[number, :size], positions[number, :size] = torch.tensor(row.context), torch.arange(common, common + size)
        part[number, :size] = 0
        last, place = len(looked), size
        looked.append(number * width + size - 1)
        wanted.append([])
        for count, tokens in enumerate(row.continuations, 1):
            own = slice(place, place := place + len(tokens) - 1)
            ids[number, own] = torch.tensor(tokens[:-1], dtype=torch.long)
            positions[number, own] = torch.arange(common + size, common + size + len(tokens) - 1)
            part[number, own] = count
            wanted[-1].append(([last, *range(len(looked), len(looked) + len(tokens) - 1)], tokens))
            looked += range(number * width + own.start, number * width + own.stop)
    logits.positions = torch.tensor(looked, device=device)
    given = {"attention_mask": _mask(part, common).to(device), "position_ids": positions.to(device)}
    given |= {"past_key_values": repeated(cache, len(rows))} if cache else {"use_cache": False}
    sure = model(ids.to(device), **given).logits.float().log_softmax(-1)
    greedy = sure.argmax(-1)
    return [[_score(sure, greedy, *one) for one in own] for own in wanted]


def _mask(part: Tensor, common: int) -> Tensor:
    """Which keys a query sees: (rows, 1, width, common + width). Padding sees itself, so that its softmax has a number."""
    width = part.shape[1]
    sees = (part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None])
    sees = sees & torch.ones(width, width, dtype=torch.bool).tril()
    before = torch.ones(len(part), width, common, dtype=torch.bool)
    return torch.cat((before, sees), 2)[:, None]


def _score(sure: Tensor, greedy: Tensor, places: Sequence[int], tokens: Sequence[int]) -> tuple[float, bool]:
    where, what = (torch.tensor(list(values), device=sure.device) for values in (places, tokens))
    return float(sure[where, what].sum()), bool((greedy[where] == what).all())
