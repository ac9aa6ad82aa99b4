"""LoRSum against a slow twin with dense gradients, momentum and metrics; what the released code did otherwise. In float64."""

from __future__ import annotations

import dataclasses
import importlib
import math

import pytest
import torch

from harness.contract import Run, Step
from harness.plugins import load_plugin
from tests.dense_als import BATCH, ROLES, Net, als, gradients, loss, power, same

load_plugin("methods", "lorsum")  # registers the package that plug-ins and their shared parts are loaded under
lorsum, algebra, captured = (
    importlib.import_module(f"tuning_fork_methods.{name}") for name in ("lorsum", "_lorsum", "_captured")
)
RANK = 3
PLAIN = {"metric": "none", "momentum": "none"}
RATE = 0.3


def built(**fields):
    net, method = (
        Net(),
        load_plugin("methods", "lorsum", **{"rank": RANK, "alpha": 1.5, "learning_rate": RATE, **fields}),
    )
    torch.manual_seed(1)
    method.attach(net, Run(20, torch.float64, lambda model, _: [(role, getattr(model, role)) for role in ROLES]))
    with torch.no_grad():
        for role in ROLES:  # a start where both factors act, and none is balanced
            getattr(net, role).B.normal_(std=0.2)
    torch.manual_seed(2)
    return net, method, method.optimizer(net)


def one_step(net, method, optimizer, index=0, split=1, max_norm=math.inf, rate=None):
    if rate is not None:
        optimizer.param_groups[0]["lr"] = rate
    step = Step(index, 20, optimizer.param_groups[0]["lr"], micro_batches=split)
    method.before_step(net, step)
    for batch in BATCH.roll(index, 0).chunk(split):
        loss(net, batch).backward()
    method.after_backward(net, step)
    norm = method.clip(net, max_norm)
    optimizer.step()
    optimizer.zero_grad()
    return norm


def factors(net):
    return {role: (getattr(net, role).B.detach().clone(), getattr(net, role).A.detach().T.clone()) for role in ROLES}


def state(optimizer, net, key):
    """{role: (U's side, V's side)} of what the optimizer keeps stacked by shape."""
    found = {}
    for stack in optimizer.stacks:
        sides = [optimizer.state[p][key].clone() for p in (stack.layers[0].B, stack.layers[0].A)]
        for number, layer in enumerate(stack.layers):
            role = next(role for role in ROLES if getattr(net, role) is layer)
            found[role] = tuple(side[number] for side in sides)
    return found


class Twin:
    """The method's formulas, one matrix at a time."""

    def __init__(self, net, method, optimizer):
        self.UV, self.method, self.scale = factors(net), method, method.alpha / method.rank
        self.base = {role: getattr(net, role).base.weight.clone() for role in ROLES}
        self.M = state(optimizer, net, "momentum") if method.momentum != "none" else {}
        self.D = state(optimizer, net, "metric") if method.metric != "none" else {}

    def weights(self):
        return {role: W + self.scale * self.UV[role][0] @ self.UV[role][1].T for role, W in self.base.items()}

    def step(self, index=0, max_norm=math.inf, rate=RATE):
        o, s = self.method, self.scale
        found = gradients(self.weights(), [BATCH.roll(index, 0)])
        squares = [(s * part).square().sum() for role in ROLES for part in self._factor_gradients(role, found[role][0])]
        norm = torch.stack(squares).sum().sqrt()
        clipped = min(1.0, max_norm / (float(norm) + 1e-6))
        for role, (G, S, X) in found.items():
            self._one(role, clipped * G, clipped * S, X, rate, o, s)
        return norm

    def _factor_gradients(self, role, G):
        U, V = self.UV[role]
        return G @ V, G.T @ U

    def _one(self, role, G, S, X, rate, o, s):
        b = o.momentum_decay
        taken = 1 - b if o.momentum == "ema" else 1.0
        direction = taken * G
        if o.momentum != "none":
            U, V = self.M[role]
            direction = direction + b * U @ V.T
            M = b * U @ V.T + taken * G
            self.M[role] = als(M, U, V, o.momentum_damping, o.pairs, o.first, o.anchor == "moving", relative=True)
        P, Q, Pi, Qi = (torch.eye(d, dtype=G.dtype) for d in (len(G), G.shape[1]) * 2)
        rho = rate * o.damping
        if o.metric != "none":
            self._renew(role, G, S, X, o)
            P, Q, Pi, Qi = (power(D, o.metric_damping, sign * o.power) for sign in (1, -1) for D in self.D[role])
            rho = max(rho, 1e-5)
        U, V = self.UV[role]
        M = (1 - rate * o.weight_decay) * U @ V.T - rate / s * Pi @ direction @ Qi
        self.UV[role] = als(M, U, V, rho / s, o.pairs, o.first, o.anchor == "moving", P, Q)

    def _renew(self, role, G, S, X, o):
        rows = len(X)
        new = (rows * S.T @ S, X.T @ X / rows) if o.metric == "kfac" else (rows * G @ G.T, rows * G.T @ G)
        new = [one if D.ndim == 2 else one.diagonal() for one, D in zip(new, self.D[role], strict=True)]
        b2 = o.metric_decay
        self.D[role] = tuple(b2 * D + (1 - b2) * one for D, one in zip(self.D[role], new, strict=True))


