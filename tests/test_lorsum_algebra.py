"""The algebra of LoRSum against dense matrices, and the facts by which it is what it says: orders, limits, gauge, damping."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from harness.plugins import load_plugin
from tests.dense_als import als, power, same, svd_r

load_plugin("methods", "lorsum")  # registers the package that plug-ins and their shared parts are loaded under
algebra = importlib.import_module("tuning_fork_methods._lorsum")
Problem, Metric, low_rank_sum = algebra.Problem, algebra.Metric, algebra.low_rank_sum

m, n, r = 60, 40, 4


@dataclass
class Dense:
    """A stack of dense gradients."""

    G: Tensor

    def times(self, V):
        return self.G @ V

    def transposed_times(self, U):
        return self.G.mT @ U


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def problem(eta=0.3, rho=0.0, stack=1, rank=r, size=(m, n), seed=0, **more):
    U, V, G = (
        normal(stack, size[0], rank, seed=seed),
        normal(stack, size[1], rank, seed=seed + 1),
        normal(stack, *size, seed=seed + 2),
    )
    return Problem(U, V, Dense(G), weight=-eta, rho=rho, **more)


def target(p):
    """M of each matrix of a problem, dense."""
    moved = p.weight * p.gradient.G
    for c, U, V in p.terms:
        moved = moved + c * U @ V.mT
    for number, one in enumerate((p.P, p.Q)):
        if one.inverse is not None:
            inverse = torch.diag_embed(one.inverse.squeeze(-1)) if one.inverse.shape[-1] == 1 else one.inverse
            moved = inverse @ moved if number == 0 else moved @ inverse
    return p.keep * p.U @ p.V.mT + moved


def product(pair):
    U, V = pair
    return (U @ V.mT).squeeze(0) if len(U) == 1 else U @ V.mT


def solved(p, pairs, **how):
    return product(low_rank_sum([p], pairs, **how)[0])


def best(p):
    return svd_r(target(p)[0], p.U.shape[-1])


def spd(d, seed):
    A = normal(d, d, seed=seed)
    return A @ A.T / d + 0.3 * torch.eye(d, dtype=torch.float64)


# --------------------------------------------------------------------------- against the dense twin


FULL = {
    "plain": {},
    "damped": {"rho": 0.7},
    "relative": {"rho": 0.2, "relative": True},
    "kept in part": {"rho": 0.1, "keep": 0.9},
    "terms": {"rho": 0.1, "terms": [(-0.4, normal(2, m, 3, seed=8), normal(2, n, 3, seed=9))]},
    "metrics": {
        "rho": 0.3,
        "terms": [(0.4, normal(2, m, 5, seed=8), normal(2, n, 5, seed=9))],
        "P": algebra.metric(torch.stack([spd(m, 3), spd(m, 4)]), 1e-3, 0.5),
        "Q": algebra.metric(normal(2, n, seed=5).square(), 1e-3, 0.7),
    },
}
HOW = [
    {"pairs": 0},
    {"pairs": 1},
    {"pairs": 1, "first": "V"},
    {"pairs": 3, "moving": True},
    {"pairs": 2, "first": "V", "moving": True},
]


def dense_metric(one, number):
    if one.power is None:
        return None
    factor = one.power[number]
    return torch.diag(factor[:, 0]) if factor.shape[-1] == 1 else factor


def difference(p, pairs, first="U", moving=False, run=None):
    """Largest entry by which the stack's result is off the twin's, matrix by matrix, relative to its largest."""
    found = low_rank_sum([run or p], pairs, first=first, moving=moving)[0]
    worst = 0.0
    for number, M in enumerate(target(p)):
        metrics = dense_metric(p.P, number), dense_metric(p.Q, number)
        U, V = als(M, p.U[number], p.V[number], p.rho, pairs, first, moving, *metrics, p.relative)
        for one, other in zip((U, V), found, strict=True):
            worst = max(worst, float((one - other[number]).abs().max() / one.abs().max()))
    return worst


@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize("kind", FULL)
def test_equals_dense_alternating_least_squares(kind, how):
    assert difference(problem(stack=2, **FULL[kind]), **how) < 1e-11


def test_stacks_of_several_shapes_and_ranks_go_together():
    several = [problem(rho=0.1, stack=2), problem(rho=0.2, rank=2, size=(9, 30), stack=3), problem(rho=0.3, stack=1)]
    for p, (U, V) in zip(several, low_rank_sum(several, 2), strict=True):
        alone = low_rank_sum([p], 2)[0]
        same(U, alone[0])
        same(V, alone[1])


def test_products_that_are_there_already_are_used():
    p = problem(rho=0.1)
    known = p.gradient.times(p.V), p.gradient.transposed_times(p.U)
    asked = []

    class Counted(Dense):
        def times(self, V):
            asked.append("G V")
            return super().times(V)

        def transposed_times(self, U):
            asked.append("G^T U")
            return super().transposed_times(U)

    for pairs, first, expected in (
        (1, "U", ["G^T U"]),
        (1, "V", ["G V"]),
        (0, "U", []),
        (2, "U", ["G^T U", "G V", "G^T U"]),
    ):
        asked.clear()
        same(
            solved(replace(p, gradient=Counted(p.gradient.G), known=known), pairs, first=first),
            solved(p, pairs, first=first),
        )
        assert asked == expected
    wrong = replace(p, known=(2 * known[0], known[1]))
    assert (solved(wrong, 1) - solved(p, 1)).abs().max() > 0.1


FIELDS = {
    "sign of the gradient": lambda p: replace(p, weight=-p.weight),
    "a term left out": lambda p: replace(p, terms=()),
    "a term's sign": lambda p: replace(p, terms=[(-c, U, V) for c, U, V in p.terms]),
    "a power for its inverse": lambda p: replace(p, P=Metric(p.P.inverse, p.P.power)),
    "a metric left out": lambda p: replace(p, Q=Metric()),
    "no damping": lambda p: replace(p, rho=0.0),
    "damping of the mean": lambda p: replace(p, relative=True),
    "the present one forgotten": lambda p: replace(p, keep=0.0),
}


@pytest.mark.parametrize("mutant", FIELDS)
def test_the_twin_sees_a_wrong_problem(mutant):
    p = problem(stack=2, **FULL["metrics"])
    assert difference(p, 1, run=FIELDS[mutant](p)) > 1e-4


def unanchored(grams, rights, anchors, rhos, right=algebra.damped_solve):
    return right(grams, rights, [torch.zeros_like(anchor) for anchor in anchors], rhos)


def not_whitened(factor, Y, right=algebra._applied):
    return Y


def after_the_metric(problem, side, other, known, right=algebra._system):
    gram, right_hand = right(problem, side, other, known)
    own = problem.U if side == 0 else problem.V
    return gram, right_hand + own  # another c_0


CODE = {
    "damped_solve": unanchored,
    "_applied": not_whitened,
    "_system": after_the_metric,
    "_damping": lambda problem, gram: gram.new_full((len(gram),), 2 * problem.rho),
}


@pytest.mark.parametrize("name", CODE)
def test_the_twin_sees_wrong_code(name, monkeypatch):
    monkeypatch.setattr(algebra, name, CODE[name])
    assert difference(problem(stack=2, **FULL["metrics"]), 1) > 1e-4


# --------------------------------------------------------------------------- T1 to T10


def test_without_damping_it_goes_to_the_svd_at_subspace_iterations_rate():
    p = problem()
    s = torch.linalg.svdvals(target(p)[0])
    rate = (s[r] / s[r - 1]) ** 2
    errors = {k: (solved(p, k) - best(p)).norm() / best(p).norm() for k in (1, 2, 4, 8)}
    assert 1e-4 < errors[1] < 1e-2 and errors[8] < 1e-13
    assert errors[2] / errors[1] < 3 * rate and errors[4] / errors[2] < 3 * rate**2
    assert errors[2] / errors[1] > rate / 10


def test_a_jacobi_step_is_scaled_gd():
    p = problem(rho=0.2)
    U, V, G = p.U[0], p.V[0], p.gradient.G[0]
    eye = torch.eye(r, dtype=U.dtype)
    found = low_rank_sum([p], 0)[0]
    same(found[0][0], U - 0.3 * G @ V @ torch.linalg.inv(V.T @ V + 0.2 * eye))
    same(found[1][0], V - 0.3 * G.T @ U @ torch.linalg.inv(U.T @ U + 0.2 * eye))


def onto(A):
    return A @ torch.linalg.pinv(A)


STEPS = {
    "plain LoRA": lambda p: (
        (p.U[0] + p.weight * p.gradient.G[0] @ p.V[0]) @ (p.V[0] + p.weight * p.gradient.G[0].T @ p.U[0]).T
    ),
    "Jacobi": lambda p: solved(p, 0),
    "one pair": lambda p: solved(p, 1),
    "tangent": lambda p: tangent(p),
    "two pairs": lambda p: solved(p, 2),
}


def tangent(p):
    G, PU, PV = p.gradient.G[0], onto(p.U[0]), onto(p.V[0])
    return product((p.U, p.V)) + p.weight * (PU @ G + G @ PV - PU @ G @ PV)


@pytest.mark.parametrize(
    ("name", "order", "first"),
    [
        ("plain LoRA", 1, None),
        ("Jacobi", 1, 3.9e-2),
        ("one pair", 2, 2.1e-4),
        ("tangent", 2, 3.7e-4),
        ("two pairs", 4, 1.4e-9),
    ],
)
def test_orders_in_the_step(name, order, first):
    """Distance to the exact truncated step: its power of the step, and its size at 1e-2."""
    errors = []
    for eta in (3e-2, 1e-2):
        p = problem(eta)
        errors.append(float((STEPS[name](p) - best(p)).norm()))
    assert 3**order * 0.8 < errors[0] / errors[1] < 3**order * 1.25
    if first:
        assert first / 3 < errors[1] < first * 3
    else:
        assert errors[1] > 10 * 3.9e-2  # of first order, and large


def test_a_fixed_anchor_biases_the_limit_in_proportion_and_a_moving_one_does_not():
    bias = {
        rho: (solved(problem(rho=rho), 60) - best(problem())).norm() / best(problem()).norm()
        for rho in (1e-3, 1e-2, 1e-1)
    }
    assert 1e-8 < bias[1e-3] < 1e-5
    assert bias[1e-2] / bias[1e-3] == pytest.approx(10, rel=0.1)
    assert bias[1e-1] / bias[1e-2] == pytest.approx(10, rel=0.1)
    for rho in (1e-3, 1e-1, 10.0):
        assert (solved(problem(rho=rho), 300, moving=True) - best(problem())).norm() / best(problem()).norm() < 1e-13


def test_from_a_zero_U_the_order_matters():
    p = replace(problem(), U=torch.zeros(1, m, r, dtype=torch.float64))
    M = target(p)[0]

    def captured(found):
        return float((M.norm() ** 2 - (M - found).norm() ** 2).sqrt())

    V_first = torch.linalg.pinv(p.U[0].T @ p.U[0]) @ p.U[0].T @ M  # the undamped normal equations
    assert not V_first.any() and not (M @ V_first.T).any()  # dead for ever: V = 0, then U = 0
    u_first, v_first = captured(solved(p, 1)), captured(solved(replace(p, rho=1e-3), 1, first="V"))
    assert v_first < 0.9 * u_first < 0.9 * captured(best(p))
    assert captured(solved(p, 1, first="V")) == pytest.approx(v_first, rel=1e-3)  # the tenfold damping keeps V0


def test_gauge_is_seen_by_the_damping_alone():
    R = torch.linalg.qr(normal(r, r, seed=7))[0] * torch.tensor([0.5, 1.0, 2.0, 3.0]).double()
    for rho, low, high in ((0.0, 0, 1e-13), (0.1, 1e-6, 1)):
        p = problem(rho=rho)
        turned = replace(p, U=p.U @ R, V=p.V @ torch.linalg.inv(R).T)
        for first in ("U", "V"):
            same(product((turned.U, turned.V)), product((p.U, p.V)))
            off = (solved(turned, 1, first=first) - solved(p, 1, first=first)).norm() / solved(p, 1).norm()
            assert low <= off < high


def test_balancing_keeps_the_product_and_makes_the_sides_equal():
    U, V = normal(m, r), 5 * normal(n, r, seed=1)
    one, other, cut = algebra.truncated(U, V, r)
    same(one @ other.T, U @ V.T)
    same(one.T @ one, other.T @ other, 1e-11)
    assert float(cut) == 0.0
    left, right = normal(m, 9, seed=3), normal(n, 9, seed=4)
    one, other, cut = algebra.truncated(left, right, r)
    same(one @ other.T, svd_r(left @ right.T, r), 1e-11)
    same(cut, (left @ right.T - one @ other.T).square().sum())


@pytest.mark.parametrize("kind", ["plain", "damped", "terms", "metrics"])
def test_no_half_step_raises_the_objective(kind):
    p = problem(stack=2, **FULL[kind])
    M, start = target(p), [(p.U, p.V)]
    now, values = start, []
    P, Q = (
        torch.stack([dense_metric(one, i) if one.power is not None else torch.eye(d) for i in (0, 1)]).double()
        for one, d in ((p.P, m), (p.Q, n))
    )
    for half in range(6):
        (U, V) = now[0]
        off, left, right = U @ V.mT - M, U - p.U, V - p.V
        square = ((off.mT @ P @ off) * Q).sum((1, 2))
        values.append(square + p.rho * ((left * (P @ left)).sum((1, 2)) + (right * (Q @ right)).sum((1, 2))))
        (new,) = algebra._half_step([p], half % 2, now, start, known=False)
        now = [(new, V) if half % 2 == 0 else (U, new)]
    values = torch.stack(values)
    assert (values.diff(dim=0) <= 1e-12 * values[0]).all() and (values[1] < 0.99 * values[0]).all()


@pytest.mark.parametrize("g", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("full", [False, True])
def test_unit_metrics_change_nothing(g, full):
    p, one = problem(rho=0.1), torch.ones
    D = [torch.eye(d).double()[None] if full else one(1, d).double() for d in (m, n)]
    scaled = replace(p, P=algebra.metric(D[0], 0.0, g), Q=algebra.metric(D[1], 0.0, g))
    same(solved(scaled, 2), solved(p, 2))


@pytest.mark.parametrize("kind", ["plain", "damped", "metrics"])
def test_nothing_to_follow_leaves_the_product(kind):
    p = problem(stack=2, **FULL[kind])
    still = replace(p, gradient=Dense(torch.zeros_like(p.gradient.G)), terms=[(0.5, p.U, torch.zeros_like(p.V))])
    for pairs in (0, 1, 5):
        for first in ("U", "V"):
            same(product(low_rank_sum([still], pairs, first=first)[0]), p.U @ p.V.mT)


# --------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("full", [False, True])
def test_metrics_are_plain_steps_in_whitened_coordinates(full):
    D = (spd(m, 3), spd(n, 4)) if full else (spd(m, 3).diagonal(), spd(n, 4).diagonal())
    p = problem()
    p = replace(p, P=algebra.metric(D[0][None], 1e-2, 0.5), Q=algebra.metric(D[1][None], 1e-2, 0.5))
    W, G = p.U[0] @ p.V[0].T, p.gradient.G[0]
    P, Pi, Q, Qi = (power(one, 1e-2, g) for one in D for g in (0.25, -0.25))
    expected = Pi @ svd_r(P @ W @ Q - 0.3 * Pi @ G @ Qi, r) @ Qi
    found = solved(p, 60)
    assert (found - expected).norm() / expected.norm() < 1e-12
    wrong = svd_r(target(p)[0], r)  # the truncation without the metric
    assert (found - wrong).norm() / expected.norm() > 1e-6


@pytest.mark.parametrize("g", [0.5, 0.8, 1.0])
def test_a_power_is_taken_after_the_damping(g):
    D = spd(n, 4)
    for given in (D, D.diagonal()):
        one = algebra.metric(given[None], 0.1, g)
        same(dense_metric(one, 0), power(given, 0.1, g))
        inverse = one.inverse[0] if given.ndim == 2 else torch.diag(one.inverse[0, :, 0])
        same(inverse, power(given, 0.1, -g))


def test_special_cases_with_metrics():
    """Jacobi: ScaledGD between the metrics. V alone, with U fixed: a preconditioned step of LoRA-FA."""
    p = problem(rho=0.2, P=algebra.metric(spd(m, 3)[None], 0, 0.5), Q=algebra.metric(spd(n, 4)[None], 0, 0.5))
    U, V, G, P, Q = p.U[0], p.V[0], p.gradient.G[0], p.P.power[0], p.Q.power[0]
    eye = torch.eye(r, dtype=U.dtype)
    right = V - 0.3 * torch.linalg.inv(Q) @ G.T @ U @ torch.linalg.inv(U.T @ P @ U + 0.2 * eye)
    jacobi = low_rank_sum([p], 0)[0]
    same(jacobi[0][0], U - 0.3 * torch.linalg.inv(P) @ G @ V @ torch.linalg.inv(V.T @ Q @ V + 0.2 * eye))
    same(jacobi[1][0], right)
    (found,) = algebra._half_step([p], 1, [(p.U, p.V)], [(p.U, p.V)], known=False)
    same(found[0], right)


# --------------------------------------------------------------------------- solves


def test_one_cholesky_takes_the_systems_of_all_stacks(monkeypatch):
    calls, cholesky = [], torch.linalg.cholesky_ex

    def counted(A):
        calls.append(tuple(A.shape))
        return cholesky(A)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", counted)
    low_rank_sum([problem(stack=2, rho=0.1), problem(stack=3, rho=0.1, size=(20, 30))], 1)
    assert calls == [(5, r, r)] * 4  # a half step: once, and once for those that fail


def test_a_system_that_fails_is_damped_tenfold_and_the_others_are_left():
    p = problem(stack=3, rho=1e-3)
    gram = torch.stack([V.T @ V for V in p.V])
    eye = torch.eye(r, dtype=torch.float64)
    gram[1] = -1e-3 * eye  # with its damping exactly zero
    rights, anchors = normal(3, m, r, seed=5), normal(3, m, r, seed=6)
    (found,) = algebra.damped_solve([gram], [rights], [anchors], [torch.full((3,), 1e-3, dtype=torch.float64)])
    for number, rho in enumerate((1e-3, 1e-2, 1e-3)):
        system = gram[number] + rho * eye
        same(found[number], (rights[number] + rho * anchors[number]) @ torch.linalg.inv(system), 1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_system_without_damping_keeps_the_anchor(dtype):
    zero, anchor = torch.zeros(2, r, r, dtype=dtype), normal(2, m, r).to(dtype)
    (found,) = algebra.damped_solve([zero], [torch.zeros_like(anchor)], [anchor], [torch.zeros(2, dtype=dtype)])
    torch.testing.assert_close(found, anchor)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("rho", [0.0, 1e-4])
def test_a_gradient_below_the_rank_is_followed_from_a_zero_U(rank, rho):
    """In float32, the surplus directions stay finite, and two pairs have all of G."""
    G = (normal(1, m, rank, seed=3) @ normal(1, rank, n, seed=4)).float()
    p = Problem(torch.zeros(1, m, r), normal(1, n, r).float(), Dense(G), -0.1, rho)
    found = product(low_rank_sum([p], 2)[0])
    assert found.isfinite().all()
    assert (found + 0.1 * G[0]).norm() < 1e-2 * (0.1 * G).norm()
