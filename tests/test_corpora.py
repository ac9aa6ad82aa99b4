"""Corpora: splits without leaks, fixed order, prompts that the evals share, errors for people."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from rows_made_here import COLUMNS, Assets

from corpora._rows import normal
from harness import assets
from harness.contract import Choices, Completion, Generate, Labelled, SequenceToSequence
from harness.plugins import available, find_plugin, load_plugin

MINE = ("glue", "gsm8k", "multi30k", "headlines", "school-math", "sentence-pairs")
NAMES = [name for name in available("corpora") if name.startswith(MINE)]


@pytest.fixture
def data(tmp_path):
    made = Assets(tmp_path).gsm8k().multi30k().headlines().problems()
    for task in COLUMNS:
        made.glue(task)
    return made


def real(name):
    """The folder of a prepared asset, or a skip that says what was not run."""
    if not (assets.cache() / name / "asset.json").is_file():
        pytest.skip(f"NOT RUN: {name} is not prepared (python -m harness.prepare {name})")
    return assets.asset_folder


def source(example):
    """What an example shows before its answer, and the answer."""
    if isinstance(example, Completion):
        return example.prompt, example.completion
    return (example.input, example.label) if isinstance(example, Labelled) else (example.source, example.target)


def test_every_corpus_of_the_list_is_here():
    assert len(NAMES) == 9 + 1 + 2 + 1 + 1 + 3
    for name in NAMES:
        plugin = find_plugin("corpora", name)
        assert plugin.names("assets") and plugin.names("evals") and "{" not in plugin.label
        for evaluation in plugin.names("evals"):
            assert find_plugin("evals", evaluation).names("assets") == plugin.names("assets")


@pytest.mark.parametrize("name", NAMES)
def test_splits_are_disjoint_fixed_and_typed(name, data):
    corpus = load_plugin("corpora", name)
    train, validation = corpus.examples("train", data), corpus.examples("validation", data)
    assert train and validation
    assert all(type(example) is corpus.example for example in (*train, *validation))
    assert not {source(e) for e in train} & {source(e) for e in validation}
    assert train == load_plugin("corpora", name).examples("train", data)
    with pytest.raises(ValueError, match="splits train and validation, not 'test'"):
        corpus.examples("test", data)


@pytest.mark.parametrize("name", NAMES)
def test_a_limit_takes_a_part_of_train_and_leaves_validation(name, data):
    whole, eight, four = (load_plugin("corpora", name, limit=limit) for limit in (0, 8, 4))
    assert len(eight.examples("train", data)) == 8
    assert whole.examples("train", data)[:8] == eight.examples("train", data)
    assert eight.examples("train", data)[:4] == four.examples("train", data)
    assert four.examples("validation", data) == whole.examples("validation", data)


@pytest.mark.parametrize("name", NAMES)
def test_a_decoder_trains_on_the_text_that_the_eval_shows(name, data, tmp_path):
    """The eval's test rows, given to the corpus as training rows, make the very prompts and answers of the eval."""
    corpus = load_plugin("corpora", name)
    asked = [r for e in corpus.evals for r in requests(e.replace("{task}", corpus.task), data)]
    prompts = {}
    for example in corpus.examples("train", data):
        prompt = example.prompt if isinstance(example, Completion) else corpus.prompt(example)
        prompts[blank(prompt)] = example
    for request in asked:
        if isinstance(request, Choices):
            assert not corpus.classes or request.continuations == tuple(f" {word}" for word in corpus.classes)
        elif isinstance(request, Generate):
            continue
        assert blank(request.context) in prompts, request.context


def requests(name, data):
    plugin = load_plugin("evals", name)
    return [request for item in plugin.items(data) for request in plugin.requests(item)]


def blank(text):
    """A made prompt without the number of its row and the name of its split."""
    words = "".join(" " if letter.isdigit() else letter for letter in text)
    for split in ("train", "test", "validation_matched", "validation_mismatched", "validation"):
        words = words.replace(split, "")
    return " ".join(words.replace("+", " ").split())


def test_training_answers_are_the_eval_s_references(data):
    corpus, plugin = load_plugin("corpora", "gsm8k"), load_plugin("evals", "gsm8k")
    example = corpus.examples("train", data)[0]
    data.write("gsm8k", "test.jsonl", [{"question": example.prompt[10:-8], "answer": example.completion[1:]}])
    reference = plugin.requests(plugin.items(data)[0])[1]
    assert (reference.context, reference.continuation) == (example.prompt, example.completion)


