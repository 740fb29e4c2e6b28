"""The parameters of a rank in memory, by storage class.

    trainable    three flat buffers: master weights and gradients (size,) fp32, and the compute copy (size,) where the
                 compute dtype is another
    frozen       one arena, each parameter once, in its file's dtype or the one in which kernels read it
    quantized    one arena of bytes, each frozen parameter that is held in blocks once

The backward pass fills gradients from the last layer to the first, and the flat buffers are in this order: a gradient
bucket, an optimizer's share and an RDMA memory region are each one slice. A parameter starts on a cache line; the few
elements between two parameters are always zero. All trainable parameters of a flat buffer are summed over the same
ranks of the data axis, in place; what is summed over further axes beside it (`ParamSpec.reduce_axes`) is packed for it
(`parallel/partial_gradients.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cktrain.memory.arena import CACHE_LINE, Allocate, Arena, nbytes_of, round_up
from cktrain.memory.param import Param
from cktrain.nn.numerics import Numerics

STREAM_BLOCK = 1 << 16
"""Elements that are drawn at a time: drawn in small blocks so that malloc does not grow the heap permanently."""


@dataclass(frozen=True)
class Segment:
    """A run of the flat buffers that is updated in one way: elements [start, stop)."""

    start: int
    stop: int
    decay: bool
    """Whether weight decay applies."""
    param: Param | None = None
    """The parameter whose elements these are, where an optimizer updates it by itself."""


class ParamStore:
    """The parameters of a model (or a stage of it) and their arrays."""

    def __init__(
        self,
        params_in_forward_order: Sequence[Param],
        numerics: Numerics,
        allocate: Allocate | None = None,
        train: bool = True,
    ) -> None:
        """With `allocate`, the flat buffers lie in memory that the data group works on in place.

        Without `train` all parameters are frozen.
        """
        self.numerics = numerics
        self.params = list(dict.fromkeys(reversed(params_in_forward_order)))
        """All parameters in reverse layer order, a tied one once."""
        names = [param.name for param in self.params]
        assert len(set(names)) == len(names), "parameter names must differ"
        if not train:
            for param in self.params:
                param.tag(trainable=False)
        self.trainable = [param for param in self.params if param.trainable]
        """Those with a place in the flat buffers, in its order."""
        self.frozen = [param for param in self.params if not param.trainable]
        align = CACHE_LINE // 4
        self.size = 0
        """Elements of each flat buffer."""
        for param in self.trainable:
            param.start = self.size
            self.size += -(-param.size // align) * align
        f32 = numerics.master_dtype
        self.data = Arena("parameters", self.size * f32.itemsize, allocate).array((self.size,), f32)
        """Master weights, (size,) fp32."""
        self.grad = Arena("gradients", self.size * f32.itemsize, allocate).array((self.size,), f32)
        """Gradients, (size,) fp32."""
        self.compute_weights: np.ndarray | None = None
        """The weights in the compute dtype, where that is not fp32: (size,), element for element that of `data`."""
        if numerics.compute_dtype != f32:
            nbytes = self.size * numerics.compute_dtype.itemsize
            self.compute_weights = Arena("compute weights", nbytes, allocate).array(
                (self.size,), numerics.compute_dtype
            )
        for param in self.trainable:
            span = slice(param.start, param.start + param.size)
            param.data = param.value = self.data[span].reshape(param.shape)
            param.grad = self.grad[span].reshape(param.shape)
            if self.compute_weights is not None and param.spec.read_as == "compute":
                param.value = self.compute_weights[span].reshape(param.shape)
        if self.frozen:
            self._hold_frozen()
        for param in self.params:
            param.has_memory = True

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

    def initialize(self, seed: int, only: Sequence[Param] | None = None) -> None:
        """Fresh weights: each parameter from its own stream, keyed by (seed, name), whatever the layout.

        `only`: of these parameters, where the others' weights come from elsewhere.
        """
        for param in self.params if only is None else only:
            param.data.fill(0)
            if param.spec.init in ("normal", "uniform"):
                words = np.frombuffer(param.name.encode(), dtype=np.uint8).astype(np.uint32)
                rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *words.tolist()])))
                rows, *rest = param.global_shape
                step = max(1, STREAM_BLOCK // int(np.prod(rest, dtype=np.int64)))
                for row in range(0, rows, step):  # the whole stream is drawn, a block of it at a time
                    block = (min(step, rows - row), *rest)
                    if param.spec.init == "normal":
                        values = rng.standard_normal(block, dtype=np.float32) * param.spec.std
                    else:
                        values = (2 * rng.random(block, dtype=np.float32) - 1) * (3**0.5 * param.spec.std)
                    param.put(param.data, values, row)
            elif param.spec.init == "ones":
                param.data[...] = 1.0
        self.refresh()

    def refresh(self) -> None:
        """Bring the compute copy up to date after the master weights changed."""
        if self.compute_weights is not None:
            self.numerics.kernels.cast(self.compute_weights, self.data)

    def begin_sums(self) -> None:
        """Before the first micro-batch of a step: what the gradients hold is of no use any more."""
        for param in self.trainable:
            param.begin_step()

    def segments(
        self, start: int = 0, stop: int | None = None, apart: Callable[[Param], bool] = lambda param: False
    ) -> list[Segment]:
        """The elements [start, stop) of the flat buffers cut where weight decay changes.

        What they have of a parameter that stands `apart` is a segment of its own, without the few elements after it.
        """
        if not self.trainable:
            return []
        stop = self.size if stop is None else stop
        found: list[Segment] = []
        ends = [p.start for p in self.trainable[1:]] + [self.size]
        for param, end in zip(self.trainable, ends, strict=True):
            low, high, decay = max(param.start, start), min(end, stop), param.spec.decay
            alone = apart(param)
            if alone:
                high = min(high, param.start + param.size)
            if low >= high:
                continue
            if alone:
                found.append(Segment(low, high, decay, param))
            elif found and found[-1].decay == decay and found[-1].param is None:
                found[-1] = Segment(found[-1].start, high, decay)
            else:
                found.append(Segment(low, high, decay))
        return found

    def _hold_frozen(self) -> None:
        """One arena with each frozen parameter once, and one with those in blocks."""
        num = self.numerics
        plain = [param for param in self.frozen if not param.spec.blocks]
        dtypes = [
            param.spec.storage or (num.compute_dtype if param.spec.read_as == "compute" else num.master_dtype)
            for param in plain
        ]
        sizes = [nbytes_of(param.shape, dtype) for param, dtype in zip(plain, dtypes, strict=True)]
        arena = Arena("frozen weights", sum(round_up(nbytes, CACHE_LINE) for nbytes in sizes))
        for param, dtype in zip(plain, dtypes, strict=True):
            param.data = param.value = arena.array(param.shape, dtype)
        in_blocks = [param for param in self.frozen if param.spec.blocks]
        if in_blocks:
            nbytes = sum(round_up(param.nbytes_in_blocks, CACHE_LINE) for param in in_blocks)
            arena = Arena("quantized weights", nbytes)
            for param in in_blocks:
                param.data = param.value = arena.array((param.nbytes_in_blocks,), np.dtype(np.uint8))
