"""ScaledGD, LoRA-Pro, AltLoRA and LoRA-RITE: each one's relation to the gradient of the whole weight, which of them see
the product of the factors alone, and that a defect in a formula would show. In float64."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from torch import nn

from harness.contract import Run, Step
from harness.plugins import load_plugin
from tests import preconditioned_twins as twins
from tests.preconditioned_twins import DTYPE, gauge, implementation, products, projector, random, tangent, truncated

shared = importlib.import_module("tuning_fork_methods._factors")
S = 2.5
RATES = (1e-2, 1e-3, 1e-4)


def same(one, other, tolerance=1e-11):
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def path(walk, U, V, s=S, gradient=None, steps=6, rate=0.05):
    return products(walk(U, V, s, gradient or twins.slope_of(), steps, rate), s)


def orders(error):
    """The exponent of the rate in ``error(rate)``, between neighbouring rates."""
    errors = [float(error(rate)) for rate in RATES]
    return [math.log10(errors[i] / errors[i + 1]) for i in range(len(RATES) - 1)]


def check_order(error, expected):
    found = orders(error)
    assert all(abs(order - expected) < 0.06 for order in found), f"not close to order {expected}: {found}"


# --------------------------------------------------------------------------- every option equals its twin


WALKS = {
    "scaled_gd": (implementation("scaled_gd", damping=0.1, momentum=0.9), twins.scaled_gd(0.1, 0.9)),
    "scaled_gd, no momentum": (implementation("scaled_gd", damping=1e-3, momentum=0.0), twins.scaled_gd(1e-3)),
    "scaled_gd, adamw": (
        implementation("scaled_gd", damping=0.1, update="adamw"),
        twins.scaled_gd(0.1, update="adamw"),
    ),
    "lora_pro": (implementation("lora_pro", damping=0.1, update="sgd"), twins.lora_pro(0.1)),
    "lora_pro, adamw": (implementation("lora_pro", damping=0.1), twins.lora_pro(0.1, "adamw")),
    "lora_pro, adamw_full": (
        implementation("lora_pro", damping=0.1, update="adamw_full"),
        twins.lora_pro(0.1, "adamw_full"),
    ),
    "alt_lora": (implementation("alt_lora", damping=0.1, momentum=0.9), twins.alt_lora(0.1, 0.9)),
    "alt_lora, no momentum": (implementation("alt_lora", damping=1e-3, momentum=0.0), twins.alt_lora(1e-3)),
    "lora_rite": (implementation("lora_rite"), twins.lora_rite()),
}


@pytest.mark.parametrize("name", WALKS)
def test_steps_of_the_factors_equal_those_of_the_twin(name):
    ours, twin = WALKS[name]
    U, V = twins.start()
    pairs = [walk(U, V, S, twins.slope_of(), 6, 0.05) for walk in (ours, twin)]
    for (U1, V1), (U2, V2) in zip(*pairs, strict=True):
        same(U1, U2, 1e-9)
        same(V1, V2, 1e-9)
    assert (products(pairs[0], S)[-1] - S * U @ V.T).abs().max() > 0.1


@pytest.mark.parametrize("name", [name for name in WALKS if name != "lora_rite"])
def test_from_zero_only_b_moves_at_first_and_the_twin_goes_the_same_way(name):
    ours, twin = WALKS[name]
    U, V = twins.start()
    pairs = [walk(0 * U, V, S, twins.slope_of(), 4, 0.05) for walk in (ours, twin)]
    assert torch.equal(pairs[0][0][1], V) and pairs[0][0][0].any()
    same(products(pairs[0], S), products(pairs[1], S), 1e-9)


# --------------------------------------------------------------------------- section 5's relations, one a method


def proximal(U, V, s, G, rate, damping):
    """The V' that minimises ||U V'^T - (X - rate G)||^2 + damping ||V' - V||^2, by least squares. The problem is one of
    sqrt(s) U and sqrt(s) V, whose product is X."""
    U, V = math.sqrt(s) * U, math.sqrt(s) * V
    left = torch.cat((U, math.sqrt(damping) * torch.eye(U.shape[1], dtype=DTYPE)))
    right = torch.cat((U @ V.T - rate * G, math.sqrt(damping) * V.T))
    return torch.linalg.lstsq(left, right, driver="gelsd").solution.T / math.sqrt(s)


def scaled_gd_relations(make):
    """``make(damping)`` gives the walk, without momentum."""
    (U, V), field = twins.start(), twins.slope_of()
    for s in (1.0, S):
        X, G = s * U @ V.T, field(s * U @ V.T, 0)
        for damping in (1e-3, 0.1, 2.0):  # T2: one Jacobi step of the proximal problem
            (U1, V1), *_ = make(damping)(U, V, s, field, 1, 0.3)
            same(V1, proximal(U, V, s, G, 0.3, damping), 1e-12)
            same(U1, proximal(V, U, s, G.T, 0.3, damping), 1e-12)
        same(path(make(0.0), U, V, s), twins.scaled_gd_of_X(X, field, 6, 0.05), 1e-9)

        def moved(rate, s=s):
            return path(make(0.0), U, V, s, steps=1, rate=rate)[0]

        direction = projector(U) @ G + G @ projector(V)
        check_order(lambda rate: (moved(rate) - X + rate * direction).norm(), 2)  # noqa: B023
        check_order(lambda rate: (moved(rate) - truncated(X - rate * G)).norm(), 1)  # noqa: B023


def lora_pro_relations(make):
    (U, V), field = twins.start(), twins.slope_of()
    for s in (1.0, S):
        X, G = s * U @ V.T, field(s * U @ V.T, 0)
        (U1, V1), *_ = make(0.0)(U, V, s, field, 1, 1.0)
        dU, dV = U - U1, V - V1
        fit = s * (dU @ V.T + U @ dV.T)
        same(fit, best_fit(U, V, s, G), 1e-11)
        same(fit, tangent(X, G), 1e-11)
        # Y makes the pair nearest to the raw gradients: no other Y is stationary
        raw_U, raw_V = s * G @ V, s * G.T @ U
        same(U.T @ (dU - raw_U), (dV - raw_V).T @ V, 1e-10)

        def moved(rate, s=s):
            return path(make(0.0), U, V, s, steps=1, rate=rate)[0]

        check_order(lambda rate: (moved(rate) - X + rate * tangent(X, G)).norm(), 2)  # noqa: B023
        check_order(lambda rate: (moved(rate) - truncated(X - rate * G)).norm(), 2)  # noqa: B023


def best_fit(U, V, s, G):
    """The nearest s (dU V^T + U dV^T) to G, by least squares over the entries of dU and dV."""
    m, n, r = len(U), len(V), U.shape[1]
    units = torch.eye((m + n) * r, dtype=DTYPE)
    columns = [s * (e[: m * r].view(m, r) @ V.T + U @ e[m * r :].view(n, r).T) for e in units]
    J = torch.stack([column.flatten() for column in columns], 1)
    return (J @ torch.linalg.lstsq(J, G.flatten()[:, None], driver="gelsd").solution).view(m, n)


def alt_lora_relations(make):
    """``make(damping, momentum)`` gives the walk."""
    (U, V), field = twins.start(), twins.slope_of()
    for s in (1.0, S):
        X = s * U @ V.T
        X1, X2 = path(make(0.0, 0.0), U, V, s, steps=2, rate=0.3)
        G = field(X, 0)
        same(X1, X - 0.3 * G @ projector(V), 1e-12)  # exact, as only U moves
        (U1, V1), (U2, V2) = make(0.0, 0.0)(U, V, s, field, 2, 0.3)
        assert torch.equal(V1, V) and torch.equal(U2, U1)
        same(X2, X1 - 0.3 * projector(U1) @ field(X1, 1), 1e-12)
        for damping in (1e-3, 0.1, 2.0):  # half a step of LoRSum with K = 1, for each gradient
            (U1, V1), (U2, V2) = make(damping, 0.0)(U, V, s, field, 2, 0.3)
            same(U1, proximal(V, U, s, G.T, 0.3, damping), 1e-12)
            same(V2, proximal(U1, V, s, field(s * U1 @ V.T, 1), 0.3, damping), 1e-12)
        for momentum in (0.0, 0.9):
            found = path(make(0.0, momentum), U, V, s, steps=8)
            same(found, twins.alt_lora_of_X(X, field, 8, 0.05, momentum), 1e-9)


def lora_rite_relations(make):
    (U, V), field = twins.start(), twins.slope_of()
    for s in (1.0, S):
        found = path(make(), U, V, s, steps=8)
        same(found, twins.lora_rite_of_X(s * U @ V.T, field, 8, 0.05), 1e-8)


RELATIONS = {
    "scaled_gd": scaled_gd_relations,
    "lora_pro": lora_pro_relations,
    "alt_lora": alt_lora_relations,
    "lora_rite": lora_rite_relations,
}
OURS = {
    "scaled_gd": lambda damping: implementation("scaled_gd", damping=damping, momentum=0.0),
    "lora_pro": lambda damping: implementation("lora_pro", damping=damping, update="sgd"),
    "alt_lora": lambda damping, momentum: implementation("alt_lora", damping=damping, momentum=momentum),
    "lora_rite": lambda: implementation("lora_rite"),
}
COMMON = ("missing inverse", "wrong side", "missing scale")
DEFECTS = [
    *[("scaled_gd", defect) for defect in (*COMMON, "wrong sign")],
    *[("lora_pro", defect) for defect in (*COMMON, "missing projector product", "wrong sign")],
    *[("alt_lora", defect) for defect in (*COMMON, "no transport", "A first")],
    *[("lora_rite", defect) for defect in ("missing scale", "magnified", "not mapped back", "no escaped mass")],
    *[("lora_rite", defect) for defect in ("first moment stays", "second moment stays")],
]


@pytest.mark.parametrize("name", RELATIONS)
def test_it_stands_as_it_should_to_the_gradient_of_the_whole_weight(name):
    RELATIONS[name](OURS[name])


@pytest.mark.parametrize(("name", "defect"), DEFECTS)
def test_a_defect_breaks_the_relation(name, defect):
    makes = {
        "scaled_gd": lambda damping: twins.scaled_gd(damping, defect=defect),
        "lora_pro": lambda damping: twins.lora_pro(damping, defect=defect),
        "alt_lora": lambda damping, momentum: twins.alt_lora(damping, momentum, defect=defect),
        "lora_rite": lambda: twins.lora_rite(defect=defect),
    }
    with pytest.raises(AssertionError, match="not close"):
        RELATIONS[name](makes[name])


# --------------------------------------------------------------------------- other facts of the family


def test_t3_plain_lora_is_of_first_order_and_not_a_projection():
    """Its direction is s^2 (U U^T G + G V V^T)."""
    (U, V), field = twins.start(), twins.slope_of()
    X, G = S * U @ V.T, field(S * U @ V.T, 0)

    def moved(rate):
        return path(twins.lora_sgd, U, V, steps=1, rate=rate)[0]

    check_order(lambda rate: (moved(rate) - X + rate * S**2 * (U @ U.T @ G + G @ V @ V.T)).norm(), 2)
    check_order(lambda rate: (moved(rate) - truncated(X - rate * G)).norm(), 1)


def test_t3_lora_pro_and_one_alternating_step_agree_to_second_order():
    (U, V), field = twins.start(), twins.slope_of()
    G = field(S * U @ V.T, 0)

    def difference(rate):
        U1 = proximal(V, U, S, G.T, rate, 0.0)
        M = S * U @ V.T - rate * G
        V1 = torch.linalg.lstsq(S * U1, M, driver="gelsd").solution.T
        return (path(OURS["lora_pro"](0.0), U, V, steps=1, rate=rate)[0] - S * U1 @ V1.T).norm()

    check_order(difference, 2)


def test_lora_pro_moves_the_product_alike_for_every_y():
    (U, V), G = twins.start(), random(12, 9, seed=5)
    products_of = []
    for Y in (torch.zeros(3, 3, dtype=DTYPE), random(3, 3, seed=8), None):
        dU, dV = twins.corrected(U, V, S, G, 0.1, Y=Y)
        products_of.append(S * (dU @ V.T + U @ dV.T))
    pro = importlib.import_module("tuning_fork_methods.lora_pro")
    layer = twins.layer_of(U, V, S)
    layer.B.grad, layer.A.grad = S * G @ V, (S * G.T @ U).T
    with torch.no_grad():
        ((dU, dV),) = pro._directions(shared.stacks([layer]), 0.1)
    products_of.append(S * (dU[0] @ V.T + U @ dV[0].T))
    for product in products_of[1:]:
        same(product, products_of[0], 1e-14)


def test_the_sylvester_equation_is_solved():
    pro = importlib.import_module("tuning_fork_methods.lora_pro")
    layers = [twins.layer_of(*twins.start(m, n, seed=seed), S) for m, n, seed in ((12, 9, 0), (5, 7, 2), (5, 7, 4))]
    with torch.no_grad():
        alike = shared.stacks(layers)
        for stack, (K, L) in zip(alike, pro._grams(alike, 0.1), strict=True):
            right = random(len(stack.U.parameters), 3, 3, seed=6)
            Y = pro._sylvester(K, L, right)
            damped = [gram + 0.1 * torch.eye(3, dtype=DTYPE) for gram in stack.grams()]
            same(damped[0] @ Y + Y @ damped[1], right, 1e-12)
            same(K.inverse(), torch.linalg.inv(damped[0]), 1e-12)


# --------------------------------------------------------------------------- who sees the product alone


def broken(walk, R=None, s=S, **options):
    """How far the product's path changes, by (U R, V R^-T) or by another share of s."""
    U, V = twins.start()
    here = path(walk, U, V, S, **options)
    if R is not None:
        return float((path(walk, U @ R, V @ torch.linalg.inv(R).T, S, **options) - here).abs().max())
    share = math.sqrt(S / s)
    return float((path(walk, share * U, share * V, s, **options) - here).abs().max())


