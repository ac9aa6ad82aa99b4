"""What would be ignored, or would fail in the middle of a run, is refused when a suite is read."""

from __future__ import annotations

import pytest
import yaml

from harness import dag
from harness.failures import UserError
from tests.test_suite import BASE, load

BLOCK = BASE["grid"][0]


def override(when, **values):
    return {"overrides": [{"when": when, "set": values or {"variant.learning_rate": 0.5}}]}


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ({"model": "tiny-lama"}, "when.model: no grid block has the model 'tiny-lama'.* Did you mean 'tiny-llama'"),
        ({"model": ["tiny-llama", "tiny-gpt2"]}, "no grid block has the model 'tiny-gpt2'"),
        ({"corpus": "generated-label"}, "no grid block has the corpus 'generated-label'.* Did you mean 'generated-labels'"),
        ({"variant": "lora"}, "no grid block has the variant 'lora'.* Did you mean 'lora-r4'"),
        ({"method": "dora"}, "no grid block has the method 'dora'"),
        ({"seed": "1"}, "no grid block has the seed '1'.* Write it without quotes"),
        ({"seed": True}, "no grid block has the seed True"),
        ({"seed": 7}, "no grid block has the seed 7"),
        ({"model": None}, "no grid block has the model nothing"),
        ({"variant": []}, "no grid block has the variant nothing"),
        ({"variant": "full", "method": "lora"}, "when: no cell of the grid has all of this together"),
    ],
)  # fmt: skip
def test_an_override_that_would_never_apply_is_refused(tmp_path, when, message):
    with pytest.raises(UserError, match=rf"toy\.yaml: overrides\.0\.{'' if 'when' in message else '.*'}{message}"):
        load(tmp_path, **override(when))


def test_an_override_may_name_several_cells(tmp_path):
    rule = override({"variant": ["full", "lora-r4"], "seed": [0, 1], "model": "tiny-llama"})
    assert {t.hyperparameters["learning_rate"] for t in load(tmp_path, **rule).trainings if t.trains} == {0.5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (override({"model": "tiny-llama"}, **{"protocol.step_times": {"nosuch": 2}}),
         "overrides.0.set.protocol.step_times: variant 'nosuch' is not known"),
        (override({}, **{"protocol.step_times": {"full": 2}, "protocol.steps": 0}), "counted from `steps`"),
        ({"cost": {"corpora": ["typo"]}}, "cost.corpora: 'typo' is not known. It is in no grid block"),
        ({"cost": {"variants": ["lora"]}}, "cost.variants: 'lora' is not known. Did you mean 'lora-r4'"),
        ({"corpora": {"generated-pairs": {"rows": 8}}}, "corpora: 'generated-pairs' is not known.* nothing would read this"),
        ({"evals": {"generated-pairs": {"rows": 8}}}, "evals: 'generated-pairs' is not known.* nothing would read this"),
        ({"evals": {"generated-label": {"rows": 8}}}, "no eval 'generated-label'"),
        ({"protocol": {"validation_examples": 0}}, "protocol.validation_examples: 0 is less than the minimum of 1"),
    ],
)  # fmt: skip
def test_what_nothing_would_read_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, **changes)


def test_settings_of_what_the_grid_has_are_fine(tmp_path):
    grid = [{**BLOCK, "evals": ["generated-text"]}]
    given = {"corpora": {"generated-labels": {"rows": 64}}, "evals": {"generated-text": {"rows": 8}}}
    suite = load(tmp_path, grid=grid, cost={"corpora": ["generated-labels"], "variants": ["full"]}, **given)
    assert [t.variant for t in suite.costs] == ["full"]


@pytest.mark.parametrize(
    ("corpus", "evals", "message"),
    [
        ("generated-labels", ["generated-sums"], "generated-sums asks for Generate and Reference, which tiny-roberta"),
        ("generated-labels", ["generated-text"], "generated-text asks for Reference, which tiny-roberta"),
        ("generated-labels", ["commonsense-likelihood-piqa"], "Choices without an input, which tiny-roberta"),
    ],
)
def test_an_encoder_is_not_asked_for_words(tmp_path, corpus, evals, message):
    block = {**BLOCK, "corpora": [corpus], "evals": evals}
    assert load(tmp_path, grid=[block])
    with pytest.raises(UserError, match=message):
        load(tmp_path, grid=[{**block, "models": ["tiny-roberta"]}])


