"""Bases of gradients: every way against LAPACK's, what convergence theory says of each, and matrices that broke others.

The theory's numbers: kappa = l2 / l1, gap = 1 - kappa, eigenvalues of C = A^T A, squared singular values of A.
"""

from __future__ import annotations

import functools
import importlib
import math
from dataclasses import replace

import pytest
import torch
from scipy.special import eval_chebyu

from harness.plugins import load_plugin

load_plugin("methods", "galore")  # registers the package that plug-ins and their shared parts are loaded under
projector = importlib.import_module("tuning_fork_methods._projector")
Builder = projector.Builder
close = torch.testing.assert_close
DOUBLE = torch.float64
EXACT = {
    "svd": Builder("svd"),
    "gram": Builder("gram"),
    "block": Builder("block", passes=80, oversampling=8),
    "power": Builder("sequential", momentum="none", tolerance=1e-9, max_iterations=5000),
    "dynamic": Builder("sequential", tolerance=1e-9, max_iterations=5000),
}
USUAL = {
    "svd": Builder("svd"),
    "gram": Builder("gram"),
    "block": Builder("block", oversampling=8),
    "power": Builder("sequential", momentum="none"),
    "dynamic": Builder("sequential"),
    "static": Builder("sequential", momentum="static"),
}
SHAPES = [(48, 30), (20, 44), (24, 24)]


def matrices(count, shape, values, seed=0, dtype=DOUBLE):
    """(count, m, n) with these singular values and random singular vectors."""
    generator = torch.Generator().manual_seed(seed)

    def rotation(size):
        return torch.linalg.qr(torch.randn(count, size, size, generator=generator, dtype=DOUBLE))[0]

    (m, n), k = shape, len(values)
    return ((rotation(m)[:, :, :k] * torch.as_tensor(values, dtype=DOUBLE)) @ rotation(n)[:, :, :k].mT).to(dtype)


def powers(shape, exponent):
    return [i**-exponent for i in range(1, min(shape) + 1)]


def build(builder, G, rank, warm=None, seed=1):
    side = projector.side_of(G.shape)
    generator = torch.Generator().manual_seed(seed)
    noise = builder.noise(rank, min(G.shape[1:]), G, generator)
    return builder(G, rank, side, noise, warm)


def energy(G, Q):
    """||G Q||^2 over the most that rows of that number capture."""
    A = G if projector.side_of(G.shape) == "right" else G.mT
    best = torch.linalg.svdvals(A)[:, : Q.shape[1]].square().sum(1)
    return (A @ Q.mT).square().sum((1, 2)) / best


def angle(Q, other):
    """Sine of the largest principal angle between two spans."""
    left = Q - Q @ other.mT @ other
    return torch.linalg.matrix_norm(left, 2)


def defect(Q):
    return float((Q @ Q.mT - torch.eye(Q.shape[1], dtype=Q.dtype)).abs().max())


