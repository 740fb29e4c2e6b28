"""A model's last layer: final norm, output product and cross-entropy, in chunks of rows: the full (N, V) logits never
exist while training.

Shapes: x (N, C), weight (V, C), logits of one chunk (R, V), labels (N,) int32 with -100 where there is none.

`loss` is the one-pass path of next-token training: the unnormalised sum of the losses over the labelled rows; the
trainer divides by the count of the whole global batch. Its gradients are computed with the logits at hand, so nothing is
computed twice. `score` and `gradient` are the two-pass path, for objectives that weight rows by what all scores are.
Rows without a label are left out of every product on both paths.

Logits are f32 also where x and the weight are bf16: rounding to bf16 moves a number by up to 2^-8 of it, a logit of 10
by up to 0.03, and its probability by 3 %. Their gradient is of the compute dtype, in the first bytes of each row of the
logits, which nobody needs any more.

Where tensor ranks divide the vocabulary, each has some columns of the logits of all rows. The softmax needs the whole
vocabulary's maximum, sum of exponentials and label's logit of each row, so these 3 numbers per row are reduced over the
ranks instead of V logits.
"""

from __future__ import annotations

import numpy as np

from cktrain.memory.slot import Slot
from cktrain.nn.linear import Linear
from cktrain.nn.module import Module
from cktrain.nn.norm import Norm

IGNORE_INDEX = -100
CHUNK_BYTES = 26 << 20
"""Of the logits of a chunk, fp32 runs: about what attention's temporaries of the reference model take (docs/memory.md)."""
CHUNK_BYTES_BF16 = 64 << 20
"""The same in bf16 runs, whose activations leave room: with more rows the weight is packed fewer times."""
TILE_ROWS = 14
"""Rows that the widest kernels multiply at a time: a chunk is as many of them as it can be, so that few go half empty."""


