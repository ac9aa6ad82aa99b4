"""Models that answer an eval's requests: a language model through lm-evaluation-harness, or a task head.

Which requests share a batch depends on the requests and the batch size alone, so a prediction that was interrupted, or
run again, gives the same numbers to the last bit.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, StoppingCriteria
from transformers.cache_utils import DynamicLayer

from harness import data, models
from harness.contract import Choices, Generate, Labelled, Reference, Request
from harness.failures import UserError
from harness.seeds import Streams
from harness.shared_context import Pair, scores
from harness.shared_prefix import LEAST, common_first, common_tokens, joined, repeated

CHECKED_CONTEXTS, CHECKED_TOKENS = 4, 64  # of the comparison of the attached model with the merged one
LIKELIHOOD_TOKENS = 32  # times the batch size: the most padded tokens of a likelihood's batch; more is slower on a CPU
PREFILL_TOKENS = 1024  # padded tokens of the contexts that are read at a time before a batch is generated
SEGMENT = 16  # generated tokens after which finished rows leave the batch


@dataclass(frozen=True)
class Asked:
    """A request, with the item that asks it and its place among the item's outputs."""

    item: str
    place: int
    request: Request


def answerer(model: nn.Module, tokenizer: Any, kind: str, protocol: dict, streams: Streams) -> LanguageModel | TaskHead:
    """What answers for a model of that kind ("causal", "seq2seq", "encoder", "image")."""
    dtype = torch.bfloat16 if protocol["precision"] == "bfloat16-mixed" else None
    if kind in ("encoder", "image"):
        return TaskHead(model, tokenizer, kind, protocol["eval_batch_size"], protocol["max_length"], dtype)
    return LanguageModel(model, tokenizer, protocol["eval_batch_size"], streams, dtype)


