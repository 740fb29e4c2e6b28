"""residual + alpha · y, where no kernel has both fused."""

from __future__ import annotations

import numpy as np

from cktrain.nn.numerics import Numerics


def add_scaled(
    num: Numerics, out: np.ndarray, y: np.ndarray, residual: np.ndarray | None, alpha: float
) -> None:
    """out = residual + alpha · y, all of one shape; out may be either. y is used up unless alpha is 1.

    The factor costs a pass over y in numpy; the models that have one (Granite) have it once per branch.
    """
    if alpha != 1.0:
        np.multiply(y, alpha, out=y)
    if residual is not None:
        num.kernels.add(out, residual, y)
    elif out is not y:
        num.kernels.cast(out, y)
