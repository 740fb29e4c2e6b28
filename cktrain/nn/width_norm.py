"""RMSNorm over all heads of a row at once, as OLMo-2 norms its queries and keys.

    y = x / sqrt(mean over H·D of x² + eps) · weight

Shapes: x, y (N, H, D), views of the projection; weight (H·D) f32; rstd (N) f32. Under tensor parallelism a rank has some
of the heads and their weights, and each row's mean is over all ranks' heads: one number per row is reduced in the forward,
and one in the backward. Each rank's share is equally wide, so the mean of the row is the mean over the ranks, also where
neighbours have the same key/value heads: there they are all counted as often, and each neighbour has a part of the
gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cktrain.memory.slot import Slot
from cktrain.nn.layout import Whole
from cktrain.nn.norm import RMSNorm
from cktrain.nn.numerics import Numerics


class WidthNorm(RMSNorm):
    """RMSNorm of heads side by side. out may be x unless there is a residual; dx may be dy or x."""

    def __init__(self, name: str, numerics: Numerics, size: int, eps: float, unit: int) -> None:
        """`unit` is D: a head's numbers stay together on a rank."""
        super().__init__(name, numerics, size, eps)
        self.unit = unit
        self.layout = Whole()

    def statistics(self, x: np.ndarray, slot: Slot) -> tuple[np.ndarray, ...]:
        """(1 / sqrt(mean(x²) + eps),), (N) f32."""
        return (slot.saved(self, "rstd", x.shape[:1], self.num.master_dtype),)

    def apply(
        self,
        y: np.ndarray,
        x: np.ndarray,
        statistics: Sequence[np.ndarray],
        residual: np.ndarray | None = None,
    ) -> None:
        """Write y, which may be x, and the statistics of rows x; a residual only where no ranks divide the heads."""
        y, x, (rstd,) = _flat(y), _flat(x), statistics
        assert residual is None or not self.layout.moves, self.name
        super().apply(y, x, statistics, None if residual is None else _flat(residual))
        if not self.layout.moves or self.num.is_dry:
            return
        own = rstd.copy()
        rstd[...] = self._mean_over_ranks(own**-2) ** -0.5
        np.multiply(y, (rstd / own)[:, None], out=y, casting="unsafe")

    def backward(
        self, dx: np.ndarray, dy: np.ndarray, x: np.ndarray, slot: Slot, accumulate: bool = False
    ) -> None:
        """dx = or += rstd · weight · dy - x · rstd³ · mean(weight · dy · x), with the rstd that `forward` left.

        The kernel takes this mean over the rank's own heads; what is missing to the row's is added here.
        """
        dx, dy, x, (rstd,) = _flat(dx), _flat(dy), _flat(x), self.statistics(x, slot)
        f32, own = self.num.master_dtype, np.empty(0)
        divided = self.layout.moves and not self.num.is_dry
        if self.layout.moves:
            product = slot.shared(self, "product", x.shape, f32)
        if divided:
            np.multiply(dy, x, out=product, dtype=f32)
            own = product @ self.weight.value / self.size
        self.add_gradient(dx, dy, x, (rstd,), accumulate)
        if divided:
            missing = rstd**3 * (own - self._mean_over_ranks(own))
            np.multiply(x, missing[:, None], out=product, dtype=f32)
            np.add(dx, product, out=dx, casting="unsafe")
        self.grads_added()

    def _mean_over_ranks(self, rows: np.ndarray) -> np.ndarray:
        mean = rows / self.layout.ranks
        self.layout.all_reduce(mean, "sum")
        return mean


def _flat(heads: np.ndarray) -> np.ndarray:
    """(N, H, D) -> (N, H·D), a view."""
    return heads.reshape(heads.shape[0], -1)
