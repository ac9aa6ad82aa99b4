"""Generated corpora and evals: the same rows everywhere, every path of scoring on tiny models, tasks that are learnt."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from harness import data
from harness.contract import Choices, Generate, Method, Reference, Run
from harness.language_model import Asked, answerer
from harness.loop import Trainer, run_steps
from harness.measure import Curve
from harness.models import find_targets, head_parameters, padding_id
from harness.plugins import ROOT, available, find_plugin, load_plugin
from harness.seeds import Streams
from harness.suite import PROTOCOL
from harness.tiny import tiny_model

NAMES = [name for name in available("corpora") if name.startswith("generated-")]
KINDS = {"llama": "causal", "bloom": "causal", "t5": "seq2seq", "roberta": "encoder", "vit": "image"}
PAIRS = [("llama", name) for name in NAMES if name != "generated-images"]
PAIRS += [
    ("bloom", "generated-labels"),
    ("bloom", "generated-code"),
    ("t5", "generated-pairs"),
    ("t5", "generated-sums"),
]
PAIRS += [("roberta", "generated-labels"), ("vit", "generated-images")]


class Everything(Method):
    """All parameters train."""

    def attach(self, model, run):
        for parameter in model.parameters():
            parameter.requires_grad_(True)


def no_asset(name):
    raise AssertionError(f"generated rows need no asset, and ask for {name}")


def plain(value):
    return value.tolist() if isinstance(value, np.ndarray) else vars(value)


def test_there_is_an_eval_for_every_corpus():
    assert set(NAMES) == {name for name in available("evals") if name.startswith("generated-")}
    assert len(NAMES) == 7
    for name in NAMES:
        corpus, scored = find_plugin("corpora", name), find_plugin("evals", name)
        assert corpus.names("evals") == (name,) and not corpus.names("assets") and not scored.names("assets")
        assert corpus.attributes["generated"] is True and scored.attributes["generated"] is True
        assert "generated" in corpus.label and corpus.label == scored.label


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_fixed_and_splits_differ(name):
    train = load_plugin("corpora", name).examples("train", no_asset)
    validation = load_plugin("corpora", name).examples("validation", no_asset)
    fewer = load_plugin("corpora", name, rows=10).examples("train", no_asset)
    assert (len(train), len(validation), len(fewer)) == (128, 32, 10)
    assert [show(e) for e in fewer] == [show(e) for e in train[:10]]
    assert show(train[0]) != show(validation[0]) or show(train[1]) != show(validation[1])
    with pytest.raises(ValueError, match="splits"):
        load_plugin("corpora", name).examples("test", no_asset)
    items = load_plugin("evals", name).items(no_asset)
    assert items == json.loads(json.dumps(items)) and len({item["id"] for item in items}) == len(items) >= 4


def show(example):
    return json.dumps(vars(example), default=plain)


def test_rows_do_not_depend_on_the_hash_seed():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom harness.plugins import load_plugin\n"
    code += f"for name in {[name for name in NAMES if name != 'generated-images']}:\n"
    code += " print(load_plugin('corpora', name).examples('train', None), load_plugin('evals', name).items(None))"
    printed = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert printed[0] == printed[1] and len(printed[0]) > 10_000


def train(family, corpus, steps):
    """(model, tokenizer, first loss, last loss) of a tiny model after ``steps`` of full fine-tuning."""
    torch.set_num_threads(1)
    kind = KINDS[family]
    model, tokenizer = tiny_model(family)
    rows = data.encode(corpus.examples("train", no_asset), corpus, tokenizer, kind, 160)
    head = head_parameters(model) if kind in ("encoder", "image") else []
    trainer = Trainer(model, Everything(), {**PROTOCOL, "head_learning_rate": 3e-3}, Streams(0), steps, head)
    trainer.method.learning_rate = 1e-2
    trainer.method.attach(model, Run(steps, torch.float32, find_targets))
    order = data.order([row.length for row in rows], steps, 16, 4, 0)
    batches = [data.micro_batches([rows[i] for i in chosen], 16, kind, padding_id(tokenizer)) for chosen in order]
    run_steps(trainer, batches, Curve(None))
    return model, tokenizer, trainer.state.first_loss, trainer.state.last_loss


def scored(model, tokenizer, kind, evaluation):
    """Grades and metrics of a model, its requests answered as ``predict`` answers them."""
    replies = answerer(model, tokenizer, kind, {**PROTOCOL, "eval_batch_size": 16, "max_length": 160}, Streams(0))
    items = evaluation.items(no_asset)
    outputs = {item["id"]: [] for item in items}
    while True:
        asked = [
            Asked(item["id"], len(outputs[item["id"]]) + number, request)
            for item in items
            for number, request in enumerate(evaluation.requests(item, tuple(outputs[item["id"]])))
        ]
        if not asked:
            break
        found = {}
        for batch in replies.batches(asked):
            for index, output in zip(batch, replies.answer([asked[i] for i in batch]), strict=True):
                found[index] = json.loads(json.dumps(output))
        for index, one in enumerate(asked):
            outputs[one.item].append(found[index])
    grades = [evaluation.grade(item, tuple(outputs[item["id"]])) for item in items]
    assert grades == json.loads(json.dumps(grades))
    return grades, evaluation.aggregate(grades)


@pytest.mark.parametrize("family, name", PAIRS)
def test_a_tiny_model_trains_on_it_and_is_scored(family, name):
    corpus, evaluation = load_plugin("corpora", name), load_plugin("evals", name)
    model, tokenizer, first, last = train(family, corpus, 8)
    assert last < first
    _, metrics = scored(model, tokenizer, KINDS[family], evaluation)
    assert evaluation.headline in metrics and set(metrics) <= set(evaluation.units)
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(
    "family, name", [("llama", "generated-labels"), ("roberta", "generated-labels"), ("vit", "generated-images")]
)
def test_classes_are_learnt(family, name):
    model, tokenizer, *_ = train(family, load_plugin("corpora", name), 24)
    _, metrics = scored(model, tokenizer, KINDS[family], load_plugin("evals", name, rows=32))
    assert metrics["accuracy"] >= 80


def test_the_majority_row_is_half():
    corpus, evaluation = load_plugin("corpora", "generated-labels"), load_plugin("evals", "generated-labels")
    items = evaluation.items(no_asset)
    assert evaluation.aggregate(evaluation.majority(corpus.examples("train", no_asset), items)) == {"accuracy": 50.0}


PERFECT = {
    "generated-labels": lambda item, r: {"loglikelihoods": [float(i == item["label"]) for i in range(2)]},
    "generated-sums": lambda item, r: item["answer"],
    "generated-pairs": lambda item, r: f" {item['target']}",
    "generated-code": lambda item, r: "\n" + item["canonical_solution"],
    "generated-text": lambda item, r: "",
    "generated-chat": lambda item, r: " " + " ".join([item["word"]] * (2 if "twice" in r.context else 1)),
}
PERFECT["generated-images"] = PERFECT["generated-labels"]
BEST = {"generated-labels": 100, "generated-images": 100, "generated-sums": 100, "generated-pairs": 100}
BEST |= {"generated-code": 100, "generated-chat": 100, "generated-text": 0.5}


@pytest.mark.parametrize("name", NAMES)
def test_right_answers_get_the_best_score(name):
    evaluation = load_plugin("evals", name)
    grades = []
    for item in evaluation.items(no_asset):
        outputs = []
        while requests := evaluation.requests(item, tuple(outputs)):
            for request in requests:
                assert isinstance(request, (Choices, Generate, Reference))
                if isinstance(request, Reference):
                    outputs.append({"nll": 1.0, "tokens": 2})
                elif isinstance(request, Choices):
                    outputs.append(PERFECT[name](item, request))
                else:
                    outputs.append({"texts": [PERFECT[name](item, request)], "tokens": [1]})
        grades.append(evaluation.grade(item, tuple(outputs)))
    assert evaluation.aggregate(grades)[evaluation.headline] == pytest.approx(BEST[name])


@pytest.mark.parametrize(
    "name", [n for n in NAMES if n not in ("generated-images", "generated-chat", "generated-text")]
)
def test_the_corpus_teaches_what_the_eval_asks(name):
    """Prompts of both have one form: the training prompt with other contents is the eval's context."""
    corpus, evaluation = load_plugin("corpora", name), load_plugin("evals", name)
    example, item = corpus.examples("train", no_asset)[0], evaluation.items(no_asset)[0]
    prompt = example.prompt if hasattr(example, "prompt") else corpus.prompt(example)
    context = evaluation.requests(item)[0].context
    assert prompt.split("\n")[-1].strip()[:3] == context.split("\n")[-1].strip()[:3]
    assert prompt.count("\n") == context.count("\n") and prompt[-1].isspace() == context[-1].isspace()
