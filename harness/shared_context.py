"""Log-likelihoods of several continuations of one context, which is read once.

Stock evaluation reads context + continuation for each continuation. Here the contexts of a batch are read first, all but
the last token of each, and then the continuations: that last token and theirs, from a copy of the context's keys and
values. Equal to reading each pair as a whole, to the rounding of sums. For models that cannot have all continuations in
the context's own row (harness/one_row.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache

from harness.loss import SupervisedLogits
from harness.shared_prefix import arranged, read, repeated

CACHED = 8  # times the tokens that are read at a time: most that lie before them in the cache


@dataclass(frozen=True)
class Pair:
    """A continuation's tokens and the row of its context in the batch."""

    row: int
    tokens: tuple[int, ...]


def scores(
    model: nn.Module,
    contexts: Sequence[Sequence[int]],
    pairs: Sequence[Pair],
    tokens: int,
    device: torch.device,
) -> list[tuple[float, bool]]:
    """(log-likelihood in nats, whether greedy decoding would write it) of each pair; so many padded ``tokens`` are read at
    a time, after at most ``CACHED`` times as many, and none beside one that is twice as long.

    Every context has two tokens or more. The model's cache must forget nothing (no sliding windows).
    """
    cache, mask = _read([context[:-1] for context in contexts], model, device)
    order = sorted(range(len(pairs)), key=lambda number: -len(pairs[number].tokens))  # so that padding is little
    found: dict[int, tuple[float, bool]] = {}
    with SupervisedLogits(model) as logits:
        while order:
            longest = len(pairs[order[0]].tokens)
            size = max(1, min(tokens // longest, CACHED * tokens // (mask.shape[1] + longest)))
            size = sum(2 * len(pairs[number].tokens) > longest for number in order[:size])
            part, order = order[:size], order[size:]
            scored = _continued(model, logits, contexts, [pairs[number] for number in part], cache, mask)
            found.update(zip(part, scored, strict=True))
    return [found[number] for number in range(len(pairs))]


def _read(contexts: list[Sequence[int]], model: nn.Module, device: torch.device) -> tuple[Cache, Tensor]:
    """(keys and values, attention mask) of contexts, (rows, width), padded on the left or after what all begin with."""
    width = max(map(len, contexts))
    ids, mask = (torch.zeros(len(contexts), width, dtype=torch.long, device=device) for _ in range(2))
    for row, context in enumerate(contexts):
        ids[row, width - len(context) :] = torch.tensor(context, device=device)
        mask[row, width - len(context) :] = 1
    ids, mask, common = arranged(ids, mask)
    if not common:
        return read(model, ids, mask).past_key_values, mask
    head = read(model, ids[:1, :common], mask[:1, :common]).past_key_values
    return read(model, ids[:, common:], mask, repeated(head, len(ids))).past_key_values, mask


def _continued(
    model: nn.Module,
    logits: SupervisedLogits,
    contexts: Sequence[Sequence[int]],
    pairs: Sequence[Pair],
    cache: Cache,
    mask: Tensor,
) -> list[tuple[float, bool]]:
    kept = torch.tensor([pair.row for pair in pairs], device=mask.device)
    asked = [torch.tensor((contexts[pair.row][-1], *pair.tokens), device=mask.device) for pair in pairs]
    ids = pad_sequence(asked, batch_first=True)
    seen = torch.cat((mask[kept], torch.ones_like(ids[:, :-1])), 1)  # what follows a continuation is seen by nothing
    lengths = [len(pair.tokens) for pair in pairs]
    own = torch.arange(ids.shape[1] - 1, device=mask.device) < torch.tensor(lengths, device=mask.device)[:, None]
    logits.positions = own.flatten().nonzero()[:, 0]
    found = read(model, ids[:, :-1], seen, _chosen(cache, kept), positions=0).logits.float()
    wanted = ids[:, 1:][own]
    values = found.log_softmax(-1).gather(1, wanted[:, None])[:, 0].split(lengths)
    greedy = (found.argmax(1) == wanted).split(lengths)
    return [(float(value.sum()), bool(same.all())) for value, same in zip(values, greedy, strict=True)]


def _chosen(cache: Cache, kept: Tensor) -> Cache:
    """A new cache of those rows."""
    made = type(cache)()
    for number, layer in enumerate(cache.layers):
        made.update(layer.keys[kept], layer.values[kept], number)
    return made