def test_mnli_ends_the_hypothesis_once():
    corpus = load_plugin("corpora", "glue-mnli")
    for hypothesis in ("It rains", "It rains.", " It rains. "):
        prompt = corpus.prompt(Labelled(("Wet.", hypothesis), 0))
        assert prompt == "Wet.\nQuestion: It rains. True, False or Neither?\nAnswer:"


def test_stsb_is_a_value_and_the_others_are_classes(data):
    assert load_plugin("corpora", "glue-stsb").classes == ()
    assert all(isinstance(e.label, float) for e in load_plugin("corpora", "glue-stsb").examples("train", data))
    for task in set(COLUMNS) - {"stsb"}:
        corpus = load_plugin("corpora", f"glue-{task}")
        assert {e.label for e in corpus.examples("train", data)} == set(range(len(corpus.classes)))


def test_equal_texts_stay_on_one_side(data):
    rows = [{"sentence": f"the same {n % 50}", "label": 0} for n in range(200)]
    data.write("glue-cola", "train.jsonl", rows)
    corpus = load_plugin("corpora", "glue-cola")
    sides = [{e.input for e in corpus.examples(split, data)} for split in ("train", "validation")]
    assert sides[1] and not sides[0] & sides[1]
    assert sum(len(corpus.examples(split, data)) for split in ("train", "validation")) == 200


def test_headlines_divide_without_leaks_and_count_words_once(data):
    corpus, plugin = load_plugin("corpora", "headlines"), load_plugin("evals", "headlines")
    parts = [
        {e.input for e in corpus.examples("train", data)},
        {e.input for e in corpus.examples("validation", data)},
        {item["text"] for item in plugin.items(data)},
    ]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 400
    assert "Man Number 3, does thing 3!" not in set.union(*parts)


def test_real_headlines_are_disjoint_by_words():
    data = real("headlines")
    corpus, plugin = load_plugin("corpora", "headlines"), load_plugin("evals", "headlines")
    words = lambda text: " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())  # noqa: E731
    train = {words(e.input) for e in corpus.examples("train", data)}
    validation = {words(e.input) for e in corpus.examples("validation", data)}
    test = {words(item["text"]) for item in plugin.items(data)}
    assert not train & test and not validation & test and not train & validation
    assert min(len(validation), len(test)) > 2500 and len(train) > 22000
    shares = [sum(e.label for e in corpus.examples(s, data)) / len(corpus.examples(s, data)) for s in ("train",)]
    assert 0.45 < shares[0] < 0.5


@pytest.mark.parametrize("task", ["en-de", "en-fr"])
def test_real_sentence_pairs_are_disjoint(task):
    data = real("gsm-symbolic-templates")
    corpus, plugin = load_plugin("corpora", f"sentence-pairs-{task}"), load_plugin("evals", f"sentence-pairs-{task}")
    sides = [
        set(),
        set(),
        {text for i in plugin.items(data) for text in (i["context"].split("\n")[0][16:], i["target"])},
    ]
    for side, split in zip(sides, ("train", "validation"), strict=False):
        side.update(text for e in corpus.examples(split, data) for text in (e.source, e.target))
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    assert len(corpus.examples("train", data)) > 100 and len(plugin.items(data)) > 100
    assert all(isinstance(e, SequenceToSequence) and e.target for e in corpus.examples("train", data))


def test_real_problems_are_disjoint_and_end_in_a_number():
    data = real("gsm-symbolic-templates")
    corpus, plugin = load_plugin("corpora", "school-math"), load_plugin("evals", "school-math")
    train, validation, items = (*(corpus.examples(s, data) for s in ("train", "validation")), plugin.items(data))
    assert (len(train), len(validation), len(items)) == (50, 10, 40)
    prompts = [e.prompt for e in (*train, *validation)] + [item["context"] for item in items]
    assert len(set(prompts)) == 100
    assert all("\n#### " in e.completion for e in train)


def test_school_math_says_how_many_of_its_problems_gsm8k_tests():
    data = real("gsm-symbolic-templates")
    path = Path(os.environ.get("TUNING_FORK_MIRROR", "nowhere")) / "openai/gsm8k/main/test.jsonl"
    if not path.is_file():
        pytest.skip("NOT RUN: TUNING_FORK_MIRROR has no GSM8K")
    tested = {normal(json.loads(line)["question"]) for line in path.read_text(encoding="utf-8").splitlines()}
    corpus = load_plugin("corpora", "school-math")
    prompts = [e.prompt for split in ("train", "validation") for e in corpus.examples(split, data)]
    asked = [normal(prompt.removeprefix("Question: ").removesuffix("\nAnswer:")) for prompt in prompts]
    assert f"{len(tested & set(asked))} of its {len(asked)} problems" in corpus.leaked["gsm8k"]


