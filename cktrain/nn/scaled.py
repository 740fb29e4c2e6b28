"""residual + alpha · y, for products that are written without them (`Linear`, `Norm` and `Embedding` with an alpha)."""

from __future__ import annotations

import numpy as np

from cktrain.nn.numerics import Numerics


def add_scaled(
    num: Numerics, out: np.ndarray, y: np.ndarray, residual: np.ndarray | None, alpha: float
) -> None:
    """out = residual + alpha · y, all of one shape; out may be either. A residual of None is none."""
    if residual is None:
        scale(num, out, y, alpha)
    else:
        num.kernels.add(out, residual, y, alpha)


def scale(num: Numerics, out: np.ndarray, y: np.ndarray, alpha: float) -> None:
    """out = alpha · y, rounded once; out may be y."""
    zeros = np.broadcast_to(np.zeros(y.shape[1], y.dtype), y.shape)  # one row of memory, for all rows
    num.kernels.add(out, zeros, y, alpha)
