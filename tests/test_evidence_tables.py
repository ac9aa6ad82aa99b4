"""Tables: golden numbers, failures and floors in sight, and forms that other programs can read."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys

import fake_results
import pandas as pd
import pytest

from evidence import collect, summary, tables
from evidence.collected import Collected
from evidence.cost_table import cost_table
from evidence.grades import read_grades
from evidence.layout import Group, Table, csv_text, latex, markdown, terminal, tex
from evidence.names import label_of
from evidence.pools import Run, comparable, panels
from evidence.score_table import score_table
from harness import record
from harness.score import write_rows


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return fake_results.collected(tmp_path_factory.mktemp("results") / "fake")


@pytest.fixture(scope="module")
def scores(root):
    return score_table(Collected(root / "collected"), "Scores")


@pytest.fixture
def copy(root, tmp_path):
    shutil.copytree(root, tmp_path / "fake")
    return tmp_path / "fake"


def recollected(folder):
    collect.main(["--plan", str(folder / "plan.json"), "--out", str(folder / "collected")])
    return score_table(Collected(folder / "collected"), "Scores")


def group(table, *lines):
    return next(g for g in table.groups if all(any(text in line for line in g.lines) for text in lines))


def row(table, method, *lines):
    return next(r for r in group(table, *lines).rows if r[0] == method)


# --------------------------------------------------------------------------- scores


def test_golden_cells(scores):
    assert [head for head, _ in scores.heads] == ["Tiny Llama 135M (Q4_1, dequantised)", "Tiny BERT 22M"]
    assert group(scores, "Headlines").lines == [
        "Headlines",
        "accuracy, % ↑",
        "64 items",
        "trained 30 steps of 16 rows",
    ]
    full = row(scores, "Full FT", "Headlines")
    assert full == [
        "Full FT",
        "75.0 · 76.6",
        "75.8 ± 1.1 (2) [64.0, 84.6]",
        "1*",
        "75.0 · 67.2",
        "71.1 ± 5.5 (2) [59.0, 80.8]",
        "1*",
    ]


def test_the_average_is_the_mean_of_the_runs_in_the_records(root, scores):
    values = [
        record.read(root / f"runs/tiny-llama/phrases-en-de/lora/seed{seed}/phrases-en-de-test/score.json")["metrics"][
            "bleu"
        ]
        for seed in (0, 1)
    ]
    cells = next(r for r in scores.records if r["metric"] == "bleu" and r["variant"] == "lora")
    name = "Tiny Llama 135M (Q4_1, dequantised)"
    assert cells[f"{name}: average"] == pytest.approx(sum(values) / 2)
    assert [cells[f"{name}: run seed{seed}"] for seed in (0, 1)] == values
    assert cells[f"{name}: interval"] == ""


def test_baselines_stand_first_and_only_where_they_exist(scores):
    assert [r[0] for r in group(scores, "Headlines").rows][:2] == ["Untuned", "Majority class"]
    assert "Majority class" not in [r[0] for r in group(scores, "BLEU").rows]


def test_failures_are_printed_and_never_averaged_away(scores):
    oom = row(scores, "DoRA", "Programs", "pass@1")
    assert oom[1] == "9.4 · oom" and oom[2].startswith("9.4 (1 of 2)")
    assert row(scores, "LoRA", "Arithmetic", "exact match")[1].startswith("diverged · ")
    assert row(scores, "Full FT", "BLEU")[1].endswith(" · missing")
    notes = "\n".join(scores.notes)
    assert "DoRA, seed 1: oom in train (resident memory passed the limit of 4000 MB at step 3)" in notes
    assert "LoRA, seed 0: diverged in train (loss is not finite at step 7)" in notes
    assert "Missing: 2 of" in notes


def test_stale_and_other_software_are_printed_and_left_out(scores):
    assert row(scores, "LoRA", "Headlines")[1:3] == ["75.0 · 59.4‡", "75.0 (1 of 2) [63.2, 84.0]"]
    assert row(scores, "DoRA", "Headlines")[1:3] == ["60.9 · 68.8†", "60.9 (1 of 2) [48.7, 71.9]"]
    assert any("torch 2.12.0 (2.13.0)" in note for note in scores.notes)


def test_a_column_at_its_floor_says_so_and_the_others_do_not(scores):
    assert group(scores, "exact match").rows[-1][:3] == ["(floor 0)", "", "not resolvable at this scale"]
    assert sum("not resolvable at this scale" in r for g in scores.groups for r in g.rows) == 1


def test_one_method_above_the_floor_makes_the_column_resolvable(copy):
    folder = copy / "runs/tiny-llama/arithmetic/full/seed0/arithmetic-test"
    score = record.read(folder / "score.json")
    rows = [{**grade, "exact_match": int(i < 40)} for i, grade in enumerate(read_grades(folder, score))]
    write_rows(folder / "grades.jsonl.zst", rows)
    files = {"grades": record.file_entry(folder / "grades.jsonl.zst")}
    record.write(folder / "score.json", {**score, "files": files, "metrics": {**score["metrics"], "exact_match": 62.5}})
    assert group(recollected(copy), "exact match").rows[-1][0] == "DoRA"


def test_what_no_method_lifts_above_the_commonest_class_is_not_resolvable(copy):
    """The eval's own floor is 0; what always answers one class gets 84."""
    for folder in (copy / "runs/tiny-llama/headlines/majority").glob("seed*/*"):
        score = record.read(folder / "score.json")
        rows = [{**grade, "correct": int(i < 54)} for i, grade in enumerate(read_grades(folder, score))]
        write_rows(folder / "grades.jsonl.zst", rows)
        files = {"grades": record.file_entry(folder / "grades.jsonl.zst")}
        metrics = {**score["metrics"], "accuracy": 100 * 54 / len(rows)}
        record.write(folder / "score.json", {**score, "files": files, "metrics": metrics})
    last = group(recollected(copy), "accuracy").rows[-1]
    assert last[0] == "(floor 84.38)" and last[2] == "not resolvable at this scale"


