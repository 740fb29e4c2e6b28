"""One side's ops, each timed when it is asked for: a process that answers lines, started by `op_times.py`.

    python op_worker.py THREADS        with the side's modules first on PYTHONPATH

    list            -> the names of all ops here
    take NAME       -> true when the op's arrays are ready; they replace those of the op before. false: no such op
    time CALLS      -> seconds of a call, of so many in a row

Answers are lines of JSON. The products are those of `cktrain bench gemm`, all else is what `cktrain bench ops` runs, of the
side's own table: an op that one side lacks is not compared.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from cktrain import cython_kernels
from cktrain.bench.gemm import SHAPES
from cktrain.bench.op_cases import Workbench, attention_trials, memory_trials
from cktrain.bench.peak import last_level_cache_bytes

Call = Callable[[], Any]
LARGEST = 2048 * 768 * 4096
"""Multiply-adds of a product that is timed at most: the model's, but for the head's."""
MOST_CACHE = 64 << 20
"""Of a larger last level this much counts: three processes hold arrays of four times as much each."""


def ops(kernels: Any, precision: str, cache_bytes: int) -> Iterator[tuple[str, Call]]:
    """(name, call) of each op; a call is good until the next op is asked for."""
    w = Workbench(kernels, precision, cache_bytes)
    for shape, (n, i, o) in SHAPES.items():
        if n * i * o <= LARGEST:
            x, weight, y, gradient = (
                w.array((n, i)),
                w.array((o, i)),
                w.array((n, o)),
                w.array((o, i), np.float32),
            )
            yield f"forward {shape} {precision}", partial(kernels.linear_forward, y, x, weight)
            yield f"input gradient {shape} {precision}", partial(kernels.linear_backward_input, x, y, weight)
            call = partial(kernels.linear_backward_weight, gradient, None, y, x, accumulate=False)
            yield f"weight gradient {shape} {precision}", call
            w.release()
    for shape, trial in attention_trials(w):
        yield f"{trial.op} {shape} {precision}", trial.call(0)
    for trial in memory_trials(w):
        yield f"{trial.op} {precision}", trial.call(trial.rows)


class Worker:
    """The ops of both precisions, one at a time."""

    def __init__(self, threads: int, cache_bytes: int) -> None:
        self.kernels = cython_kernels.load()
        self.kernels.set_num_threads(threads)
        self.cache_bytes = cache_bytes
        self.coming: Iterator[tuple[str, Call]] = iter(())
        self.call: Call | None = None

    def all(self, cache_bytes: int) -> Iterator[tuple[str, Call]]:
        """Every op."""
        for precision in ("fp32", "bf16"):
            yield from ops(self.kernels, precision, cache_bytes)

    def names(self) -> list[str]:
        """Of every op, made with arrays that are small where their size may be chosen."""
        return [name for name, _ in self.all(1 << 12)]

    def take(self, wanted: str) -> bool:
        """Make the op ready: from the last one on, or else from the first."""
        for again in (False, True):
            if again:
                self.coming = self.all(self.cache_bytes)
            for name, call in self.coming:
                if name == wanted:
                    call()
                    self.call = call
                    return True
        self.call = None
        return False

    def time(self, calls: int) -> float:
        """Seconds of a call."""
        assert self.call is not None, "take an op first"
        began = time.perf_counter()
        for _ in range(calls):
            self.call()
        return (time.perf_counter() - began) / calls

    def answer(self, line: str) -> Any:
        """What a line asks for."""
        word, _, rest = line.strip().partition(" ")
        if word == "list":
            return self.names()
        return self.take(rest) if word == "take" else self.time(int(rest))


if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]  # its baselines are not timed, and it takes seconds to load
    worker = Worker(int(sys.argv[1]), min(last_level_cache_bytes(), MOST_CACHE))
    for asked in sys.stdin:
        print(json.dumps(worker.answer(asked)), flush=True)
