"""LoRA-GA's start against the singular vectors of known gradients, and its training against dense formulas."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from harness import data
from harness.checks import Case
from harness.contract import Probe, Run, Step
from harness.plugins import load_plugin
from harness.suite import PROTOCOL

load_plugin("methods", "lora_ga")
gradient_start = importlib.import_module("tuning_fork_methods._gradient_start")
STEP = Step(0, 10, 0.0)
IN, OUT, RANK, ALPHA, GAMMA = 16, 20, 3, 5.0, 7.0
SCALE = ALPHA / RANK**0.5


class Pair(nn.Module):
    """A Linear and GPT-2's transposed Conv1D, side by side."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.v = nn.Linear(IN, OUT), Conv1D(OUT, IN)
        self.v.weight.data.normal_()
        self.to(dtype).requires_grad_(False)

    def forward(self, x):
        return self.q(x), self.v(x)


class Given(Probe):
    """Visits gradients that are given as (out, in), by layer."""

    def __init__(self, gradients):
        self.gradients = gradients

    def mean_gradients(self, parameters, count, visit):
        assert set(parameters) == {f"{name}.base.weight" for name in self.gradients}
        for name, G in self.gradients.items():
            visit(f"{name}.base.weight", G.t() if name == "v" else G)


def gradient(rank=10, out=OUT, size=IN, seed=0):
    """(out, size), of this rank and with well separated singular values."""
    generator = torch.Generator().manual_seed(seed)
    U, V = (torch.linalg.qr(torch.randn(n, rank, generator=generator, dtype=torch.float64)).Q for n in (out, size))
    return U * 0.8 ** torch.arange(rank) @ V.t()


def attached(dtype=torch.float64, start=True, **fields):
    model = Pair(dtype)
    method = load_plugin("methods", "lora_ga", **{"rank": RANK, "alpha": ALPHA, "gamma": GAMMA, **fields})
    method.attach(model, Run(10, dtype, lambda model, _: [("q", model.q), ("v", model.v)]))
    if start:
        method.initialize(model, Given({"q": gradient(seed=1).to(dtype), "v": gradient(seed=2).to(dtype)}))
    return model, method


def projector(columns):
    return columns @ columns.t()


# --------------------------------------------------------------------------- the start


def check_start(layer, G, rank=RANK):
    """What the paper and the authors' code promise of a layer's A0 and B0 when G has 2 rank directions and more."""
    U, _, Vh = torch.linalg.svd(G)
    size = OUT**0.5 / GAMMA
    close = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(layer.A0 @ layer.A0.t(), size * torch.eye(rank, dtype=G.dtype), **close)
    torch.testing.assert_close(layer.A0.t() @ layer.A0, size * projector(Vh[:rank].t()), **close)
    torch.testing.assert_close(projector(layer.B0), size * projector(U[:, rank : 2 * rank]), **close)
    assert torch.linalg.matrix_norm(layer.started(), 2).item() == pytest.approx(ALPHA / rank**0.5 * size)
    assert torch.equal(layer.A, layer.A0) and torch.equal(layer.B, layer.B0)


def first_step(layer, G, rate=1e-7):
    """The change of the weight by one small step of SGD, per learning rate, where the gradient is G."""
    A, B = (p.detach().clone().requires_grad_() for p in (layer.A, layer.B))
    (layer.scale * (B @ A) * G).sum().backward()
    after = (B - rate * B.grad) @ (A - rate * A.grad)
    return layer.scale * (after - B @ A).detach() / -rate


