"""RMSNorm (Zhang & Sennrich 2019) and LayerNorm (Ba et al. 2016) over the last dimension.

Shapes: x, y (N, C); weight, bias (C) f32; rstd, mean (N) f32. Only the statistics are saved: the output is computed
again from the input where the backward of the next layer needs it (`recompute`), which costs one pass over memory and
saves an activation per norm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cktrain.memory.params import Param
from cktrain.memory.slot import Slot
from cktrain.nn.module import Module
from cktrain.nn.numerics import Numerics


class Norm(Module):
    """What both norms share: `forward` into a shared output, `recompute`, and a backward that adds into dx.

    `apply` and `add_gradient` work on any rows, given these rows of the `statistics`.
    """

    def __init__(self, name: str, numerics: Numerics, size: int, eps: float) -> None:
        super().__init__(name, numerics)
        self.size = size
        self.eps = eps
        self.weight = Param(f"{name}.weight", (size,), init="ones", decay=False, compute="f32")

    def forward(self, x: np.ndarray, slot: Slot) -> np.ndarray:
        """(N, C) -> (N, C), in an array that the next norm of this role overwrites."""
        y = slot.shared(self, "y", x.shape, self.num.real)
        self.apply(y, x, self.statistics(x, slot))
        return y

    def recompute(self, x: np.ndarray, slot: Slot) -> np.ndarray:
        """The output of `forward` again, for the same x."""
        return self.forward(x, slot)

    def backward_into(
        self, dx: np.ndarray, dy: np.ndarray, x: np.ndarray, slot: Slot, accumulate: bool = True
    ) -> np.ndarray:
        """dx (N, C) = or += the gradient of x for dy (N, C); dx may be dy or x."""
        self.add_gradient(dx, dy, x, self.statistics(x, slot), accumulate)
        self.grads_added()
        return dx

    def statistics(self, x: np.ndarray, slot: Slot) -> tuple[np.ndarray, ...]:
        """What backward needs of each row, (N) f32 each."""
        raise NotImplementedError

    def apply(self, y: np.ndarray, x: np.ndarray, statistics: Sequence[np.ndarray]) -> None:
        """Write y and the statistics of rows x."""
        raise NotImplementedError

    def add_gradient(
        self,
        dx: np.ndarray,
        dy: np.ndarray,
        x: np.ndarray,
        statistics: Sequence[np.ndarray],
        accumulate: bool,
    ) -> None:
        """As `backward_into`, for rows x; `grads_added` must follow the last of them."""
        raise NotImplementedError

    def grads_added(self) -> None:
        """All rows of a micro-batch have added their gradients."""
        self.weight.grad_added()

    def _stat(self, slot: Slot, name: str, x: np.ndarray) -> np.ndarray:
        return slot.saved(self, name, x.shape[:1], self.num.f32)


class RMSNorm(Norm):
    """y = x / sqrt(mean(x²) + eps) · weight."""

    def statistics(self, x: np.ndarray, slot: Slot) -> tuple[np.ndarray, ...]:
        """(1 / sqrt(mean(x²) + eps),)."""
        return (self._stat(slot, "rstd", x),)

    def apply(self, y: np.ndarray, x: np.ndarray, statistics: Sequence[np.ndarray]) -> None:
        """Write y and the statistics of rows x."""
        (rstd,) = statistics
        self.num.kernels.rms_norm_forward(y, rstd, x, self.weight.value, self.eps)

    def add_gradient(
        self,
        dx: np.ndarray,
        dy: np.ndarray,
        x: np.ndarray,
        statistics: Sequence[np.ndarray],
        accumulate: bool,
    ) -> None:
        """As `backward_into`, for rows x."""
        kernels, weight, (rstd,) = self.num.kernels, self.weight, statistics
        kernels.rms_norm_backward(dx, weight.sums(kernels), dy, x, weight.value, rstd, accumulate)


class LayerNorm(Norm):
    """y = (x - mean) / sqrt(var + eps) · weight + bias."""

    def __init__(self, name: str, numerics: Numerics, size: int, eps: float) -> None:
        super().__init__(name, numerics, size, eps)
        self.bias = Param(f"{name}.bias", (size,), init="zeros", decay=False, compute="f32")

    def statistics(self, x: np.ndarray, slot: Slot) -> tuple[np.ndarray, ...]:
        """(mean, 1 / sqrt(variance + eps))."""
        return self._stat(slot, "mean", x), self._stat(slot, "rstd", x)

    def apply(self, y: np.ndarray, x: np.ndarray, statistics: Sequence[np.ndarray]) -> None:
        """Write y and the statistics of rows x."""
        mean, rstd = statistics
        self.num.kernels.layer_norm_forward(y, mean, rstd, x, self.weight.value, self.bias.value, self.eps)

    def add_gradient(
        self,
        dx: np.ndarray,
        dy: np.ndarray,
        x: np.ndarray,
        statistics: Sequence[np.ndarray],
        accumulate: bool,
    ) -> None:
        """As `backward_into`, for rows x."""
        kernels, weight, bias, (mean, rstd) = self.num.kernels, self.weight, self.bias, statistics
        kernels.layer_norm_backward(
            dx, weight.sums(kernels), bias.sums(kernels), dy, x, weight.value, mean, rstd, accumulate
        )

    def grads_added(self) -> None:
        """All rows of a micro-batch have added their gradients."""
        self.weight.grad_added()
        self.bias.grad_added()