def off_the_twin(steps=3, split=1, max_norm=math.inf, tamper=lambda twin: None, **fields):
    """Largest difference of a weight after some steps at changing rates, relative to how far it came."""
    net, method, optimizer = built(**fields)
    twin = Twin(net, method, optimizer)
    tamper(twin)
    start, worst = twin.weights(), 0.0
    for index in range(steps):
        rate = RATE * (1 - index / 10)
        norm = one_step(net, method, optimizer, index, split, max_norm, rate)
        worst = max(worst, abs(float(norm / twin.step(index, max_norm, rate)) - 1))
    for role, expected in twin.weights().items():
        found = twin.base[role] + getattr(net, role).update().detach()
        worst = max(worst, float((found - expected).norm() / (expected - start[role]).norm()))
    return worst


SCALED = {"metric": "kfac", "metric_decay": 0.5}
VARIANTS = [
    PLAIN,
    {**PLAIN, "pairs": 0},
    {**PLAIN, "pairs": 2, "first": "V"},
    {**PLAIN, "pairs": 3, "anchor": "moving", "damping": 1.0, "weight_decay": 0.1},
    {**PLAIN, "momentum": "heavy_ball", "momentum_decay": 0.75},
    {**PLAIN, "momentum": "ema", "momentum_rank": 5},
    {**PLAIN, "momentum": "ema", "pairs": 2, "anchor": "moving", "first": "V"},
    {},
    {**SCALED, "power": 1.0, "momentum": "none", "damping": 0.0},
    {**SCALED, "full_metric_up_to": 12, "pairs": 2},
    {**SCALED, "full_metric_up_to": 99, "power": 0.7},
    {**SCALED, "metric": "shampoo"},
    {**SCALED, "metric": "shampoo", "full_metric_up_to": 12, "first": "V"},
]


@pytest.mark.parametrize("fields", VARIANTS, ids=lambda fields: "-".join(map(str, fields.values())) or "default")
def test_equals_the_twin(fields):
    assert off_the_twin(**fields) < 1e-9


@pytest.mark.parametrize("gradient", ["factored", "dense"])
@pytest.mark.parametrize("split", [1, 2, 4])
@pytest.mark.parametrize("metric", ["none", "kfac", "shampoo"])
def test_pairs_and_dense_gradients_agree_over_micro_batches(gradient, split, metric):
    how = {"gradient": gradient, "split": split, "full_metric_up_to": 12, "metric_decay": 0.5, "metric": metric}
    assert off_the_twin(max_norm=0.05, **how) < 1e-9


def test_a_mixture_of_pairs_and_dense_agrees():
    """Past the cap, pairs go into dense gradients: some layers have the one, some the other, some both."""
    net, method, optimizer = built(capture_gigabytes=8e-6, gradient="factored")
    step = Step(0, 20, RATE, micro_batches=4)
    method.before_step(net, step)
    for batch in BATCH.chunk(4):
        loss(net, batch).backward()
    forms = {(bool(layer.gradient.pairs), layer.gradient.dense is not None) for layer in (net.q, net.k, net.o)}
    assert (True, True) in forms
    assert off_the_twin(capture_gigabytes=8e-6, gradient="factored", split=4) < 1e-9