INVARIANT = {
    "scaled_gd": implementation("scaled_gd", damping=0.0, momentum=0.9),
    "alt_lora": implementation("alt_lora", damping=0.0, momentum=0.9),
    "lora_rite": implementation("lora_rite"),
}
NOT_INVARIANT = {
    "scaled_gd, damping": implementation("scaled_gd", damping=0.1, momentum=0.9),
    "scaled_gd, adamw": implementation("scaled_gd", damping=0.0, update="adamw"),
    "alt_lora, damping": implementation("alt_lora", damping=0.1, momentum=0.9),
    "lora_pro, adamw": implementation("lora_pro", damping=0.0),
    "LoRA by SGD": twins.lora_sgd,
}


@pytest.mark.parametrize("name", INVARIANT)
def test_t6_the_same_product_whatever_the_factors(name):
    assert broken(INVARIANT[name], gauge()) < 1e-9
    assert broken(INVARIANT[name], 3.0 * torch.eye(3, dtype=DTYPE)) < 1e-9


@pytest.mark.parametrize("name", NOT_INVARIANT)
def test_t6_damping_and_adam_after_the_preconditioner_break_that(name):
    assert broken(NOT_INVARIANT[name], gauge()) > 1e-5


def test_adam_breaks_it_far_more_than_damping_does():
    damped, adam = (broken(NOT_INVARIANT[f"scaled_gd, {what}"], gauge(), rate=0.02) for what in ("damping", "adamw"))
    assert adam > 10 * damped


