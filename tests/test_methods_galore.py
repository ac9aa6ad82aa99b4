"""GaLore against a naive loop of its formulas, in float64, and the traps that its first implementations fell into."""

from __future__ import annotations

import copy
import functools
import importlib
import json
import math

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from harness.contract import Run, Step
from harness.models import find_targets
from harness.plugins import load_plugin
from harness.tiny import tiny_model

load_plugin("methods", "galore")  # registers the package that plug-ins and their shared parts are loaded under
_projected_adam = importlib.import_module("tuning_fork_methods._projected_adam")


class Net(nn.Module):
    """A tall, a wide and two square matrices of one shape, and biases that are not projected."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tall, self.wide, self.square = nn.Linear(6, 14), nn.Linear(14, 8, bias=False), nn.Linear(8, 8)
        self.again, self.skip = nn.Linear(8, 8), False
        self.double().requires_grad_(False)

    def forward(self, x):
        y = torch.tanh(self.square(torch.tanh(self.wide(torch.tanh(self.tall(x))))))
        return y if self.skip else self.again(y)


TARGETS = ("tall", "wide", "square", "again")


def built(**fields):
    net = Net()
    fields = {"learning_rate": 1e-2, "rank": 3, "scale": 0.5, "refresh_every": 3, **fields}
    method = load_plugin("methods", "galore", **fields)
    method.attach(net, Run(20, torch.float64, lambda model, _: [(name, getattr(model, name)) for name in TARGETS]))
    return net, method, method.optimizer(net)


def own(net, optimizer, name):
    """The state of one matrix: its part of its bucket's stacks."""
    p = getattr(net, name).weight
    for bucket in optimizer.buckets:
        for number, other in enumerate(bucket.matrices):
            if other is p:
                return {key: stack[number] for key, stack in optimizer.stacks(bucket).items()}
    raise KeyError(name)


def loss(net, batch):
    return (net(batch) - batch.sum(1, keepdim=True).cos()).square().sum()


def batches(step, micro=2):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(micro, 5, 6, dtype=torch.float64, generator=generator)


def one_step(net, method, optimizer, index, max_norm=math.inf):
    step = Step(index, 20, 1e-2)
    for batch in batches(index):
        loss(net, batch).backward()
        method.after_micro_batch(net, step)
    method.after_backward(net, step)
    norm = method.clip(net, max_norm)
    optimizer.step()
    optimizer.zero_grad()
    return norm


def naive(net, steps, rank, scale, every, lr=1e-2, decay=0.0, epsilon=1e-6, max_norm=math.inf):
    """The algorithm as the paper's code states it, one matrix and one formula at a time."""
    state = {name: {"M": 0.0, "V": 0.0} for name, _ in net.named_parameters()}
    for t in range(steps):
        for p in net.parameters():
            p.requires_grad_(True)
            p.grad = None
        for batch in batches(t):
            loss(net, batch).backward()
        small = {}
        for name, p in net.named_parameters():
            R, own = p.grad, state[name]
            if name.endswith("weight"):
                m, n = p.shape
                if t % every == 0:
                    U, _, Vh = torch.linalg.svd(p.grad)
                    rows = Vh[:rank] if m >= n else U[:, :rank].t()
                    own["Q"] = torch.stack([row if max(row, key=abs) > 0 else -row for row in rows])
                R = p.grad @ own["Q"].t() if m >= n else own["Q"] @ p.grad
            small[name] = R
        norm = torch.stack([R.norm() for R in small.values()]).norm()
        for name, p in net.named_parameters():
            R, own = small[name] * min(1.0, max_norm / (norm + 1e-6)), state[name]
            own["M"] = 0.9 * own["M"] + 0.1 * R
            own["V"] = 0.999 * own["V"] + 0.001 * R * R
            correction = math.sqrt(1 - 0.999 ** (t + 1)) / (1 - 0.9 ** (t + 1))
            N = own["M"] / (own["V"].sqrt() + epsilon) * correction
            if "Q" in own:
                N = scale * (N @ own["Q"] if p.shape[0] >= p.shape[1] else own["Q"].t() @ N)
            with torch.no_grad():
                p.sub_(lr * N)
                p.sub_(lr * decay * p)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("max_norm", [math.inf, 0.5])
