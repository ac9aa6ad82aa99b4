"""Is Hybrid well-posed? Algorithm 2 as printed, its defects undone one at a time, and the recommended form, on a toy.

``python -m perf.hybrid_toy`` prints a table over 20 seeds, draws the figure ``hybrid_toy.{png,pdf}`` and writes every number
as CSV. The toy: regression with W0: (24, 16), whose columns are orthonormal, towards W0 R^T + L, R a rotation and L of rank 4.
As W0 R^T = R' W0 for a rotation R' of the outputs, either side's rotation reaches it; neither branch alone does. It was
built to need both: it shows what is well-posed, and nothing of merit on a benchmark.

All variants see the same problems and full-batch gradients, without clipping or schedule; loss is over the loss at W0.
Those with SGD are shown at one rate; the last columns say what the best rate of a sweep gives each.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from harness.contract import Method, Probe, Run, Step
from harness.plugins import load_plugin

OUT, IN, RANK, ROWS = 24, 16, 4, 128
ANGLE = 1.6  # Frobenius norm of the rotation's generator
GAMMAS = (1, 16, 64, 256)


@dataclass(frozen=True)
class Variant:
    label: str
    method: str
    fields: dict = field(default_factory=dict)
    sgd: bool = True
    rate: float = 0.03  # of the table and the figure
    rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    turn: float = 1.0  # rate of Q over that of A and B


VARIANTS = (
    Variant("as printed", "hybrid_literal"),
    Variant("+ start at W0", "hybrid_literal", {"start": "zero"}),
    Variant("+ W not written", "hybrid_literal", {"start": "zero", "accumulate": False}),
    Variant("+ no eta in R", "hybrid_literal", {"start": "zero", "accumulate": False, "eta_in_cayley": False}),
    Variant("recommended, SGD", "hybrid", {"lambda_norm": "rms"}),
    Variant(
        "recommended", "hybrid", {}, sgd=False, rate=0.003, rates=(0.0003, 0.001, 0.003, 0.01, 0.03, 0.1), turn=8.0
    ),
)
"""Each of the first four has one more of the printed defects undone. "recommended" is the method as shipped, with AdamW;
above it the same with plain SGD, as the printed ones have, and the norm that does not presume Adam's steps."""


class Net(nn.Module):
    def __init__(self, weight: Tensor):
        super().__init__()
        self.w = nn.Linear(IN, OUT, bias=False, dtype=weight.dtype)
        self.w.weight.data.copy_(weight)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w(x)


class Problem(Probe):
    """Inputs and targets of one seed, and the gradient at W0 that a start asks for."""

    def __init__(self, seed: int):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.seed = seed
        self.W0 = torch.linalg.qr(normal(OUT, IN))[0]
        S = normal(IN, IN)
        S = S - S.T
        turned = self.W0 @ torch.linalg.matrix_exp(S * (ANGLE / S.norm())).T
        L = normal(OUT, RANK) @ normal(RANK, IN)
        self.target = turned + L * ((turned - self.W0).norm() / L.norm())  # both parts of the way are as long
        self.x = normal(ROWS, IN)

    def loss(self, net: nn.Module) -> Tensor:
        return (net(self.x) - self.x @ self.target.T).square().sum(1).mean() / 2

    def mean_gradients(self, parameters, count, visit) -> None:
        visit(parameters[0], (self.W0 - self.target) @ self.x.T @ self.x / ROWS)

    def start(self, variant: Variant, rate: float, steps: int, **more) -> tuple[Net, Method, torch.optim.Optimizer]:
        """The method on W0. Hybrid gets one dense block, as the printed Q is dense."""
        dense = {"factors": 1, "block_size": IN} if variant.method == "hybrid" else {}
        rates = {"learning_rate": rate, "orthogonal_learning_rate": rate * variant.turn}
        method = load_plugin("methods", variant.method, rank=RANK, **rates, **{**dense, **variant.fields, **more})
        net = Net(self.W0)
        torch.manual_seed(self.seed)
        method.attach(net, Run(steps, torch.float64, lambda model, _: [("w", model.w)]))
        method.initialize(net, self)
        optimizer = method.optimizer(net)
        if variant.sgd:
            groups = [{"params": group["params"], "lr": group["lr"]} for group in optimizer.param_groups]
            optimizer = torch.optim.SGD(groups, lr=rate)
        return net, method, optimizer


def train(problem: Problem, variant: Variant, rate: float, steps: int) -> tuple[list[float], list[float]]:
    """Loss over that at W0, and lambda, before each step and after the last."""
    net, method, optimizer = problem.start(variant, rate, steps)
    with torch.no_grad():
        first = float(problem.loss(Net(problem.W0)))
    losses, lambdas = [], []
    for index in range(steps + 1):
        step = Step(index, steps, rate)
        method.before_step(net, step)
        loss = problem.loss(net)
        losses.append(loss.item() / first)
        lambdas.append(net.w.lambda_.item())
        if index < steps:
            loss.backward()
            method.after_backward(net, step)
            optimizer.step()
            method.after_step(net, step)
            optimizer.zero_grad()
    return losses, lambdas


