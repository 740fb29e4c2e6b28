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


class Transport(ABC):
    """Carries bytes between the ranks of a world."""

    name: str
    """As in `comm.transport`."""

    @classmethod
    @abstractmethod
    def unavailable(cls) -> str | None:
        """Why this process cannot use it, in words, with the command that mends it; None when it can."""

    @abstractmethod
    def connect(self, meeting: Rendezvous) -> None:
        """Prepare for all ranks of the meeting; every rank calls it.

        Raises:
            TransportUnavailableError: what `unavailable` could not foresee.
        """

    @abstractmethod
    def links(self, peers: list[int], purpose: int, lanes: int) -> dict[int, list[Any]]:
        """`lanes` links to each of `peers`, which make the same call: sockets, or capsules named "cktrain.link"."""

    @abstractmethod
    def register(self, memory: np.ndarray) -> list[RemoteMemory]:
        """Make an arena (uint8) known to the hardware; every rank's, in the order of ranks. All ranks call it."""

    @abstractmethod
    def write(self, local: np.ndarray, remote: RemoteMemory, offset: int) -> None:
        """Write `local`, a part of a registered arena, to remote memory; complete when `flush` returns."""

    @abstractmethod
    def read(self, local: np.ndarray, remote: RemoteMemory, offset: int) -> None:
        """Read remote memory into `local`, a part of a registered arena; complete when `flush` returns."""

    @abstractmethod
    def flush(self, rank: int, timeout_s: float) -> None:
        """Wait until all writes to and reads from that rank are complete.

        Raises:
            PeerLostError: the rank is gone.
            CollectiveTimeoutError: the time is over.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back what `connect` and `register` took; no link is used any more."""
