"""What the rows of the table of cases share: the Case class, the drawing of arrays, the judging of errors."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

Shape = dict[str, Any]
Inputs = dict[str, Any]
Outputs = dict[str, Any]

SEEDS = st.integers(0, 2**32 - 1)
ROWS = st.sampled_from([0, 1, 2, 3, 5, 8, 13, 33])
SIZES = st.sampled_from([1, 2, 3, 7, 8, 13, 16, 17, 31, 32, 47, 64, 67, 129])
EVEN = st.sampled_from([2, 4, 6, 10, 16, 26, 64, 66, 128])
FLAG = st.booleans()


def f32_of(dtype: Any) -> np.dtype[Any]:
    """Return the type of statistics and weight gradients in a call whose activations have `dtype`."""
    return np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)


def convert(inputs: Inputs, dtype: Any) -> Inputs:
    """Return `inputs` with every float array as `dtype` (fp32 or fp64): for the reference to run on."""
    return {
        name: value.astype(dtype)
        if isinstance(value, np.ndarray) and value.dtype not in (np.int32, np.uint8)
        else value
        for name, value in inputs.items()
    }


def relative_error(got: Any, want: Any, size: float = 0.0) -> float:
    """Return max|got - want| / max(max|want|, size); infinite when shapes differ or NaN is in `got`."""
    got, want = np.asarray(got).astype(np.float64), np.asarray(want).astype(np.float64)
    if got.shape != want.shape or not np.isfinite(got).all():
        return float("inf")
    if got.size == 0:
        return 0.0
    difference = np.abs(got - want).max()
    scale = max(np.abs(want).max(), size)
    return float(difference / scale) if difference else 0.0


class Case:
    """A row. `forward` and `backward` allocate the outputs, call the ops and return what they wrote."""

    name: str
    ops: tuple[str, ...]  # the ops this row calls
    shapes: st.SearchStrategy[Shape]  # any legal call
    examples: tuple[Shape, ...]  # a few small ones that cover the options
    large: tuple[
        Shape, ...
    ]  # worth several threads, no tile or vector divides them; the rest is the first example's
    outputs: tuple[str, ...] = ("y",)  # outputs that have a cotangent
    gradients: tuple[str, ...] = ()  # inputs "x" that have a gradient "dx"
    exact: tuple[str, ...] = ()  # outputs that are bit for bit the same everywhere

    def draw(self, rng: np.random.Generator, shape: Shape, dtype: Any) -> Inputs:
        """Return the inputs of one call: activations of `dtype`, the rest of f32_of(dtype), int32 or uint8."""
        raise NotImplementedError

    def forward(self, kernels: Any, inputs: Inputs) -> Outputs:
        raise NotImplementedError

    def backward(self, kernels: Any, inputs: Inputs, saved: Outputs) -> Outputs:
        return {}

    def run(self, kernels: Any, inputs: Inputs) -> Outputs:
        """Return the outputs of the forward and, on what it saved, of the backward."""
        saved = self.forward(kernels, inputs)
        results = {**saved, **self.backward(kernels, inputs, saved)}
        for name, result in results.items():
            assert gap_is_untouched(result), f"{name}: written beyond the view"
        return results

    def sizes(self, inputs: Inputs) -> dict[str, float]:
        """Return, per output, the size of the terms that it is a sum of; outputs not named are never small.

        An output that cancels, by chance (a sum of seven products of either sign) or by mathematics (the
        gradient of a softmax over one key is 0), is compared with its terms, whose rounding is its error.
        """
        return {}

    def error(self, name: str, got: Any, want: Any, inputs: Inputs) -> float:
        """Return the relative error of the output `name`."""
        return relative_error(got, want, self.sizes(inputs).get(name, 0.0))

    def tolerance(self, name: str, dtype: Any) -> float:
        """Return the relative error allowed between kernel sets when activations have `dtype`.

        fp32: 1e-5, some hundred roundings of 6e-8. fp64: 1e-12, ample for as many roundings of 1e-16.
        bf16: 2^-7, two roundings of 2^-9 on either side, of a saved output and of the result.
        """
        if name in self.exact:
            return 0.0
        return {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2.0**-7}[np.dtype(dtype).name]


def normal(rng: np.random.Generator, shape: Any, dtype: Any) -> Any:
    return rng.standard_normal(shape).astype(dtype)


def spread(rng: np.random.Generator, shape: Any, dtype: Any) -> Any:
    """Draw rows that a norm is well conditioned on: neighbours differ by 2 at least, none is near 0."""
    sign = np.where(np.arange(shape[-1]) % 2, -2.0, 2.0)
    return (rng.uniform(-1.0, 1.0, shape) + sign).astype(dtype)


def blank(like: Any, shape: Any = None) -> Any:
    """Return an array of NaN: an output before the call."""
    return np.full(like.shape if shape is None else shape, np.nan, like.dtype)


def blank_f32(like: Any, shape: Any) -> Any:
    return np.full(shape, np.nan, f32_of(like.dtype))


def with_gap(array: Any) -> Any:
    """Return a copy of (N,H,D) or (B,S,H,D) `array` that is a view of an array with one head more."""
    *rows, heads, d = array.shape
    buffer = np.full((*rows, heads + 1, d), np.nan, array.dtype)
    buffer[..., :heads, :] = array
    return buffer[..., :heads, :]


def gap_is_untouched(array: Any) -> bool:
    """Return whether the head that `with_gap` added, if it did, still holds NaN."""
    if array.ndim < 3 or array.base is None:
        return True
    *rows, heads, d = array.shape
    whole = array.base
    return whole.shape != (*rows, heads + 1, d) or bool(
        np.isnan(whole[..., heads, :].astype(np.float32)).all()
    )


def start(inputs: Inputs, name: str, like: Any) -> Any:
    """Return the output `name` before the call: a copy of what it is added to, or NaN."""
    before = inputs.get(f"{name}_before")
    return blank(like) if before is None else before.copy()