class LanguageModel:
    """A causal or sequence-to-sequence model behind lm-evaluation-harness's ``HFLM``."""

    def __init__(
        self, model: nn.Module, tokenizer: Any, batch_size: int, streams: Streams, autocast: torch.dtype | None
    ):
        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns that the model is an object, which is intended
        self.batch_size, self.streams = batch_size, streams
        self.lm = _TrimmedHFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=batch_size, mixed_precision_dtype=autocast
        )

    def batches(self, asked: Sequence[Asked]) -> list[list[int]]:
        """Indices into ``asked`` by batch: requests of one kind, longest first, so that padding is little."""
        groups: dict[tuple, list[int]] = defaultdict(list)
        for index, one in enumerate(asked):
            groups[_group(one)].append(index)
        cut = []
        for indices in groups.values():
            keys = {index: self._length(asked[index].request) for index in indices}
            indices.sort(key=keys.__getitem__)
            while indices:
                size = self.batch_size
                if not isinstance(asked[indices[0]].request, Generate):
                    size = max(1, min(size, size * LIKELIHOOD_TOKENS // -keys[indices[0]][0]))
                cut.append(indices[:size])
                indices = indices[size:]
        return cut

    def answer(self, batch: Sequence[Asked]) -> list[dict]:
        """Outputs of the requests of one batch, in their order."""
        request = batch[0].request
        if isinstance(request, Choices):
            return self._choices([one.request for one in batch])
        if isinstance(request, Reference):
            return self._references([one.request for one in batch])
        if request.temperature > 0:
            self.streams.seed_torch("generation", batch[0].item, batch[0].place)
        elif request.samples > 1:
            raise UserError("more than one sample of a greedy generation: give Generate a temperature above 0")
        return self._generations([one.request for one in batch])

    def _length(self, request: Request) -> tuple[int, str]:
        """Sort key: the longest first; a generation's like HFLM's own, whose order the rows then have already."""
        text = request.context + (request.continuation if isinstance(request, Reference) else "")
        return -len(self.lm.tok_encode(text)), text

    def _choices(self, requests: list[Choices]) -> list[dict]:
        """A context is read once: HFLM does so where continuations differ in their last token only, else we do."""
        pairs = [(request.context, text) for request in requests for text in request.continuations]
        found = iter(self._after_their_contexts(requests) or self._loglikelihoods(pairs)[0])
        outputs = []
        for request in requests:
            own = [next(found) for _ in request.continuations]
            outputs.append({"loglikelihoods": [value for value, _ in own], "greedy": [greedy for _, greedy in own]})
        return outputs

    def _after_their_contexts(self, requests: list[Choices]) -> list[tuple[float, bool]] | None:
        """Scores of all continuations in order; None where HFLM's way is as short or the only one."""
        encoded = [[self._encoded(request.context, text) for text in request.continuations] for request in requests]
        contexts = [pairs[0][0] for pairs in encoded]
        flat = [(row, *pair) for row, pairs in enumerate(encoded) for pair in pairs]
        longest = max(len(context) + len(continuation) for _, context, continuation in flat)
        if (
            all(len(continuation) == 1 for *_, continuation in flat)
            or min(map(len, contexts)) < 2
            or longest > self.lm.max_length
            or self.lm.backend != "causal"
            or not self.lm.forgets_nothing()
        ):
            return None
        pairs = [Pair(row, tuple(continuation)) for row, _, continuation in flat]
        with torch.no_grad(), _autocast(self.lm.device, self.lm.mixed_precision_dtype):
            return scores(self.lm.model, contexts, pairs, self.batch_size, self.lm.device)

    def _references(self, requests: list[Reference]) -> list[dict]:
        scores, tokens = self._loglikelihoods([(r.context, r.continuation) for r in requests])
        return [{"nll": -value, "tokens": count} for (value, _), count in zip(scores, tokens, strict=True)]

    def _loglikelihoods(self, pairs: list[tuple[str, str]]) -> tuple[list[tuple[float, bool]], list[int]]:
        """(log-likelihood in nats, whether greedy) of each continuation, and its number of tokens."""
        encoded = [(pair, *self._encoded(*pair)) for pair in pairs]
        longest = max(len(context) + len(continuation) for _, context, continuation in encoded)
        self.lm.positions = max(longest - len(context) for _, context, continuation in encoded)
        try:
            scores = self.lm._loglikelihood_tokens(encoded, disable_tqdm=True)
        finally:
            self.lm.positions = None
        return scores, [len(continuation) for _, _, continuation in encoded]

    def _encoded(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids; a text without context follows the prefix token, as in HFLM."""
        if context:
            return self.lm._encode_pair(context, continuation)
        return [self.lm.prefix_token_id], self.lm.tok_encode(continuation, add_special_tokens=False)

    def _generations(self, requests: list[Generate]) -> list[dict]:
        """HFLM sorts as ``batches`` did, so its rows come in this order. Sampling draws from the whole distribution."""
        first = requests[0]
        settings: dict[str, Any] = {"until": list(first.until), "max_gen_toks": first.max_tokens, "do_sample": False}
        if first.temperature > 0:
            settings |= {"do_sample": True, "temperature": first.temperature, "top_k": 0, "top_p": 1.0}
        contexts = [request.context for request in requests for _ in range(request.samples)]
        instances = [
            Instance("generate_until", {}, (context, settings), index) for index, context in enumerate(contexts)
        ]
        self.lm.generated_tokens = []
        texts, counts = iter(self.lm.generate_until(instances, disable_tqdm=True)), iter(self.lm.generated_tokens)
        return [
            {"texts": [next(texts) for _ in range(r.samples)], "tokens": [next(counts) for _ in range(r.samples)]}
            for r in requests
        ]


class TaskHead:
    """A model with a task head: it classifies, or values, the ``input`` of Choices."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        kind: str,
        batch_size: int,
        max_length: int,
        autocast: torch.dtype | None,
    ):
        self.model, self.tokenizer, self.kind, self.autocast = model.eval(), tokenizer, kind, autocast
        self.batch_size, self.max_length = batch_size, max_length
        self.pad = models.padding_id(tokenizer)

    def batches(self, asked: Sequence[Asked]) -> list[list[int]]:
        """Indices into ``asked`` by batch, longest input first."""
        for one in asked:
            if not isinstance(one.request, Choices) or one.request.input is None:
                raise UserError(
                    f"item {one.item} asks for {type(one.request).__name__} without an input to classify; a model "
                    "with a task head answers Choices with `input` only. Score this eval with a language model."
                )
        lengths = [row.length for row in self._rows(asked)]
        order = sorted(range(len(asked)), key=lambda index: -lengths[index])
        return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]

    def answer(self, batch: Sequence[Asked]) -> list[dict]:
        """Outputs of the requests of one batch, in their order."""
        logits = self.logits(batch)
        if logits.shape[-1] == 1:
            return [{"value": value} for value in logits.squeeze(-1).tolist()]
        return [
            {"loglikelihoods": row.tolist(), "greedy": [index == int(row.argmax()) for index in range(len(row))]}
            for row in logits.log_softmax(-1)
        ]

    def logits(self, batch: Sequence[Asked]) -> Tensor:
        """(rows, outputs of the head), float32, on the CPU. Inputs are encoded as they were for the training."""
        inputs = data.collate(self._rows(batch), self.kind, self.pad).inputs
        device = next(self.model.parameters()).device
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        with torch.no_grad(), _autocast(device, self.autocast):
            return self.model(**inputs).logits.float().cpu()

    def _rows(self, asked: Sequence[Asked]) -> list[data.Row]:
        examples = [Labelled(_tupled(one.request.input), 0) for one in asked]
        return data.encode(examples, None, self.tokenizer, self.kind, self.max_length)


def checked_logits(model: nn.Module, tokenizer: Any, kind: str, protocol: dict, asked: Sequence[Asked]) -> Tensor:
    """Logits (n, outputs) on a few of the requests' contexts, float32: to compare a merged model with the attached."""
    model.eval()
    few = asked[:CHECKED_CONTEXTS]
    dtype = torch.bfloat16 if protocol["precision"] == "bfloat16-mixed" else None
    if kind in ("encoder", "image"):
        return TaskHead(model, tokenizer, kind, protocol["eval_batch_size"], protocol["max_length"], dtype).logits(few)
    device = next(model.parameters()).device
    rows = []
    for one in few:
        ids = tokenizer(one.request.context)["input_ids"][-CHECKED_TOKENS:]
        inputs = {"input_ids": torch.tensor([ids], device=device)}
        if kind == "seq2seq":
            inputs["decoder_input_ids"] = torch.full((1, 1), model.config.decoder_start_token_id, device=device)
        with torch.no_grad(), _autocast(device, dtype):
            rows.append(model(**inputs, use_cache=False).logits[0].float().cpu())
    return torch.cat(rows)


# --------------------------------------------------------------------------- lm-evaluation-harness, trimmed


class _TrimmedHFLM(HFLM):
    """HFLM with the same answers for less work.

    Likelihoods: only the last ``positions`` logits of each row are computed, where the vocabulary costs most. HFLM
    pads on the right, so its slices are found from the end of what comes back.
    Generation: a row is finished at its own stop string and then leaves the batch. HFLM goes on with all rows until all
    have met one and the same stop string, and then cuts the surplus off.
    """

    positions: int | None = None
    generated_tokens: list[int]

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        if attn_mask is not None or self.positions is None or not self._trims():
            return super()._model_call(inps, attn_mask, labels)
        with torch.no_grad(), _autocast(self.device, self.mixed_precision_dtype):
            return self.model(inps, logits_to_keep=self.positions, use_cache=False).logits

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], attention_mask: Tensor, **settings: Any
    ) -> Tensor:
        """(rows, context and up to ``max_length`` tokens); for seq2seq the decoder's tokens, as many as asked for."""
        if not settings.get("do_sample"):
            settings.pop("temperature", None)
        settings |= {"pad_token_id": self.tokenizer.pad_token_id, "use_cache": True, "return_dict_in_generate": True}
        limit = max_length - context.shape[1]
        with torch.no_grad(), _autocast(self.device, self.mixed_precision_dtype):
            if self.backend == "seq2seq":
                stopper = self._stopper(stop, 1, len(context))
                asked = {"attention_mask": attention_mask, "max_new_tokens": limit, "stopping_criteria": [stopper]}
                result = self.model.generate(context, **asked, **settings).sequences
                self.generated_tokens += stopper.tokens
                return result
            return self._generate_in_segments(context, attention_mask, limit, stop, settings)

    def _generate_in_segments(
        self, context: Tensor, mask: Tensor, limit: int, stop: list[str], settings: dict[str, Any]
    ) -> Tensor:
        """Generation that drops finished rows, and their part of the cache, every ``SEGMENT`` tokens."""
        rows, width = context.shape
        common = common_tokens(context, mask) if self.forgets_nothing() else 0
        common = common if common >= LEAST else 0
        context, mask = common_first(context, mask, common)
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

    def _trims(self) -> bool:
        """Whether the model can leave out logits that nobody looks at."""
        return "logits_to_keep" in inspect.signature(self.model.forward).parameters

    def _read(self, ids: Tensor) -> Cache:
        """Keys and values of whole rows of tokens."""
        return self.model(ids, use_cache=True, **({"logits_to_keep": 1} if self._trims() else {})).past_key_values

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
        room = PREFILL_TOKENS if self.forgets_nothing() else rows * width
        lengths = (mask.sum(1) - common).tolist()
        head = self._read(context[:1, :common]) if common else None
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

    def _stopper(self, stop: list[str], start: int, rows: int) -> _StopAtText:
        ends = self.model.generation_config.eos_token_id
        return _StopAtText(self.tokenizer, stop, {ends} if isinstance(ends, int) else set(ends or ()), start, rows)


