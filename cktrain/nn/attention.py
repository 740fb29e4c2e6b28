"""Causal self-attention with grouped key/value heads.

Shapes: x (N, C); the fused projection qkv (N, (H + 2K)·D) holds query, key and value of a token side by side, and the
attention kernel reads them there, as strided views (B, T, H or K, D). Rotary embedding works in place on the same
array; with QK-norm (Qwen3) the normalised heads are kept apart, since the norm's backward needs its input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cktrain.memory.params import Param
from cktrain.memory.slot import Slot
from cktrain.nn.linear import Linear
from cktrain.nn.module import Module
from cktrain.nn.numerics import Numerics


@dataclass(frozen=True)
class AttentionShape:
    """Heads of an attention layer: H query heads and K key/value heads of size D, and the sliding window (0: none)."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int = 0


@dataclass(frozen=True, eq=False)
class Rotary:
    """Rotary tables, f32 (P, D/2) each."""

    cos: np.ndarray
    sin: np.ndarray


@dataclass(frozen=True)
class _Views:
    """Strided views of one slot: flat heads (N, heads, D) and by sequence (B, T, heads, D)."""

    raw_q: np.ndarray
    raw_k: np.ndarray
    q: np.ndarray
    k: np.ndarray
    rotated: tuple[np.ndarray, ...]
    """What rotary embedding turns: q and k in one where they lie side by side."""
    q4: np.ndarray
    k4: np.ndarray
    v4: np.ndarray
    context4: np.ndarray


