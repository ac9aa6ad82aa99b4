"""Greedy generation in places that are refilled: a text that has ended gives its place to the next request.

Each place holds the keys and values of one text from column 0 on, in tensors made once; a step reads the newest token of
every text and writes each at its own column. Which texts stand side by side depends on the requests alone. Works through
transformers' own cache and mask, so for any decoder whose cache forgets nothing; twin: ``model.generate``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from harness.shared_prefix import LEAST, read, repeated

CACHE_BYTES = 2**30  # that the keys and values of all places may take
PREFILL_TOKENS = 1024  # padded tokens of contexts that are read at a time
REFILL = (
    16  # a part of this size of all places must be free before they are refilled, so that contexts are read together
)

# What a generation config may say without a change to greedy decoding.
HARMLESS = {"bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "max_length", "max_new_tokens"}
HARMLESS |= {"do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "use_cache", "transformers_version"}
HARMLESS |= {"_from_model_config", "cache_implementation", "output_attentions", "output_hidden_states"}


def is_plain(model: nn.Module) -> bool:
    """Whether greedy decoding takes the largest logit: the model's own settings ask for no penalty and no beams."""
    return set(model.generation_config.to_diff_dict()) <= HARMLESS


class StopRule:
    """A text ends in one of the tokens ``ends``, or when its newest tokens contain a stop string."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], ends: set[int]):
        self.tokenizer, self.ends = tokenizer, ends
        self.stops = [stop for stop in stops if stop]
        # Two tokens more than the stop string takes by itself: after other text it may be cut up differently.
        self.reach = 2 + max((len(tokenizer.encode(s, add_special_tokens=False)) for s in self.stops), default=0)

    def met(self, texts: Sequence[Sequence[int]]) -> list[bool]:
        """Whether each text, of one generated token or more, has ended."""
        tails = self.tokenizer.batch_decode([text[-self.reach :] for text in texts])
        return [
            text[-1] in self.ends or any(stop in tail for stop in self.stops)
            for text, tail in zip(texts, tails, strict=True)
        ]


def generate(
    model: nn.Module, contexts: Sequence[Sequence[int]], limit: int, rule: StopRule, most: int, device: torch.device
) -> tuple[list[list[int]], int]:
    """(tokens after each context, the one that ended them included; how many stood side by side at most, by memory)."""
    places = _Places(model, contexts, limit, most, device)
    waiting, written = list(range(len(contexts)))[::-1], [[] for _ in contexts]
    while waiting or places.owners:
        free = places.room - len(places.owners)
        if waiting and (free >= max(1, places.room // REFILL) or not places.owners):
            joining = [waiting.pop() for _ in range(min(free, len(waiting)))]
            newest, owners = places.read(joining), joining
        else:
            newest, owners = places.step(), list(places.owners)
        for owner, token in zip(owners, newest, strict=True):
            written[owner].append(token)
        over = rule.met([written[owner] for owner in owners])
        ended = [owner for owner, met in zip(owners, over, strict=True) if met or len(written[owner]) == limit]
        places.leave(ended)
    return written, places.room


class _Places:
    """The texts under way. The first ``len(owners)`` rows of every layer's tensors are in use."""

    def __init__(
        self, model: nn.Module, contexts: Sequence[Sequence[int]], limit: int, most: int, device: torch.device
    ):
        self.model, self.contexts, self.device = model, contexts, device
        self.common = _common(contexts)
        start = torch.tensor([list(contexts[0][: max(1, self.common)])], device=device)
        self.head = read(model, start, torch.ones_like(start)).past_key_values  # also tells what a token takes
        columns = max(map(len, contexts)) + limit
        of_token = sum(t[0, :, 0].nbytes for layer in self.head.layers for t in (layer.keys, layer.values))
        self.room = max(1, min(most, len(contexts), CACHE_BYTES // (columns * of_token)))
        self.layers = [_Layer(layer, self.room, columns) for layer in self.head.layers]
        self.cache = Cache(layers=self.layers)
        self.owners: list[int] = []
        self.lengths: list[int] = []  # columns written
        self.newest: list[int] = []  # tokens that no column holds yet

    def read(self, joining: Sequence[int]) -> list[int]:
        """Contexts take places; the first token after each."""
        found: list[int] = []
        while len(found) < len(joining):
            longest = max(len(self.contexts[owner]) for owner in joining[len(found) :]) - self.common
            part = joining[len(found) : len(found) + max(1, PREFILL_TOKENS // longest)]
            found += self._read_part(part, longest)
        self.newest += found
        return found

    def _read_part(self, part: Sequence[int], width: int) -> list[int]:
        """Rows of (common tokens | padding | the rest): only what is not common is read."""
        ids, mask = (torch.zeros(len(part), width, dtype=torch.long, device=self.device) for _ in range(2))
        for row, owner in enumerate(part):
            rest = torch.tensor(self.contexts[owner][self.common :], device=self.device)
            ids[row, width - len(rest) :], mask[row, width - len(rest) :] = rest, 1
        before = repeated(self.head, len(part)) if self.common else None
        mask = torch.cat((mask.new_ones(len(part), self.common), mask), 1)
        out = read(self.model, ids, mask, before)
        for row, owner in enumerate(part):
            for layer, source in zip(self.layers, out.past_key_values.layers, strict=True):
                layer.place(len(self.owners), source, row, self.common, len(self.contexts[owner]))
            self.owners.append(owner)
            self.lengths.append(len(self.contexts[owner]))
        return out.logits[:, -1].float().argmax(-1).tolist()

    def step(self) -> list[int]:
        """The next token of every text."""
        at = torch.tensor(self.lengths, device=self.device)
        used = max(self.lengths) + 1
        for layer in self.layers:
            layer.at, layer.used = at, used
        ids = torch.tensor(self.newest, device=self.device)[:, None]
        mask = (torch.arange(used, device=self.device) <= at[:, None]).long()
        out = read(self.model, ids, mask, self.cache)
        self.lengths = [length + 1 for length in self.lengths]
        self.newest = out.logits[:, -1].float().argmax(-1).tolist()
        return self.newest

    def leave(self, ended: Sequence[int]) -> None:
        """The last text moves to where one ended, so that those under way stand together."""
        for owner in ended:
            place, last = self.owners.index(owner), len(self.owners) - 1
            for layer in self.layers:
                layer.move(last, place, self.lengths[last])
            for values in (self.owners, self.lengths, self.newest):
                values[place] = values[last]
                values.pop()


class _Layer(CacheLayerMixin):
    """Keys and values of one layer, (places, heads, columns, size)."""

    def __init__(self, like: CacheLayerMixin, places: int, columns: int):
        super().__init__()
        self.keys, self.values = (
            t.new_zeros(places, t.shape[1], columns, t.shape[-1]) for t in (like.keys, like.values)
        )
        self.is_initialized = True
        self.at, self.used = torch.zeros(0, dtype=torch.long), 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write one token a place at its own column; what attention reads: every place up to the longest."""
        rows = torch.arange(len(self.at), device=self.at.device)
        self.keys[rows, :, self.at], self.values[rows, :, self.at] = key_states[:, :, 0], value_states[:, :, 0]
        return self.keys[: len(rows), :, : self.used], self.values[: len(rows), :, : self.used]

    def place(self, place: int, source: CacheLayerMixin, row: int, common: int, length: int) -> None:
        """Take a context's row of a cache that is padded after ``common`` tokens."""
        for own, other in ((self.keys, source.keys), (self.values, source.values)):
            own[place, :, :common] = other[row, :, :common]
            own[place, :, common:length] = other[row, :, other.shape[2] - (length - common) :]

    def move(self, source: int, target: int, length: int) -> None:
        if source != target:
            for tensor in (self.keys, self.values):
                tensor[target, :, :length] = tensor[source, :, :length]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Made at once."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.used, 0

    def get_seq_length(self) -> int:
        return self.used - 1

    def get_max_length(self) -> int:
        return self.keys.shape[2]


def _common(contexts: Sequence[Sequence[int]]) -> int:
    """How many tokens all contexts begin with; each keeps one of its own. 0 where reading them apart gains nothing."""
    first, last = min(contexts), max(contexts)  # in order of tokens: what these two share, all share
    same = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    same = min(same, min(map(len, contexts)) - 1)
    return same if len(contexts) > 1 and same >= LEAST else 0
