"""Embedding, head and cross-entropy with the vocabulary divided over the tensor ranks.

Rank r has the rows of the ids [r·W, (r+1)·W), W = ceil(V/t); the last rank's end may be padding, so that all have as
many. Padding rows stay zero: no id looks them up, their logits are left out of the softmax, and no file holds them.

The loss needs the whole vocabulary's maximum, sum of exponentials and target logit of each row. The head's chunk loop
reduces them over the group between its two kernels: 3 numbers per row travel instead of V logits.
"""

from __future__ import annotations

import numpy as np

from cktrain.memory.params import Param, Place
from cktrain.memory.slot import Slot
from cktrain.nn.embedding import Embedding
from cktrain.nn.head import IGNORE_INDEX, CrossEntropyHead
from cktrain.nn.norm import Norm
from cktrain.parallel.rows import Rows


def divide_vocabulary(table: Param, ranks: int, rank: int) -> tuple[int, int]:
    """Divide a table (V, C); a tied one, which comes twice, once. Returns (first id, number of ids) of this rank.

    Raises ValueError when a rank would have none.
    """
    words, size = table.whole_shape
    share = -(-words // ranks)
    first = rank * share
    count = min(share, words - first)
    if share * (ranks - 1) >= words:
        raise ValueError(
            f"[parallel] tensor {ranks}: a vocabulary of {words} in shares of {share} leaves a rank without words. "
            "Use fewer tensor ranks."
        )
    if table.shape == table.whole_shape:
        table.divide((share, size), (Place(0, first, count),))
    return first, count


class VocabularyEmbedding(Embedding):
    """Some rows of the table; every rank looks up what it has, and the sums' rows (N/t, C) come back."""

    def __init__(self, whole: Embedding, border: Rows) -> None:
        vars(self).update(vars(whole))
        self.border = border
        self.first, self.words = divide_vocabulary(self.weight, border.group.size, border.group.rank)

    def look_up(self, y: np.ndarray, ids: np.ndarray, slot: Slot) -> np.ndarray:
        """y (N/t, C) = this rank's rows of table[ids (N)]."""
        partial = self.border.partial(slot, self.size)
        local, elsewhere = self._local(ids)
        self.num.kernels.embedding_forward(partial, local, self.weight.value)
        partial[elsewhere] = 0
        return self.border.scatter(y, partial)

    def backward_ids(self, dy: np.ndarray, ids: np.ndarray, slot: Slot) -> None:
        """Adds all rows (N, C) of dy (N/t, C) to the gradient rows of the ids that this rank has."""
        whole = self.border.gather(dy, slot, "gathered_gradient")
        local, elsewhere = self._local(ids)
        whole[elsewhere] = 0
        super().backward_ids(whole, local, slot)

    def _local(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(row in this rank's table, 0 for a word of another rank; whether it is one)."""
        local = ids - np.int32(self.first)
        elsewhere = (local < 0) | (local >= self.words)
        local[elsewhere] = 0
        return local, elsewhere


class VocabularyHead(CrossEntropyHead):
    """Some columns of the logits; takes rows (N/t, C), and returns the rows' gradients summed."""

    def __init__(self, whole: CrossEntropyHead, border: Rows) -> None:
        vars(self).update(vars(whole))
        self.border = border
        self.first_word, self.words = divide_vocabulary(self.weight, border.group.size, border.group.rank)

    def loss(
        self, x: np.ndarray, dx: np.ndarray | None, norm: Norm, targets: np.ndarray, slot: Slot
    ) -> tuple[float, int]:
        """As the whole head's, the same on every rank; targets (N), x and dx (N/t, C)."""
        normed = norm.forward(x, slot)
        whole = self.border.gather(normed, slot, "gathered")
        dwhole = None if dx is None else self.border.partial(slot, self.hidden_size)
        total = self.normed_loss(whole, dwhole, targets, slot)
        if dx is not None and dwhole is not None:
            self.weight.grad_added()
            self.border.scatter(normed, dwhole)
            norm.backward_into(dx, normed, x, slot, accumulate=False)
        return total, int(np.count_nonzero(targets != IGNORE_INDEX))

    def _combine(self, by_row: np.ndarray) -> None:
        row_max, row_sum, _ = by_row
        largest = row_max.copy()
        self.border.all_reduce(largest, "max")
        row_sum *= np.exp(row_max - largest)
        row_max[...] = largest
        self.border.all_reduce(by_row[1:], "sum")
