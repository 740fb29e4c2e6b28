"""Encoders of llama.cpp's K-quants: 256 values share fp16 scales, and each 32 or 16 of them have a small integer scale.

    q4_k, q5_k    8 groups of 32:  x = d · scale · q - dmin · offset,  q of 4 or 5 bits, scale and offset of 6
    q6_k          16 groups of 16: x = d · scale · q,                  q in [-32, 31], scale of 8 bits

Layouts are ggml's (ggml-common.h, decoded by the package gguf). For each group several roundings are tried, for each of them
the scale (and the offset) with the least sum of squared errors is computed, and the best is taken; then scales are rounded,
and the values once more by the rounded ones. llama.cpp's encoder weighs errors by a value's size instead; on normally
distributed weights the errors here are 1 to 6 % smaller (tests/cktrain/hf/test_k_quants_judge.py).

G groups of S values; shapes are (G, S) in all that follows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 256
"""Values that share the fp16 scales."""
K_BYTES = {"q4_k": 144, "q5_k": 176, "q6_k": 210}
"""Of a block."""
_AT_ONCE = 1 << 18
"""Values that are encoded at a time, so that what is tried stays in the cache."""
_TRIED = np.linspace(-3.0, 1.0, 9, dtype=np.float32)
"""What is added to the largest code, to try another rounding of a group."""

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def encode_k(values: Floats, format: str) -> Bytes:
    """(n, I / 256 · bytes) uint8: the blocks of (n, I) fp32 that are finite; I is a multiple of 256."""
    flat = values.reshape(-1, BLOCK)
    found = np.empty((len(flat), K_BYTES[format]), np.uint8)
    step = _AT_ONCE // BLOCK
    for start in range(0, len(flat), step):
        piece = np.ascontiguousarray(flat[start : start + step], np.float32)
        found[start : start + step] = (
            _encode_q6(piece) if format == "q6_k" else _encode_offset(piece, 4 if format == "q4_k" else 5)
        )
    return found.reshape(len(values), -1)


def _encode_offset(blocks: Floats, bits: int) -> Bytes:
    """q4_k and q5_k of (B, 256)."""
    count, largest = len(blocks), 2**bits - 1
    groups = blocks.reshape(-1, 32)
    scale, offset = (found.reshape(count, 8) for found in _fit_offset(groups, largest))
    d, ls = _small(scale, 63)
    dmin, lm = _small(offset, 63)
    q, ls, lm = _best_neighbours(groups.reshape(count, 8, 32), d, ls, dmin, lm, largest)
    codes = q.astype(np.uint8).reshape(count, 4, 2, 32)
    low = codes & 15
    parts: list[NDArray[Any]] = [
        d.view(np.uint8),
        dmin.view(np.uint8),
        _packed_scales(ls.astype(np.uint8), lm.astype(np.uint8)),
    ]
    if bits == 5:
        high = (codes >> 4).reshape(count, 8, 32)
        fifth = np.zeros((count, 32), np.uint8)
        for group in range(8):
            fifth |= high[:, group] << np.uint8(group)
        parts.append(fifth)
    parts.append((low[:, :, 0] | low[:, :, 1] << np.uint8(4)).reshape(count, 128))
    return np.concatenate(parts, axis=1)


def _best_neighbours(
    x: Floats, d: NDArray[np.float16], ls: Floats, dmin: NDArray[np.float16], lm: Floats, largest: int
) -> tuple[Floats, Floats, Floats]:
    """Codes (B, 8, 32), and of the integers beside each scale and offset (B, 8) those of the least error."""
    best = np.full(ls.shape, np.inf, np.float32)
    q, scale, offset = np.zeros_like(x), ls, lm
    for s in (ls, ls - 1, ls + 1):
        s = np.clip(s, 0, 63)
        wide = (d.astype(np.float32) * s)[..., None]
        for o in (lm, lm - 1, lm + 1):
            o = np.clip(o, 0, 63)
            shift = (dmin.astype(np.float32) * o)[..., None]
            tried = _codes(x + shift, wide, 0, largest)
            error = np.square(tried * wide - shift - x).sum(axis=2)
            better = error < best
            best, scale, offset = (
                np.where(better, error, best),
                np.where(better, s, scale),
                np.where(better, o, offset),
            )
            q = np.where(better[..., None], tried, q)
    return q, scale, offset


def _packed_scales(scale: Bytes, offset: Bytes) -> Bytes:
    """(B, 12): the first four of each in the lower 6 bits of a byte, the others' bits 0-3 in a byte of both, 4-5 above."""
    first = scale[:, :4] | (scale[:, 4:] >> 4) << 6
    second = offset[:, :4] | (offset[:, 4:] >> 4) << 6
    return np.concatenate([first, second, (scale[:, 4:] & 15) | (offset[:, 4:] & 15) << 4], axis=1)


