"""A structured unitary product of pairs of inputs, and its once-a-step derivation.  Arjovsky et al., arXiv 1511.06464.

    U = D3 R2 F^-1 D2 Pi R1 F D1    on C^n, n = in / 2, by z_k = x_{2k} + i x_{2k+1}
    D_k = diag(e^{i phases_k})    R_j = I - 2 v_j v_j^H / |v_j|^2    F: unitary DFT    (Pi a)_k = a_{order_k}

With G = F^-1 D2 Pi, c_j = 2 / |v_j|^2 and w = G^H v2 the reflections are one product of rank 2, so that activations pass
two FFTs, a gather, three diagonals and a low-rank product, real and of rank 4 on x:

    U = D3 (G F + p1 q1^H + p2 q2^H) D1    p1 = -c1 (G v1 - c2 (w^H v1) v2)   q1 = F^-1 v1   p2 = -c2 v2   q2 = F^-1 w

``down`` is q^H D1 and ``up`` is p, as real (4, in). M: (in, in) is the orthogonal matrix that U is on x.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fft import fft, ifft


class Unitary(NamedTuple):
    """One layer's U, or with a leading axis that of several. ``phases``, ``down`` and ``up`` gather gradients."""

    phases: Tensor  # (3, n)
    down: Tensor  # (4, in)
    up: Tensor  # (4, in)
    turns: Tensor  # (3, n), complex: e^{i phases}
    order: Tensor  # (n,)
    inverse: Tensor  # (n,): undoes ``order``


def derive(phases: Tensor, reflectors: Tensor, order: Tensor) -> Unitary:
    """From phases: (layers, 3, n), reflectors: (layers, 2, n, 2), order: (layers, n); differentiable."""
    inverse = order.argsort(-1)
    first, second, _ = turns = torch.polar(torch.ones_like(phases), phases).unbind(-2)
    v1, v2 = torch.view_as_complex(reflectors).unbind(-2)
    c1, c2 = (2 / reflectors.square().sum((-2, -1))).unsqueeze(-1).unbind(-2)
    forth = ifft(v1.gather(-1, order) * second, norm="ortho")  # G v1
    back = (fft(v2, norm="ortho") * second.conj()).gather(-1, inverse)  # G^H v2
    overlap = torch.linalg.vecdot(back, v1).unsqueeze(-1)
    p = torch.stack([-c1 * (forth - c2 * overlap * v2), -c2 * v2], -2)
    q = ifft(torch.stack([v1, back], -2), norm="ortho") * first.conj().unsqueeze(-2)
    return Unitary(phases, _real_rows(q), _real_rows(p), torch.stack(turns, -2).detach(), order, inverse)


def _real_rows(a: Tensor) -> Tensor:
    """(..., 2, n) complex to (..., 4, in): a_1, i a_1, a_2, i a_2, so that x a^T is Re and Im of each a_j^H z."""
    return torch.view_as_real(torch.stack([a, 1j * a], -2)).flatten(-4, -3).flatten(-2)


