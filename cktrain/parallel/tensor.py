"""Tensor parallelism (Shoeybi et al. 2019): each layer's matrices are divided over the ranks of the tensor group.

    x (N/t, C) --gather--> (N, C) --column--> (N, O/t) …heads, activation… --row--> sum of (N, C) --scatter--> (N/t, C)

A column-divided linear has some of the outputs: whole heads, or the same features of gate and up. A row-divided one has
the inputs that belong to them; its products are partial sums. Between a row-divided linear and the next
column-divided one the stream, its norms and residuals are divided by rows (sequence parallelism, Korthikanti et al.
2022): a reduce-scatter ends the one, an all-gather begins the other, which together send what an all-reduce would.

Which module is divided how stands in a table beside each model, by the module's role; divided modules take the place of
whole ones. What stands on all ranks (norms, biases after a row-divided product, position tables) gets a part of its
gradient on each: `partial_gradients.py` sums them. Such a bias is added, and its gradient computed, by tensor rank 0.

Shapes: t tensor ranks; N rows of a micro-batch; C hidden size; O, I output and input features of the whole matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from cktrain.comm.group import Group
from cktrain.memory.params import Place
from cktrain.memory.slot import Slot
from cktrain.models.transformer import Transformer
from cktrain.nn.attention import Attention
from cktrain.nn.embedding import Embedding
from cktrain.nn.head import CrossEntropyHead
from cktrain.nn.linear import Linear
from cktrain.nn.module import Module
from cktrain.parallel.buckets import Span
from cktrain.parallel.rows import Rows
from cktrain.parallel.vocabulary import VocabularyEmbedding, VocabularyHead
from cktrain.parallel.waiting import Waiting


def divide_layers(
    model: Transformer, styles: Mapping[str, str], group: Group, waiting: Waiting, rows: int
) -> None:
    """Give this rank its part of every layer, by the model's table of styles; before parameters have storage.

    `rows` is N, the rows of a micro-batch. Raises ValueError, with the numbers, for what does not divide.
    """
    if group.size == 1:
        return
    border = Rows(model.num, group, waiting)
    for module in list(model.modules()):
        if isinstance(module, Attention):
            _divide_heads(module, group.size)
        for name, child in list(vars(module).items()):
            style = styles.get(child.role) if isinstance(child, Module) else None
            if style is not None and style != "replicated":
                setattr(module, name, _STYLES[style](child, border))
    if rows % group.size:
        raise ValueError(
            f"[parallel] tensor {group.size} does not divide the {rows} rows of a micro-batch (micro_batch_size x "
            "sequence_length). Change one of them."
        )
    model.row_shares = group.size


class ColumnLinear(Linear):
    """Some of the output features. Takes rows (N/t, C), computes on all N, and returns the rows' gradients summed."""

    def __init__(self, whole: Linear, border: Rows) -> None:
        _take_over(self, whole)
        self.border = border
        ranks, rank = border.group.size, border.group.rank
        self.copies = 1
        """Tensor ranks, neighbours, that hold the same `copied_rows`: key/value heads, where there are too few."""
        self.copied_rows: list[Span] = []
        sizes, places, row, whole_row = [], [], 0, 0
        for part in whole.parts or (whole.out_features,):
            size, start, copies = _share(part, ranks, rank, whole.unit, whole.name)
            places.append(Place(row, whole_row + start, size))
            sizes.append(size)
            if copies > 1:
                self.copies = copies
                self.copied_rows.append((row, row + size))
            row, whole_row = row + size, whole_row + part
        self.parts = tuple(sizes) if whole.parts else ()
        self.out_features = row
        self.weight.divide((row, self.in_features), tuple(places))
        if self.bias is not None:
            self.bias.divide((row,), tuple(places))

    def input(self, x: np.ndarray, slot: Slot) -> np.ndarray:
        """All rows (N, C)."""
        return self.border.gather(x, slot, "gathered")

    def backward_input(self, dx: np.ndarray, dy: np.ndarray, slot: Slot) -> np.ndarray:
        """dx (N/t, C): this rank's rows, summed over the ranks' features."""
        return self.border.scatter(
            dx, super().backward_input(self.border.partial(slot, dx.shape[1]), dy, slot)
        )