class _StopAtText(StoppingCriteria):
    """Rows that end in one of the tokens ``ends`` or whose newest tokens contain a stop string.

    ``tokens`` counts what each row generated until then, the end included.
    """

    def __init__(self, tokenizer: Any, stops: list[str], ends: set[int], start: int, rows: int):
        self.tokenizer, self.ends, self.start = tokenizer, ends, start
        self.stops = [stop for stop in stops if stop]
        # Two tokens more than the stop string takes by itself: after other text it may be cut up differently.
        self.reach = 2 + max((len(tokenizer.encode(s, add_special_tokens=False)) for s in self.stops), default=0)
        self.done, self.tokens = [False] * rows, [0] * rows

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        new = input_ids[:, self.start :]
        newest = new[:, -1].tolist()
        for row, tail in enumerate(self.tokenizer.batch_decode(new[:, -self.reach :])):
            if not self.done[row]:
                self.tokens[row] = new.shape[1]
                self.done[row] = newest[row] in self.ends or any(stop in tail for stop in self.stops)
        return torch.tensor(self.done, device=input_ids.device)


def _group(asked: Asked) -> tuple:
    """Requests of equal groups may share a batch; a sampled one stands alone, so that it draws by its own seed."""
    request = asked.request
    if not isinstance(request, Generate):
        return (type(request).__name__,)
    alone = (asked.item, asked.place) if request.temperature > 0 else ()
    return ("Generate", request.until, request.max_tokens, request.temperature, request.samples, *alone)


def _tupled(value: Any) -> Any:
    """A pair of texts that was a list in JSON."""
    return tuple(value) if isinstance(value, list) else value


def _autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()