class Derived:
    """What ``derive`` gave for layers of several sizes in this step; gradients meet on detached leaves, one a layer.

    A layer has ``phases``, ``reflectors``, ``order``, and ``unitary``, which is set here.
    """

    def __init__(self, layers: Sequence):
        sizes: dict[int, list] = {}
        for layer in layers:
            sizes.setdefault(layer.in_size, []).append(layer)
        self.groups = []
        with torch.enable_grad():
            for group in sizes.values():
                parts = ([getattr(layer, name) for layer in group] for name in ("phases", "reflectors", "order"))
                self.groups.append((group, derive(*map(torch.stack, parts))))
        for group, derived in self.groups:
            for layer, parts in zip(group, zip(*derived, strict=True), strict=True):
                leaves = (part.detach().requires_grad_() for part in parts[:3])
                layer.unitary = Unitary(*leaves, *parts[3:])

    def collect(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Send the leaves' gradients, ``reduce``d over processes, back to the layers' parameters; drop the leaves."""
        for group, derived in self.groups:
            gradients = []
            for position in range(3):
                leaves = [layer.unitary[position] for layer in group]
                gradients.append(reduce(torch.stack([_gradient(leaf) for leaf in leaves])))
            torch.autograd.backward(derived[:3], gradients)
            for layer in group:
                layer.unitary = None


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


# --------------------------------------------------------------------------- products


def turn(x: Tensor, u: Unitary) -> Tensor:
    """Rows x: (tokens, in) of any type to rows M x, where M: (in, in) is U on pairs of reals."""
    return _Turn.apply(x, *u)


def turn_back(rows: Tensor, u: Unitary) -> Tensor:
    """Rows x: (tokens, in) to rows M^T x, which is U^H on pairs. No gradient."""
    back = u.turns.conj()
    turned = pairs(rows, u.up.dtype) * back[2]
    low = unpaired(turned) @ u.up.t()
    spectrum = _gathered(fft(turned, norm="ortho") * back[1], u.inverse, turned)
    turned = ifft(spectrum, norm="ortho") * back[0]
    return unpaired(turned).addmm_(low, u.down).to(rows.dtype)


def pairs(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(tokens, in) as (tokens, n) complex; a view where the type is ``dtype`` already."""
    return torch.view_as_complex(x.to(dtype).contiguous().unflatten(-1, (-1, 2)))


def unpaired(z: Tensor) -> Tensor:
    """(tokens, n) complex as (tokens, in): a view."""
    return torch.view_as_real(z).flatten(-2)


def orthogonality_defect(turned: Tensor) -> Tensor:
    """max |M^T M - I| from the rows M e_0, M e_2, ...: (n, in); the odd ones are i times these."""
    columns = pairs(turned, turned.dtype)
    eye = torch.eye(len(columns), dtype=columns.dtype, device=columns.device)
    return torch.view_as_real(columns.conj() @ columns.mT - eye).abs().max()


class _Turn(torch.autograd.Function):
    """Saves x and the spectrum: what left the second FFT is made from it again.

    For a = D b, D = diag(e^{i phases}), and the gradient g at a:  d phases = sum over tokens of Im(g conj(a)), which is
    the same after D as before it. The way back goes by h = conj(g), whose products need no further conjugates:
    U^T = D1 F Pi^T D2 F^-1 D3 and so on. Fresh memory costs as much as arithmetic here, so that buffers are used again.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, phases: Tensor, down: Tensor, up: Tensor, turns: Tensor, order: Tensor, inverse: Tensor
    ) -> Tensor:
        with _without_autocast(x.device.type):
            z = pairs(x, up.dtype)
            low = unpaired(z) @ down.t()  # (tokens, 4)
            buffer = z * turns[0]
            spectrum = _gathered(fft(buffer, norm="ortho"), order, buffer).mul_(turns[1])
            turned = _after_spectrum(spectrum, low, up).mul_(turns[2])
        ctx.save_for_backward(x, low, spectrum, down, up, turns, inverse)
        return unpaired(turned).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple:
        x, low, spectrum, down, up, turns, inverse = ctx.saved_tensors
        with _without_autocast(x.device.type):
            z = pairs(x, up.dtype)
            h = pairs(gradient, up.dtype) * turns[2].conj()
            g_low, g_up = unpaired(h) @ up.t(), low.t() @ unpaired(h)
            h.conj_physical_()
            buffer = _after_spectrum(spectrum, low, up)
            third = buffer.mul_(h).sum(0)
            middle = ifft(h, norm="ortho")
            second = torch.mul(middle, spectrum, out=buffer).sum(0)
            h = fft(_gathered(middle.mul_(turns[1]), inverse, h), norm="ortho").mul_(turns[0])
            first = torch.mul(h, z, out=buffer).sum(0)  # the FFTs' part: ``down`` has the reflections'
            g_x = unpaired(h.conj_physical_()).addmm_(g_low, down).to(x.dtype)
            g_phases = torch.stack([first, second, third]).imag.neg()
            return g_x, g_phases, g_low.t() @ unpaired(z), g_up, None, None, None


def _without_autocast(device: str) -> contextlib.AbstractContextManager:
    available = torch.amp.is_autocast_available(device)  # not so on the meta device
    return torch.autocast(device, enabled=False) if available else contextlib.nullcontext()


def _after_spectrum(spectrum: Tensor, low: Tensor, up: Tensor) -> Tensor:
    """What D3 acts on."""
    turned = ifft(spectrum, norm="ortho")
    unpaired(turned).addmm_(low, up)
    return turned


def _gathered(z: Tensor, order: Tensor, out: Tensor) -> Tensor:
    return torch.gather(z, 1, order.expand(z.shape), out=out)