class RowLinear(Linear):
    """Some of the input features. Its products are partial sums; the sums' rows (N/t, C) come back."""

    def __init__(self, whole: Linear, border: Rows) -> None:
        _take_over(self, whole)
        self.border = border
        size, start, _ = _share(whole.in_features, border.group.size, border.group.rank, 1, whole.name)
        self.in_features = size
        self.weight.divide((self.out_features, size), (Place(0, 0, self.out_features, start),))

    def output_gradient(self, dy: np.ndarray, slot: Slot) -> np.ndarray:
        """All rows (N, C)."""
        return self.border.gather(dy, slot, "gathered_gradient")

    def apply(
        self, y: np.ndarray, x: np.ndarray, slot: Slot, residual: np.ndarray | None = None
    ) -> np.ndarray:
        """y (N/t, C) = rows of the sum + bias + residual (N/t, C), each added once."""
        partial = self.border.partial(slot, self.out_features)
        bias = self.bias.value if self.bias is not None and self.border.group.rank == 0 else None
        self.num.kernels.linear_forward(partial, x, self.weight.value, bias)
        return self.border.scatter(y, partial, residual)

    def backward_weight(self, dy: np.ndarray, x: np.ndarray) -> None:
        """As Linear's, for all rows; the bias's gradient is that of tensor rank 0."""
        if self.bias is None or self.border.group.rank == 0:
            super().backward_weight(dy, x)
            return
        self.num.kernels.linear_backward_weight(self.weight.grad, None, dy, x, self.weight.adds())
        self.bias.sums(self.num.kernels)
        self.weight.grad_added()
        self.bias.grad_added()


class SequenceEmbedding(Embedding):
    """A whole table, looked up for this rank's rows alone (GPT-2's positions)."""

    def __init__(self, whole: Embedding, border: Rows) -> None:
        _take_over(self, whole)
        self.border = border

    def look_up(self, y: np.ndarray, ids: np.ndarray, slot: Slot) -> np.ndarray:
        """y (N/t, C) = table[this rank's rows of ids (N)]."""
        return super().look_up(y, self.border.own(ids), slot)

    def backward_ids(self, dy: np.ndarray, ids: np.ndarray, slot: Slot) -> None:
        """Adds dy (N/t, C) to the gradient rows of this rank's ids."""
        super().backward_ids(dy, self.border.own(ids), slot)


def _share(size: int, ranks: int, rank: int, unit: int, name: str) -> tuple[int, int, int]:
    """(size, start, copies) of a rank's share of `size` features in units of `unit`, which stay together.

    Where there are fewer units than ranks, `copies` neighbours have the same one.
    """
    units = size // unit
    if units % ranks == 0:
        return size // ranks, rank * (size // ranks), 1
    if unit > 1 and ranks % units == 0:
        return unit, rank * units // ranks * unit, ranks // units
    raise ValueError(
        f"[parallel] tensor {ranks} does not divide the {units} {'heads' if unit > 1 else 'features'} of {name}. "
        f"Choose a divisor of {units} for parallel.tensor."
    )


def _divide_heads(attention: Attention, ranks: int) -> None:
    """This rank's heads: a share of the query heads, and the key/value heads that they use."""
    shape = attention.shape
    if shape.heads % ranks or (shape.kv_heads % ranks and ranks % shape.kv_heads):
        raise ValueError(
            f"[parallel] tensor {ranks} does not divide the {shape.heads} query heads and {shape.kv_heads} key/value "
            f"heads of {attention.name}. Choose a divisor of {shape.heads} that divides {shape.kv_heads} or is a "
            "multiple of it."
        )
    attention.shape = replace(shape, heads=shape.heads // ranks, kv_heads=max(1, shape.kv_heads // ranks))


def _take_over(module: Module, whole: Module) -> None:
    """The divided module has everything that the whole one has."""
    vars(module).update(vars(whole))


def _vocabulary(whole: Any, border: Rows) -> Module:
    if isinstance(whole, CrossEntropyHead):
        return VocabularyHead(whole, border)
    return VocabularyEmbedding(whole, border)


_STYLES: dict[str, Any] = {
    "column": ColumnLinear,
    "row": RowLinear,
    "vocabulary": _vocabulary,
    "sequence": SequenceEmbedding,
}
