"""Stages predict and score: stock answers for less work, resumption, seeds, merging, rows for what goes wrong."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import types

import pytest
import torch

from harness import decoding, failures, one_row, predict, record, score, train, trimmed_hflm
from harness.cells import predict_record, score_record, train_record
from harness.contract import Choices, Generate, NotMergeable, Reference
from harness.failures import BadAnswer, UserError
from harness.language_model import Asked, LanguageModel, answerer, checked_logits
from harness.plugins import ROOT
from harness.rows import read_rows, write_rows
from harness.seeds import Streams
from harness.shared_prefix import common_first, common_tokens
from harness.suite import PROTOCOL, load_suite
from harness.tiny import tiny_model

PROTOCOL = {**PROTOCOL, "eval_batch_size": 4, "max_length": 64}
WORDS = ["the", "sun", "sees", "an", "old", "tree", "and", "a", "moon", "sees", "the", "new", "bird"]
CONTEXTS = [" ".join(WORDS[: 2 + (5 * n) % 11]) + ":" for n in range(11)]

SUITE = """
suite: tiny
protocol: {steps: 2, batch_size: 4, micro_batch_size: 4, max_length: 64, validation_examples: 4, eval_batch_size: 4}
variants: {lora: {method: lora, rank: 2, learning_rate: 0.05}}
grid:
  - {models: [tiny-llama], corpora: [generated-pairs, generated-labels, generated-chat], variants: [lora], seeds: [0]}
"""


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def stock(model, tokenizer, size=4):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size)


def instances(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, argument, n) for n, argument in enumerate(arguments)]


def answers(replies, asked):
    """Outputs in the order of ``asked``, batch by batch."""
    found = {}
    for batch in replies.batches(asked):
        found.update(zip(batch, replies.answer([asked[i] for i in batch]), strict=True))
    return [found[index] for index in range(len(asked))]


def ask(requests):
    return [Asked(f"i{n}", 0, request) for n, request in enumerate(requests)]


# --------------------------------------------------------------------------- the twin: stock HFLM

DECODERS = ("llama", "qwen2", "bloom", "gpt2")


@pytest.mark.parametrize("family", [*DECODERS, "t5"])
def test_likelihoods_equal_stock(family):
    model, tokenizer = tiny_model(family)
    kind = "seq2seq" if family == "t5" else "causal"
    pairs = [(c, text) for n, c in enumerate(CONTEXTS) for text in (" a", " b", f" longer {n}")]
    expected = stock(model, tokenizer).loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    replies = answerer(model, tokenizer, kind, PROTOCOL, Streams(0))
    choices = answers(replies, ask([Choices(c, (" a", " b", f" longer {n}")) for n, c in enumerate(CONTEXTS)]))
    flat = [pair for out in choices for pair in zip(out["loglikelihoods"], out["greedy"], strict=True)]
    assert [greedy for _, greedy in flat] == [greedy for _, greedy in expected]
    assert [v for v, _ in flat] == pytest.approx([v for v, _ in expected], abs=1e-4)
    references = answers(replies, ask([Reference(c, f" longer {n}") for n, c in enumerate(CONTEXTS)]))
    assert [-out["nll"] for out in references] == pytest.approx([v for v, _ in expected[2::3]], abs=1e-4)
    count = len(tokenizer(" longer 3", add_special_tokens=False)["input_ids"])
    assert references[3]["tokens"] == count


@pytest.fixture(params=["places", "generate"])
def loop(request, monkeypatch):
    """Both ways to generate: refilled places, and transformers' own ``generate`` in segments."""
    if request.param == "generate":
        monkeypatch.setattr(trimmed_hflm.TrimmedHFLM, "refills", False)
    return request.param


def read_at_a_time(tokens, monkeypatch):
    for module in (trimmed_hflm, decoding):
        monkeypatch.setattr(module, "PREFILL_TOKENS", tokens)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("stops", [("e", "\n"), ("never to be met",)])
@pytest.mark.parametrize("prefill", [1024, 50])
@pytest.mark.parametrize("size", [1, 4])  # 4 places, each refilled; or one for every context
def test_generations_equal_stock(family, stops, prefill, size, loop, monkeypatch):
    read_at_a_time(prefill, monkeypatch)
    model, tokenizer = tiny_model(family)
    settings = {"until": list(stops), "max_gen_toks": 40, "do_sample": False}
    arguments = [(context, settings) for context in CONTEXTS]
    expected = stock(model, tokenizer).generate_until(instances("generate_until", arguments), disable_tqdm=True)
    replies = answerer(model, tokenizer, "causal", {**PROTOCOL, "eval_batch_size": size}, Streams(0))
    outputs = answers(replies, ask([Generate(context, stops, 40) for context in CONTEXTS]))
    assert [out["texts"][0] for out in outputs] == expected
    assert all(1 <= out["tokens"][0] <= 40 for out in outputs)
    assert replies.lm.places_used == {"generate": 0, "places": min(4 * size, len(CONTEXTS))}[loop]


