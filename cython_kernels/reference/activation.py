"""SwiGLU and GEGLU (Shazeer 2020), GELU (Hendrycks & Gimpel 2016), addition, softcap, dropout.

N rows, I intermediate size.
"""

from __future__ import annotations

import math

import numpy as np

from ._arrays import Array, Door, store, widen

# The tanh form of GELU: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x³)))
_TANH_SCALE = math.sqrt(2.0 / math.pi)
_TANH_CUBE = 0.044715

# Dropout's counters are this far apart: 2^32 / golden ratio, odd.
_GOLDEN = np.uint32(0x9E3779B9)

# erf is expanded around the points i/32, |i| <= 192; beyond 6 it is 1 to the last bit of fp64.
_ERF_STEP = 32
_ERF_END = 6
_ERF_POINTS = range(-_ERF_END * _ERF_STEP, _ERF_END * _ERF_STEP + 1)
_ERF_TABLE = np.array([math.erf(i / _ERF_STEP) for i in _ERF_POINTS])


def swiglu_forward(y: Array, gate_up: Array) -> None:
    """Write y (N,I) = silu(gate) · up, gate_up (N,2I) being [gate, up] and silu(g) = g / (1 + exp(-g))."""
    door = Door("swiglu_forward", gate_up)
    n, i = _halves(door, gate_up)
    door.real(y=(y, (n, i)))
    wide = widen(gate_up)
    gate, up = wide[:, :i], wide[:, i:]
    store(y, gate * _sigmoid(gate) * up)


def swiglu_backward(dgate_up: Array, dy: Array, gate_up: Array, y: Array | None = None) -> None:
    """Write dgate_up (N,2I) from dy (N,I); it may be gate_up. y (N,I), which may be dy, receives the forward."""
    door = Door("swiglu_backward", gate_up)
    n, i = _halves(door, gate_up)
    door.real(dgate_up=(dgate_up, (n, 2 * i)), dy=(dy, (n, i)), y=(y, (n, i)))
    wide, dy_wide = widen(gate_up), widen(dy)
    gate, up = wide[:, :i], wide[:, i:]
    sigmoid = _sigmoid(gate)
    silu = gate * sigmoid
    forward = silu * up
    dgate = dy_wide * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    dup = dy_wide * silu
    dgate_up[:, :i] = dgate
    dgate_up[:, i:] = dup
    if y is not None:
        store(y, forward)


def geglu_forward(y: Array, gate_up: Array) -> None:
    """Write y (N,I) = gelu(gate) · up, gate_up (N,2I) being [gate, up] and gelu in its tanh form."""
    door = Door("geglu_forward", gate_up)
    n, i = _halves(door, gate_up)
    door.real(y=(y, (n, i)))
    wide = widen(gate_up)
    gelu, _ = _tanh_gelu(wide[:, :i])
    store(y, gelu * wide[:, i:])


def geglu_backward(dgate_up: Array, dy: Array, gate_up: Array, y: Array | None = None) -> None:
    """Write dgate_up (N,2I) from dy (N,I); it may be gate_up. y (N,I), which may be dy, receives the forward."""
    door = Door("geglu_backward", gate_up)
    n, i = _halves(door, gate_up)
    door.real(dgate_up=(dgate_up, (n, 2 * i)), dy=(dy, (n, i)), y=(y, (n, i)))
    wide, dy_wide = widen(gate_up), widen(dy)
    gate, up = wide[:, :i], wide[:, i:]
    gelu, slope = _tanh_gelu(gate)
    forward, dgate, dup = gelu * up, dy_wide * up * slope, dy_wide * gelu
    dgate_up[:, :i] = dgate
    dgate_up[:, i:] = dup
    if y is not None:
        store(y, forward)


def gelu_forward(y: Array, x: Array, tanh: bool) -> None:
    """Write y = x · Φ(x), of any shape; Φ in its tanh form or, with tanh=False, (1 + erf(x/√2)) / 2."""
    door = Door("gelu_forward", x)
    door.real(y=(y, x.shape))
    wide = widen(x)
    store(y, _tanh_gelu(wide)[0] if tanh else 0.5 * wide * (1.0 + _erf(wide * math.sqrt(0.5))))