def scaled_wrongly(twin):
    """D4 as released: alpha / r is not seen, S is taken as it is and so is the damping."""
    one = twin._one
    twin._one = lambda role, G, S, X, rate, o, s: one(role, s * G, s * S, X, rate, o, 1.0)


MUTANTS = {
    "rho not times the rate": lambda twin: spoil(twin, damping=twin.method.damping / RATE * 5),
    "another momentum": lambda twin: spoil(twin, momentum_decay=0.8),
    "heavy ball for ema": lambda twin: spoil(twin, momentum="heavy_ball"),
    "the new momentum used": lambda twin: wrap_one(twin, use_new_momentum),
    "metric renewed after its use": lambda twin: setattr(twin, "_renew", lambda *a: None),
    "metric without the damping": lambda twin: spoil(twin, metric_damping=1e-1),
    "another power": lambda twin: spoil(twin, power=1.0),
    "V for U": lambda twin: spoil(twin, first="V"),
    "scale unseen": scaled_wrongly,
    "rows on the wrong side": lambda twin: setattr(twin, "_renew", lambda *given: swap_rows(twin, *given)),
}


def spoil(twin, **fields):
    twin.method = dataclasses.replace(twin.method, **fields)


def wrap_one(twin, wrapper):
    one = twin._one
    twin._one = lambda *given: wrapper(twin, one, *given)


def use_new_momentum(twin, one, role, G, S, X, rate, o, s):
    U, V = twin.M[role]
    new = als(0.9 * U @ V.T + 0.1 * G, U, V, o.momentum_damping, o.pairs, relative=True)
    twin.M[role] = new
    one(role, G, S, X, rate, o, s)


def swap_rows(twin, role, G, S, X, o):
    new, b2 = ((S.T @ S / len(X)).diagonal(), (len(X) * X.T @ X).diagonal()), o.metric_decay
    twin.D[role] = tuple(b2 * D + (1 - b2) * one for D, one in zip(twin.D[role], new, strict=True))


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_twin_sees(mutant):
    assert off_the_twin(tamper=MUTANTS[mutant], metric_decay=0.5, damping=0.1) > 1e-4


def without_the_last(rows, right=captured.Gradient.add):
    def add(self, S, X):
        right(self, S[:-1], X[:-1])

    return add


CODE = {
    "a row lost": (captured.Gradient, "add", without_the_last(1)),
    "the last micro-batch alone": (
        captured.Gradient,
        "times",
        lambda self, V: self.pairs[-1][0].T @ (self.pairs[-1][1] @ V),
    ),
    "not clipped": (lorsum._Stack, "_clipped", lambda self, products: self._summed(products)),
    "rows unseen": (captured.Gradient, "rows_seen", lambda self, like: like.new_ones(())),
    "dB without s": (
        lorsum._Stack,
        "autograd",
        lambda self, name: torch.stack([2 * getattr(one, name).grad for one in self.layers]),
    ),
}


@pytest.mark.parametrize("mutant", CODE)
def test_wrong_code_is_caught(mutant, monkeypatch):
    where, name, wrong = CODE[mutant]
    monkeypatch.setattr(where, name, wrong)
    assert off_the_twin(split=2, max_norm=0.05, gradient="factored", metric_decay=0.5) > 1e-4


# --------------------------------------------------------------------------- what is captured


def test_what_is_kept_is_the_gradient_and_no_copy():
    net, method, _ = built(gradient="factored")
    seen = []
    net.q.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    net.o.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    method.before_step(net, Step(0, 20, RATE))
    loss(net).backward()
    expected = gradients(
        {role: layer.base.weight + layer.update().detach() for role in ROLES for layer in [getattr(net, role)]}
    )
    for role in ROLES:
        G, S, X = expected[role]
        ((kept_S, kept_X),) = getattr(net, role).gradient.pairs
        same(kept_S, S)
        same(kept_X, X)
        assert not kept_X.requires_grad and kept_X.grad_fn is None  # or the graph would live on
        same(getattr(net, role).gradient.times(torch.eye(G.shape[1], dtype=G.dtype)), G)
        same(getattr(net, role).gradient.transposed_times(torch.eye(len(G), dtype=G.dtype)), G.T)
    addresses = [getattr(net, role).gradient.pairs[0][1].data_ptr() for role in ROLES]
    assert addresses == [seen[0].data_ptr(), seen[0].data_ptr(), seen[1].data_ptr()]
    method.before_step(net, Step(1, 20, RATE))
    assert not any(getattr(net, role).gradient.pairs for role in ROLES)