def test_a_stop_string_may_begin_and_end_within_tokens():
    class Pairs:
        """Tokens are pairs of letters."""

        def encode(self, text, add_special_tokens):
            return [ord(letter) for letter in text[::2]]

        def batch_decode(self, rows):
            return ["".join({0: "ab", 1: "cd", 2: "xy"}[token] for token in row) for row in rows]

    rule = decoding.StopRule(Pairs(), ["bc", ""], {2})
    assert rule.met([[0], [0, 1], [1, 0], [0, 2], [0, 1, 0], [0, 1] + [0] * rule.reach]) == [
        False,
        True,
        False,
        True,
        True,
        False,  # it ended long ago, and is asked no more
    ]


@pytest.mark.parametrize("context", ["", "the moon sees " * 9])
def test_contexts_without_tokens_and_longer_than_the_window_are_stock_s(context, loop):
    model, tokenizer = tiny_model("llama")
    model.config.max_position_embeddings = 48  # what HFLM takes for the window
    contexts = [*CONTEXTS[:3], context]
    settings = {"until": ["e"], "max_gen_toks": 10, "do_sample": False}
    arguments = [(text, settings) for text in contexts]
    expected = stock(model, tokenizer).generate_until(instances("generate_until", arguments), disable_tqdm=True)
    replies = answerer(model, tokenizer, "causal", PROTOCOL, Streams(0))
    outputs = answers(replies, ask([Generate(text, ("e",), 10) for text in contexts]))
    assert [out["texts"][0] for out in outputs] == expected


def test_a_penalty_of_the_model_s_own_is_left_to_generate():
    model, tokenizer = tiny_model("qwen2")
    model.generation_config.repetition_penalty = 1.7
    settings = {"until": ["never"], "max_gen_toks": 20, "do_sample": False}
    arguments = [(context, settings) for context in CONTEXTS]
    expected = stock(model, tokenizer, 11).generate_until(instances("generate_until", arguments), disable_tqdm=True)
    replies = answerer(model, tokenizer, "causal", {**PROTOCOL, "eval_batch_size": 11}, Streams(0))
    outputs = answers(replies, ask([Generate(context, ("never",), 20) for context in CONTEXTS]))
    assert not replies.lm.refills and [out["texts"][0] for out in outputs] == expected


def test_places_are_as_many_as_memory_allows(monkeypatch):
    model, _ = tiny_model("llama")
    contexts = [[5, 6, 7, 8 + n] for n in range(7)]
    of_token = 2 * sum(m.out_features for name, m in model.named_modules() if name.endswith("k_proj")) * 4
    rule = decoding.StopRule(tiny_model("llama")[1], [], set())
    expected, room = decoding.generate(model, contexts, 6, rule, 64, torch.device("cpu"))
    assert room == 7
    monkeypatch.setattr(decoding, "CACHE_BYTES", 3 * 10 * of_token)
    assert decoding.generate(model, contexts, 6, rule, 64, torch.device("cpu")) == (expected, 3)


SHOTS = "the moon sees an old bird: it sings\n" * 3


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("prefill", [1024, 30])
def test_a_common_beginning_is_read_once_and_answers_equal_stock(family, prefill, loop, monkeypatch):
    read_at_a_time(prefill, monkeypatch)
    model, tokenizer = tiny_model(family)
    contexts = [SHOTS + context for context in CONTEXTS]
    settings = {"until": ["e", "\n"], "max_gen_toks": 12, "do_sample": False}
    arguments = [(context, settings) for context in contexts]
    expected = stock(model, tokenizer, 11).generate_until(instances("generate_until", arguments), disable_tqdm=True)
    read, plain = [], model.forward

    @functools.wraps(plain)  # transformers looks at the names of the arguments
    def forward(input_ids, **rest):
        read.append(tuple(input_ids.shape))
        return plain(input_ids, **rest)

    model.forward = forward
    replies = answerer(model, tokenizer, "causal", {**PROTOCOL, "eval_batch_size": 11}, Streams(0))
    outputs = answers(replies, ask([Generate(context, ("e", "\n"), 12) for context in contexts]))
    assert [out["texts"][0] for out in outputs] == expected
    common = len(tokenizer(SHOTS + "the sun")["input_ids"])
    assert read[0] == (1, common) and sum(rows * tokens for rows, tokens in read[1:] if tokens > common) == 0


