"""Suites: cells, overrides, the protocol lock, hashes, and errors that name the place and the remedy."""

from __future__ import annotations

import pytest
import yaml

from harness import dag, record
from harness import suite as suites
from harness.cells import predict_record, train_record
from harness.closure import code_hash
from harness.failures import UserError
from harness.plugins import ROOT, available, find_plugin, load_plugin

BASE = {
    "suite": "toy",
    "protocol": {"steps": 3},
    "variants": {"lora-r4": {"method": "lora", "rank": 4}, "full": {"method": "full"}},
    "grid": [
        {"models": ["tiny-llama"], "corpora": ["generated-labels"], "variants": ["full", "lora-r4"], "seeds": [0, 1]}
    ],
}


def load(tmp_path, **changes):
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump({**BASE, **changes}))
    return suites.load_suite(str(path))


def test_cells_are_the_grid_and_its_baselines(tmp_path):
    names = [t.name.removeprefix("tiny-llama/generated-labels/") for t in load(tmp_path).trainings]
    assert names[:1] == ["untuned/seed0"]
    assert set(names) - {"untuned/seed0", "majority/seed0"} == {
        f"{v}/seed{s}" for v in ("full", "lora-r4") for s in (0, 1)
    }


def test_a_block_without_evals_trains_and_scores_nothing(tmp_path):
    suite = load(tmp_path, grid=[{**BASE["grid"][0], "evals": []}])
    assert {(t.variant, t.evals) for t in suite.trainings} == {("full", ()), ("lora-r4", ())}  # and no baselines
    assert set(dag.scores(suite)) == {str(train_record(t)) for t in suite.trainings}
    assert {job["stage"] for job in suite.plan()["jobs"]} == {"train", "cost"}


def test_overrides_apply_where_they_should(tmp_path):
    rules = [
        {"when": {"corpus": "generated-labels"}, "set": {"protocol.steps": 9}},
        {"when": {"variant": "lora-r4", "seed": 1}, "set": {"variant.learning_rate": 0.5}},
    ]
    suite = load(tmp_path, overrides=rules)
    one = suite.training("tiny-llama", "generated-labels", "lora-r4", 1)
    zero = suite.training("tiny-llama", "generated-labels", "lora-r4", 0)
    assert one.protocol["steps"] == 9 and one.hyperparameters["learning_rate"] == 0.5
    assert zero.hyperparameters["learning_rate"] != 0.5 and zero.hyperparameters["rank"] == 4


def test_the_plan_has_the_keys_of_predictions_as_the_code_stands_even_where_it_is_pinned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suite = load(tmp_path)
    training = suite.training("tiny-llama", "generated-labels", "full", 0)
    keys = {cell["variant"]: entry["predict_key"] for cell in suite.plan()["cells"] for entry in cell["evals"]}
    assert keys["majority"] is None and keys["untuned"]
    key = training.predict_key("generated-labels")
    for path in (train_record(training), predict_record(training, "generated-labels")):
        record.write(path, {"status": "ok", "key": "of-older-code"})
    monkeypatch.setenv("TUNING_FORK_CODE", "pinned")
    training = load(tmp_path).training("tiny-llama", "generated-labels", "full", 0)
    assert training.predict_key("generated-labels") == "of-older-code"
    cells = [cell for cell in training.suite.plan()["cells"] if (cell["variant"], cell["seed"]) == ("full", 0)]
    assert [entry["predict_key"] for entry in cells[0]["evals"]] == [key]


def test_step_times_give_each_variant_the_steps_of_an_equal_time(tmp_path):
    def steps(suite, variant):
        return suite.training("tiny-llama", "generated-labels", variant, 0).protocol["steps"]

    same, equal = load(tmp_path), load(tmp_path, protocol={"steps": 30, "step_times": {"full": 1.5}})
    assert steps(equal, "full") == 20 and steps(equal, "lora-r4") == 30
    assert steps(same, "full") == steps(same, "lora-r4") == 3
    assert "step_times" not in equal.training("tiny-llama", "generated-labels", "full", 0).protocol


