"""LoRA (Hu et al. 2021): y += s · (dropout(x) · aᵀ) · bᵀ beside a weight that stays as it is.

    x (N, I) --a (R, I)--> u (N, R) --scaled--> --b (O_p, r_p) of each target--> y[:, rows of the target]

A linear may be several matrices to Hugging Face (query, key and value; gate and up), each of which is a target of its own,
with its own rank r_p and scale s_p. Their a stand in one matrix, R = sum of r_p, so that x is read once for all of them;
each b adds to its target's columns of y.

Backward, with s · dy · b = du: db = dyᵀ · (s · u), da = duᵀ · x, dx += du · a. s · u stays from the forward, R numbers
a row; the base weight's gradient is never computed (`nn/linear.py`).

Dropout leaves a share of x out of the low-rank products while a model is trained. Its mask is a function of the sequence's
key, the row, the linear's name and the column of the whole x (`data/sequence_keys.py`). It is computed again wherever it is
needed, so it is the same in every layout and after a resume. The targets of one linear share it.

Under tensor parallelism the rows of b follow the linear's output features, or the columns of a its input features; the
other one stands whole on every rank and gets a part of its gradient there (`parallel/roles.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cktrain.data.sequence_keys import row_keys
from cktrain.memory.param import Param, ShardRegion
from cktrain.memory.slot import Slot
from cktrain.nn.linear import Adapter, Linear
from cktrain.nn.module import Module
from cktrain.nn.scaled import scale


@dataclass(frozen=True)
class Target:
    """A matrix that is adapted: some rows of a linear's weight, or all of them."""

    name: str
    """Hugging Face's name of the module: model.layers.0.self_attn.q_proj."""
    rows: slice
    """Of the linear's whole weight."""
    rank: int
    scale: float
    """alpha / r, or with rsLoRA alpha / √r."""


class LowRankRows(Module):
    """The b of one target, and where its outputs and its share of u stand."""

    def __init__(self, linear: Linear, target: Target, columns: slice) -> None:
        super().__init__(f"{linear.name}.lora_B.{target.name.rpartition('.')[2]}", linear.num)
        self.target = target
        self.rows = target.rows
        """Of the linear's outputs on this rank."""
        self.columns = columns
        """Of u."""
        count = target.rows.stop - target.rows.start
        self.weight = Param(f"{self.name}.weight", (count, target.rank), init="zeros", adapter=True)

    def shard(self, linear: Linear) -> None:
        """The rows that belong to this rank's outputs."""
        first, last = self.target.rows.start, self.target.rows.stop
        mine = [region for region in linear.weight.regions if first <= region.global_row < last]
        start = mine[0].row
        self.rows = slice(start, start + sum(region.rows for region in mine))
        self.weight.shard(
            (self.rows.stop - start, self.target.rank),
            tuple(ShardRegion(r.row - start, r.global_row - first, r.rows) for r in mine),
        )