def test_tokens_in_common_are_those_of_all_rows_padding_aside():
    context = torch.tensor([[0, 0, 5, 6, 7], [5, 6, 8, 9, 9], [0, 5, 6, 7, 7]])
    mask = (context != 0).long()
    assert common_tokens(context, mask) == 2
    moved, seen = common_first(context, mask, 2)
    assert moved.tolist() == [[5, 6, 0, 0, 7], [5, 6, 8, 9, 9], [5, 6, 0, 7, 7]]
    assert seen.tolist() == [[1, 1, 0, 0, 1], [1, 1, 1, 1, 1], [1, 1, 0, 1, 1]]
    same = torch.tensor([[5, 6, 7], [5, 6, 7]])
    assert common_tokens(same, torch.ones_like(same)) == 2  # each row keeps a token of its own
    assert common_tokens(same[:1], torch.ones(1, 3)) == 0
    other = torch.tensor([[5, 6, 7], [4, 6, 7]])
    assert common_tokens(other, torch.ones_like(other)) == 0


def test_a_sliding_window_is_generated_whole(monkeypatch):
    monkeypatch.setattr(trimmed_hflm, "PREFILL_TOKENS", 50)
    sliding = {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention"] * 2}
    model, tokenizer = tiny_model("qwen2", **sliding)
    settings = {"until": ["never"], "max_gen_toks": 20, "do_sample": False}
    arguments = [(context, settings) for context in CONTEXTS]
    expected = stock(model, tokenizer).generate_until(instances("generate_until", arguments), disable_tqdm=True)
    outputs = answers(
        answerer(model, tokenizer, "causal", PROTOCOL, Streams(0)), ask([Generate(c, ("never",), 20) for c in CONTEXTS])
    )
    assert [out["texts"][0] for out in outputs] == expected


def test_a_seq2seq_model_generates_as_many_tokens_as_asked_for():
    model, tokenizer = tiny_model("t5")
    replies = answerer(model, tokenizer, "seq2seq", PROTOCOL, Streams(0))
    outputs = answers(replies, ask([Generate(context, ("never",), 12) for context in CONTEXTS]))
    assert all(out["tokens"][0] <= 12 for out in outputs) and max(out["tokens"][0] for out in outputs) == 12


def repeat_last_letter(model, tokenizer, ends):
    """Make ``model`` repeat a row's last letter; ``ends[letter]``: (length of the row, token) after which it is that token.

    Returns the list of the numbers of rows of each forward, which grows as the model is used.
    """
    rows = []
    plain = model.forward

    def forward(input_ids, attention_mask=None, **rest):
        out = plain(input_ids, attention_mask=attention_mask, **rest)
        rows.append(len(input_ids))
        whole = torch.full((len(input_ids),), out.past_key_values.get_seq_length())  # transformers drops full masks
        lengths = (whole if attention_mask is None else attention_mask.sum(1)).tolist()
        for row, (token, length) in enumerate(zip(input_ids[:, -1].tolist(), lengths, strict=True)):
            limit, end = ends.get(tokenizer.decode([token]), (0, 0))
            out.logits[row, -1] = 0.0
            out.logits[row, -1, token if length < limit else end] = 50.0
        return out

    model.forward = forward
    return rows


def test_finished_rows_leave_the_batch_and_tokens_are_counted_to_the_stop():
    model, tokenizer = tiny_model("llama")
    newline, end = tokenizer("\n")["input_ids"][0], tokenizer.eos_token_id
    rows = repeat_last_letter(model, tokenizer, {"a": (3, newline), "b": (32, newline), "c": (99, 0), "d": (6, end)})
    replies = answerer(model, tokenizer, "causal", PROTOCOL, Streams(0))
    outputs = answers(replies, ask([Generate(context, ("\n",), 40) for context in ("a", "bb", "ccc", "dddd")]))
    assert [out["texts"][0] for out in outputs] == ["a" * 2, "b" * 30, "c" * 40, "d" * 2]
    assert [out["tokens"][0] for out in outputs] == [3, 31, 40, 3]  # with the token that ended it, or up to the limit
    assert rows == [1] + [4] * 3 + [2] * 28 + [1] * 9  # the first tells what a token's keys and values take


def test_a_model_may_end_in_several_tokens():
    model, tokenizer = tiny_model("llama")
    bang = tokenizer("!")["input_ids"][0]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, bang]
    repeat_last_letter(model, tokenizer, {"a": (3, bang), "b": (50, bang)})
    settings = {"until": ["never"], "max_gen_toks": 20, "do_sample": False}
    expected = stock(model, tokenizer).generate_until(
        instances("generate_until", [(context, settings) for context in ("a", "bb")]), disable_tqdm=True
    )
    replies = answerer(model, tokenizer, "causal", PROTOCOL, Streams(0))
    outputs = answers(replies, ask([Generate(context, ("never",), 20) for context in ("a", "bb")]))
    assert [out["texts"][0] for out in outputs] == expected == ["aa!", "b" * 20]
    assert [out["tokens"][0] for out in outputs] == [3, 20]


