"""What a process knows of the other ranks of its world, whatever joins them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from cktrain.comm import _engine
from cktrain.comm.errors import PeerLostError


@dataclass
class Peers:
    """The ranks that this process is joined with; each has a seat, where its heartbeat and last operation show."""

    seat: int
    """This process's."""
    members: list[dict[str, Any]]
    """Per seat: rank, host, and what the way of joining adds."""
    world: _engine.World
    where: str
    """Who speaks in messages, e.g. "comm.shm"."""
    live: list[Any] = field(default_factory=list, kw_only=True)
    """Work that the engine may still have."""
    polled: list[Any] = field(default_factory=list, kw_only=True)
    """Groups with operations in flight that the caller moves (`cktrain.comm.two_level_group`)."""
    groups: int = field(default=0, kw_only=True)
    """Numbers given to groups in this process."""
    alike: Counter[str] = field(default_factory=Counter, kw_only=True)
    """How many groups there were of each kind with the same ranks."""
    callers: set[int] = field(default_factory=set, kw_only=True)
    """Threads that have waited, or handed operations to the engine."""

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.members)

    def host(self, rank: int) -> str:
        """Host of a world rank."""
        return next((m["host"] for m in self.members if m["rank"] == rank), "another host")

    def lost(self, operation: str) -> PeerLostError | None:
        """The error of a lost rank, if there is one."""
        failure = self.world.failure()
        if failure is None:
            return None
        rank, how = failure
        for seat, member in enumerate(self.members):
            if member["rank"] == rank:
                _, _, kind, number, _ = self.world.seat(seat)
                how += (
                    f"; its last operation was {kind} {number}" if number else "; it had begun no operation"
                )
        return PeerLostError(self.where, rank, self.host(rank), operation, how, self.world.rank)

    def close(self) -> None:
        """Leave in order: the others do not take the end of this process for a failure."""
        raise NotImplementedError
