"""A paper's tables: what was run beside what is reported, means over benchmarks, shares of a gap, and the notebooks."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import types
from pathlib import Path

import nbformat
import numpy as np
import pytest
from fake_results import MANY, collected

from evidence import notebook, paper_scores, paper_tables, reported
from evidence.cells import EvidenceError
from evidence.collected import Collected
from evidence.gap import share_closed
from evidence.layout import latex, markdown
from evidence.mean_of_evals import mean_pool
from evidence.pools import ItemValues, Panel, Pool, Run, panels
from evidence.reported import chosen, read_reported
from evidence.stats import spread
from evidence.tiers import panel_tiers
from harness.plugins import ROOT

PAPERS = sorted(path.parent.name for path in (ROOT / "papers").glob("*/tables.yaml"))
SPEC = {
    "id": "t",
    "kind": "scores",
    "title": "T",
    "methods": {"Full FT": "full", "LoRA": "lora", "DoRA": "dora", "SMT": "smt"},
    "rows": [
        {"title": "Headlines", "evals": ["headlines-test"]},
        {"title": "Arithmetic", "evals": ["arithmetic-test"]},
        {"title": "both", "evals": ["headlines-test", "arithmetic-test"]},
        {"title": "elsewhere", "evals": ["glue-sst2"]},
    ],
}


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return Collected(collected(tmp_path_factory.mktemp("p") / "fake") / "collected")


def rows_of(table, title):
    group = next(group for group in table.groups if group.lines == [title])
    return {row[0]: row[1:] for row in group.rows}


def test_every_paper_has_its_tables():
    assert PAPERS == ["dpi-glrp", "hybrid", "lorsum", "smt"]


@pytest.mark.parametrize("paper", PAPERS)
def test_a_suite_without_costs_has_every_table(paper, fake, monkeypatch):
    monkeypatch.setattr(fake, "costs", fake.costs.iloc[:0, :0])
    assert all(markdown(table) for table in paper_tables.build(paper, fake).values())


@pytest.mark.parametrize("paper", PAPERS)
def test_every_table_is_made_in_three_forms_and_says_that_it_is_not_the_paper_s_protocol(paper, fake, tmp_path):
    out = tmp_path / "tables"
    assert paper_tables.main([paper, "--collected", str(fake.folder), "--out", str(out)]) == 0
    specs = paper_tables.read_tables(paper)
    assert {path.name for path in out.iterdir()} == {f"{s['id']}{x}" for s in specs for x in (".md", ".csv", ".tex")}
    for path in out.glob("*.md"):
        assert "NOT the paper's protocol: suite fake" in path.read_text()
    for path in out.glob("*.tex"):
        body = re.sub(r"\\[&%$#_{}]", "", path.read_text())
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        widths = {
            1 + line.count("&") + sum(int(n) - 1 for n in re.findall(r"multicolumn{(\d+)}", line)) for line in rows
        }
        assert len(widths) == 1, path  # as many cells in every row


@pytest.mark.parametrize("paper", PAPERS)
def test_evals_and_methods_that_tables_name_are_there(paper):
    from evidence.names import FAMILIES
    from harness.plugins import find_plugin

    for spec in paper_tables.read_tables(paper):
        named = spec["methods"].values() if isinstance(spec["methods"], dict) else spec["methods"]
        assert set(named) <= set(FAMILIES)
        for name in [e for row in spec.get("rows", []) for e in row["evals"]] + spec.get("evals", []):
            assert find_plugin("evals", name)
        if "reported" in spec:
            numbers = read_reported(paper, spec["reported"])
            for row in spec["rows"]:
                assert chosen(numbers, row["reported"]), (spec["id"], row["title"])


def test_hybrid_s_table_holds_every_reported_number(fake):
    table = paper_tables.build("hybrid", fake)["table1"]
    with open(ROOT / "papers/hybrid/reported/table1.csv", newline="") as lines:
        source = list(csv.DictReader(lines))
    told = [record for record in table.records if record["origin"] == "reported"]
    assert len(told) == len(source) == 108
    assert sorted(str(r["average"]) for r in told if r["average"] is not None) == sorted(
        str(float(r["average"])) for r in source if r["average"]
    )
    text = markdown(table)
    assert text.count("damaged") == sum(r["state"] != "legible" for r in source)
    assert "not run" in text


def test_smt_s_tables_hold_numbers_by_all_names_of_their_sources_and_no_empty_column(fake):
    tables = paper_tables.build("smt", fake)
    mean = [
        row
        for row in tables["commonsense"].records
        if row["benchmark"].startswith("mean") and row["origin"] == "reported"
    ]
    told = {(row["model"], row["method"]): row["average"] for row in mean}
    assert told["LLaMA2-7B", "SMT"] == 83.4 and told["LLaMA-3-8B", "SMT"] == 86.8  # one as SMT(Best), one as SMT
    for name in ("commonsense", "mathematics"):
        table = tables[name]
        label, models = table.heads[-1]
        told = {row["model"] for row in table.records if row["origin"] == "reported"}
        assert label == "reported" and set(models) == told


def test_a_table_says_what_its_scores_were_trained_on(fake):
    spec = {**SPEC, "rows": [{"title": "Headlines", "evals": ["headlines-test"]}, {"title": "no", "evals": ["gsm8k"]}]}
    notes = paper_scores.scores_table("smt", spec, fake).notes
    assert [note for note in notes if note.startswith("Trained here on")] == ["Trained here on: Headlines: Headlines."]


def test_cells_show_every_run_and_average_what_may_be_averaged(fake):
    table = paper_scores.scores_table("hybrid", SPEC, fake)
    headlines, arithmetic = rows_of(table, "Headlines"), rows_of(table, "Arithmetic")
    assert headlines["SMT"][0] == "not run" and set(rows_of(table, "elsewhere")["LoRA"]) == {"not run", ""}
    assert "‡" in headlines["LoRA"][0] and "(1 of 2)" in headlines["LoRA"][1]
    assert "†" in headlines["DoRA"][0] and "(1 of 2)" in headlines["DoRA"][1]
    assert arithmetic["LoRA"][0].startswith("diverged ·") and "(1 of 2)" in arithmetic["LoRA"][1]
    both = rows_of(table, "both")["LoRA"]
    assert "diverged" in both[0] and both[1] == "—"  # seed 0 diverged on one, seed 1 is stale on the other
    assert any("stale" in note for note in table.notes) and any("torch 2.12.0" in note for note in table.notes)
    assert latex(table, "t").count("\\midrule") == 4


def test_less_reported_stands_only_on_the_paper_s_own_model(fake, monkeypatch):
    spec = {**SPEC, "rows": [{"title": "Headlines", "evals": ["headlines-test"], "reported": {"benchmark": "GLUE"}}]}
    spec |= {"reported": "table1.csv", "models": {"BloomZ-7B1": "tiny-llama"}, "margin": 100.0}
    table = paper_scores.scores_table("hybrid", spec, fake)
    assert [subs[-1] for _, subs in table.heads[:2]] == ["less reported", "tier"]
    row = rows_of(table, "Headlines")["Full FT"]
    assert row[3].startswith("equivalent within ±100")


@pytest.mark.parametrize("lacking", ["metric", "method", "paper"])
def test_a_reported_file_without_a_column_names_both(lacking, tmp_path, monkeypatch):
    monkeypatch.setattr(reported, "ROOT", tmp_path)
    path = tmp_path / "papers/p/reported/a.csv"
    path.parent.mkdir(parents=True)
    columns = [name for name in ("paper", "table", "task", "metric", "model", "method", "value") if name != lacking]
    path.write_text(",".join(columns) + "\n" + ",".join("1" * len(columns)) + "\n")
    with pytest.raises(EvidenceError, match=f"a\\.csv: no column '{lacking}'"):
        reported.read_reported("p", "a.csv")


def test_a_table_that_asks_for_what_is_not_there_is_refused(fake, tmp_path, monkeypatch, capsys):
    assert paper_tables.main(["nobody", "--collected", str(fake.folder), "--out", str(tmp_path)]) == 2
    assert "no such paper" in capsys.readouterr().err
    (tmp_path / "papers" / "x").mkdir(parents=True)
    monkeypatch.setattr(paper_tables, "ROOT", tmp_path)
    for text, said in (
        ("- {id: a, title: t, kind: pie}", "table a: kind is one of"),
        ("- {id: a, title: t, kind: costs, methods: [lora], method: [lora]}", "table a: unknown: method"),
        (
            "- {id: a, title: t, kind: costs, methods: [lorra]}",
            "number 1: there is no method 'lorra'. Did you mean 'lora'",
        ),
        (
            "- {id: a, title: t, kind: scores, methods: {LoRA: lora}, rows: [{title: t, evals: [glue]}]}",
            "evals: number 1: there is no eval 'glue'",
        ),
    ):
        (tmp_path / "papers" / "x" / "tables.yaml").write_text(text)
        with pytest.raises(EvidenceError, match=said):
            paper_tables.read_tables("x")
    with pytest.raises(EvidenceError, match="no such file of reported numbers"):
        read_reported("hybrid", "table9.csv")


# --------------------------------------------------------------------------- means over benchmarks


def pool(values: np.ndarray, seeds=(0, 1, 2)) -> Pool:
    runs = [
        Run(seed, float(row.mean()), "ok", "score", "", "", "", "s") for seed, row in zip(seeds, values, strict=True)
    ]
    items = ItemValues(values, tuple(map(str, range(values.shape[1]))))
    return Pool(runs, spread([r.value for r in runs]), None, tuple(seeds), "", values.shape[1], None, items)


def test_a_mean_over_benchmarks_has_each_seed_s_mean_and_the_strata_s_variance():
    draw = np.random.default_rng(0)
    parts = [draw.normal(mean, 5, (3, n)) for mean, n in ((80, 40), (20, 200), (50, 7))]
    mean = mean_pool([pool(part) for part in parts])
    expected = np.stack([part.mean(1) for part in parts]).mean(0)
    np.testing.assert_allclose([run.value for run in mean.runs], expected)
    np.testing.assert_allclose(mean.items.values.mean(1), expected)
    strata = sum(part.mean(0).var(ddof=1) / part.shape[1] for part in parts) / len(parts) ** 2
    error = (mean.interval.high - mean.interval.low) / 2 / 1.959964
    assert error == pytest.approx(strata**0.5, rel=0.08)  # the pieces' own n - 1 against N - 1
    assert mean.n_items == 247 and mean.spread.n == 3


def test_a_seed_without_one_of_the_benchmarks_is_in_no_mean():
    draw = np.random.default_rng(0)
    whole, short = pool(draw.normal(size=(3, 9))), pool(draw.normal(size=(3, 9)))
    short.runs[1] = Run(1, None, "oom", "train", "too large", "", "", "s")
    short.used, short.items = (0, 2), ItemValues(short.items.values[[0, 2]], short.items.names)
    mean = mean_pool([whole, short])
    assert mean.used == (0, 2) and [run.status for run in mean.runs] == ["ok", "oom", "ok"]


# --------------------------------------------------------------------------- the share of a gap


def test_fieller_covers_the_true_share_and_refuses_no_gap():
    draw, covered, refused, count = np.random.default_rng(1), 0, 0, 400
    for _ in range(count):
        item = draw.normal(0, 10, 300)
        low, high = (item + shift + draw.normal(0, 4, (4, 300)) for shift in (0.0, 3.0))
        method = item + 1.8 + draw.normal(0, 4, (4, 300))
        found = share_closed(method, low, high)
        covered += found.low <= 0.6 <= found.high
        refused += share_closed(method, low, low + draw.normal(0, 4, (4, 300))).value is None
    assert covered / count >= 0.93 and refused / count >= 0.9


def test_the_share_is_the_ratio_and_its_bounds_solve_fieller_s_equation():
    draw = np.random.default_rng(2)
    low, high, method = (draw.normal(shift, 1, (5, 80)) for shift in (0.0, 2.0, 1.0))
    found = share_closed(method, low, high)
    assert found.value == pytest.approx((method - low).mean() / (high - low).mean())
    assert found.low < found.value < found.high
    lowered = share_closed(-method, -low, -high)  # a score that is better when lower
    assert (lowered.value, lowered.low, lowered.high) == pytest.approx((found.value, found.low, found.high))
    whole = share_closed(high, low, high)
    assert whole.value == 1.0 and whole.low == pytest.approx(1.0) and whole.high == pytest.approx(1.0)


def test_a_method_whose_seeds_scatter_more_than_the_gap_s_has_bounds_around_its_share_or_none():
    refused = 0
    for seed in range(150):
        draw = np.random.default_rng(seed)
        item = draw.normal(0, 20, (1, 64))
        low, high, method = (item + draw.normal(0, 10, (3, 64)) + shift for shift in (0, 6, 4))
        found = share_closed(method + draw.normal(0, 3, (3, 1)), low, high)
        if found.value is not None:
            assert found.low <= found.value <= found.high
        elif found.gap.low > 0:
            refused += 1
            assert re.search(r"^refused: the gap, \+[\d.]+ \[-[\d.]+, \+[\d.]+\], may be none$", found.text())
    assert refused


def test_a_gap_that_is_the_same_on_every_item_has_no_interval(monkeypatch):
    same = np.full((3, 60), 20.0)
    row = gap_of(monkeypatch, {"lora": pool(same), "lorsum": pool(same + 0.3), "svdlora": pool(same + 0.7)})
    assert row[2] == "+0.7" and row[3] == "refused: the gap, +0.70, is the same on every item"


def gap_of(monkeypatch, pools):
    found = types.SimpleNamespace(suite={"models": ["m"], "corpora": [], "variants": [*pools]})
    monkeypatch.setattr(paper_scores, "names_of", lambda _: {name: name for name in ("m", *pools)})
    monkeypatch.setattr(paper_scores, "_panels", lambda *_: [])
    monkeypatch.setattr(paper_scores, "_pools", lambda *_: (pools, 1))
    spec = {
        "title": "G",
        "low": "lora",
        "high": "svdlora",
        "methods": ["lorsum"],
        "rows": [{"title": "a", "evals": ["a"]}],
    }
    return paper_scores.gap_table("p", spec, found).groups[0].rows[0]


def test_a_share_is_of_the_seeds_that_all_three_have(monkeypatch):
    draw = np.random.default_rng(4)
    item, seed = draw.normal(0, 5, 60), draw.normal(0, 8, (4, 1))
    values = {name: item + seed + shift + draw.normal(0, 0.1, (4, 60)) for name, shift in
              (("lora", 0.0), ("lorsum", 2.0), ("svdlora", 4.0))}  # fmt: skip
    seeds = {"lora": (0, 1, 2, 3), "lorsum": (0, 1, 2), "svdlora": (1, 2, 3)}
    row = gap_of(monkeypatch, {name: pool(values[name][list(of)], of) for name, of in seeds.items()})
    one, low, high = (values[name][[1, 2]] for name in ("lorsum", "lora", "svdlora"))
    assert share_closed(one, low, high).value == pytest.approx(0.5, abs=0.02)
    assert row[3] == share_closed(one, low, high).text() and row[4] == "2"


def test_a_gap_without_a_sound_end_says_why(monkeypatch):
    values = np.random.default_rng(5).normal(0, 1, (3, 60))
    stale = dataclasses.replace(pool(values), mark="‡", runs=[Run(0, 1.0, "ok", "", "", "train", "", "")])
    assert gap_of(monkeypatch, {"lora": stale, "lorsum": pool(values), "svdlora": pool(values + 1)})[3] == (
        "not comparable: stale"
    )


def test_tiers_of_a_paper_s_table_are_those_of_the_methods_and_none_at_the_floor(fake, monkeypatch):
    table = paper_scores.scores_table("hybrid", SPEC, fake)
    panel = next(p for p in panels(fake, reference=False) if p.eval == "headlines-test")
    expected = panel_tiers(panel, "tiny-llama")
    at = [model for model in fake.suite["models"] if model in paper_scores.names_of(fake)].index("tiny-llama")
    for label, variant in (("Full FT", "full"), ("LoRA", "lora"), ("DoRA", "dora")):
        assert rows_of(table, "Headlines")[label][3 * at + 2] == expected.text(variant)
    monkeypatch.setattr(Panel, "unresolved", lambda *_: True)
    table = paper_scores.scores_table("hybrid", SPEC, fake)
    assert rows_of(table, "Headlines")["LoRA"][3 * at + 2] == "not resolvable at this scale"


# --------------------------------------------------------------------------- notebooks


@pytest.mark.parametrize("name", ["paper_tables", "compare_two_methods"])
def test_notebooks_are_stripped_and_read_parquet_only(name):
    content = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4)
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    source = "\n".join(cell["source"] for cell in code)
    assert "Collected(folder)" in source and "harness" not in source and ".json" not in source


@pytest.mark.parametrize("name", ["paper_tables", "compare_two_methods"])
def test_notebooks_run_and_leave_nothing_behind(name, tmp_path_factory, tmp_path):
    folder = tmp_path_factory.mktemp("n") / "fake"
    collected(folder, failures=False, seeds=(0, 1, 2), variants=MANY)
    before = set(ROOT.iterdir())
    out = tmp_path / f"{name}.ipynb"
    notebook.execute(ROOT / "notebooks" / f"{name}.ipynb", folder / "collected", out)
    outputs = [o for cell in json.loads(out.read_text())["cells"] for o in cell.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    said = "".join("".join(o.get("text", "")) for o in outputs)
    assert ("paper hybrid: table1, fig1" if name == "paper_tables" else "Full FT less LoRA") in said
    assert {p for p in ROOT.iterdir() if Path(p).name.startswith("kernel")} <= before
