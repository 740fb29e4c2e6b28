"""Tensor parallelism (Shoeybi et al. 2019): each layer's matrices are divided over the ranks of the tensor group.

Which module is divided how stands in a table beside each model, by the module's role. A divided module is the same
module with another layout (`parallel/layouts.py`) and a share of the parameters:

    column      outputs: whole heads, or the same features of gate and up
    row         the inputs that belong to them
    vocabulary  words, of the embedding (its inputs) and of the head (its outputs)
    sequence    nothing: each rank looks up its own rows
    width       the weights of a norm over all heads, like the heads

Rank r has the words [r·W, (r+1)·W), W = ceil(V/t); the last rank's end may be padding, so that all have as many. Padding
rows stay zero: no id looks them up, their logits are left out of the softmax, and no file holds them.

What stands on all ranks (norms, biases after a row-divided product, position tables) gets a part of its gradient on each:
`partial_gradients.py` sums them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cktrain.comm.group import Group
from cktrain.memory.param import Param, ShardRegion
from cktrain.models.transformer import Transformer
from cktrain.nn.attention import Attention
from cktrain.nn.embedding import Embedding
from cktrain.nn.linear import Linear
from cktrain.nn.width_norm import WidthNorm
from cktrain.parallel.comm_timer import CommTimer
from cktrain.parallel.layouts import Column, OwnRows, Row
from cktrain.parallel.sequence_parallel import SequenceParallelRegion


def divide_layers(
    model: Transformer, styles: Mapping[str, str], group: Group, comm_timer: CommTimer, rows: int
) -> None:
    """Give this rank its part of every layer, by the model's table of styles; before parameters have storage.

    `rows` is N, the rows of a micro-batch. Raises ValueError, with the numbers, for what does not divide.
    """
    if group.size == 1:
        return
    region = SequenceParallelRegion(model.num, group, comm_timer)
    for module in list(model.modules()):
        if isinstance(module, Attention):
            _divide_heads(module, group.size)
        style = styles.get(module.role)
        if style is not None and style != "replicated":
            _STYLES[style](module, region)
    if rows % group.size:
        raise ValueError(
            f"[parallel] tensor {group.size} does not divide the {rows} rows of a micro-batch (micro_batch_size x "
            "sequence_length). Change one of them."
        )
    model.row_shares = group.size


def _divide_columns(linear: Linear, region: SequenceParallelRegion) -> None:
    """Some of the outputs, of each fused part its share."""
    ranks, rank = region.group.size, region.group.rank
    most_copies, copied, sizes, regions, row, global_row = 1, [], [], [], 0, 0
    for part in linear.parts or (linear.out_features,):
        size, start, copies = _share(part, ranks, rank, linear.unit, linear.name)
        regions.append(ShardRegion(row, global_row + start, size))
        sizes.append(size)
        if copies > 1:
            most_copies = copies
            copied.append((row, row + size))
        row, global_row = row + size, global_row + part
    linear.parts = tuple(sizes) if linear.parts else ()
    linear.out_features = row
    linear.weight.shard((row, linear.in_features), tuple(regions))
    if linear.bias is not None:
        linear.bias.shard((row,), tuple(regions))
    linear.layout = Column(region, most_copies, tuple(copied))
    _shard_adapters(linear)


def _divide_rows(linear: Linear, region: SequenceParallelRegion) -> None:
    """Some of the inputs."""
    size, start, _ = _share(linear.in_features, region.group.size, region.group.rank, 1, linear.name)
    linear.in_features = size
    linear.weight.shard((linear.out_features, size), (ShardRegion(0, 0, linear.out_features, start),))
    linear.layout = Row(region)
    _shard_adapters(linear)


def _divide_width(norm: WidthNorm, region: SequenceParallelRegion) -> None:
    """The weights of this rank's heads."""
    size, start, copies = _share(norm.size, region.group.size, region.group.rank, norm.unit, norm.name)
    norm.size = size
    norm.weight.shard((size,), (ShardRegion(0, start, size),))
    norm.layout = Column(region, copies, ((0, size),) if copies > 1 else ())


def _divide_vocabulary(module: Linear | Embedding, region: SequenceParallelRegion) -> None:
    """Some of the words: the outputs of the head's linear, the inputs of an embedding."""
    _divide_words(module.weight, region.group.size, region.group.rank)
    if isinstance(module, Linear):
        module.out_features = module.weight.shape[0]
        module.layout = Column(region)
    else:
        module.layout = Row(region)


def _divide_words(table: Param, ranks: int, rank: int) -> None:
    """Divide a table (V, C); a tied one, which comes twice, once. Raises ValueError when a rank would have no words."""
    words, size = table.global_shape
    share = -(-words // ranks)
    first = rank * share
    if share * (ranks - 1) >= words:
        raise ValueError(
            f"[parallel] tensor {ranks}: a vocabulary of {words} in shares of {share} leaves a rank without words. "
            "Use fewer tensor ranks."
        )
    if table.shape == table.global_shape:
        table.shard((share, size), (ShardRegion(0, first, min(share, words - first)),))


def _own_rows(module: Embedding, region: SequenceParallelRegion) -> None:
    module.layout = OwnRows(region)


def _shard_adapters(linear: Linear) -> None:
    for adapter in linear.adapters:
        adapter.shard(linear)


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


_STYLES: dict[str, Callable[[Any, SequenceParallelRegion], None]] = {
    "column": _divide_columns,
    "row": _divide_rows,
    "vocabulary": _divide_vocabulary,
    "sequence": _own_rows,
    "width": _divide_width,
}