def test_an_empty_context_is_the_prefix_token_as_in_stock():
    model, tokenizer = tiny_model("llama")
    expected = stock(model, tokenizer).loglikelihood(instances("loglikelihood", [("", "a text")]), disable_tqdm=True)
    found = answers(answerer(model, tokenizer, "causal", PROTOCOL, Streams(0)), ask([Reference("", "a text")]))
    assert found[0]["nll"] == pytest.approx(-expected[0][0], abs=1e-4) and found[0]["tokens"] == 6


@pytest.mark.parametrize("window", [7, 40, 400])
def test_a_long_text_is_read_window_after_window_as_in_stock(window):
    model, tokenizer = tiny_model("llama")
    model.config.max_position_embeddings = window  # what HFLM takes for the model's window
    texts = [" ".join(WORDS), "a tree", "the moon " * 20]
    expected = stock(model, tokenizer).loglikelihood_rolling(
        instances("loglikelihood_rolling", [(text,) for text in texts]), disable_tqdm=True
    )
    replies = answerer(model, tokenizer, "causal", PROTOCOL, Streams(0))
    found = answers(replies, ask([Reference("", text) for text in texts]))
    assert [-out["nll"] for out in found] == pytest.approx(expected, abs=1e-3)
    assert [out["tokens"] for out in found] == [len(tokenizer(text)["input_ids"]) for text in texts]


def test_one_token_continuations_cost_one_forward_a_context():
    model, tokenizer = tiny_model("llama")
    rows = []
    plain = model.forward
    model.forward = lambda ids, **rest: (rows.append(len(ids)), plain(ids, **rest))[1]
    replies = answerer(model, tokenizer, "causal", PROTOCOL, Streams(0))
    answers(replies, ask([Choices(context, ("a", "b", "c")) for context in CONTEXTS]))
    assert sum(rows) == len(CONTEXTS)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("shots", ["", SHOTS])
