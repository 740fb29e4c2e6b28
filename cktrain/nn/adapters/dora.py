"""DoRA (Liu et al. 2024): y = g ∘ (x · (w + s · b · a)ᵀ), g = m / n, n the norms of the rows of w + s · b · a.

    w (O, I), a (R, I), b (O_p, r_p) of each target    m, n, g (O): of the rows of no target g is 1

The magnitude m is trained beside a and b, and begins as the norms of the rows of w, so that an untrained adapter changes
nothing. n follows a and b but counts as a constant in the backward, as the paper has it (section 4.3). It needs no merged
matrix:

    n² = ‖w‖² + 2 s · b ∘ (w · aᵀ) + s² · b · (a · aᵀ) ∘ b        summed over r_p; ‖w‖² once, w is frozen

The rows of w and of b are multiplied by g before they are multiplied by x or dy, a block of w at a time: that is a pass over
w for each product, and none over y (N, O), and bias and residual stay in the product. Backward, with dz = g ∘ dy:

    db, da, dx     as LoRA's and the linear's, from dz
    dm             (w ∘ (dyᵀ · x) + s · b ∘ (dyᵀ · u)) summed over each row, divided by n

dyᵀ · x is the product that a frozen weight saves otherwise, also by blocks: half of a linear's forward and backward more.

Under tensor parallelism g of a linear whose inputs are divided needs the sum of the ranks' n², O numbers per forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from cktrain.memory.param import Param
from cktrain.memory.slot import Slot
from cktrain.nn.adapters.lora import LoRA, LowRankRows, Target
from cktrain.nn.formats import BLOCK_BYTES, ByBlocks, Format, block_shape
from cktrain.nn.linear import Linear
from cktrain.nn.module import Module


class Magnitude(Module):
    """The magnitudes of one target's outputs."""

    def __init__(self, linear: Linear, rows: LowRankRows) -> None:
        last = rows.target.name.rpartition(".")[2]
        super().__init__(f"{linear.name}.lora_magnitude_vector.{last}", linear.num)
        size = rows.weight.shape[:1]
        self.weight = Param(
            f"{self.name}.weight", size, init="ones", decay=False, adapter=True, read_as="master"
        )


class Rescaled(ByBlocks):
    """A weight as DoRA has it multiplied: g ∘ w, made block by block."""

    def __init__(self, format: Format, dora: DoRA) -> None:
        super().__init__(format.weight)
        self._format = format
        self._dora = dora

    def blocks(self, module: Module, slot: Slot) -> Iterator[tuple[slice, np.ndarray]]:
        """As `Format.blocks`."""
        gain, num = self._dora.gain(slot), module.num
        shape = block_shape(self.weight, num.compute_dtype.itemsize)
        scaled = slot.shared(module, "rescaled", shape, num.compute_dtype)
        wide = scaled
        if num.compute_dtype != num.master_dtype:
            wide = slot.shared(module, "rescaled, wide", shape, num.master_dtype)
        for rows, block in self._format.blocks(module, slot):
            here, whole = scaled[: len(block)], wide[: len(block)]
            if wide is scaled:
                np.multiply(block, gain[rows, None], out=here)
            else:
                num.kernels.cast(whole, block)
                whole *= gain[rows, None]
                num.kernels.cast(here, whole)
            yield rows, here

    def weight_gradient(
        self, dy: np.ndarray, x: np.ndarray, bias: Param | None, module: Module, slot: Slot
    ) -> None:
        """As `Format.weight_gradient`, of w: the rows of dyᵀ · x by g."""
        if not self.weight.trainable:
            return
        kernels, gain = module.num.kernels, self._dora.gain(slot)
        total = self.weight.accumulator(kernels)
        for rows, product in self._dora.products(dy, x, slot):
            total[rows] += gain[rows, None] * product
        if bias is not None and not module.num.is_dry:
            sums = bias.accumulator(kernels)
            sums += dy.sum(axis=0, dtype=sums.dtype)


