"""Connecting two queue pairs: what the ends tell each other, and INIT -> RTR -> RTS.

Each rank makes a queue pair for each peer, sends its `Address` by another way (the rendezvous), receives the
peer's, and calls `connect`. A barrier must follow before the first send: a message to a queue pair that is not yet
in RTR is lost, and costs a retry.

Patience. A message that is not acknowledged within 4.096 us * 2**timeout is sent again, `retry_count` times; then
the queue pair breaks (RETRY_EXC_ERR). With 17 and 6 that takes about 3.8 s, which bridges a link that is down for
two seconds and the stalls of a loaded machine. A retry_count or rnr_retry of 7 means "for ever" to soft-RoCE and to
many drivers: a dead peer would never be noticed, so 6 is the most that is taken here.

| setting | value | why |
|---|---|---|
| path MTU | the smaller of both ends' | a larger packet than the peer's port takes is dropped |
| hop_limit | 64 | 1 does not pass a router, and RoCEv2 is routed |
| PSN | random | packets of an earlier connection with the same number are not taken for this one's |
| min_rnr_timer | 12 (0.64 ms) | a receive that is missing is late by a poll, not by seconds |
"""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass

from cktrain.comm.transport import verbs
from cktrain.comm.transport.gid import Gid
from cktrain.comm.transport.verbs import ACCESS_ALL, Context, QueuePair

_FORMAT = struct.Struct("!IIHHH16sB?")
_REMOTE_FORMAT = struct.Struct("!QQI")


@dataclass(frozen=True)
class Settings:
    """How a connection behaves; the same on all ranks."""

    timeout: int = 17
    """Wait 4.096 us * 2**timeout for an acknowledgement."""
    retry_count: int = 6
    """Then send again, this often."""
    rnr_retry: int = 6
    """How often a message is repeated that found no receive posted."""
    min_rnr_timer: int = 12
    """The time between those, as the InfiniBand code for it."""
    max_reads: int = 16
    """Reads and atomics in flight."""
    traffic_class: int = 0
    """DSCP and ECN bits of the packets (RoCEv2), for networks with priority flow control."""
    service_level: int = 0
    """InfiniBand's, or the Ethernet priority."""
    hop_limit: int = 64
    pkey_index: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("timeout", 1, 31),
            ("retry_count", 0, 6),
            ("rnr_retry", 0, 6),
            ("min_rnr_timer", 0, 31),
            ("max_reads", 1, 255),
            ("traffic_class", 0, 255),
            ("service_level", 0, 15),
            ("hop_limit", 1, 255),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"[comm.rdma] {name} {value} is out of range. Give {low} to {high}.")

    @property
    def failure_s(self) -> float:
        """Seconds until a peer that is gone breaks a queue pair that sends to it; hardware may take 4 times as long."""
        return (self.retry_count + 1) * 4.096e-6 * 2**self.timeout


@dataclass(frozen=True)
class Address:
    """One end of a connection, as the other end needs it."""

    number: int
    """Queue pair number, 24 bits."""
    psn: int
    """Number of its first packet, 24 bits."""
    mtu: int
    """Payload bytes of a packet on its port."""
    lid: int
    max_reads: int
    """What it takes of reads and atomics in flight."""
    gid: bytes
    """16 bytes."""
    port: int
    ethernet: bool

    def pack(self) -> bytes:
        """Return the address as PACKED_BYTES bytes, in network order."""
        return _FORMAT.pack(
            self.number, self.psn, self.mtu, self.lid, self.max_reads, self.gid, self.port, self.ethernet
        )

    @classmethod
    def unpack(cls, packed: bytes) -> Address:
        """Return the address that was packed.

        Raises:
            ValueError: the length is another.
        """
        if len(packed) != _FORMAT.size:
            raise ValueError(
                f"[comm.rdma] an address of {len(packed)} bytes, not {_FORMAT.size}. Run the same cktrain everywhere."
            )
        number, psn, mtu, lid, max_reads, gid, port, ethernet = _FORMAT.unpack(packed)
        return cls(number, psn, mtu, lid, max_reads, gid, port, ethernet)


PACKED_BYTES = _FORMAT.size


@dataclass(frozen=True)
class RemoteRegion:
    """Memory of a peer that may be written and read: its address, its length, and the key to it."""

    address: int
    length: int
    rkey: int

    def pack(self) -> bytes:
        """Return it as 20 bytes, in network order."""
        return _REMOTE_FORMAT.pack(self.address, self.length, self.rkey)

    @classmethod
    def unpack(cls, packed: bytes) -> RemoteRegion:
        """Return the region that was packed."""
        return cls(*_REMOTE_FORMAT.unpack(packed))

    @classmethod
    def of(cls, region: verbs.MemoryRegion) -> RemoteRegion:
        """Return a region of this rank as its peers see it."""
        return cls(region.address, region.length, region.rkey)


def local_address(context: Context, pair: QueuePair, gid: Gid, settings: Settings, port: int = 1) -> Address:
    """Return the address of a new queue pair, with a random first packet number."""
    state = context.query_port(port)
    return Address(
        number=pair.number,
        psn=secrets.randbits(24),
        mtu=state.active_mtu,
        lid=state.lid,
        max_reads=min(settings.max_reads, context.query_device().max_reads),
        gid=gid.address,
        port=port,
        ethernet=state.ethernet,
    )


def connect(
    pair: QueuePair,
    own: Address,
    peer: Address,
    gid: Gid,
    settings: Settings | None = None,
    access: int = ACCESS_ALL,
) -> None:
    """Take a new queue pair to RTS, connected to `peer`.

    Args:
        pair: in state RESET, or INIT if receives were posted before.
        own: its address, as the peer has it.
        peer: the peer's.
        gid: the entry that `own` was made with.
        settings: the same on both sides; None: the default.
        access: what the peer may do to this rank's regions.

    Raises:
        ValueError: one end is Ethernet and the other InfiniBand.
        VerbsError: the device refuses.
    """
    settings = settings or Settings()
    if own.ethernet != peer.ethernet:
        raise ValueError(
            "[comm.rdma] one rank is on Ethernet and the other on InfiniBand. Name devices of one kind (comm.device)."
        )
    if pair.state == "RESET":
        pair.to_init(own.port, settings.pkey_index, access)
    reads = min(own.max_reads, peer.max_reads)
    pair.to_rtr(
        peer_number=peer.number,
        peer_psn=peer.psn,
        mtu=min(own.mtu, peer.mtu),
        port=own.port,
        peer_lid=peer.lid,
        # Within an InfiniBand subnet (equal prefix) the LID alone is the way, and the header is spared.
        peer_gid=None if not own.ethernet and own.gid[:8] == peer.gid[:8] else peer.gid,
        gid_index=gid.index,
        traffic_class=settings.traffic_class,
        hop_limit=settings.hop_limit,
        service_level=settings.service_level,
        max_reads=reads,
        min_rnr_timer=settings.min_rnr_timer,
    )
    pair.to_rts(
        psn=own.psn,
        timeout=settings.timeout,
        retry_count=settings.retry_count,
        rnr_retry=settings.rnr_retry,
        max_reads=reads,
    )
