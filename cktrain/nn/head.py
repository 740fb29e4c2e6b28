"""A model's last layer: final norm, output product and cross-entropy, in chunks of rows: the full (N, V) logits never
exist while training.

Shapes: x (N, C), weight (V, C), logits of one chunk (R, V), labels (N,) int32 with -100 where there is none.

`loss` is the one-pass path of next-token training: the unnormalised sum of the losses over the labelled rows; the
trainer divides by the count of the whole global batch. Its gradients are computed with the logits at hand, so nothing is
computed twice. `score` and `gradient` are the two-pass path, for objectives that weight rows by what all scores are.
Rows without a label are left out of every product on both paths. `divergence` is the one-pass path of distillation, where a
row's loss is a sum over the whole vocabulary; a teacher's logits are there for a chunk at a time, too.

Logits are f32 also where x and the weight are bf16: rounding to bf16 moves a number by up to 2^-8 of it, a logit of 10
by up to 0.03, and its probability by 3 %. Their gradient is of the compute dtype, in the first bytes of each row of the
logits, which nobody needs any more.

A family's logits may be c·tanh(multiplier·product / c) instead of the product (Gemma 2: c; Granite: multiplier). The
multiplier goes to the normed rows and to their gradients, which are narrower than the logits; the slope of the cap,
1 - (logit / c)², is part of the loss's backward kernel.

Where tensor ranks divide the vocabulary, each has some columns of the logits of all rows. The softmax needs the whole
vocabulary's maximum, sum of exponentials and label's logit of each row, so these 3 numbers per row are reduced over the
ranks instead of V logits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cktrain.memory.slot import Slot
from cktrain.nn.labelled_rows import IGNORE_INDEX, DividedRows, LabelledRows, WholeRows
from cktrain.nn.linear import Linear
from cktrain.nn.module import Module
from cktrain.nn.norm import Norm
from cktrain.nn.scaled import add_scaled, scale

CHUNK_BYTES = 26 << 20
"""Of the logits of a chunk, fp32 runs: about what attention's temporaries of the reference model take (docs/memory.md)."""
CHUNK_BYTES_BF16 = 64 << 20
"""The same in bf16 runs, whose activations leave room: with more rows the weight is packed fewer times."""
LEAST_ROWS = 210
"""Rows of a chunk, at the least, for each of which the whole weight is packed. Of 128,256 words of 2,048 numbers two AVX2
cores make 59 GFLOP/s with 48 rows, 92 with 96, 107 with 192 and 119 with 384, in fp32."""
TILE_ROWS = 14
"""Rows that the widest kernels multiply at a time: a chunk is as many of them as it can be, so that few go half empty."""


Teacher = Callable[[slice | np.ndarray], np.ndarray]
"""Another model's logits (n, V) f32 of some of the N rows."""


