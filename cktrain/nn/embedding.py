"""Embeddings: ids (N,) int32 -> rows of a table (N, C).

A table that is divided over tensor ranks (`layout`) is a product of one-hot rows whose inputs, the words, are divided:
each rank looks up the words that it has, and the ranks' sum is the output.
"""

from __future__ import annotations

import numpy as np

from cktrain.memory.param import Param
from cktrain.memory.slot import Slot
from cktrain.nn.formats import Dense, Widened
from cktrain.nn.layout import Whole
from cktrain.nn.module import Module
from cktrain.nn.numerics import Numerics
from cktrain.nn.quantized import Quantized
from cktrain.nn.scaled import add_scaled, scale


class Embedding(Module):
    """A table of V rows. `x` are ids, which have no gradient: `dx` is left alone. out may be the residual."""

    def __init__(self, name: str, numerics: Numerics, num_embeddings: int, size: int, std: float) -> None:
        super().__init__(name, numerics)
        self.num_embeddings = num_embeddings
        self.size = size
        self.weight = Param(f"{name}.weight", (num_embeddings, size), std=std)
        self.format: Dense | Widened | Quantized = Dense(self.weight)
        self.layout: Whole = Whole()

    def forward(
        self,
        out: np.ndarray,
        x: np.ndarray,
        slot: Slot,
        residual: np.ndarray | None = None,
        alpha: float = 1.0,
    ) -> None:
        """out (N, C) = residual + alpha · table[ids]; ids must be below V (the loader has checked them)."""
        if residual is not None or alpha != 1.0:
            rows = slot.shared(self, "rows", out.shape, self.num.compute_dtype)
            self.forward(rows, x, slot)
            add_scaled(self.num, out, rows, residual, alpha)
            return
        y, _ = self.layout.product(out, None, slot)
        ids, elsewhere = self._here(self.layout.enter(x, slot))
        self.format.look_up(y, ids, self)
        if elsewhere is not None:
            y[elsewhere] = 0
        self.layout.leave(out, y, None)

    def backward(
        self, dx: np.ndarray, dy: np.ndarray, x: np.ndarray, slot: Slot, accumulate: bool = False
    ) -> None:
        """Adds the rows of dy (N, C) to the gradient rows of their ids, in order."""
        if not self.weight.trainable:
            return
        kernels = self.num.kernels
        dy = self.layout.enter_gradient(dy, slot)
        ids, elsewhere = self._here(self.layout.enter(x, slot))
        if elsewhere is not None:
            dy[elsewhere] = 0
        kernels.embedding_backward(self.weight.accumulator(kernels), dy, ids)
        self.weight.grad_added()

    def flops(self, rows: int, length: int) -> int:
        """None: a row is copied."""
        return 0

    def _here(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """(rows of this rank's table, 0 for a word of another rank; whether it is one, None where all are here)."""
        (region,) = self.weight.regions
        if region.rows == self.num_embeddings:
            return ids, None
        local = ids - np.int32(region.global_row)
        elsewhere = (local < 0) | (local >= region.rows)
        local[elsewhere] = 0
        return local, elsewhere


class TokenEmbedding(Module):
    """A model's first layer: rows of the token table, times `multiplier` (Gemma, Granite), plus rows of a position table
    where it learns positions (GPT-2)."""

    def __init__(
        self,
        name: str,
        numerics: Numerics,
        tokens: Embedding,
        positions: Embedding | None = None,
        multiplier: float = 1.0,
    ) -> None:
        super().__init__(name, numerics)
        self.tokens = tokens
        self.positions = positions
        self.multiplier = multiplier

    def forward(
        self,
        out: np.ndarray,
        x: np.ndarray,
        slot: Slot,
        residual: np.ndarray | None = None,
        alpha: float = 1.0,
    ) -> None:
        """out (N, C) = residual + alpha · (multiplier · tokens[ids] + positions[…]); out may be the residual."""
        self.tokens.forward(out, x, slot, residual, alpha * self.multiplier)
        if self.positions is not None:
            self.positions.forward(out, slot.positions, slot, out, alpha)

    def backward(
        self, dx: np.ndarray, dy: np.ndarray, x: np.ndarray, slot: Slot, accumulate: bool = False
    ) -> None:
        """Adds dy (N, C), that of the token table times `multiplier`, to the gradients of the tables."""
        scaled = dy
        if self.multiplier != 1.0 and self.tokens.weight.trainable:
            scaled = slot.shared(self, "scaled", dy.shape, self.num.compute_dtype)
            scale(self.num, scaled, dy, self.multiplier)
        self.tokens.backward(dx, scaled, x, slot)
        if self.positions is not None:
            self.positions.backward(dx, dy, slot.positions, slot)