class Head(Module):
    """norm, a linear without bias, softmax and cross-entropy.

    As a module its output are the logits, whole: dx of `backward` may be x, and out is neither x nor, in `forward`, small.
    """

    def __init__(self, norm: Norm, output: Linear) -> None:
        super().__init__(f"{output.name}.head", output.num)
        self.norm = norm
        self.output = output
        self.vocab_size, self.hidden_size = output.weight.global_shape

    def forward(
        self,
        out: np.ndarray,
        x: np.ndarray,
        slot: Slot,
        residual: np.ndarray | None = None,
        alpha: float = 1.0,
    ) -> None:
        """out (N, V), f32 or of the compute dtype, = residual + alpha · logits."""
        normed = slot.shared(self, "normed rows", x.shape, self.num.real)
        self.norm.forward(normed, x, slot)
        self.output.forward(out, normed, slot, residual, alpha)

    def backward(
        self, dx: np.ndarray, dy: np.ndarray, x: np.ndarray, slot: Slot, accumulate: bool = False
    ) -> None:
        """dx (N, C) = or += the gradient of x for the logits' dy (N, V) of the compute dtype."""
        normed = slot.shared(self, "normed rows", x.shape, self.num.real)
        self.norm.forward(normed, x, slot)
        self.output.backward(normed, dy, normed, slot)
        self.norm.backward(dx, normed, x, slot, accumulate)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """All logits (N, V) f32 for few rows of the stream x (N, C), in a new array, while generating."""
        out = np.empty((x.shape[0], self.vocab_size), self.num.f32)
        self.output.format.product(out, self.norm.normalize(x), None, None, self.output, Slot(1, len(x)))
        return out

    def loss(self, x: np.ndarray, dx: np.ndarray | None, labels: np.ndarray, slot: Slot) -> tuple[float, int]:
        """(sum of the losses, number of labels) for the stream x (N, C).

        Unless dx is None, gradients are added too, and that of x written to dx, which may be x. With divided rows x
        and dx are this rank's (N/t, C), labels are all (N), and the result is the same on every rank.
        """
        if self.output.layout.moves:
            total = self._divided_loss(x, dx, labels, slot)
        else:
            total = self._whole_loss(x, dx, labels, slot)
        return total, int(np.count_nonzero(labels != IGNORE_INDEX))

    def _whole_loss(self, x: np.ndarray, dx: np.ndarray | None, labels: np.ndarray, slot: Slot) -> float:
        """The norm is computed by chunks too."""
        norm, chunk = self.norm, self._chunk(len(x))
        statistics = norm.statistics(x, slot)
        normed = slot.shared(self, "normed", (chunk, x.shape[1]), self.num.real)
        total = 0.0
        for start in range(0, len(x), chunk):
            rows = slice(start, min(start + chunk, len(x)))
            part, here = normed[: rows.stop - start], [array[rows] for array in statistics]
            norm.apply(part, x[rows], here)
            total += self._part(part, None if dx is None else part, labels[rows], slot, chunk)
            if dx is not None:
                norm.add_gradient(dx[rows], part, x[rows], here, False)
        if dx is not None:
            self.output.weight.grad_added()
            norm.grads_added()
        return total

    def _divided_loss(self, x: np.ndarray, dx: np.ndarray | None, labels: np.ndarray, slot: Slot) -> float:
        """The normed rows of all ranks are gathered, and the gradients of these rows summed over the ranks."""
        normed = slot.shared(self, "normed rows", x.shape, self.num.real)
        self.norm.forward(normed, x, slot)
        layout = self.output.layout
        rows = layout.enter(normed, slot)
        if dx is None:
            return self.normed_loss(rows, None, labels, slot)
        gradient, _ = layout.gradient(normed, False, slot)
        total = self.normed_loss(rows, gradient, labels, slot)
        self.output.weight.grad_added()
        layout.leave_gradient(normed, gradient, False)
        self.norm.backward(dx, normed, x, slot)
        return total

    def normed_loss(self, x: np.ndarray, dx: np.ndarray | None, labels: np.ndarray, slot: Slot) -> float:
        """The loss sum for the norm's output x (N, C); fills dx, unless it is None, and adds the weight's gradient."""
        chunk = self._chunk(len(x))
        return sum(
            self._part(
                x[start : start + chunk],
                None if dx is None else dx[start : start + chunk],
                labels[start : start + chunk],
                slot,
                chunk,
            )
            for start in range(0, len(x), chunk)
        )

    def _chunk(self, rows: int) -> int:
        """Rows of a chunk."""
        limit = CHUNK_BYTES if self.num.real == self.num.f32 else CHUNK_BYTES_BF16
        most = max(1, limit // (self.output.weight.shape[0] * self.num.f32.itemsize))
        least = -(-rows // -(-rows // most))
        whole = -(-least // TILE_ROWS) * TILE_ROWS
        return whole if whole <= min(most, rows) else least

    def _part(
        self, x: np.ndarray, dx: np.ndarray | None, labels: np.ndarray, slot: Slot, chunk: int
    ) -> float:
        """`normed_loss` of one chunk of rows; dx may be x."""
        kernels, n, output = self.num.kernels, len(x), self.output
        width = output.weight.shape[0]
        (region,) = output.weight.regions  # further rows are padding
        logits = slot.shared(self, "logits", (chunk, width), self.num.f32)
        statistics = slot.shared(self, "statistics", (3 * chunk,), self.num.f32)
        valid = logits[:n, : region.rows]
        row_max, row_sum, target_logit = by_row = statistics[: 3 * n].reshape(3, n)
        output.format.product(logits[:n], x, None, None, output, slot)
        kernels.cross_entropy_forward(row_max, row_sum, target_logit, valid, labels, region.global_row)
        self._combine(by_row)
        lse = row_max + np.log(row_sum)
        if dx is not None:
            dlogits = self._in_place(logits)[:n]
            kernels.cross_entropy_backward(
                dlogits[:, : region.rows], valid, lse, labels, IGNORE_INDEX, region.global_row
            )
            dlogits[:, region.rows :] = 0
            output.format.weight_gradient(dlogits, x, None, output)
            output.format.product_transposed(dx, dlogits, False, output, slot)
        return float(np.sum((lse - target_logit)[labels != IGNORE_INDEX], dtype=np.float64))

    def _in_place(self, logits: np.ndarray) -> np.ndarray:
        """The compute dtype's (R, V) in the memory of f32 logits (R, V): each row in the first bytes of its row."""
        if self.num.real == self.num.f32 or 0 in logits.strides:  # planned arrays have no memory to view
            return logits
        return logits.view(self.num.real)[:, : logits.shape[1]]

    def _combine(self, by_row: np.ndarray) -> None:
        """Make (maximum, sum of exponentials, label's logit) (3, n) those of the whole vocabulary."""
        layout = self.output.layout
        if layout.moves:
            row_max, row_sum, _ = by_row
            largest = row_max.copy()
            layout.all_reduce(largest, "max")
            row_sum *= np.exp(row_max - largest)
            row_max[...] = largest
            layout.all_reduce(by_row[1:], "sum")
