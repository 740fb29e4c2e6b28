"""`cktrain bench collectives --tune`: which algorithm is the fastest at which length, on this network.

Every algorithm of every operation that has several is measured at lengths from 256 bytes to 16 MiB, in turns
(`cktrain.bench.collectives.measure`), on the group of all ranks and, where the nodes have several ranks each, on a group
with one rank of each node. The fastest by length go into the file (`cktrain.comm.tuning`).
"""

from __future__ import annotations

import numpy as np

from cktrain.bench.collectives import Contender, Row, call_of, measure
from cktrain.comm.algorithms import KNOWN, OWN_ORDER
from cktrain.comm.group import Group
from cktrain.comm.tcp_group import TcpGroup
from cktrain.comm.tuning import CANONICAL, Tables, crossovers
from cktrain.comm.two_level_group import TwoLevelGroup

SIZES = tuple(256 << (2 * k) for k in range(9))


def tune(
    group: Group, tables: Tables, *, any_order: bool = False, sizes: tuple[int, ...] = SIZES
) -> tuple[Tables, list[Row]]:
    """Measure, and return `tables` with the new entries, the same on all ranks, and what was measured.

    Raises:
        ValueError: nothing to choose on this transport.
    """
    wires = [group.flat, group.rail] if isinstance(group, TwoLevelGroup) else [group]
    rows: list[Row] = []
    for wire in dict.fromkeys(wires):
        if not isinstance(wire, TcpGroup):
            raise ValueError(
                f"[bench] --tune: on a {type(wire).__name__} there is nothing to choose. Give --transport tcp or rdma."
            )
        table: dict[str, list[tuple[float, str]]] = {}
        for kind, names in KNOWN.items():
            seconds: dict[str, list[float]] = {name: [] for name in names}
            for nbytes in sizes:
                found = measure(wire, kind, nbytes, [_contender(wire, kind, nbytes, name) for name in names])
                rows += found
                for row in found:
                    seconds[row.transport].append(row.p50_us)
            wire.prefer(None)
            canonical = {name: times for name, times in seconds.items() if name not in OWN_ORDER}
            if kind == "all_reduce" and any_order:
                table[CANONICAL] = crossovers(sizes, canonical)
                table[kind] = crossovers(sizes, seconds)
            else:
                table[kind] = crossovers(sizes, canonical if kind == "all_reduce" else seconds)
        tables = tables.with_entry(wire.transport, wire.node_count, wire.size, table)
    return Tables(group.broadcast_bytes(tables.text.encode()).decode()), rows


def _contender(wire: TcpGroup, kind: str, nbytes: int, name: str) -> Contender:
    array = np.zeros(nbytes // 4, np.float32)
    call = call_of(wire, kind, array, array)

    def preferred() -> None:
        wire.prefer(name)
        call()

    return Contender(name, "plain", preferred)
