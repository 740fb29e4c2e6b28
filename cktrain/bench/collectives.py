"""`cktrain bench collectives`: time of each operation over lengths, beside its baselines and its bound, in one run.

The contenders of a length take turns, a few calls each, so that what disturbs the machine disturbs all of them.
A call's time is the longest of all ranks'. algbw is bytes / p50; busbw is what each link or memory must carry for
it whatever the algorithm: algbw·2(n-1)/n for all_reduce, (n-1)/n for reduce_scatter, all_gather and all_to_all,
1 for broadcast (nccl-tests' definitions; `bytes` is the whole array, of all ranks' parts where there are parts).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from cktrain.comm.group import Group

OPS = ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "all_to_all", "barrier")
_WARM_UP = 3
_ROUNDS = 12
_TURN_S = 0.02


@dataclass(frozen=True)
class Row:
    """One contender at one length."""

    op: str
    transport: str
    ranks: int
    bytes: int
    p50_us: float
    p99_us: float
    algbw_gbs: float
    busbw_gbs: float
    buffers: str


@dataclass(frozen=True)
class Contender:
    """Somebody who can do `call`, on every rank together."""

    transport: str
    buffers: str
    call: Callable[[], object]


def parse_sizes(text: str) -> list[int]:
    """ "4k,1m,64m" -> bytes. Raises ValueError for what is not a size."""
    sizes = []
    for word in text.split(","):
        match = re.fullmatch(r"([0-9]{1,12})([kmg]?)b?", word.strip().lower())
        size = int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2]] if match else 0
        if not 0 < size <= 1 << 40:
            raise ValueError(f"[bench] --sizes: {word[:80]!r} is not a size. Give for instance 4k,1m,64m.")
        sizes.append(size)
    return sizes


def call_of(group: Group, op: str, whole: np.ndarray, other: np.ndarray) -> Callable[[], object]:
    """The operation on fp32 arrays of one length; parts are views of `whole`."""
    part = whole.size // group.size
    even = whole[: part * group.size]
    own = even[group.rank * part : (group.rank + 1) * part]
    calls: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: group.all_reduce(whole),
        "reduce_scatter": lambda: group.reduce_scatter(own, even),
        "all_gather": lambda: group.all_gather(even, own),
        "broadcast": lambda: group.broadcast(whole),
        "all_to_all": lambda: group.all_to_all(other[: even.size], even),
        "barrier": group.barrier,
    }
    return calls[op]


def measure(group: Group, op: str, nbytes: int, contenders: Sequence[Contender]) -> list[Row]:
    """Time the contenders in turns; every rank gets the rows."""
    turns = []
    for contender in contenders:
        for _ in range(_WARM_UP):
            contender.call()
        began = time.perf_counter()
        contender.call()
        # All ranks must make the same number of calls: rank 0's clock decides.
        turn = max(1, min(500, int(_TURN_S / max(time.perf_counter() - began, 1e-7))))
        turns.append(int.from_bytes(group.broadcast_bytes(turn.to_bytes(4, "little")), "little"))
    times: list[list[float]] = [[] for _ in contenders]
    for _ in range(_ROUNDS):
        for contender, turn, found in zip(contenders, turns, times, strict=True):
            group.barrier()
            for _ in range(turn):
                began = time.perf_counter()
                contender.call()
                found.append(time.perf_counter() - began)
    return [
        summarize(group, op, nbytes, contender, np.array(found))
        for contender, found in zip(contenders, times, strict=True)
    ]


def summarize(group: Group, op: str, nbytes: int, contender: Contender, seconds: np.ndarray) -> Row:
    """A call took as long as on its slowest rank."""
    group.all_reduce(seconds, "max")
    p50, p99 = (float(np.percentile(seconds, p)) for p in (50, 99))
    n = group.size
    per_link = {"all_reduce": 2 * (n - 1) / n, "broadcast": 1.0, "barrier": 0.0}.get(op, (n - 1) / n)
    rate = nbytes / p50 / 1e9
    return Row(
        op, contender.transport, n, nbytes, p50 * 1e6, p99 * 1e6, rate, rate * per_link, contender.buffers
    )


def bench_collectives(
    group: Group,
    transport: str,
    ops: Sequence[str],
    sizes: Sequence[int],
    baselines: Sequence[Callable[[Group, str, np.ndarray], Contender | None]] = (),
) -> list[Row]:
    """Measure `group` in shared and in ordinary memory, and the baselines, at every length of every operation."""
    rows = []
    longest = max(sizes)
    arena = group.allocate(2 * longest).view(np.float32)
    plain = np.zeros(arena.size, np.float32)
    for op in ops:
        for nbytes in sizes if op != "barrier" else [0]:
            n, half = nbytes // 4, longest // 4
            contenders = [
                Contender(transport, name, call_of(group, op, memory[:n], memory[half : half + n]))
                for name, memory in (("arena", arena), ("plain", plain))
            ]
            contenders += [found for make in baselines if (found := make(group, op, plain[:n])) is not None]
            rows += measure(group, op, nbytes, contenders)
    return rows


def as_json(rows: Sequence[Row]) -> str:
    """The list that `--json` prints."""
    return json.dumps([asdict(row) for row in rows])


def as_table(rows: Sequence[Row]) -> str:
    """The same for people."""
    lines = [
        f"{'op':<15}{'transport':<11}{'buffers':<8}{'bytes':>12}{'p50 us':>11}{'p99 us':>11}{'GB/s':>8}{'bus GB/s':>10}"
    ]
    for row in rows:
        lines.append(
            f"{row.op:<15}{row.transport:<11}{row.buffers:<8}{row.bytes:>12,}{row.p50_us:>11.1f}{row.p99_us:>11.1f}"
            f"{row.algbw_gbs:>8.2f}{row.busbw_gbs:>10.2f}"
        )
    return "\n".join(lines)
