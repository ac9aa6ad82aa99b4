"""Every builder of bases on matrices of known singular values i^-a: seconds, products, energy, angle."""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from harness.measure import synchronize
from methods._projector import Builder, Report, deflated, side_of, vector_start

SHAPES = ((576, 576), (192, 576), (1536, 576), (576, 1536))
EXPONENTS = (0.25, 0.5, 1.0)
NOISE = 0.2  # of a synthetic gradient's norm: what a warm start's gradient differs by
BUILDERS = {
    "svd": Builder("svd"),
    "gram": Builder("gram"),
    "block": Builder("block"),
    "block of 4": Builder("block", passes=4),
    "power": Builder("sequential", momentum="none"),
    "static": Builder("sequential", momentum="static"),
    "dynamic": Builder("sequential"),
}
LABELS = {"svd": "SVD", "gram": "Gram matrix, eigh", "block": "block, 2 passes", "block of 4": "block, 4 passes"}
LABELS |= {"power": "one by one, plain", "static": "one by one, static", "dynamic": "one by one, dynamic"}


def label(name: str, start: str) -> str:
    """As tables have it: the builder, its passes over G where they are its option, its start where it has one."""
    return LABELS[name] + (f", {start}" if start else "")


def timed(call: Callable[[], object]) -> tuple[float, object]:
    synchronize()
    start = time.perf_counter()
    made = call()
    synchronize()
    return time.perf_counter() - start, made


def synthetic(shape: tuple[int, int], a: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(G: (1, m, n), its short side's singular vectors as rows, its singular values i^-a)."""
    generator = torch.Generator().manual_seed(seed)
    long, short = max(shape), min(shape)
    left, right = (torch.linalg.qr(torch.randn(size, short, generator=generator))[0] for size in (long, short))
    values = torch.arange(1, short + 1) ** -a
    G = (left * values) @ right.t()
    return (G if shape[0] >= shape[1] else G.t().contiguous())[None], right.t()[None], values


def perturbed(G: Tensor) -> Tensor:
    noise = torch.randn(G.shape, generator=torch.Generator().manual_seed(1))
    return G + NOISE * G.norm() / noise.norm() * noise


def noise_of(builder: Builder, G: Tensor, rank: int, seed: int = 2) -> Tensor:
    return builder.noise(rank, min(G.shape[1:]), G, torch.Generator(G.device).manual_seed(seed))


def energies(A: Tensor, Q: Tensor) -> Tensor:
    """||A Q^T||^2 of each matrix; A: (L, long, short)."""
    return torch.bmm(A, Q.mT).square().sum((1, 2))


def sines(Q: Tensor, exact: Tensor) -> Tensor:
    """Of the largest principal angle, each matrix; double, as its square is what is found."""
    Q, exact = Q.double(), exact.double()
    return torch.linalg.svdvals(Q - Q @ exact.mT @ exact)[:, 0].clamp(max=1)


def starts(name: str, quick: bool) -> tuple[str, ...]:
    if BUILDERS[name].kind != "sequential":
        return ("",)
    return ("warm",) if quick and name == "static" else ("cold", "warm")


def spectra(options: argparse.Namespace) -> Iterator[dict]:
    """One row a shape, exponent, rank, builder and start."""
    for shape in options.shapes:
        for a in options.exponents:
            G, exact, values = synthetic(shape, a)
            near = perturbed(G)
            for rank in [r for r in options.ranks if r <= min(shape)]:
                for name, start in [(n, s) for n in BUILDERS for s in starts(n, options.quick)]:
                    row = {"spectrum": f"i^-{a:g}", "shape": f"{shape[0]}x{shape[1]}", "rank": rank, "builder": name}
                    row |= {"start": start, "label": label(name, start)}
                    yield row | one(name, start, G, near, rank, exact, values, options.repeats)
            print(f"{shape[0]} x {shape[1]}, spectrum i^-{a:g}", flush=True)


def one(name: str, start: str, G: Tensor, near: Tensor, rank: int, exact: Tensor, values: Tensor, repeats: int) -> dict:
    """Build a basis of one matrix a few times: median seconds, what it took, what it captures."""
    builder, side = BUILDERS[name], side_of(G.shape)
    noise = noise_of(builder, G, rank)
    warm = builder(near, rank, side, noise)[0] if start == "warm" else None
    build = functools.partial(builder, G, rank, side, noise, warm)
    if name == "static" and start == "cold":
        build = functools.partial(known_static, builder, G, rank, noise, values)
    runs = [timed(build) for _ in range(1 if name == "svd" else repeats)]
    Q, report = runs[-1][1]
    A = G if side == "right" else G.mT
    most = float(values[:rank].double().square().sum())
    return {
        "seconds": statistics.median(seconds for seconds, _ in runs),
        "iterations": float(report.iterations.mean()) / (rank if builder.kind == "sequential" else 1),
        "passes": float(report.passes.mean()),
        "energy": float(energies(A.double(), Q.double())) / most,
        "angle": float(sines(Q, exact[:, :rank])),
    }


def known_static(builder: Builder, G: Tensor, rank: int, noise: Tensor, values: Tensor) -> tuple[Tensor, Report]:
    """Static momentum that is told each next eigenvalue, which a cold start cannot guess."""
    A = G if side_of(G.shape) == "right" else G.mT
    C = torch.bmm(A.mT, A) / G.norm() ** 2
    squares = values.square() / values.square().sum()
    second = torch.nn.functional.pad(squares[1 : rank + 1], (0, rank - len(squares[1 : rank + 1])))[None]
    options = builder.momentum, builder.tolerance, builder.max_iterations
    rows, found, iterations = deflated(C, vector_start(A, rank, noise, None), *options, second)
    return rows, Report(iterations, torch.ones_like(iterations), found.sum(1), iterations < 0)
