"""Products with quantized weights. N rows, I input features, O output features; w is (O,W) uint8, W bytes for I values.

What a block means is stated here, as ggml states it (ggml-quants.c): each value is rounded to fp32 once per operation.
"""

from __future__ import annotations

import numpy as np

from cktrain.cython_kernels.block_formats import NOT_INTEGERS, block_format

from ._arrays import Array, Door, store, widen

_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
"""Of the OCP Microscaling Formats, doubled; scales are halved."""
NORMAL_FLOAT = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
"""NormalFloat 4 (Dettmers et al. 2023, appendix E)."""


def dequantize(y: Array, w: Array, format: str, ids: Array | None = None) -> None:
    """Write y (N,I) = the rows of w (O,W) that ids int32 (N) name, or all O of them."""
    door = Door("dequantize", y)
    n, i = door.dims("y", y, 2)
    o = door.dims("w", w, 2)[0]
    values = _values(door, w, format, i)
    if ids is None:
        door.real(y=(y, (o, i)))
        store(y, values)
        return
    door.ids(ids=(ids, (n,)))
    door.inside("ids", ids, o)
    store(y, values[ids])


def quantized_forward(
    y: Array, x: Array, w: Array, format: str, bias: Array | None = None, residual: Array | None = None
) -> None:
    """Write y (N,O) = x (N,I) · w (O,I)ᵀ + bias f32 (O) + residual (N,O). residual may be y itself.

    w is stored in blocks; y and residual are real, or both f32.
    """
    door = Door("quantized_forward", x)
    n, i = door.dims("x", x, 2)
    o = door.dims("w", w, 2)[0]
    door.f32(bias=(bias, (o,)))
    check = door.f32 if y.dtype == door.f32_dtype else door.real
    check(y=(y, (n, o)), residual=(residual, (n, o)))
    value = widen(x) @ _values(door, w, format, i).T
    if bias is not None:
        value += bias
    if residual is not None:
        value += widen(residual)
    store(y, value)


