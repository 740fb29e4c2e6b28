"""A group of two ranks, of which the other one does not exist: for measuring what overlaps with computation.

Bytes take the time of a network with a latency and a rate, by the clock, and no processor's (csrc/delay.h); the engine,
the schedules and the reductions are those of any group. Results are of no use: nothing comes.
"""

from __future__ import annotations

import os
from dataclasses import replace

from cktrain.comm import _engine
from cktrain.comm.call import Call
from cktrain.comm.engine_group import MakeOp
from cktrain.comm.node import new_memory
from cktrain.comm.peers import Peers
from cktrain.comm.tcp_group import TcpGroup
from cktrain.comm.tuning import Tables


class _Alone(Peers):
    """This rank, and the seat of one that never comes."""

    tables = Tables()
    wake_fd = -1

    def close(self) -> None:
        """End the threads."""
        self.world.stop()
        os.close(self.wake_fd)


class DelayGroup(TcpGroup):
    """Rank 0 of two."""

    def __init__(
        self, latency_s: float, bytes_per_s: float, *, timeout_s: float = 60.0, engine_core: int | None = None
    ):
        """Make it.

        Args:
            latency_s: of the first byte of a transfer, seconds.
            bytes_per_s: rate of each direction.
            timeout_s: deadline of every wait, seconds.
            engine_core: core of the comm thread; None: where the process runs.
        """
        self._latency_s, self._bytes_per_s = latency_s, bytes_per_s
        nbytes = 2 * _engine.SEAT_BYTES
        fd = new_memory("seats", nbytes)
        seats = _engine.Mapping(fd, nbytes)
        os.close(fd)
        core = -1 if engine_core is None else engine_core
        world = _engine.World(0, 0, 2, seats, spin=True, engine_core=core)
        peers = _Alone(0, [{"rank": r, "host": "nowhere"} for r in range(2)], world, "comm.delay")
        peers.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        world.wake_by(peers.wake_fd)
        super().__init__(peers, range(2), "delay", timeout_s)  # type: ignore[arg-type]

    def end(self) -> None:
        """End its threads; a `close` would wait for the other rank."""
        self._closed = True
        self._peers.close()

    def _make(self, call: Call) -> MakeOp:
        # The headers that come are its own: in an all_to_all whose counts there and back are equal they agree, but for the
        # sum, which nobody balances.
        return super()._make(replace(call, extra=0))

    def _connect(self, purpose: int) -> None:
        self._connections = []
        lanes = [[None, _engine.delay_link(self._latency_s, self._bytes_per_s)] for _ in range(2)]
        self._lane, self._engine_lane = (_engine.Wire(self._mesh.world, 0, links, [0, 1]) for links in lanes)