@pytest.mark.parametrize("update", ["sgd", "adamw_full"])
def test_lora_pro_sees_the_product_alone_to_second_order(update):
    walk = implementation("lora_pro", damping=0.0, update=update)
    check_order(lambda rate: broken(walk, gauge(), steps=1, rate=rate), 2)
    assert broken(walk, torch.linalg.qr(gauge())[0]) < 1e-9  # Y turns with the factors


def test_balanced_factors_make_the_damped_step_one_of_the_product():
    """T6: factors from the product's singular values, of which U^T U = V^T V."""
    field, steps = twins.slope_of(), []
    for R in (torch.eye(3, dtype=DTYPE), gauge()):
        U, V = twins.start()
        U, V = U @ R, V @ torch.linalg.inv(R).T
        (Q, K), (P, L) = torch.linalg.qr(U), torch.linalg.qr(V)
        left, values, right = torch.linalg.svd(K @ L.T)
        U, V = Q @ left * values.sqrt(), P @ right.T * values.sqrt()
        same(U.T @ U, V.T @ V)
        steps.append(path(implementation("scaled_gd", damping=0.1), U, V, gradient=field, steps=1)[0])
    same(*steps)


def test_a_rotation_of_the_factors_between_steps_leaves_lora_rite_on_its_path():
    """Its moments go with the bases, not with the factors; ScaledGD's momentum does not."""

    def walk(name, turn_at):
        (U, V), field, found = twins.start(), twins.slope_of(), []
        layer, R = twins.layer_of(U, V, S), gauge()
        fields = {"damping": 0.0, "momentum": 0.9} if name == "scaled_gd" else {}
        method, optimizer = twins.optimizer_of(name, [layer], 0.05, **fields)
        for t in range(6):
            if t == turn_at:
                layer.B.data, layer.A.data = layer.B.data @ R, torch.linalg.inv(R) @ layer.A.data
            twins.take_step(method, optimizer, [layer], [field], t)
            found.append(layer.update().detach())
        return torch.stack(found)

    same(walk("lora_rite", 3), walk("lora_rite", None), 1e-9)
    assert (walk("scaled_gd", 3) - walk("scaled_gd", None)).abs().max() > 1e-3


