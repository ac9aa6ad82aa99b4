"""Blocks of matrices: the gradient of any set of them, what is kept for it, scores, and the choice of the best."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

from harness.plugins import load_plugin

load_plugin("methods", "smt")  # registers the package that plug-ins and their shared parts are loaded under
smt = importlib.import_module("tuning_fork_methods.smt")
_blocks = importlib.import_module("tuning_fork_methods._blocks")
SCORES, PATHS = ("abs_mean", "official_code", "per_step"), {"gathered": 2.0, "whole": 0.0}  # FILLED: never, always


def cut(matrix, size):
    """All blocks of a matrix, row by row, one slice at a time."""
    rows, columns = matrix.shape
    return torch.stack(
        [matrix[i : i + size, j : j + size] for i in range(0, rows, size) for j in range(0, columns, size)]
    )


def test_a_grid_numbers_blocks_row_by_row_and_is_a_view():
    matrix = torch.arange(48.0).reshape(6, 8)
    assert torch.equal(_blocks.grid(matrix, 2).flatten(0, 1), cut(matrix, 2))
    _blocks.grid(matrix.t(), 2)[3, 0] = -1.0
    assert torch.equal(matrix[:2, 6:], torch.full((2, 2), -1.0))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("numbers", [[0], [7], [1, 3, 4, 11], [0, 5, 10], list(range(12))])
def test_any_set_of_blocks(numbers, path, monkeypatch):
    monkeypatch.setattr(_blocks, "FILLED", PATHS[path])
    S, X = torch.randn(9, 6, dtype=torch.float64), torch.randn(9, 8, dtype=torch.float64)
    places = _blocks.Places(torch.tensor(numbers), 4)
    inputs = X.reshape(9, 4, 2)[:, places.columns]
    expected = cut(S.t() @ X, 2)[numbers]
    torch.testing.assert_close(_blocks.block_gradient(S, inputs, places), expected, rtol=1e-12, atol=1e-12)


def test_one_whole_product_where_blocks_fill_three_quarters_of_what_they_span():
    diagonal, corner = _blocks.Places(torch.tensor([0, 5, 10]), 4), _blocks.Places(torch.tensor([0, 1, 4]), 4)
    assert not diagonal.whole and corner.whole


@pytest.mark.parametrize(("numbers", "columns"), [([], 0), ([1, 4], 1), ([0, 5], 2), ([1, 3, 5], 3)])
def test_kept_for_the_backward_are_the_columns_in_use_once_and_a_copy_only_if_some_are_not(numbers, columns):
    base, x, kept = nn.Linear(6, 4).requires_grad_(False), torch.randn(5, 6), []
    layer, blocks = smt._SparseLinear(base, 2), torch.zeros(len(numbers), 2, 2)
    layer.choose(torch.tensor(numbers, dtype=torch.int64), blocks, torch.zeros_like(blocks))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(x)
    assert sum(t.numel() for t in kept) == 5 * 2 * columns and y.requires_grad is bool(numbers)
    shared = [t.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for t in kept]
    assert shared == [columns == 3] * bool(numbers)


def test_what_cancels_in_each_score():
    up, mixed = torch.ones(2, 2), torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    found = {}
    for score in SCORES:
        sums = [_blocks.empty_sum(up, score, 2), _blocks.empty_sum(up, score, 2)]
        for step in (up, -up):  # the first matrix changes its sign from step to step, the second within the block
            _blocks.add_gradients(sums, [step, mixed], score, 2)
        found[score] = [float(_blocks.block_scores(total, score, 2)) for total in sums]
    assert found == {"abs_mean": [0, 2], "official_code": [0, 0], "per_step": [2, 2]}


def test_ties_go_to_the_first_and_what_is_no_number_comes_last():
    nan = float("nan")
    assert _blocks.best([torch.tensor([1.0, 2, nan, 2, 2])], [2]).tolist() == [1, 3]
    assert _blocks.best([torch.ones(3), torch.tensor([nan, 0, 0])], [2, 1]).tolist() == [0, 1, 4]
