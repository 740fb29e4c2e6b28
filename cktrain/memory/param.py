"""A parameter: what is known of it (`ParamSpec`), and what this rank holds of it (`Param`).

    spec      name, global shape, tags          the same on every rank
    shape     the shard that stands here        `regions` say which part of the global parameter it is
    data      master weights, or the frozen weights     grad: the gradient     value: what kernels read

A spec is never changed: whoever decides something (which patterns freeze it, over which ranks its gradient is summed)
gives the parameter a new one, before the parameter has memory. The arrays come from a `ParamStore`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from cktrain.cython_kernels.block_formats import BLOCK_FORMATS, BlockFormat


@dataclass(frozen=True)
class ParamSpec:
    """What every rank knows of a parameter, before any of them gives it memory."""

    name: str
    global_shape: tuple[int, ...]
    """(rows,) or (rows, columns) of the undivided parameter."""
    init: Literal["normal", "uniform", "ones", "zeros"] = "normal"
    std: float = 0.02
    """Of fresh weights, where `init` is normal or uniform."""
    parts: tuple[int, ...] = ()
    """Rows of the matrices that are fused along the first dimension, e.g. (query, key, value)."""
    read_as: Literal["compute", "master"] = "compute"
    """The dtype in which kernels read it: the compute dtype, or fp32 also in bf16 runs."""
    decay: bool = True
    """Whether weight decay applies: matrices yes, biases and norm weights no."""
    optimizer: Literal["elementwise", "matrix"] = "elementwise"
    """Whether an optimizer that works on whole matrices (Muon) takes it, or always an elementwise one."""
    adapter: bool = False
    """Whether it is an adapter's: no file of the model holds it, PEFT's does."""
    trainable: bool = True
    """Frozen parameters have no gradient, no moments and no master weights."""
    storage: np.dtype | None = None
    """The dtype of its file, in which a frozen parameter is held; None: the one that kernels read."""
    blocks: tuple[str, ...] = ()
    """Block formats in which a frozen matrix is held (`cython_kernels/block_formats.py`): one, or each of its parts'."""
    reduce_axes: frozenset[str] = frozenset({"data"})
    """Axes of the mesh over which each rank has only a part of its gradient (`cktrain/parallel/roles.py`)."""

    @property
    def role(self) -> str:
        """The name without the layer's number: model.layers.mlp.down_proj.weight."""
        return ".".join(part for part in self.name.split(".") if not part.isdigit())


@dataclass(frozen=True)
class ShardRegion:
    """`rows` rows of a shard, from `row` on, are the global parameter's rows from `global_row` on.

    Of a matrix they are its columns from `column` on, as many as the shard has.
    """

    row: int
    global_row: int
    rows: int
    column: int = 0


@dataclass(frozen=True)
class BlockRows:
    """Some rows of a shard that are held in blocks of one format."""

    rows: slice
    format: BlockFormat
    data: np.ndarray
    """(rows, W) uint8."""


