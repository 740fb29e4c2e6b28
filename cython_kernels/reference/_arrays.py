"""What every op of the reference shares: the check at the door, widening of bf16, the store.

`real` is the type of one call's activations: fp32, fp64 or bf16. `f32` is the type of its statistics, master
parameters and gradients: fp64 when `real` is fp64, else fp32.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Expected: TypeAlias = tuple["Array | None", tuple[int, ...]]


class Door:
    """Checks the shapes and types of one call; a mismatch is a ValueError with both sides in it.

    Arguments that are None are optional ones left out, and pass.
    """

    def __init__(self, op: str, like: Array) -> None:
        """Open the door of `op`; `like` is the array whose type is the call's `real`."""
        if like.dtype.name not in ("float32", "float64", "bfloat16"):
            raise ValueError(
                f"[kernels.{op}] arrays of type {like.dtype} are not computed with. "
                "Pass float32, bfloat16, or float64 to the reference."
            )
        self.op = op
        self.real_dtype = like.dtype
        self.f32_dtype = np.dtype(np.float64 if like.dtype == np.float64 else np.float32)

    def dims(self, name: str, array: Array, ndim: int) -> tuple[int, ...]:
        """Return the shape of `array`, which has `ndim` dimensions."""
        if array.ndim != ndim:
            self.refuse(name, f"has {array.ndim} dimensions {array.shape}, {ndim} are needed")
        return array.shape

    def real(self, **arrays: Expected) -> None:
        """Check name=(array, shape) pairs of type `real`."""
        self._check(self.real_dtype, arrays)

    def f32(self, **arrays: Expected) -> None:
        """Check name=(array, shape) pairs of type `f32`."""
        self._check(self.f32_dtype, arrays)

    def floats(self, **arrays: Expected) -> None:
        """Check name=(array, shape) pairs of any one of the float types."""
        for name, (array, shape) in arrays.items():
            if array is not None:
                Door(self.op, array)._check(array.dtype, {name: (array, shape)})

    def ids(self, **arrays: Expected) -> None:
        """Check name=(array, shape) pairs of type int32."""
        self._check(np.dtype(np.int32), arrays)

    def bytes(self, **arrays: Expected) -> None:
        """Check name=(array, shape) pairs of type uint8."""
        self._check(np.dtype(np.uint8), arrays)

    def inside(self, name: str, ids: Array, count: int) -> None:
        """Check that every entry of `ids` is in [0, count)."""
        if ids.size and (ids.min() < 0 or ids.max() >= count):
            self.refuse(name, f"holds values from {ids.min()} to {ids.max()}, [0, {count}) is allowed")

    def refuse(self, name: str, what: str) -> None:
        """Raise the ValueError of argument `name`."""
        raise ValueError(f"[kernels.{self.op}] {name} {what}. Compare the call with docs/kernels.md.")

    def _check(self, dtype: np.dtype[Any], arrays: dict[str, Expected]) -> None:
        for name, (array, shape) in arrays.items():
            if array is None:
                continue
            if array.shape != shape:
                self.refuse(name, f"has shape {array.shape}, {shape} is needed")
            if array.dtype != dtype:
                self.refuse(name, f"has type {array.dtype}, {dtype} is needed")


def widen(x: Array) -> Array:
    """Return `x` in the type it is computed in: itself in fp32 and fp64, an fp32 copy of bf16."""
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)


def store(out: Array, value: Array, accumulate: bool = False) -> None:
    """Write `value` into `out`, or add it; the one rounding of the op when `out` is bf16."""
    out[...] = widen(out) + value if accumulate else value


def sum_rows(x: Array) -> Array:
    """Sum over all dimensions but the last, in fp64: numpy adds rows one by one, which loses digits."""
    return x.sum(axis=tuple(range(x.ndim - 1)), dtype=np.float64)