@pytest.mark.parametrize("builder", ["svd", "gram"])
def test_equals_the_naive_loop(decay, max_norm, builder, monkeypatch):
    assert distance(decay=decay, max_norm=max_norm, builder=builder) < 1e-9
    monkeypatch.setattr(_projected_adam.Builder, "at_once", 1)  # one matrix at a time
    monkeypatch.setattr(_projected_adam, "_WORK", 1)
    assert distance(decay=decay, max_norm=max_norm, builder=builder) < 1e-9


def distance(decay=0.1, max_norm=0.5, **fields):
    """The largest difference in a weight between eight steps of ours and of the naive loop."""
    net, method, optimizer = built(weight_decay=decay, **fields)
    for index in range(8):
        one_step(net, method, optimizer, index, max_norm)
    expected = naive_net(decay, max_norm)
    pairs = zip(net.parameters(), expected.parameters(), strict=True)
    return max(float((p - q).abs().max().detach()) for p, q in pairs)


@functools.cache
def naive_net(decay, max_norm):
    net = Net()
    naive(net, 8, rank=3, scale=0.5, every=3, decay=decay, max_norm=max_norm)
    return net


def _adam_with(**changes):
    """Adam with a mistake: epsilon after the bias correction, moments that do not move, no bias correction."""
    right = _projected_adam.adamw

    def wrong(*arguments, **rates):
        if "late epsilon" in changes:
            rates["eps"] = 1e-6
        if "count" in changes:
            arguments[5][0].fill_(10.0**6)
        return right(*arguments, **rates)

    return wrong


def _mistakes():
    bucket, optimizer = _projected_adam._Bucket, _projected_adam.ProjectedAdamW
    refresh, project = optimizer.refresh, bucket.project

    def restarted(self, *arguments):
        for one in self.buckets:
            self.stacks(one)["first"].zero_()
        return refresh(self, *arguments)

    def overwritten(self, basis):
        self.seen.clear()
        project(self, basis)

    def late(self, *arguments):
        report = refresh(self, *arguments)
        for one in self.buckets:
            turned = self.stacks(one)["basis"].roll(self.param_groups[0]["refreshes"], 1)
            self.stacks(one)["basis"].copy_(turned)
        return report

    return {
        "moments restart at a refresh": (optimizer, "refresh", restarted),
        "vectors in another order each time": (optimizer, "refresh", late),
        "only the last micro-batch": (bucket, "project", overwritten),
        "epsilon after the correction": (_projected_adam, "adamw", _adam_with(**{"late epsilon": True})),
        "no bias correction": (_projected_adam, "adamw", _adam_with(count=True)),
        "no decay": (_projected_adam, "_decay", lambda *_: None),
    }


