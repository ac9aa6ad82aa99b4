"""Commonsense: the instructions of LLM-Adapters, answers by their first word, likelihoods as lm-evaluation-harness's."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
import torch
from rows_made_here import COMMONSENSE, Assets

from corpora._commonsense import TASKS, Question, instruction, questions
from harness.contract import Generate
from harness.language_model import Asked, answerer
from harness.plugins import load_plugin
from harness.seeds import Streams
from harness.suite import PROTOCOL
from harness.tiny import tiny_model

STOCK = {
    "boolq": "super_glue/boolq/default.yaml",
    "piqa": "piqa/piqa.yaml",
    "siqa": "siqa/siqa.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "arc-easy": "arc/arc_easy.yaml",
    "arc-challenge": "arc/arc_challenge.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
}


@pytest.fixture
def data(tmp_path):
    return Assets(tmp_path).commonsense()


def asked(task, data, number):
    return list(load_plugin("evals", f"commonsense-{task}").items(data))[number]


def test_instructions_have_the_form_of_their_task(data):
    def told(task, number=1):
        return asked(task, data, number)["context"].split("### Instruction:\n")[1].removesuffix("\n\n### Response:")

    opening = "Please choose the correct"
    assert told("boolq") == (
        "Please answer the following question with true or false, question: is 1 a number?\n\nAnswer format: true/false"
    )
    assert told("piqa") == (
        f"{opening} solution to the question: Cook 1 eggs\n\nSolution1: Boil them.\n\nSolution2: Look at them.\n\n"
        "Answer format: solution1/solution2"
    )
    assert told("siqa") == (
        f"{opening} answer to the question: Ann saw 1 cats. Why?\n\nAnswer1: they came Answer2: she looked "
        "Answer3: no reason\n\nAnswer format: answer1/answer2/answer3"
    )
    assert told("winogrande") == (
        f"{opening} answer to fill in the blank to complete the given sentence: The 1 cups beat the mugs as _ are light ."
        "\n\nOption1: cups Option2: mugs Answer format: option1/option2"
    )
    assert told("hellaswag") == (
        f"{opening} ending to complete the given sentence: Run 1: A man starts. he\n\nEnding1: runs [title] fast. "
        "Ending2:  stops  here. Ending3: [step] sings. Ending4: sits.\n\n"
        "Answer format: ending1/ending2/ending3/ending4"
    )
    assert told("arc-challenge", 2).endswith("\n\nAnswer format: answer1/answer2/answer3/answer4/answer5")


@pytest.mark.parametrize(("task", "file"), [("arc-easy", "ARC-Easy/train"), ("openbookqa", "openbookqa/test")])
def test_real_instructions_are_rebuilt(task, file):
    path = Path(os.environ.get("TUNING_FORK_MIRROR", "nowhere")) / "LLM-Adapters" / f"{file}.jsonl"
    if not path.is_file():
        pytest.skip("NOT RUN: TUNING_FORK_MIRROR has no LLM-Adapters")
    for line in path.read_text(encoding="utf-8").splitlines()[:200]:
        given = json.loads(line)["instruction"]
        body, listed, _ = given.split("\n\n")
        marks = [f"Answer{number}: " for number in range(1, 6) if f"Answer{number}: " in listed]
        places = [listed.index(mark) for mark in marks] + [len(listed) + 1]
        answers = tuple(listed[a + len(marks[0]) : b - 1] for a, b in zip(places, places[1:], strict=False))
        assert instruction(task, Question(body.split("question: ", 1)[1], answers, 0)) == given


@pytest.mark.parametrize("task", TASKS)
def test_the_first_word_of_the_form_is_the_answer(task, data):
    plugin = load_plugin("evals", f"commonsense-{task}")
    item = asked(task, data, 1)
    assert [type(request) for request in plugin.requests(item)] == [Generate]
    right = item["words"][item["gold"]]
    wrong = item["words"][1 - item["gold"] if item["gold"] < 2 else 0]
    for text, correct, predicted in (
        (f"\nthe correct answer is {right}", 1, item["gold"]),
        (f"{right} or {wrong}", 1, item["gold"]),
        (f"{wrong}, no, {right}", 0, item["words"].index(wrong)),
        ("no idea", 0, -1),
    ):
        grade = plugin.grade(item, [{"texts": [text], "tokens": [5]}])
        assert (grade["correct"], grade["predicted"]) == (correct, predicted)
    grades = [{"correct": 1, "predicted": 0}, {"correct": 0, "predicted": 1}, {"correct": 0, "predicted": -1}]
    assert plugin.aggregate(grades) == pytest.approx({"accuracy": 100 / 3, "answered": 200 / 3})


def test_all_labels_are_read(data):
    golds = {task: [question.gold for _, question in questions(task, data(f"commonsense-{task}"))] for task in TASKS}
    assert golds["boolq"] == [1, 0] * 3  # label 1 is yes, and true stands first
    assert golds["piqa"] == golds["winogrande"] == [0, 1] * 3 and golds["siqa"] == [0, 1, 2] * 2
    assert golds["hellaswag"] == golds["arc-easy"] == [0, 1, 2, 3, 0, 1]
    assert golds["arc-challenge"] == [2] * 6 and golds["openbookqa"] == [1] * 6


@pytest.mark.parametrize(
    ("task", "damage", "said"),
    [
        ("hellaswag", {"label": ""}, "no hellaswag question"),
        ("hellaswag", {"label": "4"}, "its label names none of its 4 answers"),
        ("siqa", {"label": "0"}, "its label names none of its 3 answers"),
        ("arc-easy", {"choices": "A or B"}, "no arc-easy question .TypeError"),
        ("arc-easy", {"answerKey": "E"}, "no arc-easy question .ValueError"),
        ("openbookqa", {"answerKey": None}, "no openbookqa question .AttributeError"),
    ],
)
def test_a_row_that_is_no_question_is_named(task, damage, said, data):
    file = "validation.jsonl" if task in ("hellaswag", "siqa") else "test.jsonl"
    data.write(f"commonsense-{task}", file, [COMMONSENSE[task](0), {**COMMONSENSE[task](1), **damage}])
    with pytest.raises(ValueError, match=rf"{file}:2: {said}"):
        list(questions(task, data(f"commonsense-{task}")))


def test_one_corpus_feeds_all_eight_and_knows_their_test_rows(data):
    corpus = load_plugin("corpora", "commonsense170k")
    train, validation, tests = corpus.examples("train", data), corpus.examples("validation", data), corpus.tests(data)
    assert len(train) + len(validation) == 200 and validation and len(tests) == 6 * len(TASKS)
    assert train[0].prompt.endswith("### Response:") and train[0].completion == "\nthe correct answer is true"
    shown = {asked(task, data, number)["context"] for task in TASKS for number in range(6)}
    assert {example.prompt for example in tests} == shown
    assert set(corpus.evals) == {f"commonsense-{task}" for task in TASKS}


# --------------------------------------------------------------------------- likelihoods, beside stock


def stock(task, rows, model, tokenizer, tmp_path):
    """Samples of lm-evaluation-harness's own task on these rows, in their order."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation", "test")}
    text = f"""
include: {Path(lm_eval.__file__).parent / "tasks" / STOCK[task]}
task: parity
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {json.dumps(files)}, cache_dir: {tmp_path / "cache"}}}
num_fewshot: 0
"""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "parity.yaml").write_text(text, encoding="utf-8")
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=lm, tasks=["parity"], task_manager=manager, log_samples=True, bootstrap_iters=0
    )
    return sorted(found["samples"]["parity"], key=lambda sample: sample["doc_id"])


