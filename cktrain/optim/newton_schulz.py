"""The orthogonal matrix nearest to a matrix, by Newton-Schulz iterations: what Muon makes of an update.

Keller Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". With X (R, C) divided by its
Frobenius norm, each step is X <- a X + b A X + c A² X with A = X Xᵀ. Completing the square, b A + c A² is
c S² - b²/4c with S = A + b/2c, so that a step is two symmetric products (`symmetric_product`, of which half is computed)
and one whole product, and no pass over memory beside them:

    S = X Xᵀ + b/2c        P = c S² + (a - b²/4c)        X <- P X

Where X has more rows than columns, A = Xᵀ X and X <- X P. With M the smaller of R and C, a step of R·C elements takes
3 M R C + M³ floating-point operations. Products are in the compute dtype, the last one is added to fp32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from cktrain.memory.arena import Arena, nbytes_of
from cktrain.nn.numerics import Numerics

A, B, C = 3.4445, -4.7750, 2.0315
"""Keller Jordan's coefficients: the steepest slope at zero that keeps all singular values near one."""
EPS = 1e-7
"""The norm that an update is divided by at least."""


def newton_schulz_flops(rows: int, columns: int, steps: int) -> int:
    """Floating-point operations of `steps` iterations on a matrix."""
    smaller = min(rows, columns)
    return steps * (3 * smaller * rows * columns + smaller**3)


class NewtonSchulz:
    """Iterations on matrices of at most the sizes that it was made for."""

    def __init__(self, numerics: Numerics, shapes: Iterable[tuple[int, int]], steps: int) -> None:
        """`shapes` are all (rows, columns) that will come."""
        self.numerics = numerics
        self.steps = steps
        shapes = list(shapes)
        elements = max((rows * columns for rows, columns in shapes), default=0)
        square = max((min(shape) ** 2 for shape in shapes), default=0)
        real = numerics.compute_dtype
        sizes = [elements, square, square] + [elements] * (real != numerics.master_dtype)
        arena = Arena("optimizer workspace", sum(nbytes_of((size,), real) + 64 for size in sizes))
        self._buffers = [arena.array((size,), real) for size in sizes]

    def add(self, out: np.ndarray, update: np.ndarray, scale: float) -> None:
        """out (R, C) f32 += scale · the orthogonalised update (R, C) f32, which is workspace afterwards."""
        kernels = self.numerics.kernels
        wide = update.shape[0] <= update.shape[1]
        other, s, p, *narrow = self._buffers
        m = min(update.shape)
        s, p = s[: m * m].reshape(m, m), p[: m * m].reshape(m, m)
        y = other[: update.size].reshape(update.shape)
        x = update
        if narrow:
            x = narrow[0][: update.size].reshape(update.shape)
            kernels.cast(x, update)
        factor = 1.0 / max(math.sqrt(kernels.sum_of_squares(update)), EPS)
        for step in range(self.steps):
            last = step == self.steps - 1
            kernels.symmetric_product(s, x, not wide, scale=factor * factor, shift=B / (2 * C))
            factor *= scale if last else 1.0
            kernels.symmetric_product(p, s, scale=C * factor, shift=(A - B * B / (4 * C)) * factor)
            factor = 1.0
            if not last:
                kernels.matmul(y, *((p, x) if wide else (x, p)))
                x, y = y, x
            elif wide:
                kernels.linear_backward_weight(out, None, p, x, accumulate=True)
            else:
                kernels.linear_forward(out, x, p, residual=out)