def test_the_evals_own_word_on_its_floor_counts(copy):
    for path in (copy / "runs/tiny-llama/phrases-en-de").rglob("score.json"):
        record.write(path, {**record.read(path), "at_floor": True, "floors": {"bleu": 0.0}})
    assert group(recollected(copy), "BLEU").rows[-1][2] == "not resolvable at this scale"


def test_likelihoods_of_the_reference_have_rows_of_their_own(scores):
    lines = [g.lines[1] for g in scores.groups]
    assert lines.count("reference NLL, nats/token ↓") == 3
    assert re.fullmatch(
        r"\d\.\d{3} ± \d\.\d{3} \(2\) \[\d\.\d{3}, \d\.\d{3}\]", row(scores, "LoRA", "Programs", "NLL")[2]
    )


def test_generated_data_and_stand_ins_are_named(copy):
    plan = json.loads((copy / "plan.json").read_text())
    for cell in plan["cells"]:
        if cell["corpus"] == "arithmetic":
            cell["stand_in"] = "GSM8K"
    (copy / "plan.json").write_text(json.dumps(plan))
    table = recollected(copy)
    assert group(table, "pass@1").lines[0] == "Programs (generated)"
    assert any("Arithmetic problems" in note and "stands in for GSM8K" in note for note in table.notes)
    assert not any(g.lines[0].startswith("GSM8K") for g in table.groups)


def test_rows_that_test_items_give_away_are_told(copy):
    notes = recollected(copy).notes
    told = (
        "of the training rows 1 have the input of one of 1,319 test rows, and 12 more share a run of 13 words with one"
    )
    assert sum(told in note and note.endswith("; removed.") for note in notes) == len(
        {n.split(":")[0] for n in notes if told in n}
    )
    path = copy / "runs/tiny-bert/headlines/lora/seed0/train.json"
    record.write(path, {**record.read(path), "overlap": {"test_items": 5, "equal": 2, "run": 0, "removed": 0}})
    assert any(
        "have the input of one of 5 test rows" in n and n.endswith("; NOT removed.") for n in recollected(copy).notes
    )


def test_tokens_read_before_the_first_step_are_told_where_a_method_reads_any(copy, scores):
    assert not any("before the first one" in note for note in scores.notes)
    for variant, seed, tokens in (("full", 0, 1234), ("full", 1, 1234), ("dora", 0, 50), ("dora", 1, 70)):
        path = copy / f"runs/tiny-bert/headlines/{variant}/seed{seed}/train.json"
        trained = record.read(path)
        record.write(path, {**trained, "tokens": {**trained["tokens"], "probe": tokens}})
    told = "Beyond the tokens of its steps, before the first one: Full FT reads 1,234, DoRA reads 50 to 70 tokens."
    assert recollected(copy).notes.count(told) == 1
    runs = Collected(copy / "collected").runs
    one = runs[(runs["model"] == "tiny-bert") & (runs["variant"] == "dora") & (runs["seed"] == 1)].iloc[0]
    assert one["tokens_probe"] == 70


