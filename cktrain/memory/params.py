"""Parameters: one flat buffer of master weights and one of gradients, in reverse layer order.

The backward pass fills gradients from the last layer to the first, so in this order a gradient bucket, an optimizer
shard and an RDMA memory region are each one slice. A parameter starts on a cache line; the few elements between two
parameters are always zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from cktrain.memory.arena import CACHE_LINE, Allocate, Arena
from cktrain.nn.numerics import Numerics

STREAM_BLOCK = 1 << 16
"""Elements that are drawn at a time: few enough that the allocator gives nothing of them a lasting place."""


@dataclass(frozen=True)
class Place:
    """`rows` rows of a parameter, from `row` on, are the whole parameter's rows from `whole_row` on.

    Of a matrix they are its columns from `column` on, as many as stand here.
    """

    row: int
    whole_row: int
    rows: int
    column: int = 0


@dataclass(eq=False)
class Param:
    """One parameter, or what a tensor rank holds of it. Its arrays are given by `FlatParams`.

    `data` and `grad` (f32) are views of the flat buffers; `value` is what kernels read: `data` itself, or its bf16
    copy for a matrix under bf16. `whole_shape` and `places` say what of the undivided parameter stands here; rows
    in no place are padding and stay zero.
    """

    name: str
    shape: tuple[int, ...]
    init: Literal["normal", "ones", "zeros"] = "normal"
    std: float = 0.02
    decay: bool = True
    """Whether weight decay applies: matrices yes, biases and norm weights no."""
    parts: tuple[int, ...] = ()
    """Rows of the whole's parts that are fused along the first dimension, e.g. (query, key, value)."""
    compute: Literal["real", "f32"] = "real"
    data: np.ndarray = field(init=False, repr=False)
    grad: np.ndarray = field(init=False, repr=False)
    value: np.ndarray = field(init=False, repr=False)
    start: int = field(init=False, default=-1)
    """Offset of the first element in the flat buffers."""
    on_grad: Callable[[Param], None] | None = field(init=False, default=None, repr=False)
    """Called after each addition to `grad`."""
    stale: bool = field(init=False, default=False)
    """Whether `grad` holds what an earlier step left; the first contribution of a step takes its place."""

    def __post_init__(self) -> None:
        self.whole_shape = self.shape
        self.places: tuple[Place, ...] = (Place(0, 0, self.shape[0]),)

    @property
    def size(self) -> int:
        """Number of elements that stand here."""
        return int(np.prod(self.shape, dtype=np.int64))

    def divide(self, shape: tuple[int, ...], places: tuple[Place, ...]) -> None:
        """Hold only these places of the whole parameter, in an array of this shape. Before it has storage."""
        assert self.start == -1 and self.shape == self.whole_shape, self.name
        self.shape, self.places = shape, places

    def adds(self) -> bool:
        """Whether what comes is added to `grad`, or, False for the first of a step, written over all of it."""
        adds, self.stale = not self.stale, False
        return adds

    def sums(self, kernels: Any) -> np.ndarray:
        """`grad` for an op that can only add: zeros before the first of a step."""
        if not self.adds():
            kernels.zero(self.grad)
        return self.grad

    def grad_added(self) -> None:
        """To be called by a module after it added to `grad`."""
        if self.on_grad is not None:
            self.on_grad(self)

    def put(self, array: np.ndarray, values: np.ndarray, row: int = 0, column: int = 0) -> None:
        """Copy what stands here of a block of the whole parameter into `array`, which has this param's shape.

        `values` is the block whose first element is (row, column) of the whole.
        """
        for here, block in self.overlaps(values.shape, row, column):
            array[here] = values[block]

    def overlaps(
        self, shape: tuple[int, ...], row: int = 0, column: int = 0
    ) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
        """(index here, index in the block) for each place that the block of the whole at (row, column) meets."""
        for place in self.places:
            low, high = max(row, place.whole_row), min(row + shape[0], place.whole_row + place.rows)
            shift = place.row - place.whole_row
            here: tuple[slice, ...] = (slice(low + shift, high + shift),)
            block: tuple[slice, ...] = (slice(low - row, high - row),)
            if len(shape) == 2:
                left = max(column, place.column)
                right = min(column + shape[1], place.column + self.shape[1])
                here += (slice(left - place.column, right - place.column),)
                block += (slice(left - column, right - column),)
            if all(s.start < s.stop for s in here):
                yield here, block


