"""Slow, obviously right twins for the tests of LoRSum and SVDLoRA: one dense matrix at a time, inverses written out."""

from __future__ import annotations

import torch
from torch import nn

BATCH = torch.randn(24, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
ROWS = len(BATCH)
ROLES = ("q", "k", "o")


def same(one, other, tolerance=1e-12):
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def power(D, delta, g):
    """(D + delta)^g of a diagonal (d,) or a symmetric (d, d), as a dense matrix."""
    D = torch.diag(D) if D.ndim == 1 else D
    values, vectors = torch.linalg.eigh(D + delta * torch.eye(len(D), dtype=D.dtype))
    return vectors @ torch.diag(values**g) @ vectors.T


def als(M, U0, V0, rho, pairs, first="U", moving=False, P=None, Q=None, relative=False):
    """Damped alternating least squares on a dense M, in the metrics P and Q; pairs 0: Jacobi."""
    P = torch.eye(len(U0), dtype=M.dtype) if P is None else P
    Q = torch.eye(len(V0), dtype=M.dtype) if Q is None else Q

    def solved(right, gram, anchor):
        if not gram.any() and (relative or not rho):
            return anchor
        damping = rho * gram.diagonal().mean() if relative else rho
        return (right + damping * anchor) @ torch.linalg.inv(gram + damping * torch.eye(len(gram), dtype=M.dtype))

    def step_U(V, anchor):
        return solved(M @ Q @ V, V.T @ Q @ V, anchor)

    def step_V(U, anchor):
        return solved(M.T @ P @ U, U.T @ P @ U, anchor)

    if pairs == 0:
        return step_U(V0, U0), step_V(U0, V0)
    U, V = U0, V0
    for half in range(2 * pairs):
        if (half % 2 == 0) == (first == "U"):
            U = step_U(V, U if moving else U0)
        else:
            V = step_V(U, V if moving else V0)
    return U, V


def svd_r(M, rank):
    U, s, Vh = torch.linalg.svd(M)
    return U[:, :rank] @ torch.diag(s[:rank]) @ Vh[:rank]


class Net(nn.Module):
    """q and k share their input and their shape."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.o = nn.Linear(12, 16), nn.Linear(12, 16, bias=False), nn.Linear(16, 10)
        self.double().requires_grad_(False)

    def forward(self, x):
        return self.o(torch.tanh(self.q(x)) * torch.cos(self.k(x)))


def loss(net, x=BATCH, total=ROWS):
    return (net(x) - x[:, :10].sin()).square().sum() / total


def gradients(weights, batches=(BATCH,), total=ROWS):
    """{role: (G, S, X)} of a plain Net with these weights, S and X of all batches one below another."""
    net, seen = Net(), {role: ([], []) for role in ROLES}

    def look(role):
        def hook(module, inputs, output):
            seen[role][0].append(inputs[0].detach())
            output.register_hook(seen[role][1].append)

        return hook

    for role in ROLES:
        layer = getattr(net, role)
        layer.weight.data, layer.weight.requires_grad = weights[role].clone(), True
        layer.register_forward_hook(look(role))
    for batch in batches:
        loss(net, batch, total).backward()
    return {
        role: (getattr(net, role).weight.grad, torch.cat(seen[role][1]), torch.cat(seen[role][0])) for role in ROLES
    }
