"""A frozen weight in blocks (`cython_kernels/block_formats.py`), decoded while it is multiplied.

Shapes: w (O, I), held as O rows of blocks; x, dx (N, I); y, dy (N, O). Many rows decode pieces of w into the panels that the
product packs anyway, few rows read the blocks once, so there is no second copy of a weight. The gradient of the input
passes through w as it is decoded (Dettmers et al. 2023); the weight has none. Of few rows each group of 32 activations may
be rounded to 8 bits (`--activations q8` of `cktrain generate`): then the products are of integers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cktrain.cython_kernels.block_formats import NOT_INTEGERS
from cktrain.memory.param import Param
from cktrain.memory.slot import Slot
from cktrain.nn.formats import block_shape
from cktrain.nn.module import Module

FEW_ROWS = 8
"""Up to so many rows, those of a text that is written, are rounded to 8 bits where `Numerics.rounds` says so."""


class Quantized:
    """A weight whose parts (`Param.blocks`) are each stored in the blocks of a format."""

    def __init__(self, weight: Param) -> None:
        self.weight = weight

    def look_up(self, y: np.ndarray, ids: np.ndarray, module: Module) -> None:
        """y (N, I) = the rows of w that ids (N,) int32 name, decoded; of a weight in one format."""
        (part,) = self.weight.blocks
        module.num.kernels.dequantize(y, part.data, part.format.name, ids)

    def product(
        self,
        y: np.ndarray,
        x: np.ndarray,
        bias: np.ndarray | None,
        residual: np.ndarray | None,
        module: Module,
        slot: Slot,
    ) -> None:
        """y = x · wᵀ + bias + residual, which may be y; bias f32 (O). A part of w gives some columns of y."""
        for part in self.weight.blocks:
            kernels, format = module.num.kernels, part.format.name
            rounded = module.num.rounds and len(x) <= FEW_ROWS and format not in NOT_INTEGERS
            product = kernels.quantized_forward_q8 if rounded else kernels.quantized_forward
            product(
                y[:, part.rows],
                x,
                part.data,
                format,
                None if bias is None else bias[part.rows],
                None if residual is None else residual[:, part.rows],
            )

    def product_transposed(
        self, dx: np.ndarray, dy: np.ndarray, accumulate: bool, module: Module, slot: Slot
    ) -> None:
        """dx = or += dy · w, the sum over parts of w."""
        for part in self.weight.blocks:
            module.num.kernels.quantized_backward_input(
                dx, dy[:, part.rows], part.data, part.format.name, accumulate or part.rows.start > 0
            )

    def weight_gradient(
        self, dy: np.ndarray, x: np.ndarray, bias: Param | None, module: Module, slot: Slot
    ) -> None:
        """Nothing: the weight is frozen."""

    def blocks(self, module: Module, slot: Slot) -> Iterator[tuple[slice, np.ndarray]]:
        """As `Format.blocks`, one after the other in one array."""
        count, dtype = self.weight.shape[0], module.num.compute_dtype
        height, width = block_shape(self.weight, dtype.itemsize)
        block = slot.shared(module, "decoded", (height, width), dtype)
        for start in range(0, count, height):
            rows = slice(start, min(start + height, count))
            yield rows, self._decode(rows, block[: rows.stop - start], module)

    def rows(self, rows: slice, module: Module) -> np.ndarray:
        """As `Format.rows`."""
        count = len(range(*rows.indices(self.weight.shape[0])))
        return self._decode(rows, np.empty((count, self.weight.shape[1]), module.num.master_dtype), module)

    def _decode(self, rows: slice, values: np.ndarray, module: Module) -> np.ndarray:
        for part in self.weight.blocks:
            low, high = max(rows.start, part.rows.start), min(rows.stop, part.rows.stop)
            if low < high:
                here = part.data[low - part.rows.start : high - part.rows.start]
                module.num.kernels.dequantize(
                    values[low - rows.start : high - rows.start], here, part.format.name
                )
        return values
