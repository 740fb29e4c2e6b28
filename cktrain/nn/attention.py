"""Causal self-attention with grouped key/value heads.

Shapes: x (N, C); the fused projection qkv (N, (H + 2K)·D) holds query, key and value of a token side by side, and the
attention kernel reads them there, as strided views (B, T, H or K, D). Rotary embedding works in place on the same
array; with QK-norm (Qwen3, OLMo-2) the normalised heads are kept apart, since the norm's backward needs its input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cktrain.memory.slot import Slot
from cktrain.nn.branch import Body
from cktrain.nn.linear import Linear
from cktrain.nn.norm import RMSNorm
from cktrain.nn.numerics import Numerics
from cktrain.nn.rope_tables import original_positions, rope_tables, scores_factor
from cktrain.nn.width_norm import WidthNorm


@dataclass(frozen=True)
class AttentionShape:
    """Heads of an attention layer: H query heads and K key/value heads of size D, and what their scores are.

    The sliding window, and the bound c of scores c·tanh(score/c) (Gemma 2); 0 is none.
    """

    heads: int
    kv_heads: int
    head_dim: int
    window: int = 0
    softcap: float = 0.0


@dataclass(frozen=True, eq=False)
class Rotary:
    """Rotary tables, f32 (P, R/2) each: the first R numbers of a head turn, the rest stay as they are."""

    cos: np.ndarray
    sin: np.ndarray
    long: Rotary | None = None
    """The tables for sequences of more tokens than these have positions, where those are other ones (longrope)."""

    @classmethod
    def of(
        cls,
        numerics: Numerics,
        positions: int,
        size: int,
        theta: float,
        scaling: Mapping[str, Any] | None = None,
    ) -> Rotary:
        """For R = `size` and sequences of up to `positions` tokens; theta and scaling as `rope_tables` takes them."""
        factor = numerics.master_dtype.type(scores_factor(scaling))

        def of(count: int, long: Rotary | None = None) -> Rotary:
            tables = rope_tables(count, size, theta, scaling)
            cos, sin = (table.astype(numerics.master_dtype) for table in tables)
            return cls(cos, sin, long) if factor == 1 else cls(cos * factor, sin * factor, long)

        original = original_positions(scaling)
        return of(positions) if original is None or positions <= original else of(original, of(positions))

    def for_slot(self, slot: Slot) -> Rotary:
        """The tables of this slot's sequences; while a text is written, of all that it has room for."""
        length = slot.sequence_length if slot.cache is None else slot.cache.capacity
        return self if self.long is None or length <= len(self.cos) else self.long


@dataclass(frozen=True)
class _Views:
    """Strided views of one slot: flat heads (N, heads, D) and by sequence (B, T, heads, D)."""

    raw_q: np.ndarray
    raw_k: np.ndarray
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    context: np.ndarray
    rotated: tuple[np.ndarray, ...]
    """What rotary embedding turns: q and k in one where they lie side by side."""
    q4: np.ndarray
    k4: np.ndarray
    v4: np.ndarray
    context4: np.ndarray