class DoRA(LoRA):
    """LoRA with a trained magnitude per output. What `LoRA` says of arguments holds."""

    def __init__(self, linear: Linear, targets: Sequence[Target], dropout: float = 0.0) -> None:
        """As `LoRA`; what dropout leaves out is left out of the low-rank products, not of x · (g ∘ w)ᵀ."""
        super().__init__(linear, targets, dropout)
        self.m = [Magnitude(linear, rows) for rows in self.b]
        self._linear = lambda: linear  # a plain attribute would make the linear a module below this one
        self._squares: np.ndarray | None = None
        """‖w‖² of a frozen weight, once it was needed: this rank's part of the sums."""
        self._constant: np.ndarray | None = None
        """g where nothing trains that it depends on."""

    # -------------------------------------------------------------------------------------------- its weights

    def shard(self, linear: Linear) -> None:
        """As `Adapter.shard`: magnitudes follow the linear's outputs."""
        super().shard(linear)
        for rows, magnitude in zip(self.b, self.m, strict=True):
            if rows.weight.is_sharded:
                magnitude.weight.shard(rows.weight.shape[:1], rows.weight.regions)

    def divided_rows(self) -> Iterator[tuple[Param, slice]]:
        """As `Adapter.divided_rows`."""
        yield from super().divided_rows()
        for rows, magnitude in zip(self.b, self.m, strict=True):
            yield magnitude.weight, rows.rows

    def start(self) -> None:
        """As `Adapter.start`: magnitudes are the norms of the rows of w."""
        squares = self._base_squares().copy()
        self._linear().layout.sum_over_inputs(squares)
        for rows, magnitude in zip(self.b, self.m, strict=True):
            magnitude.weight.data[...] = np.sqrt(squares[rows.rows])

    def merge_into(self, weight: np.ndarray) -> None:
        """weight (O, I) = g ∘ (weight + s · b · a), where all of it stands here; computed in the master dtype."""
        super().merge_into(weight)
        for rows, magnitude in zip(self.b, self.m, strict=True):
            part = weight[rows.rows]
            norms = np.sqrt(_row_squares(part, self.num.master_dtype))
            part *= (magnitude.weight.data * _inverse(norms))[:, None].astype(weight.dtype)

    # --------------------------------------------------------------------------------------------------- gains

    def prepare(self, slot: Slot) -> None:
        """As `Adapter.prepare`: 1 / n and g, for this forward and its backward."""
        if self._constant is not None:
            return
        gain, inverse = self._gains(slot)
        inverse[...] = self._inverse_norms(slot)
        gain[...] = 1
        for rows, magnitude in zip(self.b, self.m, strict=True):
            gain[rows.rows] = magnitude.weight.value * inverse[rows.rows]
        trains = any(param.trainable for param in (self._linear().weight, *self.params()))
        if not (trains or self.num.is_dry):
            self._constant = gain.copy()

    def around(self, format: Format) -> Format:
        """As `Adapter.around`."""
        return Rescaled(format, self)

    def gain(self, slot: Slot) -> np.ndarray:
        """g (O) f32 of the forward that was prepared."""
        return self._gains(slot)[0] if self._constant is None else self._constant

    def _gains(self, slot: Slot) -> np.ndarray:
        """(2, O) f32: g and 1 / n."""
        return slot.saved(self, "gain", (2, self._linear().weight.shape[0]), self.num.master_dtype)

    def _inverse_norms(self, slot: Slot) -> np.ndarray:
        """1 / n (O) f32; 0 where a row is zero."""
        linear, f32 = self._linear(), self.num.master_dtype
        shape = len(self.a.value), linear.weight.shape[0]
        crossed = slot.shared(self, f"w aᵀ of {shape[0]}", shape, f32)
        linear.format.product(crossed, self.a.value, None, None, linear, slot)
        squares = self._base_squares().copy()
        for rows in self.b:
            s, b = rows.target.scale, rows.weight.value.astype(f32)
            a = self.a.value[rows.columns].astype(f32)
            inner = crossed[rows.columns, rows.rows].T + 0.5 * s * (b @ (a @ a.T))
            squares[rows.rows] += 2 * s * np.einsum("or,or->o", b, inner)
        linear.layout.sum_over_inputs(squares)
        return _inverse(np.sqrt(np.maximum(squares, 0)))

    def _base_squares(self) -> np.ndarray:
        """‖w‖² (O) of the rows of w, or of what stands here of them."""
        if self._squares is not None:
            return self._squares
        weight = self._linear().weight
        squares = self._squares_of(self._linear().format)
        if not (weight.trainable or self.num.is_dry):
            self._squares = squares
        return squares

    def _squares_of(self, format: Format) -> np.ndarray:
        """‖w‖² (O), f32, of the rows of a weight, some at a time."""
        count, width = format.weight.shape
        found = np.empty(count, self.num.master_dtype)
        height = max(1, BLOCK_BYTES // (width * found.itemsize))
        for start in range(0, count, height):
            rows = slice(start, min(start + height, count))
            found[rows] = _row_squares(format.rows(rows, self._linear()), found.dtype)
        return found

    # ------------------------------------------------------------------------------------------------ products

    def backward_weight(self, dy: np.ndarray, x: np.ndarray, slot: Slot) -> None:
        """Adds the gradients of a, b and m."""
        f32, (gain, inverse) = self.num.master_dtype, self._gains(slot)
        along = slot.shared(self, "along", gain.shape, f32)  # the rows of dyᵀ · z, z the output before g
        along[...] = 0
        linear = self._linear()
        blocks = linear.format.blocks(linear, slot)
        for (span, product), (_, block) in zip(self.products(dy, x, slot), blocks, strict=True):
            along[span] = np.einsum("oi,oi->o", block.astype(f32, copy=False), product)
        dropped = self._dropped(x, slot)
        inner = self._inner(len(x), slot)
        for rows, magnitude in zip(self.b, self.m, strict=True):
            b = rows.weight
            name = f"{self._name_of(rows)}, raw gradient"
            raw = slot.shared(self, name, b.shape, f32)
            self.num.kernels.linear_backward_weight(
                raw, None, dy[:, rows.rows], inner[:, rows.columns], False
            )
            along[rows.rows] += np.einsum("or,or->o", b.value.astype(f32, copy=False), raw)
            self._add(b, gain[rows.rows, None] * raw)
            self._add(magnitude.weight, inverse[rows.rows] * along[rows.rows])
        self._add_a_gradient(dy, dropped, slot)

    def products(self, dy: np.ndarray, x: np.ndarray, slot: Slot) -> Iterator[tuple[slice, np.ndarray]]:
        """(rows of w, those rows of dyᵀ · x), f32, in the blocks in which the weight is multiplied."""
        weight, f32 = self._linear().weight, self.num.master_dtype
        height, width = block_shape(weight, self.num.compute_dtype.itemsize)
        product = slot.shared(self, "dyᵀ x", (height, width), f32)
        for start in range(0, weight.shape[0], height):
            rows = slice(start, min(start + height, weight.shape[0]))
            part = product[: rows.stop - start]
            self.num.kernels.linear_backward_weight(part, None, dy[:, rows], x, False)
            yield rows, part

    def _b(self, rows: LowRankRows, slot: Slot) -> np.ndarray:
        """g ∘ b, of the compute dtype."""
        b = rows.weight.value
        scaled = slot.shared(self, self._name_of(rows), b.shape, b.dtype)
        np.multiply(b, self.gain(slot)[rows.rows, None], out=scaled, casting="unsafe")
        return scaled

    def _name_of(self, rows: LowRankRows) -> str:
        """Of arrays like a target's b; layers whose ranks differ have arrays of their own."""
        return f"b of {rows.role}, {rows.target.rank}"

    def _add(self, param: Param, gradient: np.ndarray) -> None:
        if param.trainable:
            total = param.accumulator(self.num.kernels)
            total += gradient
            param.grad_added()


def _row_squares(weight: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The squared norms of the rows of a matrix (O, I), in this dtype, some rows at a time."""
    found = np.empty(len(weight), dtype)
    height = max(1, BLOCK_BYTES // (weight.shape[1] * dtype.itemsize))
    for start in range(0, len(weight), height):
        block = weight[start : start + height].astype(dtype, copy=False)
        np.einsum("oi,oi->o", block, block, out=found[start : start + height])
    return found


def _inverse(norms: np.ndarray) -> np.ndarray:
    """1 / norms; 0 where a norm is 0."""
    return np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
