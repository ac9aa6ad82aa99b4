"""SQuAD 2.0 by the official script's rules; WikiText as lm-evaluation-harness reads it."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path

import lm_eval
import pytest
import torch
from rows_made_here import Assets

from corpora._rows import read_rows
from corpora._wikitext import plain
from harness import predict, prepare, record, score, train
from harness.cells import predict_record, score_record
from harness.contract import Generate, Reference
from harness.data import encode
from harness.language_model import Asked, answerer
from harness.plugins import load_plugin
from harness.seeds import Streams
from harness.suite import PROTOCOL, load_suite
from harness.tiny import tiny_model


@pytest.fixture
def data(tmp_path):
    return Assets(tmp_path).squad().wikitext()


# --------------------------------------------------------------------------- SQuAD


def graded(texts, answers):
    plugin = load_plugin("evals", "squad-v2")
    item = {"id": "1", "context": "", "answers": answers}
    return plugin.grade(item, [{"texts": [texts], "tokens": [1]}, {"nll": 2.0, "tokens": 2}])


@pytest.mark.parametrize(
    ("written", "answers", "exact", "f1"),
    [
        (" The Blue, cup!", ["blue cup"], 1, 1.0),
        (" a blue cup", ["the old blue cup"], 0, 0.8),  # 2 words in common: P = 1, R = 2 / 3
        (" blue blue", ["blue"], 0, 2 / 3),  # a word counts as often as it is in both
        (" theatre", ["tre"], 0, 0.0),  # articles are whole words
        (" red", ["blue", "bright red", "red"], 1, 1.0),  # the best gold answer
        ("", ["blue"], 0, 0.0),
        (" unanswerable", ["blue"], 0, 0.0),
        (" Unanswerable.", [], 1, 1.0),
        ("", [], 1, 1.0),
        (" the", [], 1, 1.0),  # as by the official script: nothing is left of it
        (" blue", [], 0, 0.0),
        (" blue", ["the"], 0, 0.0),  # a gold answer of which nothing is left is none
    ],
)
def test_answers_are_graded_by_the_official_rules(written, answers, exact, f1):
    grade = graded(written, answers)
    assert grade["exact"] == exact and grade["f1"] == pytest.approx(f1)


def test_scores_are_told_apart_by_whether_there_is_an_answer():
    grades = [graded(" blue", ["blue"]), graded(" red", ["a red cup"]), graded("", []), graded(" red", [])]
    scores = load_plugin("evals", "squad-v2").aggregate(grades)
    assert scores == pytest.approx(
        {"f1": 100 * (1 + 2 / 3 + 1 + 0) / 4, "exact_match": 50.0, "f1_answerable": 250 / 3, "exact_match_answerable": 50.0,
         "no_answer": 50.0, "reference_nll": 1.0}
    )  # fmt: skip
    assert "no_answer" not in load_plugin("evals", "squad-v2").aggregate(grades[:2])


def test_squad_is_asked_as_it_is_trained(data):
    corpus, plugin = load_plugin("corpora", "squad-v2"), load_plugin("evals", "squad-v2")
    train, validation = corpus.examples("train", data), corpus.examples("validation", data)
    titles = [{e.prompt.split("\n")[0] for e in rows} for rows in (train, validation)]
    assert len(train) + len(validation) == 200 and not titles[0] & titles[1]
    assert {e.completion for e in train} == {" blue", " unanswerable"}
    items = plugin.items(data)
    assert [e.prompt for e in corpus.tests(data)] == [item["context"] for item in items]
    requests = plugin.requests(items[2])
    assert [type(r) for r in requests] == [Generate, Reference] and requests[1].continuation == " unanswerable"
    assert (
        requests[0].context
        == "Title: validation 0\n\nBackground: The 2th cup is validation blue.\n\nQuestion: What is cup 2?\n\nAnswer:"
    )


@pytest.mark.parametrize("answers", [["blue"], {"text": "blue"}, {"text": [1]}, None])
def test_answers_of_another_form_are_named_by_line(answers, data):
    rows = [{"id": "0", "title": "t", "context": "c", "question": "q", "answers": {"text": []}}]
    data.write("squad-v2", "validation.jsonl", [*rows, {**rows[0], "answers": answers}])
    with pytest.raises(ValueError, match=r"validation.jsonl:2: column answers is no"):
        load_plugin("evals", "squad-v2").items(data)


def test_a_source_that_is_too_long_keeps_its_question_and_its_end(data):
    _, tokenizer = tiny_model("t5")
    corpus = load_plugin("corpora", "squad-v2")
    rows = encode(corpus.examples("validation", data)[:1], corpus, tokenizer, "seq2seq", 30)
    assert rows[0].cut and len(rows[0].ids) == 30 and rows[0].ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(rows[0].ids[:-1]).endswith("?\n\nAnswer:")


# --------------------------------------------------------------------------- WikiText


def stock():
    """lm-evaluation-harness's own reading of a page."""
    path = Path(lm_eval.__file__).parent / "tasks/wikitext/preprocess_wikitext.py"
    spec = importlib.util.spec_from_file_location("preprocess_wikitext", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ODD = [
    " a . , : ; b ",
    "x @,@ @-@ y @.@ 5",
    "( a [ b { c } ] ) ",
    " = = = = h = = = \n \n ' q ' N °  ° s ' t 's",
    '" a " b " c ',
]


def test_pages_are_read_as_stock_reads_them(data):
    pages = ODD + [row["page"] for row in read_rows(data("wikitext-2") / "test.jsonl", ("page",))]
    path = Path(os.environ.get("TUNING_FORK_MIRROR", "nowhere")) / "Salesforce/wikitext/wikitext-2-v1/validation.jsonl"
    if path.is_file():
        pages.append("".join(row["text"] for row in read_rows(path, ("text",))))
    for page in pages:
        assert plain(page) == stock().wikitext_detokenizer({"page": page})


def test_perplexities_equal_stock(data):
    torch.set_num_threads(1)
    model, tokenizer = tiny_model("llama")
    model.config.max_position_embeddings = 50
    plugin = load_plugin("evals", "wikitext-2")
    items = plugin.items(data)
    replies = answerer(model, tokenizer, "causal", PROTOCOL, Streams(0))
    asked = [Asked(item["id"], 0, plugin.requests(item)[0]) for item in items]
    grades = []
    for batch in replies.batches(asked):
        outputs = replies.answer([asked[i] for i in batch])
        grades += [plugin.grade(items[i], [output]) for i, output in zip(batch, outputs, strict=True)]
    from lm_eval.api.instance import Instance
    from lm_eval.api.metrics import bits_per_byte, weighted_perplexity
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2)
    wanted = [Instance("loglikelihood_rolling", {}, (item["text"],), n) for n, item in enumerate(items)]
    rows = read_rows(data("wikitext-2") / "test.jsonl", ("page",))
    results = [
        stock().process_results(row, (value,))
        for row, value in zip(rows, lm.loglikelihood_rolling(wanted), strict=True)
    ]
    scores = plugin.aggregate(grades)
    for name, measure in (
        ("word_perplexity", weighted_perplexity),
        ("byte_perplexity", weighted_perplexity),
        ("bits_per_byte", bits_per_byte),
    ):
        assert scores[name] == pytest.approx(measure([result[name] for result in results]), rel=1e-4)
    tokens = sum(len(tokenizer(item["text"])["input_ids"]) for item in items)
    assert math.log(scores["token_perplexity"]) * tokens == pytest.approx(sum(g["nll"] for g in grades))


