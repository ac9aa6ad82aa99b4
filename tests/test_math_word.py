"""AQuA, SVAMP and MAWPS: what is asked, which number or letter of an answer counts, and what may train on what."""

from __future__ import annotations

import sys

import pytest
import yaml
from rows_made_here import Assets

from harness.contract import Completion
from harness.failures import UserError
from harness.overlap import overlaps
from harness.plugins import load_plugin
from harness.suite import load_suite

ROWS = {
    "aqua": {
        "question": "Half of 8?",
        "options": ["A)2", "B)4", "C)8", "D)x (y)", "E)0"],
        "rationale": "4",
        "correct": "B",
    },
    "svamp": {"Body": "Ann has 3 hats", "Question": "How many? ", "Answer": "3.0", "Equation": "3"},
    "mawps": {"id": "m", "question": "What is 1,000 + 234.5?", "result": "1_234.5".replace("_", ",")},
}


@pytest.fixture
def data(tmp_path):
    made = Assets(tmp_path)
    for task, row in ROWS.items():
        made.write(task, "test.jsonl", [row])
    return made


def test_problems_are_asked_in_gsm8k_s_words(data):
    shown = {task: load_plugin("evals", f"math-word-{task}").items(data)[0] for task in ROWS}
    options = "(A) 2 (B) 4 (C) 8 (D) x (y) (E) 0"
    assert (
        shown["aqua"]["context"] == f"Question: Half of 8? Answer Choices: {options}\nAnswer:"
        and shown["aqua"]["gold"] == "B"
    )
    assert shown["svamp"]["context"] == "Question: Ann has 3 hats. How many?\nAnswer:" and shown["svamp"]["gold"] == 3.0
    assert shown["mawps"]["gold"] == 1234.5


@pytest.mark.parametrize(
    ("text", "value"),
    [("so -1,234.50 in all.", -1234.5), ("it costs $12", 12.0), ("$1,000.", 1000.0), ("7 and then 8", 8.0), ("#### 5", 5.0),
     ("no number...", None), ("", None), ("version 1.2.3", None), ("about .5", 0.5), ("3 apples, 1.2.3", 3.0)],
)  # fmt: skip
def test_the_last_number_counts(text, value):
    assert sys.modules["tuning_fork_evals._answers"].number(text) == value


@pytest.mark.parametrize(
    ("text", "letter"),
    [("The answer is (C).", "C"), ("A: no. The answer is B", "B"), ("Because (D) fits", "D"), ("E", "E"), ("ABC", None),
     ("The answer is: A, not (B)", "A"), ("", None), ("Among them", None)],
)  # fmt: skip
def test_the_letter_that_is_named_counts(text, letter):
    assert sys.modules["tuning_fork_evals.math_word"].letter(text) == letter


def test_grades_and_shares(data):
    for task, right, wrong in (
        ("aqua", "The answer is B", "(A)"),
        ("svamp", "3.0004", "3.01"),
        ("mawps", "$1,234.50", "x"),
    ):
        plugin = load_plugin("evals", f"math-word-{task}")
        item = plugin.items(data)[0]
        grades = [plugin.grade(item, [{"texts": [text], "tokens": [1]}]) for text in (right, wrong)]
        assert [grade["correct"] for grade in grades] == [1, 0]
        assert plugin.aggregate(grades) == {"accuracy": 50.0, "answered": 50.0 if wrong == "x" else 100.0}


@pytest.mark.parametrize(
    ("task", "damage"), [("aqua", {"correct": "F"}), ("svamp", {"Answer": "many"}), ("mawps", {"result": ""})]
)
def test_a_row_without_an_answer_is_named(task, damage, data):
    data.write(task, "test.jsonl", [ROWS[task], {**ROWS[task], **damage}])
    with pytest.raises(ValueError, match=r"test.jsonl:2: its answer is none"):
        load_plugin("evals", f"math-word-{task}").items(data)


def test_math10k_asks_as_the_evals_do_and_loses_their_rows(data):
    rows = [{"instruction": f" What is {n} plus {n}? ", "output": f"{n} + {n} = {2 * n}."} for n in range(40)]
    aqua = "Half of 8? Answer Choices: (A) 2 (B) 4 (C) 8 (D) x (y) (E) 0"
    data.write("math10k", "train.jsonl", [*rows, {"instruction": aqua, "output": "The answer is B."}])
    data.write("gsm8k", "test.jsonl", [{"question": "What is 3 plus 3?", "answer": "#### 6"}])
    corpus = load_plugin("corpora", "math10k")
    every = [*corpus.examples("train", data), *corpus.examples("validation", data)]
    assert len(every) == 41 and corpus.examples("validation", data)
    assert Completion("Question: What is 4 plus 4?\nAnswer:", " 4 + 4 = 8.") in every
    found = dict(zip([example.prompt for example in every], overlaps(every, corpus.tests(data)), strict=True))
    removed = {prompt for prompt, how in found.items() if how}
    assert removed == {"Question: What is 3 plus 3?\nAnswer:", f"Question: {aqua}\nAnswer:"}


def test_a_suite_that_scores_what_its_corpus_leaks_is_refused(tmp_path):
    block = {"models": ["tiny-llama"], "corpora": ["math10k"], "variants": ["full"], "seeds": [0]}
    suite = {"suite": "toy", "protocol": {"steps": 1}, "variants": {"full": {"method": "full"}}}
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump({**suite, "grid": [block]}))
    assert set(load_suite(str(path)).trainings[0].evals) == {"gsm8k", "math-word-aqua", "math-word-svamp"}
    path.write_text(yaml.safe_dump({**suite, "grid": [{**block, "evals": ["gsm8k", "math-word-mawps"]}]}))
    with pytest.raises(UserError, match="math10k is not to be scored on math-word-mawps: Math10K has MAWPS"):
        load_suite(str(path))
    path.write_text(yaml.safe_dump({**suite, "grid": [{**block, "corpora": ["school-math"], "evals": ["gsm8k"]}]}))
    with pytest.raises(UserError, match="school-math is not to be scored on gsm8k: 33 of its 60 problems"):
        load_suite(str(path))
