"""pass@k against its definition, HumanEval against lm-evaluation-harness's task, and the corpus that goes with it."""

from __future__ import annotations

import ast
import itertools
import json
import math
import sys
import time

import numpy as np
import pytest

from harness.assets import AssetMissing, asset_folder
from harness.contract import Generate, Reference
from harness.plugins import load_plugin
from harness.prepare import prepare

load_plugin("evals", "humaneval")  # makes the package of the evals' shared parts
pass_at_k = sys.modules["tuning_fork_evals._pass_at_k"].pass_at_k
pass_rates = sys.modules["tuning_fork_evals._pass_at_k"].pass_rates


@pytest.fixture(scope="session")
def data():
    """``data(asset)``: its folder, fetched if need be."""

    def folder(name):
        try:
            return asset_folder(name)
        except AssetMissing:
            try:
                prepare(name)
            except AssetMissing as error:
                pytest.skip(f"NOT RUN: {error}")
            return asset_folder(name)

    return folder


# --------------------------------------------------------------------------- the estimator


def test_pass_at_k_is_the_share_of_draws_with_a_passing_program():
    for n in range(1, 8):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            draws = list(itertools.combinations([i < c for i in range(n)], k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


def test_pass_at_k_equals_the_product_form_of_human_eval():
    for n, c, k in itertools.product((1, 10, 37, 200), range(0, 201, 7), (1, 2, 10, 100)):
        if c <= n and k <= n:
            product = 1.0 if n - c < k else 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))
            assert pass_at_k(n, c, k) == pytest.approx(product, abs=1e-12)


@pytest.mark.parametrize("n, c, k", [(0, 0, 1), (5, 6, 1), (5, 2, 6), (5, -1, 1), (5, 2, 0)])
def test_pass_at_k_refuses_what_it_cannot_estimate(n, c, k):
    with pytest.raises(ValueError, match="cannot be estimated"):
        pass_at_k(n, c, k)


def test_pass_at_ten_needs_ten_programs_and_n_is_stated():
    assert pass_rates([{"n": 1, "c": 1}, {"n": 1, "c": 0}]) == {"pass_at_1": 50.0, "programs": 1.0}
    rates = pass_rates([{"n": 10, "c": 1}, {"n": 20, "c": 0}])
    assert rates == {"pass_at_1": pytest.approx(5.0), "pass_at_10": pytest.approx(50.0), "programs": 10.0}


# --------------------------------------------------------------------------- the eval

ITEM = {
    "id": "toy/0",
    "prompt": 'def double(x):\n    """ Twice x.\n    """\n',
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n",
}


def graded(*texts):
    """Grades of ``texts`` that go on after the docstring's line."""
    outputs = [{"texts": [f"\n{text}" for text in texts], "tokens": [3] * len(texts)}, {"nll": 6.0, "tokens": 4}]
    return load_plugin("evals", "humaneval").grade(ITEM, outputs)


def test_grades_count_what_passes_and_keep_how_the_rest_ended():
    grade = graded(
        "    return x + x\n", "    return x\n", "    return (\n", "    import os; os._exit(0)\n", "    exit()\n"
    )
    assert (grade["n"], grade["c"], grade["nll"], grade["nll_tokens"]) == (5, 1, 6.0, 4)
    assert grade["outcome"] == ["passed", "failed AssertionError", "failed SyntaxError", "crashed", "failed NameError"]
    assert grade["level"] == load_plugin("evals", "humaneval").signatures()["sandbox"]


def test_grading_twice_gives_the_same_grades():
    texts = ["    return 3 * x\n", "    raise ValueError(object())\n", "    return list({'a', 'b', 'c', str(x)})\n"]
    assert json.dumps(graded(*texts)) == json.dumps(graded(*texts))