def check_first_step(layer, G):
    U, S, Vh = torch.linalg.svd(G)
    best = U[:, : 2 * RANK] * S[: 2 * RANK] @ Vh[: 2 * RANK]
    expected = SCALE**2 * OUT**0.5 / GAMMA * best
    torch.testing.assert_close(first_step(layer, G), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize(("name", "seed"), [("q", 1), ("v", 2)])
def test_the_start_is_the_papers_and_one_step_of_sgd_takes_the_best_of_twice_the_rank(name, seed):
    model, _ = attached()
    check_start(getattr(model, name), gradient(seed=seed))
    check_first_step(getattr(model, name), gradient(seed=seed))


def swap_the_indices(layer, U, V):
    layer.A0.copy_(V[:, RANK : 2 * RANK].t() * OUT**0.25 / GAMMA**0.5)
    layer.B0.copy_(U[:, :RANK] * OUT**0.25 / GAMMA**0.5)


def take_the_same_indices(layer, U, V):
    layer.B0.copy_(U[:, :RANK] * OUT**0.25 / GAMMA**0.5)


def scale_by_inputs(layer, U, V):
    layer.A0.mul_((IN / OUT) ** 0.25)
    layer.B0.mul_((IN / OUT) ** 0.25)


def divide_alpha_by_the_rank(layer, U, V):
    layer.scale /= RANK**0.5


def forget_the_root_of_gamma(layer, U, V):
    layer.A0.mul_(GAMMA**-0.5)
    layer.B0.mul_(GAMMA**-0.5)


MUTANTS = [swap_the_indices, take_the_same_indices, scale_by_inputs, divide_alpha_by_the_rank, forget_the_root_of_gamma]


@torch.no_grad()
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_check_of_the_start_catches(mutant):
    model, _ = attached()
    G = gradient(seed=1)
    U, _, Vh = torch.linalg.svd(G)
    mutant(model.q, U, Vh.t())
    model.q.A.copy_(model.q.A0)
    model.q.B.copy_(model.q.B0)
    with pytest.raises(AssertionError):
        check_start(model.q, G)
    if mutant is not swap_the_indices:  # which takes 2 rank directions just as well
        with pytest.raises(AssertionError), torch.enable_grad():
            check_first_step(model.q, G)


def start(G, rank=RANK, **fields):
    torch.manual_seed(0)
    return gradient_start.start_from_gradient(G, rank, SCALE, OUT**0.5, **fields)  # sizes of one, where out is OUT


@pytest.mark.parametrize("known", [5, 4, 2, 0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_directions_that_the_gradient_lacks_are_random_ones_beside_its_own(known, dtype):
    G = (gradient(known) if known else torch.zeros(OUT, IN, dtype=torch.float64)).to(dtype)
    A0, B0, rank = start(G)
    assert rank == known and A0.dtype == B0.dtype == torch.promote_types(dtype, torch.float32)
    A0, B0, eye = A0.double(), B0.double(), torch.eye(RANK, dtype=torch.float64)
    exact = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close((A0 @ A0.t(), B0.t() @ B0), (eye, eye), **exact)
    U, _, Vh = torch.linalg.svd(G.double())
    own = min(known, RANK)
    torch.testing.assert_close(projector(A0[:own].t()), projector(Vh[:own].t()), **exact)
    left = max(0, known - RANK)
    torch.testing.assert_close(projector(B0[:, :left]), projector(U[:, RANK:known]), **exact)
    assert (U[:, :known].t() @ B0[:, left:]).abs().max() < 1e-5 if known else True
    assert torch.equal(start(G).B0, start(G).B0)


def test_the_training_has_the_random_directions_of_its_own_seed():
    G = gradient(4)
    torch.manual_seed(0)
    first = gradient_start.start_from_gradient(G, RANK, SCALE, GAMMA)
    second = gradient_start.start_from_gradient(G, RANK, SCALE, GAMMA)
    assert torch.allclose(first.A0, second.A0) and not torch.allclose(first.B0, second.B0)


@pytest.mark.parametrize(("out", "size"), [(5, 16), (3, 16), (16, 5), (3, 3)])
def test_small_sides_share_or_complete_directions(out, size):
    G = gradient(min(out, size), out, size)
    A0, B0, rank = gradient_start.start_from_gradient(G, RANK, SCALE, out**0.5)
    assert rank == min(out, size)
    eye = torch.eye(RANK, dtype=G.dtype)
    torch.testing.assert_close((A0 @ A0.t(), B0.t() @ B0), (eye, eye), rtol=0, atol=1e-12)
    U, _, Vh = torch.linalg.svd(G)
    torch.testing.assert_close(A0.t() @ A0, projector(Vh[:RANK].t()), rtol=0, atol=1e-12)
    if out < 2 * RANK:
        torch.testing.assert_close(projector(B0), projector(U[:, out - RANK : out]), rtol=0, atol=1e-12)
    else:
        assert (U[:, :RANK].t() @ B0).abs().max() < 1e-12


def test_the_truncated_svd_finds_the_directions_of_the_exact_one():
    G = gradient(64, 96, 80)
    A0, B0, rank = gradient_start.start_from_gradient(G, 4, SCALE, 96**0.5)
    assert rank == 16  # all it looked for
    U, _, Vh = torch.linalg.svd(G)
    torch.testing.assert_close(A0.t() @ A0, projector(Vh[:4].t()), rtol=0, atol=1e-4)
    torch.testing.assert_close(projector(B0), projector(U[:, 4:8]), rtol=0, atol=1e-4)


def test_rounding_of_autocast_is_no_direction():
    """Under autocast a gradient is float32 and has bfloat16's rounding."""
    G = gradient(3, 64, 64).bfloat16().float()
    ranks = [
        gradient_start.start_from_gradient(G, 4, SCALE, GAMMA, autocast=to).numerical_rank
        for to in (None, torch.bfloat16)
    ]
    assert ranks == [16, 3]  # without it all that it looked for


@pytest.mark.parametrize("precision", ["float32", "bfloat16-mixed", "bfloat16"])
@pytest.mark.parametrize("method", ["lora_ga", "hybrid"])
def test_two_tokens_give_few_directions_in_every_precision(method, precision, monkeypatch):
    monkeypatch.setitem(PROTOCOL, "precision", precision)
    case = Case(method, "llama", {"probe_batches": 1, "rank": 4})
    case.rows = [replace(row, targets=[data.IGNORE] * (len(row.ids) - 1) + row.ids[-1:]) for row in case.rows]
    trainer = case.trainer(torch.bfloat16 if precision == "bfloat16" else torch.float32)
    assert trainer.method.facts(trainer.model)["directions_missing"] > 20


def test_a_rank_above_the_smaller_side_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^q: LoRA-GA takes rank=17 .* of \(20, 16\)\. Choose a rank of at most 16"):
        attached(rank=17)


# --------------------------------------------------------------------------- the training


def close(one, other, tolerance=1e-12):
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("base", ["centred", "subtract"])
@pytest.mark.parametrize("impl", ["authors", "peft"])
def test_the_model_starts_unchanged_and_only_subtracting_touches_the_base(base, impl):
    model, _ = attached(base=base, impl=impl)
    x = torch.randn(3, 5, IN, dtype=torch.float64)
    close(model(x), Pair()(x))
    assert torch.equal(model.q.base.weight, Pair().q.weight) == (base == "centred")
    assert torch.equal(model.v.base.weight, Pair().v.weight) == (base == "centred")


def test_before_its_start_the_model_is_the_base():
    model, _ = attached(start=False)
    x = torch.randn(4, IN, dtype=torch.float64)
    close(model(x), Pair()(x))


def test_forward_and_gradients_are_those_of_the_centred_product():
    model, _ = attached()
    for name in ("q", "v"):
        layer, plain = getattr(model, name), getattr(Pair(), name)
        nn.init.normal_(layer.A), nn.init.normal_(layer.B)
        weight = plain.weight.t() if name == "v" else plain.weight
        x = torch.randn(3, 5, IN, dtype=torch.float64, requires_grad=True)
        expected = x @ (weight + SCALE * (layer.B @ layer.A - layer.B0 @ layer.A0)).t() + plain.bias
        close(layer(x), expected)
        inputs = [x, layer.A, layer.B]
        gradients = torch.autograd.grad(expected.sin().sum(), inputs)
        close(torch.autograd.grad(layer(x).sin().sum(), inputs), gradients, 1e-10)


def trained(steps=6, **fields):
    model, method = attached(**fields)
    optimizer = method.optimizer(model)
    x, losses = torch.randn(2, 9, IN, generator=torch.Generator().manual_seed(3), dtype=torch.float64), []
    for _ in range(steps):
        method.before_step(model, STEP)
        loss = sum((y - x.mean()).square().mean() for y in model(x))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, method, losses


def test_centred_and_subtracted_are_one_function_all_along():
    centred, one, ours = trained(learning_rate=1e-2)
    subtracted, other, theirs = trained(learning_rate=1e-2, base="subtract")
    assert ours == pytest.approx(theirs, rel=1e-12) and ours[-1] < ours[0] - 0.1
    close(subtracted.q.A, centred.q.A, 1e-10)
    x = torch.randn(4, IN, dtype=torch.float64)
    before = centred(x)
    one.merge(centred)
    other.merge(subtracted)
    close(centred(x), before)
    close(subtracted(x), before, 1e-10)
    assert isinstance(centred.q, nn.Linear) and isinstance(centred.v, Conv1D)


@pytest.mark.parametrize("base", ["centred", "subtract"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_reload_needs_no_gradients(base, dtype):
    model, method = attached(dtype, base=base)
    nn.init.normal_(model.q.B)
    state = {name: value for name, value in model.state_dict().items() if "base" not in name}
    fresh, again = attached(dtype, base=base, start=False)
    fresh.load_state_dict(state, strict=False)
    x = torch.randn(4, IN).to(dtype)
    if dtype == torch.float64:
        close(fresh(x), model(x))  # also when nothing has asked for before_step
    again.before_step(fresh, STEP)
    assert all(map(torch.equal, fresh(x), model(x)))
    method.merge(model)
    again.merge(fresh)
    assert torch.equal(fresh.q.weight, model.q.weight) and fresh.q.weight.dtype == dtype


def test_the_printed_start_is_a_step_up_the_loss():
    model, method = attached(init="printed_eq8")
    assert method.changes_init and not attached()[1].changes_init
    U, S, Vh = torch.linalg.svd(gradient(seed=1))
    best = U[:, :RANK] * S[:RANK] @ Vh[:RANK]
    close(model.q.update(), best)
    start = model.q.base.weight + model.q.update()
    assert (start * gradient(seed=1)).sum() > (Pair().q.weight * gradient(seed=1)).sum()  # a loss whose gradient is G
    method.merge(model)
    close(model.q.weight, Pair().q.weight + best)


def test_facts_are_the_ranks_of_the_gradients_and_survive_a_reload():
    model, method = attached(start=False)
    method.initialize(model, Given({"q": gradient(4), "v": gradient(2)}))
    expected = {"gradient_rank": {"q": 4, "v": 2}, "directions_missing": 2 + 4}
    assert json.loads(json.dumps(method.facts(model))) == expected
    fresh, again = attached(start=False)
    fresh.load_state_dict(model.state_dict())
    assert again.facts(fresh) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base": "centered"}, "base is centred or subtract, not 'centered'"),
        ({"impl": "paper"}, "impl is authors or peft, not 'paper'"),
        ({"init": "printed_eq8", "impl": "peft"}, "two starts; choose one"),
    ],
)
def test_what_it_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        attached(**fields)
