"""Plug-ins as they are read: what would be ignored when they run is refused, with file, field and remedy."""

from __future__ import annotations

import pytest

from harness import plugins
from harness.failures import UserError
from harness.plugin_source import describe, parse

HEAD = """
from dataclasses import dataclass, field
from harness.contract import Method, choice, log_uniform

SIZES = (4, 8)
"""
METHOD = """
@dataclass
class Mine(Method):
    learning_rate: float = 0.01
    rank: int = field(default=8, metadata={"search": choice(4, 8)})

    def attach(self, model, run):
        pass
"""


def write(folder, text, name="mine"):
    path = folder / "methods" / f"{name}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(HEAD + text)
    parse.cache_clear()  # a file is read once by a process
    return path


def refuse(folder, text, message):
    path = write(folder, text)
    with pytest.raises(UserError, match=rf"methods/mine\.py.*{message}"):
        describe("methods", path)


@pytest.fixture
def methods(tmp_path, monkeypatch):
    """A project with the plug-ins that a test writes."""
    monkeypatch.setattr(plugins, "ROOT", tmp_path)
    plugins.find_plugin.cache_clear()
    yield tmp_path
    plugins.find_plugin.cache_clear()


def test_a_right_method_is_read(tmp_path):
    found = describe("methods", write(tmp_path, METHOD))
    assert found.fields == {"learning_rate": 0.01, "weight_decay": 0.0, "rank": 8} and found.whole == {"rank"}
    assert found.searches == {"rank": {"space": "choice", "values": [4, 8]}}


@pytest.mark.parametrize("decorator", ["dataclass(kw_only=True)", "dataclasses.dataclass"])
def test_a_dataclass_may_be_written_in_other_ways(tmp_path, decorator):
    assert describe("methods", write(tmp_path, METHOD.replace("@dataclass", f"@{decorator}")))


def test_a_class_with_fields_is_a_dataclass(tmp_path):
    refuse(tmp_path, METHOD.replace("@dataclass", ""), "class Mine has the field 'learning_rate' and is no dataclass")
    shared = (
        METHOD.replace("Mine", "_Shared").replace("@dataclass", "") + "\n@dataclass\nclass Mine(_Shared):\n    pass\n"
    )
    refuse(tmp_path, shared, "class _Shared has the field 'learning_rate' and is no dataclass")


def test_a_field_s_value_without_its_type_is_refused(tmp_path):
    bare = METHOD.replace("learning_rate: float = 0.01", "learning_rate = 0.01")
    refuse(tmp_path, bare, "'learning_rate' is a field, and without its type the value would be ignored")


@pytest.mark.parametrize(("name", "hook"), [("intialize", "initialize"), ("after_steps", "after_step")])
def test_a_misspelt_hook_is_refused(tmp_path, name, hook):
    text = METHOD + f"\n    def {name}(self, model, probe):\n        pass\n"
    refuse(tmp_path, text, f"Mine.{name} is no hook and would never be called. Did you mean '{hook}'")
    assert describe("methods", write(tmp_path, text.replace(name, f"_{name}")))
    assert describe("methods", write(tmp_path, text.replace(name, "own_helper")))


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ("log_uniform(low=1e-5, high=1e-2)", {"space": "log_uniform", "low": 1e-5, "high": 1e-2}),
        ("log_uniform(1e-5, high=1e-2)", {"space": "log_uniform", "low": 1e-5, "high": 1e-2}),
        ("choice(*SIZES, 16)", {"space": "choice", "values": [4, 8, 16]}),
        ("choice('a', 'b')", {"space": "choice", "values": ["a", "b"]}),
    ],
)
def test_a_search_space_is_read(tmp_path, space, expected):
    assert describe("methods", write(tmp_path, METHOD.replace("choice(4, 8)", space))).searches["rank"] == expected


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("log_uniform(0, 2)", "a bound of log_uniform is a number above 0, not 0"),
        ("log_uniform('a', 'b')", "a bound of log_uniform is a number above 0, not 'a'"),
        ("log_uniform(1e-5, 1e999)", "a bound of log_uniform is a number above 0, not inf"),
        ("log_uniform(1e-2, 1e-5)", "the lower bound comes first"),
        ("log_uniform(1e-2)", "log_uniform takes two bounds"),
        ("log_uniform(lo=1e-5, high=1e-2)", "log_uniform takes two bounds"),
        ("choice()", "choice takes its values one by one"),
        ("choice([8, 16])", "choice takes its values one by one"),
        ("choice(SIZES)", "choice takes its values one by one"),
        ("choice(*range(3))", "choice takes its values one by one"),
        ("choice(values=[8])", "choice takes its values one by one"),
        ("uniform(0, 1)", "a search space is one of log_uniform, choice"),
    ],
)
def test_a_wrong_search_space_is_refused_with_file_and_field(tmp_path, space, message):
    refuse(tmp_path, METHOD.replace("choice(4, 8)", space), rf":\d+: rank: .*{message}")


def test_a_file_s_name_takes_underscores(methods):
    write(methods, METHOD, "zz-dash")
    with pytest.raises(UserError, match=r"methods/zz-dash\.py: .* takes underscores: rename it to zz_dash\.py"):
        plugins.find_plugin("methods", "zz-dash")


def test_a_typo_is_named_though_another_plugin_is_broken(methods):
    write(methods, METHOD, "mine")
    write(methods, "class Broken(:\n", "a_broken")
    with pytest.raises(UserError, match=r"no method 'mien': methods/mien\.py does not exist. Did you mean mine"):
        plugins.find_plugin("methods", "mien")
    with pytest.raises(UserError, match=r"methods/a_broken\.py:\d+: not valid Python"):
        plugins.find_plugin("methods", "a-broken")


def test_a_file_that_is_no_utf8_is_named(methods):
    write(methods, METHOD).write_bytes(b"# caf\xe9\n")
    with pytest.raises(UserError, match=r"methods/mine\.py: not valid Python: .*utf-8"):
        plugins.find_plugin("methods", "mine")


def test_tasks_read_as_papers_write_them():
    names = {
        task
        for kind in ("corpora", "evals")
        for name in plugins.available(kind)
        if (task := plugins.find_plugin(kind, name).task)
    }
    assert set(plugins.TASK_LABELS) <= names  # none of a task that is gone
    assert (
        plugins.find_plugin("evals", "glue-sst2").label
        == plugins.find_plugin("corpora", "glue-sst2").label
        == "GLUE SST-2"
    )
    assert plugins.find_plugin("evals", "wikitext-103").label == "WikiText-103"