# --------------------------------------------------------------------------- one contract


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", EXACT)
def test_every_way_ends_at_the_leading_singular_vectors(name, shape):
    G = matrices(3, shape, powers(shape, 1.0))
    Q, report = build(EXACT[name], G, 5)
    oracle, _ = build(Builder("svd"), G, 5)
    assert Q.shape == (3, 5, min(shape)) and defect(Q) < 1e-12
    assert float(angle(Q, oracle).max()) < 1e-6
    close(energy(G, Q), torch.ones(3, dtype=DOUBLE), rtol=0, atol=1e-12)
    close(report.share, energy(G, Q) * torch.linalg.svdvals(G)[:, :5].square().sum(1) / G.square().sum((1, 2)))
    if name != "block":  # which turns within the span, too, but only as far as the gap lets it
        close(Q, oracle, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("name", USUAL)
def test_rows_are_orthonormal_and_each_has_its_largest_entry_positive(name, dtype):
    G = matrices(4, (40, 24), powers((40, 24), 0.5), dtype=dtype)
    cold, _ = build(USUAL[name], G, 6)
    warm, report = build(USUAL[name], G.flip(0), 6, warm=cold)
    for Q in (cold, warm):
        assert defect(Q) < (1e-5 if dtype == torch.float32 else 1e-12)
        assert bool((Q.gather(2, Q.abs().argmax(2, keepdim=True)) > 0).all())
    again, _ = build(USUAL[name], G.flip(0), 6, warm=cold)
    turned, _ = build(USUAL[name], -G.flip(0), 6, warm=cold)
    assert torch.equal(again, warm)
    if name != "block":  # which starts from the gradient itself, and some noise
        assert torch.equal(turned, warm)  # C does not know the sign, nor may the basis
    assert all(value.shape == (4,) for value in report)


def test_without_fixed_signs_a_turned_gradient_turns_the_basis():
    G = matrices(1, (9, 6), powers((9, 6), 0.5))
    left, _, right = torch.linalg.svd(torch.cat((G, -G)), full_matrices=False)
    assert not torch.equal(right[0], right[1]) or not torch.equal(left[0], left[1])
    assert torch.equal(*projector.fix_signs(torch.stack((right[0], -right[0]))))


@pytest.mark.parametrize("name", USUAL)
def test_a_stack_is_built_as_its_matrices_alone(name):
    """Each matrix of a stack goes its own way: different spectra, so different numbers of iterations."""
    shape = (30, 20)
    G = torch.cat([matrices(1, shape, powers(shape, a), seed) for seed, a in enumerate((0.1, 0.5, 1.0, 2.0))])
    warm, _ = build(EXACT["svd"], G.flip(0), 5)
    together, report = build(USUAL[name], G, 5, warm)
    for number in range(4):
        alone, own = build(USUAL[name], G[number : number + 1], 5, warm[number : number + 1])
        close(together[number : number + 1], alone, rtol=0, atol=1e-9)
        assert report.iterations[number] == own.iterations[0]
    if name in ("power", "dynamic"):
        assert len(set(report.iterations.tolist())) > 2


@pytest.mark.parametrize("name", USUAL)
@pytest.mark.parametrize("size", [1e-14, 1e14])
def test_a_gradients_size_does_not_matter(name, size):
    G = matrices(2, (40, 24), powers((40, 24), 0.5), dtype=torch.float32)
    Q, report = build(USUAL[name], G, 6)
    other, scaled = build(USUAL[name], G * size, 6)
    assert float(angle(Q, other).max()) < 1e-2 and defect(other) < 1e-5
    close(report.share, scaled.share, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", USUAL)
@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, -math.inf])
def test_a_zero_or_broken_gradient_keeps_the_old_basis_and_leaves_the_others_alone(name, bad):
    G = matrices(3, (12, 9), powers((12, 9), 0.5))
    warm, _ = build(EXACT["svd"], G.flip(0), 4)
    good, _ = build(USUAL[name], G, 4, warm)
    broken = G.clone()
    broken[1] = 0.0
    broken[1, 3, 2] = bad
    Q, report = build(USUAL[name], broken, 4, warm)
    assert torch.equal(Q[1], warm[1]) and report.kept.tolist() == [False, True, False]
    close(Q[[0, 2]], good[[0, 2]], rtol=0, atol=1e-12)
    assert bool(report.share.isfinite().all()) and float(report.share[1]) == 0.0
    first, _ = build(USUAL[name], broken, 4)
    assert torch.equal(first[1], torch.eye(4, 9, dtype=DOUBLE)) and bool(first.isfinite().all())


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "qr"}, {"momentum": "some"}, {"passes": 3}, {"passes": 0}, {"tolerance": 0.0}, {"oversampling": -1}],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        Builder(**wrong)


# --------------------------------------------------------------------------- fewer directions than rank


