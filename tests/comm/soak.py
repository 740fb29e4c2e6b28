"""Random operations on several groups, many in flight at once, each result checked: `soak(group, steps, seed)`."""

from __future__ import annotations

import time
from collections.abc import Callable

import conformance
import numpy as np

from cktrain.comm.group import Group

KINDS = (
    "all_reduce",
    "reduce_scatter",
    "all_gather",
    "broadcast",
    "all_to_all",
    "exchange",
    "message",
    "barrier",
    "regroup",
)
LENGTHS = (0, 1, 7, 1000, 16_384, 20_000, 70_000)
IN_FLIGHT = 8


def soak(group: Group, steps: int, seed: int, seconds: float | None = None) -> int:
    """Run `steps` operations, or as many as go into `seconds`; the number of them.

    All ranks draw the same operations from `seed`; when and in which order each waits is its own.
    """
    common, own = np.random.default_rng(seed), np.random.default_rng([seed, group.rank])
    arena = group.allocate(4 << 20)
    groups = [group, group.split(group.rank % 2), group.split(0, key=-group.rank)]
    flying: list[Callable[[], None]] = []
    began = time.monotonic()
    done = 0
    while done < steps:
        if seconds is not None and done % 100 == 0:
            # Rank 0's clock decides for all.
            over = np.array([time.monotonic() - began > seconds], np.int32)
            group.broadcast(over)
            if over[0]:
                break
        done += 1
        kind, length = str(common.choice(KINDS)), int(common.choice(LENGTHS))
        dtype = conformance.DTYPES[int(common.integers(len(conformance.DTYPES)))]
        which, asynchronous = int(common.integers(3)), bool(common.integers(2))
        offset, shared = int(common.integers(0, 100)), bool(common.integers(2)) and not asynchronous
        if kind == "regroup":
            while flying:
                flying.pop()()
            new = group.split(int(common.integers(3)) * (group.rank % 2), key=int(common.integers(9)))
            new.barrier()
            new.close()
            continue
        one = groups[which]
        if one.size > 1:
            flying.append(
                _start(
                    one, kind, length, dtype, offset, asynchronous, arena if shared and not which else None
                )
            )
        while flying and (len(flying) > IN_FLIGHT or own.random() < 0.3):
            flying.pop(int(own.integers(len(flying))))()
        if own.random() < 0.01:
            time.sleep(own.random() * 0.002)
    for check in flying:
        check()
    for each in groups[1:]:
        each.close()
    return done


def _start(
    group: Group,
    kind: str,
    length: int,
    dtype: np.dtype,
    offset: int,
    asynchronous: bool,
    arena: np.ndarray | None,
) -> Callable[[], None]:
    """Start an operation; what is returned waits for it and checks its result."""
    size, rank = group.size, group.rank
    values = [(np.arange(length * size) % 97 + r).astype(dtype) for r in range(size)]  # exact in every dtype
    total = sum(x.astype(np.float64) for x in values)
    mine = values[rank]
    if arena is not None:
        nbytes = (offset + mine.size) * dtype.itemsize
        if nbytes <= arena.size:
            mine = arena[:nbytes].view(dtype)[offset:]
            mine[:] = values[rank]
    part = slice(rank * length, (rank + 1) * length)
    match kind:
        case "all_reduce":
            work, result, wanted = group.all_reduce(mine, async_=asynchronous), mine, total
        case "reduce_scatter":
            result = np.empty(length, dtype)
            work, wanted = group.reduce_scatter(result, mine, "max", async_=asynchronous), values[-1][part]
        case "all_gather":
            result = np.empty(length * size, dtype)
            work = group.all_gather(result, mine[part], async_=asynchronous)
            wanted = np.concatenate([x[r * length : (r + 1) * length] for r, x in enumerate(values)])
        case "broadcast":
            work, result, wanted = group.broadcast(mine, size - 1, async_=asynchronous), mine, values[-1]
        case "all_to_all":
            result = np.empty(length * size, dtype)
            work = group.all_to_all(result, mine, async_=asynchronous)
            wanted = np.concatenate([x[part] for x in values])
        case "exchange":
            # Other lengths between each two, by turns more and fewer; the own one's always as many.
            counts = np.array([[(s - r) % 3 * length // 2 for r in range(size)] for s in range(size)])
            whole = np.repeat(np.arange(size), counts[rank]).astype(dtype)
            result = np.empty(int(counts[:, rank].sum()), dtype)
            work = group.all_to_all(result, whole, counts[:, rank], counts[rank], async_=asynchronous)
            wanted = np.full(result.size, rank)
        case "message":
            result = np.empty(mine.size, dtype)
            work = group.recv(result, (rank - 1) % size, async_=True)
            group.send(values[rank], (rank + 1) % size, async_=asynchronous).wait()
            wanted = values[(rank - 1) % size]
        case _:
            group.barrier()
            return lambda: None

    def check() -> None:
        work.wait()
        assert np.array_equal(result, np.asarray(wanted).astype(dtype)), (
            group.name,
            rank,
            kind,
            length,
            dtype,
        )

    if arena is None:
        return check
    check()  # the next operation may use the same memory
    return lambda: None
