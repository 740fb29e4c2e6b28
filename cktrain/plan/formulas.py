"""The arithmetic that every plan is made of. Pure functions; bytes, bytes per second and seconds."""

from __future__ import annotations

import math


def all_reduce_bytes(nbytes: float, ranks: float = math.inf) -> float:
    """Bytes that a rank sends to sum `nbytes` over `ranks`: 2·n·(s-1)/s, the least there is (Patarasuk & Yuan 2009).

    Without a number of ranks its limit for many, 2·n.
    """
    return 2 * half_all_reduce_bytes(nbytes, ranks)


def half_all_reduce_bytes(nbytes: float, ranks: float = math.inf) -> float:
    """Bytes that a rank sends in a reduce-scatter or an all-gather of `nbytes`: n·(s-1)/s."""
    return nbytes if math.isinf(ranks) else nbytes * (ranks - 1) / ranks


def transfer_seconds(nbytes: float, bytes_per_second: float, calls: int = 0, latency: float = 0.0) -> float:
    """Time of `nbytes` in so many calls over a link."""
    return nbytes / bytes_per_second + calls * latency


def key_value_bytes(layers: int, kv_heads: int, head_dim: int, itemsize: int) -> int:
    """Bytes of keys and values that generation keeps per token."""
    return 2 * layers * kv_heads * head_dim * itemsize


def amdahl_speedup(serial: float, workers: float) -> float:
    """How many times faster `workers` are than one, when the part `serial` of the work cannot be shared (Amdahl 1967)."""
    return 1 / (serial + (1 - serial) / workers)


def amdahl_ceiling(serial: float) -> float:
    """The speedup that no number of workers exceeds."""
    return math.inf if serial <= 0 else 1 / serial


def bubble_share(stages: int, micro_batches: int) -> float:
    """The part of the time that balanced stages wait in GPipe and 1F1B: (p-1)/(m+p-1)."""
    return (stages - 1) / (micro_batches + stages - 1)


def zero_bytes(parameters: int, data_ranks: int, zero: int, bf16_copy: bool) -> float:
    """Bytes per rank of weights, gradients and AdamW's state of so many parameters.

    4 for the master weight, 4 for its gradient, 8 for two moments, shared by the data ranks under `zero: 1`, and 2 for
    a bf16 copy (Rajbhandari et al. 2020, stage 1).
    """
    return parameters * (8 + 8 / (data_ranks if zero else 1) + (2 if bf16_copy else 0))
