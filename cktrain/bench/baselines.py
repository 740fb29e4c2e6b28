"""Whom `cktrain bench collectives` measures beside cktrain: MPI's own operations, gloo, and what the hardware allows.

Each function makes a contender for an operation and an array, or returns None where it has none.
"""

from __future__ import annotations

import contextlib
import importlib.util
import select
import socket
import struct
from typing import Any

import numpy as np

from cktrain.bench.collectives import Contender
from cktrain.comm.group import Group


def traffic_bound(group: Group, op: str, array: np.ndarray) -> Contender | None:
    """All ranks at once move as many bytes of their own memory as an all-reduce in place must: each reads its part of
    every rank's array and writes as much.
    """
    if op != "all_reduce" or array.nbytes < 1 << 20:
        return None
    from cktrain import cython_kernels
    from cktrain.comm import _engine
    from cktrain.memory.arena import Arena

    kernels = cython_kernels.load(cython_kernels.best())
    part = array.size // group.size
    arena = Arena("bound", group.size * (4 * part + 4096))
    parts = []
    for _ in range(group.size):
        parts.append(arena.array((part,), np.dtype(np.float32)))
        arena.array((512,), np.dtype(np.float32))
        parts[-1][:] = 0
    stream = 256 if array.nbytes * group.size > 32 << 20 else 0
    return Contender("traffic", "bound", lambda: _engine.reduce_n(kernels.reduction, parts, parts, 0, stream))


class RawSockets:
    """Both directions of some connections at once: as many bytes as an all-reduce of two ranks sends."""

    def __init__(self, group: Group, count: int = 1):
        self.connections: list[socket.socket] = []
        if group.size != 2:
            return
        listener = socket.create_server(("127.0.0.1", 0))
        ports = [
            struct.unpack("<I", x)[0]
            for x in group.all_gather_bytes(struct.pack("<I", listener.getsockname()[1]))
        ]
        for _ in range(count):
            if group.rank == 0:
                self.connections.append(listener.accept()[0])
            else:
                self.connections.append(socket.create_connection(("127.0.0.1", ports[0])))
        listener.close()
        for connection in self.connections:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
            connection.setblocking(False)

    def make(self, group: Group, op: str, array: np.ndarray) -> Contender | None:
        """The contender for this length."""
        if not self.connections or op != "all_reduce":
            return None
        k = len(self.connections)
        share = array.nbytes // k
        out, into = (
            [memoryview(bytearray(share + array.nbytes % k * (i == 0))) for i in range(k)] for _ in range(2)
        )

        def exchange() -> None:
            sent, received = [0] * k, [0] * k
            while True:
                sending = [i for i in range(k) if sent[i] < out[i].nbytes]
                receiving = [i for i in range(k) if received[i] < into[i].nbytes]
                if not sending and not receiving:
                    return
                moved = 0
                for i in sending:
                    with contextlib.suppress(BlockingIOError):
                        n = self.connections[i].send(out[i][sent[i] : sent[i] + (1 << 20)])
                        sent[i] += n
                        moved += n
                for i in receiving:
                    with contextlib.suppress(BlockingIOError):
                        n = self.connections[i].recv_into(into[i][received[i] : received[i] + (1 << 20)])
                        received[i] += n
                        moved += n
                if not moved:
                    readers, writers = (
                        [self.connections[i] for i in receiving],
                        [self.connections[i] for i in sending],
                    )
                    select.select(readers, writers, [], 1)

        return Contender("sockets", "bound", exchange)


class Gloo:
    """torch.distributed's gloo, where torch is installed."""

    def __init__(self, group: Group):
        self.distributed: Any = None
        have = importlib.util.find_spec("torch") is not None
        if not all(x == b"1" for x in group.all_gather_bytes(b"1" if have else b"0")):
            return
        import torch
        import torch.distributed as distributed

        torch.set_num_threads(1)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        port = int(group.broadcast_bytes(str(port).encode()))
        store = distributed.TCPStore("127.0.0.1", port, group.size, group.rank == 0)
        distributed.init_process_group("gloo", store=store, rank=group.rank, world_size=group.size)
        self.torch, self.distributed = torch, distributed

    def make(self, group: Group, op: str, array: np.ndarray) -> Contender | None:
        """The contender for this length."""
        if self.distributed is None or op != "all_reduce":
            return None
        tensor = self.torch.zeros(array.size)
        return Contender("gloo", "plain", lambda: self.distributed.all_reduce(tensor))


def mpi(group: Group, op: str, array: np.ndarray) -> Contender | None:
    """mpi4py's Allreduce in place, as its users call it, where the ranks run under mpirun."""
    if op != "all_reduce":
        return None
    from cktrain.comm.mpi_group import plain_all_reduce

    own = array.copy()
    call = plain_all_reduce(own)
    return Contender("mpi4py", "plain", call)
