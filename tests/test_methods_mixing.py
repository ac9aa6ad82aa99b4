"""lambda's rule by itself: what constant signals of the two branches make of it, and how gradients are measured."""

from __future__ import annotations

import importlib
import math

import pytest
import torch

from harness.plugins import load_plugin

load_plugin("methods", "hybrid")  # registers the package that plug-ins and their shared parts are loaded under
mixing, butterfly = (importlib.import_module(f"tuning_fork_methods.{name}") for name in ("_mixing", "_butterfly"))


def run_rule(low, turn, start=0.5, steps=1000, debiased=True, clamp=(0.05, 0.95), ema=0.95):
    """lambda over steps when the branches' own signals are constant: what a gradient shows carries the branch's share."""
    share, seen = torch.tensor([start]), []
    for _ in range(steps):
        sizes = share * low, (1 - share) * turn
        share = mixing.follow(share, sizes, (share, 1 - share) if debiased else None, ema, clamp)
        seen.append(share)
    return torch.cat(seen)


def check_no_drift(debiased):
    torch.testing.assert_close(run_rule(1.0, 1.0, debiased=debiased)[-1:], torch.tensor([0.5]))
    end = run_rule(1.2, 1.0, debiased=debiased)[-1]
    assert abs(end - 1.2 / 2.2) < 1e-5, "a branch worth a fifth more gets its share, and not everything"


def test_equal_signals_stay_at_a_half_and_unequal_ones_at_their_share():
    check_no_drift(debiased=True)
    assert (run_rule(1.0, 1.0) == 0.5).all()
    assert abs(run_rule(1.0, 1.0, start=0.9)[-1] - 0.5) < 1e-5


def test_without_debiasing_lambda_runs_away():
    with pytest.raises(AssertionError, match="a fifth more"):
        check_no_drift(debiased=False)
    assert run_rule(1.2, 1.0, debiased=False)[-1] == pytest.approx(0.95)
    assert run_rule(1.2, 1.0, debiased=False, clamp=(0.0, 1.0), ema=0.0, steps=20)[-1] > 0.97


def test_the_clamp_holds():
    assert run_rule(1e6, 1.0)[-1] == pytest.approx(0.95) and run_rule(1.0, 1e6)[-1] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("low", "turn", "end"),
    [(0, 0, 0.4), (1, 0, 0.95), (0, 1, 0.05), (math.nan, 1, 0.4), (math.inf, math.inf, 0.4), (1e-40, 1e-40, 0.5)],
)
def test_a_branch_without_a_gradient_makes_no_nan(low, turn, end):
    sizes = torch.tensor([float(low)]), torch.tensor([float(turn)])
    share = torch.tensor([0.4])
    assert mixing.follow(share, sizes, None, 0.0, (0.05, 0.95)).item() == pytest.approx(end)


# --------------------------------------------------------------------------- sizes


def rotation_loss(Q):
    weight = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (butterfly.block_rotations([Q]) * weight).sum()


def check_sizes(norm):
    """Against gradients by the packed upper triangles q of the skew blocks: what is free, each once."""
    generator = torch.Generator().manual_seed(0)
    dA, dB, Q = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((3, 16), (24, 3), (2, 4, 4, 4)))
    rows, columns = torch.triu_indices(4, 4, 1)
    q = ((Q - Q.mT) / 2)[..., rows, columns].requires_grad_()
    flat = torch.zeros(2, 4, 16, dtype=q.dtype).index_add(-1, rows * 4 + columns, q)
    rotation_loss(flat.index_add(-1, columns * 4 + rows, -q).unflatten(-1, (4, 4))).backward()
    rotation_loss(Q.requires_grad_()).backward()
    both = torch.cat((dA.flatten(), dB.flatten()))
    expected = {
        "decrease": (2 * both.abs().sum(), 3 * q.grad.abs().sum()),
        "rms": (both.square().mean().sqrt(), q.grad.square().mean().sqrt()),
        "raw": (both.norm(), q.grad.norm()),
    }[norm]
    sizes = mixing.branch_sizes([dA, dB], [Q.grad], norm, (2.0, 3.0))
    assert [float(s) for s in sizes] == pytest.approx([float(s) for s in expected], rel=1e-9)


@pytest.mark.parametrize("norm", ["decrease", "rms", "raw"])
def test_sizes_count_each_free_entry_of_q_once(norm):
    check_sizes(norm)


@pytest.mark.parametrize(
    ("norm", "wrong"),
    [
        ("decrease", lambda low, turn, rates: (low, turn / 2)),  # each entry once, though the step moves both
        ("decrease", lambda low, turn, rates: (low / rates[0], turn / rates[1])),  # without the rates
        ("rms", lambda low, turn, rates: (low, turn / math.sqrt(2))),  # of b x b as it is stored
        ("raw", lambda low, turn, rates: (low, turn / math.sqrt(2))),
    ],
)
def test_a_wrong_size_is_caught(norm, wrong, monkeypatch):
    right = mixing.branch_sizes
    monkeypatch.setattr(mixing, "branch_sizes", lambda low, turns, n, rates: wrong(*right(low, turns, n, rates), rates))
    with pytest.raises(AssertionError):
        check_sizes(norm)