SHARES = {**INVARIANT, "scaled_gd, damping": NOT_INVARIANT["scaled_gd, damping"]}
SHARES |= {"alt_lora, damping": NOT_INVARIANT["alt_lora, damping"]}
SHARES |= {f"lora_pro, {kind}": implementation("lora_pro", damping=0.1, update=kind) for kind in ("sgd", "adamw_full")}


@pytest.mark.parametrize("name", SHARES)
def test_it_does_not_matter_how_the_product_is_shared_out_between_s_and_the_factors(name):
    assert broken(SHARES[name], s=0.7) < 1e-9


def test_that_matters_to_plain_lora_and_under_adam():
    assert broken(twins.lora_sgd, s=0.7) > 1e-3
    assert broken(NOT_INVARIANT["scaled_gd, adamw"], s=0.7) > 1e-3


@pytest.mark.parametrize("name", INVARIANT)
def test_alpha_is_without_effect_on_the_invariant_ones_from_loras_start(name):
    """The same A and B = 0: with another s the product is the same at every step."""
    U, V = twins.start()
    found = [path(INVARIANT[name], 0 * U, V, s) for s in (0.5, 4.0)]
    same(*found, 1e-9)
    assert found[0][-1].abs().max() > 0.05


# --------------------------------------------------------------------------- starts, batches, failures


