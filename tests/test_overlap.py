"""Training rows that test items give away: found, counted, removed, told."""

from __future__ import annotations

import pytest
from rows_made_here import COLUMNS, Assets

from harness import setup
from harness.contract import Completion, Conversation, Corpus, Labelled, SequenceToSequence, Text
from harness.failures import UserError
from harness.overlap import RUN, overlaps
from harness.plugins import load_plugin

WORDS = [f"word{number}" for number in range(60)]


def words(start, count):
    return " ".join(WORDS[start : start + count])


def test_an_equal_input_is_found_whatever_its_case_and_punctuation():
    train = [Labelled("A fine film!", 1), Labelled("a FINE, film", 0), Labelled("a fine films", 1)]
    assert overlaps(train, [Labelled("A fine film.", 0), Labelled("Another.", 1)]) == ["equal", "equal", ""]
    pairs = [Labelled(("one", "two"), 1), Labelled(("two", "one"), 1)]
    assert overlaps(pairs, [Labelled(("One", "two."), 0), Labelled(("x", "y"), 0)]) == ["equal", ""]


def test_thirteen_words_in_a_row_are_found_and_twelve_are_not():
    assert RUN == 13
    tests = [Text(words(0, 30)), Text("other words")]
    assert overlaps([Text(f"x {words(5, 13)} y"), Text(f"x {words(5, 12)} y")], tests) == ["run", ""]


def test_a_run_may_lie_in_the_answer_or_across_it():
    tests = [SequenceToSequence(words(0, 10), words(10, 10)), SequenceToSequence("x", "y")]
    assert overlaps([Completion("other", words(7, 13)), Completion("other", words(10, 10))], tests) == ["run", ""]
    turns = (("user", "other"), ("assistant", words(3, 13)))
    assert overlaps([Conversation(turns)], tests) == ["run"]


@pytest.mark.parametrize("items", [2, 3, 40])
def test_an_instruction_of_all_items_gives_nothing_away(items):
    asked = [Completion(f"{words(0, 20)} question {number}", " yes") for number in range(items)]
    mine = [Completion(f"{words(0, 20)} question {number}", " no") for number in (1, 77)]
    assert overlaps(mine, asked) == ["equal", ""]


def test_images_are_not_searched():
    assert overlaps([Labelled(object(), 1)], [Labelled(object(), 1)]) == [""]


class Leaky(Corpus):
    def __init__(self, train, tests, validation=()):
        self.task, self.train, self.validation, self.held = "", train, validation, tests

    def examples(self, split, data):
        return self.train if split == "train" else self.validation

    def tests(self, data):
        return self.held


def test_they_are_removed_and_counted():
    train = [Text("alone"), Text("given away"), Text(f"{words(0, 14)} too")]
    tests = [Text("Given away!"), Text(words(0, 14)), Text("more")]
    counts = {"test_items": 3, "equal": 1, "run": 1}
    held = train[1:]  # of validation
    kept = setup.split_examples(Leaky(train, tests, held), True)
    assert kept == (train[:1], [], {**counts, "removed": 2, "validation_removed": 2})
    all_of_them = setup.split_examples(Leaky(train, tests, held), False)
    assert all_of_them == (train, held, {**counts, "removed": 0, "validation_removed": 0})
    assert setup.split_examples(Leaky(train, [], held), True) == (train, held, {})


def test_a_test_file_in_place_of_the_training_file_is_refused():
    with pytest.raises(
        UserError, match="all 1 training rows overlap with its test rows .* Is its training file the test"
    ):
        setup.split_examples(Leaky([Text("one")], [Text("one")]), True)


@pytest.mark.parametrize("name", [*(f"glue-{task}" for task in COLUMNS), "gsm8k", "multi30k-en-de", "multi30k-en-fr"])
def test_the_rows_searched_for_are_those_that_the_eval_asks(name, tmp_path):
    made = Assets(tmp_path).gsm8k().multi30k()
    for task in COLUMNS:
        made.glue(task)
    corpus = load_plugin("corpora", name)
    asked = set()
    for evaluation in corpus.evals:
        scored = load_plugin("evals", evaluation.replace("{task}", corpus.task))
        asked |= {scored.requests(item)[0].context for item in scored.items(made)}
    shown = {e.prompt if isinstance(e, Completion) else corpus.prompt(e) for e in corpus.tests(made)}
    assert shown == asked
