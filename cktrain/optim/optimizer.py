"""AdamW and SGD over flat buffers.

The state is one flat f32 array per moment, for the spans of the parameters that this rank updates, one after the
other; an update is one kernel call per segment of equal weight decay. The gradients are unnormalised sums: `grad_scale`
carries both the division by the number of tokens and the clipping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import numpy as np

from cktrain.config import OptimizerConfig
from cktrain.memory.arena import Arena
from cktrain.memory.param_store import ParamStore


@dataclass(frozen=True, eq=False)
class Piece:
    """Views of a run of elements with one weight decay; `copy` is its bf16 weights, where there are any."""

    data: np.ndarray
    grad: np.ndarray
    copy: np.ndarray | None
    moments: list[np.ndarray]
    decay: float


class Optimizer:
    """Updates the elements in `spans` of the flat parameters; `state` maps a moment's name to its array."""

    moments: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, params: ParamStore, config: OptimizerConfig, spans: Sequence[tuple[int, int]] | None = None
    ) -> None:
        """`spans` are [start, stop) in order, apart from each other; None is everything."""
        self.params = params
        self.config = config
        self.spans = [(0, params.size)] if spans is None else list(spans)
        self.size = sum(stop - start for start, stop in self.spans)
        f32 = params.numerics.f32
        arena = Arena("optimizer", len(self.moments) * (self.size * f32.itemsize + 64))
        self.state: dict[str, np.ndarray] = {name: arena.array((self.size,), f32) for name in self.moments}
        self._offsets = [0, *accumulate(stop - start for start, stop in self.spans)]
        self._pieces: list[list[Piece]] = []
        for (start, stop), offset in zip(self.spans, self._offsets, strict=False):
            pieces = []
            for segment in params.segments(start, stop):
                here = slice(segment.start, segment.stop)
                there = slice(segment.start - start + offset, segment.stop - start + offset)
                moments = [self.state[name][there] for name in self.moments]
                decay = config.weight_decay if segment.decay else 0.0
                copy = None if params.compute_weights is None else params.compute_weights[here]
                pieces.append(Piece(params.data[here], params.grad[here], copy, moments, decay))
            self._pieces.append(pieces)

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
        for (low, high), offset in zip(self.spans, self._offsets, strict=False):
            if low <= start and stop <= high:
                return self.state[moment][start - low + offset : stop - low + offset]
        raise AssertionError(f"[{start}, {stop}) is in no span of this rank")

    def _update(self, piece: Piece, lr: float, grad_scale: float, step: int) -> None:
        raise NotImplementedError


class AdamW(Optimizer):
    """Loshchilov & Hutter 2019: decay is decoupled from the gradient."""

    moments = ("exp_avg", "exp_avg_sq")

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


OPTIMIZERS: dict[str, type[Optimizer]] = {"adamw": AdamW, "sgd": SGD}