@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (64, 64)])
@pytest.mark.parametrize("name", USUAL)
@pytest.mark.parametrize("directions", [1, 4])
def test_a_gradient_of_few_directions_gets_a_whole_orthonormal_basis(name, shape, directions):
    """In float32, where rounding errors are what is left of it; from random rows and from an old basis."""
    G = matrices(2, shape, [1.0, 0.7, 0.5, 0.3][:directions], dtype=torch.float32)
    warm = None
    for _ in range(2):
        Q, report = build(USUAL[name], G, 32, warm)
        assert defect(Q) < 1e-5
        close(energy(G, Q), torch.ones(2), rtol=0, atol=1e-4)
        if name in ("power", "dynamic", "static"):
            assert float(report.iterations.max()) < 28 * 3 + directions * 101  # what is surplus costs no search
        warm = Q.flip(1)  # what completes the basis comes first


@pytest.mark.parametrize("name", USUAL)
def test_columns_that_are_exactly_zero_do_no_harm(name):
    G = torch.zeros(1, 40, 30)
    G[:, :, [3, 7]] = torch.randn(1, 40, 2, generator=torch.Generator().manual_seed(0))
    for warm in (None, torch.eye(30)[None, :12], torch.eye(30)[None, -12:]):
        Q, _ = build(USUAL[name], G, 12, warm)
        assert defect(Q) < 1e-5
        close(energy(G, Q), torch.ones(1), rtol=0, atol=1e-4)


def naive(G, rank, most=200, tolerance=1e-2, projections=0):
    """Peel rank-one matrices off G by power iteration and nothing else, as an abstract is read. (rank, n).

    ``projections``: times that each iterate is made orthogonal to the vectors before it, which the naive reading lacks.
    """
    generator = torch.Generator().manual_seed(0)
    G, found = G.clone(), G.new_zeros(0, G.shape[1])
    for _ in range(rank):
        x = torch.randn(G.shape[1], generator=generator, dtype=G.dtype)
        x = x / x.norm()
        for _ in range(most):
            v = G.T @ (G @ x)
            value = x @ v
            if (v - value * x).norm() <= tolerance * value:
                break
            for _ in range(projections):
                v = v - found.T @ (found @ v)
            x = v / v.norm()
        u = G @ x
        G = G - torch.outer(u, x)
        found = torch.cat((found, x[None]))
    return found


def test_naive_deflation_returns_the_same_vector_twice():
    """The failing twin: without a stop at the precision, what is left of the gradient is its rounding errors."""
    G = matrices(1, (96, 64), [1.0, 0.7, 0.5, 0.3], dtype=torch.float32)
    assert defect(naive(G[0], 32)[None]) > 0.5
    assert defect(build(USUAL["dynamic"], G, 32)[0]) < 1e-5


def test_peeling_rank_one_matrices_finds_the_same_vectors():
    """The literal reading of the abstract, where it works: distinct singular values and as many as are asked for."""
    G = matrices(1, (30, 20), powers((30, 20), 1.0))
    peeled = projector.fix_signs(naive(G[0], 5, most=20_000, tolerance=1e-11)[None])
    close(build(EXACT["dynamic"], G, 5)[0], peeled, rtol=0, atol=1e-8)
    close(build(EXACT["svd"], G, 5)[0], peeled, rtol=0, atol=1e-8)


def test_cholesky_needs_to_be_twice_and_a_third_time_where_rows_are_nearly_dependent():
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(4, 40, 40, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(4, 300, 40, generator=generator))[0].mT
    defects = {}
    for condition in (330.0, 3e4):
        Y = left * torch.logspace(0, -math.log10(condition), 40) @ right
        defects[condition] = [defect(projector.orthonormal_rows(Y, times)) for times in (1, 2, 3)]
    once, twice, _ = defects[330.0]
    assert once > 5e-4 and twice < 1e-5
    _, twice, thrice = defects[3e4]
    assert twice > 1e-5 and thrice < 1e-5


# --------------------------------------------------------------------------- convergence of one vector

N, SEEDS, ANGLE = 200, 3, 1e-6
GAPS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
MEASURED = {0.3: (40, 19, 30), 0.1: (128, 36, 45), 0.03: (441, 68, 67), 0.01: (1334, 119, 117), 0.003: (4463, 218, 209)}
MEASURED |= {0.001: (13400, 378, 353)}  # plain, static, dynamic, of one spectrum; ours has the same two leading values