def test_sentences_that_cannot_be_paired_are_left_out(data):
    pairs = [
        e for s in ("train", "validation") for e in load_plugin("corpora", "sentence-pairs-en-de").examples(s, data)
    ]
    assert not any(e.source.startswith("7 ") for e in pairs)
    assert any(e.source.startswith("8 ") for e in pairs)


def test_mbpp_rows_become_functions_with_a_docstring(data):
    tested = {"prompt": "def taken(x):\n", "canonical_solution": "    return x\n"}
    data.write("humaneval", "test.jsonl", [tested])
    code = "import re\r\n\r\ndef twice(a):\r\n\tb = a\r\n\tif a:\r\n\t\tb = 2*a # double\r\n\treturn b"
    rows = [
        {"text": "Double it.", "code": code, "test_list": ["assert twice(2) == 4", "assert twice(0) == 0"]},
        {"text": "No Python.", "code": "def broken(:", "test_list": ["assert broken(2) == 4"]},
        {"text": "Taken name.", "code": "def taken(y):\n return -y", "test_list": ["assert taken(2) == -2"]},
        {"text": "Taken body.", "code": "def other(x):\n return x", "test_list": ["assert other(2) == 2"]},
        {"text": "Not tested.", "code": "def one(x):\n return 1", "test_list": ["assert two(2) == 1"]},
    ]
    data.write("mbpp", "train.jsonl", rows)
    (pair,) = load_plugin("corpora", "mbpp").examples("train", data)
    assert pair.prompt == 'import re\ndef twice(a):\n    """Double it.\n    assert twice(2) == 4\n    """'
    assert pair.completion == "\n    b = a\n    if a:\n        b = 2 * a\n    return b\n"
    space = {}
    exec(pair.prompt + pair.completion, space)
    assert space["twice"](2) == 4 and space["twice"].__doc__.startswith("Double it.")


def test_errors_name_the_file_and_the_line(data):
    corpus = load_plugin("corpora", "multi30k-en-fr")
    data.write("multi30k", "train.jsonl", [{"en": "A dog.", "fr": "Un chien."}, {"en": "A cat."}])
    with pytest.raises(ValueError, match=r"train\.jsonl:2: no column fr; it has en"):
        corpus.examples("train", data)
    (data("multi30k") / "train.jsonl").write_text('{"en": "A dog."\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"train\.jsonl:1: not valid JSON"):
        corpus.examples("train", data)


@pytest.mark.parametrize(
    ("task", "label", "said"),
    [
        ("sst2", "1", "'1' is not an integer from 0 to 1"),
        ("sst2", -1, "-1 is not an integer from 0 to 1"),
        ("mnli", 3, "3 is not an integer from 0 to 2"),
        ("mnli", 1.0, "1.0 is not an integer from 0 to 2"),
        ("cola", True, "True is not an integer from 0 to 1"),
        ("stsb", "2.5", "'2.5' is not a number from 0 to 5"),
        ("stsb", -1.0, "-1.0 is not a number from 0 to 5"),
        ("stsb", float("nan"), "nan is not a number from 0 to 5"),
    ],
)
def test_a_label_that_is_none_is_named_before_it_trains_or_is_scored(task, label, said, data):
    tested = "validation_matched" if task == "mnli" else "validation"
    corpus, plugin = load_plugin("corpora", f"glue-{task}"), load_plugin("evals", f"glue-{task}")
    for split, read in (
        ("train", lambda: corpus.examples("train", data)),
        (tested, lambda: corpus.tests(data)),
        (tested, lambda: plugin.items(data)),
    ):
        path = data(f"glue-{task}") / f"{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        data.write(f"glue-{task}", f"{split}.jsonl", [rows[0], {**rows[1], "label": label}, *rows[2:]])
        with pytest.raises(ValueError, match=rf"{split}\.jsonl:2: column label: {said}"):
            read()
        data.write(f"glue-{task}", f"{split}.jsonl", rows)


def test_a_similarity_may_be_a_whole_number(data):
    data.write("glue-stsb", "train.jsonl", [{"sentence1": f"a {n}", "sentence2": "b", "label": 5} for n in range(60)])
    labels = {example.label for example in load_plugin("corpora", "glue-stsb").examples("train", data)}
    assert labels == {5.0} and all(isinstance(label, float) for label in labels)