def test_a_context_is_read_once_for_all_its_continuations(family, shots):
    model, tokenizer = tiny_model(family)
    contexts = [shots + context for context in CONTEXTS]
    texts = (" sees a moon", " an old, old tree", " y")
    pairs = [(context, text) for context in contexts for text in texts]
    expected = stock(model, tokenizer).loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    read, plain = [], model.forward

    @functools.wraps(plain)
    def forward(input_ids, **rest):
        read.append(input_ids.numel())
        return plain(input_ids, **rest)

    model.forward = forward
    protocol = {**PROTOCOL, "eval_batch_size": 11}
    outputs = answers(
        answerer(model, tokenizer, "causal", protocol, Streams(0)), ask([Choices(c, texts) for c in contexts])
    )
    flat = [pair for out in outputs for pair in zip(out["loglikelihoods"], out["greedy"], strict=True)]
    assert [v for v, _ in flat] == pytest.approx([v for v, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in flat] == [greedy for _, greedy in expected]
    whole = sum(len(tokenizer(context + text)["input_ids"]) for context, text in pairs)
    assert sum(read) < (0.5 if shots else 0.8) * whole


@pytest.mark.parametrize("family", DECODERS)
def test_continuations_stand_in_one_row_where_positions_can_be_given(family, monkeypatch):
    """The other way, from a cache of the context, gives the same; ALiBi knows no other."""
    model, tokenizer = tiny_model(family)
    assert one_row.possible(model) == (family != "bloom")
    asked = ask([Choices(context, (" sees a moon", " an old, old tree", " y")) for context in CONTEXTS])
    found = answers(answerer(model, tokenizer, "causal", PROTOCOL, Streams(0)), asked)
    monkeypatch.setattr(one_row, "possible", lambda model: False)
    other = answers(answerer(model, tokenizer, "causal", PROTOCOL, Streams(0)), asked)
    for a, b in zip(found, other, strict=True):
        assert a["greedy"] == b["greedy"]
        assert a["loglikelihoods"] == pytest.approx(b["loglikelihoods"], abs=1e-4)


def test_contexts_of_one_token_and_forgetting_caches_are_scored_pair_by_pair():
    sliding = {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention"] * 2}
    texts = (" sees a moon", " an old, old tree")
    for contexts, (model, tokenizer) in (
        (["a", *CONTEXTS], tiny_model("llama")),
        (CONTEXTS, tiny_model("qwen2", **sliding)),
    ):
        pairs = [(context, text) for context in contexts for text in texts]
        expected = stock(model, tokenizer).loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
        outputs = answers(
            answerer(model, tokenizer, "causal", PROTOCOL, Streams(0)), ask([Choices(c, texts) for c in contexts])
        )
        assert [v for out in outputs for v in out["loglikelihoods"]] == pytest.approx(
            [v for v, _ in expected], abs=1e-4
        )


def test_answers_hardly_depend_on_the_batch_size():
    model, tokenizer = tiny_model("bloom")
    asked = ask([Reference(context, " and so on") for context in CONTEXTS])
    found = [
        [out["nll"] for out in answers(LanguageModel(model, tokenizer, size, Streams(0), None), asked)]
        for size in (1, 11)
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_samples_depend_on_seed_and_item_and_on_nothing_else():
    model, tokenizer = tiny_model("llama")

    def sampled(seed, asked, **streams):
        replies = answerer(model, tokenizer, "causal", PROTOCOL, Streams(seed, streams))
        return {one.item: out["texts"] for one, out in zip(asked, answers(replies, asked), strict=True)}

    asked = ask([Generate(context, ("never",), 8, temperature=1.0, samples=3) for context in CONTEXTS[:4]])
    whole = sampled(0, asked)
    assert sampled(0, asked[2:]) == {key: whole[key] for key in ("i2", "i3")}
    assert len(set(whole["i0"])) > 1 and sampled(1, asked) != whole
    assert sampled(1, asked, generation=0) == whole
    greedy = ask([Generate(CONTEXTS[0], ("never",), 8, samples=2)])
    with pytest.raises(UserError, match="temperature above 0"):
        sampled(0, greedy)


# --------------------------------------------------------------------------- task heads


def test_a_head_classifies_pairs_of_texts_as_a_plain_forward_does():
    model, tokenizer = tiny_model("roberta", num_labels=3)
    replies = answerer(model, tokenizer, "encoder", {**PROTOCOL, "max_length": 256}, Streams(0))
    pairs = [(context, "another text") for context in CONTEXTS]
    outputs = answers(replies, ask([Choices("", ("a", "b", "c"), input=list(pair)) for pair in pairs]))
    for pair, out in zip(pairs, outputs, strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(*pair, return_tensors="pt")).logits[0].log_softmax(-1)
        assert out["loglikelihoods"] == pytest.approx(expected.tolist(), abs=1e-5)
        assert out["greedy"].index(True) == int(expected.argmax())


def test_a_head_of_one_output_gives_a_value():
    model, tokenizer = tiny_model("roberta", num_labels=1)
    outputs = answers(answerer(model, tokenizer, "encoder", PROTOCOL, Streams(0)), ask([Choices("", (), input="x")]))
    assert list(outputs[0]) == ["value"] and isinstance(outputs[0]["value"], float)


def test_a_head_refuses_to_write():
    model, tokenizer = tiny_model("roberta")
    replies = answerer(model, tokenizer, "encoder", PROTOCOL, Streams(0))
    asked = ask([Generate("x", ("y",), 3)])
    with pytest.raises(UserError, match="item i0 asks for Generate without an input"):
        replies.batches(asked)
    with pytest.raises(UserError, match="item i0 asks for Generate without an input"):
        checked_logits(model, tokenizer, "encoder", PROTOCOL, asked)  # of the merge, before anything is answered


def test_a_head_of_other_classes_than_the_eval_s_is_refused():
    model, tokenizer = tiny_model("roberta", num_labels=2)
    replies = answerer(model, tokenizer, "encoder", PROTOCOL, Streams(0))
    with pytest.raises(BadAnswer, match="item i0 asks to choose among 3 answers, and the model's head has 2 classes"):
        answers(replies, ask([Choices("", ("a", "b", "c"), input="x")]))


# --------------------------------------------------------------------------- the stages


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A suite whose cells are trained; results lie in a folder of their own."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "tiny.yaml").write_text(SUITE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for corpus in ("generated-pairs", "generated-labels", "generated-chat"):
            for variant in ("untuned", "lora"):
                assert train.main(cell(corpus, variant)) == 0
    return folder


@pytest.fixture
def here(world, monkeypatch):
    monkeypatch.chdir(world)
    return load_suite("tiny.yaml")


def cell(corpus, variant, evaluation=None):
    named = ["--suite", "tiny.yaml", "--model", "tiny-llama", "--corpus", corpus, "--variant", variant, "--seed", "0"]
    return named + (["--eval", evaluation] if evaluation else [])


def run(corpus, variant, suite):
    """Predict and score a cell; both records."""
    training = suite.training("tiny-llama", corpus, variant, 0)
    if variant != "majority":
        assert predict.main(cell(corpus, variant, corpus)) == 0
    assert score.main(cell(corpus, variant, corpus)) == 0
    predicted = record.read(predict_record(training, corpus)) if variant != "majority" else None
    return predicted, record.read(score_record(training, corpus))


def rows_of(content, folder, name):
    entry = content["files"][name]
    assert record.digest(folder / entry["file"]) == entry["sha256"]
    return read_rows(folder / entry["file"])


@pytest.mark.parametrize("corpus", ["generated-pairs", "generated-labels", "generated-chat"])
def test_records_say_what_was_answered_and_how_it_was_graded(here, corpus):
    untuned, _ = run(corpus, "untuned", here)
    tuned, graded = run(corpus, "lora", here)
    training = here.training("tiny-llama", corpus, "lora", 0)
    folder = predict_record(training, corpus).parent
    assert tuned["status"] == graded["status"] == "ok"
    assert tuned["key"] == training.predict_key(corpus) and graded["key"] == training.score_key(corpus)
    assert tuned["merged"] and 0 < tuned["merge_error"] < 1e-4 and untuned["merge_error"] == 0
    answered, grades = rows_of(tuned, folder, "predictions"), rows_of(graded, folder, "grades")
    assert [row["item"] for row in answered] == [row["item"] for row in grades]
    assert len(answered) == tuned["n_items"] == graded["n_items"] == 16
    assert sum(len(row["outputs"]) for row in answered) == tuned["n_requests"]
    assert all(len(row["prompt_sha256"]) == 64 for row in answered)
    assert tuned["files"]["predictions"]["sha256"] != untuned["files"]["predictions"]["sha256"]
    written = [sum(o["tokens"]) for row in answered for o in row["outputs"] if "texts" in o]
    assert tuned["tokens_generated"] == sum(written)
    places = 16 if written else 0
    assert tuned["answering"] == {"linear": "oneDNN, packed", "greedy_generation": "refilled places", "places": places}
    assert graded["headline"] in graded["metrics"] and set(graded["metrics"]) <= set(graded["units"])
    assert graded["generated"] is True and graded["label"].endswith("(generated)")
    assert not (folder / "predictions.part.jsonl").exists()
    if corpus == "generated-pairs":
        assert graded["signatures"]["bleu"].startswith("nrefs:1|")


def test_the_majority_row_needs_no_predictions(here):
    _, graded = run("generated-labels", "majority", here)
    assert graded["metrics"] == {"accuracy": 50.0} and graded["at_floor"] is True
    with pytest.raises(UserError, match="majority row has no model"):
        predict.main(cell("generated-labels", "majority", "generated-labels"))


def test_an_interrupted_prediction_goes_on_and_ends_with_the_same_bytes(here, monkeypatch, capsys):
    training = here.training("tiny-llama", "generated-pairs", "lora", 0)
    whole, _ = run("generated-pairs", "lora", here)
    folder = predict_record(training, "generated-pairs").parent
    batches = []
    plain = LanguageModel.answer

    def stopping(self, batch):
        batches.append(len(batch))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return plain(self, batch)

    monkeypatch.setattr(LanguageModel, "answer", stopping)
    with pytest.raises(KeyboardInterrupt):
        predict.main(cell("generated-pairs", "lora", "generated-pairs"))
    part = folder / "predictions.part.jsonl"
    kept = part.read_text(encoding="utf-8")
    before = batches[0] + batches[1]
    assert kept.count("\n") == 1 + before
    part.write_text(kept + '["3", 0, {"tex', encoding="utf-8")  # a kill in the middle of a line
    batches.clear()
    monkeypatch.setattr(
        LanguageModel, "answer", lambda self, batch: (batches.append(len(batch)), plain(self, batch))[1]
    )
    again, _ = run("generated-pairs", "lora", here)
    assert again["files"] == whole["files"] and sum(batches) == whole["n_requests"] - before
    assert f"going on after {before} answers" in capsys.readouterr().out

    part.write_bytes(kept.encode() + b"\0" * 40 + b"\n\xff\n")  # a power cut
    batches.clear()
    again, _ = run("generated-pairs", "lora", here)
    assert again["files"] == whole["files"] and sum(batches) == whole["n_requests"] - before

    part.write_text('"another prediction"\n' + kept.split("\n", 1)[1], encoding="utf-8")
    batches.clear()
    again, _ = run("generated-pairs", "lora", here)
    assert again["files"] == whole["files"] and sum(batches) == whole["n_requests"]


def test_downstream_of_a_failed_training_nothing_heavy_is_imported(here, world):
    training = here.training("tiny-llama", "generated-labels", "lora", 0)
    path, kept = train_record(training), train_record(training).read_text()
    path.write_text(json.dumps({**json.loads(kept), "status": "oom", "reason": "killed"}))
    arguments = cell("generated-labels", "lora", "generated-labels")
    code = (
        f"import sys; from harness import predict, score; a = {arguments!r}; assert predict.main(a) == 0; "
        "assert score.main(a) == 0; sys.exit('torch' in sys.modules)"
    )
    try:
        done = subprocess.run([sys.executable, "-c", code], cwd=world, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert done.returncode == 0
        for name in ("predict.json", "score.json"):
            content = record.read(predict_record(training, "generated-labels").with_name(name))
            assert (content["status"], content["reason"]) == ("skipped", "train oom")
    finally:
        path.write_text(kept)


def test_another_specification_s_training_is_refused(here):
    training = here.training("tiny-llama", "generated-labels", "lora", 0)
    path, kept = train_record(training), train_record(training).read_text()
    path.write_text(json.dumps({**json.loads(kept), "key": "0123"}))
    try:
        with pytest.raises(UserError, match="another specification"):
            predict.main(cell("generated-labels", "lora", "generated-labels"))
    finally:
        path.write_text(kept)
    missing = cell("generated-labels", "lora", "generated-labels")
    path.rename(path.with_suffix(".away"))
    try:
        with pytest.raises(UserError, match="train first"):
            predict.main(missing)
    finally:
        path.with_suffix(".away").rename(path)


def test_a_method_that_cannot_merge_is_predicted_as_attached(here, monkeypatch):
    from tuning_fork_methods.lora import LoRA  # loaded by the trainings of ``world``

    merged, _ = run("generated-pairs", "lora", here)

    def refuse(self, model):
        raise NotMergeable("not this one")

    monkeypatch.setattr(LoRA, "merge", refuse)
    attached, graded = run("generated-pairs", "lora", here)
    assert (attached["merged"], attached["merge_error"], attached["merge_reason"]) == (False, None, "not this one")
    assert graded["status"] == "ok" and attached["n_requests"] == merged["n_requests"]


@pytest.fixture
def delta(here):
    """The trained numbers of a cell; they and the record that has their hash are put back afterwards."""
    path = here.training("tiny-llama", "generated-labels", "lora", 0).folder / "delta.safetensors"
    kept = {file: file.read_bytes() for file in (path, path.with_name("train.json"))}
    yield path
    for file, content in kept.items():
        file.write_bytes(content)


def sign(path, name):
    """Give a record the hash that its file has now."""
    content = record.read(path)
    content["files"][name] = record.file_entry(path.parent / content["files"][name]["file"])
    record.write(path, content)


def test_trained_numbers_and_predictions_are_those_that_their_records_name(delta, here):
    delta.write_bytes(delta.read_bytes()[:-1] + b"x")
    with pytest.raises(record.Damaged, match="delta.safetensors is not the file that the record was written with"):
        predict.main(cell("generated-labels", "lora", "generated-labels"))
    delta.unlink()
    with pytest.raises(record.Damaged, match="delta.safetensors is missing"):
        predict.main(cell("generated-labels", "lora", "generated-labels"))
    run("generated-labels", "untuned", here)
    path = predict_record(here.training("tiny-llama", "generated-labels", "untuned", 0), "generated-labels").parent
    write_rows(path / "predictions.jsonl.zst", read_rows(path / "predictions.jsonl.zst")[:7])
    with pytest.raises(record.Damaged, match="predictions.jsonl.zst is not the file"):
        score.main(cell("generated-labels", "untuned", "generated-labels"))


@pytest.mark.parametrize("factor", [0.0, float("nan")])
def test_a_wrong_merge_is_a_row_and_no_score(delta, here, factor, monkeypatch):
    from safetensors.torch import load_file, save_file
    from tuning_fork_methods import lora

    save_file({name: tensor + 0.5 for name, tensor in load_file(str(delta)).items()}, str(delta))
    sign(delta.with_name("train.json"), "delta")
    right = lora.unwrap
    wrong = lambda model, kind, merged: right(model, kind, lambda layer, weight: merged(layer, weight) * factor)  # noqa: E731
    monkeypatch.setattr(lora, "unwrap", wrong)
    with pytest.raises(BadAnswer, match="method LoRA: the merged model's logits differ .* Its merge.. is wrong"):
        predict.main(cell("generated-labels", "lora", "generated-labels"))
    assert failures.classify(BadAnswer("so")) == (0, ("error", "so"))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"acuracy": 50.0}, "aggregate() gives no 'accuracy', which is the headline; it gives acuracy"),
        ({"accuracy": float("nan")}, "aggregate() gives accuracy = nan, which is no number"),
        ({"accuracy": "50 %"}, "aggregate() gives accuracy = '50 %', which is no number"),
        (None, "aggregate() gives no 'accuracy', which is the headline; it gives NoneType"),
    ],
)
def test_metrics_that_are_no_numbers_are_a_row_with_the_reason(here, given, reason, monkeypatch):
    run("generated-labels", "untuned", here)
    from tuning_fork_evals.generated_labels import GeneratedLabels

    monkeypatch.setattr(GeneratedLabels, "aggregate", lambda self, grades: given)
    _, graded = run("generated-labels", "untuned", here)
    assert (graded["status"], graded["reason"]) == ("error", reason)


