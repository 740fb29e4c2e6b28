"""Linear: y = x · wᵀ + bias, put together from a weight format, a layout and adapters.

    x (N, I) --layout--> rows --format.product (+ adapters)--> --layout--> y (N, O)

Shapes: x (N, I), w (O, I), y (N, O); under tensor parallelism N, I or O are this rank's. `format` is how the weight is
stored (`nn/formats.py`), `layout` what enters and leaves on this rank (`nn/layout.py`), `adapters` what is added to the
product between the two. They know nothing of each other, so any format can stand in any layout with any adapters.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cktrain.memory.param import Param
from cktrain.memory.slot import Slot
from cktrain.nn.formats import Dense, Format, Widened
from cktrain.nn.layout import Whole
from cktrain.nn.module import Module
from cktrain.nn.numerics import Numerics
from cktrain.nn.quantized import Quantized
from cktrain.nn.scaled import add_scaled


class Product(Module):
    """A linear map of rows. Its backward has two halves, for callers whose x is only there for one of them.

    dx may be x. Neither out nor dx may be x or dy, else.
    """

    def backward(
        self, dx: np.ndarray, dy: np.ndarray, x: np.ndarray, slot: Slot, accumulate: bool = False
    ) -> None:
        """dx = or += dy · w; the weight's gradient is added first, so dx may be x."""
        self.backward_weight(dy, x, slot)
        self.backward_input(dx, dy, slot, accumulate)

    def backward_weight(self, dy: np.ndarray, x: np.ndarray, slot: Slot) -> None:
        """Adds dyᵀ · x to the weight's gradient."""
        raise NotImplementedError

    def backward_input(self, dx: np.ndarray, dy: np.ndarray, slot: Slot, accumulate: bool = False) -> None:
        """dx = or += dy · w."""
        raise NotImplementedError


class Adapter(Product):
    """A product that is added to a linear's, between the two sides of its layout (LoRA: x · aᵀ · bᵀ).

    `forward(y, x, slot, residual=y)` adds to y, `backward_input(dx, dy, slot, accumulate=True)` to dx.
    """

    def shard(self, linear: Linear) -> None:
        """Keep the share of this rank, after the linear's weight was divided (`linear.weight.regions`)."""
        raise NotImplementedError

    def divided_rows(self) -> Iterable[tuple[Param, slice]]:
        """The parameters whose rows are the linear's outputs, and which of its outputs on this rank."""
        return ()

    def start(self) -> None:
        """Called once the weights beside which a fresh adapter stands are read. Collective over the linear's ranks."""

    def prepare(self, slot: Slot) -> None:
        """Called before each forward of the linear, and where what it left is to be had again. Collective over its ranks."""

    def around(self, format: Format) -> Format:
        """The weight's format as the adapter has it multiplied: another one where it changes the weight (DoRA)."""
        return format

    def output_gradient(self, dy: np.ndarray, slot: Slot) -> None:
        """Called with the dy of both halves of the backward, before either."""


