"""Claims and tables that are written wrongly: each is refused with its file, place and what is expected there."""

from __future__ import annotations

import json

import pytest

from evidence import claims, paper_tables
from evidence.cells import EvidenceError

CLAIM = {"id": "a", "claim": "c", "place": "p", "kind": "above", "method": "smt", "others": ["lora"]}
ROW = {"title": "r", "evals": ["gsm8k"]}
SCORES = {"id": "a", "title": "t", "kind": "scores", "methods": {"LoRA": "lora"}, "rows": [ROW]}
GAP = {**SCORES, "kind": "gap", "methods": ["smt"], "low": "lora", "high": "full"}


@pytest.fixture(params=["claims", "tables"])
def read(request, tmp_path, monkeypatch):
    """Reads a text as a paper's claims or tables."""
    folder = tmp_path / "papers" / "x"
    folder.mkdir(parents=True)
    monkeypatch.setattr(paper_tables, "ROOT", tmp_path)

    def from_text(text, kind=request.param):
        (folder / f"{kind}.yaml").write_text(text)
        return claims.read_claims(folder / "claims.yaml") if kind == "claims" else paper_tables.read_tables("x")

    return from_text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a list of one .* or more, not nothing"),
        ("[]", r"expected a list of one .* or more, not \[\]"),
        ("id: a", "expected a list of one .* or more, not {'id': 'a'}"),
        ("- a\n- b", "number 1: expected a mapping, not 'a'"),
        ("- {id: a", "not valid YAML: "),
        ("- id: a\n  id: b", "line 2: the key 'id' stands twice"),
        ("- {id: a, kind: [above]}", r"a: kind is one of .*, not \['above'\]"),
    ],
)
def test_what_is_no_list_of_mappings_is_refused(read, text, message):
    with pytest.raises(EvidenceError, match=rf"x/(claims|tables)\.yaml: .*{message}"):
        read(text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": 3}, "id: expected a text, not 3"),
        ({"evals": "gsm8k"}, "evals: expected a list of one or more, not 'gsm8k'"),
        ({"evals": []}, "evals: expected a list"),
        ({"others": "lora"}, "others: expected a list of one or more, not 'lora'"),
        ({"others": [{"metric": "kfac"}]}, "others: number 1: expected a method's name, or a mapping with method"),
        ({"method": None}, "method: expected a method's name, or a mapping .*, not nothing"),
        ({"margin": "2.4"}, "margin: expected a number of 0 or more, not '2.4'"),
        ({"margin": float("nan")}, "margin: expected a number"),
        ({"margin": True}, "margin: expected a number"),
        ({"kind": "equal", "margin": 0}, "margin: expected a number above 0, not 0"),
        ({"kind": "cost", "of": "time", "ratio": 0}, "ratio: expected a number above 0"),
        ({"kind": "sizes", "ratios": {"money": 1}}, "ratios: money: expected one of time, memory, start"),
        ({"kind": "sizes", "ratios": ["time"]}, "ratios: expected a mapping"),
        ({"kind": "early", "share": 25}, "share: expected a number above 0, at most 1"),
        ({"kind": "norms", "start": 5, "epoch": 1.5}, "epoch: expected a whole number of 1 or more"),
        ({"kind": "plateau", "method": {"method": "smt"}}, "method: expected a text"),
    ],
)
@pytest.mark.parametrize("read", ["claims"], indirect=True)
def test_a_claim_s_fields_are_checked(read, fields, message):
    assert read(json.dumps([CLAIM])) == [CLAIM]
    name = fields.get("id", "a")
    with pytest.raises(EvidenceError, match=rf"claims\.yaml: claim {name}: {message}"):
        read(json.dumps([{**CLAIM, **fields}]))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({k: v for k, v in SCORES.items() if k != "rows"}, "missing: rows"),
        ({k: v for k, v in GAP.items() if k != "high"}, "missing: high"),
        ({**SCORES, "methods": ["lora"]}, "methods: expected a mapping of one or more, not .'lora'."),
        ({**GAP, "methods": {"LoRA": "lora"}}, "methods: expected a list of one or more"),
        ({**SCORES, "margin": "1"}, "margin: expected a number above 0, not '1'"),
        ({**SCORES, "models": "llama"}, "models: expected a mapping"),
        (
            {**SCORES, "rows": [ROW, {**ROW, "lower_is_beter": True}]},
            "rows: number 2: unknown: lower_is_beter; there are",
        ),
        (
            {**SCORES, "rows": [{**ROW, "lower_is_better": "yes"}]},
            "rows: number 1: unknown: lower_is_better",
        ),
        ({**SCORES, "rows": [{**ROW, "evals": "gsm8k"}]}, "rows: number 1: evals: expected a list"),
        ({**SCORES, "rows": ["gsm8k"]}, "rows: number 1: expected a mapping with title, evals, not 'gsm8k'"),
        ({**SCORES, "reported": "smt.csv"}, "rows: number 1: reported stands in both"),
        ({**SCORES, "rows": [{**ROW, "reported": {"benchmark": "GLUE"}}]}, "rows: number 1: reported stands in both"),
        (
            {**SCORES, "reported": "smt.csv", "rows": [{**ROW, "reported": {"benchmrk": "GLUE"}}]},
            "rows: number 1: reported: missing: benchmark",
        ),
        ({**SCORES, "kind": "projection", "rows": 1}, "missing: evals"),
    ],
)
@pytest.mark.parametrize("read", ["tables"], indirect=True)
def test_a_table_s_fields_are_checked(read, spec, message):
    assert read(json.dumps([SCORES, {**GAP, "id": "b"}]))
    with pytest.raises(EvidenceError, match=rf"tables\.yaml: table a: {message}"):
        read(json.dumps([spec]))


@pytest.mark.parametrize("read", ["tables"], indirect=True)
def test_two_tables_of_one_id_would_be_one_file(read):
    with pytest.raises(EvidenceError, match="table a: its id is taken"):
        read(json.dumps([SCORES, SCORES]))
