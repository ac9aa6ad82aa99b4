"""A conversation is trained on in the very form in which it is asked: text, tokens, begin token, ends of turns."""

from __future__ import annotations

import pytest
import torch
from tokenizers import processors

from harness import data
from harness.contract import Conversation, Corpus, Generate, Text
from harness.failures import BadRow, UserError
from harness.language_model import Asked, LanguageModel
from harness.plugins import load_plugin
from harness.seeds import Streams
from harness.tiny import tiny_model

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA2 = (  # the assistant's turn ends in the end token; a system turn is told with the next
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% else %}{% set rest = messages %}{% set first = '' %}{% endif %}{% for m in rest %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (first if loop.first else '') + m['content'] + ' [/INST]' }}{% else %}"
    "{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
FORMS = {"lines": None, "smollm2": SMOLLM2, "llama-3": LLAMA3, "llama-2": LLAMA2}
TURNS = (("user", "say sun"), ("assistant", "sun"), ("user", "twice"), ("assistant", "sun sun"))
SYSTEM = ("system", "Be brief.")


def model_of(form, begins=False):
    """(what answers, tokenizer) of a tiny model that tells conversations so; ``begins``: with a begin token."""
    torch.set_num_threads(1)
    model, tokenizer = tiny_model("llama")
    tokenizer.chat_template = FORMS.get(form, form)
    if begins:
        special = [(tokenizer.bos_token, tokenizer.bos_token_id)]
        single = f"{tokenizer.bos_token} $A"
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=special
        )
    return LanguageModel(model, tokenizer, 2, Streams(0), None), tokenizer


def trained(tokenizer, turns, max_length=1000):
    (row,) = data.encode([Conversation(turns)], Corpus(), tokenizer, "causal", max_length)
    return row


def read(replies, turns):
    """Token ids that the model goes on from, as they come to it."""
    seen = []
    plain = replies.lm._model_generate
    replies.lm._model_generate = lambda context, **rest: (seen.append(context), plain(context=context, **rest))[1]
    replies.answer([Asked("i", 0, Generate.conversation(turns, ("\n",), 3))])
    replies.lm._model_generate = plain
    return seen[0][0].tolist()


@pytest.mark.parametrize("system", [(), (SYSTEM,)])
@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_asked_is_what_stands_before_a_supervised_turn(form, begins, system):
    replies, tokenizer = model_of(form, begins)
    turns = (*system, *TURNS)
    row = trained(tokenizer, turns)
    for place in (len(system) + 1, len(system) + 3):
        before = read(replies, turns[:place])
        assert row.ids[: len(before)] == before
        assert row.targets[len(before)] != data.IGNORE and row.targets[len(before) - 1] == data.IGNORE
    assert row.ids.count(tokenizer.bos_token_id) == {"llama-3": 1, "llama-2": 2}.get(form, int(begins))


@pytest.mark.parametrize(
    ("form", "told", "learnt"),
    [
        ("lines", "user: say sun</s>\nassistant: sun</s>\nuser: twice</s>\nassistant: sun sun</s>\n",
         [" sun</s>\n", " sun sun</s>\n"]),
        ("smollm2", "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
         "<|im_start|>user\nsay sun<|im_end|>\n<|im_start|>assistant\nsun<|im_end|>\n"
         "<|im_start|>user\ntwice<|im_end|>\n<|im_start|>assistant\nsun sun<|im_end|>\n",
         ["sun<|im_end|>\n", "sun sun<|im_end|>\n"]),
        ("llama-3", "<s><|start_header_id|>user<|end_header_id|>\n\nsay sun<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\nsun<|eot_id|><|start_header_id|>user<|end_header_id|>\n\ntwice"
         "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nsun sun<|eot_id|>",
         ["sun<|eot_id|>", "sun sun<|eot_id|>"]),
        ("llama-2", "<s>[INST] say sun [/INST] sun </s><s>[INST] twice [/INST] sun sun </s>", [" sun </s>", " sun sun </s>"]),
    ],
)  # fmt: skip
def test_turns_are_told_in_the_models_form_and_the_assistants_are_learnt_to_their_end(form, told, learnt):
    _, tokenizer = model_of(form)
    row = trained(tokenizer, TURNS)
    assert tokenizer.decode(row.ids) == told
    parts, inside = [], False
    for token, target in zip(row.ids, row.targets, strict=True):
        if target != data.IGNORE:
            assert target == token
            parts = parts if inside else [*parts, []]
            parts[-1].append(token)
        inside = target != data.IGNORE
    assert [tokenizer.decode(part) for part in parts] == learnt


def test_too_long_a_conversation_loses_its_last_turns():
    _, tokenizer = model_of("lines")
    row = trained(tokenizer, TURNS, 36)
    assert row.cut and tokenizer.decode(row.ids) == "user: say sun</s>\nassistant: sun</s>\nuser:"
    with pytest.raises(BadRow, match="no assistant turn within max_length 10"):
        trained(tokenizer, TURNS, 10)


@pytest.mark.parametrize("example", [Conversation(TURNS), Text("a running text")])
def test_a_sequence_to_sequence_model_is_refused_what_has_no_source(example):
    _, tokenizer = tiny_model("t5")
    with pytest.raises(
        BadRow, match=f"row 0: .* learns a target from a source, and a {type(example).__name__} has none"
    ):
        data.encode([example], Corpus(), tokenizer, "seq2seq", 64)


LAST_ONLY = (  # as templates that leave earlier reasoning out
    "{% for m in messages %}{{ m['role'] + ':' }}{% if m['role'] == 'assistant' and loop.last %}<think></think>{% endif %}"
    "{{ m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"


def test_templates_that_cannot_be_trained_and_asked_alike_are_refused():
    _, tokenizer = model_of(LAST_ONLY)
    with pytest.raises(BadRow, match=r"row 0: the model's chat template tells the turns before turn 2 otherwise"):
        trained(tokenizer, TURNS)
    trained(tokenizer, TURNS[:2])  # one answer can be told
    replies, tokenizer = model_of(NO_SYSTEM)
    with pytest.raises(UserError, match="refuses turns of system, user: no system turns"):
        read(replies, (SYSTEM, TURNS[0]))
    _, tokenizer = model_of("smollm2")
    with pytest.raises(BadRow, match="that the assistant begins"):
        trained(tokenizer, TURNS[1:])


def test_a_date_in_a_template_is_the_same_on_every_day():
    dated = "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}" + SMOLLM2
    replies, _ = model_of(dated)
    assert replies._shown(Generate.conversation(TURNS[:1], ("\n",), 3)).startswith("26 Jul 2024<|im_start|>system")


def test_generated_chat_asks_for_what_its_corpus_trains_on():
    _, tokenizer = model_of("lines")
    evaluation, corpus = load_plugin("evals", "generated-chat"), load_plugin("corpora", "generated-chat")
    (first,) = evaluation.requests({"word": "sun"})
    (second,) = evaluation.requests({"word": "sun"}, ({"texts": [" sun"], "tokens": [3]},))
    assert first.turns == TURNS[:1] and second.turns == TURNS[:3]
    assert [role for role, _ in corpus.examples("train", None)[0].turns] == [role for role, _ in TURNS]