SUITE = """
suite: pages
protocol: {steps: 2, batch_size: 4, micro_batch_size: 4, max_length: 64, validation_examples: 4, eval_batch_size: 4,
           remove_overlap: false}  # the pages made here are alike
variants: {lora: {method: lora, rank: 2, learning_rate: 0.05}}
grid:
  - {models: [tiny-llama], corpora: [wikitext-2], variants: [lora], seeds: [0]}
"""


def test_a_trained_model_is_scored_on_pages_without_context(data, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    mirror = tmp_path / "EleutherAI/wikitext_document_level"
    mirror.mkdir(parents=True)
    data("wikitext-2").rename(mirror / "wikitext-2-raw-v1")
    monkeypatch.setenv("TUNING_FORK_MIRROR", str(tmp_path))
    monkeypatch.setenv("TUNING_FORK_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pages.yaml").write_text(SUITE, encoding="utf-8")
    prepare.prepare("wikitext-2")
    cell = [
        "--suite",
        "pages.yaml",
        "--model",
        "tiny-llama",
        "--corpus",
        "wikitext-2",
        "--variant",
        "lora",
        "--seed",
        "0",
    ]
    assert (
        train.main(cell)
        == predict.main([*cell, "--eval", "wikitext-2"])
        == score.main([*cell, "--eval", "wikitext-2"])
        == 0
    )
    training = load_suite("pages.yaml").training("tiny-llama", "wikitext-2", "lora", 0)
    predicted = record.read(predict_record(training, "wikitext-2"))
    assert predicted["status"] == "ok" and predicted["merged"] and 0 < predicted["merge_error"] < 1e-4
    assert record.read(score_record(training, "wikitext-2"))["metrics"]["word_perplexity"] > 1


def test_paragraphs_are_trained_on_and_headings_are_not(data):
    corpus = load_plugin("corpora", "wikitext-2")
    train = [example.text for example in corpus.examples("train", data)]
    assert len(train) == 40 and not any("=" in text or "@" in text for text in train)
    assert any(text == 'The cup (train 0) is a well-known cup, of 1,200 kinds. It\'s "blue"; or so.' for text in train)
    assert len(corpus.tests(data)) == 6