def gelu_backward(dx: Array, dy: Array, x: Array, tanh: bool) -> None:
    """Write dx = dy · (derivative of the forward at x), of any shape. dx may be dy."""
    door = Door("gelu_backward", x)
    door.real(dx=(dx, x.shape), dy=(dy, x.shape))
    wide = widen(x)
    if tanh:
        _, slope = _tanh_gelu(wide)
    else:
        density = _TANH_SCALE * np.exp(-0.5 * wide * wide)
        slope = 0.5 * (1.0 + _erf(wide * math.sqrt(0.5))) + 0.5 * wide * density
    store(dx, widen(dy) * slope)


def add(out: Array, a: Array, b: Array, alpha: float = 1.0) -> None:
    """Write out = a + alpha · b, of any shape. out may be either, and a may be b."""
    door = Door("add", a)
    door.real(out=(out, a.shape), b=(b, a.shape))
    store(out, widen(a) + (widen(b) if alpha == 1.0 else widen(b) * alpha))


def softcap(y: Array, x: Array, c: float) -> None:
    """Write y = c · tanh(x / c), of any shape. y may be x."""
    door = Door("softcap", x)
    door.real(y=(y, x.shape))
    if not c > 0:
        door.refuse("c", f"is {c}, a bound above 0 is needed")
    store(y, c * np.tanh(widen(x) / c))


def dropout(
    out: Array, x: Array, keys: Array, p: float, first_column: int = 0, accumulate: bool = False
) -> None:
    """Write x / (1 - p) where the hash of (keys (N) int32, the column) is p · 2^32 or more, else 0, or add it.

    out may be x.
    """
    door = Door("dropout", x)
    n, columns = door.dims("x", x, 2)
    door.real(out=(out, x.shape))
    door.ids(keys=(keys, (n,)))
    if not 0 <= p < 1:
        door.refuse("p", f"is {p}, 0 or more and less than 1 is needed")
    counters = (first_column + np.arange(columns, dtype=np.int64)).astype(np.uint32) * _GOLDEN
    hashed = _mix32(keys.view(np.uint32)[:, None] + counters)
    kept = hashed >= min(round(p * 2.0**32), 2**32 - 1)
    store(out, np.where(kept, widen(x) * (1.0 / (1.0 - p)), 0.0), accumulate)


def _halves(door: Door, gate_up: Array) -> tuple[int, int]:
    n, width = door.dims("gate_up", gate_up, 2)
    if width % 2:
        door.refuse("gate_up", f"has {width} columns, an even number is needed")
    return n, width // 2


def _tanh_gelu(x: Array) -> tuple[Array, Array]:
    """Return the tanh form of GELU, and its slope."""
    square = x * x
    inner = np.tanh(_TANH_SCALE * (x + _TANH_CUBE * x * square))
    slope = _TANH_SCALE * (1.0 + 3.0 * _TANH_CUBE * square) * (1.0 - inner * inner)
    return 0.5 * x * (1.0 + inner), 0.5 * (1.0 + inner) + 0.5 * x * slope


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the right 0
        return 1.0 / (1.0 + np.exp(-x))


def _erf(x: Array) -> Array:
    """Return erf(x) to about one unit of fp64, in the type of x.

    Taylor's series around the nearest table point a, with h = x - a and |h| <= 1/64: the derivatives of erf
    are 2/sqrt(pi) exp(-a²) times Hermite polynomials, (-1)^k H_k(a) for the k+1-th.
    """
    with np.errstate(invalid="ignore"):  # NaN goes through, by way of h
        t = np.clip(x.astype(np.float64), -_ERF_END, _ERF_END)
        point = np.rint(t * _ERF_STEP)
        index = point.astype(np.int64) + _ERF_END * _ERF_STEP
    a = point / _ERF_STEP
    h = t - a
    previous, hermite = np.zeros_like(a), np.ones_like(a)
    power, series = h.copy(), h.copy()
    for k in range(8):
        previous, hermite = hermite, 2.0 * a * hermite - 2.0 * k * previous
        power *= -h / (k + 2)
        series += hermite * power
    around = np.take(_ERF_TABLE, index, mode="clip")
    return (around + 2.0 / math.sqrt(math.pi) * np.exp(-a * a) * series).astype(x.dtype)


def _mix32(x: Array) -> Array:
    """Return the hash of each uint32: xor-shifts and two odd multipliers, as MurmurHash3 ends (Appleby)."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))
