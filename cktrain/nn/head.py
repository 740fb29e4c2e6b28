"""Final norm, output head and cross-entropy, fused in chunks of rows: the full (N, V) logits never exist.

Shapes: x (N, C), weight (V, C), logits of one chunk (R, V), targets (N,) int32 with -100 where there is no target.
The loss is the unnormalised sum over valid targets; the trainer divides by the count of the whole global batch. While
training, the gradients of x and of the weight are computed with the logits at hand, so nothing is computed twice.

Logits are f32 also where x and the weight are bf16: rounding to bf16 moves a number by up to 2^-8 of it, a logit of 10
by up to 0.03, and its probability by 3 %. Their gradient is `real`, in the first bytes of each row of the logits, which
nobody needs any more.
"""

from __future__ import annotations

import numpy as np

from cktrain.memory.params import Param
from cktrain.memory.slot import Slot
from cktrain.nn.module import Module
from cktrain.nn.norm import Norm
from cktrain.nn.numerics import Numerics

IGNORE_INDEX = -100
CHUNK_BYTES = 26 << 20
"""Of the logits of a chunk, fp32 runs: about what attention's temporaries of the reference model take (docs/memory.md)."""
CHUNK_BYTES_BF16 = 64 << 20
"""The same in bf16 runs, whose activations leave room: with more rows the weight is packed fewer times."""
TILE_ROWS = 14
"""Rows that the widest kernels multiply at a time: a chunk is as many of them as it can be, so that few go half empty."""


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

    def loss(
        self, x: np.ndarray, dx: np.ndarray | None, norm: Norm, targets: np.ndarray, slot: Slot
    ) -> tuple[float, int]:
        """(sum of the losses, number of valid targets) of norm(x) for the stream x (N, C).

        Unless dx is None, gradients are added too, and that of x written to dx, which may be x.
        """
        statistics, chunk = norm.statistics(x, slot), self._chunk(len(x))
        normed = slot.shared(self, "normed", (chunk, x.shape[1]), self.num.real)
        total = 0.0
        for start in range(0, len(x), chunk):
            rows = slice(start, min(start + chunk, len(x)))
            part, here = normed[: rows.stop - start], [array[rows] for array in statistics]
            norm.apply(part, x[rows], here)
            total += self._part(part, None if dx is None else part, targets[rows], slot, chunk)
            if dx is not None:
                norm.add_gradient(dx[rows], part, x[rows], here, False)
        if dx is not None:
            self.weight.grad_added()
            norm.grads_added()
        return total, int(np.count_nonzero(targets != IGNORE_INDEX))

    def normed_loss(self, x: np.ndarray, dx: np.ndarray | None, targets: np.ndarray, slot: Slot) -> float:
        """The loss sum for the norm's output x (N, C); fills dx, unless it is None, and adds the weight's gradient."""
        chunk = self._chunk(len(x))
        return sum(
            self._part(
                x[start : start + chunk],
                None if dx is None else dx[start : start + chunk],
                targets[start : start + chunk],
                slot,
                chunk,
            )
            for start in range(0, len(x), chunk)
        )

    def _chunk(self, rows: int) -> int:
        """Rows of a chunk."""
        limit = CHUNK_BYTES if self.num.real == self.num.f32 else CHUNK_BYTES_BF16
        most = max(1, limit // (self.weight.shape[0] * self.num.f32.itemsize))
        least = -(-rows // -(-rows // most))
        whole = -(-least // TILE_ROWS) * TILE_ROWS
        return whole if whole <= min(most, rows) else least

    def _part(
        self, x: np.ndarray, dx: np.ndarray | None, targets: np.ndarray, slot: Slot, chunk: int
    ) -> float:
        """`normed_loss` of one chunk of rows; dx may be x."""
        kernels, n, width = self.num.kernels, len(x), self.weight.shape[0]
        logits = slot.shared(self, "logits", (chunk, width), self.num.f32)
        statistics = slot.shared(self, "statistics", (3 * chunk,), self.num.f32)
        valid = logits[:n, : self.words]
        row_max, row_sum, target_logit = by_row = statistics[: 3 * n].reshape(3, n)
        kernels.linear_forward(logits[:n], x, self.weight.value)
        kernels.cross_entropy_forward(row_max, row_sum, target_logit, valid, targets, self.first_word)
        self._combine(by_row)
        lse = row_max + np.log(row_sum)
        if dx is not None:
            dlogits = self._in_place(logits)[:n]
            kernels.cross_entropy_backward(
                dlogits[:, : self.words], valid, lse, targets, IGNORE_INDEX, self.first_word
            )
            dlogits[:, self.words :] = 0
            kernels.linear_backward_weight(self.weight.grad, None, dlogits, x, self.weight.adds())
            kernels.linear_backward_input(dx, dlogits, self.weight.value)
        return float(np.sum((lse - target_logit)[targets != IGNORE_INDEX], dtype=np.float64))

    def _in_place(self, logits: np.ndarray) -> np.ndarray:
        """`real` (R, V) in the memory of f32 logits (R, V): each row in the first bytes of its row."""
        if self.num.real == self.num.f32 or 0 in logits.strides:  # planned arrays have no memory to view
            return logits
        return logits.view(self.num.real)[:, : logits.shape[1]]

    def _combine(self, by_row: np.ndarray) -> None:
        """Make (maximum, sum of exponentials, target's logit) (3, n) those of the whole vocabulary."""

    def logits(self, x: np.ndarray) -> np.ndarray:
        """All logits (N, V) for few rows x (N, C), while generating."""
        out = np.empty((x.shape[0], self.vocab_size), self.num.f32)
        self.num.kernels.linear_forward(out, x, self.weight.value)
        return out
