"""Rotary position embedding (Su et al. 2021), pairing dimension i with i + D/2 as Hugging Face does.

N rows, H heads, D head size, P positions in the tables.
"""

from __future__ import annotations

from ._arrays import Array, Door, widen


def rope_forward(y: Array, x: Array, cos: Array, sin: Array, positions: Array) -> None:
    """Write y (N,H,D): each pair of x (N,H,D) turned by the angle of its row's position. y may be x.

    cos, sin f32 (P,D/2); positions int32 (N). ValueError when a position is outside the tables.
    """
    _rotate("rope_forward", "y", "x", y, x, cos, sin, positions, 1.0)


def rope_backward(dx: Array, dy: Array, cos: Array, sin: Array, positions: Array) -> None:
    """Write dx (N,H,D): dy (N,H,D) turned back, a rotation's transpose being its inverse. dx may be dy."""
    _rotate("rope_backward", "dx", "dy", dx, dy, cos, sin, positions, -1.0)


def _rotate(
    op: str,
    out_name: str,
    in_name: str,
    out: Array,
    x: Array,
    cos: Array,
    sin: Array,
    positions: Array,
    direction: float,
) -> None:
    door = Door(op, x)
    n, h, d = door.dims(in_name, x, 3)
    p = door.dims("cos", cos, 2)[0]
    if d % 2:
        door.refuse(in_name, f"has a head size of {d}, an even one is needed")
    door.real(**{out_name: (out, (n, h, d))})
    door.f32(cos=(cos, (p, d // 2)), sin=(sin, (p, d // 2)))
    door.ids(positions=(positions, (n,)))
    door.inside("positions", positions, p)
    wide = widen(x)
    c = cos[positions][:, None, :]
    s = sin[positions][:, None, :] * direction
    low, high = wide[..., : d // 2], wide[..., d // 2 :]
    new_low, new_high = low * c - high * s, high * c + low * s
    out[..., : d // 2] = new_low
    out[..., d // 2 :] = new_high
