"""Matrix products. N rows, I input features, O output features; w is (O,I) as PyTorch keeps it."""

from __future__ import annotations

import numpy as np

from ._arrays import Array, Door, store, sum_rows, widen


def linear_forward(
    y: Array, x: Array, w: Array, bias: Array | None = None, residual: Array | None = None
) -> None:
    """Write y (N,O) = x (N,I) · w (O,I)ᵀ + bias f32 (O) + residual (N,O). residual may be y itself.

    y and residual are real, or both f32.
    """
    door = Door("linear_forward", x)
    n, i = door.dims("x", x, 2)
    o = door.dims("w", w, 2)[0]
    door.real(w=(w, (o, i)))
    door.f32(bias=(bias, (o,)))
    check = door.f32 if y.dtype == door.f32_dtype else door.real
    check(y=(y, (n, o)), residual=(residual, (n, o)))
    value = widen(x) @ widen(w).T
    if bias is not None:
        value += bias
    if residual is not None:
        value += widen(residual)
    store(y, value)


def linear_backward_input(dx: Array, dy: Array, w: Array, accumulate: bool = False) -> None:
    """Write dx (N,I) = dy (N,O) · w (O,I), or add it when `accumulate`."""
    door = Door("linear_backward_input", dy)
    n, o = door.dims("dy", dy, 2)
    i = door.dims("w", w, 2)[1]
    door.real(dx=(dx, (n, i)), w=(w, (o, i)))
    store(dx, widen(dy) @ widen(w), accumulate)


def linear_backward_weight(
    dw: Array, dbias: Array | None, dy: Array, x: Array, accumulate: bool = True
) -> None:
    """Add dyᵀ · x to dw f32 (O,I), and the sum of the rows of dy (N,O) to dbias f32 (O) unless it is None.

    Without `accumulate` both are written instead.
    """
    door = Door("linear_backward_weight", dy)
    n, o = door.dims("dy", dy, 2)
    i = door.dims("x", x, 2)[1]
    door.real(x=(x, (n, i)))
    door.f32(dw=(dw, (o, i)), dbias=(dbias, (o,)))
    store(dw, widen(dy).T @ widen(x), accumulate)
    if dbias is not None:
        store(dbias, sum_rows(dy), accumulate)


def matmul(
    out: Array,
    a: Array,
    b: Array,
    transpose_a: bool = False,
    transpose_b: bool = False,
    accumulate: bool = False,
) -> None:
    """Write out (M,N) = op(a) · op(b), or add it; op transposes when asked to, so a is (M,K) or (K,M)."""
    door = Door("matmul", a)
    door.dims("a", a, 2)
    door.dims("b", b, 2)
    left = widen(a).T if transpose_a else widen(a)
    right = widen(b).T if transpose_b else widen(b)
    (m, k), n = left.shape, right.shape[1]
    door.real(b=(b, (n, k) if transpose_b else (k, n)), out=(out, (m, n)))
    store(out, left @ right, accumulate)


def symmetric_product(
    out: Array, x: Array, transpose: bool = False, scale: float = 1.0, shift: float = 0.0
) -> None:
    """Write out (M,M) = scale · op(x) · op(x)ᵀ + shift on the diagonal; op(x) (M,K) is x or, transposed, xᵀ."""
    door = Door("symmetric_product", x)
    door.dims("x", x, 2)
    left = widen(x).T if transpose else widen(x)
    door.real(out=(out, (len(left), len(left))))
    value = scale * (left @ left.T)
    value[np.diag_indices(len(left))] += shift
    store(out, value)
