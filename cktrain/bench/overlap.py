"""`cktrain bench overlap`: how much of the gradients' reduction a step waits for, on a network that is only a clock.

A backward pass is imitated: matrix products of the kernels for each bucket, after which the bucket's reduce-scatter is
submitted, as the trainer does it (`cktrain.parallel.data`). The other rank does not exist; its bytes take α + S/B seconds
and no processor (`cktrain.comm.delay_group`), with B such that communication is a given share of the backward. The
engine's thread has a core of its own, and the products have the others.

    backward        the products alone
    communication   the reductions alone, one after another
    exposed         what is still waited for when the products are done, where both run together

Bound of the best possible: max(0, communication - backward), and what the last bucket needs, which nothing can hide.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cktrain.comm.delay_group import DelayGroup
from cktrain.comm.group import even_counts
from cktrain.parallel.buckets import BUCKET_BYTES

_WIDTH = 1024
_ROWS = 512


@dataclass(frozen=True)
class OverlapReport:
    """Seconds of one step, medians of the rounds."""

    buckets: int
    bucket_bytes: int
    latency_s: float
    bytes_per_s: float
    backward_s: float
    communication_s: float
    exposed_s: float
    together_s: float

    @property
    def bound_s(self) -> float:
        """The most that may be exposed: what cannot be hidden, and a tenth of the communication."""
        return max(0.0, self.communication_s - self.backward_s) + 0.1 * self.communication_s

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self) | {"bound_s": self.bound_s}

    def table(self) -> str:
        """For people."""
        verdict = "within" if self.exposed_s <= self.bound_s else "NOT within"
        return (
            f"{self.buckets} buckets of {self.bucket_bytes:,} bytes, {self.latency_s * 1e6:.0f} us + "
            f"{self.bytes_per_s / 1e9:.2f} GB/s each way\n"
            f"backward {self.backward_s * 1e3:.1f} ms, communication {self.communication_s * 1e3:.1f} ms, "
            f"together {self.together_s * 1e3:.1f} ms\n"
            f"exposed {self.exposed_s * 1e3:.2f} ms, {verdict} the bound of {self.bound_s * 1e3:.2f} ms"
        )


def bench_overlap(
    kernels: Any,
    engine_core: int | None,
    *,
    buckets: int = 16,
    bucket_bytes: int = BUCKET_BYTES,
    products: int = 4,
    share: float = 0.5,
    latency_s: float = 20e-6,
    rounds: int = 5,
) -> OverlapReport:
    """Measure it.

    Args:
        kernels: a compiled kernel set; its threads are set.
        engine_core: core of the comm thread.
        buckets, bucket_bytes: of gradients.
        products: matrix products per bucket.
        share: of the communication in the backward's time.
        latency_s: of the network.
        rounds: of which the medians count.
    """
    x, w = np.ones((_ROWS, _WIDTH), np.float32), np.ones((_WIDTH, _WIDTH), np.float32)
    y = np.empty((_ROWS, _WIDTH), np.float32)
    gradients = np.zeros(buckets * bucket_bytes // 4, np.float32)
    wholes = np.split(gradients, buckets)
    counts = even_counts(wholes[0].size, 2)

    def compute() -> None:
        for _ in range(products):
            kernels.linear_forward(y, x, w)

    def backward(group: DelayGroup | None) -> tuple[float, float]:
        """Its seconds, and those that were waited for afterwards."""
        began = time.perf_counter()
        works = []
        for g in wholes:
            compute()
            if group is not None:
                works.append(group.reduce_scatter(g[: counts[0]], g, counts=counts, async_=True))
        computed = time.perf_counter()
        for work in works:
            work.wait()
        return computed - began, time.perf_counter() - computed

    def communicate(group: DelayGroup) -> float:
        began = time.perf_counter()
        works = [group.reduce_scatter(g[: counts[0]], g, counts=counts, async_=True) for g in wholes]
        for work in works:
            work.wait()
        return time.perf_counter() - began

    backward(None)
    alone = statistics.median(backward(None)[0] for _ in range(rounds))

    def join(seconds: float) -> tuple[DelayGroup, float, float]:
        """A network that takes so long for all buckets, its rate, and how long communication takes on it."""
        rate = (gradients.nbytes / 2) / max(seconds - buckets * latency_s, seconds / 2)
        group = DelayGroup(latency_s, rate, engine_core=engine_core)
        group.use_reduction(getattr(kernels, "reduction", None))
        communicate(group)
        return group, rate, statistics.median(communicate(group) for _ in range(rounds))

    group, _, communication = join(share * alone)
    group.end()
    reductions = communication - share * alone  # what the sums themselves take
    group, rate, communication = join(max(share * alone - reductions, 0.2 * share * alone))
    together = [backward(group) for _ in range(rounds)]
    alone = statistics.median([alone, *(backward(None)[0] for _ in range(rounds))])
    group.end()
    return OverlapReport(
        buckets,
        bucket_bytes,
        latency_s,
        rate,
        alone,
        communication,
        statistics.median(waited for _, waited in together),
        statistics.median(computed + waited for computed, waited in together),
    )