class Linear(Product):
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
        weight: Param | None = None,
    ) -> None:
        """`parts` are the outputs of fused projections; `unit` outputs in a row, a head's, stay together.

        A `weight` that is given is also another module's (a tied embedding).
        """
        super().__init__(name, numerics)
        self.parts = parts
        self.unit = unit
        self.in_features = in_features
        self.out_features = out_features
        if weight is None:
            weight = Param(f"{name}.weight", (out_features, in_features), std=std, parts=parts)
        self.weight = weight
        self.bias = (
            Param(f"{name}.bias", (out_features,), init="zeros", decay=False, parts=parts, read_as="master")
            if bias
            else None
        )
        self.format: Dense | Widened | Quantized = Dense(weight)
        self.layout: Whole = Whole()
        self.adapters: list[Adapter] = []

    def forward(
        self,
        out: np.ndarray,
        x: np.ndarray,
        slot: Slot,
        residual: np.ndarray | None = None,
        alpha: float = 1.0,
    ) -> None:
        """out = residual + alpha · (x · wᵀ + bias)."""
        if alpha != 1.0:
            inner = slot.shared(self, "inner", out.shape, out.dtype)
            self.forward(inner, x, slot)
            add_scaled(self.num, out, inner, residual, alpha)
            return
        rows = self.layout.enter(x, slot)
        y, added = self.layout.product(out, residual, slot)
        bias = self.bias.value if self.bias is not None and self.layout.adds_bias else None
        if self.adapters:
            self.prepare(slot)
        format = self._adapted_format() if self.adapters else self.format
        format.product(y, rows, bias, added, self, slot)
        for adapter in self.adapters:
            adapter.forward(y, rows, slot, residual=y)
        self.layout.leave(out, y, residual)

    def recompute(self, x: np.ndarray, slot: Slot) -> None:
        """What adapters leave for the backward; it does not depend on x."""
        self.prepare(slot)

    def prepare(self, slot: Slot) -> None:
        """What adapters make of their weights for a forward and its backward."""
        for adapter in self.adapters:
            adapter.prepare(slot)

    def backward(
        self, dx: np.ndarray, dy: np.ndarray, x: np.ndarray, slot: Slot, accumulate: bool = False
    ) -> None:
        """As `Product.backward`, for the dy and x that stand on this rank."""
        super().backward(dx, self.output_gradient(dy, slot), x, slot, accumulate)

    def output_gradient(self, dy: np.ndarray, slot: Slot) -> np.ndarray:
        """What both halves of the backward read, for the dy that stands on this rank."""
        dy = self.layout.enter_gradient(dy, slot)
        for adapter in self.adapters:
            adapter.output_gradient(dy, slot)
        return dy

    def backward_weight(self, dy: np.ndarray, x: np.ndarray, slot: Slot) -> None:
        """Adds dyᵀ · x to the weight's gradient and the rows of dy to the bias's; dy from `output_gradient`.

        Of what is frozen nothing is computed.
        """
        if not (self.weight.trainable or self.adapters):
            self._add_bias_gradient(dy)
            return
        rows = self.layout.enter(x, slot)
        if self.weight.trainable:
            bias = self.bias if self.bias is not None and self.bias.trainable else None
            here = bias if self.layout.adds_bias else None
            format = self._adapted_format() if self.adapters else self.format
            format.weight_gradient(dy, rows, here, self, slot)
            self.weight.grad_added()
            if bias is not None:
                if here is None:
                    bias.accumulator(self.num.kernels)  # another rank's alone: nothing is added here
                bias.grad_added()
        else:
            self._add_bias_gradient(dy)
        for adapter in self.adapters:
            adapter.backward_weight(dy, rows, slot)

    def _adapted_format(self) -> Format:
        found: Format = self.format
        for adapter in self.adapters:
            found = adapter.around(found)
        return found

    def _add_bias_gradient(self, dy: np.ndarray) -> None:
        """The bias's gradient where the weight is frozen: no kernel sums rows alone."""
        if self.bias is not None and self.bias.trainable:
            total = self.bias.accumulator(self.num.kernels)
            if self.layout.adds_bias:
                total += dy.sum(axis=0, dtype=total.dtype)
            self.bias.grad_added()

    def backward_input(self, dx: np.ndarray, dy: np.ndarray, slot: Slot, accumulate: bool = False) -> None:
        """dx = or += dy · w; dy from `output_gradient`."""
        gradient, added = self.layout.gradient(dx, accumulate, slot)
        format = self._adapted_format() if self.adapters else self.format
        format.product_transposed(gradient, dy, added, self, slot)
        for adapter in self.adapters:
            adapter.backward_input(gradient, dy, slot, accumulate=True)
        self.layout.leave_gradient(dx, gradient, accumulate)

    def flops(self, rows: int, length: int) -> int:
        """6 per row and element; 4 where the weight is frozen."""
        own = (6 if self.weight.trainable else 4) * rows * self.in_features * self.out_features
        return own + super().flops(rows, length)
