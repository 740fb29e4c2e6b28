"""A kernel set that times itself: each op's seconds, floating-point operations and bytes.

Wraps any kernel set. FLOPs and bytes are those of the op's row in the table (cython_kernels/ops.py): FLOPs of matrix
products and attention only (causal attention: half of T², the backward 2.5 times the forward); bytes of all array
arguments, an array that is read and written counted twice, so that a rate can be held against a measured bandwidth.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cktrain.cython_kernels.ops import OPS


@dataclass
class OpTotals:
    """What one op cost in all its calls."""

    name: str
    calls: int = 0
    seconds: float = 0.0
    flops: int = 0
    bytes: int = 0


class ProfiledKernels:
    """Forwards every op to `kernels` and adds up what it costs in `totals`."""

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels
        self.totals: dict[str, OpTotals] = {}
        self.own_seconds = 0.0
        """What counting took, between the ops: no part of what is measured."""

    def __getattr__(self, name: str) -> Any:
        """The op, timed; anything that is no op as it is."""
        value = getattr(self._kernels, name)
        if name not in OPS:
            return value
        timed = self._timed(name, value)
        setattr(self, name, timed)
        return timed

    def reset(self) -> None:
        """Forget all totals."""
        self.own_seconds = 0.0
        for total in self.totals.values():
            total.calls, total.seconds, total.flops, total.bytes = 0, 0.0, 0, 0

    def _timed(self, name: str, op: Callable[..., Any]) -> Callable[..., Any]:
        total = self.totals.setdefault(name, OpTotals(name))
        cost_of = OPS[name].cost

        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = op(*args, **kwargs)
            ended = time.perf_counter()
            total.seconds += ended - began
            total.calls += 1
            cost = cost_of(args, kwargs)
            total.flops += cost.flops
            total.bytes += cost.bytes
            self.own_seconds += time.perf_counter() - ended
            return result

        return call