def test_judge_pending_is_no_failure(copy):
    path = copy / "runs/tiny-bert/headlines/lora/seed0/headlines-test/score.json"
    record.write(path, {**record.read(path), "status": "judge_pending", "reason": "no judge given"})
    table = recollected(copy)
    assert row(table, "LoRA", "Headlines")[4].startswith("judge pending · ")
    assert not any("seed 0: judge" in note for note in table.notes)
    assert not any("tiny-bert" in line for line in summary.failed_rows(Collected(copy / "collected")))


def test_a_headline_without_a_number_keeps_its_row_and_is_no_result(copy):
    """As where no verdict of a judge could be read; the majority class, which has no likelihood, has no row there."""
    for seed in (0, 1):
        path = copy / f"runs/tiny-bert/headlines/lora/seed{seed}/headlines-test/score.json"
        score = record.read(path)
        record.write(path, {**score, "metrics": {"accuracy": None, "reference_nll": 1.5}})
    table = recollected(copy)
    assert row(table, "LoRA", "Headlines", "accuracy")[4:6] == ["no value · no value", "—"]
    said = "no value in score (the score has no number for its headline accuracy)"
    assert f"Failed: Tiny BERT 22M, Headlines, LoRA, seed 1: {said}." in table.notes
    likelihoods = group(table, "Headlines", "reference NLL")
    assert [r[0] for r in likelihoods.rows] == ["LoRA"] and "reference NLL ↑" not in likelihoods.lines
    collected = Collected(copy / "collected")
    lines = [line for line in summary.failed_rows(collected) if "tiny-bert" in line]
    assert lines[0].startswith("tiny-bert/headlines/lora/seed0/headlines-test: no value in score: the score has no")
    assert "tiny-bert" in " ".join(lines) and len(lines) == 2


def run(seed, value, stale="", stack="a", other=""):
    return Run(seed, value, "ok", "score", "", stale, other, stack)


def test_only_comparable_runs_are_averaged():
    clean, stale, other = run(0, 1.0), run(1, 2.0, stale="train"), run(2, 3.0, stack="b", other="torch 1 (2)")
    assert comparable([clean, stale, other]) == [clean]
    assert comparable([stale, other]) == [stale]
    others = [run(seed, 1.0, stack="b", other="torch 1 (2)") for seed in (3, 4)]
    assert comparable([stale, *others]) == others
    assert comparable([run(0, float("nan")), run(1, float("inf")), run(2, None)]) == []


def test_an_interval_needs_the_same_items_in_every_run(copy):
    folder = copy / "runs/tiny-bert/headlines/lora/seed1/headlines-test"
    score = record.read(folder / "score.json")
    rows = [{**grade, "item": f"other-{i}"} for i, grade in enumerate(read_grades(folder, score))]
    write_rows(folder / "grades.jsonl.zst", rows)
    record.write(folder / "score.json", {**score, "files": {"grades": record.file_entry(folder / "grades.jsonl.zst")}})
    recollected(copy)
    panel = next(p for p in panels(Collected(copy / "collected")) if p.metric == "accuracy")
    assert panel.pools["lora", "tiny-bert"].interval is None
    assert panel.pools["full", "tiny-bert"].interval is not None


# --------------------------------------------------------------------------- cost


def test_cost_table_golden(root):
    table = cost_table(Collected(root / "collected"), "Cost")
    full, lora, dora = table.groups[0].rows
    assert full[0] == "Full FT" and full[3] == "7.1 (120)" and full[4:6] == ["1.00", "0.0"]
    assert full[6] == "—" and lora[6] == "12.0 (50)"  # the one method with refreshes; nothing here has a warm-up
    assert full[8:13] == ["513", "513", "1,026", "1,116", "3,168"] and full[13] == "4,068"
    assert lora[4] == "0.74" and lora[-1] == "2.50 %"
    assert table.groups[0].lines[2:] == ["2 threads", "512 tokens a step"]
    assert table.groups[-1].rows[2][:3] == ["DoRA", "timeout", "—"]
    assert any("DoRA: timeout (longer than 5 minutes)" in note for note in table.notes)


