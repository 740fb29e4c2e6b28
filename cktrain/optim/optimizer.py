"""AdamW and SGD over flat buffers.

The state is one flat f32 array per moment, for the spans of the parameters that this rank updates, one after the
other; an update is one kernel call per segment of equal weight decay. The gradients are unnormalised sums: `grad_scale`
carries both the division by the number of tokens and the clipping.

An optimizer that works on whole matrices sets `whole_matrices`: each parameter that is tagged `optimizer="matrix"`
(`cktrain/parallel/roles.py`) then is a piece of its own, whole on one data rank, and may have other moments than the
rest (`moments_of`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cktrain.config import OptimizerConfig
from cktrain.memory.arena import Arena
from cktrain.memory.param import Param
from cktrain.memory.param_store import ParamStore, Segment


@dataclass(frozen=True, eq=False)
class Piece:
    """Views of a run of elements that is updated in one way; `copy` is its bf16 weights, where there are any."""

    data: np.ndarray
    grad: np.ndarray
    copy: np.ndarray | None
    moments: list[np.ndarray]
    decay: float
    matrix: Param | None = None
    """The parameter whose elements these are, for an optimizer of whole matrices."""


class Optimizer:
    """Updates the elements in `spans` of the flat parameters; `state` maps a moment's name to its array."""

    moments: ClassVar[tuple[str, ...]] = ()
    """All moments that it may keep of an element."""
    whole_matrices: ClassVar[bool] = False
    """Whether parameters tagged `optimizer="matrix"` are pieces of their own."""

    def __init__(
        self, params: ParamStore, config: OptimizerConfig, spans: Sequence[tuple[int, int]] | None = None
    ) -> None:
        """`spans` are [start, stop) in order, apart from each other; None is everything."""
        self.params = params
        self.config = config
        self.spans = [(0, params.size)] if spans is None else list(spans)
        self.size = sum(stop - start for start, stop in self.spans)
        f32 = params.numerics.master_dtype
        segments = [params.segments(start, stop, self.whole_matrices) for start, stop in self.spans]
        self._runs = self._lay_out([segment for run in segments for segment in run])
        sizes = {name: sum(stop - start for start, stop, _ in runs) for name, runs in self._runs.items()}
        arena = Arena("optimizer", sum(size * f32.itemsize + 64 for size in sizes.values()))
        self.state: dict[str, np.ndarray] = {name: arena.array((size,), f32) for name, size in sizes.items()}
        self._pieces = [[self._piece(segment) for segment in run] for run in segments]

    @property
    def flops(self) -> int:
        """Floating-point operations of one update in matrix products; what is elementwise costs bytes."""
        return 0

    def moments_for(self, param: Param) -> tuple[str, ...]:
        """The moments of a parameter."""
        return self.moments_of(self.whole_matrices and param.spec.optimizer == "matrix")

    def moments_of(self, matrix: bool) -> tuple[str, ...]:
        """The moments of a parameter's elements; `matrix`: whether it is a piece of its own."""
        return self.moments

    def step(self, lr: float, grad_scale: float, step: int) -> None:
        """One update with gradients multiplied by grad_scale, of the bf16 copy too; `step` counts from 1."""
        for number in range(len(self.spans)):
            self.step_span(number, lr, grad_scale, step)

    def step_span(self, number: int, lr: float, grad_scale: float, step: int) -> None:
        """The update of one span alone."""
        for piece in self._pieces[number]:
            self._update(piece, lr, grad_scale, step)

    def state_at(self, moment: str, start: int, stop: int) -> np.ndarray:
        """A moment's elements for the flat parameters [start, stop), which lie in one span."""
        for low, high, offset in self._runs[moment]:
            if low <= start and stop <= high:
                return self.state[moment][start - low + offset : stop - low + offset]
        raise AssertionError(f"[{start}, {stop}) is in no span of this rank")

    def _lay_out(self, segments: Sequence[Segment]) -> dict[str, list[tuple[int, int, int]]]:
        """Of each moment the runs [start, stop) of flat elements that have it, and where each stands in its array."""
        found: dict[str, list[tuple[int, int, int]]] = {name: [] for name in self.moments}
        for segment in segments:
            for name in self.moments_of(segment.matrix is not None):
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
                for name in self.moments_of(segment.matrix is not None)
            ],
            self.config.weight_decay if segment.decay else 0.0,
            segment.matrix,
        )

    def _update(self, piece: Piece, lr: float, grad_scale: float, step: int) -> None:
        raise NotImplementedError


class AdamW(Optimizer):
    """Loshchilov & Hutter 2019: decay is decoupled from the gradient."""

    moments: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")

    def _update(self, piece: Piece, lr: float, grad_scale: float, step: int) -> None:
        c = self.config
        self.params.numerics.kernels.adamw_step(
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