def test_a_shared_input_counts_once_under_the_cap():
    net, method, _ = built(gradient="factored")
    method.before_step(net, Step(0, 20, RATE))
    loss(net).backward()
    rows = len(BATCH)
    assert method._capture.held == 8 * rows * (12 + 16 + 16 + 16 + 10)


def test_rows_without_a_gradient_are_no_rows():
    """Padding: K-FAC's sums are those of the batch without it."""
    outcomes = []
    for padded in (False, True):
        net, method, optimizer = built(metric_decay=0.5)
        method.before_step(net, Step(0, 20, RATE))
        extra = 7 * padded
        batch = torch.cat([BATCH, 5 * torch.ones(extra, 12, dtype=torch.float64)])
        weight = torch.cat([torch.ones(len(BATCH)), torch.zeros(extra)]).double()
        ((net(batch) - batch[:, :10].sin()).square().sum(1) @ weight / len(BATCH)).backward()
        optimizer.step()
        outcomes.append([p.detach().clone() for p in net.parameters() if p.requires_grad])
    for one, other in zip(*outcomes, strict=True):
        same(one, other)


def test_pairs_win_on_smollm2_and_lose_where_a_side_is_narrow():
    """The rule of the docstring: 512 tokens, rank 16, one pair, with momentum and without."""
    shapes = [(576, 576), (192, 576), (1536, 576), (576, 1536)]
    for fields in (PLAIN, {}, {"metric": "none"}):
        method = load_plugin("methods", "lorsum", **fields)
        assert all(method._keeps(512, *shape) for shape in shapes)
    assert not load_plugin("methods", "lorsum", pairs=8)._keeps(512, 192, 576)
    assert not load_plugin("methods", "lorsum")._keeps(2048, 64, 576)
    assert not load_plugin("methods", "lorsum", metric="shampoo")._keeps(2048, 576, 576)
    assert load_plugin("methods", "lorsum", gradient="factored", pairs=8)._keeps(512, 192, 576)
    assert not load_plugin("methods", "lorsum", gradient="dense")._keeps(1, 576, 576)


def test_one_pair_asks_for_one_product_more(monkeypatch):
    asked = []
    for name in ("times", "transposed_times"):
        right = getattr(captured.Gradient, name)
        monkeypatch.setattr(
            captured.Gradient, name, lambda self, Y, n=name, right=right: asked.append(n) or right(self, Y)
        )
    net, method, optimizer = built(**PLAIN)
    one_step(net, method, optimizer)
    assert asked == ["transposed_times"] * len(ROLES)


# --------------------------------------------------------------------------- limits


def test_many_pairs_are_svdlora_whatever_alpha_is():
    """Without damping, or with a moving anchor; with a fixed one they are not."""

    def after(name, steps=3, **fields):
        net = Net()
        method = load_plugin("methods", name, rank=RANK, learning_rate=RATE, **fields)
        torch.manual_seed(1)
        method.attach(net, Run(20, torch.float64, lambda model, _: [(role, getattr(model, role)) for role in ROLES]))
        optimizer, found = method.optimizer(net), []
        for index in range(steps):
            one_step(net, method, optimizer, index)
            found.append(torch.cat([getattr(net, role).update().detach().flatten() for role in ROLES]))
        return torch.stack(found)

    exact = after("svdlora", direction="sgd")
    for alpha in (1.5, 3.0, 12.0):
        undamped = after("lorsum", pairs=60, damping=0.0, alpha=alpha, **PLAIN)
        moving = after("lorsum", pairs=300, damping=0.03, anchor="moving", alpha=alpha, **PLAIN)
        assert (undamped - exact).norm() < 1e-8 * exact.norm()
        assert (moving - exact).norm() < 1e-6 * exact.norm()
    fixed = after("lorsum", pairs=150, damping=0.03, **PLAIN)
    assert (fixed - exact).norm() > 1e-3 * exact.norm()


