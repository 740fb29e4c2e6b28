"""Token embedding: gather, and its deterministic scatter-add. N rows, V vocabulary, C hidden size."""

from __future__ import annotations

import numpy as np

from ._arrays import Array, Door, widen


def embedding_forward(y: Array, ids: Array, table: Array) -> None:
    """Write y (N,C) = table (V,C)[ids int32 (N)]. ValueError when an id is outside the table."""
    door = Door("embedding_forward", table)
    v, c = door.dims("table", table, 2)
    (n,) = door.dims("ids", ids, 1)
    door.ids(ids=(ids, (n,)))
    door.real(y=(y, (n, c)))
    door.inside("ids", ids, v)
    y[...] = table[ids]


def embedding_backward(dtable: Array, dy: Array, ids: Array) -> None:
    """Add dy (N,C) to dtable f32 (V,C)[ids int32 (N)], row after row: the order of the sums is fixed."""
    door = Door("embedding_backward", dy)
    n, c = door.dims("dy", dy, 2)
    v = door.dims("dtable", dtable, 2)[0]
    door.ids(ids=(ids, (n,)))
    door.f32(dtable=(dtable, (v, c)))
    door.inside("ids", ids, v)
    if not dtable.flags.c_contiguous:
        door.refuse("dtable", f"has strides {dtable.strides}, a contiguous array is needed")
    if not dtable.flags.writeable:  # ufunc.at does not ask
        door.refuse("dtable", "is read-only, an array to write is needed")
    # One index per element: ufunc.at is an order of magnitude faster in one dimension than row by row.
    elements = ids.astype(np.int64)[:, None] * c + np.arange(c)
    np.add.at(dtable.reshape(-1), elements.reshape(-1), widen(dy).reshape(-1))