@dataclass(frozen=True)
class Segment:
    """A run of the flat buffers with one weight decay: elements [start, stop)."""

    start: int
    stop: int
    decay: bool


class FlatParams:
    """The parameters of a model (or a stage of it) and their two flat buffers, (size,) f32 each."""

    def __init__(
        self,
        params_in_forward_order: Sequence[Param],
        numerics: Numerics,
        allocate: Allocate | None = None,
        train: bool = True,
    ) -> None:
        """With `allocate`, the buffers lie in memory that the data group works on in place.

        Without `train` there are no gradients.
        """
        self.numerics = numerics
        self.params = list(dict.fromkeys(reversed(params_in_forward_order)))  # a tied parameter stands once
        names = [param.name for param in self.params]
        assert len(set(names)) == len(names), "parameter names must differ"
        align = CACHE_LINE // 4
        self.size = 0
        for param in self.params:
            param.start = self.size
            self.size += -(-param.size // align) * align
        f32 = numerics.f32
        self.data = Arena("parameters", self.size * f32.itemsize, allocate).array((self.size,), f32)
        size = self.size if train else 0
        self.grad = Arena("gradients", size * f32.itemsize, allocate).array((size,), f32)
        self.copy: np.ndarray | None = None
        """The weights in `real`, where that is not f32: (size,), element for element that of `data`."""
        if numerics.real != f32:
            size = self.size * numerics.real.itemsize
            self.copy = Arena("compute weights", size, allocate).array((self.size,), numerics.real)
        for param in self.params:
            span = slice(param.start, param.start + param.size)
            param.data = self.data[span].reshape(param.shape)
            if train:
                param.grad = self.grad[span].reshape(param.shape)
            param.value = param.data
            if self.copy is not None and param.compute == "real":
                param.value = self.copy[span].reshape(param.shape)

    @property
    def count(self) -> int:
        """Number of parameters, a tied one once."""
        return sum(param.size for param in self.params)

    def __getitem__(self, name: str) -> Param:
        """The parameter of that name."""
        for param in self.params:
            if param.name == name:
                return param
        raise KeyError(name)

    def initialize(self, seed: int) -> None:
        """Fresh weights: each parameter from its own stream, keyed by (seed, name), whatever the layout."""
        self.data.fill(0)
        for param in self.params:
            if param.init == "normal":
                words = np.frombuffer(param.name.encode(), dtype=np.uint8).astype(np.uint32)
                rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *words.tolist()])))
                rows, *rest = param.whole_shape
                step = max(1, STREAM_BLOCK // int(np.prod(rest, dtype=np.int64)))
                for row in range(0, rows, step):  # the whole stream is drawn, a block of it at a time
                    block = (min(step, rows - row), *rest)
                    param.put(param.data, rng.standard_normal(block, dtype=np.float32) * param.std, row)
            elif param.init == "ones":
                param.data[...] = 1.0
        self.refresh()

    def refresh(self) -> None:
        """Bring the bf16 copy up to date after the master weights changed."""
        if self.copy is not None:
            self.numerics.kernels.cast(self.copy, self.data)

    def begin_sums(self) -> None:
        """Before the first micro-batch of a step: what the gradients hold is of no use any more."""
        for param in self.params:
            param.stale = True

    def segments(self, start: int = 0, stop: int | None = None) -> list[Segment]:
        """The elements [start, stop) cut where weight decay changes."""
        stop = self.size if stop is None else stop
        found: list[Segment] = []
        ends = [p.start for p in self.params[1:]] + [self.size]
        for param, end in zip(self.params, ends, strict=True):
            low, high = max(param.start, start), min(end, stop)
            if low >= high:
                continue
            if found and found[-1].decay == param.decay:
                found[-1] = Segment(found[-1].start, high, param.decay)
            else:
                found.append(Segment(low, high, param.decay))
        return found
