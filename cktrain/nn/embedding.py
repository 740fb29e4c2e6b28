"""Token embedding: ids (N,) int32 -> rows of the table (N, C)."""

from __future__ import annotations

import numpy as np

from cktrain.memory.params import Param
from cktrain.memory.slot import Slot
from cktrain.nn.module import Module
from cktrain.nn.numerics import Numerics


class Embedding(Module):
    """A table of V rows."""

    def __init__(self, name: str, numerics: Numerics, num_embeddings: int, size: int, std: float) -> None:
        super().__init__(name, numerics)
        self.num_embeddings = num_embeddings
        self.size = size
        self.weight = Param(f"{name}.weight", (num_embeddings, size), std=std)

    def look_up(self, y: np.ndarray, ids: np.ndarray, slot: Slot) -> np.ndarray:
        """y (N, C) = table[ids]; ids must be below V (the loader has checked them)."""
        self.num.kernels.embedding_forward(y, ids, self.weight.value)
        return y

    def backward_ids(self, dy: np.ndarray, ids: np.ndarray, slot: Slot) -> None:
        """Adds the rows of dy (N, C) to the gradient rows of their ids, in order."""
        kernels = self.num.kernels
        kernels.embedding_backward(self.weight.sums(kernels), dy, ids)
        self.weight.grad_added()
