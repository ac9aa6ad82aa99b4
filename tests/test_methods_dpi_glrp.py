"""DPI-GLRP: its bases in training against those of its formulas written out, its backends, and what its records say."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from harness.card import PAGE
from harness.contract import Run, Step
from harness.plugins import find_plugin, load_plugin

TARGETS = ("tall", "wide", "square", "again")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tall, self.wide = nn.Linear(10, 24), nn.Linear(24, 12, bias=False)
        self.square, self.again = nn.Linear(12, 12), nn.Linear(12, 12)
        self.double().requires_grad_(False)

    def forward(self, x):
        return self.again(torch.tanh(self.square(torch.tanh(self.wide(torch.tanh(self.tall(x)))))))


def built(method="dpi-glrp", **fields):
    net = Net()
    fields = {"learning_rate": 1e-2, "rank": 4, "scale": 0.5, "refresh_every": 3, **fields}
    made = load_plugin("methods", method, **fields)
    torch.manual_seed(7)
    made.attach(net, Run(20, torch.float64, lambda model, _: [(name, getattr(model, name)) for name in TARGETS]))
    return net, made, made.optimizer(net)


def batches(step):
    return torch.randn(2, 6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(step))


def backward(net, index, rows=6):
    for batch in batches(index):
        (net(batch[:rows]) - batch[:rows].sum(1, keepdim=True).cos()).square().sum().backward()


def one_step(net, method, optimizer, index, rows=6):
    """Gradients of the step, and what it logged."""
    logged, step = {}, Step(index, 20, 1e-2)
    step._log = logged.__setitem__
    backward(net, index, rows)
    whole = {name: getattr(net, name).weight.grad.clone() for name in TARGETS}
    method.after_micro_batch(net, step)
    method.after_backward(net, step)
    method.clip(net, math.inf)
    optimizer.step()
    optimizer.zero_grad()
    return whole, logged


def bases(net, optimizer):
    found = {}
    for name in TARGETS:
        for bucket in optimizer.buckets:
            for number, p in enumerate(bucket.matrices):
                if p is getattr(net, name).weight:
                    found[name] = optimizer.stacks(bucket)["basis"][number].clone()
    return found


def written_out(G, start, tolerance=5e-2, most=100, dynamic=True, wrong=""):
    """(rows, iterations) for one gradient, one vector and one formula at a time. ``wrong``: a mistake to make."""
    m, n = G.shape
    C = G.T @ G if m >= n else G @ G.T
    C = C / (G**2).sum()
    Q, total, first = [], 0, None

    def clear(x):
        for q in Q:
            x = x - q * (q @ x)
        return x

    for row in start:
        x = clear(row)
        x, old, h, before = x / x.norm(), torch.zeros_like(x), 1.0, None
        for k in range(most):
            v = C @ x if wrong == "no deflation" else clear(C @ x)
            value, total = x @ v, total + 1
            residual = (v - value * x).norm()
            size = v.norm() if k == 0 else value
            lost = first is not None and size <= torch.finfo(C.dtype).eps * first
            if residual <= tolerance * value or lost:
                break
            beta = 0.0
            if dynamic and k >= 2:
                q = min(residual / before, 1.0)
                beta = (value * 2 * q / (1 + q * q)) ** 2 / 4
            u = v - beta / h * old
            u = u if wrong == "no deflation" else clear(u)
            if k + 1 < most:
                old, h, before, x = x, u.norm(), residual, u / u.norm()
        Q.append(x)
        first = value if first is None else first
    rows = torch.linalg.qr(torch.stack(Q).T)[0].T
    return rows * torch.sign(rows.gather(1, rows.abs().argmax(1, keepdim=True))), total


def starts(net, method, optimizer, index, old):
    """What each matrix's search starts from: drawn bucket by bucket from the seed that attach saw."""
    generator = torch.Generator().manual_seed((method._seed + index) % 2**63)
    found = {}
    for bucket in optimizer.buckets:
        short = min(bucket.matrices[0].shape)
        noise = torch.randn(bucket.rank, short, dtype=torch.float64, generator=generator) / math.sqrt(short)
        for name in TARGETS:
            if any(p is getattr(net, name).weight for p in bucket.matrices):
                found[name] = noise if old is None else old[name] + 0.001 * noise
    return found


def misses(wrong="", **options):
    """The largest difference between the bases of two refreshes and those written out; and in their iterations."""
    net, method, optimizer = built(**{key: value for key, value in options.items() if key != "dynamic"})
    old, worst, counts = None, 0.0, 0
    for index in range(4):
        whole, logged = one_step(net, method, optimizer, index)
        if index % 3:
            continue
        begin, now = starts(net, method, optimizer, index, old), bases(net, optimizer)
        for number, name in enumerate(TARGETS):
            rows, total = written_out(whole[name], begin[name], dynamic=options.get("dynamic", True), wrong=wrong)
            worst = max(worst, float((rows - now[name]).abs().max()))
            counts = max(counts, abs(total - int(logged["iterations"][number])))
        old = now
    return worst, counts


