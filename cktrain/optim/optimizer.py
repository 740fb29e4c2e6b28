"""AdamW and SGD over flat buffers.

The state is one flat f32 array per moment, as long as the slice of the parameters that this rank updates; an update is
one kernel call per segment of equal weight decay. The gradients are unnormalised sums: `grad_scale` carries both the
division by the number of tokens and the clipping.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from cktrain.config import OptimizerConfig
from cktrain.nn.memory import Arena
from cktrain.nn.params import FlatParams


class Optimizer:
    """Updates elements [start, stop) of the flat parameters; `state` maps a moment's name to its array."""

    moments: ClassVar[tuple[str, ...]] = ()

    def __init__(self, params: FlatParams, config: OptimizerConfig, start: int = 0, stop: int | None = None) -> None:
        self.params = params
        self.config = config
        self.start = start
        self.stop = params.size if stop is None else stop
        size, f32 = self.stop - self.start, params.numerics.f32
        arena = Arena("optimizer", len(self.moments) * (size * f32.itemsize + 64))
        self.state: dict[str, np.ndarray] = {name: arena.array((size,), f32) for name in self.moments}
        self._segments = []
        for segment in params.segments(self.start, self.stop):
            here = slice(segment.start, segment.stop)
            there = slice(segment.start - self.start, segment.stop - self.start)
            moments = [self.state[name][there] for name in self.moments]
            decay = config.weight_decay if segment.decay else 0.0
            copy = None if params.copy is None else params.copy[here]
            self._segments.append((params.data[here], params.grad[here], copy, moments, decay))

    def step(self, lr: float, grad_scale: float, step: int) -> None:
        """One update with gradients multiplied by grad_scale, of the bf16 copy too; `step` counts from 1."""
        for data, grad, copy, moments, decay in self._segments:
            self._update(data, grad, copy, moments, decay, lr, grad_scale, step)

    def _update(
        self,
        data: np.ndarray,
        grad: np.ndarray,
        copy: np.ndarray | None,
        moments: list[np.ndarray],
        decay: float,
        lr: float,
        grad_scale: float,
        step: int,
    ) -> None:
        raise NotImplementedError


class AdamW(Optimizer):
    """Loshchilov & Hutter 2019: decay is decoupled from the gradient."""

    moments = ("exp_avg", "exp_avg_sq")

    def _update(self, data, grad, copy, moments, decay, lr, grad_scale, step):  # type: ignore[no-untyped-def]
        c = self.config
        self.params.numerics.kernels.adamw_step(
            data, *moments, grad, lr, c.betas[0], c.betas[1], c.eps, decay, step, grad_scale, copy=copy
        )


class SGD(Optimizer):
    """Momentum, plain or Nesterov's, with PyTorch's coupled decay."""

    moments = ("momentum_buffer",)

    def _update(self, data, grad, copy, moments, decay, lr, grad_scale, step):  # type: ignore[no-untyped-def]
        c = self.config
        kernels = self.params.numerics.kernels
        kernels.sgd_step(data, *moments, grad, lr, c.momentum, decay, c.nesterov, grad_scale)
        if copy is not None:
            kernels.cast(copy, data)


OPTIMIZERS: dict[str, type[Optimizer]] = {"adamw": AdamW, "sgd": SGD}