@pytest.mark.parametrize("metric", ["none", "kfac"])
def test_a_zero_gradient_leaves_the_weights(metric):
    net, method, optimizer = built(momentum="none", metric=metric, pairs=2)
    before = factors(net)
    method.before_step(net, Step(0, 20, RATE))
    (0 * net(BATCH)).sum().backward()
    method.after_backward(net, Step(0, 20, RATE))
    method.clip(net, 1.0)
    optimizer.step()
    for role, (U, V) in factors(net).items():
        same(U @ V.T, before[role][0] @ before[role][1].T)


def test_a_rank_of_one_in_the_gradient_is_no_trouble():
    net, method, optimizer = built(**PLAIN, damping=0.0, learning_rate=1e-3)
    before = loss(net, BATCH[:1], 1)
    for _ in range(3):
        method.before_step(net, Step(0, 20, RATE))
        loss(net, BATCH[:1], 1).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(p.isfinite().all() for p in net.parameters())
    assert loss(net, BATCH[:1], 1) < before


def test_resumes_to_the_bit(tmp_path):
    net, method, optimizer = built(full_metric_up_to=12)
    for index in range(3):
        one_step(net, method, optimizer, index)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    other, again, restored = built(full_metric_up_to=12)
    other.load_state_dict(net.state_dict())
    torch.manual_seed(9)
    restored = again.optimizer(other)
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for index in range(3, 6):
        one_step(net, method, optimizer, index)
        one_step(other, again, restored, index)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_state_has_the_size_it_says():
    net, _, optimizer = built(momentum_rank=5, full_metric_up_to=12)
    assert {key for held in optimizer.state.values() for key in held} == {"momentum", "metric"}
    held = {key: state(optimizer, net, key)["o"] for key in ("momentum", "metric")}
    assert [tuple(t.shape) for t in held["momentum"]] == [(10, 5), (16, 5)]
    assert [tuple(t.shape) for t in held["metric"]] == [(10, 10), (16,)]
    assert not held["momentum"][0].any() and held["momentum"][1].any()  # U_m = 0, V_m random
    same(held["metric"][0], torch.eye(10, dtype=torch.float64))
    same(held["metric"][1], torch.ones(16, dtype=torch.float64))
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(p) for p in net.parameters() if p.requires_grad
    }


def test_merged_it_answers_the_same():
    net, method, optimizer = built()
    one_step(net, method, optimizer)
    expected = net(BATCH).detach()
    method.merge(net)
    same(net(BATCH), expected)
    assert type(net.q) is torch.nn.Linear


# --------------------------------------------------------------------------- as described against as released (D1 to D4)


def test_released_without_a_metric_nothing_moves_and_here_it_is_refused():
    def released(U, V, G, rate, rho):
        """The branch for no pairs: results are computed, and the first factor is returned."""
        inverse = torch.linalg.inv(V.T @ V + rho * torch.eye(V.shape[1], dtype=V.dtype))
        _ = U - rate * G @ V @ inverse
        return U, V

    net, _, _ = built(**PLAIN)
    U, V = factors(net)["q"]
    G = gradients({role: getattr(net, role).base.weight for role in ROLES})["q"][0]
    moved = released(U, V, G, RATE, 1e-3)
    assert torch.equal(moved[0] @ moved[1].T, U @ V.T)
    described = als(U @ V.T - RATE * G, U, V, 1e-3, 0)
    assert (described[0] @ described[1].T - U @ V.T).norm() > 1e-2
    with pytest.raises(ValueError, match="nothing would train"):
        built(**PLAIN, as_released=True)


def test_as_released_is_a_jacobi_step_at_a_tenth_of_the_rate_without_momentum():
    released, as_released, optimizer = built(as_released=True, metric_damping=0.3)
    described, as_described, other = built(pairs=0, momentum="none", metric_damping=0.3, learning_rate=RATE)
    assert all("momentum" not in held for held in optimizer.state.values())
    before = factors(released)
    one_step(released, as_released, optimizer)
    # a tenth of the rate counts for the gradient, and the whole one for the damping
    as_described.damping = as_described.damping * 10
    one_step(described, as_described, other, rate=RATE / 10)
    for role in ROLES:
        for one, two, start in zip(factors(released)[role], factors(described)[role], before[role], strict=True):
            same(one, two)
            assert (one - start).norm() > 1e-6
    proper, method, third = built(metric_damping=0.3)
    one_step(proper, method, third)
    for role in ROLES:  # from a zero momentum, U is the same; V follows the new U instead of the old one
        (U, V), (released_U, released_V) = factors(proper)[role], factors(released)[role]
        same(U, released_U)
        assert (V - released_V).norm() > 1e-4
    one_step(proper, method, third, 1)
    one_step(released, as_released, optimizer, 1)
    assert max((factors(proper)[role][0] - factors(released)[role][0]).norm() for role in ROLES) > 1e-3