def test_requests_are_the_prompt_up_to_its_last_quotes_and_the_canonical_solution():
    humaneval = load_plugin("evals", "humaneval", samples=10, temperature=0.8, max_tokens=77)
    generate, reference = humaneval.requests(ITEM)
    stops = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    assert generate == Generate(ITEM["prompt"].removesuffix("\n"), stops, 77, 0.8, 10)
    assert isinstance(reference, Reference) and reference.context == generate.context
    assert reference.context + reference.continuation == ITEM["prompt"] + ITEM["canonical_solution"]
    assert humaneval.requests(ITEM, ({"texts": [""], "tokens": [0]}, {"nll": 1.0, "tokens": 1})) == []


def test_the_stock_prompt_keeps_its_line_break_and_programs_go_on_from_there():
    stock = load_plugin("evals", "humaneval", stock_prompt=True)
    assert stock.requests(ITEM)[0].context == ITEM["prompt"]
    outputs = [{"texts": ["    return 2 * x\n"], "tokens": [3]}, {"nll": 6.0, "tokens": 4}]
    assert stock.grade(ITEM, outputs)["c"] == 1
    assert stock.signatures() != load_plugin("evals", "humaneval").signatures()


def test_no_stop_string_cuts_a_solution_that_goes_on_from_the_prompt(data):
    humaneval = load_plugin("evals", "humaneval")
    for item in humaneval.items(data):
        generate, reference = humaneval.requests(item)
        assert generate.context.endswith(('"""', "'''")) and reference.continuation.strip()
        assert not [stop for stop in generate.until if stop in reference.continuation]


def test_a_prompt_ends_between_tokens_as_it_does_in_training(data):
    from transformers import AutoTokenizer

    try:
        tokens = AutoTokenizer.from_pretrained(asset_folder("smollm2-135m"))
    except AssetMissing as error:
        pytest.skip(f"NOT RUN: {error}")
    humaneval = load_plugin("evals", "humaneval")
    asked = [humaneval.requests(item) for item in humaneval.items(data)]
    borders = [(generate.context, reference.continuation) for generate, reference in asked]
    borders += [(e.prompt, e.completion) for e in load_plugin("corpora", "docstring-code").examples("train", data)]
    for prompt, completion in borders:
        alone = tokens(prompt)["input_ids"]
        assert tokens(prompt + completion)["input_ids"][: len(alone)] == alone


@pytest.mark.parametrize("fields", [{"samples": 10}, {"samples": 0}, {"temperature": -1.0}])
def test_samples_without_temperature_are_refused(fields):
    with pytest.raises(ValueError, match="samples"):
        load_plugin("evals", "humaneval", **fields)


def test_stock_prompt_and_stops_are_those_of_lm_eval(data):
    import lm_eval
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    folder = next(iter(lm_eval.__path__))
    with open(f"{folder}/tasks/humaneval/humaneval.yaml", encoding="utf-8") as file:
        task = yaml.load(file, Loader)
    humaneval = load_plugin("evals", "humaneval", stock_prompt=True)
    item = humaneval.items(data)[0]
    generate = humaneval.requests(item)[0]
    assert task["doc_to_text"] == "{{prompt}}" and generate.context == item["prompt"]
    assert list(generate.until) == task["generation_kwargs"]["until"]
    assert generate.max_tokens == task["generation_kwargs"]["max_gen_toks"]
    assert task["generation_kwargs"]["do_sample"] is False and generate.temperature == 0


def test_all_canonical_solutions_pass_in_two_minutes_and_none_without_a_body(data):
    humaneval = load_plugin("evals", "humaneval")
    items = humaneval.items(data)
    assert len(items) == 164 and len({item["id"] for item in items}) == 164
    start = time.monotonic()
    reference = {"nll": 1.0, "tokens": 1}
    solved = [{"texts": [humaneval.requests(i)[1].continuation], "tokens": [1]} for i in items]
    grades = [humaneval.grade(i, [output, reference]) for i, output in zip(items, solved, strict=True)]
    seconds = time.monotonic() - start
    assert [g["outcome"] for g in grades if not g["c"]] == []
    assert humaneval.aggregate(grades) == {"pass_at_1": 100.0, "programs": 1.0, "reference_nll": 1.0}
    assert seconds < 120
    empty = [humaneval.grade(i, [{"texts": ["\n    pass\n"], "tokens": [1]}, reference]) for i in items[::10]]
    assert sum(g["c"] for g in empty) == 0


