"""RMSNorm (Zhang & Sennrich 2019) and LayerNorm (Ba et al. 2016), over the last dimension.

N rows, C hidden size, H heads, D head size. x is (N,C), or (N,H,D) for the norm of queries and keys; the
statistics have its shape without the last dimension. Weights are f32.
"""

from __future__ import annotations

import numpy as np

from ._arrays import Array, Door, store, sum_rows, widen


def rms_norm_forward(
    y: Array,
    rstd: Array,
    x: Array,
    w: Array,
    eps: float,
    residual: Array | None = None,
    offset: float = 0.0,
) -> None:
    """Write y = x · rstd · (w + offset) + residual and rstd f32 = 1/sqrt(mean(x²) + eps). y may be x or the residual."""
    door = Door("rms_norm_forward", x)
    door.real(y=(y, x.shape), residual=(residual, x.shape))
    door.f32(rstd=(rstd, x.shape[:-1]), w=(w, x.shape[-1:]))
    wide = widen(x)
    scale = 1.0 / np.sqrt(np.square(wide).mean(axis=-1) + eps)
    rstd[...] = scale
    value = wide * scale[..., None] * (w + w.dtype.type(offset))
    store(y, value if residual is None else value + widen(residual))


def rms_norm_backward(
    dx: Array,
    dw: Array,
    dy: Array,
    x: Array,
    w: Array,
    rstd: Array,
    accumulate: bool = False,
    offset: float = 0.0,
) -> None:
    """Write dx, or add it when `accumulate`, and add to dw f32. dx may be dy or x."""
    door = Door("rms_norm_backward", x)
    door.real(dx=(dx, x.shape), dy=(dy, x.shape))
    door.f32(dw=(dw, x.shape[-1:]), w=(w, x.shape[-1:]), rstd=(rstd, x.shape[:-1]))
    dy_wide = widen(dy)
    normed = widen(x) * rstd[..., None]
    dnormed = dy_wide * (w + w.dtype.type(offset))
    dw += sum_rows(dy_wide * normed)
    along = (dnormed * normed).mean(axis=-1, keepdims=True)
    store(dx, rstd[..., None] * (dnormed - normed * along), accumulate)


def layer_norm_forward(
    y: Array,
    mean: Array,
    rstd: Array,
    x: Array,
    w: Array,
    b: Array,
    eps: float,
    residual: Array | None = None,
) -> None:
    """Write y = (x - mean) · rstd · w + b + residual, mean f32 and rstd f32 = 1/sqrt(variance + eps).

    y may be x or the residual.
    """
    door = Door("layer_norm_forward", x)
    door.real(y=(y, x.shape), residual=(residual, x.shape))
    door.f32(mean=(mean, x.shape[:-1]), rstd=(rstd, x.shape[:-1]), w=(w, x.shape[-1:]), b=(b, x.shape[-1:]))
    wide = widen(x)
    centre = wide.mean(axis=-1)
    centred = wide - centre[..., None]
    scale = 1.0 / np.sqrt(np.square(centred).mean(axis=-1) + eps)
    mean[...] = centre
    rstd[...] = scale
    value = centred * scale[..., None] * w + b
    store(y, value if residual is None else value + widen(residual))


def layer_norm_backward(
    dx: Array,
    dw: Array,
    db: Array,
    dy: Array,
    x: Array,
    w: Array,
    mean: Array,
    rstd: Array,
    accumulate: bool = False,
) -> None:
    """Write dx, or add it when `accumulate`, and add to dw and db f32. dx may be dy or x."""
    door = Door("layer_norm_backward", x)
    door.real(dx=(dx, x.shape), dy=(dy, x.shape))
    door.f32(dw=(dw, x.shape[-1:]), db=(db, x.shape[-1:]), w=(w, x.shape[-1:]))
    door.f32(mean=(mean, x.shape[:-1]), rstd=(rstd, x.shape[:-1]))
    dy_wide = widen(dy)
    normed = (widen(x) - mean[..., None]) * rstd[..., None]
    dnormed = dy_wide * w
    dw += sum_rows(dy_wide * normed)
    db += sum_rows(dy_wide)
    level = dnormed.mean(axis=-1, keepdims=True)
    along = (dnormed * normed).mean(axis=-1, keepdims=True)
    store(dx, rstd[..., None] * (dnormed - level - normed * along), accumulate)
