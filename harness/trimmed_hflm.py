"""lm-evaluation-harness's ``HFLM`` with the same answers for less work, and generation that ends at stop strings."""

from __future__ import annotations

import contextlib
import functools
import inspect
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache, DynamicCache, StoppingCriteria
from transformers.cache_utils import DynamicLayer

from harness import decoding
from harness.decoding import PREFILL_TOKENS, StopRule
from harness.shared_prefix import arranged, joined, read, repeated

SEGMENT = 16  # generated tokens after which finished rows leave the batch


class TrimmedHFLM(HFLM):
    """HFLM with the same answers for less work.

    Likelihoods: only the last ``positions`` logits of each row are computed, where the vocabulary costs most. HFLM
    pads on the right, so its slices are found from the end of what comes back.
    Generation: a row is finished at its own stop string and then leaves the batch; in greedy decoding the next request
    takes its place. HFLM goes on with all rows until all have met one and the same stop string, and then cuts the
    surplus off.
    """

    positions: int | None = None
    generated_tokens: list[int]
    places = 64  # texts that are generated side by side at most, where places are refilled
    places_used = 0  # the most so far

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        trims = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        if attn_mask is not None or self.positions is None or not trims:
            return super()._model_call(inps, attn_mask, labels)
        with torch.no_grad(), autocast(self.device, self.mixed_precision_dtype):
            return self.model(inps, logits_to_keep=self.positions, use_cache=False).logits

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], attention_mask: Tensor, **settings: Any
    ) -> Tensor:
        """(rows, context and up to ``max_length`` tokens); for seq2seq the decoder's tokens, as many as asked for."""
        if not settings.get("do_sample"):
            settings.pop("temperature", None)
        settings |= {"pad_token_id": self.tokenizer.pad_token_id, "use_cache": True, "return_dict_in_generate": True}
        limit = max_length - context.shape[1]
        with torch.no_grad(), autocast(self.device, self.mixed_precision_dtype):
            if self.backend == "seq2seq":
                stopper = self._stopper(stop, 1, len(context))
                asked = {"attention_mask": attention_mask, "max_new_tokens": limit, "stopping_criteria": [stopper]}
                result = self.model.generate(context, **asked, **settings).sequences
                self.generated_tokens += stopper.tokens
                return result
            if settings.get("do_sample") or not self.refills or not attention_mask.any(1).all():
                return self._generate_in_segments(context, attention_mask, limit, stop, settings)
        with torch.inference_mode(), autocast(self.device, self.mixed_precision_dtype):
            return self._generate_in_places(context, attention_mask, limit, stop)

    @functools.cached_property
    def refills(self) -> bool:
        """Whether places can be refilled in greedy decoding; else transformers' own ``generate`` answers."""
        return self.backend == "causal" and self.forgets_nothing and decoding.is_plain(self.model)

    def _generate_in_places(self, context: Tensor, mask: Tensor, limit: int, stop: list[str]) -> Tensor:
        contexts = [row[own.bool()].tolist() for row, own in zip(context, mask, strict=True)]
        rule = self._rule(stop)
        written, used = decoding.generate(self.model, contexts, limit, rule, self.places, context.device)
        self.places_used = max(self.places_used, used)
        self.generated_tokens += map(len, written)
        result = F.pad(context, (0, limit), value=self.tokenizer.pad_token_id)
        for row, tokens in enumerate(written):
            result[row, context.shape[1] : context.shape[1] + len(tokens)] = torch.tensor(tokens)
        return result

    def _generate_in_segments(
        self, context: Tensor, mask: Tensor, limit: int, stop: list[str], settings: dict[str, Any]
    ) -> Tensor:
        """Generation that drops finished rows, and their part of the cache, every ``SEGMENT`` tokens."""
        rows, width = context.shape
        context, mask, common = arranged(context, mask) if self.forgets_nothing else (context, mask, 0)
        result = torch.full((rows, width + limit), settings["pad_token_id"], device=context.device)
        counts = torch.ones(rows, dtype=torch.long)
        going = torch.arange(rows)
        tokens, cache, done = self._first_tokens(context, mask, common, stop, settings)
        while True:
            result[going.to(context.device), : tokens.shape[1]] = tokens
            left = torch.tensor([row for row, over in enumerate(done) if not over], dtype=torch.long)
            going, kept = going[left], left.to(context.device)
            if not len(going) or tokens.shape[1] == width + limit:
                self.generated_tokens += counts.tolist()
                return result
            mask = F.pad(mask[kept], (0, tokens.shape[1] - mask.shape[1]), value=1)
            cache.batch_select_indices(kept)
            stopper = self._stopper(stop, width, len(going))
            new = min(SEGMENT, width + limit - tokens.shape[1])
            asked = {"attention_mask": mask, "max_new_tokens": new, "stopping_criteria": [stopper]}
            out = self.model.generate(tokens[kept], past_key_values=cache, **asked, **settings)
            counts[going] = torch.tensor(stopper.tokens)
            tokens, cache, done = out.sequences, out.past_key_values, stopper.done

    @functools.cached_property
    def forgets_nothing(self) -> bool:
        """A cache that forgets (sliding windows) is not put together from parts."""
        return all(type(layer) is DynamicLayer for layer in DynamicCache(config=self.model.config).layers)

    def _first_tokens(
        self, context: Tensor, mask: Tensor, common: int, stop: list[str], settings: dict[str, Any]
    ) -> tuple[Tensor, Cache, list[bool]]:
        """(context with one more token, cache of the context, rows that are over): a few rows of like length at a time.

        Rows come longest first, ``common`` tokens before their padding, so each part is read without the padding that
        it does not need, and the common tokens once.
        """
        rows, width = context.shape
        room = PREFILL_TOKENS if self.forgets_nothing else rows * width
        lengths = (mask.sum(1) - common).tolist()
        head = read(self.model, context[:1, :common], mask[:1, :common]).past_key_values if common else None
        sequences, caches, done = [], [], []
        while len(done) < rows:
            longest = max(lengths[len(done) :])
            part = slice(len(done), len(done) + max(1, room // longest))
            ids, own = (torch.cat((x[part, :common], x[part, width - longest :]), 1) for x in (context, mask))
            stopper = self._stopper(stop, common + longest, len(ids))
            asked = {"attention_mask": own, "max_new_tokens": 1, "stopping_criteria": [stopper]}
            if head is not None:
                asked["past_key_values"] = repeated(head, len(ids))
            out = self.model.generate(ids, **asked, **settings)
            sequences.append(torch.cat([context[part], out.sequences[:, common + longest :]], dim=1))
            caches.append(out.past_key_values)
            done += stopper.done
        return torch.cat(sequences), caches[0] if len(caches) == 1 else joined(caches, width, common), done

    def _rule(self, stop: list[str]) -> StopRule:
        ends = self.model.generation_config.eos_token_id
        return StopRule(self.tokenizer, stop, {ends} if isinstance(ends, int) else set(ends or ()))

    def _stopper(self, stop: list[str], start: int, rows: int) -> _StopAtText:
        return _StopAtText(self._rule(stop), start, rows)


class _StopAtText(StoppingCriteria):
    """The rule for transformers' ``generate``. ``tokens`` counts what each row generated until its end, that included."""

    def __init__(self, rule: StopRule, start: int, rows: int):
        self.rule, self.start = rule, start
        self.done, self.tokens = [False] * rows, [0] * rows

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        new = input_ids[:, self.start :]
        for row, met in enumerate(self.rule.met(new.tolist())):
            if not self.done[row]:
                self.tokens[row], self.done[row] = new.shape[1], met
        return torch.tensor(self.done, device=input_ids.device)


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    """Mixed precision where ``dtype`` is one."""
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()
