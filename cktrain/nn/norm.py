"""RMSNorm (Zhang & Sennrich 2019) and LayerNorm (Ba et al. 2016) over the last dimension.

Shapes: x, y (N, C); weight, bias (C) f32; rstd, mean (N) f32. Only the statistics are saved: the output is computed
again from the input where the backward of the next layer needs it (`recompute`), which costs one pass over memory and
saves an activation per norm.
"""

from __future__ import annotations

import numpy as np

from cktrain.nn.memory import Slot
from cktrain.nn.module import Module
from cktrain.nn.numerics import Numerics
from cktrain.nn.params import Param


class Norm(Module):
    """What both norms share: `forward` into a shared output, `recompute`, and a backward that adds into dx."""

    def __init__(self, name: str, numerics: Numerics, size: int, eps: float) -> None:
        super().__init__(name, numerics)
        self.size = size
        self.eps = eps
        self.weight = Param(f"{name}.weight", (size,), init="ones", decay=False, compute="f32")

    def recompute(self, x: np.ndarray, slot: Slot) -> np.ndarray:
        """The output of `forward` again, for the same x."""
        return self.forward(x, slot)

    def backward_into(
        self, dx: np.ndarray, dy: np.ndarray, x: np.ndarray, slot: Slot, accumulate: bool = True
    ) -> np.ndarray:
        """dx = or += the gradient of x, and dx may be dy; the weight's gradient is accumulated."""
        raise NotImplementedError

    def _stat(self, slot: Slot, name: str, x: np.ndarray) -> np.ndarray:
        return slot.saved(self, name, x.shape[:1], self.num.f32)

    def _output(self, slot: Slot, x: np.ndarray) -> np.ndarray:
        return slot.shared(self, "y", x.shape, self.num.real)


class RMSNorm(Norm):
    """y = x / sqrt(mean(x²) + eps) · weight."""

    def forward(self, x: np.ndarray, slot: Slot) -> np.ndarray:
        """(N, C) -> (N, C), in an array that the next norm of this role overwrites."""
        y = self._output(slot, x)
        self.num.kernels.rms_norm_forward(y, self._stat(slot, "rstd", x), x, self.weight.value, self.eps)
        return y

    def backward_into(
        self, dx: np.ndarray, dy: np.ndarray, x: np.ndarray, slot: Slot, accumulate: bool = True
    ) -> np.ndarray:
        """dx (N, C) = or += d x for dy (N, C)."""
        rstd = self._stat(slot, "rstd", x)
        self.num.kernels.rms_norm_backward(dx, self.weight.grad, dy, x, self.weight.value, rstd, accumulate)
        self.weight.grad_added()
        return dx


class LayerNorm(Norm):
    """y = (x - mean) / sqrt(var + eps) · weight + bias."""

    def __init__(self, name: str, numerics: Numerics, size: int, eps: float) -> None:
        super().__init__(name, numerics, size, eps)
        self.bias = Param(f"{name}.bias", (size,), init="zeros", decay=False, compute="f32")

    def forward(self, x: np.ndarray, slot: Slot) -> np.ndarray:
        """(N, C) -> (N, C), in an array that the next norm of this role overwrites."""
        y = self._output(slot, x)
        self.num.kernels.layer_norm_forward(
            y,
            self._stat(slot, "mean", x),
            self._stat(slot, "rstd", x),
            x,
            self.weight.value,
            self.bias.value,
            self.eps,
        )
        return y

    def backward_into(
        self, dx: np.ndarray, dy: np.ndarray, x: np.ndarray, slot: Slot, accumulate: bool = True
    ) -> np.ndarray:
        """dx (N, C) = or += d x for dy (N, C)."""
        self.num.kernels.layer_norm_backward(
            dx,
            self.weight.grad,
            self.bias.grad,
            dy,
            x,
            self.weight.value,
            self._stat(slot, "mean", x),
            self._stat(slot, "rstd", x),
            accumulate,
        )
        self.weight.grad_added()
        self.bias.grad_added()
        return dx
