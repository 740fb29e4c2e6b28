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

    def loss(self, x: np.ndarray, targets: np.ndarray, slot: Slot, train: bool) -> tuple[float, int]:
        """(sum of the losses, number of valid targets); with `train` also the gradients."""
        kernels = self.num.kernels
        rows = x.shape[0]
        chunk = max(1, min(rows, CHUNK_BYTES // (self.vocab_size * self.num.f32.itemsize)))
        logits = slot.shared(self, "logits", (chunk, self.vocab_size), self.num.real)
        row_max, row_sum, target_logit = (
            slot.shared(self, name, (chunk,), self.num.f32) for name in ("row_max", "row_sum", "target_logit")
        )
        dx = self._dx(slot) if train else None
        total = 0.0
        for start in range(0, rows, chunk):
            stop = min(start + chunk, rows)
            n = stop - start
            part, wanted = x[start:stop], targets[start:stop]
            kernels.linear_forward(logits[:n], part, self.weight.value)
            kernels.cross_entropy_forward(row_max[:n], row_sum[:n], target_logit[:n], logits[:n], wanted)
            lse = row_max[:n] + np.log(row_sum[:n])
            total += float(np.sum((lse - target_logit[:n])[wanted != IGNORE_INDEX], dtype=np.float64))
            if dx is not None:
                kernels.cross_entropy_backward(logits[:n], logits[:n], lse, wanted, IGNORE_INDEX)
                kernels.linear_backward_weight(self.weight.grad, None, logits[:n], part)
                kernels.linear_backward_input(dx[start:stop], logits[:n], self.weight.value)
        return total, int(np.count_nonzero(targets != IGNORE_INDEX))

    def backward(self, dy: np.ndarray, slot: Slot) -> np.ndarray:
        """The gradient of x that `loss` left in the slot (the loss's own gradient is one; `dy` is not read)."""
        return self._dx(slot)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """All logits (N, V) for few rows x (N, C), while generating."""
        out = np.empty((x.shape[0], self.vocab_size), self.num.real)
        self.num.kernels.linear_forward(out, x, self.weight.value)
        return out

    def _dx(self, slot: Slot) -> np.ndarray:
        return slot.kept(self, "dx", (slot.rows, self.hidden_size), self.num.real)