def test_time_is_split_by_kind_of_step_where_a_method_has_several(root):
    heads = dict(cost_table(Collected(root / "collected"), "Cost").heads)
    assert heads["Time"][5:] == ["refresh, s (every)", "training, s (steps)"]


def test_kinds_of_memory_have_columns_of_their_own(root):
    table = cost_table(Collected(root / "collected"), "Cost")
    heads = dict(table.heads)
    assert heads["Live tensors, MiB"] == ["weights", "gradients", "optimizer", "activations", "peak"]
    assert heads["Process, MiB"] == ["RSS peak"] and "Device, MiB" not in heads


# --------------------------------------------------------------------------- forms


def test_csv_has_the_tables_rows_unrounded(scores):
    rows = list(csv.DictReader(io.StringIO(csv_text(scores))))
    assert len(rows) == sum(r[0] != "(floor 0)" for g in scores.groups for r in g.rows)
    cell = next(r for r in rows if r["metric"] == "accuracy" and r["variant"] == "full")
    assert float(cell["Tiny BERT 22M: average"]) == 71.09375
    oom = next(r for r in rows if r["metric"] == "pass@1" and r["variant"] == "dora")
    assert oom["Tiny Llama 135M (Q4_1, dequantised): run seed1"] == "oom"


def test_labels_with_bars_and_tags_break_no_markdown_table():
    table = Table("A <b>|", ("a|b", "c"), [("x|y", ["u|v", "w"])], [Group(["g|h"], [["i|j", "k", "l"]])], [])
    title, _, *rows = markdown(table).splitlines()
    assert title == r"# A \<b>\|"
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in rows if line] == [5, 5, 5]


@pytest.mark.parametrize("kind", ["model", "variant"])
def test_those_that_share_a_label_are_told_apart(root, kind):
    collected = Collected(root / "collected")
    collected.runs = collected.runs.assign(**{f"{kind}_label": "Same"})
    table = score_table(collected, "Scores")
    rows = list(csv.DictReader(io.StringIO(csv_text(table))))
    names = list(collected.runs[kind].unique())
    if kind == "model":
        assert [head for head, _ in table.heads] == [f"Same ({name})" for name in names]
        shown = next(r for r in rows if r["variant"] == "full" and r["benchmark"] == "Headlines")
        assert shown["Same (tiny-bert): average"] and shown["Same (tiny-llama): average"]
        assert shown["Same (tiny-bert): average"] != shown["Same (tiny-llama): average"]
    else:
        assert {r["method"] for r in rows} == {f"Same ({name})" for name in names}


def test_the_cost_table_tells_those_apart_too(root, tmp_path):
    folder = shutil.copytree(root / "collected", tmp_path / "collected")
    for name in ("runs", "costs"):
        path = folder / f"{name}.parquet"
        pd.read_parquet(path).assign(variant_label="Same").to_parquet(path)
    assert tables.main(["--collected", str(folder), "--out", str(tmp_path)]) == 0
    names = {row["variant"] for row in csv.DictReader((tmp_path / "cost.csv").open())}
    assert names
    for name in names:
        assert f"| Same ({name})" in (tmp_path / "cost.md").read_text()


def test_markdown_rows_have_one_width(scores):
    lines = [line for line in markdown(scores).splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert len({len(line) for line in lines}) == 1


def balanced(text: str) -> None:
    """Braces, environments and columns of a LaTeX table agree, and no special character is bare."""
    plain = re.sub(r"\\[\\{}&%$#_]", "", text)
    depth = 0
    for character in plain:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert plain.count("$") % 2 == 0 and "#" not in plain and "%" not in plain
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{([^}]*)\}", text):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    columns = len(re.search(r"\\begin\{tabular\}\{(l+)\}", text)[1])
    for line in text.splitlines():
        if line.endswith(r" \\"):
            spans = [int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line)]
            assert len(re.findall(r"(?<!\\)&", line)) + sum(spans) == columns - 1, line
    assert not set(text) & set("±×·↑↓†‡—–"), "signs that LaTeX's own fonts lack are written out"


def test_latex_is_balanced(root, scores):
    balanced(latex(scores, "tab:scores"))
    balanced(latex(cost_table(Collected(root / "collected"), "Cost"), "tab:cost"))


def test_latex_survives_names_full_of_special_characters():
    odd = r"50% & $x_1^2$ #{~\} <a|b> “é”"
    table = Table(odd, ("a", "b"), [(odd, [odd, odd])], [Group([odd], [[odd, "[x]", odd]])], [odd])
    balanced(latex(table, "tab:odd"))
    assert tex("a_b") == r"a\_b"


