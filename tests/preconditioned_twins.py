"""Slow, obviously right forms of the preconditioned LoRA optimizers, for one matrix: on its factors, and on X alone.

A *walk* is ``walk(U, V, s, gradient, steps, rate)``, the list of (U, V) after each step of X = s U V^T. Twins on the
factors can carry a defect, by name, so that a test can show that it would have seen it.
"""

from __future__ import annotations

import torch
from torch import nn

from harness.contract import Step
from harness.plugins import load_plugin

load_plugin("methods", "lora")  # registers the package that plug-ins and their shared parts are loaded under

DTYPE = torch.float64


def random(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


def start(m=12, n=9, r=3, seed=0):
    return random(m, r, seed=seed), random(n, r, seed=seed + 1)


def slope_of(m=12, n=9, noise=0.3):
    """A gradient field: of log cosh of the distance to a target that shakes from step to step."""
    target = random(m, n, seed=7)
    return lambda X, t: torch.tanh(X - target - noise * random(m, n, seed=100 + t))


def products(pairs, s):
    return torch.stack([s * U @ V.T for U, V in pairs])


def gauge(r=3, spread=0.5, seed=3):
    return torch.eye(r, dtype=DTYPE) + spread * random(r, r, seed=seed)


def projector(F):
    Q = torch.linalg.svd(F, full_matrices=False)[0][:, : torch.linalg.matrix_rank(F)]
    return Q @ Q.T


def truncated(M, r=3):
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    return U[:, :r] * S[:r] @ Vh[:r]


def tangent(X, G, r=3):
    U, _, Vh = torch.linalg.svd(X)
    P, Q = U[:, :r] @ U[:, :r].T, Vh[:r].T @ Vh[:r]
    return P @ G + G @ Q - P @ G @ Q


# --------------------------------------------------------------------------- the methods' own optimizers


def layer_of(U, V, s):
    from tuning_fork_methods._low_rank import LowRankLinear

    layer = LowRankLinear(nn.Linear(len(V), len(U), bias=False).to(DTYPE).requires_grad_(False), U.shape[1], s)
    layer.B.data, layer.A.data = U.clone(), V.T.contiguous().clone()  # torch's fused steps take memory in order
    return layer


def optimizer_of(name, layers, rate, **fields):
    """(method, optimizer); fields are not checked, so that damping may be zero."""
    method = load_plugin("methods", name, learning_rate=rate, **fields)
    method._layers = layers
    return method, method.optimizer(None)


def implementation(name, **fields):
    def walk(U, V, s, gradient, steps, rate):
        layer, pairs = layer_of(U, V, s), []
        method, optimizer = optimizer_of(name, [layer], rate, **fields)
        for t in range(steps):
            take_step(method, optimizer, [layer], [gradient], t)
            pairs.append((layer.B.detach().clone(), layer.A.detach().T.clone()))
        return pairs

    return walk


def take_step(method, optimizer, layers, gradients, t):
    for layer, gradient in zip(layers, gradients, strict=True):
        B, A, s = layer.B.detach(), layer.A.detach(), layer.scale
        G = gradient(s * B @ A, t)
        layer.B.grad, layer.A.grad = s * G @ A.T, s * B.T @ G
    method.after_backward(None, Step(t, 10, 0.0))
    optimizer.step()
    optimizer.zero_grad()


# --------------------------------------------------------------------------- twins on the factors


class Adam:
    def __init__(self):
        self.m = self.v = self.t = 0

    def __call__(self, g, epsilon=1e-8):
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g * g
        return self.m / (1 - 0.9**self.t) / ((self.v / (1 - 0.999**self.t)) ** 0.5 + epsilon)


def inverse(F, s, damping):
    return torch.linalg.inv(s * F.T @ F + damping * torch.eye(F.shape[1], dtype=DTYPE))


def lora_sgd(U, V, s, gradient, steps, rate):
    pairs = []
    for t in range(steps):
        G = gradient(s * U @ V.T, t)
        U, V = U - rate * s * G @ V, V - rate * s * G.T @ U
        pairs.append((U, V))
    return pairs


def scaled_gd(damping=0.0, momentum=0.0, update="sgd", defect=""):
    def walk(U, V, s, gradient, steps, rate):
        pairs, m_U, m_V, adams = [], 0, 0, (Adam(), Adam())
        for t in range(steps):
            G = gradient(s * U @ V.T, t)
            K_U, K_V = inverse(U, s, damping), inverse(V, s, damping)
            if defect == "missing inverse":
                K_U = K_V = torch.eye(len(K_U), dtype=DTYPE)
            if defect == "wrong side":
                K_U, K_V = K_V, K_U
            c = 1.0 if defect == "missing scale" else 1 / s
            d_U, d_V = c * (s * G @ V) @ K_V, c * (s * G.T @ U) @ K_U
            if defect == "wrong sign":
                d_V = -d_V
            if update == "adamw":
                d_U, d_V = adams[0](d_U), adams[1](d_V)
            else:
                d_U, d_V = m_U, m_V = momentum * m_U + d_U, momentum * m_V + d_V
            U, V = U - rate * d_U, V - rate * d_V
            pairs.append((U, V))
        return pairs

    return walk


def corrected(U, V, s, G, damping, defect="", Y=None):
    """LoRA-Pro's dU and dV, its Sylvester equation solved as one linear system of r^2 unknowns."""
    K_inverse, L_inverse = inverse(U, s, damping), inverse(V, s, damping)
    G_U, G_V, eye = s * G @ V, s * G.T @ U, torch.eye(U.shape[1], dtype=DTYPE)
    if defect == "wrong side":
        K_inverse, L_inverse = L_inverse, K_inverse
    if defect == "missing inverse":
        K_inverse = L_inverse = eye
    if Y is None:
        K, L, right = torch.linalg.inv(K_inverse), torch.linalg.inv(L_inverse), K_inverse @ G_V.T @ V
        system = torch.kron(K.contiguous(), eye) + torch.kron(eye, L.T.contiguous())  # kron fails on other layouts
        Y = torch.linalg.solve(system, right.reshape(-1, 1)).reshape(right.shape)
    P = s * U @ K_inverse @ U.T
    if defect == "missing projector product":
        P = torch.zeros_like(P)
    c = 1.0 if defect == "missing scale" else 1 / s
    sign = -1 if defect == "wrong sign" else 1
    return c * (G_U - P @ G_U) @ L_inverse + U @ Y, c * G_V @ K_inverse - sign * V @ Y.T


def lora_pro(damping=0.0, update="sgd", defect=""):
    def walk(U, V, s, gradient, steps, rate):
        pairs, adams = [], (Adam(), Adam())
        for t in range(steps):
            G = gradient(s * U @ V.T, t)
            d_U, d_V = corrected(U, V, s, G, damping, defect)
            if update == "adamw":
                d_U, d_V = adams[0](d_U), adams[1](d_V)
            if update == "adamw_full":
                d_U, d_V = corrected(U, V, s, adams[0](s * (d_U @ V.T + U @ d_V.T)), damping, defect)
            U, V = U - rate * d_U, V - rate * d_V
            pairs.append((U, V))
        return pairs

    return walk


def alt_lora(damping=0.0, momentum=0.0, defect=""):
    def walk(U, V, s, gradient, steps, rate):
        factors, pairs, moments, was = [U, V], [], [0, 0], [V, U]
        for t in range(steps):
            G = gradient(s * factors[0] @ factors[1].T, t)
            moving = (t + (defect == "A first")) % 2
            F, rest = factors[moving], factors[1 - moving]
            K = inverse(F if defect == "wrong side" else rest, s, damping)
            if defect == "missing inverse":
                K = torch.eye(len(K), dtype=DTYPE)
            g = (1 if defect == "missing scale" else 1 / s) * (s * (G.T if moving else G) @ rest) @ K
            turn = s * was[moving].T @ rest @ K
            if defect == "no transport":
                turn = torch.eye(len(K), dtype=DTYPE)
            moments[moving] = momentum * (moments[moving] @ turn if t > 1 else 0) + (1 - momentum) * g
            was[moving] = rest
            factors[moving] = F - rate * moments[moving] / (1 - momentum ** (t // 2 + 1))
            pairs.append(tuple(factors))
        return pairs

    return walk


def lora_rite(defect="", epsilon=1e-6):
    """With bases and triangles from the singular value decomposition, of a factor U, V of full rank."""

    def walk(U, V, s, gradient, steps, rate):
        factors, pairs, moments, seconds, escaped, was = [U, V], [], [0, 0], [0, 0], [0, 0], [None, None]
        for t in range(steps):
            G = gradient(s * factors[0] @ factors[1].T, t)
            b1, b2 = (b * (1 - b**t) / (1 - b ** (t + 1)) for b in (0.9, 0.999))
            new = list(factors)
            for i in (0, 1):
                rest, G_i = factors[1 - i], G.T if i else G
                Q, S, Vh = torch.linalg.svd(rest, full_matrices=False)
                R = S[:, None] * Vh
                c = 1.0 if defect == "missing scale" else 1 / s
                g = c * s * G_i @ rest @ (torch.eye(len(R), dtype=DTYPE) if defect == "magnified" else R.inverse())
                M = S2 = torch.zeros(len(R), dtype=DTYPE).diag()
                if t:
                    T = Q.T @ was[i]
                    M = moments[i] if defect == "first moment stays" else moments[i] @ T.T
                    S2 = seconds[i] if defect == "second moment stays" else T @ seconds[i] @ T.T
                    fall = torch.linalg.eigvalsh(seconds[i]) - torch.linalg.eigvalsh(S2)
                    lost = min(fall.max(), fall.sum()).clamp(min=0)
                    escaped[i] = 0 if defect == "no escaped mass" else b2 * (escaped[i] + lost)
                seconds[i] = b2 * S2 + (1 - b2) * g.T @ g / len(g)
                values, vectors = torch.linalg.eigh(seconds[i])
                root = vectors / ((values.clamp(min=0) + escaped[i]) ** 0.5 + epsilon) @ vectors.T
                moments[i] = (b1 * M if t else 0) + (1 - b1) * g @ root
                back = torch.eye(len(R), dtype=DTYPE) if defect == "not mapped back" else R.inverse().T
                new[i] = factors[i] - rate / s * moments[i] @ back
                was[i] = Q
            factors = new
            pairs.append(tuple(factors))
        return pairs

    return walk


# --------------------------------------------------------------------------- twins on X alone


def scaled_gd_of_X(X, gradient, steps, rate, r=3):
    """X - rate (P_U G + G P_V) + rate^2 G X^+ G: two factors' steps multiplied out."""
    path = []
    for t in range(steps):
        G, inverse = gradient(X, t), torch.linalg.pinv(truncated(X, r), rtol=1e-10)
        X = X - rate * (X @ inverse @ G + G @ inverse @ X) + rate**2 * G @ inverse @ G
        path.append(X)
    return torch.stack(path)


def alt_lora_of_X(X, gradient, steps, rate, momentum=0.0, r=3):
    """Half the steps project G and a momentum, all (m, n), on the rows of X, half on its columns."""
    path, moments = [], [torch.zeros_like(X), torch.zeros_like(X)]
    for t in range(steps):
        G, (U, _, Vh) = gradient(X, t), torch.linalg.svd(X)
        D = momentum * moments[t % 2] + (1 - momentum) * G
        moments[t % 2] = U[:, :r] @ U[:, :r].T @ D if t % 2 else D @ Vh[:r].T @ Vh[:r]
        X = X - rate * moments[t % 2] / (1 - momentum ** (t // 2 + 1))
        path.append(X)
    return torch.stack(path)


def lora_rite_of_X(X, gradient, steps, rate, r=3, epsilon=1e-6):
    """Bases are X's singular vectors; moments are kept as (m, n), (m, m) and (n, n)."""
    path = []
    D, C, e = [torch.zeros_like(X), torch.zeros_like(X.T)], [0 * X @ X.T, 0 * X.T @ X], [0.0, 0.0]
    for t in range(steps):
        G, (left, values, right) = gradient(X, t), torch.linalg.svd(X)
        Qs = left[:, :r], right[:r].T
        b1, b2 = (b * (1 - b**t) / (1 - b ** (t + 1)) for b in (0.9, 0.999))
        parts = []
        for i, (Q, G_i) in enumerate(zip(Qs, (G, G.T), strict=True)):  # i = 0: V's moments, in the columns of X
            moved = Q.T @ C[i] @ Q
            fall = torch.linalg.eigvalsh(C[i])[-r:] - torch.linalg.eigvalsh(moved)
            e[i] = b2 * (e[i] + float(min(fall.max(), fall.sum()).clamp(min=0)))
            second = b2 * moved + (1 - b2) * Q.T @ G_i @ G_i.T @ Q / G_i.shape[1]
            w, vectors = torch.linalg.eigh(second)
            root = vectors / ((w.clamp(min=0) + e[i]) ** 0.5 + epsilon) @ vectors.T
            D[i] = b1 * Q @ Q.T @ D[i] + (1 - b1) * Q @ root @ Q.T @ G_i
            C[i] = Q @ second @ Q.T
            parts.append(D[i])
        inverse = right[:r].T / values[:r] @ left[:, :r].T
        X = X - rate * (parts[0] + parts[1].T) + rate**2 * parts[1].T @ inverse @ parts[0]
        path.append(X)
    return torch.stack(path)
