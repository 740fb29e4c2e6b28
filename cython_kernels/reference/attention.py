"""Causal scaled-dot-product attention with grouped key/value heads, sliding window and document starts.

B sequences, S queries, T keys, H query heads, K key/value heads (query head h reads head h·K/H), D head size.
The reference builds the whole (S, T) matrix of scores, one key/value head at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ._arrays import Array, Door, store, widen


class _Head(NamedTuple):
    """One key/value head of one sequence, with the G = H/K query heads that read it."""

    sequence: int
    queries: slice
    key: int
    q: Array  # (G,S,D)
    k: Array  # (T,D)
    v: Array  # (T,D)
    scores: Array  # (G,S,T), scaled, -inf where a query does not see a key


def attention_forward(
    o: Array,
    lse: Array,
    q: Array,
    k: Array,
    v: Array,
    scale: float,
    window: int = 0,
    first: Array | None = None,
) -> None:
    """Write o (B,S,H,D) = softmax(scale · q·kᵀ) · v and lse f32 (B,H,S), log-sum-exp of the scaled scores.

    q (B,S,H,D); k, v (B,T,K,D). Query s stands at key position T-S+s and sees the keys up to its own, of
    those the last `window` when it is positive, and none before first int32 (B,S). `scale` is positive.
    """
    door = Door("attention_forward", q)
    b, s, h, _ = _check(door, q, k, v, scale, window, first)
    door.real(o=(o, q.shape))
    door.f32(lse=(lse, (b, h, s)))
    for head in _heads(q, k, v, scale, window, first):
        top = head.scores.max(axis=-1, keepdims=True)
        weights = np.exp(head.scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        lse[head.sequence, head.queries] = (top + np.log(total))[..., 0]
        out = (weights @ head.v) / total
        o[head.sequence, :, head.queries] = out.transpose(1, 0, 2)


def attention_backward(
    dq: Array,
    dk: Array,
    dv: Array,
    delta: Array,
    do: Array,
    q: Array,
    k: Array,
    v: Array,
    o: Array,
    lse: Array,
    scale: float,
    window: int = 0,
    first: Array | None = None,
) -> None:
    """Write dq (B,S,H,D), dk and dv (B,T,K,D), and the workspace delta f32 (B,H,S) = sum of do·o over D.

    The probabilities are computed again from lse, as in Dao et al. 2022; other arguments as in the forward.
    """
    door = Door("attention_backward", q)
    b, s, h, _ = _check(door, q, k, v, scale, window, first)
    door.real(dq=(dq, q.shape), dk=(dk, k.shape), dv=(dv, k.shape), do=(do, q.shape), o=(o, q.shape))
    door.f32(delta=(delta, (b, h, s)), lse=(lse, (b, h, s)))
    delta[...] = (widen(do) * widen(o)).sum(axis=-1).transpose(0, 2, 1)
    if s == 0:
        store(dk, np.zeros(k.shape))
        store(dv, np.zeros(k.shape))
    for head in _heads(q, k, v, scale, window, first):
        at, rows = head.sequence, head.queries
        probability = np.exp(head.scores - lse[at, rows, :, None])
        dout = widen(do[at, :, rows]).transpose(1, 0, 2)
        dscores = probability * (dout @ head.v.T - delta[at, rows, :, None]) * scale
        dq[at, :, rows] = (dscores @ head.k).transpose(1, 0, 2)
        dk[at, :, head.key] = np.tensordot(dscores, head.q, axes=((0, 1), (0, 1)))
        dv[at, :, head.key] = np.tensordot(probability, dout, axes=((0, 1), (0, 1)))


def _check(
    door: Door, q: Array, k: Array, v: Array, scale: float, window: int, first: Array | None
) -> tuple[int, ...]:
    """Check the inputs and return the shape of q."""
    b, s, h, d = door.dims("q", q, 4)
    t, heads = door.dims("k", k, 4)[1:3]
    door.real(k=(k, (b, t, heads, d)), v=(v, (b, t, heads, d)))
    door.ids(first=(first, (b, s)))
    if s > t:
        door.refuse("q", f"holds {s} queries for {t} keys, each query needs a key of its own")
    if heads == 0 or h % heads:
        door.refuse("q", f"has {h} heads, a multiple of the {heads} heads of k is needed")
    if not scale > 0:
        door.refuse("scale", f"is {scale}, a positive number is needed")
    if window < 0:
        door.refuse("window", f"is {window}, 0 (everything) or more is needed")
    if first is not None and ((first < 0) | (first > np.arange(t - s, t))).any():
        door.refuse("first", "has an entry outside [0, the query's own position]")
    return b, s, h, d


def _heads(q: Array, k: Array, v: Array, scale: float, window: int, first: Array | None) -> Iterator[_Head]:
    """Walk the key/value heads of all sequences; nothing when there are no queries."""
    (b, s, h, _), (t, heads) = q.shape, k.shape[1:3]
    group = h // heads
    key, query = np.arange(t), np.arange(t - s, t)[:, None]
    causal = key <= query
    if window:
        causal &= key > query - window
    for at in range(b if s else 0):
        visible = causal if first is None else causal & (key >= first[at][:, None])
        for head in range(heads):
            rows = slice(head * group, (head + 1) * group)
            q_head = widen(q[at, :, rows]).transpose(1, 0, 2)
            k_head, v_head = widen(k[at, :, head]), widen(v[at, :, head])
            scores = np.where(visible, (q_head @ k_head.T) * scale, -np.inf)
            yield _Head(at, rows, head, q_head, k_head, v_head, scores)
