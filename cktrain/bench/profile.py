"""A kernel set that times itself: each op's seconds, floating-point operations and bytes.

Wraps any kernel set. FLOPs are counted for matrix products and attention only (causal attention: half of T², the
backward 2.5 times the forward); bytes are those of all array arguments, an array that is read and written counted
twice, so that a rate can be held against a measured bandwidth.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


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
        if not callable(value) or name in ("set_num_threads", "num_threads"):
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
        flops = FLOPS.get(name, _no_flops)

        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = op(*args, **kwargs)
            ended = time.perf_counter()
            total.seconds += ended - began
            total.calls += 1
            total.flops += flops(*args)
            total.bytes += bytes_moved(name, args)
            self.own_seconds += time.perf_counter() - ended
            return result

        return call


def bytes_moved(name: str, args: tuple[Any, ...]) -> int:
    """Bytes of all array arguments, what an op adds to counted twice."""
    arrays = [a for a in args if isinstance(a, np.ndarray)]
    total = sum(a.nbytes for a in arrays)
    written = name == "linear_backward_weight" and len(args) > 4 and not args[4]
    updated = 0 if written else _UPDATED.get(name, 0)
    return total + sum(a.nbytes for a in arrays[:updated])


# How many leading arguments an op reads as well as writes.
_UPDATED = {"adamw_step": 3, "sgd_step": 2, "linear_backward_weight": 1, "embedding_backward": 1}


def _no_flops(*_args: Any) -> int:
    return 0


def _linear_forward(y: Any, x: Any, w: Any, *_: Any) -> int:
    return 2 * x.shape[0] * w.size


def _linear_backward_input(dx: Any, dy: Any, w: Any, *_: Any) -> int:
    return 2 * dy.shape[0] * w.size


def _linear_backward_weight(dw: Any, dbias: Any, dy: Any, x: Any, *_: Any) -> int:
    return 2 * dy.shape[0] * dw.size


def _matmul(out: Any, a: Any, b: Any, transpose_a: bool = False, *_: Any) -> int:
    return 2 * out.size * a.shape[0 if transpose_a else 1]


def attention_flops(q: Any, k: Any, window: int = 0) -> int:
    """Forward FLOPs: two products over the keys that each query sees."""
    batch, queries, heads, size = q.shape
    keys = k.shape[1]
    last = np.arange(keys - queries, keys, dtype=np.int64) + 1
    seen = int(np.minimum(last, window).sum()) if window else int(last.sum())
    if not window and queries == keys:
        seen = queries * keys // 2  # by convention half of T²
    return 4 * batch * heads * size * seen


def _attention_forward(
    o: Any, lse: Any, q: Any, k: Any, v: Any, scale: float, window: int = 0, *_: Any
) -> int:
    return attention_flops(q, k, window)


def _attention_backward(
    dq: Any,
    dk: Any,
    dv: Any,
    delta: Any,
    do: Any,
    q: Any,
    k: Any,
    v: Any,
    o: Any,
    lse: Any,
    scale: float,
    window: int = 0,
    *_: Any,
) -> int:
    return attention_flops(q, k, window) * 5 // 2


FLOPS: dict[str, Callable[..., int]] = {
    "linear_forward": _linear_forward,
    "linear_backward_input": _linear_backward_input,
    "linear_backward_weight": _linear_backward_weight,
    "matmul": _matmul,
    "attention_forward": _attention_forward,
    "attention_backward": _attention_backward,
}