@pytest.mark.parametrize("task", TASKS)
def test_likelihoods_and_both_accuracies_equal_stock(task, data, tmp_path):
    torch.set_num_threads(1)
    model, tokenizer = tiny_model("llama")
    plugin = load_plugin("evals", f"commonsense-likelihood-{task}")
    items = plugin.items(data)
    wanted = [Asked(item["id"], place, r) for item in items for place, r in enumerate(plugin.requests(item))]
    replies, outputs = answerer(model, tokenizer, "causal", PROTOCOL, Streams(0)), {}
    for batch in replies.batches(wanted):
        for index, output in zip(batch, replies.answer([wanted[i] for i in batch]), strict=True):
            outputs.setdefault(wanted[index].item, {})[wanted[index].place] = output
    rows = [COMMONSENSE[task](number) for number in range(6)]
    grades = []
    for item, sample in zip(items, stock(task, rows, model, tokenizer, tmp_path), strict=True):
        own = [outputs[item["id"]][place] for place in sorted(outputs[item["id"]])]
        found = [value for output in own for value in output["loglikelihoods"]]
        assert found == pytest.approx([float(response[0][0]) for response in sample["resps"]], abs=1e-3)
        grades.append(plugin.grade(item, own))
        assert grades[-1]["correct"] == int(sample["acc"])
        if "acc_norm" in sample:
            assert grades[-1]["correct_norm"] == int(sample["acc_norm"])
    assert ("accuracy_norm" in plugin.aggregate(grades)) == ("acc_norm" in sample)
