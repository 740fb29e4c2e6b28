"""What a transport is to the groups above it.

Collectives are written once, as schedules (`cktrain.comm.schedules`), and carried out by csrc/wire.h over links:
ordered bytes to one peer, in one lane. A transport makes the links, and for those who want it offers one-sided
access. TCP's links are connected sockets; another transport hands out capsules with a `ckc_link` (csrc/link.h).
Shared memory needs no links: `cktrain.comm.shm_group` implements the operations on the memory itself.

Life of a transport: `connect` once, with all ranks; `register` for each arena that groups allocate; links for each
group; `close` after the groups are closed. Only the thread that runs a lane touches its links: the caller's for the
synchronous one and for messages, the engine's for the asynchronous one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cktrain.comm.rendezvous import Rendezvous


@dataclass(frozen=True)
class RemoteMemory:
    """Memory of another rank that one-sided operations may name: where it begins there, its length, and its key."""

    rank: int
    address: int
    nbytes: int
    key: int


@dataclass
class Links:
    """The links of one group."""

    capsules: dict[int, list[Any]]
    """By world rank: one per lane, named "cktrain.link"."""
    allocate: Callable[[int], Any] | None
    """Gives memory that travels without a copy, for what groups keep between steps; None: any will do."""
    driver: Any
    """Moves the operations, where the engine's thread must not (`_engine.Wire`); or None."""
    sent: Callable[[], tuple[int, int]]
    """Bytes that were written straight into the peers' buffers, and bytes that passed through rings."""
    close: Callable[[], None]
    """The group is at its end: all its ranks have called this, or are gone."""


class Transport(ABC):
    """Carries bytes between the ranks of a world."""

    name: str
    """As in `comm.transport`."""

    @abstractmethod
    def connect(self, meeting: Rendezvous) -> None:
        """Prepare for all ranks of the meeting; every rank calls it.

        Raises:
            TransportUnavailableError: on all ranks alike, with the reason of each that cannot use it.
        """

    @abstractmethod
    def links(self, peers: list[int], purpose: int) -> Links:
        """Links to each of `peers`, which make the same call with the same purpose."""

    @abstractmethod
    def register(self, memory: np.ndarray) -> RemoteMemory:
        """Make memory (uint8) known to the hardware; what the other ranks need to write and read it."""

    @abstractmethod
    def write(self, local: np.ndarray, remote: RemoteMemory, offset: int = 0) -> None:
        """Write `local`, a part of registered memory, to remote memory; complete when `flush` returns."""

    @abstractmethod
    def read(self, local: np.ndarray, remote: RemoteMemory, offset: int = 0) -> None:
        """Read remote memory into `local`, a part of registered memory; complete when `flush` returns."""

    @abstractmethod
    def flush(self, rank: int, timeout_s: float) -> None:
        """Wait until all writes to and reads from that rank are complete.

        Raises:
            WorkRequestError: one of them failed.
            CollectiveTimeoutError: the time is over.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back what `connect` and `register` took; no link is used any more."""
