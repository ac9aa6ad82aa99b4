"""Models that answer an eval's requests: a language model through lm-evaluation-harness, or a task head.

Which requests share a batch depends on the requests and the batch size alone, so a prediction that was interrupted, or
run again, gives the same numbers to the last bit.
"""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor, nn

from harness import conversation, data, models, one_row
from harness.contract import Choices, Generate, Labelled, Reference, Request
from harness.failures import BadAnswer, UserError
from harness.packed_linear import PackedLinears
from harness.seeds import Streams
from harness.shared_context import Pair, scores
from harness.trimmed_hflm import TrimmedHFLM, autocast

CHECKED_CONTEXTS, CHECKED_TOKENS = 4, 64  # of the comparison of the attached model with the merged one
ROUNDS = 16  # times the batch size: greedy generations of one batch; those that end give their places to the next
PLACES = 4  # times the batch size: greedy generations side by side at most; fewer where memory says so
LIKELIHOOD_TOKENS = 32  # times the batch size: the most padded tokens of a likelihood's batch; more is slower on a CPU


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
        self.lm = TrimmedHFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=batch_size, mixed_precision_dtype=autocast
        )
        self.lm.places = PLACES * batch_size
        self.packed = PackedLinears(self.lm.model) if autocast is None else contextlib.nullcontext()

    @property
    def answering(self) -> dict:
        """How it answered so far, for the record: what multiplies, how texts were generated, how many side by side."""
        way = "refilled places" if self.lm.refills else "transformers' generate"
        return {"linear": _linear(self.packed), "greedy_generation": way, "places": self.lm.places_used}

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
                size, request = self.batch_size, asked[indices[0]].request
                if isinstance(request, Generate):
                    size *= ROUNDS if request.temperature == 0 and self.lm.refills else 1
                else:
                    size = max(1, min(size, size * LIKELIHOOD_TOKENS // -keys[indices[0]][0]))
                cut.append(indices[:size])
                indices = indices[size:]
        return cut

    def answer(self, batch: Sequence[Asked]) -> list[dict]:
        """Outputs of the requests of one batch, in their order."""
        with self.packed:
            return self._answer(batch)

    def _answer(self, batch: Sequence[Asked]) -> list[dict]:
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
        text = self._shown(request) + (request.continuation if isinstance(request, Reference) else "")
        return -len(self.lm.tok_encode(text)), text

    def _shown(self, request: Request) -> str:
        """What the model goes on from: a conversation in the form in which it would be trained on."""
        turns = getattr(request, "turns", ())
        return conversation.asked(turns, self.lm.tokenizer) if turns else request.context

    def _choices(self, requests: list[Choices]) -> list[dict]:
        """A context is read once: HFLM does so where continuations differ in their last token only, else we do."""
        pairs = [
            (row, (request.context, text)) for row, request in enumerate(requests) for text in request.continuations
        ]
        encoded = [(row, pair, *self._encoded(*pair)) for row, pair in pairs]
        found = iter(self._after_their_contexts(encoded) or self._scored([one for _, *one in encoded], True))
        outputs = []
        for request in requests:
            own = [next(found) for _ in request.continuations]
            outputs.append({"loglikelihoods": [value for value, _ in own], "greedy": [greedy for _, greedy in own]})
        return outputs

    def _after_their_contexts(self, encoded: list[tuple]) -> list[tuple[float, bool]] | None:
        """Scores of (row of the request, texts, context, continuation); None where HFLM's way is as short or the only one."""
        contexts = {row: context for row, _, context, _ in encoded}
        longest = max(len(context) + len(continuation) for *_, context, continuation in encoded)
        if (
            all(len(continuation) == 1 for *_, continuation in encoded)
            or min(map(len, contexts.values())) < 2
            or longest > self.lm.max_length
            or self.lm.backend != "causal"
            or not self.lm.forgets_nothing
        ):
            return None
        tokens, model = self.batch_size * LIKELIHOOD_TOKENS, self.lm.model
        with torch.no_grad(), autocast(self.lm.device, self.lm.mixed_precision_dtype):
            if one_row.possible(model) and longest <= one_row.LONGEST:
                own: dict[int, list[list[int]]] = defaultdict(list)
                for row, *_, continuation in encoded:
                    own[row].append(continuation)
                return one_row.scores(model, list(contexts.values()), list(own.values()), tokens, self.lm.device)
            pairs = [Pair(row, tuple(continuation)) for row, *_, continuation in encoded]
            return scores(model, list(contexts.values()), pairs, tokens, self.lm.device)

    def _references(self, requests: list[Reference]) -> list[dict]:
        """A text without context that is longer than the model's window is read window after window, as stock does."""
        owners, encoded = [], []
        for owner, request in enumerate(requests):
            for window in self._windows(*self._encoded(request.context, request.continuation)):
                owners.append(owner)
                encoded.append((("", ""), *window))
        outputs = [{"nll": 0.0, "tokens": 0} for _ in requests]
        for owner, (_, _, tokens), (value, _) in zip(owners, encoded, self._scored(encoded, False), strict=True):
            outputs[owner]["nll"] -= value
            outputs[owner]["tokens"] += len(tokens)
        return outputs

    def _windows(self, context: list[int], continuation: list[int]) -> list[tuple[list[int], list[int]]]:
        if len(context) > 1 or len(continuation) <= self.lm.max_length:
            return [(context, continuation)]
        rolling = get_rolling_token_windows(continuation, self.lm.prefix_token_id, self.lm.max_length, 1)
        return [make_disjoint_window(window) for window in rolling]

    def _scored(
        self, encoded: list[tuple[tuple[str, str], list[int], list[int]]], grouped: bool
    ) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy) of each continuation.

        ``grouped``: what is equal but for its last token is read once. HFLM takes equal tokens for that even where
        contexts end at different places, as windows of a text that repeats itself do.
        """
        self.lm.logits_cache = grouped
        longest = max(len(context) + len(continuation) for _, context, continuation in encoded)
        self.lm.positions = max(longest - len(context) for _, context, continuation in encoded)
        rows = min(self.batch_size, max(1, self.batch_size * LIKELIHOOD_TOKENS // longest))
        try:
            return self.lm._loglikelihood_tokens(encoded, disable_tqdm=True, override_bs=rows)
        finally:
            self.lm.positions = None

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
        contexts = [self._shown(request) for request in requests for _ in range(request.samples)]
        instances = [
            Instance("generate_until", {}, (context, settings), index) for index, context in enumerate(contexts)
        ]
        self.lm.generated_tokens, self.lm.batch_size_per_gpu = [], len(contexts)
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
        self.packed = PackedLinears(self.model) if autocast is None else contextlib.nullcontext()

    @property
    def answering(self) -> dict:
        return {"linear": _linear(self.packed)}

    def batches(self, asked: Sequence[Asked]) -> list[list[int]]:
        """Indices into ``asked`` by batch, longest input first."""
        lengths = [row.length for row in self._rows(asked)]
        order = sorted(range(len(asked)), key=lambda index: -lengths[index])
        return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]

    def answer(self, batch: Sequence[Asked]) -> list[dict]:
        """Outputs of the requests of one batch, in their order."""
        logits = self.logits(batch)
        if logits.shape[-1] == 1:
            return [{"value": value} for value in logits.squeeze(-1).tolist()]
        for one in batch:
            if len(one.request.continuations) != logits.shape[-1]:
                raise BadAnswer(
                    f"item {one.item} asks to choose among {len(one.request.continuations)} answers, and the model's head "
                    f"has {logits.shape[-1]} classes: it was trained on a corpus of other classes than this eval's"
                )
        return [
            {"loglikelihoods": row.tolist(), "greedy": [index == int(row.argmax()) for index in range(len(row))]}
            for row in logits.log_softmax(-1)
        ]

    def logits(self, batch: Sequence[Asked]) -> Tensor:
        """(rows, outputs of the head), float32, on the CPU. Inputs are encoded as they were for the training."""
        inputs = data.collate(self._rows(batch), self.kind, self.pad).inputs
        device = next(self.model.parameters()).device
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        with torch.no_grad(), autocast(device, self.autocast), self.packed:
            return self.model(**inputs).logits.float().cpu()

    def _rows(self, asked: Sequence[Asked]) -> list[data.Row]:
        for one in asked:
            if not isinstance(one.request, Choices) or one.request.input is None:
                raise UserError(
                    f"item {one.item} asks for {type(one.request).__name__} without an input to classify; a model "
                    "with a task head answers Choices with `input` only. Score this eval with a language model."
                )
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
        ids = _checked_ids(one.request, tokenizer)
        inputs = {"input_ids": torch.tensor([ids], device=device)}
        if kind == "seq2seq":
            inputs["decoder_input_ids"] = torch.full((1, 1), model.config.decoder_start_token_id, device=device)
        with torch.no_grad(), autocast(device, dtype):
            rows.append(model(**inputs, use_cache=False).logits[0].float().cpu())
    return torch.cat(rows)


def _checked_ids(request: Request, tokenizer: Any) -> list[int]:
    """The last tokens of the context; without one, the prefix token and the first of what is scored after it."""
    ids = tokenizer(request.context)["input_ids"] if request.context else []
    if ids:
        return ids[-CHECKED_TOKENS:]
    prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id  # as in HFLM
    text = request.continuation if isinstance(request, Reference) else ""
    return [prefix, *tokenizer(text, add_special_tokens=False)["input_ids"]][:CHECKED_TOKENS]


def _linear(packed: Any) -> str:
    return "oneDNN, packed" if isinstance(packed, PackedLinears) and packed else "torch"


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