def test_lora_rite_starts_at_zero_as_the_limit_of_small_factors():
    U, V = twins.start()
    walk = INVARIANT["lora_rite"]
    zero, field = walk(0 * U, V, S, twins.slope_of(), 4, 0.05), twins.slope_of()
    assert torch.equal(zero[0][1], V) and torch.linalg.matrix_rank(zero[0][0]) == 3
    G = field(torch.zeros(12, 9, dtype=DTYPE), 0)
    Q = torch.linalg.qr(V)[0]
    left, _, right = torch.linalg.svd(G @ Q, full_matrices=False)  # whitened: g (g^T g / m)^-1/2
    same(S * zero[0][0] @ V.T, -0.05 * math.sqrt(12) * left @ right @ Q.T, 1e-4)  # epsilon is 1e-6


def test_lora_rite_gives_directions_that_a_factor_lacks_no_step():
    (U, V), field = twins.start(), twins.slope_of()
    U[:, 2] = U[:, 0] - 2 * U[:, 1]
    pairs = INVARIANT["lora_rite"](U, V, S, field, 3, 0.05)
    missing = torch.tensor([1.0, -2.0, -1.0], dtype=DTYPE)  # U times this is zero
    same((pairs[0][1] - V) @ missing, torch.zeros(9, dtype=DTYPE), 1e-9)
    assert all(torch.isfinite(F).all() for pair in pairs for F in pair) and torch.linalg.matrix_rank(pairs[0][0]) == 3
    R = gauge()  # which step of the lacking factor is the smallest depends on the factors, to second order in X

    def difference(rate):
        turned = INVARIANT["lora_rite"](U @ R, V @ torch.linalg.inv(R).T, S, field, 1, rate)
        return (products(turned, S) - path(INVARIANT["lora_rite"], U, V, steps=1, rate=rate)).norm()

    check_order(difference, 2)