def test_the_released_accumulation_weighs_new_micro_batches_by_their_rows_too_little():
    """D2: earlier rows are scaled back by their number, the new ones are not, and all are divided by the total."""
    net, _, _ = built()
    weights = {role: getattr(net, role).base.weight for role in ROLES}
    exact = gradients(weights, BATCH.chunk(2))["q"][0]
    parts = [gradients(weights, [half], len(half))["q"] for half in BATCH.chunk(2)]  # each with its own mean
    (_, S1, X1), (_, S2, X2) = parts
    rows = len(S1)
    released = torch.cat([S1 * rows, S2]).T @ torch.cat([X1, X2]) / (2 * rows)
    proper = torch.cat([S1 * rows, S2 * rows]).T @ torch.cat([X1, X2]) / (2 * rows)
    same(proper, exact)
    second = released - S1.T @ X1 / 2
    same(second, parts[1][0] / (2 * rows))
    assert (released - exact).norm() > 0.3 * exact.norm()


def test_the_factors_norm_is_clipped_and_the_gradient_with_it():
    """D3: no b x b Gram. Clipping is a loss that is scaled."""
    net, method, optimizer = built(**PLAIN)
    norm = one_step(net, method, optimizer, max_norm=0.05)
    assert norm > 0.1
    scaled, other, optimizer = built(**PLAIN)
    other.before_step(scaled, Step(0, 20, RATE))
    (loss(scaled) * (0.05 / (norm + 1e-6))).backward()
    parts = torch.stack([p.grad.norm() for p in scaled.parameters() if p.requires_grad])
    assert float(parts.norm()) == pytest.approx(0.05, rel=1e-4)
    optimizer.step()
    for p, q in zip(net.parameters(), scaled.parameters(), strict=True):
        same(p, q)


def test_a_damping_without_the_rate_freezes_small_steps():
    """V goes first with U small: rho = lr damping lets U's part through, a fixed rho holds V at its anchor."""
    generator = torch.Generator().manual_seed(3)
    U, V, G = (torch.randn(*size, dtype=torch.float64, generator=generator) for size in ((10, 3), (8, 3), (10, 8)))
    U, rate = 3e-3 * U, 1e-4
    moved = {rho: (als(U @ V.T - rate * G, U, V, rho, 1, first="V")[1] - V).norm() for rho in (0.0, rate * 1e-2, 1e-2)}
    assert moved[rate * 1e-2] > 0.8 * moved[0.0]
    assert moved[1e-2] < 0.1 * moved[0.0]


def test_the_damping_is_the_rates(monkeypatch):
    seen = []
    right = lorsum.low_rank_sum
    monkeypatch.setattr(
        lorsum, "low_rank_sum", lambda problems, *a: seen.append([p.rho for p in problems]) or right(problems, *a)
    )
    for fields, rate, rho in (
        (PLAIN, 0.3, 0.3 * 1e-2),
        (PLAIN, 1e-6, 1e-8),
        ({**PLAIN, "metric": "kfac"}, 1e-6, 1e-5),
        ({**PLAIN, "metric": "kfac"}, 0.3, 0.3 * 1e-2),
    ):
        net, method, optimizer = built(**fields)
        one_step(net, method, optimizer, rate=rate)
        assert seen.pop() == pytest.approx([rho / 0.5] * 2)  # s = 0.5; two shapes


@pytest.mark.parametrize(
    ("fields", "say"),
    [
        ({"first": "A"}, "first is 'U' or 'V', not 'A'"),
        ({"metric": "adam"}, "metric is 'none' or 'kfac'"),
        ({"pairs": -1}, "must not be negative"),
        ({"power": 0.0}, "above 0"),
        ({"rank": 11}, "o: rank=11 is above what a matrix of 10 x 16 can have"),
    ],
)
def test_wrong_options_are_refused_in_words(fields, say):
    with pytest.raises(ValueError, match=say):
        built(**fields)