def test_terminal_fits_its_columns(scores):
    text = terminal(scores)
    assert "Headlines, accuracy, % ↑, 64 items" in text and "75.8 ± 1.1 (2)" in text


@pytest.mark.parametrize(
    ("variant", "label"),
    [
        ("full", "Full FT"),
        ("lora-r16", "LoRA r=16"),
        ("lora-ga-r16", "LoRA-GA r=16"),
        ("peft-dora-r4", "DoRA r=4 (PEFT)"),
        ("boft-m2-b4", "BOFT m=2 b=4"),
        ("peft-adalora", "AdaLoRA (PEFT)"),
        ("full-1e-5", "Full FT 1e-5"),
        ("lora-r8-1.5e-4-kbase-b4", "LoRA r=8 1.5e-4 kbase b=4"),
        ("mine", "mine"),
    ],
)
def test_labels_of_variants(variant, label):
    assert label_of(variant) == label


# --------------------------------------------------------------------------- commands


def test_command_writes_three_forms_of_all_tables(root, tmp_path):
    assert tables.main(["--collected", str(root / "collected"), "--out", str(tmp_path)]) == 0
    names = {
        f"{name}.{suffix}" for name in ("scores", "overview", "differences", "cost") for suffix in ("md", "csv", "tex")
    }
    assert {path.name for path in tmp_path.iterdir()} == names
    assert all(path.stat().st_size > 500 for path in tmp_path.iterdir())


@pytest.mark.parametrize("source", ["--plan", "--collected"])
def test_early_table_of_one_corpus(root, tmp_path, source):
    path = root / ("plan.json" if source == "--plan" else "collected")
    assert tables.main([source, str(path), "--corpus", "arithmetic", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "arithmetic.md").read_text()
    assert "diverged · 1.6" in text and "Headlines" not in text


def test_early_table_imports_neither_torch_nor_matplotlib(root, tmp_path):
    code = (
        "import sys; from evidence.tables import main; "
        f"main(['--plan', {str(root / 'plan.json')!r}, '--corpus', 'headlines', '--out', {str(tmp_path)!r}]); "
        "sys.exit(bool({'torch', 'matplotlib', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_commands_say_what_is_missing(tmp_path, capsys):
    missing = ["--collected", str(tmp_path / "collected")]
    assert tables.main([*missing, "--out", str(tmp_path)]) == 2
    assert summary.main(missing) == 2
    message = capsys.readouterr().err
    assert message.count("evidence.collect --plan") == 2
    (tmp_path / "collected").mkdir()
    (tmp_path / "collected" / "suite.json").write_text('{"suite": "x", "variants": [], "models": []}')
    assert tables.main([*missing, "--out", str(tmp_path)]) == 2
    assert "runs.parquet: missing" in capsys.readouterr().err


def test_an_unknown_corpus_names_the_known_ones(root, tmp_path, capsys):
    for source in (["--plan", str(root / "plan.json")], ["--collected", str(root / "collected")]):
        assert tables.main([*source, "--corpus", "headlins", "--out", str(tmp_path)]) == 2
        assert "headlines" in capsys.readouterr().err


def test_summary_names_files_failures_and_ends_non_zero_when_strict(root, tmp_path, capsys):
    arguments = ["--collected", str(root / "collected"), "--results", str(root), "--out", str(tmp_path / "summary.md")]
    tables.main(["--collected", str(root / "collected"), "--out", str(root / "tables")])
    capsys.readouterr()
    assert summary.main(arguments) == 0
    text = capsys.readouterr().out
    assert "tables/scores.md" in text and "4 without a result" in text
    assert "tiny-llama/snippets/dora/seed1: oom in train: resident memory passed the limit" in text
    assert "cost/tiny-llama/snippets/dora: timeout: longer than 5 minutes" in text
    assert text in (tmp_path / "summary.md").read_text()
    assert summary.main([*arguments, "--strict"]) == 1


def test_summary_of_a_suite_without_failures(tmp_path, capsys):
    plan = fake_results.build(tmp_path / "fine", failures=False)
    collect.main(["--plan", str(plan), "--out", str(tmp_path / "collected")])
    assert summary.main(["--collected", str(tmp_path / "collected"), "--strict"]) == 0
    assert "All " in capsys.readouterr().out