CHEATS = (
    "    class Yes(int):\n        def __eq__(self, other): return True\n        def __ne__(self, other): return False\n"
    "        def __bool__(self): return True\n    return Yes()\n",
    "    return x\nimport builtins\nbuiltins.AssertionError = ValueError\nimport sys\nsys.exit(0)\n",
)


@pytest.mark.parametrize("text", CHEATS, ids=["equal to everything", "leaves before the tests"])
def test_cheats_are_not_counted(text):
    assert graded(text)["c"] == 0


# --------------------------------------------------------------------------- MBPP


@pytest.fixture
def mbpp(tmp_path):
    """``data`` with three shown problems and three to solve: a plain one, one named as a built-in, one with a class."""
    rows = [
        {"task_id": n, "text": f"Add {n}.", "code": f"def f{n}(x):\r\n  return x + {n}",
         "test_list": [f"assert f{n}({k}) == {k + n}" for k in range(3)], "test_setup_code": ""}
        for n in (1, 2, 3, 4, 11)
    ]  # fmt: skip
    rows.append(
        {
            **rows[0],
            "task_id": 12,
            "code": "def sum(a, b):\n    return a * b",
            "test_list": ["assert sum(2, 3) == 6"] * 3,
        }
    )
    setup = "class Node:\n    x = 5\nnode = Node()"
    row = {
        "task_id": 13,
        "text": "Its x.",
        "code": "def x_of(n):\n    return n.x",
        "test_list": ["assert x_of(node) == 5"] * 3,
    }
    rows.append({**row, "test_setup_code": setup})
    for file, chosen in (("prompt", rows[:4]), ("test", rows[4:])):
        (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return lambda asset: tmp_path


def test_mbpp_is_asked_as_lm_eval_asks_it(mbpp):
    import jinja2
    import lm_eval
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    with open(f"{next(iter(lm_eval.__path__))}/tasks/mbpp/mbpp.yaml", encoding="utf-8") as file:
        task = yaml.load(file, Loader)
    text = jinja2.Environment(keep_trailing_newline=True).from_string(task["doc_to_text"])
    rows = [json.loads(line) for line in (mbpp("") / "prompt.jsonl").read_text().splitlines()[1:]]
    rows.append(json.loads((mbpp("") / "test.jsonl").read_text().splitlines()[0]))
    shown = [text.render(**row) + (f"{row['code']}\n[DONE]" if row["task_id"] < 5 else "") for row in rows]
    plugin = load_plugin("evals", "mbpp")
    generate, reference = plugin.requests(plugin.items(mbpp)[0])
    assert generate.context == reference.context == "\n\n".join(shown)
    assert list(generate.until) == task["generation_kwargs"]["until"] and reference.continuation == rows[-1]["code"]
    assert task["num_fewshot"] == 3


def test_mbpp_solutions_pass_and_others_do_not(mbpp):
    plugin = load_plugin("evals", "mbpp")
    for item in plugin.items(mbpp):
        outputs = [
            {
                "texts": [item["code"], "def f11(x): return 0\ndef sum(*a): return 0\ndef x_of(n): return 0"],
                "tokens": [1, 1],
            }
        ]
        grade = plugin.grade(item, [*outputs, {"nll": 1.0, "tokens": 1}])
        assert grade["outcome"] == ["passed", "failed AssertionError"], item["id"]


def test_a_limit_takes_a_fixed_part(data):
    def ids(limit):
        return [item["id"] for item in load_plugin("evals", "humaneval", limit=limit).items(data)]

    assert len(ids(32)) == 32 and ids(32) == ids(32) and set(ids(8)) < set(ids(32)) < set(ids(0))


def test_a_row_without_its_columns_is_named(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"task_id": "HumanEval/0", "prompt": "def f():"}\n')
    with pytest.raises(ValueError, match="test.jsonl:1: no column entry_point, canonical_solution, test"):
        load_plugin("evals", "humaneval").items(lambda asset: tmp_path)


# --------------------------------------------------------------------------- docstring-to-body pairs

SOURCE = '''
"""A module."""

@decorated("x")
def longest(words: list, *, key=len) -> str:
    """The longest word.

    Of equal ones the first.

    Parameters
    ----------
    words : list

    Examples
    --------
    >>> longest(["a", "bb"])
    'bb'

    Notes
    -----
    None.
    """
    # compare by key
    return max(words, key=key)


def slashed(x):
    r"""Is \\alpha."""

    return x


def one_line(x): """Doc."""; return x


def empty(x):
    """Nothing follows."""


def double(x):
    """A name of the test."""
    return x + x


def twin(x):
    """A body of the test."""
    return 2 * x  # as there


def again(y, words, key):
    """The body of longest."""
    return max(words, key=key)


class Thing:
    def method(self):
        """Not a function."""
        return 1
'''


@pytest.fixture
def toy(tmp_path):
    for asset in ("networkx-source", "more-itertools-source", "humaneval"):
        (tmp_path / asset).mkdir()
    (tmp_path / "networkx-source" / "module.py").write_text(SOURCE)
    (tmp_path / "humaneval" / "test.jsonl").write_text(json.dumps({**ITEM, "task_id": "toy/0"}) + "\n")
    return lambda asset: tmp_path / asset


def pairs(data, split="train", **fields):
    return load_plugin("corpora", "docstring-code", **fields).examples(split, data)


def test_pairs_look_like_humaneval(toy):
    found = {e.prompt.split("(")[0]: e for e in [*pairs(toy), *pairs(toy, "validation")]}
    assert sorted(found) == ["def longest", "def slashed"]
    assert found["def longest"].prompt == (
        'def longest(words: list, *, key=len) -> str:\n    """The longest word.\n\n    Of equal ones the first.\n\n'
        '    >>> longest(["a", "bb"])\n    \'bb\'\n    """'
    )
    assert found["def longest"].completion == "\n    # compare by key\n    return max(words, key=key)\n"
    assert found["def slashed"].prompt == 'def slashed(x):\n    r"""Is \\alpha."""'
    assert found["def slashed"].completion == "\n    return x\n"


def test_examples_give_way_where_there_is_no_room(toy):
    short = {e.prompt.split("(")[0]: e for s in ("train", "validation") for e in pairs(toy, s, max_characters=180)}
    assert ">>>" not in short["def longest"].prompt and "Of equal ones" in short["def longest"].prompt
    assert not [e for s in ("train", "validation") for e in pairs(toy, s, max_characters=40)]


def test_the_corpus_is_disjoint_from_test_and_validation(data):
    train, validation = pairs(data), pairs(data, "validation")
    assert len(train) > 300 and len(validation) > 20
    assert pairs(data, limit=50) == train[:50]
    solutions = [i["prompt"] + i["canonical_solution"] for i in load_plugin("evals", "humaneval").items(data)]
    tested = {n.name: body(n) for s in solutions for n in ast.walk(ast.parse(s)) if isinstance(n, ast.FunctionDef)}
    seen = {}
    for split, examples in (("train", train), ("validation", validation)):
        for example in examples:
            (function,) = ast.parse(example.prompt + example.completion).body
            assert function.name not in tested and body(function) not in tested.values()
            assert seen.setdefault(body(function), (split, function.name)) == (split, function.name)
            assert ast.get_docstring(function) and len(example.prompt + example.completion) <= 610
            assert example.prompt.endswith('"""') and example.completion.startswith("\n    ")


def body(function):
    return ast.unparse(ast.Module(function.body[bool(ast.get_docstring(function)) :], []))


def test_the_reference_metric_is_a_mean_over_tokens():
    grades = [{"n": 1, "c": 0, "nll": 2.0, "nll_tokens": 1}, {"n": 1, "c": 0, "nll": 2.0, "nll_tokens": 3}]
    assert math.isclose(load_plugin("evals", "humaneval").aggregate(grades)["reference_nll"], 1.0)