EVERY = {
    "scaled_gd, sgd": ("scaled_gd", {}),
    "scaled_gd, adamw": ("scaled_gd", {"update": "adamw"}),
    "lora_pro, sgd": ("lora_pro", {"update": "sgd"}),
    "lora_pro, adamw": ("lora_pro", {}),
    "lora_pro, adamw_full": ("lora_pro", {"update": "adamw_full"}),
    "alt_lora": ("alt_lora", {}),
    "lora_rite": ("lora_rite", {}),
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_layers_move_in_batches_as_each_would_alone(name, decay):
    method_name, fields = EVERY[name]
    shapes = [(12, 9), (5, 7), (12, 9), (9, 12), (5, 7)]
    fields = {**fields, "weight_decay": decay}

    def trained(chosen):
        layers = [twins.layer_of(*twins.start(*shapes[i], seed=10 * i), S) for i in chosen]
        fields_of = [twins.slope_of(*shapes[i], noise=0.1 * i) for i in chosen]
        method, optimizer = twins.optimizer_of(method_name, layers, 0.02, **fields)
        for t in range(4):
            twins.take_step(method, optimizer, layers, fields_of, t)
        return layers

    together = trained(range(5))
    for i, layer in enumerate(together):
        (alone,) = trained([i])
        same(layer.B, alone.B, 1e-11)
        same(layer.A, alone.A, 1e-11)


@pytest.mark.parametrize("name", EVERY)
def test_weight_decay_shrinks_both_factors(name):
    method_name, fields = EVERY[name]
    U, V = twins.start()
    layer = twins.layer_of(U, V, S)
    method, optimizer = twins.optimizer_of(method_name, [layer], 0.1, weight_decay=0.5, **fields)
    for t in range(2):
        twins.take_step(method, optimizer, [layer], [lambda X, t: 0 * X], t)
    times = 1 if name == "alt_lora" else 2  # each factor in its turn
    momentum = 0.9 * 0.05 if name == "scaled_gd, sgd" else 0  # torch's: through the momentum
    same(layer.B, U * (0.95**times - momentum), 1e-12)
    same(layer.A, V.T * (0.95**times - momentum), 1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_a_gradient_that_is_no_number_stops_nothing_and_shows(name):
    method_name, fields = EVERY[name]
    layers = [twins.layer_of(*twins.start(seed=seed), S) for seed in (0, 2)]
    method, optimizer = twins.optimizer_of(method_name, layers, 0.01, **fields)
    for t in range(3):
        wrong = [lambda X, t: X * math.nan, twins.slope_of()]
        twins.take_step(method, optimizer, layers, wrong, t)
    assert layers[0].update().isnan().any() and layers[1].update().isfinite().all()


@pytest.mark.parametrize("name", EVERY)
def test_a_layer_without_a_gradient_stays_and_the_others_move(name):
    method_name, fields = EVERY[name]
    layers = [twins.layer_of(*twins.start(seed=seed), S) for seed in (0, 2)]
    before = [layer.update().detach() for layer in layers]
    method, optimizer = twins.optimizer_of(method_name, layers, 0.01, **fields)
    twins.take_step(method, optimizer, layers[1:], [twins.slope_of()], 0)
    same(layers[0].update(), before[0], 1e-15)
    assert (layers[1].update() - before[1]).abs().max() > 1e-4


SIZES = {  # numbers of state a matrix (12, 9) of rank 3
    "scaled_gd, sgd": 3 * 21,
    "scaled_gd, adamw": 2 * 3 * 21 + 2,  # and two counts
    "lora_pro, sgd": 0,
    "lora_pro, adamw": 2 * 3 * 21 + 2,
    "lora_pro, adamw_full": 2 * 12 * 9,
    "alt_lora": 3 * 21 + 3 * 3,
    "lora_rite": 2 * 3 * 21 + 2 * 3 * 3 + 2,
}


@pytest.mark.parametrize("name", EVERY)
def test_state_has_the_size_that_the_docstring_says_and_restores_safely(name, tmp_path):
    method_name, fields = EVERY[name]
    layers = [twins.layer_of(*twins.start(seed=seed), S) for seed in (0, 2)]
    method, optimizer = twins.optimizer_of(method_name, layers, 0.01, **fields)
    for t in range(3):
        twins.take_step(method, optimizer, layers, [twins.slope_of()] * 2, t)
    kept = [v for own in optimizer.state.values() for v in own.values() if isinstance(v, torch.Tensor)]
    assert sum(v.numel() for v in kept) == 2 * SIZES[name]
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    copies = [twins.layer_of(layer.B.detach(), layer.A.detach().T, S) for layer in layers]
    again, restored = twins.optimizer_of(method_name, copies, 0.01, **fields)
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for t in range(3, 6):
        twins.take_step(method, optimizer, layers, [twins.slope_of()] * 2, t)
        twins.take_step(again, restored, copies, [twins.slope_of()] * 2, t)
    for one, other in zip(layers, copies, strict=True):
        assert torch.equal(one.B, other.B) and torch.equal(one.A, other.A)


def test_inverses_that_fail_get_more_damping_and_change_no_other():
    good, zero = random(2, 6, 3), torch.zeros(1, 6, 3, dtype=DTYPE)
    lacking = random(1, 6, 3, seed=5)
    lacking[..., 2] = lacking[..., 0] - lacking[..., 1]
    grams = [F.mT @ F for F in (good, torch.cat((zero, lacking)))]
    grams[1][1] -= 1e-14 * torch.eye(3, dtype=DTYPE)  # as rounding may leave it
    first, second = shared.damped_inverses(grams, 0.0)
    same(first, torch.linalg.inv(grams[0]), 1e-10)
    assert torch.equal(first, shared.damped_inverses(grams[:1], 0.0)[0])
    assert torch.equal(second[0], torch.eye(3, dtype=DTYPE))
    assert second.isfinite().all() and (second[1].diagonal() > 0).all()
    for damping in (1e-12, 1e-2):
        inverses = torch.cat(shared.damped_inverses(grams[:1], damping))
        same(inverses, torch.linalg.inv(grams[0] + damping * torch.eye(3, dtype=DTYPE)), 1e-10)


# --------------------------------------------------------------------------- as methods


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.o = nn.Linear(9, 12), nn.Linear(12, 9, bias=False)
        self.to(DTYPE).requires_grad_(False)

    def forward(self, x):
        return self.o(torch.tanh(self.q(x)))


def attached(name, **fields):
    net, method = Net(), load_plugin("methods", name, rank=3, **fields)
    method.attach(net, Run(10, DTYPE, lambda model, _: [(role, getattr(model, role)) for role in ("q", "o")]))
    return net, method


@pytest.mark.parametrize("name", EVERY)
def test_it_trains_and_merges_loras_layers(name):
    method_name, fields = EVERY[name]
    net, method = attached(method_name, alpha=6.0, learning_rate=0.02, **fields)
    plain, _ = attached("lora", alpha=6.0)
    assert torch.equal(net.q.A, plain.q.A) and net.q.scale == 2.0
    optimizer, x = method.optimizer(net), random(20, 9)
    losses = []
    for t in range(12):
        loss = (net(x) - x.roll(1, 1)).square().mean()
        loss.backward()
        method.after_backward(net, Step(t, 12, 0.0))
        method.clip(net, math.inf)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    before = net(x)
    method.merge(net)
    assert type(net.q) is nn.Linear
    same(net(x), before, 1e-12)


def test_alt_lora_measures_and_clips_the_moving_factor_alone():
    net, method = attached("alt_lora", learning_rate=0.02)
    optimizer, x = method.optimizer(net), random(20, 9)
    for t in range(4):
        (net(x) - x).square().mean().backward()
        moving = [layer.A if t % 2 else layer.B for layer in (net.q, net.o)]
        norm = torch.stack([p.grad.norm() for p in moving]).norm()
        method.after_backward(net, Step(t, 4, 0.0))
        same(method.clip(net, 1e-3), norm)
        assert all((layer.B if t % 2 else layer.A).grad is None for layer in (net.q, net.o))
        same(torch.stack([p.grad.norm() for p in moving]).norm(), torch.tensor(1e-3, dtype=DTYPE), 1e-2)
        optimizer.step()
        optimizer.zero_grad()


def test_a_step_is_a_few_batched_operations_however_many_layers(monkeypatch):
    calls = []
    for function in ("cholesky_ex", "qr", "eigh", "eigvalsh", "svd"):
        real = getattr(torch.linalg, function)
        monkeypatch.setattr(
            torch.linalg, function, lambda *a, f=function, real=real, **k: calls.append(f) or real(*a, **k)
        )
    counts = []
    for copies in (1, 4):
        calls.clear()
        for method_name, fields in EVERY.values():
            layers = [twins.layer_of(*twins.start(seed=seed), S) for seed in range(copies)]
            method, optimizer = twins.optimizer_of(method_name, layers, 0.01, **fields)
            twins.take_step(method, optimizer, layers, [twins.slope_of()] * copies, 0)
        counts.append(list(calls))
    assert counts[0] == counts[1] and counts[0].count("cholesky_ex") == 3 * 2


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("scaled_gd", {"damping": 0.0}, "ScaledGD: damping=0 must be positive: B starts at zero"),
        ("lora_pro", {"damping": -1.0}, "LoRA-Pro: damping=-1 must be positive"),
        ("alt_lora", {"damping": 0.0}, "AltLoRA: damping=0 must be positive"),
        ("scaled_gd", {"update": "adam"}, "ScaledGD: update is sgd or adamw, not 'adam'"),
        ("lora_pro", {"update": "adam"}, "LoRA-Pro: update is adamw or adamw_full or sgd, not 'adam'"),
        ("lora_rite", {"rank": 10}, r"^q: LoRA-RITE needs bases of rank=10 vectors in \(12, 9\)"),
    ],
)
def test_what_it_refuses(name, fields, message):
    method = load_plugin("methods", name, **fields)
    with pytest.raises(ValueError, match=message):
        method.attach(Net(), Run(10, DTYPE, lambda model, _: [("q", model.q)]))
