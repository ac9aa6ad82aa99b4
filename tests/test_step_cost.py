"""The measurement of a step's cost: who meets whom, what is counted, what is printed. On a tiny model, not for its times."""

from __future__ import annotations

import csv
import dataclasses
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.loop import TrainingProbe
from harness.tiny import tiny_model
from perf import contest, contestants, floor, step_cost, step_report
from perf.contestants import ENTRIES, FAMILIES, OWN_LOSS

BLOCKS = 3


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """All contestants on a tiny Llama: the folder of what was written, and what was printed."""
    import contextlib
    import io

    out, said = tmp_path_factory.mktemp("perf"), io.StringIO()
    given = [
        "--model",
        "tiny-llama",
        "--blocks",
        BLOCKS,
        "--rows",
        2,
        "--length",
        16,
        "--supervised",
        4,
        "--threads",
        1,
    ]
    with contextlib.redirect_stdout(said):
        step_cost.main([*map(str, given), "--out", str(out)])
    return out / "adapters", said.getvalue()


@pytest.fixture(scope="module")
def table(measured):
    with open(measured[0] / "step_cost.csv", encoding="utf-8") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


@pytest.fixture
def bench(tmp_path):
    options = step_cost.parse(["--rows", "2", "--length", "16", "--supervised", "4"])
    return step_cost.Bench(tiny_model("llama")[0].requires_grad_(False), options, torch.device("cpu"), tmp_path)


# --------------------------------------------------------------------------- who meets whom


@pytest.mark.parametrize("family", FAMILIES)
def test_a_round_holds_few_models_our_lora_always_and_a_method_with_its_counterpart(family):
    entries = contestants.chosen(family, [entry.name for entry in FAMILIES[family]])
    names = [[entry.name for entry in made] for made in contestants.rounds(entries)]
    assert all(names_[0] == "lora" and len(names_) <= 1 + contestants.MOST for names_ in names)
    assert {name for names_ in names for name in names_} == {entry.name for entry in entries}
    assert set(contestants.order(family)) == {entry.name for entry in entries}
    others = [name for names_ in names for name in names_ if name not in ("lora", "full")]
    assert len(others) == len(set(others))  # each once, but for the two that others are held against
    for entry in FAMILIES[family]:
        together = {entry.name, *entry.beside, *([entry.peer] if entry.peer else [])}
        assert any(together <= set(names_) for names_ in names), entry.name
    assert any({"lora", OWN_LOSS} <= set(names_) for names_ in names)


def test_fewer_methods_bring_their_counterparts_and_our_lora():
    assert {entry.name for entry in contestants.chosen("adapters", ["boft"])} == {
        *("lora", "peft-lora", OWN_LOSS, "boft", "peft-boft")
    }
    assert "full" in {entry.name for entry in contestants.chosen("low-rank", ["smt"])}


def test_a_method_of_the_other_family_is_refused(capsys):
    with pytest.raises(SystemExit):
        step_cost.parse(["--family", "low-rank", "--methods", "boft"])
    assert "no boft in the family low-rank" in capsys.readouterr().err


@pytest.mark.parametrize("name", contestants.order("adapters"))
def test_every_contestant_has_the_same_optimizer_and_weights(bench, name):
    contestant = bench.build(ENTRIES[name])
    ours = isinstance(contestant, contest.Ours)
    for optimizer in contestant.trainer.optimizers if ours else contestant.optimizers:
        assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["fused"]
        assert all(group["weight_decay"] == 0 for group in optimizer.param_groups)
    head = contestant.model.get_output_embeddings().weight
    assert torch.equal(head, bench.base.get_output_embeddings().weight) and head is not bench.base.lm_head.weight


OTHERS = [name for name in contestants.order("low-rank") if name not in contestants.order("adapters")]


@pytest.mark.parametrize("name", OTHERS)
def test_contestants_of_the_low_rank_family_step_and_refresh_when_told(bench, name):
    entry = ENTRIES[name]
    if not entry.ours and entry.method.missing():
        pytest.skip(f"NOT RUN: {entry.method.missing()}")
    if name == "smt":
        entry = dataclasses.replace(entry, fields={**entry.fields, "block_size": 8, "density": 0.03})
    contestant = bench.build(entry)
    for number in range(3):
        assert bench.timed(contestant, number) > 0
    trained = step_cost.counts(contestant.model, contestant.trainer.method)["trained"]
    total = sum(p.numel() for p in contestant.model.parameters())
    assert (trained == total) == entry.every_weight
    if entry.refreshes and entry.ours:
        refreshes = contestant.curve.clocked["refresh"]
        assert len(refreshes) == 1  # the first step's
        for on, count in ((True, 2), (False, 2)):
            step_cost.refresh_next(contestant, on)
            bench.timed(contestant, 3)
            assert len(refreshes) == count


def test_labels_are_the_tokens_that_our_loss_looks_at(bench):
    batch = bench.batches[0]
    labels = contest.labels(batch)
    assert int((labels != -100).sum()) == batch.tokens == 2 * 4
    model = bench.base
    with torch.no_grad():
        theirs = model(**batch.inputs, labels=labels).loss
        logits = model(**batch.inputs).logits.flatten(0, 1)[batch.positions]
    torch.testing.assert_close(theirs, torch.nn.functional.cross_entropy(logits, batch.targets))


# --------------------------------------------------------------------------- what is counted


def test_peak_of_the_probes_gradients_is_what_is_held_at_once(bench, monkeypatch):
    def fake(self, parameters, count, visit):
        for name in parameters:
            visit(name, torch.zeros(100))

    monkeypatch.setattr(TrainingProbe, "mean_gradients", fake)
    contestant = bench.build(ENTRIES["lora"])
    kept = []
    for visit, most in ((lambda name, gradient: None, 400), (lambda name, gradient: kept.append(gradient), 1200)):
        probe = bench._probe(contestant.trainer)
        probe.mean_gradients(["a", "b", "c"], 1, visit)
        assert probe.most == most