def first_lambda(problem: Problem, norm: str, gamma: float, rate: float) -> float:
    """Where lambda is drawn to at the start, by that norm, from that gamma."""
    variant = Variant("", "hybrid", {"lambda_norm": norm, "gamma": gamma}, turn=0.024 / rate)
    net, method, _ = problem.start(variant, rate, 10, ema=0.0, clamp=(0.0, 1.0))
    method.before_step(net, Step(0, 10, rate))
    problem.loss(net).backward()
    method.after_backward(net, Step(0, 10, rate))
    return net.w.lambda_.item()


def gammas(problems: list[Problem]) -> Iterator[dict]:
    """Median first lambda for each gamma: by rms, by decrease at one rate, and at the rate that moves W as far."""
    for gamma in GAMMAS:
        row = {"gamma": gamma}
        far = 0.003 * (gamma / 64) ** 0.5
        for name, norm, rate in (("rms", "rms", 0.003), ("decrease", "decrease", 0.003), ("matched", "decrease", far)):
            row[name] = float(np.median([first_lambda(problem, norm, gamma, rate) for problem in problems]))
        yield row


def summary(variant: Variant, runs: dict[float, np.ndarray]) -> dict:
    """One row of the table. ``runs``: rate -> (seeds, [loss, lambda], steps + 1)."""
    shown = runs[variant.rate]
    ends = np.nan_to_num(shown[:, 0, -1], nan=np.inf)
    by_rate = {rate: np.median(np.nan_to_num(found[:, 0, -1], nan=np.inf)) for rate, found in runs.items()}
    best = min(by_rate, key=by_rate.get)
    lambdas = shown[:, 1, -1]
    return {
        "variant": variant.label,
        "rate": variant.rate,
        "final": float(np.median(ends)),
        "final_low": float(ends.min()),
        "final_high": float(ends.max()),
        "peak": float(np.median(np.nan_to_num(shown[:, 0], nan=np.inf).max(axis=1))),
        "lambda": float(np.median(lambdas)),
        "lambda_low": float(lambdas.min()),
        "lambda_high": float(lambdas.max()),
        "collapsed": int(((lambdas < 0.02) | (lambdas > 0.98)).sum()),
        "best_rate": best,
        "best_final": float(by_rate[best]),
    }


def draw(curves: dict[str, np.ndarray], out: Path) -> None:
    """Small multiples: loss ratio above, lambda below; median and range over the seeds."""
    import matplotlib.pyplot as plt

    from evidence.style import BLACK, PAGE_WIDTH, VERMILION, footer, use_print_style

    use_print_style()
    figure, axes = plt.subplots(
        2, len(curves), figsize=(PAGE_WIDTH, 3.1), sharex=True, sharey="row", layout="constrained"
    )
    for column, (label, runs) in zip(axes.T, curves.items(), strict=True):
        colour = VERMILION if label.startswith("recommended") else BLACK
        for axis, values in zip(column, (runs[:, 0], runs[:, 1]), strict=True):
            steps = np.arange(values.shape[1])
            axis.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)
            axis.plot(steps, np.median(values, axis=0), color=colour)
        column[0].set_title(label, fontsize=7.5)
        column[0].axhline(1.0, color="#888888", linewidth=0.7, linestyle=(0, (4, 2)))
        column[1].set_xlabel("step")
    axes[0, 0].set(yscale="log", ylabel="loss / loss at W0")
    axes[1, 0].set(ylim=(-0.04, 1.04), ylabel="λ")
    seeds = len(next(iter(curves.values())))
    how = f"""Lines: median of {seeds} seeds; bands: smallest to largest. Dashed: the untouched W0. From the left each has one
more of the printed defects undone; then the recommended form, with SGD as those have, and as shipped, with AdamW."""
    footer(figure, how)
    for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None, "ModDate": None})):
        figure.savefig(out / f"hybrid_toy.{suffix}", metadata=metadata)
    plt.close(figure)


def write(path: Path, rows: list[dict]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def table(rows: list[dict]) -> str:
    """Fixed-width text: numbers to three digits."""
    cells = [list(rows[0])] + [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("results/perf"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    problems = [Problem(seed) for seed in range(options.seeds)]
    rows, curves, every = [], {}, []
    for variant in VARIANTS:
        runs = {
            rate: np.array([train(problem, variant, rate, options.steps) for problem in problems])
            for rate in variant.rates
        }
        rows.append(summary(variant, runs))
        curves[variant.label] = runs[variant.rate]
        every += [
            {"variant": variant.label, "rate": rate, "seed": seed, "step": step, "loss_ratio": loss, "lambda": share}
            for rate, found in runs.items()
            for seed, values in enumerate(found)
            for step, (loss, share) in enumerate(values.T.tolist())
            if rate == variant.rate or step == options.steps
        ]
    swept = list(gammas(problems))
    print(f"loss / loss at W0 and lambda after {options.steps} steps, median and range of {options.seeds} seeds\n")
    print(table(rows))
    print("\nwhere lambda is drawn to at the start, by gamma; matched: at a rate that moves W as far\n")
    print(table(swept))
    write(options.out / "hybrid_toy.csv", rows)
    write(options.out / "hybrid_toy_curves.csv", every)
    write(options.out / "hybrid_toy_gamma.csv", swept)
    draw(curves, options.out)


if __name__ == "__main__":
    main()
