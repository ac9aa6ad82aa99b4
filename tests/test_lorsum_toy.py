"""The toy of LoRSum: its floor is the floor, its rules are what they are called, and the whole of it runs, tiny."""

from __future__ import annotations

import csv
import dataclasses
import math

import pytest
import torch

from perf import lorsum_toy as toy
from tests.dense_als import svd_r

SMALL = {"size": (20, 12), "rows": 240, "rank": 3}


def small(name, **more):
    one = next(one for one in toy.TOYS if one.name == name)
    variants = [dataclasses.replace(variant, rates=variant.rates[-1:]) for variant in one.variants]
    return dataclasses.replace(one, variants=variants, **more)


def tiny_toys():
    return [
        small("linear", steps=6, make=lambda seed: toy.Linear(seed, **SMALL)),
        small("linear-64", steps=8, make=lambda seed: toy.Linear(seed, 16, **SMALL)),
        small("digits", steps=10, make=lambda seed: toy.Digits(seed, width=32, pretraining=30, rank=4)),
    ]


def test_the_floor_is_reached_by_the_best_weight_and_by_no_other_of_its_rank():
    task = toy.Linear(0, **SMALL)
    net = task.net()
    assert task.shown(float(task.loss(net, slice(None)))) == pytest.approx(1.0, abs=1e-5)
    values, vectors = torch.linalg.eigh(task.x.T @ task.x / len(task.x))
    root = vectors * values.sqrt() @ vectors.T
    net["w"].weight.data = svd_r(task.W @ root, task.rank) @ torch.linalg.inv(root)
    assert task.shown(float(task.loss(net, slice(None)))) == pytest.approx(0.0, abs=1e-5)
    net["w"].weight.data = svd_r(task.W, task.rank)
    assert task.shown(float(task.loss(net, slice(None)))) > 1e-4


def test_scaled_gradients_are_scaled_by_the_other_factor():
    layer = torch.nn.Module()
    layer.A, layer.B = (torch.nn.Parameter(torch.randn(*size, dtype=torch.float64)) for size in ((3, 8), (10, 3)))
    layer.A.grad, layer.B.grad = torch.randn_like(layer.A), torch.randn_like(layer.B)
    before, eye = (layer.A.grad.clone(), layer.B.grad.clone()), 0.1 * torch.eye(3)
    with torch.no_grad():
        toy.scale_gradients([layer], 0.1)
        torch.testing.assert_close(layer.A.grad, torch.linalg.inv(layer.B.T @ layer.B + eye) @ before[0])
        torch.testing.assert_close(layer.B.grad, before[1] @ torch.linalg.inv(layer.A @ layer.A.T + eye))


def test_a_step_sees_each_row_once_an_epoch():
    found = toy.batches(0, 7, 20, 5)
    assert len(found) == 7 and all(len(rows) == 5 for rows in found)
    assert sorted(torch.cat(list(found[:4])).tolist()) == list(range(20))
    assert toy.batches(0, 3, 20, 0) == [slice(None)] * 3


def test_the_network_learns_upright_digits_and_not_the_turned_ones():
    task = toy.Digits(0, width=32, pretraining=150)
    upright = task.test_x.rot90(-1, (1, 2))
    accuracy = float((task.base(upright).argmax(1) == task.test_y).float().mean())
    assert accuracy > 0.85 and task.score(task.net()) < 0.6
    assert task.net()(task.test_x).equal(task.base(task.test_x))


def rows(path):
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_whole_of_it(tmp_path, capsys):
    toy.main(["--seeds", "2", "--out", str(tmp_path)], tiny_toys())
    said = capsys.readouterr().out
    assert "| linear | LoRSum K=1 | 0.5 |" in said and "| digits | LoRA, AdamW |" in said
    made = {(row["task"], row["method"]): row for row in rows(tmp_path / "lorsum_toy.csv")}
    assert len(made) == 6 + 6 + 7
    assert made["linear", "SVDLoRA"]["closed"] == "1"
    assert math.isnan(float(made["linear", "SVDLoRA"]["accuracy"]))
    one = {method: float(row["loss"]) for (task, method), row in made.items() if task == "linear"}
    assert one["SVDLoRA"] <= one["LoRSum K=8"] * 1.5 < one["LoRA, SGD"]
    curves = rows(tmp_path / "lorsum_toy_curves.csv")
    assert len(curves) == 2 * (6 * 7 + 6 * 3 + 7 * 2)
    assert {(tmp_path / f"lorsum_toy.{kind}").stat().st_size > 5000 for kind in ("png", "pdf")} == {True}
