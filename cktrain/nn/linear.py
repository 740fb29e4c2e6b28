"""Linear: y = x · wᵀ + bias (+ residual).

Shapes: x (N, I), w (O, I), y (N, O). The input is not saved here: whoever calls `backward` gives it, since the caller
may hold it already or compute it again.
"""

from __future__ import annotations

import numpy as np

from cktrain.memory.params import Param
from cktrain.memory.slot import Slot
from cktrain.nn.module import Module
from cktrain.nn.numerics import Numerics


class Linear(Module):
    """A matrix and an optional bias."""

    def __init__(
        self,
        name: str,
        numerics: Numerics,
        in_features: int,
        out_features: int,
        bias: bool,
        std: float,
        parts: tuple[int, ...] = (),
        unit: int = 1,
    ) -> None:
        """`parts` are the outputs of fused projections; `unit` outputs in a row, a head's, stay together."""
        super().__init__(name, numerics)
        self.parts = parts
        self.unit = unit
        self.in_features = in_features
        self.out_features = out_features
        self.weight = Param(f"{name}.weight", (out_features, in_features), std=std, parts=parts)
        self.bias = (
            Param(f"{name}.bias", (out_features,), init="zeros", decay=False, parts=parts, compute="f32")
            if bias
            else None
        )

    def input(self, x: np.ndarray, slot: Slot) -> np.ndarray:
        """The rows that the product reads, for the x that enters: x itself, unless ranks divide its rows."""
        return x

    def output_gradient(self, dy: np.ndarray, slot: Slot) -> np.ndarray:
        """What both backward products read, for the dy that enters: dy itself, unless ranks divide its rows."""
        return dy

    def apply(
        self, y: np.ndarray, x: np.ndarray, slot: Slot, residual: np.ndarray | None = None
    ) -> np.ndarray:
        """y = x · wᵀ + bias + residual into the given y, which may be the residual."""
        self.num.kernels.linear_forward(
            y, x, self.weight.value, None if self.bias is None else self.bias.value, residual
        )
        return y

    def backward_input(self, dx: np.ndarray, dy: np.ndarray, slot: Slot) -> np.ndarray:
        """dx = dy · w."""
        self.num.kernels.linear_backward_input(dx, dy, self.weight.value)
        return dx

    def backward_weight(self, dy: np.ndarray, x: np.ndarray) -> None:
        """Adds dyᵀ · x to the weight's gradient and the rows of dy to the bias's."""
        bias, adds = self.bias, self.weight.adds()
        if bias is not None:
            bias.stale = False  # written together with the weight's
        self.num.kernels.linear_backward_weight(
            self.weight.grad, None if bias is None else bias.grad, dy, x, adds
        )
        self.weight.grad_added()
        if bias is not None:
            bias.grad_added()

    def output(self, slot: Slot, name: str = "y", saved: bool = False) -> np.ndarray:
        """An array for y, saved or shared."""
        take = slot.saved if saved else slot.shared
        return take(self, name, (slot.rows, self.out_features), self.num.real)
