"""Conversion between the float types, and setting to zero."""

from __future__ import annotations

from ._arrays import Array, Door


def cast(dst: Array, src: Array) -> None:
    """Write src into dst of the same shape and any of the float types, rounding to nearest even."""
    Door("cast", dst)
    door = Door("cast", src)
    if dst.shape != src.shape:
        door.refuse("dst", f"has shape {dst.shape}, {src.shape} is needed")
    dst[...] = src


def zero(x: Array) -> None:
    """Set x, float32 or float64, to zero."""
    Door("zero", x).f32(x=(x, x.shape))
    x.fill(0)