MISTAKES = ["moments restart at a refresh", "vectors in another order each time", "only the last micro-batch"]
MISTAKES += ["epsilon after the correction", "no bias correction", "no decay"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_rule_is_seen(mistake, monkeypatch):
    monkeypatch.setattr(*_mistakes()[mistake])
    assert distance() > 1e-7


@pytest.mark.parametrize("fields", [{"scale": 0.51}, {"epsilon": 1e-8}, {"rank": 4}, {"refresh_every": 2}], ids=str)
def test_every_number_of_the_rule_counts(fields):
    assert distance(**fields) > 1e-7


def test_updates_between_refreshes_have_the_rank_of_the_basis():
    net, method, optimizer = built(refresh_every=5)
    before = copy.deepcopy(net)
    for index in range(5):
        one_step(net, method, optimizer, index)
    for name in TARGETS:
        change = getattr(net, name).weight - getattr(before, name).weight
        assert torch.linalg.matrix_rank(change.detach(), rtol=1e-9) == 3
    one_step(net, method, optimizer, 5)
    assert torch.linalg.matrix_rank((net.wide.weight - before.wide.weight).detach(), rtol=1e-9) > 3


def test_a_whole_gradient_lives_on_refresh_steps_only():
    net, method, optimizer = built()
    for index in (0, 1):
        loss(net, batches(index)[0]).backward()
        method.after_micro_batch(net, Step(index, 20, 1e-2))
        assert (net.wide.weight.grad is None) == (index == 1)
        assert net.square.bias.grad is not None
        method.after_backward(net, Step(index, 20, 1e-2))
        assert net.wide.weight.grad is None
        optimizer.step()
        optimizer.zero_grad()


def test_the_norm_is_the_projected_gradients():
    net, method, optimizer = built(rank=2)
    whole = copy.deepcopy(net)
    for batch in batches(0):
        loss(whole, batch).backward()
    norm = one_step(net, method, optimizer, 0)
    kept = [torch.linalg.svdvals(getattr(whole, name).weight.grad)[:2] for name in TARGETS]
    rest = [p.grad for p in (whole.tall.bias, whole.square.bias, whole.again.bias)]
    torch.testing.assert_close(norm, torch.stack([t.norm() for t in kept + rest]).norm())


def test_bases_are_orthonormal_with_a_fixed_sign_and_state_has_its_size():
    net, method, optimizer = built()
    one_step(net, method, optimizer, 0)
    for name in TARGETS:
        p, state = getattr(net, name).weight, own(net, optimizer, name)
        basis = state["basis"]
        assert basis.shape == (3, min(p.shape))
        assert state["first"].numel() == state["second"].numel() == 3 * max(p.shape)
        torch.testing.assert_close(basis @ basis.t(), torch.eye(3, dtype=basis.dtype), rtol=0, atol=1e-12)
        assert (basis.gather(1, basis.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_zero_or_broken_gradient_keeps_the_old_basis(bad):
    net, method, optimizer = built()
    one_step(net, method, optimizer, 0)
    old = [own(net, optimizer, name)["basis"].clone() for name in ("wide", "again", "square")]
    for batch in batches(3):
        loss(net, batch).backward()
    net.wide.weight.grad.fill_(bad)
    net.again.weight.grad.fill_(bad)
    logged = {}
    method.after_backward(net, Step(3, 20, 1e-2, _log=logged.__setitem__))
    now = [own(net, optimizer, name)["basis"] for name in ("wide", "again", "square")]
    assert [torch.equal(a, b) for a, b in zip(old, now, strict=True)] == [True, True, False]
    assert int(logged["bases_kept"]) == 2


def test_a_rank_above_the_matrix_is_cut_to_it():
    net, method, optimizer = built(rank=100)
    one_step(net, method, optimizer, 0)
    assert own(net, optimizer, "tall")["basis"].shape == (6, 6)


def test_state_is_tensors_and_numbers_so_a_safe_load_restores_it(tmp_path):
    net, method, optimizer = built()
    for index in range(4):
        one_step(net, method, optimizer, index)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    other, again, restored = built()
    other.load_state_dict(net.state_dict())
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for index in range(4, 8):
        one_step(net, method, optimizer, index)
        one_step(other, again, restored, index)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


# --------------------------------------------------------------------------- invariants


def test_with_the_whole_space_as_basis_it_is_the_unprojected_rule():
    """Rank min(m, n), a refresh every step, and Adam made to follow the gradient: plain gradient descent."""
    net, method, optimizer = built(rank=100, refresh_every=1, scale=1.0, epsilon=1e9, learning_rate=1e7)
    for group in optimizer.param_groups:
        group["betas"] = (0.0, 0.0)
    plain = Net().requires_grad_(True)
    for index in range(4):
        one_step(net, method, optimizer, index)
        plain.zero_grad()
        for batch in batches(index):
            loss(plain, batch).backward()
        with torch.no_grad():
            for p in plain.parameters():
                p -= 1e-2 * p.grad
    for (name, p), q in zip(net.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7, msg=name)


def test_a_matrix_without_a_gradient_stays_and_its_bucket_goes_on():
    for first in (0, 1):  # without it on a refresh step, and on another
        net, method, optimizer = built(weight_decay=0.1)
        for index in range(first):
            one_step(net, method, optimizer, index)
        before, moments = net.again.weight.clone(), own(net, optimizer, "again")["first"].clone()
        net.skip, square = True, net.square.weight.clone()
        one_step(net, method, optimizer, first)
        assert torch.equal(net.again.weight, before) and not torch.equal(net.square.weight, square)
        assert torch.equal(own(net, optimizer, "again")["first"], moments)
        net.skip = False
        one_step(net, method, optimizer, first + 1)
        assert not torch.equal(net.again.weight, before)


@pytest.mark.parametrize("builder", ["svd", "gram", "block", "power"])
def test_micro_batches_and_resumption_at_every_place(builder, tmp_path):
    fields = {"builder": builder, "oversampling": 2}
    whole = built(**fields)
    for index in range(7):
        norm = one_step(*whole, index)
    joined = built(**fields)
    for index in range(7):
        step = Step(index, 20, 1e-2)
        sum(loss(joined[0], batch) for batch in batches(index)).backward()
        joined[1].after_micro_batch(joined[0], step)
        joined[1].after_backward(joined[0], step)
        other = joined[1].clip(joined[0], math.inf)
        joined[2].step()
        joined[2].zero_grad()
    torch.testing.assert_close(norm, other, rtol=1e-7, atol=0)
    for point in (1, 3, 5):  # step modulo refresh_every is 1, 0, 2
        first, second = built(**fields), built(**fields)
        for index in range(point):
            one_step(*first, index)
        torch.save(first[2].state_dict(), tmp_path / "state.pt")
        second[0].load_state_dict(first[0].state_dict())
        second[2].load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        for index in range(point, 7):
            one_step(*second, index)
        assert all(torch.equal(p, q) for p, q in zip(whole[0].parameters(), second[0].parameters(), strict=True)), point
        assert whole[1].facts(whole[0]) == second[1].facts(second[0])


@pytest.mark.parametrize(("builder", "apart"), [("block", 1e-9), ("power", 0.3)])
def test_other_builders_train_nearly_as_the_oracle(builder, apart):
    """Power iteration's vectors are turned a little, in which Adam is not the same; a block's passes bring it there."""
    ends = []
    for kind in ("svd", builder):
        net, method, optimizer = built(builder=kind, rank=5, oversampling=3, passes=40, scale=1.0, learning_rate=1e-3)
        for index in range(8):
            one_step(net, method, optimizer, index)
        ends.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    start = torch.cat([p.flatten() for p in Net().parameters()])
    assert float((ends[0] - ends[1]).norm()) < apart * float((ends[0] - start).norm())


def test_a_transposed_module_is_projected_on_the_same_side():
    """GPT-2 stores (in, out): the same training, as the side goes by the shape."""
    ends = []
    for kind in ("linear", "conv1d"):
        net = Net()
        if kind == "conv1d":
            module = Conv1D(14, 6).double().requires_grad_(False)
            module.weight.data, module.bias.data = net.tall.weight.data.t().clone(), net.tall.bias.data
            net.tall = module
        method = load_plugin("methods", "galore", rank=3, refresh_every=3, learning_rate=1e-2)
        method.attach(net, Run(20, torch.float64, lambda model, _: [(name, getattr(model, name)) for name in TARGETS]))
        optimizer = method.optimizer(net)
        for index in range(5):
            one_step(net, method, optimizer, index)
        ends.append(net(batches(0)[0]).detach())
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


def test_the_curve_and_the_record_say_what_a_refresh_took():
    net, method, optimizer = built(builder="block", passes=4, oversampling=2)
    assert method.facts(net) == {}
    seen = []
    for index in (0, 3):
        for batch in batches(index):
            loss(net, batch).backward()
        logged = {}
        clocked = Step(index, 20, 1e-2, _log=logged.__setitem__)
        whole = {name: getattr(net, name).weight.grad.clone() for name in TARGETS}
        method.after_backward(net, clocked)
        optimizer.step()
        optimizer.zero_grad()
        shares = []
        for name in TARGETS:  # in the order of the forward pass, whatever the buckets are
            Q, G = own(net, optimizer, name)["basis"], whole[name]
            shares.append(((G @ Q.t() if G.shape[0] >= G.shape[1] else Q @ G).norm() / G.norm()) ** 2)
        torch.testing.assert_close(logged["captured_share"], torch.stack(shares), rtol=1e-9, atol=0)
        assert logged["passes"].tolist() == [4] * 4
        assert logged["iterations"].tolist() == [2] * 4 and int(logged["bases_kept"]) == 0
        seen.append(logged["captured_share"])
    facts = json.loads(json.dumps(method.facts(net)))
    assert facts["projector"] == "block" and facts["refreshes"] == 2 and facts["passes"] == 4.0
    assert facts["iterations"] == 2.0 and facts["bases_kept"] == 0 and facts["orthogonality_error"] < 1e-12
    assert facts["captured_share"] == pytest.approx(float(torch.stack(seen).mean()))
    assert facts["captured_share_lowest"] == pytest.approx(float(torch.stack(seen).mean(0).min()))


@pytest.mark.parametrize(
    "fields", [{"rank": 0}, {"refresh_every": 0}, {"builder": "qr"}, {"builder": "block", "passes": 3}], ids=str
)
def test_wrong_options_are_refused(fields):
    with pytest.raises(ValueError, match="GaLore.*" + str(list(fields.values())[-1])):
        built(**fields)


# --------------------------------------------------------------------------- the published optimizer


def test_steps_equal_galore_torchs(monkeypatch):
    """Losses of 30 steps on a tiny Llama over two later refreshes. An SVD leaves signs open, and moments outlive a basis:
    so theirs gets ours."""
    galore_torch = pytest.importorskip("galore_torch", reason="NOT RUN: galore-torch is missing: pip install '.[perf]'")
    GaLoreProjector = importlib.import_module("galore_torch.galore_projector").GaLoreProjector
    svd = GaLoreProjector.get_orthogonal_matrix

    def signed(self, weights, rank, type):
        found = svd(self, weights, rank, type)
        turned = found if type == "right" else found.t()
        peak = turned.gather(1, turned.abs().argmax(dim=1, keepdim=True))
        turned = torch.where(peak < 0, -turned, turned)
        self.ortho_matrix = turned if type == "right" else turned.t()
        return self.ortho_matrix

    monkeypatch.setattr(GaLoreProjector, "get_orthogonal_matrix", signed)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 259, (30, 4, 24), generator=generator)
    rates = {"learning_rate": 3e-3, "weight_decay": 0.01}

    def losses(step):
        found = []
        for index in range(30):
            value = model(input_ids=ids[index], labels=ids[index]).loss
            value.backward()
            found.append(float(value.detach()))
            step(index)
        return torch.tensor(found)

    model = tiny_model("llama")[0].requires_grad_(False)
    method = load_plugin("methods", "galore", rank=4, refresh_every=12, scale=0.5, **rates)
    method.attach(model, Run(30, torch.float32, find_targets))
    optimizer = method.optimizer(model)

    def ours(index):
        method.after_micro_batch(model, Step(index, 30, 3e-3))
        method.after_backward(model, Step(index, 30, 3e-3))
        optimizer.step()
        optimizer.zero_grad()

    found = losses(ours)
    model = tiny_model("llama")[0].requires_grad_(True)
    matrices = [module.weight for _, module in find_targets(model, "all-linear")]
    chosen = {id(p) for p in matrices}
    group = {"rank": 4, "update_proj_gap": 12, "scale": 0.5, "proj_type": "std", "proj_quant": False}
    groups = [{"params": [p for p in model.parameters() if id(p) not in chosen]}, {"params": matrices, **group}]
    theirs = galore_torch.GaLoreAdamW(groups, lr=3e-3, weight_decay=0.01, no_deprecation_warning=True)

    def step(index):
        theirs.step()
        theirs.zero_grad()

    expected = losses(step)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert float((expected[0] - expected[-1]).abs()) > 1e-2
