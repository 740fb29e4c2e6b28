"""Output head and cross-entropy, fused in chunks of rows: the full (N, V) logits never exist.

Shapes: x (N, C), weight (V, C), logits of one chunk (R, V), targets (N,) int32 with -100 where there is no target.
The loss is the unnormalised sum over valid targets; the trainer divides by the count of the whole global batch. While
training, the gradients of x and of the weight are computed with the logits at hand, so nothing is computed twice.
"""

from __future__ import annotations

import numpy as np

from cktrain.nn.memory import Slot
from cktrain.nn.module import Module
from cktrain.nn.numerics import Numerics
from cktrain.nn.params import Param

IGNORE_INDEX = -100
CHUNK_BYTES = 64 << 20


class CrossEntropyHead(Module):
    """Linear without bias, softmax and cross-entropy."""

    def __init__(self, name: str, numerics: Numerics, weight: Param) -> None:
        super().__init__(name, numerics)
        self.weight = weight
        self.vocab_size, self.hidden_size = weight.shape
        self.first_word = 0
        """The id of the weight's first row."""
        self.words = self.vocab_size
        """Rows of the weight that stand for ids; further ones are padding."""

    def loss(self, x: np.ndarray, targets: np.ndarray, slot: Slot, train: bool) -> tuple[float, int]:
        """(sum of the losses, number of valid targets); with `train` also the gradients."""
        dx = self._dx(x.shape, slot) if train else None
        total = self._chunks(x, dx, targets, slot)
        if dx is not None:
            self.weight.grad_added()
        return total, int(np.count_nonzero(targets != IGNORE_INDEX))

    def _chunks(self, x: np.ndarray, dx: np.ndarray | None, targets: np.ndarray, slot: Slot) -> float:
        """The loss sum of the rows x, chunk by chunk; fills dx, unless it is None, and adds the weight's gradient."""
        kernels = self.num.kernels
        rows, width = x.shape[0], self.weight.shape[0]
        chunk = max(1, min(rows, CHUNK_BYTES // (width * self.num.f32.itemsize)))
        logits = slot.shared(self, "logits", (chunk, width), self.num.real)
        statistics = slot.shared(self, "statistics", (3 * chunk,), self.num.f32)
        total = 0.0
        for start in range(0, rows, chunk):
            stop = min(start + chunk, rows)
            n = stop - start
            part, wanted = x[start:stop], targets[start:stop]
            padded = logits[:n]
            valid = padded[:, : self.words]
            row_max, row_sum, target_logit = by_row = statistics[: 3 * n].reshape(3, n)
            kernels.linear_forward(padded, part, self.weight.value)
            kernels.cross_entropy_forward(row_max, row_sum, target_logit, valid, wanted, self.first_word)
            self._combine(by_row)
            lse = row_max + np.log(row_sum)
            total += float(np.sum((lse - target_logit)[wanted != IGNORE_INDEX], dtype=np.float64))
            if dx is not None:
                kernels.cross_entropy_backward(valid, valid, lse, wanted, IGNORE_INDEX, self.first_word)
                padded[:, self.words :] = 0
                kernels.linear_backward_weight(self.weight.grad, None, padded, part)
                kernels.linear_backward_input(dx[start:stop], padded, self.weight.value)
        return total

    def _combine(self, by_row: np.ndarray) -> None:
        """Make (maximum, sum of exponentials, target's logit) (3, n) those of the whole vocabulary."""

    def backward(self, dy: np.ndarray, slot: Slot) -> np.ndarray:
        """The gradient of x that `loss` left in the slot (the loss's own gradient is one; `dy` is not read)."""
        return self._dx(dy.shape, slot)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """All logits (N, V) for few rows x (N, C), while generating."""
        out = np.empty((x.shape[0], self.vocab_size), self.num.real)
        self.num.kernels.linear_forward(out, x, self.weight.value)
        return out

    def _dx(self, shape: tuple[int, ...], slot: Slot) -> np.ndarray:
        return slot.kept(self, "dx", shape, self.num.real)
