"""AdamW and SGD over flat buffers.

The state is one flat f32 array per moment, for the spans of the parameters that this rank updates, one after the
other; an update is one kernel call per segment of equal weight decay. The gradients are unnormalised sums: `grad_scale`
carries both the division by the number of tokens and the clipping.

An optimizer may update some parameters by themselves (`apart`): they then are pieces of their own, and may have other
moments than the rest (`moments_of`). One that works on whole matrices sets `whole_matrices`: so it is with each parameter
that is tagged `optimizer="matrix"` (`cktrain/parallel/roles.py`), which is whole on one data rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cktrain.config import OptimizerConfig
from cktrain.memory.arena import CACHE_LINE, Arena
from cktrain.memory.param import Param
from cktrain.memory.param_store import ParamStore, Segment
from cktrain.safetensors_file import Rows


@dataclass(frozen=True, eq=False)
class Piece:
    """Views of a run of elements that is updated in one way; `copy` is its bf16 weights, where there are any."""

    data: np.ndarray
    grad: np.ndarray
    copy: np.ndarray | None
    moments: list[np.ndarray]
    decay: float
    param: Param | None = None
    """The parameter whose elements these are, where it is updated by itself."""


class Optimizer:
    """Updates the elements in `spans` of the flat parameters; `state` maps a moment's name to its array."""

    moments: ClassVar[tuple[str, ...]] = ()
    """All moments that it may keep of an element."""
    whole_matrices: ClassVar[bool] = False
    """Whether parameters tagged `optimizer="matrix"` are pieces of their own."""
    block: ClassVar[int] = CACHE_LINE // 4
    """Elements of a parameter, counted from its first, that stay on one data rank."""

    def __init__(
        self, params: ParamStore, config: OptimizerConfig, spans: Sequence[tuple[int, int]] | None = None
    ) -> None:
        """`spans` are [start, stop) in order, apart from each other; None is everything."""
        self.params = params
        self.config = config
        self.spans = [(0, params.size)] if spans is None else list(spans)
        self.size = sum(stop - start for start, stop in self.spans)
        segments = [params.segments(start, stop, self.apart) for start, stop in self.spans]
        self.state: dict[str, np.ndarray] = {}
        """All arrays that it keeps, by name: of moments that are plain numbers the moment's."""
        self._allocate([segment for run in segments for segment in run])
        self._pieces = [[self._piece(segment) for segment in run] for run in segments]

    @property
    def flops(self) -> int:
        """Floating-point operations of one update in matrix products; what is elementwise costs bytes."""
        return 0

    def apart(self, param: Param) -> bool:
        """Whether a parameter is updated by itself."""
        return self.whole_matrices and param.spec.optimizer == "matrix"

    def moments_for(self, param: Param) -> tuple[str, ...]:
        """The moments of a parameter."""
        return self.moments_of(self.apart(param))

    def moments_of(self, apart: bool) -> tuple[str, ...]:
        """The moments of a parameter's elements; `apart`: whether it is updated by itself."""
        return self.moments

    def numbers_of(self, apart: bool) -> tuple[str, ...]:
        """Those of `moments_of` that are kept as plain numbers."""
        return self.moments_of(apart)

    def step(self, lr: float, grad_scale: float, step: int) -> None:
        """One update with gradients multiplied by grad_scale, of the bf16 copy too; `step` counts from 1."""
        for number in range(len(self.spans)):
            self.step_span(number, lr, grad_scale, step)

    def step_span(self, number: int, lr: float, grad_scale: float, step: int) -> None:
        """The update of one span alone."""
        for piece in self._pieces[number]:
            self._update(piece, lr, grad_scale, step)

    def state_at(self, moment: str, start: int, stop: int) -> np.ndarray:
        """A moment's numbers for the flat parameters [start, stop), which lie in one span."""
        for low, high, offset in self._runs[moment]:
            if low <= start and stop <= high:
                return self.state[moment][start - low + offset : stop - low + offset]
        raise AssertionError(f"[{start}, {stop}) is in no span of this rank")

    def moment_rows(self, moment: str, start: int, shape: tuple[int, ...]) -> Rows:
        """A moment's numbers from a flat parameter on, in rows as a file has them."""
        return self.state_at(moment, start, start + math.prod(shape)).reshape(shape)

    def fill_moment(
        self, moment: str, start: int, stop: int, read: Callable[[int, np.ndarray], None]
    ) -> None:
        """Set a moment for a parameter's elements [start, stop), all of it in one span.

        read(first, numbers) writes the numbers (n) of the elements from `first` on.
        """
        read(start, self.state_at(moment, start, stop))

    def _allocate(self, segments: Sequence[Segment]) -> None:
        """Make `state` for these segments."""
        f32 = self.params.numerics.master_dtype
        self._runs = self._lay_out(segments)
        sizes = {name: sum(stop - start for start, stop, _ in runs) for name, runs in self._runs.items()}
        arena = Arena("optimizer", sum(size * f32.itemsize + 64 for size in sizes.values()))
        self.state |= {name: arena.array((size,), f32) for name, size in sizes.items()}

    def _lay_out(self, segments: Sequence[Segment]) -> dict[str, list[tuple[int, int, int]]]:
        """Of each moment the runs [start, stop) of flat elements that have it, and where each stands in its array."""
        found: dict[str, list[tuple[int, int, int]]] = {name: [] for name in self.moments}
        for segment in segments:
            for name in self.numbers_of(segment.param is not None):
                runs = found[name]
                if runs and runs[-1][1] == segment.start:
                    runs[-1] = (runs[-1][0], segment.stop, runs[-1][2])
                else:
                    end = runs[-1][2] + runs[-1][1] - runs[-1][0] if runs else 0
                    runs.append((segment.start, segment.stop, end))
        return found

    def _piece(self, segment: Segment) -> Piece:
        params, here = self.params, slice(segment.start, segment.stop)
        return Piece(
            params.data[here],
            params.grad[here],
            None if params.compute_weights is None else params.compute_weights[here],
            [
                self.state_at(name, segment.start, segment.stop)
                for name in self.numbers_of(segment.param is not None)
            ],
            self.config.weight_decay if segment.decay else 0.0,
            segment.param,
        )

    def _update(self, piece: Piece, lr: float, grad_scale: float, step: int) -> None:
        raise NotImplementedError


class AdamW(Optimizer):
    """Loshchilov & Hutter 2019: decay is decoupled from the gradient."""

    moments: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")

    def _update(self, piece: Piece, lr: float, grad_scale: float, step: int) -> None:
        self._adamw(self.params.numerics.kernels.adamw_step, piece, lr, grad_scale, step)

    def _adamw(
        self, kernel: Callable[..., None], piece: Piece, lr: float, grad_scale: float, step: int
    ) -> None:
        c = self.config
        kernel(
            piece.data,
            *piece.moments,
            piece.grad,
            lr,
            *c.betas,
            c.eps,
            piece.decay,
            step,
            grad_scale,
            copy=piece.copy,
        )


class SGD(Optimizer):
    """Momentum, plain or Nesterov's, with PyTorch's coupled decay."""

    moments = ("momentum_buffer",)

    def _update(self, piece: Piece, lr: float, grad_scale: float, step: int) -> None:
        c = self.config
        kernels = self.params.numerics.kernels
        kernels.sgd_step(
            piece.data, *piece.moments, piece.grad, lr, c.momentum, piece.decay, c.nesterov, grad_scale
        )
        if piece.copy is not None:
            kernels.cast(piece.copy, piece.data)