class Attention(Body):
    """Projection, optional QK-norm, rotary embedding, attention, output projection."""

    def __init__(
        self,
        name: str,
        numerics: Numerics,
        hidden_size: int,
        shape: AttentionShape,
        rotary: Rotary | None,
        *,
        std: float,
        output_std: float,
        qkv_bias: bool = False,
        output_bias: bool = False,
        qk_norm_eps: float | None = None,
        qk_norm_width: bool = False,
        qk_norm_unit_offset: bool = False,
        scale: float | None = None,
    ) -> None:
        """`scale` multiplies the scores: 1 / sqrt(D) unless given. A rotary of None leaves positions out (NoPE).

        With `qk_norm_eps` each query and key head is normed, with `qk_norm_width` all heads of a row at once;
        `qk_norm_unit_offset` is the norms' `unit_offset`.
        """
        super().__init__(name, numerics)
        self.shape = shape
        self.rotary = rotary
        self.hidden_size = hidden_size
        self.scale = 1.0 / math.sqrt(shape.head_dim) if scale is None else scale
        h, k, d = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.head_dim
        self.q_norm: RMSNorm | None = None
        self.k_norm: RMSNorm | None = None
        if qk_norm_eps is not None and qk_norm_width:
            self.q_norm = WidthNorm(f"{name}.q_norm", numerics, h, qk_norm_eps, unit=d)
            self.k_norm = WidthNorm(f"{name}.k_norm", numerics, k, qk_norm_eps, unit=d)
        elif qk_norm_eps is not None:
            self.q_norm = RMSNorm(f"{name}.q_norm", numerics, d, qk_norm_eps, qk_norm_unit_offset)
            self.k_norm = RMSNorm(f"{name}.k_norm", numerics, d, qk_norm_eps, qk_norm_unit_offset)
        self.qkv_proj = Linear(
            f"{name}.qkv_proj", numerics, hidden_size, h + 2 * k, qkv_bias, std, parts=(h, k, k), unit=d
        )
        self.o_proj = Linear(f"{name}.o_proj", numerics, h, hidden_size, output_bias, output_std)

    def forward(
        self,
        out: np.ndarray,
        x: np.ndarray,
        slot: Slot,
        residual: np.ndarray | None = None,
        alpha: float = 1.0,
    ) -> None:
        """out (N, C) = residual + alpha · attention(x)."""
        self._attend(x, slot)
        self.o_proj.forward(out, self._context(slot), slot, residual, alpha)

    def recompute(self, x: np.ndarray, slot: Slot) -> None:
        """Everything but the output projection's product."""
        self._attend(x, slot)
        self.o_proj.prepare(slot)

    def _attend(self, x: np.ndarray, slot: Slot) -> None:
        """Everything up to the output projection, whose input stays in the slot."""
        kernels = self.num.kernels
        self.qkv_proj.forward(self._qkv(slot), x, slot)
        at = slot.view(self, "views", lambda: self._views(slot))
        if self.q_norm is not None and self.k_norm is not None:
            self.q_norm.forward(at.q, at.raw_q, slot)
            self.k_norm.forward(at.k, at.raw_k, slot)
        if self.rotary is not None:
            rotary = self.rotary.for_slot(slot)
            for heads in at.rotated:
                kernels.rope_forward(heads, heads, rotary.cos, rotary.sin, slot.positions)
        k4, v4 = at.k4, at.v4
        if slot.cache is not None and slot.cache.is_step(slot):
            self._attend_to_cache(at, slot)
            return
        if slot.cache is not None:
            k4, v4 = slot.cache.extend(self.name, k4, v4, self.shape.window)
        kernels.attention_forward(
            at.context4,
            self._lse(slot),
            at.q4,
            k4,
            v4,
            self.scale,
            self.shape.window,
            slot.first,
            softcap=self.shape.softcap,
        )

    def _attend_to_cache(self, at: _Views, slot: Slot) -> None:
        """One new token of each sequence, beside what the cache holds; it is put there, too."""
        keys, values = slot.cache.layer(self.name, at.k.shape[1:], at.k.dtype, self.shape.window)
        self.num.kernels.attention_cached(
            at.context,
            keys,
            values,
            at.q,
            at.k,
            at.v,
            slot.cache.lengths,
            self.scale,
            self.shape.window,
            self.shape.softcap,
        )

    def tables(self) -> list[np.ndarray]:
        """The rotary tables."""
        rotary = self.rotary
        own = [] if rotary is None else [rotary.cos, rotary.sin]
        if rotary is not None and rotary.long is not None:
            own += [rotary.long.cos, rotary.long.sin]
        return [*own, *super().tables()]

    def backward_inner(self, dy: np.ndarray, slot: Slot) -> np.ndarray:
        """The gradient (N, (H + 2K)·D) of the projected input, for dy (N, C)."""
        kernels = self.num.kernels
        dqkv = slot.shared(self, "dqkv", (slot.rows, self.qkv_proj.out_features), self.num.compute_dtype)
        with slot.phase("heads"):
            self._backward_context(dy, dqkv, slot)
        dq, dk, _ = slot.view(self, "dviews", lambda: self._split(dqkv))
        if self.rotary is not None:
            dqk = slot.view(self, "dqk", lambda: self._turned(self._query_and_key(dqkv)))
            rotary = self.rotary.for_slot(slot)
            kernels.rope_backward(dqk, dqk, rotary.cos, rotary.sin, slot.positions)
        if self.q_norm is not None and self.k_norm is not None:
            at = slot.view(self, "views", lambda: self._views(slot))
            self.q_norm.backward(dq, dq, at.raw_q, slot)
            self.k_norm.backward(dk, dk, at.raw_k, slot)
        return dqkv

    def backward_entry(
        self, dx: np.ndarray, dinner: np.ndarray, x: np.ndarray, slot: Slot, accumulate: bool = False
    ) -> None:
        """dx (N, C) = or += the gradient of x."""
        self.qkv_proj.backward(dx, dinner, x, slot, accumulate)

    def flops(self, rows: int, length: int) -> int:
        """The projections, and 12·H·D per key that a token sees: T/2 on average, or the window."""
        seen = min(length, 2 * self.shape.window) if self.shape.window else length
        return super().flops(rows, length) + 6 * rows * self.shape.heads * self.shape.head_dim * seen

    def _backward_context(self, dy: np.ndarray, dqkv: np.ndarray, slot: Slot) -> None:
        shape = self.shape
        context = self._context(slot)
        dcontext = slot.shared(self, "dcontext", context.shape, self.num.compute_dtype)
        self.o_proj.backward(dcontext, dy, context, slot)
        dq, dk, dv = slot.view(self, "dviews", lambda: self._split(dqkv))
        at = slot.view(self, "views", lambda: self._views(slot))
        by_sequence = slot.view(
            self, "dviews4", lambda: [self._by_sequence(a, slot) for a in (dq, dk, dv, self._heads(dcontext))]
        )
        dq4, dk4, dv4, dcontext4 = by_sequence
        delta = slot.shared(
            self, "delta", (slot.batch_size, shape.heads, slot.sequence_length), self.num.master_dtype
        )
        self.num.kernels.attention_backward(
            dq4,
            dk4,
            dv4,
            delta,
            dcontext4,
            at.q4,
            at.k4,
            at.v4,
            at.context4,
            self._lse(slot),
            self.scale,
            shape.window,
            slot.first,
            softcap=shape.softcap,
        )

    def _qkv(self, slot: Slot) -> np.ndarray:
        return slot.saved(self, "qkv", (slot.rows, self.qkv_proj.out_features), self.num.compute_dtype)

    def _context(self, slot: Slot) -> np.ndarray:
        return slot.saved(
            self, "context", (slot.rows, self.shape.heads * self.shape.head_dim), self.num.compute_dtype
        )

    def _lse(self, slot: Slot) -> np.ndarray:
        return slot.saved(
            self, "lse", (slot.batch_size, self.shape.heads, slot.sequence_length), self.num.master_dtype
        )

    def _views(self, slot: Slot) -> _Views:
        raw_q, raw_k, v = self._split(self._qkv(slot))
        q, k = raw_q, raw_k
        rotated: tuple[np.ndarray, ...] = (self._query_and_key(self._qkv(slot)),)
        if self.q_norm is not None:
            q = slot.saved(self, "q_normed", raw_q.shape, self.num.compute_dtype)
            k = slot.saved(self, "k_normed", raw_k.shape, self.num.compute_dtype)
            rotated = (q, k)
        rotated = tuple(self._turned(heads) for heads in rotated)
        context = self._heads(self._context(slot))
        q4, k4, v4, context4 = (self._by_sequence(a, slot) for a in (q, k, v, context))
        return _Views(raw_q, raw_k, q, k, v, context, rotated, q4, k4, v4, context4)

    def _split(self, qkv: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N, (H + 2K)·D) -> q (N, H, D), k (N, K, D), v (N, K, D), views."""
        heads, kv_heads = self.shape.heads, self.shape.kv_heads
        parts = qkv.reshape(qkv.shape[0], heads + 2 * kv_heads, self.shape.head_dim)
        return parts[:, :heads], parts[:, heads : heads + kv_heads], parts[:, heads + kv_heads :]

    def _query_and_key(self, qkv: np.ndarray) -> np.ndarray:
        """(N, (H + 2K)·D) -> (N, H + K, D), a view."""
        heads = self.shape.heads + self.shape.kv_heads
        return qkv[:, : heads * self.shape.head_dim].reshape(qkv.shape[0], heads, self.shape.head_dim)

    def _turned(self, heads: np.ndarray) -> np.ndarray:
        """(N, heads, D) -> (N, heads, R), a view of what rotary embedding turns."""
        return heads if self.rotary is None else heads[..., : 2 * self.rotary.cos.shape[1]]

    def _heads(self, context: np.ndarray) -> np.ndarray:
        return context.reshape(context.shape[0], self.shape.heads, self.shape.head_dim)

    def _by_sequence(self, x: np.ndarray, slot: Slot) -> np.ndarray:
        """(N, heads, D) -> (B, T, heads, D), a view."""
        n, row, last = x.strides
        return np.lib.stride_tricks.as_strided(
            x, (slot.batch_size, slot.sequence_length, *x.shape[1:]), (slot.sequence_length * n, n, row, last)
        )