def quantized_forward_q8(
    y: Array, x: Array, w: Array, format: str, bias: Array | None = None, residual: Array | None = None
) -> None:
    """As `quantized_forward`, of x whose groups of 32 in a row are rounded to 8 bits first, in fp32."""
    if format in NOT_INTEGERS:
        raise ValueError(
            f"[kernels.quantized_forward_q8] the numbers of {format} are no integers. Use quantized_forward."
        )
    door = Door("quantized_forward_q8", x)
    n, i = door.dims("x", x, 2)
    block_format(door.op, format, i)
    groups = x.astype(np.float32).reshape(n, i // 32, 32)
    largest = np.abs(groups).max(axis=2, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    rounded = np.rint(groups * inverse).astype(np.float64) * (largest / np.float32(127))
    if y.dtype not in (door.real_dtype, door.f32_dtype):
        door.refuse("y", f"has type {y.dtype}, {door.real_dtype} or {door.f32_dtype} is needed")
    wide = door.f32_dtype
    value = np.empty(y.shape, wide)
    beside = None if residual is None else residual.astype(wide) if residual.dtype == y.dtype else residual
    quantized_forward(value, rounded.reshape(n, i).astype(wide), w, format, bias, beside)
    store(y, value)


def quantized_backward_input(dx: Array, dy: Array, w: Array, format: str, accumulate: bool = False) -> None:
    """Write dx (N,I) = dy (N,O) · w (O,I), or add it when `accumulate`; w is stored in blocks."""
    door = Door("quantized_backward_input", dy)
    n, o = door.dims("dy", dy, 2)
    i = door.dims("dx", dx, 2)[1]
    door.real(dx=(dx, (n, i)))
    if len(w) != o:
        door.refuse("w", f"has {len(w)} rows, dy has {o} columns")
    store(dx, widen(dy) @ _values(door, w, format, i), accumulate)


def _values(door: Door, w: Array, format: str, width: int) -> Array:
    """w (O,I) in the type that the call computes in."""
    found = block_format(door.op, format, width)
    if w.dtype != np.uint8 or w.shape[1] != found.row_bytes(width):
        door.refuse("w", f"is {w.dtype} {w.shape}, uint8 rows of {found.row_bytes(width)} bytes are needed")
    blocks = np.ascontiguousarray(w).reshape(-1, found.bytes)
    with np.errstate(all="ignore"):
        values = _DECODERS[format](blocks)
    return values.reshape(len(w), width).astype(door.f32_dtype)


def _f16(pairs: Array) -> Array:
    """(blocks, 1) fp32 of two bytes each."""
    return np.ascontiguousarray(pairs).view(np.float16).astype(np.float32)


def _nibbles(packed: Array) -> Array:
    """(blocks, 2n): the low nibbles of n bytes, then the high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _signed(numbers: Array, zero: int) -> Array:
    return numbers.astype(np.float32) - np.float32(zero)


def _q5_0(b: Array) -> Array:
    fifth = np.unpackbits(np.ascontiguousarray(b[:, 2:6]), axis=1, bitorder="little")
    return _f16(b[:, :2]) * _signed(_nibbles(b[:, 6:]) | fifth << 4, 16)


def _q4_k(b: Array) -> Array:
    s = b[:, 4:16]
    low, high, both = s[:, :4], s[:, 4:8], s[:, 8:]
    scale = np.concatenate([low & 63, both & 15 | low >> 6 << 4], axis=1).astype(np.float32)
    offset = np.concatenate([high & 63, both >> 4 | high >> 6 << 4], axis=1).astype(np.float32)
    packed = b[:, 16:].reshape(-1, 4, 1, 32)
    numbers = np.concatenate([packed & 15, packed >> 4], axis=2).reshape(-1, 8, 32).astype(np.float32)
    return (_f16(b[:, :2]) * scale)[..., None] * numbers - (_f16(b[:, 2:4]) * offset)[..., None]


def _q6_k(b: Array) -> Array:
    packed = b[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([packed & 15, packed >> 4], axis=2).reshape(-1, 8, 32)
    high = b[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1) & 3
    numbers = _signed(low | high.reshape(-1, 8, 32) << 4, 32).reshape(-1, 16, 16)
    scale = _f16(b[:, 208:]) * np.ascontiguousarray(b[:, 192:208]).view(np.int8).astype(np.float32)
    return scale[..., None] * numbers


def _mxfp4(b: Array) -> Array:
    e = b[:, :1].astype(np.uint32)
    scale = np.where(e < 2, np.uint32(0x00200000) << e, (e - 1) << np.uint32(23)).view(np.float32)
    return scale * _E2M1[_nibbles(b[:, 1:])]


def _nf4(b: Array) -> Array:
    scale = np.ascontiguousarray(b[:, :4]).view(np.float32)
    codes = np.concatenate([_nibbles(b[:, 4:20]), _nibbles(b[:, 20:])], axis=1)
    return scale * NORMAL_FLOAT[codes]


_DECODERS = {
    "q8_0": lambda b: _f16(b[:, :2]) * np.ascontiguousarray(b[:, 2:]).view(np.int8).astype(np.float32),
    "q4_0": lambda b: _f16(b[:, :2]) * _signed(_nibbles(b[:, 2:]), 8),
    "q4_1": lambda b: _f16(b[:, :2]) * _signed(_nibbles(b[:, 4:]), 0) + _f16(b[:, 2:4]),
    "q5_0": _q5_0,
    "q4_k": _q4_k,
    "q6_k": _q6_k,
    "mxfp4": _mxfp4,
    "nf4": _nf4,
    "bf16": lambda b: (b.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32),
    "f16": _f16,
}
"""(blocks, bytes of a block) uint8 to fp32, of any shape with the values in their order."""
