"""Scaled-dot-product attention with grouped key/value heads: what a query sees, and what is made of its scores.

B sequences, S queries, T keys, H query heads, K key/value heads (query head h reads head h·K/H), D head size.
The reference builds the whole (S, T) matrix of scores, one key/value head at a time: softcap(scale · q·kᵀ) + bias,
-inf where a query does not see a key. A query that sees none has o = 0, lse = -inf (or its sink) and no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ._arrays import Array, Door, store, widen

HIDDEN = -3e38
"""A bias below it hides its key: -inf, or the least fp32 number, which stands for it in many masks."""


@dataclass(frozen=True)
class _Options:
    """The arguments that say which scores there are and what is made of them; None and 0 are none."""

    scale: float
    window: int
    first: Array | None
    end: Array | None
    causal: bool
    softcap: float
    sinks: Array | None
    bias: Array | None


class _Head(NamedTuple):
    """One key/value head of one sequence, with the G = H/K query heads that read it."""

    sequence: int
    queries: slice
    key: int
    q: Array  # (G,S,D)
    k: Array  # (T,D)
    v: Array  # (T,D)
    scores: Array  # (G,S,T), -inf where a query does not see a key
    slope: Array | float  # (G,S,T), the derivative of softcap


def attention_forward(
    o: Array,
    lse: Array,
    q: Array,
    k: Array,
    v: Array,
    scale: float,
    window: int = 0,
    first: Array | None = None,
    end: Array | None = None,
    causal: bool = True,
    softcap: float = 0.0,
    sinks: Array | None = None,
    bias: Array | None = None,
) -> None:
    """Write o (B,S,H,D) = softmax(scores) · v and lse f32 (B,H,S), the log-sum-exp of the scores.

    q (B,S,H,D); k, v (B,T,K,D). scores = c·tanh(scale · q·kᵀ / c) + bias, with softcap c > 0 (0: without it) and bias
    f32 (B,H,S,T), of which the first three axes may be 1. sinks f32 (H): a score that each row of head h has besides,
    without a value; lse has it, too.

    Query s stands at key position p = T-S+s. It sees the keys in [first, end), int32 (B,S), default [0, T); of
    these, when `causal`, those up to p, and with a window w > 0 those nearer than w to p.
    """
    door = Door("attention_forward", q)
    options = _Options(scale, window, first, end, causal, softcap, sinks, bias)
    b, s, h, _ = _check(door, q, k, v, options)
    door.real(o=(o, q.shape))
    door.f32(lse=(lse, (b, h, s)))
    for head in _heads(q, k, v, options):
        top = head.scores.max(axis=-1, keepdims=True, initial=-np.inf)
        sink = np.full_like(top, -np.inf) if sinks is None else widen(sinks)[head.queries, None, None]
        top = np.maximum(top, sink)
        top = np.where(np.isneginf(top), 0.0, top)
        weights = np.exp(head.scores - top)
        total = weights.sum(axis=-1, keepdims=True) + np.exp(sink - top)
        with np.errstate(divide="ignore"):
            lse[head.sequence, head.queries] = (top + np.log(total))[..., 0]
        out = (weights @ head.v) / np.where(total == 0.0, 1.0, total)
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
    end: Array | None = None,
    causal: bool = True,
    softcap: float = 0.0,
    sinks: Array | None = None,
    bias: Array | None = None,
    dsinks: Array | None = None,
    dbias: Array | None = None,
) -> None:
    """Write dq (B,S,H,D), dk and dv (B,T,K,D), and the workspace delta f32 (B,H,S) = sum of do·o over D.

    dsinks f32 (H) and dbias f32, of the shape of bias, are added to, unless None. The probabilities are computed again
    from lse, as in Dao et al. 2022; other arguments as in the forward. With o and lse of more keys than k has
    (attention_merge), the gradients are those that these keys have there.
    """
    door = Door("attention_backward", q)
    options = _Options(scale, window, first, end, causal, softcap, sinks, bias)
    b, s, h, _ = _check(door, q, k, v, options)
    door.real(dq=(dq, q.shape), dk=(dk, k.shape), dv=(dv, k.shape), do=(do, q.shape), o=(o, q.shape))
    door.f32(delta=(delta, (b, h, s)), lse=(lse, (b, h, s)), dsinks=(dsinks, (h,)))
    if dsinks is not None and sinks is None:
        door.refuse("dsinks", "is given without sinks, both are needed")
    if dbias is not None:
        if bias is None:
            door.refuse("dbias", "is given without bias, both are needed")
        else:
            door.f32(dbias=(dbias, bias.shape))
    delta[...] = (widen(do) * widen(o)).sum(axis=-1).transpose(0, 2, 1)
    if s == 0:
        store(dk, np.zeros(k.shape))
        store(dv, np.zeros(k.shape))
    reached = np.where(np.isneginf(lse), np.inf, lse)  # of a row that saw no key: exp(score - inf) = 0
    for head in _heads(q, k, v, options):
        at, rows = head.sequence, head.queries
        probability = np.exp(head.scores - reached[at, rows, :, None])
        dout = widen(do[at, :, rows]).transpose(1, 0, 2)
        dscores = probability * (dout @ head.v.T - delta[at, rows, :, None])
        if dbias is not None:
            _add(dbias, dscores, at, rows)
        if dsinks is not None and sinks is not None:
            sink = np.exp(sinks[rows, None] - reached[at, rows])
            dsinks[rows] -= (sink * delta[at, rows]).sum(axis=-1)
        dproducts = dscores * head.slope * scale
        dq[at, :, rows] = (dproducts @ head.k).transpose(1, 0, 2)
        dk[at, :, head.key] = np.tensordot(dproducts, head.q, axes=((0, 1), (0, 1)))
        dv[at, :, head.key] = np.tensordot(probability, dout, axes=((0, 1), (0, 1)))


def attention_merge(o: Array, lse: Array, part: Array, part_lse: Array) -> None:
    """Make o (B,S,H,D), real or f32, and lse f32 (B,H,S) over some keys those over them and the keys of the part.

    part (B,S,H,D) and part_lse f32 (B,H,S) are attention over other keys. For the gradients attention_backward is
    called for either set of keys with the merged o and lse; the two dq add up.
    """
    door = Door("attention_merge", part)
    b, s, h, _ = door.dims("part", part, 4)
    check = door.f32 if o.dtype == door.f32_dtype else door.real
    check(o=(o, part.shape))
    door.f32(lse=(lse, (b, h, s)), part_lse=(part_lse, (b, h, s)))
    both = np.logaddexp(lse, part_lse)
    reached = np.where(np.isneginf(both), 0.0, both)
    keep, take = (np.exp(each - reached).transpose(0, 2, 1)[..., None] for each in (lse, part_lse))
    store(
        o,
        np.where(
            np.isneginf(both).transpose(0, 2, 1)[..., None], widen(o), keep * widen(o) + take * widen(part)
        ),
    )
    lse[...] = both


def attention_cached(
    o: Array,
    keys: Array,
    values: Array,
    q: Array,
    k: Array,
    v: Array,
    lengths: Array,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> None:
    """One new token per sequence: k, v (B,K,D) go into the cache (B,P,K,D) after lengths i32 (B) tokens; o, q (B,H,D).

    Token i stands in row i mod P; the new one sees those before it and itself, the last `window` of them if it is not 0.
    """
    door = Door("attention_cached", q)
    b, h, d = door.dims("q", q, 3)
    p, heads = door.dims("keys", keys, 4)[1:3]
    door.real(o=(o, (b, h, d)), k=(k, (b, heads, d)), v=(v, (b, heads, d)))
    door.floats(keys=(keys, (b, p, heads, d)), values=(values, (b, p, heads, d)))
    door.ids(lengths=(lengths, (b,)))
    _check_scores(door, h, heads, scale, window, softcap)
    if ((lengths < 0) | ((lengths >= p) & (not 0 < window <= p))).any():
        door.refuse("lengths", f"has an entry that is not in [0, {p}), the positions of keys")
    for at, position in enumerate(lengths.tolist()):
        store(keys[at, position % p], widen(k[at]))
        store(values[at, position % p], widen(v[at]))
        most = min(window, p) if window else p
        rows = np.arange(max(0, position + 1 - most), position + 1) % p
        for head in range(h):
            scores = widen(keys[at, rows, head * heads // h]) @ widen(q[at, head]) * scale
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            weight = np.exp(scores - scores.max())
            store(o[at, head], weight @ widen(values[at, rows, head * heads // h]) / weight.sum())


def _add(dbias: Array, dscores: Array, sequence: int, rows: slice) -> None:
    """dbias += dscores (G,S,T) of these rows of heads, summed over the axes on which dbias has one element."""
    there = dbias[sequence if dbias.shape[0] > 1 else 0]
    if there.shape[0] > 1:
        there = there[rows]
    summed = tuple(axis for axis in (0, 1) if there.shape[axis] == 1)
    there += dscores.sum(axis=summed, keepdims=True)


def _check(door: Door, q: Array, k: Array, v: Array, options: _Options) -> tuple[int, ...]:
    """Check the inputs and return the shape of q."""
    b, s, h, d = door.dims("q", q, 4)
    t, heads = door.dims("k", k, 4)[1:3]
    door.real(k=(k, (b, t, heads, d)), v=(v, (b, t, heads, d)))
    door.ids(first=(options.first, (b, s)), end=(options.end, (b, s)))
    door.f32(sinks=(options.sinks, (h,)))
    if options.bias is not None:
        shape = door.dims("bias", options.bias, 4)
        door.f32(
            bias=(options.bias, (*(1 if a == 1 else n for a, n in zip(shape, (b, h, s), strict=False)), t))
        )
    if options.causal and s > t:
        door.refuse("q", f"holds {s} queries for {t} keys, each causal query needs a key of its own")
    _check_scores(door, h, heads, options.scale, options.window, options.softcap)
    for name, bound in (("first", options.first), ("end", options.end)):
        if bound is not None and ((bound < 0) | (bound > t)).any():
            door.refuse(name, f"has an entry outside [0, {t}], the keys")
    return b, s, h, d


def _check_scores(door: Door, h: int, heads: int, scale: float, window: int, softcap: float) -> None:
    """Check the heads, and what is made of their scores."""
    if heads == 0 or h % heads:
        door.refuse("q", f"has {h} heads, a multiple of the {heads} heads of k is needed")
    if not np.isfinite(scale):
        door.refuse("scale", f"is {scale}, a finite number is needed")
    if not (softcap >= 0 and np.isfinite(softcap)):
        door.refuse("softcap", f"is {softcap}, 0 (none) or a finite bound is needed")
    if window < 0:
        door.refuse("window", f"is {window}, 0 (everything) or more is needed")


def _visible(options: _Options, s: int, t: int, sequence: int) -> Array:
    """Which keys each query of a sequence sees: (S,T), True or False."""
    key, query = np.arange(t), np.arange(t - s, t)[:, None]
    seen = np.ones((s, t), bool)
    if options.causal:
        seen &= key <= query
    if options.window:
        seen &= np.abs(key - query) < options.window
    if options.first is not None:
        seen &= key >= options.first[sequence][:, None]
    if options.end is not None:
        seen &= key < options.end[sequence][:, None]
    return seen


def _heads(q: Array, k: Array, v: Array, options: _Options) -> Iterator[_Head]:
    """Walk the key/value heads of all sequences; nothing when there are no queries."""
    (b, s, h, _), (t, heads) = q.shape, k.shape[1:3]
    group = h // heads
    bias = None if options.bias is None else np.broadcast_to(options.bias, (b, h, s, t))
    for at in range(b if s else 0):
        visible = _visible(options, s, t, at)
        for head in range(heads):
            rows = slice(head * group, (head + 1) * group)
            q_head = widen(q[at, :, rows]).transpose(1, 0, 2)
            k_head, v_head = widen(k[at, :, head]), widen(v[at, :, head])
            scores = (q_head @ k_head.T) * options.scale
            slope: Array | float = 1.0
            if options.softcap:
                bent = np.tanh(scores / options.softcap)
                scores, slope = options.softcap * bent, 1.0 - bent * bent
            seen = visible
            if bias is not None:
                scores = scores + bias[at, rows]
                seen = visible & ~(bias[at, rows] < HIDDEN)  # NaN hides nothing
            scores = np.where(seen, scores, -np.inf)
            yield _Head(at, rows, head, q_head, k_head, v_head, scores, slope)