class Attention(Module):
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
    ) -> None:
        super().__init__(name, numerics)
        self.shape = shape
        self.rotary = rotary
        self.hidden_size = hidden_size
        h, k, d = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.head_dim
        self.qkv_proj = Linear(
            f"{name}.qkv_proj", numerics, hidden_size, h + 2 * k, qkv_bias, std, parts=(h, k, k), unit=d
        )
        self.qk_norm_eps = qk_norm_eps
        if qk_norm_eps is not None:
            self.q_norm = Param(f"{name}.q_norm.weight", (d,), init="ones", decay=False, compute="f32")
            self.k_norm = Param(f"{name}.k_norm.weight", (d,), init="ones", decay=False, compute="f32")
        self.o_proj = Linear(f"{name}.o_proj", numerics, h, hidden_size, output_bias, output_std)

    def forward_into(self, y: np.ndarray, x: np.ndarray, residual: np.ndarray, slot: Slot) -> np.ndarray:
        """y (N, C) = residual + attention(x)."""
        self.attend(x, slot)
        return self.o_proj.apply(y, self._context(slot), slot, residual)

    def attend(self, x: np.ndarray, slot: Slot) -> None:
        """Everything up to the output projection, whose input stays in the slot."""
        kernels, shape = self.num.kernels, self.shape
        self.qkv_proj.apply(self._qkv(slot), self.qkv_proj.input(x, slot), slot)
        at = slot.view(self, "views", lambda: self._views(slot))
        if self.qk_norm_eps is not None:
            q_rstd, k_rstd = self._rstd(slot)
            kernels.rms_norm_forward(at.q, q_rstd, at.raw_q, self.q_norm.value, self.qk_norm_eps)
            kernels.rms_norm_forward(at.k, k_rstd, at.raw_k, self.k_norm.value, self.qk_norm_eps)
        if self.rotary is not None:
            for heads in at.rotated:
                kernels.rope_forward(heads, heads, self.rotary.cos, self.rotary.sin, slot.positions)
        k4, v4 = at.k4, at.v4
        if slot.cache is not None:
            k4, v4 = slot.cache.extend(self.name, k4, v4)
        kernels.attention_forward(
            at.context4, self._lse(slot), at.q4, k4, v4, self._scale, shape.window, slot.first
        )

    def backward_heads(self, dy: np.ndarray, slot: Slot) -> np.ndarray:
        """The gradient (N, (H + 2K)·D) of the projected input, for dy (N, C)."""
        kernels = self.num.kernels
        dqkv = slot.shared(self, "dqkv", (slot.rows, self.qkv_proj.out_features), self.num.real)
        with slot.phase("heads"):
            self._backward_context(dy, dqkv, slot)
        dq, dk, _ = slot.view(self, "dviews", lambda: self._split(dqkv))
        if self.rotary is not None:
            dqk = slot.view(self, "dqk", lambda: self._query_and_key(dqkv))
            kernels.rope_backward(dqk, dqk, self.rotary.cos, self.rotary.sin, slot.positions)
        if self.qk_norm_eps is not None:
            at = slot.view(self, "views", lambda: self._views(slot))
            q_rstd, k_rstd = self._rstd(slot)
            q_grad, k_grad = self.q_norm.sums(kernels), self.k_norm.sums(kernels)
            kernels.rms_norm_backward(dq, q_grad, dq, at.raw_q, self.q_norm.value, q_rstd, False)
            kernels.rms_norm_backward(dk, k_grad, dk, at.raw_k, self.k_norm.value, k_rstd, False)
            self.q_norm.grad_added()
            self.k_norm.grad_added()
        return dqkv

    def backward_input(self, dqkv: np.ndarray, x: np.ndarray, slot: Slot) -> np.ndarray:
        """dx (N, C), in the place of x, which `forward_into` got, for what `backward_heads` gave."""
        self.qkv_proj.backward_weight(dqkv, self.qkv_proj.input(x, slot))
        return self.qkv_proj.backward_input(x, dqkv, slot)

    def _backward_context(self, dy: np.ndarray, dqkv: np.ndarray, slot: Slot) -> None:
        shape = self.shape
        context = self._context(slot)
        dy = self.o_proj.output_gradient(dy, slot)
        self.o_proj.backward_weight(dy, context)
        dcontext = slot.shared(self, "dcontext", context.shape, self.num.real)
        self.o_proj.backward_input(dcontext, dy, slot)
        dq, dk, dv = slot.view(self, "dviews", lambda: self._split(dqkv))
        at = slot.view(self, "views", lambda: self._views(slot))
        by_sequence = slot.view(
            self, "dviews4", lambda: [self._by_sequence(a, slot) for a in (dq, dk, dv, self._heads(dcontext))]
        )
        dq4, dk4, dv4, dcontext4 = by_sequence
        delta = slot.shared(self, "delta", (slot.batch_size, shape.heads, slot.sequence_length), self.num.f32)
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
            self._scale,
            shape.window,
            slot.first,
        )

    @property
    def _scale(self) -> float:
        return 1.0 / math.sqrt(self.shape.head_dim)

    def _qkv(self, slot: Slot) -> np.ndarray:
        return self.qkv_proj.output(slot, saved=True)

    def _context(self, slot: Slot) -> np.ndarray:
        return slot.saved(self, "context", (slot.rows, self.shape.heads * self.shape.head_dim), self.num.real)

    def _lse(self, slot: Slot) -> np.ndarray:
        return slot.saved(
            self, "lse", (slot.batch_size, self.shape.heads, slot.sequence_length), self.num.f32
        )

    def _rstd(self, slot: Slot) -> tuple[np.ndarray, np.ndarray]:
        return (
            slot.saved(self, "q_rstd", (slot.rows, self.shape.heads), self.num.f32),
            slot.saved(self, "k_rstd", (slot.rows, self.shape.kv_heads), self.num.f32),
        )

    def _views(self, slot: Slot) -> _Views:
        raw_q, raw_k, v = self._split(self._qkv(slot))
        q, k = raw_q, raw_k
        rotated: tuple[np.ndarray, ...] = (self._query_and_key(self._qkv(slot)),)
        if self.qk_norm_eps is not None:
            q = slot.saved(self, "q_normed", raw_q.shape, self.num.real)
            k = slot.saved(self, "k_normed", raw_k.shape, self.num.real)
            rotated = (q, k)
        q4, k4, v4, context4 = (
            self._by_sequence(a, slot) for a in (q, k, v, self._heads(self._context(slot)))
        )
        return _Views(raw_q, raw_k, q, k, rotated, q4, k4, v4, context4)

    def _split(self, qkv: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N, (H + 2K)·D) -> q (N, H, D), k (N, K, D), v (N, K, D), views."""
        heads, kv_heads = self.shape.heads, self.shape.kv_heads
        parts = qkv.reshape(qkv.shape[0], heads + 2 * kv_heads, self.shape.head_dim)
        return parts[:, :heads], parts[:, heads : heads + kv_heads], parts[:, heads + kv_heads :]

    def _query_and_key(self, qkv: np.ndarray) -> np.ndarray:
        """(N, (H + 2K)·D) -> (N, H + K, D), a view."""
        heads = self.shape.heads + self.shape.kv_heads
        return qkv[:, : heads * self.shape.head_dim].reshape(qkv.shape[0], heads, self.shape.head_dim)

    def _heads(self, context: np.ndarray) -> np.ndarray:
        return context.reshape(context.shape[0], self.shape.heads, self.shape.head_dim)

    def _by_sequence(self, x: np.ndarray, slot: Slot) -> np.ndarray:
        """(N, heads, D) -> (B, T, heads, D), a view."""
        n, row, last = x.strides
        return np.lib.stride_tricks.as_strided(
            x, (slot.batch_size, slot.sequence_length, *x.shape[1:]), (slot.sequence_length * n, n, row, last)
        )