def test_the_key_follows_what_determines_the_result_and_nothing_else(tmp_path):
    def key(**changes):
        return load(tmp_path, **changes).training("tiny-llama", "generated-labels", "lora-r4", 0).key

    base = key()
    assert key() == base
    assert key(description="another text") == base
    assert key(limits={"wall_minutes": 5}) == base
    assert key(protocol={"steps": 3, "eval_batch_size": 7}) == base
    assert key(protocol={"steps": 4}) != base
    assert key(variants={**BASE["variants"], "lora-r4": {"method": "lora", "rank": 8}}) != base
    assert key(variants={**BASE["variants"], "full": {"method": "full", "learning_rate": 0.1}}) == base
    assert key(protocol={"steps": 3, "streams": {"order": 5}}) != base


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocl": {}}, "unknown key 'protocl'. Did you mean 'protocol'"),
        ({"protocol": {"steps": -1}}, "protocol.steps: -1 is less than the minimum of 0"),
        ({"protocol": {"step": 1}}, "unknown key 'step'. Did you mean 'steps'"),
        ({"variants": {"full": {"method": "ful"}, "lora-r4": {"method": "lora"}}}, "no method 'ful'.*Did you mean full"),
        ({"variants": {"full": {"method": "full"}, "lora-r4": {"method": "lora", "rnak": 4}}}, "'rnak'. Did you mean 'rank'"),
        ({"grid": [{**BASE["grid"][0], "models": ["tiny-lama"]}]}, "model 'tiny-lama' is not known. Did you mean 'tiny-llama'"),
        ({"grid": [{**BASE["grid"][0], "corpora": ["generated-label"]}]}, "no corpus 'generated-label'"),
        ({"grid": [{**BASE["grid"][0], "variants": ["lora"]}]}, "variant 'lora' is not known"),
        ({"grid": [{**BASE["grid"][0], "seeds": []}]}, "grid.0.seeds"),
        ({"overrides": [{"when": {"variant": "full"}, "set": {"protocol.steps": 5}}]}, "belongs to the protocol"),
        ({"overrides": [{"when": {"corpus": "x"}, "set": {"steps": 5}}]}, "should begin with 'protocol.' or 'variant.'"),
        ({"overrides": [{"when": {}, "set": {"protocol.stepz": 5}}]}, "'stepz' is not known. Did you mean 'steps'"),
        ({"variants": {"full": {"method": "full"}, "lora-r4": {"method": "lora", "alpha": "1e-3"}}},
         "variants.lora-r4: lora's 'alpha' is a number, not '1e-3'. YAML reads 1e-3 as text: write 1.0e-3"),
        ({"variants": {"full": {"method": "full", "learning_rate": "2e4"}, "lora-r4": {"method": "lora"}}},
         r"learning_rate: '2e4' is not of type 'number'. YAML reads 2e4 as text: write 2.0e\+4"),
    ],
)  # fmt: skip
def test_a_wrong_suite_is_refused_in_one_clear_sentence(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, **changes)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("protocol.steps", "10", r"overrides.0.set.protocol.steps: '10' is not of type 'integer'. Write it without quotes"),
        ("protocol.steps", -3, "overrides.0.set.protocol.steps: -3 is less than the minimum of 0"),
        ("protocol.head_learning_rate", "1e-3", "YAML reads 1e-3 as text: write 1.0e-3"),
        ("protocol.precision", "fp16", "'fp16' is not one of"),
        ("protocol.schedule", "foo", "'foo' is not one of"),
        ("protocol.batch_size", 0, "0 is less than the minimum of 1"),
        ("protocol.max_grad_norm", -1, "-1 is less than the minimum of 0"),
        ("protocol.streams", {"ordre": 1}, "unknown key 'ordre'. Did you mean 'order'"),
        ("variant.learning_rate", "1e-3", "'learning_rate' is a number, not '1e-3'. YAML reads 1e-3 as text: write 1.0e-3"),
        ("variant.learning_rate", -1.0, "overrides.0.set.variant.learning_rate: -1.0 is less than"),
        ("variant.alpha", "sixteen", "'alpha' is a number, not 'sixteen'"),
    ],
)  # fmt: skip
def test_a_value_of_an_override_is_checked_as_the_suite_s_own(tmp_path, key, value, message):
    part = key.partition(".")[0]
    when = {"variant": ["lora-r4"]} if part == "variant" else {"model": "tiny-llama"}
    with pytest.raises(UserError, match=message):
        load(tmp_path, overrides=[{"when": when, "set": {key: value}}])


