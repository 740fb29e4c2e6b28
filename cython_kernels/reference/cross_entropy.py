"""Softmax cross-entropy over a slice of the vocabulary. N rows, V columns of this slice.

The slice starts at vocab_start; when the vocabulary is divided, its owners reduce maxima and sums between
the two calls. loss = lse - target logit, where lse = row_max + log(row_sum) over the whole vocabulary.
"""

from __future__ import annotations

import numpy as np

from ._arrays import Array, Door, store, widen


def cross_entropy_forward(
    row_max: Array, row_sum: Array, target_logit: Array, logits: Array, targets: Array, vocab_start: int = 0
) -> None:
    """Write per row, f32 (N): the maximum, the sum of exp(l - maximum), and the logit of the target.

    logits (N,V); targets int32 (N). The target's logit is 0 when it is not in [vocab_start, vocab_start + V).
    """
    door = Door("cross_entropy_forward", logits)
    n = door.dims("logits", logits, 2)[0]
    door.f32(row_max=(row_max, (n,)), row_sum=(row_sum, (n,)), target_logit=(target_logit, (n,)))
    door.ids(targets=(targets, (n,)))
    wide = widen(logits)
    top = wide.max(axis=1)
    rows, columns = _targets_inside(targets, vocab_start, logits.shape[1])
    row_max[...] = top
    row_sum[...] = np.exp(wide - top[:, None]).sum(axis=1)
    target_logit[...] = 0.0
    target_logit[rows] = wide[rows, columns]


def cross_entropy_backward(
    dlogits: Array,
    logits: Array,
    lse: Array,
    targets: Array,
    ignore_index: int = -100,
    vocab_start: int = 0,
    softcap: float = 0.0,
) -> None:
    """Write dlogits (N,V) = exp(logits - lse) - onehot(target), unnormalised; it may be logits.

    With `softcap` c the logits are c · tanh(x / c), and the gradient of x is written: times 1 - (logits / c)².

    lse f32 (N) is the log-sum-exp over the whole vocabulary; rows whose target is `ignore_index` are zero. logits
    are of the type of dlogits, or f32.
    """
    door = Door("cross_entropy_backward", dlogits)
    n, v = door.dims("logits", logits, 2)
    door.real(dlogits=(dlogits, (n, v)))
    if logits.dtype == door.f32_dtype:
        door.f32(logits=(logits, (n, v)))
    else:
        door.real(logits=(logits, (n, v)))
    door.f32(lse=(lse, (n,)))
    door.ids(targets=(targets, (n,)))
    wide = widen(logits)
    value = np.exp(wide - lse[:, None])
    rows, columns = _targets_inside(targets, vocab_start, v)
    value[rows, columns] -= 1.0
    if softcap:
        value *= 1.0 - np.square(wide / softcap)
    value[targets == ignore_index] = 0.0
    store(dlogits, value)


def _targets_inside(targets: Array, vocab_start: int, v: int) -> tuple[Array, Array]:
    """Return the rows whose target lies in this slice, and their columns in it."""
    columns = targets.astype(np.int64) - vocab_start
    rows = np.flatnonzero((columns >= 0) & (columns < v))
    return rows, columns[rows]
