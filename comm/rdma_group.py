"""Group over RDMA: the schedules of comm/schedules on links that write into the peers' memory (csrc/rdma.h).

Like a group over TCP in all but the links: the same control connections with heartbeats, the same headers and errors.
With the native provider asynchronous operations are the engine's thread's; pyverbs holds the GIL, so with it the caller
moves all that is in flight whenever it waits, starts or asks (`cktrain.comm.transport.caller_progress`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cktrain.comm import _engine
from cktrain.comm.algorithms import Table
from cktrain.comm.call import Call
from cktrain.comm.tcp_group import FIRST_GROUP, Mesh, TcpGroup
from cktrain.comm.transport.base import RemoteMemory
from cktrain.comm.transport.rdma import RdmaTransport

_SYNCHRONOUS, _ASYNCHRONOUS, _FROM_LOWER, _FROM_HIGHER = range(4)
_RUN_S = 0.05
_DONE = _engine.DONE


def scratch_bytes(ranks: int) -> int:
    """What a lane of so many ranks works in at most: a group stays below 32 MB at 8 ranks, and at 64."""
    return (8 if ranks <= 8 else 4 if ranks <= 48 else 2) << 20


class RdmaGroup(TcpGroup):
    """A group whose bytes travel by RDMA."""

    def __init__(
        self,
        transport: RdmaTransport,
        mesh: Mesh,
        seats: Sequence[int],
        name: str,
        timeout_s: float,
        *,
        ancestors: Sequence[int] = (),
        purpose: int = FIRST_GROUP,
        table: Table | None = None,
        algorithm: str | None = None,
    ):
        """As TcpGroup's, over a transport that is connected with the ranks of `mesh`."""
        self._transport = transport
        super().__init__(
            mesh,
            seats,
            name,
            timeout_s,
            ancestors=ancestors,
            purpose=purpose,
            table=table,
            algorithm=algorithm,
        )
        self._barrier_op: Any = None

    transport = "rdma"

    segment_bytes = 4 << 20
    """Long, since each begins with the receiver's word where it belongs, and what is sent before passes through the ring."""

    @property
    def scratch_bytes(self) -> int:  # type: ignore[override]
        """Less than over TCP, whose buffers are the kernel's, where rings and queues of many ranks take the memory."""
        return scratch_bytes(self.size)

    @property
    def moved_by_caller(self) -> bool:  # type: ignore[override]
        """Of the provider in Python it is so."""
        return self._links.driver is not None

    def prepare(self, memory: np.ndarray) -> None:
        """Let memory (uint8) travel without a copy, if it may be registered."""
        self._transport.prepare(memory)

    def _connect(self, purpose: int) -> None:
        others = [s for s in self._seats if s != self._mesh.seat]
        self._links = self._transport.links(others, purpose)
        self._lane, self._engine_lane = (self._wire(lane) for lane in (_SYNCHRONOUS, _ASYNCHRONOUS))

    def _wire(self, lane: int, only: int | None = None) -> _engine.Wire:
        capsules = self._links.capsules
        links = [
            capsules[s][lane] if s in capsules and only in (None, r) else None
            for r, s in enumerate(self._seats)
        ]
        return _engine.Wire(
            self._mesh.world, self.rank, links, self._seats, self._links.allocate, self._links.driver
        )

    def _part(self, seats: list[int], name: str, purpose: int) -> TcpGroup:
        return RdmaGroup(
            self._transport,
            self._mesh,
            seats,
            name,
            self.timeout_s,
            ancestors=self._lineage,
            purpose=purpose,
            algorithm=self._algorithm,
        )

    def _stream(self, peer: int, sends: bool) -> _engine.Wire:
        upwards = sends == (self._seats[self.rank] < self._seats[peer])
        return self._wire(_FROM_LOWER if upwards else _FROM_HIGHER, only=peer)

    def _disconnect(self) -> None:
        self._links.close()

    # The most frequent small call has a short way.

    def barrier(self) -> None:
        """As Group's."""
        op = self._barrier_op
        if op is None or self._failure is not None or self._closed:
            self._raise_if_unusable("barrier")
            nothing = np.empty(0, np.uint8)
            op = self._barrier_op = self._make(Call("barrier", 0, nothing, nothing))(self._lane, False)
            state = op.run(_RUN_S)
        else:
            state = op.run_again(_RUN_S)
        if state != _DONE:
            self._run(op, self._lane)

    @property
    def bytes_sent(self) -> tuple[int, int]:
        """Bytes that this rank wrote straight into the peers' buffers, and bytes that it sent through their rings."""
        return self._links.sent()

    # Memory and one-sided access.

    def allocate(self, nbytes: int) -> np.ndarray:
        """(nbytes,) uint8 zeros in registered memory: operations on slices of it need no copy."""
        return self._transport.allocate(nbytes)

    def rdma_register(self, memory: np.ndarray) -> list[RemoteMemory]:
        """Open memory (uint8; from `allocate`, or any that stays) to all ranks; every rank's, by rank. All call it.

        From then on any rank of the world may write and read it, without this one taking part.

        Raises:
            VerbsError: it cannot be registered, e.g. for the limit of locked memory.
        """
        mine = self._transport.register(memory)
        numbers = np.array([mine.address, mine.nbytes, mine.key], np.int64)
        answers = [np.frombuffer(data, np.int64) for data in self.all_gather_bytes(numbers.tobytes())]
        return [RemoteMemory(s, *(int(n) for n in answers[r])) for r, s in enumerate(self._seats)]

    def rdma_write(self, local: np.ndarray, remote: RemoteMemory, offset: int = 0) -> None:
        """Write `local` to bytes [offset, offset + its length) of another rank's memory; see `rdma_flush`.

        `local` is a part of memory from `allocate` or `rdma_register`, and must not change before the flush.
        """
        self._transport.write(local, remote, offset)

    def rdma_read(self, local: np.ndarray, remote: RemoteMemory, offset: int = 0) -> None:
        """Read such bytes into `local`; see `rdma_flush`."""
        self._transport.read(local, remote, offset)

    def rdma_flush(self, remote: RemoteMemory) -> None:
        """Wait until all reads from and writes to that rank's memory are complete.

        Raises:
            WorkRequestError: one was refused, or the rank is gone.
            CollectiveTimeoutError: the group's deadline is over.
        """
        self._transport.flush(remote.rank, self.timeout_s)