def test_an_override_names_fields_of_the_methods_that_it_reaches(tmp_path):
    rule = {"when": {"method": "lora"}, "set": {"variant.rank": 2}}
    assert load(tmp_path, overrides=[rule]).training("tiny-llama", "generated-labels", "lora-r4", 0)
    with pytest.raises(UserError, match="full has no field 'rank'"):
        load(tmp_path, overrides=[{**rule, "when": {"method": ["lora", "full"]}}])


def test_no_such_suite():
    with pytest.raises(UserError, match="no suite 'quik'"):
        suites.load_suite("quik")


def test_every_plugin_of_the_project_can_be_found_and_read():
    for kind in ("methods", "corpora", "evals"):
        assert available(kind), kind
        for name in available(kind):
            assert find_plugin(kind, name).class_name


@pytest.mark.parametrize("kind", ["corpora", "evals"])
def test_every_corpus_and_eval_loads(kind):
    for name in available(kind):
        assert load_plugin(kind, name).task == find_plugin(kind, name).task


def test_catalogue_knows_every_asset():
    for kind in ("corpora", "evals"):
        for name in available(kind):
            for asset in find_plugin(kind, name).names("assets"):
                assert asset in suites.catalogue()["data"], f"{kind}/{name}: {asset}"


EVAL_FILE = """
import json

LIMIT = 3


def count(x):
    return x


class X:
    def grade(self, a):
        return count(a)

    def items(self):
        return LIMIT
"""


def test_comments_and_docstrings_do_not_change_code(tmp_path, monkeypatch):
    import harness.closure as closure

    monkeypatch.setattr(closure, "ROOT", tmp_path)
    file = tmp_path / "evals" / "x.py"
    file.parent.mkdir()
    text = EVAL_FILE
    file.write_text(text)
    whole, bare = code_hash([file]), code_hash([file], grading=False)
    file.write_text('"""Docs."""\n' + text.replace("return LIMIT", "return LIMIT  # why"))
    assert (code_hash([file]), code_hash([file], grading=False)) == (whole, bare)
    file.write_text(text.replace("return x", "return 2 * x"))  # only grade calls count
    assert code_hash([file]) != whole and code_hash([file], grading=False) == bare
    file.write_text(text.replace("LIMIT = 3", "LIMIT = 4"))
    assert code_hash([file], grading=False) != bare


SUITES = [p for p in (ROOT / "config").glob("*.yaml") if p.stem not in ("catalogue", "revisions.lock")]
SUITES += [p for name in ("suite", "small") for p in (ROOT / "papers").glob(f"*/{name}.yaml")]


@pytest.mark.parametrize("path", SUITES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_suite_of_the_project_loads(path):
    loaded = suites.load_suite(str(path))
    assert loaded.trainings and all(t.key and t.protocol["steps"] >= 0 for t in loaded.trainings)


def test_every_paper_has_a_whole_and_a_small_form():
    for folder in (p for p in (ROOT / "papers").iterdir() if p.is_dir()):
        whole, small = suites.load_suite(folder.name), suites.load_suite(str(folder / "small.yaml"))
        assert (whole.name, small.name) == (folder.name, f"{folder.name}-small")
        assert "OURS" in (folder / "suite.yaml").read_text(encoding="utf-8")


def test_stages_are_counted(tmp_path):
    loaded = load(tmp_path)
    trained = [t for t in loaded.trainings if t.trains]
    assert dag.stages(loaded).startswith(f"Suite {loaded.name}, cells by stage: train {len(trained)}, cost ")
