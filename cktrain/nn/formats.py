"""The format of a weight: how its numbers are stored, and the three products that read or fill them.

Shapes: w (O, I); x, dx (N, I); y, dy (N, O). `Dense` keeps the weight in the compute dtype, which the kernels multiply.
`Widened` is read-only: bf16 or fp16 as a file has it, so that a frozen weight is held once and in its own dtype. The
products with quantized weights take it, too, and widen its numbers while they pack them. Rows that are no whole number of
groups of 32 are widened to the compute dtype by blocks of rows, just before each block is multiplied.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import ml_dtypes
import numpy as np

from cktrain.cython_kernels.block_formats import BLOCK_FORMATS
from cktrain.memory.arena import shape_alone
from cktrain.memory.param import Param
from cktrain.memory.slot import Slot
from cktrain.nn.module import Module

BLOCK_BYTES = 2 << 20
"""Of a block of a widened weight: it is read from the cache that it was written to."""


class Format(Protocol):
    """How a weight is stored and multiplied."""

    weight: Param

    def product(
        self,
        y: np.ndarray,
        x: np.ndarray,
        bias: np.ndarray | None,
        residual: np.ndarray | None,
        module: Module,
        slot: Slot,
    ) -> None:
        """y = x · wᵀ + bias + residual, which may be y; bias f32 (O)."""

    def product_transposed(
        self, dx: np.ndarray, dy: np.ndarray, accumulate: bool, module: Module, slot: Slot
    ) -> None:
        """dx = or += dy · w."""

    def weight_gradient(
        self, dy: np.ndarray, x: np.ndarray, bias: Param | None, module: Module, slot: Slot
    ) -> None:
        """Add dyᵀ · x to the weight's gradient, unless it is frozen, and the rows of dy to the bias's.

        `grad_added` must follow.
        """

    def blocks(self, module: Module, slot: Slot) -> Iterator[tuple[slice, np.ndarray]]:
        """(rows of w, those rows in the compute dtype), `block_shape` at a time; an array is valid until the next one."""

    def rows(self, rows: slice, module: Module) -> np.ndarray:
        """Those rows of w, to be read: as they are stored, or decoded."""


def block_shape(weight: Param, itemsize: int) -> tuple[int, int]:
    """(rows, I) of a block of a weight whose elements have so many bytes."""
    count, width = weight.shape
    return min(count, max(1, BLOCK_BYTES // (width * itemsize))), width


class Dense:
    """A weight in the compute dtype, trained or not."""

    def __init__(self, weight: Param) -> None:
        self.weight = weight

    def look_up(self, y: np.ndarray, ids: np.ndarray, module: Module) -> None:
        """y (N, I) = the rows of w that ids (N,) int32 name."""
        module.num.kernels.embedding_forward(y, ids, self.weight.value)

    def product(
        self,
        y: np.ndarray,
        x: np.ndarray,
        bias: np.ndarray | None,
        residual: np.ndarray | None,
        module: Module,
        slot: Slot,
    ) -> None:
        """y = x · wᵀ + bias + residual, which may be y; bias f32 (O)."""
        module.num.kernels.linear_forward(y, x, self.weight.value, bias, residual)

    def product_transposed(
        self, dx: np.ndarray, dy: np.ndarray, accumulate: bool, module: Module, slot: Slot
    ) -> None:
        """dx = or += dy · w."""
        module.num.kernels.linear_backward_input(dx, dy, self.weight.value, accumulate)

    def weight_gradient(
        self, dy: np.ndarray, x: np.ndarray, bias: Param | None, module: Module, slot: Slot
    ) -> None:
        """Add dyᵀ · x to the weight's gradient, unless it is frozen, and the rows of dy to the bias's.

        `grad_added` must follow.
        """
        weight = self.weight
        if not weight.trainable:
            return
        module.num.kernels.linear_backward_weight(
            weight.grad, None if bias is None else bias.grad, dy, x, weight.should_accumulate()
        )
        weight.grad_written()

    def blocks(self, module: Module, slot: Slot) -> Iterator[tuple[slice, np.ndarray]]:
        """As `Format.blocks`: views."""
        height, _ = block_shape(self.weight, module.num.compute_dtype.itemsize)
        for start in range(0, self.weight.shape[0], height):
            rows = slice(start, min(start + height, self.weight.shape[0]))
            yield rows, self.weight.value[rows]

    def rows(self, rows: slice, module: Module) -> np.ndarray:
        """As `Format.rows`."""
        return self.weight.value[rows]


class ByBlocks:
    """What formats share whose weight is made ready for the kernels block by block."""

    def __init__(self, weight: Param) -> None:
        self.weight = weight

    def product(
        self,
        y: np.ndarray,
        x: np.ndarray,
        bias: np.ndarray | None,
        residual: np.ndarray | None,
        module: Module,
        slot: Slot,
    ) -> None:
        """y = x · wᵀ + bias + residual, which may be y; bias f32 (O). A block of w gives some columns of y."""
        for rows, block in self.blocks(module, slot):
            module.num.kernels.linear_forward(
                y[:, rows],
                x,
                block,
                None if bias is None else bias[rows],
                None if residual is None else residual[:, rows],
            )

    def product_transposed(
        self, dx: np.ndarray, dy: np.ndarray, accumulate: bool, module: Module, slot: Slot
    ) -> None:
        """dx = or += dy · w, the sum over blocks of w."""
        for rows, block in self.blocks(module, slot):
            module.num.kernels.linear_backward_input(dx, dy[:, rows], block, accumulate or rows.start > 0)

    def blocks(self, module: Module, slot: Slot) -> Iterator[tuple[slice, np.ndarray]]:
        """As `Format.blocks`."""
        raise NotImplementedError

    def rows(self, rows: slice, module: Module) -> np.ndarray:
        """As `Format.rows`."""
        return self.weight.value[rows]


STORED = {np.dtype(ml_dtypes.bfloat16): "bf16", np.dtype(np.float16): "f16"}
"""What the products with quantized weights call such numbers."""


class Widened(ByBlocks):
    """A frozen weight of bf16 or fp16 (O, I) as its file has it, on any CPU; widening is exact."""

    def product(
        self,
        y: np.ndarray,
        x: np.ndarray,
        bias: np.ndarray | None,
        residual: np.ndarray | None,
        module: Module,
        slot: Slot,
    ) -> None:
        """As `Format.product`."""
        if self._in_groups():
            kernels, (stored, name) = module.num.kernels, self._stored()
            kernels.quantized_forward(y, x, stored, name, bias, residual)
        else:
            super().product(y, x, bias, residual, module, slot)

    def product_transposed(
        self, dx: np.ndarray, dy: np.ndarray, accumulate: bool, module: Module, slot: Slot
    ) -> None:
        """As `Format.product_transposed`."""
        if self._in_groups():
            kernels, (stored, name) = module.num.kernels, self._stored()
            kernels.quantized_backward_input(dx, dy, stored, name, accumulate)
        else:
            super().product_transposed(dx, dy, accumulate, module, slot)

    def _in_groups(self) -> bool:
        """Whether rows are whole groups of what those products read at a time."""
        return self.weight.shape[1] % BLOCK_FORMATS["bf16"].values == 0

    def _stored(self) -> tuple[np.ndarray, str]:
        """The bytes (O, 2 I) of the weight, and the name of their format."""
        value, name = self.weight.value, STORED[self.weight.value.dtype]
        if 0 in value.strides:  # planned arrays have no memory to view
            return shape_alone((value.shape[0], 2 * value.shape[1]), np.dtype(np.uint8)), name
        return value.view(np.uint8), name

    def look_up(self, y: np.ndarray, ids: np.ndarray, module: Module) -> None:
        """y (N, I) = the rows of w that ids (N,) int32 name, widened."""
        if not module.num.is_dry:
            np.copyto(y, self.weight.value[ids], casting="unsafe")

    def weight_gradient(
        self, dy: np.ndarray, x: np.ndarray, bias: Param | None, module: Module, slot: Slot
    ) -> None:
        """Nothing: the weight is frozen."""

    def blocks(self, module: Module, slot: Slot) -> Iterator[tuple[slice, np.ndarray]]:
        """As `Format.blocks`, one after the other in one array."""
        stored = self.weight.value
        count = len(stored)
        height, width = block_shape(self.weight, module.num.compute_dtype.itemsize)
        block = slot.shared(module, "widened", (height, width), module.num.compute_dtype)
        for start in range(0, count, height):
            rows = slice(start, min(start + height, count))
            part = block[: rows.stop - start]
            if stored.dtype == ml_dtypes.bfloat16 and part.dtype == np.float32:
                module.num.kernels.cast(part, stored[rows])
            else:
                np.copyto(part, stored[rows], casting="unsafe")
            yield rows, part
