"""How much of the gap between LoRA and SVDLoRA does LoRSum close, and by how many pairs? On two toys, in minutes.

``python -m perf.lorsum_toy`` prints a table in Markdown, draws ``lorsum_toy.{png,pdf}`` and writes every number as CSV.

linear: the synthetic task of arXiv 2602.16456, a weight of 600 x 200 with rank 8, from zero towards W* with singular values
1, 1/2, 1/3...; inputs are Gaussian, the loss is the squared error summed over outputs. Its smallest value at rank 8 is known,
and the excess over it is shown. Once with all 2,000 rows a step, once with 64 and momentum 0.75.
digits: the paper's residual MLP on patches (four blocks of width 256, rank 16), on scikit-learn's bundled ``load_digits``, 1,797
images of 8 x 8 pixels, not CIFAR: trained on upright digits, then only the blocks' adapters are, on the same digits turned
by 90 degrees. The rows of the test split are in neither.

Each method's rate is the best of its own few on a seed that is not shown. LoRA's start throughout, s = 1.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.contract import Run, Step
from harness.plugins import load_plugin

TUNING_SEED = 1000
DAMPING = 1e-3  # of ScaledGD and LoRSum, times the rate


@dataclass(frozen=True)
class Variant:
    label: str
    method: str
    rates: tuple[float, ...]
    fields: dict = field(default_factory=dict)
    optimizer: str = "own"  # or "sgd", or "scaled": SGD with each factor's gradient scaled by the other's Gram matrix


def variants(rates: dict[str, tuple[float, ...]], momentum: float = 0.0) -> list[Variant]:
    """The methods of one task; ``rates`` by LoRA, ScaledGD and both others."""
    plain = {"metric": "none", "momentum": "heavy_ball" if momentum else "none", "momentum_decay": momentum}
    lorsum = {"damping": DAMPING, **plain}
    found = [
        Variant("LoRA, SGD", "lora", rates["sgd"], optimizer="sgd"),
        Variant("LoRA, AdamW", "lora", rates.get("adamw", ())),
        Variant("ScaledGD", "lora", rates["scaled"], optimizer="scaled"),
        *(Variant(f"LoRSum K={k}", "lorsum", rates["whole"], {**lorsum, "pairs": k}) for k in (1, 2, 8)),
        Variant("SVDLoRA", "svdlora", rates["whole"], {"direction": "sgd", "momentum": momentum}),
    ]
    return [variant for variant in found if variant.rates]


# --------------------------------------------------------------------------- the tasks


class Linear:
    """600 x 200 towards W*; ``batch`` 0: all rows every step."""

    targets = ("w",)

    def __init__(self, seed: int, batch: int = 0, size: tuple[int, int] = (600, 200), rows: int = 2000, rank: int = 8):
        generator = torch.Generator().manual_seed(seed)
        out, inner = size
        left, right = (torch.linalg.qr(torch.randn(d, inner, generator=generator))[0] for d in size)
        self.W = left / torch.arange(1, inner + 1) @ right.T
        self.x = torch.randn(rows, inner, generator=generator)
        self.y = self.x @ self.W.T
        self.batch, self.rank = batch, rank
        # ||(D - W*) C^(1/2)||^2 with C = X^T X / rows: what is left beyond the best D of this rank
        tail = torch.linalg.svdvals(self.y.double())[rank:].square().sum() / rows
        self.least, self.most = float(tail), float(self.y.double().square().sum() / rows)

    def net(self) -> nn.Module:
        net = nn.ModuleDict({"w": nn.Linear(self.x.shape[1], self.y.shape[1], bias=False)})
        nn.init.zeros_(net["w"].weight)
        return net

    def loss(self, net: nn.Module, rows: Tensor | slice) -> Tensor:
        return (net["w"](self.x[rows]) - self.y[rows]).square().sum(1).mean()

    def shown(self, loss: float) -> float:
        """The excess over the best of this rank, from 1 at the start."""
        return (loss - self.least) / (self.most - self.least)

    def score(self, net: nn.Module) -> float:
        return float("nan")


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class PatchMLP(nn.Module):
    """Four patches of 4 x 4 pixels through one linear layer each, side by side, residual blocks, a linear head."""

    def __init__(self, width: int = 256, blocks: int = 4):
        super().__init__()
        self.patch = nn.Linear(16, width // 4)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, images: Tensor) -> Tensor:
        patches = images.unfold(1, 4, 4).unfold(2, 4, 4).flatten(3).flatten(1, 2)  # (rows, 4, 16)
        x = self.patch(patches).flatten(1)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Digits:
    """scikit-learn's digits turned by 90 degrees, for a network that was trained on upright ones."""

    def __init__(self, seed: int, batch: int = 64, width: int = 256, pretraining: int = 400, rank: int = 16):
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(images), generator=generator)
        images = torch.tensor(images, dtype=torch.float32).view(-1, 8, 8)[order] / 16
        labels = torch.tensor(labels)[order]
        self.x, self.y, self.test_y = images[:1297].rot90(1, (1, 2)), labels[:1297], labels[1297:]
        self.test_x = images[1297:].rot90(1, (1, 2))
        self.batch, self.rank = batch, rank
        torch.manual_seed(seed)
        self.base = PatchMLP(width)
        self.targets = [f"blocks.{i}.{part}" for i in range(len(self.base.blocks)) for part in ("up", "down")]
        optimizer = torch.optim.AdamW(self.base.parameters(), lr=1e-3)
        for rows in batches(seed + 1, pretraining, len(labels[:1297]), batch):
            F.cross_entropy(self.base(images[:1297][rows]), self.y[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()

    def net(self) -> nn.Module:
        net = PatchMLP(self.base.head[1].in_features, len(self.base.blocks))
        net.load_state_dict(self.base.state_dict())
        return net

    def loss(self, net: nn.Module, rows: Tensor | slice) -> Tensor:
        return F.cross_entropy(net(self.x[rows]), self.y[rows])

    def shown(self, loss: float) -> float:
        return loss

    def score(self, net: nn.Module) -> float:
        """Accuracy on the test split."""
        with torch.no_grad():
            return float((net(self.test_x).argmax(1) == self.test_y).float().mean())


def batches(seed: int, steps: int, rows: int, batch: int) -> Sequence[Tensor | slice]:
    """Rows of each step: each row once an epoch, in a new order; batch 0: all."""
    if not batch:
        return [slice(None)] * steps
    generator = torch.Generator().manual_seed(seed)
    epochs = -(-steps // (rows // batch))
    orders = [torch.randperm(rows, generator=generator)[: rows // batch * batch].split(batch) for _ in range(epochs)]
    return [part for order in orders for part in order][:steps]


@dataclass(frozen=True)
class Toy:
    name: str
    title: str
    make: Callable[[int], Linear | Digits]
    steps: int
    every: int  # steps between two looks at the loss over all rows
    variants: list[Variant]
    lora: str  # the label that the gap starts from
    momentum: float = 0.0


WHOLE = (0.12, 0.25, 0.5)
TOYS = (
    Toy(
        "linear",
        "linear, all rows",
        Linear,
        20,
        1,
        variants({"sgd": (0.01, 0.03, 0.1, 0.3), "scaled": (0.12, 0.25, 0.48), "whole": WHOLE}),
        "LoRA, SGD",
    ),
    Toy(
        "linear-64",
        "linear, 64 rows, momentum",
        lambda seed: Linear(seed, 64),
        120,
        4,
        variants({"sgd": (0.01, 0.02, 0.04), "scaled": (0.01, 0.02, 0.04), "whole": (0.01, 0.02, 0.04)}, 0.75),
        "LoRA, SGD",
        0.75,
    ),
    Toy(
        "digits",
        "digits turned by 90°",
        Digits,
        150,
        10,
        variants(
            {
                "sgd": (0.1, 0.3, 1.0),
                "adamw": (3e-3, 1e-2, 3e-2),
                "scaled": (0.03, 0.1, 0.3),
                "whole": (0.03, 0.1, 0.3),
            }
        ),
        "LoRA, AdamW",
    ),
)


# --------------------------------------------------------------------------- training


def scale_gradients(layers: list[nn.Module], rho: float) -> None:
    """ScaledGD: dB <- dB (A A^T + rho I)^-1, dA <- (B^T B + rho I)^-1 dA, both from the present factors."""
    for layer in layers:
        eye = rho * torch.eye(len(layer.A))
        layer.B.grad = torch.linalg.solve(layer.A @ layer.A.T + eye, layer.B.grad.T).T
        layer.A.grad = torch.linalg.solve(layer.B.T @ layer.B + eye, layer.A.grad)


def train(task: Linear | Digits, toy: Toy, variant: Variant, rate: float, seed: int) -> tuple[list[float], float]:
    """Loss over all rows before the first step and after every ``toy.every`` of them, and the score at the end."""
    net = task.net().requires_grad_(False)
    method = load_plugin(
        "methods", variant.method, rank=task.rank, alpha=float(task.rank), learning_rate=rate, **variant.fields
    )
    torch.manual_seed(seed)
    method.attach(
        net, Run(toy.steps, torch.float32, lambda model, _: [(n, model.get_submodule(n)) for n in task.targets])
    )
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = method.optimizer(net)
    if variant.optimizer != "own":
        optimizer = torch.optim.SGD(trained, lr=rate, momentum=toy.momentum)
    layers, losses = [net.get_submodule(name) for name in task.targets], []
    for index, rows in enumerate(batches(seed, toy.steps, len(task.x), task.batch)):
        if index % toy.every == 0:
            losses.append(_whole_loss(task, net))
        step = Step(index, toy.steps, rate)
        method.before_step(net, step)
        task.loss(net, rows).backward()
        method.after_backward(net, step)
        if variant.optimizer == "scaled":
            with torch.no_grad():
                scale_gradients(layers, rate * DAMPING)
        optimizer.step()
        optimizer.zero_grad()
    return [*losses, _whole_loss(task, net)], task.score(net)


@torch.no_grad()
def _whole_loss(task: Linear | Digits, net: nn.Module) -> float:
    loss = float(task.loss(net, slice(None)))
    return task.shown(loss) if np.isfinite(loss) else float("inf")


def run(toy: Toy, seeds: int) -> dict[str, dict]:
    """By label: the rate chosen, (seeds, looks) of losses, the scores."""
    tuning, found = toy.make(TUNING_SEED), {}
    tasks = [toy.make(seed) for seed in range(seeds)]
    for variant in toy.variants:
        ends = {rate: train(tuning, toy, variant, rate, TUNING_SEED)[0][-1] for rate in variant.rates}
        rate = min(ends, key=ends.get)
        runs = [train(task, toy, variant, rate, seed) for seed, task in enumerate(tasks)]
        curves, scores = (np.array(part) for part in zip(*runs, strict=True))
        found[variant.label] = {"rate": rate, "curves": curves, "scores": scores}
        print(f"{toy.name}: {variant.label} at {rate:g} ends at {curves[:, -1].mean():.3g}", flush=True)
    return found


def rows(toy: Toy, found: dict[str, dict]) -> list[dict]:
    """The table's rows; ``closed``: the share of the way from LoRA's mean loss to SVDLoRA's, in logarithms; else NaN."""
    low, high = (np.log(found[label]["curves"][:, -1].mean()) for label in ("SVDLoRA", toy.lora))
    made = []
    for label, one in found.items():
        ends = one["curves"][:, -1]
        made.append(
            {
                "task": toy.name,
                "method": label,
                "rate": one["rate"],
                "loss": float(ends.mean()),
                "loss_low": float(ends.min()),
                "loss_high": float(ends.max()),
                "closed": float((high - np.log(ends.mean())) / (high - low)) if high > low else float("nan"),
                "accuracy": float(one["scores"].mean()),
            }
        )
    return made


def table(made: list[dict]) -> str:
    """In Markdown; a number that does not apply is a dash."""
    lines = [
        "| task | method | rate | loss at the end [least, most] | of the gap (log) | test accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for row in made:
        closed, accuracy = ("-" if np.isnan(v) else f"{100 * v:.0f} %" for v in (row["closed"], row["accuracy"]))
        loss = f"{row['loss']:.3g} [{row['loss_low']:.3g}, {row['loss_high']:.3g}]"
        lines.append(f"| {row['task']} | {row['method']} | {row['rate']:g} | {loss} | {closed} | {accuracy} |")
    return "\n".join(lines)


def write(path: Path, made: list[dict]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, made[0])
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in made)


def main(argv: list[str] | None = None, toys: Sequence[Toy] = TOYS) -> None:
    from perf.lorsum_toy_figure import draw

    parser = argparse.ArgumentParser(prog="python -m perf.lorsum_toy", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/perf"))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    found = {toy.name: run(toy, options.seeds) for toy in toys}
    made = [row for toy in toys for row in rows(toy, found[toy.name])]
    print(f"\nmeans of {options.seeds} seeds; linear: excess over the best of rank 8, 1 at the start\n\n{table(made)}")
    write(options.out / "lorsum_toy.csv", made)
    curves = [
        {"task": toy.name, "method": label, "seed": seed, "step": number * toy.every, "loss": loss}
        for toy in toys
        for label, one in found[toy.name].items()
        for seed, values in enumerate(one["curves"].tolist())
        for number, loss in enumerate(values)
    ]
    write(options.out / "lorsum_toy_curves.csv", curves)
    draw(toys, found, options.out)


if __name__ == "__main__":
    main()