def test_gradients_at_the_probe_are_one_weights(table, bench):
    largest = max(floor.matrix(module).numel() * 4 for _, module in floor.find_targets(bench.base, "all-linear"))
    assert {int(table[name]["prepare_gradients_bytes"]) for name in ("lora-ga", "hybrid")} == {largest}
    assert table["lora"]["prepare_gradients_bytes"] == table["lora"]["prepare_seconds"] == ""


def test_the_floor_of_the_base_is_two_forwards_and_of_full_training_three(bench):
    model, batch = bench.base, bench.batches[0]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.base_model(**batch.inputs)
    linear = 2 * bench.tokens * sum(floor.matrix(m).numel() for _, m in floor.find_targets(model, "all-linear"))
    head = 2 * batch.tokens * model.lm_head.weight.numel()
    attention = counter.get_total_flops() - linear
    first = 2 * bench.tokens * (32 * 32 + 2 * 32 * 16)  # q, k and v of the first block: their inputs take no gradient
    frozen, trained = floor.base_flops(model, batch, False), floor.base_flops(model, batch, True)
    backward = frozen - 2 * (linear + head) + first - attention  # the backward of attention alone
    assert backward == pytest.approx(2.5 * attention) or attention == backward == 0
    assert trained - frozen == linear + head + first
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_what_adapters_spend_is_their_formula(table, bench):
    """Counted steps against the floor: equal but for q, k and v of the first block, whose inputs take no gradient."""
    tokens, rank = bench.tokens, contestants.RANK
    from_A, from_B = 2 * tokens * rank * 3 * 32, 2 * tokens * rank * (32 + 16 + 16)  # dx of A, dh of B0
    for name, unneeded in (("lora", from_A), ("peft-lora", from_A), ("lora-ga", 2 * from_A + from_B)):
        row = table[name]
        assert int(row["floor_flops"]) - int(row["flops"]) == unneeded, name


def test_rates_are_of_products(bench):
    rates = floor.product_rates(bench.base, 64, repeats=1, size=64)
    assert all(1e6 < rate < 1e15 for rate in rates.values())


# --------------------------------------------------------------------------- what is written


def test_every_contestant_has_its_row(table):
    assert list(table) == contestants.order("adapters")
    for name, row in table.items():
        assert float(row["seconds"]) > 0 and int(row["peak_bytes"]) > 0 and int(row["flops"]) > 0, name
        assert int(row["steps"]) == BLOCKS * (4 if name == "lora" else 1), name
        assert (row["over_lora"] == "") == (name == "lora"), name
        kinds = ("weights", "gradients_at_peak", "optimizer", "activations")
        assert sum(int(row[f"{kind}_bytes"]) for kind in kinds) == int(row["peak_bytes"]), name
    assert {name for name, row in table.items() if row["over_peer"]} == {"lora", "dora", "oft", "boft"}
    assert [name for name, row in table.items() if row["over_peft_own_loss"]] == ["lora"]
    assert table["full"]["trained"] == table["full"]["effective"] != table["boft"]["trained"]
    assert int(table["boft"]["effective"]) < int(table["boft"]["trained"])


def test_progress_and_tables_are_printed(measured):
    out, said = measured
    text = (out / "step_cost.md").read_text(encoding="utf-8")
    assert text in said and "round 1/4: LoRA, " in said and "min left" in said
    lines = [line for line in text.splitlines() if line.startswith("|")]
    names = [line.split("|")[1].strip() for line in lines]
    assert all(names.count(entry.label) == 2 for entry in map(ENTRIES.get, contestants.order("adapters")))
    assert len({line.count("|") for line in lines}) == 2  # two tables


def test_steps_and_figures_are_kept(measured):
    out, _ = measured
    kept = json.loads((out / "step_cost.json").read_text())
    assert len(kept["rounds"]) == 4 and all(len(s) == BLOCKS for r in kept["rounds"] for s in r.values())
    assert kept["settings"]["rates"].keys() == {"own", "square"}
    assert (out / "step_cost.png").read_bytes()[:4] == b"\x89PNG" and (out / "step_cost.pdf").read_bytes()[
        :5
    ] == b"%PDF-"


def test_ratios_compare_steps_of_one_round(bench):
    entry = {name: {"entry": ENTRIES[name], "flops": 6, "floor": 3, "memory": {}, "attach": [1.0], "prepare": [], "refresh": []}
             | {"trained": 1, "effective": 1} for name in ("lora", "peft-lora", "boft", "peft-boft")}  # fmt: skip
    rounds = [
        {"lora": [1.0, 2.0], "peft-lora": [2.0, 4.0]},
        {"lora": [4.0, 4.0], "boft": [8.0, 8.0], "peft-boft": [16, 16]},
    ]
    rows = {row["name"]: row for row in step_report.rows(list(entry.values()), rounds, {"own": 2.0})}
    assert rows["lora"]["over_peer"] == 0.5 and rows["lora"]["over_lora"] is None and rows["lora"]["seconds"] == 3.0
    assert (
        rows["boft"]["over_lora"] == 2.0 and rows["boft"]["over_peer"] == 0.5 and rows["peft-boft"]["over_lora"] == 4.0
    )
    assert rows["boft"]["floor_seconds"] == 1.5 and rows["boft"]["flops_per_second"] == 6 / 8


def test_interval_of_a_ratio_holds_its_median():
    middle, low, high = contest.ratio([2.0, 2.2, 1.8, 2.1], [1.0, 1.0, 1.0, 1.0])
    assert low <= middle <= high and middle == pytest.approx(2.05)