@pytest.mark.parametrize("damage", ["unknown", "missing"])
def test_a_delta_that_does_not_fit_is_refused(delta, here, damage):
    from safetensors.torch import load_file, save_file

    path = delta
    tensors = load_file(str(path))
    name = next(iter(tensors))
    tensors = {**tensors, "model.nowhere": tensors[name].clone()} if damage == "unknown" else {**tensors}
    if damage == "missing":
        del tensors[name]
    save_file(tensors, str(path))
    sign(path.with_name("train.json"), "delta")
    with pytest.raises(UserError, match="nowhere" if damage == "unknown" else f"lacks {name}"):
        predict.main(cell("generated-labels", "lora", "generated-labels"))


def test_a_grade_that_raises_is_a_row_that_names_the_item(here, monkeypatch):
    run("generated-labels", "untuned", here)
    from tuning_fork_evals.generated_labels import GeneratedLabels

    plain = GeneratedLabels.grade

    def broken(self, item, outputs):
        if item["id"] == "5":
            raise ZeroDivisionError("no letters")
        return plain(self, item, outputs)

    monkeypatch.setattr(GeneratedLabels, "grade", broken)
    _, graded = run("generated-labels", "untuned", here)
    assert graded["status"] == "error"
    assert graded["reason"] == "grading item 5: ZeroDivisionError: no letters"