class LoRA(Adapter):
    """The low-rank products of one linear. out is the residual; dx may be x."""

    def __init__(self, linear: Linear, targets: Sequence[Target], dropout: float = 0.0) -> None:
        """To be made before the linear is divided and its parameters have memory. Ranks are 1 or more.

        `dropout` is the share of x that is left out.
        """
        super().__init__(f"{linear.name}.lora", linear.num)
        self.dropout = dropout
        ranks = tuple(target.rank for target in targets)
        bound = 1.0 / math.sqrt(linear.in_features)  # PEFT's: kaiming_uniform with a = √5
        self.a = Param(
            f"{linear.name}.lora_A.weight",
            (sum(ranks), linear.in_features),
            init="uniform",
            std=bound / math.sqrt(3),
            parts=ranks,
            adapter=True,
        )
        self.b: list[LowRankRows] = []
        column = 0
        for target in targets:
            self.b.append(LowRankRows(linear, target, slice(column, column + target.rank)))
            column += target.rank
        scales = {target.scale for target in targets}
        self._scale = scales.pop() if len(scales) == 1 else None

    def shard(self, linear: Linear) -> None:
        """As `Adapter.shard`."""
        if linear.weight.shape[0] != linear.weight.global_shape[0]:
            for rows in self.b:
                rows.shard(linear)
        else:
            (region,) = linear.weight.regions
            count = self.a.shape[0]
            self.a.shard((count, linear.in_features), (ShardRegion(0, 0, count, region.column),))

    def divided_rows(self) -> Iterator[tuple[Param, slice]]:
        """As `Adapter.divided_rows`."""
        for rows in self.b:
            yield rows.weight, rows.rows

    def forward(
        self,
        out: np.ndarray,
        x: np.ndarray,
        slot: Slot,
        residual: np.ndarray | None = None,
        alpha: float = 1.0,
    ) -> None:
        """out += s · (x · aᵀ) · bᵀ."""
        assert residual is out and alpha == 1.0, self.name
        inner = self._inner(len(x), slot)
        self.num.kernels.linear_forward(inner, self._dropped(x, slot), self.a.value)
        self._scale_columns(inner)
        for rows in self.b:
            y = out[:, rows.rows]
            self.num.kernels.linear_forward(y, inner[:, rows.columns], self._b(rows, slot), None, y)

    def output_gradient(self, dy: np.ndarray, slot: Slot) -> None:
        """Computes du, which both halves of the backward read."""
        dinner = self._dinner(len(dy), slot)
        for rows in self.b:
            self.num.kernels.linear_backward_input(
                dinner[:, rows.columns], dy[:, rows.rows], self._b(rows, slot)
            )
        self._scale_columns(dinner)

    def backward_weight(self, dy: np.ndarray, x: np.ndarray, slot: Slot) -> None:
        """Adds the gradients of a and b."""
        inner = self._inner(len(x), slot)
        for rows in self.b:
            weight = rows.weight
            if weight.trainable:
                self.num.kernels.linear_backward_weight(
                    weight.grad,
                    None,
                    dy[:, rows.rows],
                    inner[:, rows.columns],
                    weight.should_accumulate(),
                )
                weight.grad_added()
        self._add_a_gradient(dy, self._dropped(x, slot), slot)

    def _add_a_gradient(self, dy: np.ndarray, x: np.ndarray, slot: Slot) -> None:
        if self.a.trainable:
            self.num.kernels.linear_backward_weight(
                self.a.grad, None, self._dinner(len(dy), slot), x, self.a.should_accumulate()
            )
            self.a.grad_added()

    def backward_input(self, dx: np.ndarray, dy: np.ndarray, slot: Slot, accumulate: bool = False) -> None:
        """dx = or += dropout(du · a)."""
        kernels, dinner = self.num.kernels, self._dinner(len(dy), slot)
        rows = self._dropout_rows(dx, slot)
        if rows is None or slot.keys is None:
            kernels.linear_backward_input(dx, dinner, self.a.value, accumulate)
        else:
            kernels.linear_backward_input(rows, dinner, self.a.value, False)
            self._drop(dx, rows, slot.keys, slot, accumulate)

    def flops(self, rows: int, length: int) -> int:
        """6 per row and element of a and b."""
        return 6 * rows * (self.a.size + sum(each.weight.size for each in self.b))

    def merge_into(self, weight: np.ndarray) -> None:
        """weight (O, I) += s · b · a, where all of it stands here; computed in the master dtype."""
        for rows in self.b:
            a = self.a.data[rows.columns].astype(self.num.master_dtype)
            b = rows.weight.data.astype(self.num.master_dtype)
            part = weight[rows.rows]
            part += (rows.target.scale * (b @ a)).astype(weight.dtype)

    def _dropped(self, x: np.ndarray, slot: Slot) -> np.ndarray:
        """x (N, I) as a multiplies it."""
        rows = self._dropout_rows(x, slot)
        if rows is None or slot.keys is None:
            return x
        self._drop(rows, x, slot.keys, slot, False)
        return rows

    def _drop(
        self, out: np.ndarray, x: np.ndarray, sequences: np.ndarray, slot: Slot, accumulate: bool
    ) -> None:
        """out (N, I) = or += dropout(x)."""
        keys = row_keys(sequences, slot.sequence_length, self.name)
        self.num.kernels.dropout(out, x, keys, self.dropout, self.a.regions[0].column, accumulate)

    def _dropout_rows(self, like: np.ndarray, slot: Slot) -> np.ndarray | None:
        """An array like x, where a share of it may be left out."""
        return slot.shared(self, "dropout", like.shape, self.num.compute_dtype) if self.dropout else None

    def _inner(self, count: int, slot: Slot) -> np.ndarray:
        """s · u (N, R), from the forward to the end of the backward, also where blocks are computed again."""
        return slot.kept(self, "inner", (count, self.a.shape[0]), self.num.compute_dtype)

    def _b(self, rows: LowRankRows, slot: Slot) -> np.ndarray:
        """b (O_p, r_p) as it is multiplied."""
        return rows.weight.value

    def _dinner(self, count: int, slot: Slot) -> np.ndarray:
        """du (N, R). Layers whose ranks differ have arrays of their own."""
        width = self.a.shape[0]
        return slot.shared(self, f"dinner of {width}", (count, width), self.num.compute_dtype)

    def _scale_columns(self, inner: np.ndarray) -> None:
        """Each target's columns by its scale, in place."""
        if self._scale is not None:
            if self._scale != 1.0:
                scale(self.num, inner, inner, self._scale)
            return
        for rows in self.b:
            part = inner[:, rows.columns]
            scale(self.num, part, part, rows.target.scale)