def spectrum(gap):
    rest = torch.linspace(0, 1 - gap, N - 1, dtype=DOUBLE).flip(0)
    return torch.cat((torch.ones(1, dtype=DOUBLE), rest))


def tangent(x):
    return x[:, 1:].norm(dim=1) / x[:, 0].abs()


@functools.cache
def search(momentum, gap, step=None, most=40_000):
    """Iterations until the angle to the leading vector is 1e-6, median over seeds; C is diagonal, which nothing sees."""
    values = spectrum(gap)
    x = torch.randn(SEEDS, N, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    at, second = projector.started(x), torch.full((SEEDS, 1), 1 - gap, dtype=DOUBLE)
    count = torch.full((SEEDS,), most)
    for number in range(1, most):
        u, _, residual = (step or projector.power_step)(values * at.x, at, momentum, second)
        at = projector.following(at, u, residual)
        count = torch.where((tangent(at.x) <= ANGLE) & (count == most), number, count)
        if bool((count < most).all()):
            break
    return int(count.median())


def test_plain_power_iteration_contracts_by_the_ratio_of_eigenvalues():
    """F1: tan(theta_k) <= kappa^k tan(theta_0), with equality where there are but two eigenvalues."""
    for values in (spectrum(0.1), torch.tensor([1.0, 0.9], dtype=DOUBLE)):
        at = projector.started(
            torch.randn(SEEDS, len(values), generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
        )
        first = tangent(at.x)
        for number in range(1, 60):
            u, _, residual = projector.power_step(values * at.x, at, "none")
            at = projector.following(at, u, residual)
            bound = 0.9**number * first
            assert bool((tangent(at.x) <= bound * (1 + 1e-9)).all())
        if len(values) == 2:
            close(tangent(at.x), bound)


def test_static_momentum_applies_the_chebyshev_polynomial():
    """F2, F5: k steps with beta = l2^2 / 4 multiply each eigenvector's part by U_k(l / l2), so by 1 to k + 1 below l2."""
    values = spectrum(0.05)
    x = torch.randn(SEEDS, N, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    at, second = projector.started(x), torch.full((SEEDS, 1), 0.95, dtype=DOUBLE)
    for _ in range(12):
        at = projector.following(at, *projector.power_step(values * at.x, at, "static", second)[::2])
    expected = torch.as_tensor(eval_chebyu(12, (values / 0.95).numpy())) * x
    close(at.x, expected / expected.norm(dim=1, keepdim=True), rtol=1e-9, atol=1e-12)


def test_counts_grow_with_the_gap_as_theory_says():
    """F1, F2, F3: tenfold a decade of the gap for plain, by its root for momentum, which need not know l2."""
    counts = {(m, gap): search(m, gap) for m in ("static", "dynamic") for gap in GAPS}
    counts |= {("none", gap): search("none", gap) for gap in GAPS[:-1]}  # its 13,400 at the last one take too long
    for wide, narrow in ((0.1, 0.01), (0.03, 0.003), (0.01, 0.001)):
        assert narrow == GAPS[-1] or 8 < counts["none", narrow] / counts["none", wide] < 12
        assert 2.2 < counts["dynamic", narrow] / counts["dynamic", wide] < 4.2
    for (momentum, gap), count in counts.items():
        assert count == pytest.approx(MEASURED[gap][("none", "static", "dynamic").index(momentum)], rel=0.3, abs=8)
    for gap in GAPS:
        assert counts["dynamic", gap] <= 1.3 * counts["static", gap] + 15
    for gap in GAPS[:-1]:
        assert gap > 0.03 or counts["dynamic", gap] <= 0.2 * counts["none", gap]
        x = torch.randn(SEEDS, N, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
        bound = math.log(float(tangent(x).max()) / ANGLE) / -math.log(1 - gap)
        assert 0.6 * bound < counts["none", gap] <= bound


def wrong_step(defect_, v, at, momentum, second):
    """``power_step`` written again, with a mistake to make."""
    value = (at.x * v).sum(1, keepdim=True)
    residual = (v - value * at.x).norm(dim=1, keepdim=True)
    q = (residual / at.residual).clamp(max=1)
    ratio = q if defect_ == "residual ratio for eigenvalue ratio" else 2 * q / (1 + q * q)
    beta = torch.where(at.number >= 2, value**2 * ratio**2 / 4, 0)
    beta = {"four times": 4 * beta, "sign": -beta, "inverse ratio": value**2 / (4 * ratio**2)}.get(defect_, beta)
    length = 1 if defect_ == "no length" else at.length
    return v - beta / length * at.before, value, residual


def test_the_step_is_its_formula():
    for gap in (0.1, 0.003):
        assert search("dynamic", gap, functools.partial(wrong_step, "")) == search("dynamic", gap)


@pytest.mark.parametrize(
    "wrong", ["four times", "sign", "inverse ratio", "no length", "residual ratio for eigenvalue ratio"]
)
def test_a_wrong_momentum_misses_the_bar(wrong):
    gap = 0.01
    bar = 1.3 * search("static", gap) + 15
    found = search("dynamic", gap, functools.partial(wrong_step, wrong), most=int(bar) + 2)
    assert found > bar >= search("dynamic", gap)


# --------------------------------------------------------------------------- blocks against vectors


def one_round_more(values, k, rounds=(6, 7)):
    """By how much one more round of the block contracts the angle to each leading vector."""
    G = matrices(1, (40, 40), values)
    oracle, _ = build(Builder("svd"), G, 4)
    start = torch.randn(k, 40, generator=torch.Generator().manual_seed(5), dtype=DOUBLE) / 40**0.5
    sines = []
    for count in rounds:
        mask, inverse = torch.ones(1, 1, 1, dtype=torch.bool), 1 / G.norm()[None, None, None]
        Q = projector._block(G, inverse, mask, k, start, 2 * count)
        sines.append((oracle - oracle @ Q.mT @ Q).norm(dim=2)[0])
    return sines[1] / sines[0]


def test_a_block_contracts_by_the_first_value_outside_it():
    """F4: vector i by (s_{k+1} / s_i)^2, however close the values inside are."""
    values = [1.0, 0.999, 0.998, 0.997, *[0.5] * 36]
    close(one_round_more(values, 4), torch.full((4,), 0.25, dtype=DOUBLE), rtol=0.02, atol=0)
    wider = [1.0, 0.9, 0.8, 0.7, *[0.6] * 4, *[0.3] * 32]
    found = one_round_more(wider, 8)
    close(found, torch.tensor([(0.3 / s) ** 2 for s in wider[:4]], dtype=DOUBLE), rtol=0.1, atol=0)
    one_by_one = Builder("sequential", momentum="none", tolerance=1e-4, max_iterations=5000)
    assert float(build(one_by_one, matrices(1, (40, 40), values), 4)[1].iterations) > 1000


def test_close_values_spoil_single_vectors_and_not_the_span():
    """F6: an error of one vector leaks into the next, amplified by l1 over their distance."""
    G = matrices(1, (60, 40), [1.0, 0.9999, 0.9998, 0.9997, 0.9996, *[0.1] * 35])
    oracle, _ = build(Builder("svd"), G, 5)
    for name in ("power", "dynamic"):
        Q, _ = build(USUAL[name], G, 5)
        assert float((Q - oracle).abs().max()) > 0.1
        assert float(angle(Q, oracle)) < 0.05 and float(energy(G, Q)) > 0.999


@functools.cache
def measured(name, a, warmth="cold", shape=(192, 96), rank=16):
    """(energy, report) on the spectrum i^-a in float32; warm: from the basis of G with a fifth of it noise."""
    builder = {"tol 0.1": Builder("sequential", momentum="none", tolerance=0.1), **USUAL}.get(name) or name
    G = matrices(1, shape, powers(shape, a), dtype=torch.float32)
    start = None
    if warmth == "warm":
        noise = torch.randn(G.shape, generator=torch.Generator().manual_seed(9))
        start, _ = build(Builder("svd"), G + 0.2 * G.norm() / noise.norm() * noise, rank)
    elif warmth == "random":
        start = torch.linalg.qr(torch.randn(1, shape[1], rank, generator=torch.Generator().manual_seed(9)))[0].mT
    Q, report = build(builder, G, rank, start)
    return float(energy(G, Q)), report


@pytest.mark.parametrize("a", [0.25, 0.5, 1.0])
def test_what_a_warm_start_is_worth(a):
    """To a search; a block does not look at the old basis."""
    for name in ("dynamic", "power"):
        assert measured(name, a, "warm")[1].iterations < (0.9 if a < 0.5 else 0.7) * measured(name, a)[1].iterations
    assert measured("block", a, "warm")[0] == measured("block", a)[0]


@pytest.mark.parametrize("a", [0.25, 0.5, 1.0])
def test_rounds_and_rows_bring_a_block_nearer(a):
    found = [measured(Builder("block", passes=2, oversampling=p), a)[0] for p in (0, 8, 32, 80)]
    assert found == sorted(found) and found[3] == pytest.approx(1, abs=1e-5)  # with all rows it is exact
    assert found[1] < measured(Builder("block", passes=4, oversampling=8), a)[0]
    assert found[2] > {0.25: 0.93, 0.5: 0.99, 1.0: 0.9999}[a]


def nystroem(A, rank, noise, passes, sums=3, start="sums"):
    """The block builder of one matrix, written out: QR, a pseudo-inverse, and eigenvectors of the n x n approximation."""
    k, C = len(noise), A.T @ A / A.norm() ** 2
    signs = noise.flatten().sign()

    def summed(B, count):
        made = torch.zeros(count, B.shape[1], dtype=B.dtype)
        for row in range(len(B)):
            made[row % count] += signs[row // count] * B[row]
        return made / A.norm()

    few = summed(A, sums * k) if 2 * sums * k <= A.shape[1] else None
    rows = summed(A if few is None else few * A.norm(), k) * k**0.5 + 0.1 * noise
    Y = torch.linalg.qr((rows if start == "sums" else noise).T)[0].T
    if few is not None:
        Y = torch.linalg.qr((Y @ few.T @ few + 1e-3 * Y).T)[0].T
    for _ in range(passes // 2 - 1):
        Y = torch.linalg.qr((Y @ C).T)[0].T
    near = C @ Y.T @ torch.linalg.pinv(Y @ C @ Y.T) @ Y @ C
    return torch.linalg.eigh((near + near.T) / 2)[1][:, -rank:].T.flip(0)


@pytest.mark.parametrize("shape", [(96, 60), (60, 96), (60, 60)])
@pytest.mark.parametrize(("rank", "oversampling"), [(4, 2), (12, 8)])
@pytest.mark.parametrize("passes", [2, 4])
def test_the_block_is_nystroems_approximation_of_its_rows(shape, rank, oversampling, passes):
    """With few rows a first round is made on sums, with more it is not."""
    G = matrices(2, shape, powers(shape, 0.5))
    builder = Builder("block", oversampling=oversampling, passes=passes)
    Q, _ = build(builder, G, rank)
    noise = builder.noise(rank, 60, G, torch.Generator().manual_seed(1))
    twins = [nystroem(A if shape[0] >= 60 else A.T, rank, noise, passes) for A in (G if shape[0] >= shape[1] else G.mT)]
    close(Q, projector.fix_signs(torch.stack(twins)), rtol=0, atol=1e-6)
    for wrong in ({"passes": passes + 2}, {"sums": 2}, {"start": "random"}):
        A = G[0] if shape[0] >= shape[1] else G[0].T
        if "sums" in wrong and 6 * len(noise) > 60:
            continue
        other = projector.fix_signs(nystroem(A, rank, noise, **{"passes": passes, **wrong}))
        assert float((other - Q[0]).abs().max()) > 1e-4


def test_sums_of_rows_are_a_better_start_than_random_rows():
    for a in (0.25, 0.5, 1.0):
        G = matrices(1, (192, 96), powers((192, 96), a))
        noise = Builder("block", oversampling=8).noise(16, 96, G, torch.Generator().manual_seed(1))
        found = [energy(G, nystroem(G[0], 16, noise, 2, start=start)[None]) for start in ("random", "sums")]
        assert found[0] < found[1]


def test_sums_of_rows_hold_each_row_once():
    A = torch.randn(2, 11, 5, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    noise = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    s = noise.flatten().sign()
    expected = torch.stack([s[0] * A[:, i] + s[1] * A[:, i + 4] for i in range(4)], 1)
    expected[:, :3] += s[2] * A[:, 8:]
    close(projector.row_sums(A, 4, noise), expected)
    turned = A.mT.contiguous().mT
    close(projector.row_sums(turned, 4, noise), expected)


@pytest.mark.parametrize("short", [5, 24, 30])
def test_a_gram_matrix_by_strips(short):
    A = torch.randn(3, 40, short, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    A[1] = math.nan
    mask, inverse = torch.tensor([True, False, True])[:, None, None], torch.tensor([0.5, 0.0, 2.0], dtype=DOUBLE)
    C = projector.gram(A, inverse[:, None, None], mask)
    close(C[[0, 2]], torch.stack((A[0].T @ A[0] / 4, A[2].T @ A[2] * 4)))
    close(C, C.mT)
    assert not bool(C[1].any())


def test_projections_go_where_they_are_asked_for():
    for shape in SHAPES:
        G = matrices(2, shape, powers(shape, 0.5))
        side = projector.side_of(G.shape)
        builder = Builder("block", oversampling=4)
        out = torch.empty(2, *((shape[0], 3) if side == "right" else (3, shape[1])), dtype=DOUBLE)
        noise = builder.noise(3, min(shape), G, torch.Generator().manual_seed(0))
        Q, report = builder(G, 3, side, noise, projected=out)
        close(out, G @ Q.mT if side == "right" else Q @ G)
        close(report.share, out.square().sum((1, 2)) / G.square().sum((1, 2)))


@pytest.mark.parametrize("a", [0.25, 0.5, 1.0])
def test_one_vector_at_a_time_is_accurate_and_momentum_shortens_it(a):
    plain, dynamic = (measured(replace(USUAL[name], tolerance=1e-2), a) for name in ("power", "dynamic"))
    assert min(plain[0], dynamic[0]) > 0.9995 and float(dynamic[1].iterations) < 0.75 * float(plain[1].iterations)
    loose = measured("tol 0.1", a)
    assert 0.98 < loose[0] <= plain[0] + 1e-6 and loose[1].iterations < dynamic[1].iterations
    plain, dynamic = measured("power", a), measured("dynamic", a)
    assert min(plain[0], dynamic[0]) > 0.996 and dynamic[1].iterations < 0.9 * plain[1].iterations


def test_static_momentum_takes_the_next_eigenvalue():
    values = torch.tensor(powers((60, 40), 0.5), dtype=DOUBLE).square()
    C = torch.diag(values / values.sum())[None]
    start = torch.randn(1, 6, 40, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    second = (values / values.sum())[None, 1:7]
    found = {}
    for momentum, guess in (("none", None), ("static", second), ("static", second * 0)):
        rows, seen, iterations = projector.deflated(C, start, momentum, 1e-6, 10_000, guess)
        close(seen, C[0].diagonal()[None, :6], rtol=1e-9, atol=0)
        assert float(angle(rows, torch.eye(40, dtype=DOUBLE)[None, :6])) < 1e-3
        found[momentum, guess is None or bool(guess.any())] = float(iterations)
    assert found["static", True] < 0.5 * found["none", True] == 0.5 * found["static", False]
