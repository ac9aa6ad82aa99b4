"""YAML that people write: what YAML itself would swallow is refused with file, line and key."""

from __future__ import annotations

import pytest
import yaml

from harness import cells
from harness import suite as suites
from harness.failures import UserError
from harness.plugins import ROOT
from harness.strict_yaml import read_yaml

WRITTEN = [p for folder in ("config", "papers", "workflow") for p in sorted((ROOT / folder).rglob("*.yaml"))]


@pytest.mark.parametrize("path", WRITTEN, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_a_right_file_is_read_as_yaml_reads_it(path):
    assert read_yaml(path) == yaml.safe_load(path.read_text(encoding="utf-8"))


def test_aliases_and_merges_are_no_repetitions(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, y: 3}\nd: [*a, *a]\n")
    assert read_yaml(path) == yaml.safe_load(path.read_text())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n  full: 1\n  lora: 2\n  full: 3\n", "x.yaml: line 4: the key 'full' stands twice, first in line 2"),
        ("- {id: a, id: b}", "x.yaml: line 1: the key 'id' stands twice"),
        ("on: 1", "x.yaml: line 1: YAML reads the key on as True: put it in quotes"),
        ("a: {16: 1}", "x.yaml: line 1: YAML reads the key 16 as 16: put it in quotes"),
        ("a: [", "x.yaml: not valid YAML: "),
        ("a: 2024-13-45", "x.yaml: not valid YAML: month must be in"),
        (b"a: caf\xe9", "x.yaml: not UTF-8 .*: save it as UTF-8"),
    ],
)
def test_what_yaml_would_swallow_is_refused(tmp_path, text, message):
    path = tmp_path / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        read_yaml(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"suite: toy\ngrid: []\ngrid: []\n", "line 3: the key 'grid' stands twice"),
        (b"suite: caf\xe9\n", "not UTF-8"),
    ],
)
def test_a_suite_is_read_strictly(tmp_path, text, message):
    (tmp_path / "toy.yaml").write_bytes(text)
    with pytest.raises(UserError, match=rf"toy\.yaml: {message}"):
        suites.load_suite(str(tmp_path / "toy.yaml"))


MODEL = "  m: {label: M, architecture: causal, tiny: {family: llama}}\n"


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (MODEL + MODEL, "line 3: the key 'm' stands twice"),
        (MODEL.replace("label: M, ", ""), "models.m: 'label' is a required property"),
        (MODEL.replace("causal", "casual"), "models.m.architecture: 'casual' is not one of"),
        (MODEL.replace("}}", "}"), "not valid YAML"),
        ("  caf\xe9: 1\n", "not UTF-8"),
    ],
)
def test_the_catalogue_is_checked_where_it_is_read(tmp_path, monkeypatch, models, message):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "catalogue.yaml").write_bytes(f"models:\n{models}data: {{}}\n".encode("latin-1"))
    monkeypatch.setattr(cells, "ROOT", tmp_path)
    with pytest.raises(UserError, match=f"config/catalogue.yaml: {message}"):
        cells.catalogue.__wrapped__()
