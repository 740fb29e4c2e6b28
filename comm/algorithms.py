"""Which schedule carries out which call: a table of lengths, the same on all ranks.

The default has canonical schedules only, so lengths, ranks and transports do not change a bit. An entry is
(up to so many bytes, algorithm); the last one has no limit. `override` names an algorithm for all lengths, from
`comm.algorithm`; a table measured by `cktrain bench collectives --tune` (`cktrain.comm.tuning`) replaces the default's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from cktrain.comm.all_to_all import AllToAll
from cktrain.comm.schedules import Schedule
from cktrain.comm.schedules.direct import (
    direct_all_gather,
    direct_all_reduce,
    direct_broadcast,
    direct_reduce_scatter,
    pairwise_all_to_all,
)
from cktrain.comm.schedules.logarithmic import (
    binomial_broadcast,
    chain_broadcast,
    dissemination_barrier,
    doubling_all_reduce,
    halving_doubling_all_reduce,
)
from cktrain.comm.schedules.ring import ring_all_gather, ring_all_reduce

Table = Mapping[str, Sequence[tuple[float, str]]]

DEFAULT: Table = {
    "all_reduce": [(8 << 10, "doubling"), (math.inf, "direct")],
    "all_gather": [(math.inf, "direct")],
    "broadcast": [(64 << 10, "binomial"), (math.inf, "chain")],
}
KNOWN = {
    "all_reduce": ("doubling", "direct", "ring", "halving_doubling"),
    "all_gather": ("direct", "ring"),
    "broadcast": ("direct", "binomial", "chain"),
}
OWN_ORDER = ("ring", "halving_doubling")
"""All-reduces that add in an order of their own; not for bf16 (partial sums would be rounded) and not for mean."""

SEGMENT_BYTES = 256 << 10
SCRATCH_BYTES = 8 << 20
"""Of a lane, at most, for canonical reductions: with many ranks segments are shorter."""
_ALIGN = 64


def check_override(name: str | None) -> None:
    """Raises ValueError for an algorithm that no operation has."""
    names = sorted({known for names in KNOWN.values() for known in names})
    if name is not None and name not in names:
        raise ValueError(f"comm.algorithm: {name!r} is unknown. Give one of {', '.join(names)}, or null.")


def choose(
    kind: str, nbytes: int, table: Table = DEFAULT, override: str | None = None, *, canonical: bool = False
) -> str:
    """The algorithm of a call; `canonical` where an own order is not possible."""
    if override in KNOWN.get(kind, ()) and not (canonical and kind == "all_reduce" and override in OWN_ORDER):
        assert override is not None
        return override
    entries = table.get(f"{kind}_canonical", table[kind]) if canonical else table[kind]
    return next(name for limit, name in entries if nbytes <= limit)


@lru_cache(maxsize=256)
def plan(
    kind: str,
    algorithm: str,
    rank: int,
    size: int,
    count: int,
    begins: tuple[int, ...] | None,
    root: int,
    itemsize: int,
    segment_bytes: int = SEGMENT_BYTES,
    scratch_bytes: int = SCRATCH_BYTES,
) -> tuple[np.ndarray, np.ndarray, int, bytes]:
    """The schedule of a call as rows for the engine: steps (n, 8), sources (m, 2), scratch elements, headers by rank.

    Args: the call's; begins for the kinds with parts; segment_bytes: how much of a part travels at a time, as far as
        scratch_bytes hold it of all ranks.
    """
    segment = max(1, min(segment_bytes, scratch_bytes // size) // itemsize)
    match kind, algorithm:
        case "all_reduce", "doubling" if size * count * itemsize <= scratch_bytes:
            made = doubling_all_reduce(rank, size, count)
        case "all_reduce", "doubling" | "direct":
            made = direct_all_reduce(rank, even_parts(count, size, itemsize), segment)
        case "all_reduce", "ring":
            made = ring_all_reduce(rank, even_parts(count, size, itemsize))
        case "all_reduce", "halving_doubling":
            made = halving_doubling_all_reduce(rank, size, count)
        case "reduce_scatter", _:
            assert begins is not None
            made = direct_reduce_scatter(rank, begins, segment)
        case "all_gather", "ring":
            assert begins is not None
            made = ring_all_gather(rank, begins)
        case "all_gather", _:
            assert begins is not None
            made = direct_all_gather(rank, begins)
        case "broadcast", "direct":
            made = direct_broadcast(rank, size, count, root)
        case "broadcast", "binomial":
            made = binomial_broadcast(rank, size, count, root)
        case "broadcast", _:
            made = chain_broadcast(rank, size, count, root, segment)
        case "barrier", _:
            made = dissemination_barrier(rank, size)
        case _:
            raise AssertionError(f"{kind} by {algorithm}")
    return rows(made, rank, size)


@lru_cache(maxsize=64)
def all_to_all_plan(made: AllToAll) -> tuple[np.ndarray, np.ndarray, int, bytes]:
    """The same of an all_to_all; apart, since counts that change from call to call would drive out the others' plans."""
    begins, received = made.parts.tolist()
    return rows(pairwise_all_to_all(made.rank, begins, received), made.rank, len(begins) - 1)


def even_parts(count: int, size: int, itemsize: int) -> tuple[int, ...]:
    """Parts of whole cache lines; who reduces what does not change the result of a canonical schedule."""
    line = max(1, _ALIGN // itemsize)
    part = math.ceil(math.ceil(count / size) / line) * line
    return tuple(min(r * part, count) for r in range(size + 1))


def rows(made: Schedule, rank: int, size: int) -> tuple[np.ndarray, np.ndarray, int, bytes]:
    """A schedule as the rows of csrc/wire.h, and per member which headers go: 1 sent, 2 received.

    Everyone tells everyone what it calls, so that all ranks see a call that differs, not only those that exchange
    payload with the odd one: a cache line to each, which the large operations send to each anyway.
    """
    steps: list[tuple[int, ...]] = []
    sources: list[tuple[int, int]] = []
    partners = bytes(3 if r != rank else 0 for r in range(size))
    for number, round_ in enumerate(made.rounds):
        for step in round_:
            steps.append(
                (
                    number,
                    step.kind,
                    step.peer,
                    step.place,
                    step.at,
                    step.count,
                    len(sources),
                    len(step.sources),
                )
            )
            sources += step.sources
    return (
        np.array(steps, np.int64).reshape(-1, 8),
        np.array(sources, np.int64).reshape(-1, 2),
        made.scratch,
        partners,
    )