class Param:
    """One parameter, or what a rank holds of it. A `ParamStore` gives it its arrays.

    `data` is the fp32 master weights, `grad` the fp32 gradient, views of the store's flat buffers; `value` is what
    kernels read: `data` itself, or its compute copy. A frozen parameter has `data`, in the dtype in which it is held,
    and `value`, the same array; one in blocks has their bytes, (bytes,) uint8, and `blocks` says whose they are. Rows of the
    shard in no region are padding and stay zero.
    """

    data: np.ndarray
    grad: np.ndarray
    value: np.ndarray

    def __init__(self, name: str, shape: tuple[int, ...], **tags: Any) -> None:
        """`shape` is the global one; `tags` are the other fields of `ParamSpec`."""
        self.spec = ParamSpec(name, shape, **tags)
        self.trainable = self.spec.trainable
        """Whether it has a gradient. Backward passes ask it several times per product."""
        self.shape = shape
        """Of the shard that stands here."""
        self.regions: tuple[ShardRegion, ...] = (ShardRegion(0, 0, shape[0]),)
        self.start = -1
        """Offset of the first element in the flat buffers; -1: in none."""
        self.on_grad: Callable[[Param], None] | None = None
        """Called after each contribution to `grad`."""
        self.has_memory = False
        self._written = True

    def __repr__(self) -> str:
        return f"Param({self.name!r}, {self.shape} of {self.global_shape})"

    @property
    def name(self) -> str:
        """Unique in the model; fresh weights are drawn from it."""
        return self.spec.name

    @property
    def global_shape(self) -> tuple[int, ...]:
        """Of the undivided parameter."""
        return self.spec.global_shape

    @property
    def parts(self) -> tuple[int, ...]:
        """Rows of the matrices that are fused along the first dimension of the global parameter."""
        return self.spec.parts

    @property
    def size(self) -> int:
        """Number of elements that stand here."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_sharded(self) -> bool:
        """Whether other ranks hold other elements of it."""
        return self.shape != self.global_shape

    def tag(self, **tags: Any) -> None:
        """Decide something of it: a new spec with these fields. Before it has memory."""
        assert not self.has_memory, self.name
        self.spec = dataclasses.replace(self.spec, **tags)
        self.trainable = self.spec.trainable

    def shard(self, shape: tuple[int, ...], regions: tuple[ShardRegion, ...]) -> None:
        """Hold only these regions of the global parameter, in an array of this shape. Before it has memory."""
        assert not self.has_memory and not self.is_sharded, self.name
        for name in self.spec.blocks:
            if shape[1] % BLOCK_FORMATS[name].values:
                raise ValueError(
                    f"[parallel] of the {self.global_shape[1]:,} columns of {self.name} a tensor rank would have "
                    f"{shape[1]:,}, no whole number of {name}'s blocks of {BLOCK_FORMATS[name].values}. Use fewer tensor "
                    "ranks, or another model.quantize."
                )
        self.shape, self.regions = shape, regions

    # ---------------------------------------------------------------------------------------------- its blocks

    def block_layout(self) -> list[tuple[slice, BlockFormat]]:
        """(rows of the shard, their block format), in order; empty where it is not held in blocks."""
        formats = [BLOCK_FORMATS[name] for name in self.spec.blocks]
        if len(formats) < 2:
            return [(slice(0, self.shape[0]), each) for each in formats]
        if len(self.regions) == len(formats):
            return [
                (slice(region.row, region.row + region.rows), each)
                for region, each in zip(self.regions, formats, strict=True)
            ]
        ends = np.cumsum(self.parts)
        return [
            (slice(int(end) - rows, int(end)), each)
            for end, rows, each in zip(ends, self.parts, formats, strict=True)
        ]

    @property
    def nbytes_in_blocks(self) -> int:
        """Of `data` of one that is held in blocks."""
        return sum(
            (rows.stop - rows.start) * format.row_bytes(self.shape[1]) for rows, format in self.block_layout()
        )

    @cached_property
    def blocks(self) -> list[BlockRows]:
        """What `data` holds, of a parameter in blocks that has memory."""
        found, at = [], 0
        for rows, format in self.block_layout():
            shape = rows.stop - rows.start, format.row_bytes(self.shape[1])
            found.append(BlockRows(rows, format, self.data[at : at + shape[0] * shape[1]].reshape(shape)))
            at += shape[0] * shape[1]
        return found

    def put_blocks(self, values: np.ndarray, row: int) -> None:
        """Store what stands here of whole rows in blocks, (n, W) uint8, the first of which is row `row` globally."""
        for here, given in self.overlaps((len(values), self.global_shape[1]), row):
            part = next(part for part in self.blocks if part.rows.start <= here[0].start < part.rows.stop)
            each, size = part.format.values, part.format.bytes
            columns = slice(given[1].start // each * size, given[1].stop // each * size)
            start = here[0].start - part.rows.start
            part.data[start : start + here[0].stop - here[0].start] = values[given[0], columns]

    # ------------------------------------------------------------------------------------------ its gradient

    def begin_step(self) -> None:
        """What `grad` holds is an earlier step's: the next contribution overwrites it."""
        self._written = False

    def should_accumulate(self) -> bool:
        """Whether a contribution is added to `grad`. False for a step's first one, which overwrites all of it."""
        return self._written

    def accumulator(self, kernels: Any) -> np.ndarray:
        """`grad` for an op that can only add: set to zero before the first contribution of a step."""
        if not self._written:
            kernels.zero(self.grad)
            self._written = True
        return self.grad

    def grad_written(self) -> None:
        """To be called after a part of a contribution was written over `grad`, so that the next part is added."""
        self._written = True

    def grad_added(self) -> None:
        """To be called by a module when its contribution to `grad` is complete."""
        self._written = True
        if self.on_grad is not None:
            self.on_grad(self)

    # ------------------------------------------------------------------------------------ its global elements

    def put(self, array: np.ndarray, values: np.ndarray, row: int = 0, column: int = 0) -> None:
        """Copy what stands here of a block of the global parameter into `array`, which has the shard's shape.

        `values` is the block whose first element is (row, column) of the global parameter.
        """
        for here, block in self.overlaps(values.shape, row, column):
            array[here] = values[block]

    def overlaps(
        self, shape: tuple[int, ...], row: int = 0, column: int = 0
    ) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
        """(index here, index in the block) for each region that the global block at (row, column) meets."""
        for region in self.regions:
            low, high = max(row, region.global_row), min(row + shape[0], region.global_row + region.rows)
            shift = region.row - region.global_row
            here: tuple[slice, ...] = (slice(low + shift, high + shift),)
            block: tuple[slice, ...] = (slice(low - row, high - row),)
            if len(shape) == 2:
                left = max(column, region.column)
                right = min(column + shape[1], region.column + self.shape[1])
                here += (slice(left - region.column, right - region.column),)
                block += (slice(left - column, right - column),)
            if all(s.start < s.stop for s in here):
                yield here, block
