"""RMSNorm (Zhang & Sennrich 2019) and LayerNorm (Ba et al. 2016) over the last dimension.

Shapes: x, y (N, C), or (N, H, D) where heads are normed; weight, bias (C) or (D) f32; rstd, mean (N) or (N, H) f32. Only
the statistics are saved: the output is computed again from the input where a backward needs it (`nn/branch.py`), which
costs one pass over memory and saves an activation per norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from cktrain.memory.param import Param
from cktrain.memory.slot import Slot
from cktrain.nn.module import Module
from cktrain.nn.numerics import Numerics
from cktrain.nn.scaled import add_scaled


class Norm(Module):
    """What both norms share.

    out may be x or the residual; dx may be dy or x. `apply` and `add_gradient` work on any rows, given these
    rows of the `statistics`.
    """

    statistic_names: tuple[str, ...]

    def __init__(
        self, name: str, numerics: Numerics, size: int, eps: float, init: Literal["ones", "zeros"] = "ones"
    ) -> None:
        super().__init__(name, numerics)
        self.size = size
        self.eps = eps
        self.weight = Param(f"{name}.weight", (size,), init=init, decay=False, read_as="master")

    def forward(
        self,
        out: np.ndarray,
        x: np.ndarray,
        slot: Slot,
        residual: np.ndarray | None = None,
        alpha: float = 1.0,
    ) -> None:
        """out = residual + alpha · norm(x); the kernel adds the residual, a factor is a second pass."""
        if alpha == 1.0:
            self.apply(out, x, self.statistics(x, slot), residual)
            return
        normed = slot.shared(self, "normed", x.shape, self.num.compute_dtype)
        self.apply(normed, x, self.statistics(x, slot))
        add_scaled(self.num, out, normed, residual, alpha)

    def recompute(self, x: np.ndarray, slot: Slot) -> None:
        """The statistics; no kernel computes them alone."""
        self.apply(slot.shared(self, "normed", x.shape, self.num.compute_dtype), x, self.statistics(x, slot))

    def backward(
        self, dx: np.ndarray, dy: np.ndarray, x: np.ndarray, slot: Slot, accumulate: bool = False
    ) -> None:
        """dx = or += the gradient of x for dy, with the statistics that `forward` left."""
        self.add_gradient(dx, dy, x, self.statistics(x, slot), accumulate)
        self.grads_added()

    def statistics(self, x: np.ndarray, slot: Slot) -> tuple[np.ndarray, ...]:
        """What backward needs of each row, (N) or (N, H) f32 each."""
        shape, f32 = x.shape[:-1], self.num.master_dtype
        return tuple([slot.saved(self, name, shape, f32) for name in self.statistic_names])

    def normalize(self, x: np.ndarray) -> np.ndarray:
        """norm(x) in a new array, for few rows (N, C), where no backward follows."""
        y = np.empty_like(x)
        self.apply(y, x, [np.empty(x.shape[:-1], self.num.master_dtype) for _ in self.statistic_names])
        return y

    def apply(
        self,
        y: np.ndarray,
        x: np.ndarray,
        statistics: Sequence[np.ndarray],
        residual: np.ndarray | None = None,
    ) -> None:
        """Write y = norm(x) + residual, which may be x or the residual, and the statistics of rows x."""
        raise NotImplementedError

    def add_gradient(
        self,
        dx: np.ndarray,
        dy: np.ndarray,
        x: np.ndarray,
        statistics: Sequence[np.ndarray],
        accumulate: bool,
    ) -> None:
        """As `backward`, for rows x; `grads_added` must follow the last of them."""
        raise NotImplementedError

    def grads_added(self) -> None:
        """All rows of a micro-batch have added their gradients."""
        if self.weight.trainable:
            self.weight.grad_added()

    def _accumulator(self, param: Param) -> np.ndarray:
        """Where a kernel adds the gradient of `param`; that of a frozen one is thrown away."""
        if param.trainable:
            return param.accumulator(self.num.kernels)
        return np.zeros(param.shape, self.num.master_dtype)


class RMSNorm(Norm):
    """y = x / sqrt(mean(x²) + eps) · weight."""

    statistic_names = ("rstd",)

    def __init__(
        self, name: str, numerics: Numerics, size: int, eps: float, unit_offset: bool = False
    ) -> None:
        """With `unit_offset` rows are multiplied by 1 + weight, and fresh weights are 0 (Gemma)."""
        super().__init__(name, numerics, size, eps, "zeros" if unit_offset else "ones")
        self.offset = 1.0 if unit_offset else 0.0

    def apply(
        self,
        y: np.ndarray,
        x: np.ndarray,
        statistics: Sequence[np.ndarray],
        residual: np.ndarray | None = None,
    ) -> None:
        """Write y = norm(x) + residual and the statistics of rows x."""
        (rstd,) = statistics
        self.num.kernels.rms_norm_forward(y, rstd, x, self.weight.value, self.eps, residual, self.offset)

    def add_gradient(
        self,
        dx: np.ndarray,
        dy: np.ndarray,
        x: np.ndarray,
        statistics: Sequence[np.ndarray],
        accumulate: bool,
    ) -> None:
        """As `backward`, for rows x."""
        (rstd,) = statistics
        dw = self._accumulator(self.weight)
        self.num.kernels.rms_norm_backward(dx, dw, dy, x, self.weight.value, rstd, accumulate, self.offset)


class LayerNorm(Norm):
    """y = (x - mean) / sqrt(var + eps) · weight + bias."""

    statistic_names = ("mean", "rstd")

    def __init__(self, name: str, numerics: Numerics, size: int, eps: float) -> None:
        super().__init__(name, numerics, size, eps)
        self.bias = Param(f"{name}.bias", (size,), init="zeros", decay=False, read_as="master")

    def apply(
        self,
        y: np.ndarray,
        x: np.ndarray,
        statistics: Sequence[np.ndarray],
        residual: np.ndarray | None = None,
    ) -> None:
        """Write y = norm(x) + residual and the statistics of rows x."""
        mean, rstd = statistics
        self.num.kernels.layer_norm_forward(
            y, mean, rstd, x, self.weight.value, self.bias.value, self.eps, residual
        )

    def add_gradient(
        self,
        dx: np.ndarray,
        dy: np.ndarray,
        x: np.ndarray,
        statistics: Sequence[np.ndarray],
        accumulate: bool,
    ) -> None:
        """As `backward`, for rows x."""
        mean, rstd = statistics
        dw, db = self._accumulator(self.weight), self._accumulator(self.bias)
        self.num.kernels.layer_norm_backward(dx, dw, db, dy, x, self.weight.value, mean, rstd, accumulate)

    def grads_added(self) -> None:
        """All rows of a micro-batch have added their gradients."""
        super().grads_added()
        if self.bias.trainable:
            self.bias.grad_added()