class Head(Module):
    """norm, a linear without bias, softmax and cross-entropy.

    As a module its output are the logits, whole: dx of `backward` may be x, and out is neither x nor, in `forward`, small.
    """

    def __init__(self, norm: Norm, output: Linear, softcap: float = 0.0, multiplier: float = 1.0) -> None:
        """The logits are `multiplier` times the product, and with a `softcap` c > 0 c·tanh(that / c)."""
        super().__init__(f"{output.name}.head", output.num)
        self.norm = norm
        self.output = output
        self.softcap = softcap
        self.multiplier = multiplier
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
        normed = slot.shared(self, "normed rows", x.shape, self.num.compute_dtype)
        self.norm.forward(normed, x, slot, alpha=self.multiplier)
        if not self.softcap:
            self.output.forward(out, normed, slot, residual, alpha)
            return
        capped = slot.shared(self, "capped", out.shape, out.dtype)
        self.output.forward(capped, normed, slot)
        self.num.kernels.softcap(capped, capped, self.softcap)
        add_scaled(self.num, out, capped, residual, alpha)

    def backward(
        self, dx: np.ndarray, dy: np.ndarray, x: np.ndarray, slot: Slot, accumulate: bool = False
    ) -> None:
        """dx (N, C) = or += the gradient of x for the logits' dy (N, V) of the compute dtype."""
        normed = slot.shared(self, "normed rows", x.shape, self.num.compute_dtype)
        self.norm.forward(normed, x, slot, alpha=self.multiplier)
        if self.softcap:
            capped = slot.shared(self, "capped", dy.shape, self.num.compute_dtype)
            self.output.forward(capped, normed, slot)
            self.num.kernels.softcap(capped, capped, self.softcap)
            dy = (dy * (1.0 - np.square(capped / self.softcap))).astype(dy.dtype)
        self.output.backward(normed, dy, normed, slot)
        if self.multiplier != 1.0:
            scale(self.num, normed, normed, self.multiplier)
        self.norm.backward(dx, normed, x, slot, accumulate)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """All logits (N, V) f32 for few rows of the stream x (N, C), in a new array, while generating."""
        out = np.empty((x.shape[0], self.vocab_size), self.num.master_dtype)
        normed = self.norm.normalize(x)
        if self.multiplier != 1.0:
            scale(self.num, normed, normed, self.multiplier)
        self.output.format.product(out, normed, None, None, self.output, Slot(1, len(x)))
        if self.softcap:
            self.num.kernels.softcap(out, out, self.softcap)
        return out

    def loss(self, x: np.ndarray, dx: np.ndarray | None, labels: np.ndarray, slot: Slot) -> tuple[float, int]:
        """(sum of the losses, number of labels) for the stream x (N, C).

        Unless dx is None, gradients are added too, and that of x written to dx, which may be x. With divided rows x
        and dx are this rank's (N/t, C), labels are all (N), and the result is the same on every rank.
        """
        rows = self._rows(x, dx, labels, slot)
        total = 0.0
        for chunk in rows:
            here, logits = labels[chunk.index], self._logits(chunk.normed, rows.size, slot)
            label_logit, lse = self._scores(logits, here, rows.size, slot)
            total += float(np.sum(lse - label_logit, dtype=np.float64))
            if dx is not None:
                self._add_gradients(chunk.gradient, chunk.normed, logits, here, lse, slot)
                rows.put(chunk, logits)
        if dx is not None:
            self._finish(rows)
        return total, rows.count

    def score(self, x: np.ndarray, labels: np.ndarray, slot: Slot) -> tuple[np.ndarray, np.ndarray]:
        """(logp, lse) of each row of the stream x (N, C), two arrays (N,) f32 of the slot.

        logp is the label's log-probability, lse the log-sum-exp of the row's logits; both 0 for rows without a label.
        With divided rows x is this rank's (N/t, C), and the result is that of all N on every rank.
        """
        logp = slot.saved(self, "logp", labels.shape, self.num.master_dtype)
        all_lse = slot.saved(self, "lse", labels.shape, self.num.master_dtype)
        logp[...] = all_lse[...] = 0
        rows = self._rows(x, None, labels, slot)
        for chunk in rows:
            logits = self._logits(chunk.normed, rows.size, slot)
            label_logit, lse = self._scores(logits, labels[chunk.index], rows.size, slot)
            all_lse[chunk.index], logp[chunk.index] = lse, label_logit - lse
        return logp, all_lse

    def gradient(
        self,
        dx: np.ndarray,
        x: np.ndarray,
        labels: np.ndarray,
        row_weight: np.ndarray,
        lse: np.ndarray,
        slot: Slot,
    ) -> None:
        """The gradients of the sum of row_weight · (-logp) over the labelled rows; dx (N, C) may be x.

        `lse` is what `score` gave for this x and these labels; row_weight (N,) f32. Weights of 1 give the gradients of
        `loss`. The logits are computed again: the price of weights that depend on all scores.
        """
        rows = self._rows(x, dx, labels, slot)
        for chunk in rows:
            logits, weight = self._logits(chunk.normed, rows.size, slot), row_weight[chunk.index]
            self._add_gradients(
                chunk.gradient, chunk.normed, logits, labels[chunk.index], lse[chunk.index], slot, weight
            )
            rows.put(chunk, logits)
        self._finish(rows)

    def divergence(
        self,
        x: np.ndarray,
        dx: np.ndarray | None,
        labels: np.ndarray,
        teacher: Teacher,
        temperature: float,
        alpha: float,
        slot: Slot,
    ) -> tuple[float, float, int]:
        """(sum of KL(teacher || model), sum of the cross-entropies, labels) over the labelled rows of the stream x (N, C).

        Both distributions of the divergence are at the `temperature`: softmax(logits / temperature). Unless dx is None, the
        gradients of alpha · divergence + (1 - alpha) · cross-entropy are added, and that of x written to dx, which may be x.
        The vocabulary is whole on this rank.
        """
        rows = self._rows(x, dx, labels, slot)
        divergence = loss = 0.0
        for chunk in rows:
            here, logits = labels[chunk.index], self._logits(chunk.normed, rows.size, slot)
            label_logit, lse = self._scores(logits, here, rows.size, slot)
            loss += float(np.sum(lse - label_logit, dtype=np.float64))
            ours, theirs, p = (
                slot.shared(self, name, (rows.size, self.vocab_size), logits.dtype)[: len(here)]
                for name in ("log q", "log p", "p")
            )
            np.divide(teacher(chunk.index), temperature, out=theirs)
            np.divide(logits, temperature, out=ours)
            for each in (ours, theirs):
                each -= each.max(axis=1, initial=-np.inf, keepdims=True)
                each -= np.log(np.exp(each, out=p).sum(axis=1, keepdims=True))
            np.exp(theirs, out=p)
            theirs -= ours
            divergence += float(np.einsum("nv,nv->n", p, theirs).sum(dtype=np.float64))
            if dx is None:
                continue
            gradient = np.subtract(np.exp(ours, out=ours), p, out=p)
            gradient *= alpha / temperature
            if alpha != 1.0:
                q = np.exp(np.subtract(logits, lse[:, None], out=theirs), out=theirs)
                q[np.arange(len(here)), here] -= 1.0
                gradient += np.multiply(q, 1.0 - alpha, out=q)
            if self.softcap:
                gradient *= 1.0 - np.square(logits / self.softcap)
            dlogits = self._in_place(logits)
            dlogits[...] = gradient
            self._propagate(chunk.gradient, chunk.normed, dlogits, slot, None)
            rows.put(chunk, logits)
        if dx is not None:
            self._finish(rows)
        return divergence, loss, rows.count

    def plan_divergence(self, x: np.ndarray, dx: np.ndarray | None, labels: np.ndarray, slot: Slot) -> None:
        """Ask the slot for what `divergence` asks, without its loops."""
        self.loss(x, dx, labels, slot)
        for name in ("log q", "log p", "p"):
            slot.shared(self, name, (self._chunk(len(labels)), self.vocab_size), self.num.master_dtype)

    def _rows(self, x: np.ndarray, dx: np.ndarray | None, labels: np.ndarray, slot: Slot) -> LabelledRows:
        size, layout = self._chunk(len(labels)), self.output.layout
        if layout.moves:
            return DividedRows(self.norm, x, dx, labels, size, self, slot, layout)
        return WholeRows(self.norm, x, dx, labels, size, self, slot)

    def _finish(self, rows: LabelledRows) -> None:
        if self.output.weight.trainable:
            self.output.weight.grad_added()
        rows.finish()

    def _chunk(self, rows: int) -> int:
        """Rows of a chunk."""
        limit = CHUNK_BYTES if self.num.compute_dtype == self.num.master_dtype else CHUNK_BYTES_BF16
        most = max(LEAST_ROWS, limit // (self.output.weight.shape[0] * self.num.master_dtype.itemsize))
        least = -(-rows // -(-rows // most))
        whole = -(-least // TILE_ROWS) * TILE_ROWS
        return whole if whole <= min(most, rows) else least

    def _logits(self, normed: np.ndarray, size: int, slot: Slot) -> np.ndarray:
        """This rank's columns of a chunk's logits (n, V) f32, in an array that every chunk has.

        `normed` are the chunk's rows, which are multiplied in place.
        """
        output = self.output
        if self.multiplier != 1.0:
            scale(self.num, normed, normed, self.multiplier)
        logits = slot.shared(self, "logits", (size, output.weight.shape[0]), self.num.master_dtype)[
            : len(normed)
        ]
        output.format.product(logits, normed, None, None, output, slot)
        if self.softcap:
            self.num.kernels.softcap(logits, logits, self.softcap)
        return logits

    def _scores(
        self, logits: np.ndarray, labels: np.ndarray, size: int, slot: Slot
    ) -> tuple[np.ndarray, np.ndarray]:
        """(the label's logit, log-sum-exp) of a chunk's rows, over the whole vocabulary."""
        n = len(labels)
        (region,) = self.output.weight.regions  # further rows are padding
        statistics = slot.shared(self, "statistics", (3 * size,), self.num.master_dtype)
        row_max, row_sum, label_logit = by_row = statistics[: 3 * n].reshape(3, n)
        self.num.kernels.cross_entropy_forward(
            row_max, row_sum, label_logit, logits[:, : region.rows], labels, region.global_row
        )
        self._combine(by_row)
        return label_logit, row_max + np.log(row_sum)

    def _add_gradients(
        self,
        dx: np.ndarray,
        x: np.ndarray,
        logits: np.ndarray,
        labels: np.ndarray,
        lse: np.ndarray,
        slot: Slot,
        row_weight: np.ndarray | None = None,
    ) -> None:
        """The gradients of a chunk's losses, for its normed x (n, C): dx, which may be x, and the weight's.

        `logits` are used up. A row's weight multiplies x and dx, which are narrower than the logits.
        """
        output = self.output
        (region,) = output.weight.regions
        dlogits = self._in_place(logits)
        self.num.kernels.cross_entropy_backward(
            dlogits[:, : region.rows],
            logits[:, : region.rows],
            lse,
            labels,
            IGNORE_INDEX,
            region.global_row,
            self.softcap,
        )
        dlogits[:, region.rows :] = 0
        self._propagate(dx, x, dlogits, slot, row_weight)

    def _propagate(
        self, dx: np.ndarray, x: np.ndarray, dlogits: np.ndarray, slot: Slot, row_weight: np.ndarray | None
    ) -> None:
        """The gradients for the dlogits (n, V) of normed rows x (n, C): dx, which may be x, and the weight's."""
        output = self.output
        if output.weight.trainable:
            weighted = x if row_weight is None else (x * row_weight[:, None]).astype(x.dtype)
            output.format.weight_gradient(dlogits, weighted, None, output, slot)
        output.format.product_transposed(dx, dlogits, False, output, slot)
        if self.multiplier != 1.0:
            scale(self.num, dx, dx, self.multiplier)
        if row_weight is not None:
            np.multiply(dx, row_weight[:, None], out=dx, casting="unsafe")

    def _in_place(self, logits: np.ndarray) -> np.ndarray:
        """The compute dtype's (R, V) in the memory of f32 logits (R, V): each row in the first bytes of its row."""
        if (
            self.num.compute_dtype == self.num.master_dtype or 0 in logits.strides
        ):  # planned arrays have no memory to view
            return logits
        return logits.view(self.num.compute_dtype)[:, : logits.shape[1]]

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