def test_predictions_of_another_specification_are_refused_unless_the_code_is_pinned(here, monkeypatch):
    predicted, _ = run("generated-labels", "untuned", here)
    training = here.training("tiny-llama", "generated-labels", "untuned", 0)
    path, arguments = (
        predict_record(training, "generated-labels"),
        cell("generated-labels", "untuned", "generated-labels"),
    )
    record.write(path, {**predicted, "key": "of-older-code"})
    with pytest.raises(UserError, match="belongs to another specification .key of-older-code, now"):
        score.main(arguments)
    monkeypatch.setenv("TUNING_FORK_CODE", "pinned")
    assert score.main(arguments) == 0


def test_an_item_without_prediction_is_a_row_that_names_it(here):
    predicted, _ = run("generated-labels", "untuned", here)
    path = predict_record(here.training("tiny-llama", "generated-labels", "untuned", 0), "generated-labels").parent
    rows = read_rows(path / "predictions.jsonl.zst")
    write_rows(path / "predictions.jsonl.zst", rows[:7] + rows[8:])
    sign(path / "predict.json", "predictions")
    assert score.main(cell("generated-labels", "untuned", "generated-labels")) == 0
    graded = record.read(path / "score.json")
    assert (graded["status"], graded["reason"]) == (
        "error",
        "item 7 has no prediction: the eval's items changed, predict again",
    )


def test_a_column_at_its_floor_is_told():
    plugin = types.SimpleNamespace(
        headline="accuracy",
        floors={"accuracy": 50.0},
        aggregate=lambda grades: {"accuracy": 100 * sum(g["correct"] for g in grades) / len(grades)},
    )
    grades = lambda right: [{"correct": int(n < right)} for n in range(100)]  # noqa: E731
    assert [score.at_floor(plugin, grades(right), "key") for right in (20, 50, 55, 70, 100)] == [
        True,
        True,
        True,
        False,
        False,
    ]
    plugin.floors = {}
    assert score.at_floor(plugin, grades(50), "key") is None


def test_rows_come_back_and_equal_rows_are_equal_bytes(tmp_path):
    rows = [{"item": "ä", "outputs": [{"nll": 0.1 + 0.2}]}, {"item": "2", "outputs": []}]
    for name in ("a", "b"):
        write_rows(tmp_path / name, rows)
    assert read_rows(tmp_path / "a") == rows
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