def test_the_sequential_backend_is_its_formulas():
    worst, counts = misses()
    assert worst < 1e-9 and counts == 0
    worst, counts = misses(momentum="none", dynamic=False)
    assert worst < 1e-9 and counts == 0


@pytest.mark.parametrize(
    "options", [{"wrong": "no deflation"}, {"dynamic": False}, {"tolerance": 0.02}, {"max_iterations": 3}], ids=str
)
def test_a_mistake_or_another_option_is_seen(options):
    worst, _ = misses(**options)
    assert worst > 1e-4


@pytest.mark.parametrize("fields", [{}, {"backend": "block"}, {"momentum": "static"}, {"momentum": "none"}], ids=str)
def test_a_tight_search_trains_as_galore(fields):
    """With the same span, and vectors in the same order and of the same sign, the steps are GaLore's."""
    tight = (
        {"tolerance": 1e-8, "max_iterations": 1500} if "backend" not in fields else {"passes": 400, "oversampling": 4}
    )
    ends = []
    for name, own in (("dpi-glrp", {**fields, **tight}), ("galore", {})):
        net, method, optimizer = built(name, **own)
        for index in range(7):
            one_step(net, method, optimizer, index)
        ends.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-6)
    loose = built("dpi-glrp", tolerance=0.3)
    for index in range(7):
        one_step(*loose, index)
    assert float((torch.cat([p.detach().flatten() for p in loose[0].parameters()]) - ends[1]).abs().max()) > 1e-4


@pytest.mark.parametrize("fields", [{}, {"backend": "block", "oversampling": 2}, {"momentum": "none"}], ids=str)
def test_few_supervised_rows_give_few_directions_and_a_whole_basis(fields):
    """One row a micro-batch: every gradient has rank two, and its basis four vectors."""
    net, method, optimizer = built(**fields)
    for index in range(4):
        whole, logged = one_step(net, method, optimizer, index, rows=1)
        if index % 3:
            continue
        for number, (name, Q) in enumerate(bases(net, optimizer).items()):
            assert torch.linalg.matrix_rank(whole[name]) <= 2
            torch.testing.assert_close(Q @ Q.T, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-12)
            assert float(logged["captured_share"][number]) == pytest.approx(1.0, abs=1e-4)
            assert "backend" in fields or float(logged["iterations"][number]) < 2 * 101 + 2 * 3


def test_the_second_refresh_starts_from_the_first_and_is_shorter():
    net, method, optimizer = built(learning_rate=1e-5)
    first = one_step(net, method, optimizer, 0)[1]["iterations"]
    for index in (1, 2):
        one_step(net, method, optimizer, index)
    backward(net, 0)  # nearly the first step's gradient
    logged = {}
    method.after_backward(net, Step(3, 20, 1e-2, _log=logged.__setitem__))
    assert bool((logged["iterations"] < first).all())


def test_a_refresh_draws_alike_however_the_step_is_split_and_by_the_seed_only():
    ends = []
    for micro_batch, seed in ((0, 7), (3, 7), (0, 8)):
        net, method, optimizer = built(max_iterations=2)
        method._seed = seed
        backward(net, 0)
        torch.manual_seed(micro_batch)  # the harness seeds every hook by the number of its micro-batch
        method.after_backward(net, Step(0, 20, 1e-2, micro_batch=micro_batch))
        ends.append(bases(net, optimizer)["square"])
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_docstring_card_and_record_say_whose_reading_it_is():
    net, method, optimizer = built()
    assert "arXiv 2403.09618" in method.facts(net)["reading"] and "abstract" in method.facts(net)["reading"]
    one_step(net, method, optimizer, 0)
    facts = json.loads(json.dumps(method.facts(net)))
    assert facts["projector"] == "sequential" and facts["refreshes"] == 1 and facts["iterations"] > 8
    assert "abstract" in facts["reading"] and 0.5 < facts["captured_share_lowest"] <= facts["captured_share"] <= 1
    for text in (find_plugin("methods", "dpi-glrp").path.read_text(), PAGE.read_text().split("## dpi-glrp")[1]):
        assert "Our reading of an abstract" in text and "arXiv 2403.09618" in text


@pytest.mark.parametrize(
    "fields", [{"backend": "svd"}, {"momentum": "heavy"}, {"tolerance": 0}, {"max_iterations": 0}, {"rank": 0}], ids=str
)
def test_wrong_options_are_refused(fields):
    with pytest.raises(ValueError, match="DPIGLRP.*" + str(*fields)):
        built(**fields)
