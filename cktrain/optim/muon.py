"""Muon: the momentum of each matrix, orthogonalised, is its update; everything else is updated by AdamW.

Keller Jordan et al. 2024; Liu et al. 2025, "Muon is Scalable for LLM Training". Matrices are the parameters that map
features to features (`ParamSpec.optimizer`); embeddings, head, norms and biases are AdamW's. A fused projection is
orthogonalised part by part (query, key, value; gate, up), as if its parts were parameters of their own.

    buffer <- momentum buffer + (1 - momentum) gradient
    update  = (1 - momentum) gradient + momentum buffer                 Nesterov's
    weight <- (1 - lr decay) weight - lr adjusted · orthogonalised update

A matrix has one moment, where AdamW has two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

from cktrain.config import OptimizerConfig
from cktrain.memory.arena import Arena
from cktrain.memory.param import Param
from cktrain.memory.param_store import ParamStore
from cktrain.optim.newton_schulz import NewtonSchulz, newton_schulz_flops
from cktrain.optim.optimizer import AdamW, Piece

MOMENTUM = 0.95


class Muon(AdamW):
    """Whole matrices by Newton-Schulz, the rest by AdamW."""

    moments = ("momentum_buffer", *AdamW.moments)
    whole_matrices = True

    def __init__(
        self, params: ParamStore, config: OptimizerConfig, spans: Sequence[tuple[int, int]] | None = None
    ) -> None:
        """Raises ValueError where tensor ranks divide a matrix, or where muon_lr has no lr to follow."""
        super().__init__(params, config, spans)
        if config.muon_lr and not config.lr:
            raise ValueError(
                f"[optimizer] muon_lr is {config.muon_lr} and lr 0: muon_lr follows the schedule of lr. Set lr above 0."
            )
        self._ratio = 1.0 if config.muon_lr is None or not config.lr else config.muon_lr / config.lr
        matrices = [piece.param for run in self._pieces for piece in run if piece.param is not None]
        for param in matrices:
            if param.is_sharded:
                raise ValueError(
                    f"[optimizer] muon updates whole matrices, and this rank holds {param.shape} of {param.name} "
                    f"{param.global_shape}. Set parallel.tensor: 1, or optimizer.name: adamw."
                )
        self._parts = [
            (stop - start, param.shape[1]) for param in matrices for start, stop in parts_of(param)
        ]
        self._newton_schulz = NewtonSchulz(params.numerics, self._parts, config.ns_steps)
        size, f32 = max((param.size for param in matrices), default=0), params.numerics.master_dtype
        self._workspace = Arena("optimizer workspace", size * f32.itemsize).array((size,), f32)

    @property
    def flops(self) -> int:
        """Of the iterations on all matrices that this rank updates."""
        return sum(newton_schulz_flops(*shape, self.config.ns_steps) for shape in self._parts)

    def moments_of(self, apart: bool) -> tuple[str, ...]:
        """A matrix has its momentum, everything else AdamW's two."""
        return ("momentum_buffer",) if apart else AdamW.moments

    def _update(self, piece: Piece, lr: float, grad_scale: float, step: int) -> None:
        if piece.param is None:
            super()._update(piece, lr, grad_scale, step)
            return
        kernels, shape = self.params.numerics.kernels, piece.param.shape
        assert piece.data.size == piece.param.size, f"{piece.param.name} is cut"
        lr *= self._ratio
        update = self._workspace[: piece.data.size]
        # SGD's step from zero with a rate of -1 leaves its direction, with Nesterov's momentum.
        kernels.zero(update)
        kernels.sgd_step(
            update, *piece.moments, piece.grad, -1.0, MOMENTUM, 0.0, True, grad_scale * (1.0 - MOMENTUM)
        )
        data, update = piece.data.reshape(shape), update.reshape(shape)
        data *= 1.0 - lr * piece.decay
        for start, stop in parts_of(piece.param):
            rate = lr * self._adjustment(stop - start, shape[1])
            self._newton_schulz.add(data[start:stop], update[start:stop], -rate)
        if piece.copy is not None:
            kernels.cast(piece.copy, piece.data)

    def _adjustment(self, rows: int, columns: int) -> float:
        """What lr is multiplied by for a matrix, whose orthogonalised update has elements of about 1/√max(rows, columns)."""
        if self.config.adjust_lr == "original":
            return math.sqrt(max(1.0, rows / columns))
        return 0.2 * math.sqrt(max(rows, columns))  # as large as AdamW's


def parts_of(param: Param) -> list[tuple[int, int]]:
    """[start, stop) of the rows of each matrix that is fused in a parameter."""
    return list(pairwise(accumulate(param.parts or (param.shape[0],), initial=0)))