def test_an_encoder_classifies(tmp_path):
    assert load(tmp_path, grid=[{**BLOCK, "models": ["tiny-roberta"]}])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": 5}, "suite: 5 is not of type 'string'"),
        ({"suite": None}, "suite: nothing stands here, where a text belongs"),
        ({"limits": None}, "limits: nothing stands here, where a mapping belongs: fill it in, or delete the key"),
        ({"limits": [1]}, r"limits: \[1\] is not of type 'object'"),
        ({"variants": None}, "variants: nothing stands here"),
    ],
)
def test_the_schema_is_checked_before_anything_is_read_from_a_suite(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, **changes)


WHOLE = ("batch_size", "micro_batch_size", "validation_examples", "max_length", "threads", "length_bucketing")


@pytest.mark.parametrize("name", [*WHOLE, "eval_batch_size", "steps"])
def test_a_float_is_no_whole_number(tmp_path, name):
    for value, message in ((8.0, "8.0 is not a whole number. Write 8."), (8.5, "8.5 is not a whole number")):
        with pytest.raises(UserError, match=f"protocol.{name}: {message}"):
            load(tmp_path, protocol={name: value})
    with pytest.raises(UserError, match=f"overrides.0.set.protocol.{name}: 8.0 is not a whole number"):
        load(tmp_path, **override({}, **{f"protocol.{name}": 8.0}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": [{**BLOCK, "seeds": [0.0]}]}, "grid.0.seeds.0: 0.0 is not a whole number. Write 0."),
        ({"variants": {**BASE["variants"], "full": {"method": "full", "rank": 8.0}}}, "variants.full.rank: 8.0 is not a whole"),
        ({"variants": {**BASE["variants"], "lora-r4": {"method": "smt", "warmup_steps": 8.0}}}, "'warmup_steps' is a whole"),
        ({"corpora": {"generated-labels": {"rows": 64.0}}}, "generated-labels's 'rows' is a whole number, not 64.0"),
        ({"protocol": {"epochs": float("inf")}}, "protocol.epochs: a finite number is needed, not .inf"),
        ({"protocol": {"steps": 3, "step_times": {"full": float("nan")}}}, "protocol.step_times.full: .* not .nan"),
        ({"limits": {"wall_minutes": float("-inf")}}, "limits.wall_minutes: .* not -.inf"),
        ({"variants": {**BASE["variants"], "lora-r4": {"method": "lora", "alpha": float("inf")}}}, "lora-r4.alpha: .* not .inf"),
        (override({}, **{"variant.weight_decay": float("nan")}), "overrides.0.set.variant.weight_decay: .* not .nan"),
    ],
)  # fmt: skip
def test_numbers_are_whole_where_they_must_be_and_finite_everywhere(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, **changes)


@pytest.mark.parametrize("text", ["on: 1", "16: 1"])
def test_a_key_that_yaml_reads_as_no_text_is_named(tmp_path, text):
    with pytest.raises(UserError, match="YAML reads the key"):
        (tmp_path / "odd.yaml").write_text(yaml.safe_dump(BASE) + text + "\n")
        dag.load_suite(str(tmp_path / "odd.yaml"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"suit": "smoke"}, "--config suit=smoke: there is no setting 'suit'. Did you mean 'suite'"),
        ({"threads": 1}, "no setting 'threads'. There are suite, code, device_memory"),
    ],
)
def test_an_unknown_setting_of_snakemake_is_refused(config, message):
    with pytest.raises(SystemExit, match=message):
        dag.suite(config, None)
    assert dag.suite({"suite": "smoke", "device_memory": "8GiB"}, None).name == "smoke"