def _encode_q6(blocks: Floats) -> Bytes:
    """q6_k of (B, 256)."""
    count = len(blocks)
    groups = blocks.reshape(-1, 16)
    scale = _fit(groups, 32).reshape(count, 16)
    # The scale of largest magnitude becomes -128, as the integers reach one further below zero.
    most = np.take_along_axis(scale, np.abs(scale).argmax(axis=1)[:, None], axis=1)
    d = (most / np.float32(-128)).astype(np.float16)
    wide = d.astype(np.float32)
    ls = np.clip(np.rint(_over(scale, wide)), -128, 127)
    q = _codes(groups, (wide * ls).reshape(-1, 1), -32, 31)
    codes = (q + 32).astype(np.uint8).reshape(count, 2, 4, 32)
    low, high = codes & 15, codes >> 4
    ql = np.stack([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], axis=2)
    qh = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    parts = [
        ql.reshape(count, 128),
        qh.reshape(count, 64),
        ls.astype(np.int8).view(np.uint8),
        d.view(np.uint8),
    ]
    return np.concatenate(parts, axis=1)


def _fit_offset(x: Floats, largest: int) -> tuple[Floats, Floats]:
    """(G,) each: scale and offset, both at least 0, of x = scale · q - offset with q in [0, largest]."""
    low = np.minimum(x.min(axis=1, keepdims=True), 0)
    span = x.max(axis=1, keepdims=True) - low
    from_low, size = x - low, np.float32(x.shape[1])
    sum_x, sum_xx = x.sum(axis=1), np.square(x).sum(axis=1)
    best = np.full(len(x), np.inf, np.float32)
    scale, offset = np.zeros(len(x), np.float32), np.maximum(-low[:, 0], 0)
    for more in _TRIED:
        q = np.clip(np.rint(from_low * _over(np.float32(largest) + more, span)), 0, largest)
        sum_q, sum_qq, sum_qx = q.sum(axis=1), np.square(q).sum(axis=1), (q * x).sum(axis=1)
        spread = size * sum_qq - sum_q * sum_q
        s = _over(size * sum_qx - sum_q * sum_x, spread)
        b = (sum_x - s * sum_q) / size
        above = b > 0  # an offset is only ever subtracted
        s, b = np.where(above, _over(sum_qx, sum_qq), s), np.where(above, 0, b)
        error = sum_xx + s * s * sum_qq + size * b * b - 2 * (s * sum_qx + b * sum_x - s * b * sum_q)
        better = (error < best) & (s > 0)
        best, scale, offset = (
            np.where(better, error, best),
            np.where(better, s, scale),
            np.where(better, -b, offset),
        )
    return scale, offset


def _fit(x: Floats, largest: int) -> Floats:
    """(G,): the scale of x = scale · q with q in [-largest, largest - 1]."""
    most = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    best, scale = np.full(len(x), -1, np.float32), np.zeros(len(x), np.float32)
    for more in _TRIED:
        q = np.clip(np.rint(x * _over(-(np.float32(largest) + more), most)), -largest, largest - 1)
        sum_qx, sum_qq = (q * x).sum(axis=1), np.square(q).sum(axis=1)
        gained = _over(sum_qx * sum_qx, sum_qq)  # of the sum of squares, by the scale sum_qx / sum_qq
        better = gained > best
        best, scale = np.where(better, gained, best), np.where(better, _over(sum_qx, sum_qq), scale)
    return scale


def _small(values: Floats, largest: int) -> tuple[NDArray[np.float16], Floats]:
    """(B, 1) in fp16 and (B, 8) integers in [0, largest], whose product is about (B, 8) values of at least 0."""
    unit = (values.max(axis=1, keepdims=True) / np.float32(largest)).astype(np.float16)
    return unit, np.clip(np.rint(_over(values, unit.astype(np.float32))), 0, largest)


def _codes(x: Floats, scale: Floats, least: int, most: int) -> Floats:
    return np.clip(np.rint(_over(x, scale)), least, most)


def _over(above: Floats | np.float32, below: Floats) -> Floats:
    """The quotient; 0 where it is divided by 0, or by so little that there is no number for it."""
    with np.errstate(all="ignore"):
        found = np.divide(above, below, dtype=np.float32)
    return np.where(np.isfinite(found), found, np.float32(0))
