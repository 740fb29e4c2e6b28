"""Which kernels compute, and in which types.

Every module of a model holds the same `Numerics`. While memory is planned its kernels are `DryKernels`: each op does
nothing, so the real forward and backward run over arrays that have a shape and no memory (`cktrain/memory/slot.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np

PRECISIONS: dict[str, tuple[Any, Any]] = {
    "fp32": (np.float32, np.float32),
    "bf16": (ml_dtypes.bfloat16, np.float32),
    "fp64": (np.float64, np.float64),
}


class DryKernels:
    """A kernel set in which every op does nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        """An op that ignores its arguments."""
        return _nothing


def _nothing(*_args: object, **_kwargs: object) -> None:
    return None


class Numerics:
    """The kernel set of a model, its compute dtype and its master dtype.

    Kernels compute with weights and activations of `compute_dtype`; master weights, gradients, statistics and the
    optimizer's state are of `master_dtype` (both fp64 on the reference kernels with `precision: fp64`). In the table of
    ops the letters are `real` and `f32`.
    """

    def __init__(self, kernels: Any, precision: str) -> None:
        self.kernels = kernels
        self.precision = precision
        compute, master = PRECISIONS[precision]
        self.compute_dtype = np.dtype(compute)
        self.master_dtype = np.dtype(master)
        self.rounds = False
        """Whether few rows are rounded to 8 bits for products with quantized weights: while writing, if asked to."""

    @property
    def is_dry(self) -> bool:
        """Whether this is a dry run, whose arrays have no memory."""
        return isinstance(self.kernels, DryKernels)

    @contextmanager
    def dry(self) -> Iterator[None]:
        """Within the block no op computes anything."""
        kernels, self.kernels = self.kernels, DryKernels()
        try:
            yield
        finally:
            self.kernels = kernels
