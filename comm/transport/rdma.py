"""The rdma transport: a device, what its ranks tell each other, and queue pairs for groups and for one-sided access.

`connect` begins with a vote: each rank finds out whether it can use a device at all, and says so, or why not. Only when
all can are queue pairs made, one for each pair of ranks, and a message with a pattern must come through each before
anyone relies on it; then they serve `write` and `read`. A group gets queue pairs of its own, one for each pair of its
ranks and lane, as links (csrc/rdma.h).

What passes between ranks to connect them (addresses and keys) goes over the authenticated connections of the
rendezvous. Keys are short and packets are not signed: the network between the hosts is trusted (docs/rdma_setup.md).

| memory | registered | for |
|---|---|---|
| rings of a group's links | when the group is made, RING_BUDGET at most | everything that is short, or not registered |
| arenas of `Group.allocate` | when they are allocated | large operations without a copy |
| scratch of a wire | when it grows | the same |
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cktrain.comm import _engine
from cktrain.comm.errors import CollectiveTimeoutError, CommError, TransportUnavailableError
from cktrain.comm.group import allocate_alone
from cktrain.comm.rendezvous import Rendezvous, exchange
from cktrain.comm.transport import verbs
from cktrain.comm.transport.base import Links, RemoteMemory, Transport
from cktrain.comm.transport.gid import FAMILIES, Gid, NoUsableGid, choose_gid, common_families, families
from cktrain.comm.transport.queue_pair import Address, Settings, connect, local_address
from cktrain.comm.transport.rdma_device import (
    SystemDescription,
    describe_system,
    mtu_problem,
    problems,
    usable_devices,
)
from cktrain.comm.transport.verbs_problems import Problem

log = logging.getLogger("cktrain.comm")

LANES = 4
"""Of a pair of ranks: synchronous, asynchronous, messages of the lower rank, messages of the higher one."""
RING_BUDGET = 6 << 20
"""Bytes that the rings of one group take at most, on one rank."""
_LARGEST_RING, _SMALLEST_RING = 256 << 10, 8 << 10
_INLINE_BYTES = 128
_SIDE = 3  # purpose of the connections that `connect` talks over (rendezvous.py); groups have others
_TEST_BYTES = 64
_TEST_S = 10.0
_LAST_WORDS_S = 2.0
ONE_SIDED_SENDS = 16
"""One-sided accesses to or from one rank that are under way at most."""
_REMEDY = "Use another comm.transport, or mend it: docs/rdma_setup.md"


def ring_bytes(peers: int) -> int:
    """Length of each ring of a group with so many other ranks: a power of two within the budget."""
    each = RING_BUDGET // (2 * LANES * max(1, peers))
    return max(_SMALLEST_RING, min(_LARGEST_RING, 1 << (each.bit_length() - 1)))


def why_not(
    provider: str,
    device: str | None,
    gid_index: int | None,
    *,
    peers: int = 1,
    one_host: bool = True,
    system: SystemDescription | None = None,
    load: Callable[[str], verbs.Provider] = verbs.load_provider,
) -> Problem | None:
    """What this process sees at once that keeps it from using RDMA, with the remedy; nothing is opened.

    Args:
        provider, device, gid_index: what is asked for, as RdmaTransport's.
        peers: other ranks, whose rings need memory.
        one_host: whether all ranks are on this host.
        system: the machine; None: this one.
        load: where providers come from.
    """
    found = problems(
        system or describe_system(),
        device=device,
        gid_index=gid_index,
        one_host=one_host,
        register_bytes=2 * LANES * peers * ring_bytes(peers),
    )
    if found:
        return found[0]
    try:
        load(provider)
    except verbs.ProviderError as error:
        return Problem(error.sentence, error.remedy)
    return None


class RdmaTransport(Transport):
    """RDMA between the ranks of a world, by one device per rank."""

    name = "rdma"

    def __init__(
        self,
        *,
        provider: str = "auto",
        device: str | None = None,
        gid_index: int | None = None,
        traffic_class: int | None = None,
        settings: Settings | None = None,
        open_provider: Callable[[str], verbs.Provider] = verbs.load_provider,
        describe: Callable[[], SystemDescription] = describe_system,
    ):
        """Remember what is wanted; `connect` looks at the machine.

        Args:
            provider: "native", "pyverbs", or the first of them that loads.
            device: `comm.device`; None: the first that works, hardware before soft-RoCE.
            gid_index: `comm.gid_index`; None: chosen by content.
            traffic_class: `comm.traffic_class`; None: 0.
            settings: of the connections; None: the default ones.
            open_provider: where providers come from.
            describe: what looks at the machine.
        """
        self.settings = settings or Settings(traffic_class=traffic_class or 0)
        self.provider_name, self.device, self._gid_index = provider, device, gid_index
        self._open_provider, self._describe = open_provider, describe
        self.driver: Any = None
        self.regions = _engine.Regions()
        self._registered: list[verbs.MemoryRegion] = []
        self._context: Any = None
        self._queue: Any = None
        self._pairs: dict[int, verbs.QueuePair] = {}
        self._posted: dict[int, int] = {}
        self._ended: dict[int, int] = {}
        self._by_number: dict[int, int] = {}

    # Connecting.

    def connect(self, meeting: Rendezvous) -> None:
        """Vote, connect, test; every rank calls it.

        Raises:
            TransportUnavailableError: on all ranks alike, with every rank's reason.
        """
        self.rank, self._meeting = meeting.rank, meeting
        others = [r for r in range(meeting.size) if r != meeting.rank]
        hosts = [member["host"] for member in meeting.members]
        self._one_host = len(set(hosts)) == 1
        sockets = {r: found[0] for r, found in meeting.connect_all(others, _SIDE, 1).items()}
        try:
            offers = self._vote(sockets, self._offer)
            self._gid = self._agree(offers)
            if meeting.rank == 0 and (problem := mtu_problem([o["mtu"] for o in offers], hosts)) is not None:
                log.warning("[comm.rdma] %s. %s.", problem.reason, problem.remedy)
            cards = self._vote(sockets, lambda: self._make_pairs(others))
            self._vote(sockets, lambda: self._connect_pairs(cards))
            self._vote(sockets, self._send_and_compare)
        except CommError:
            self.close()
            raise
        finally:
            for connection in sockets.values():
                connection.close()

    def _vote(self, sockets: dict[int, socket.socket], attempt: Callable[[], Any]) -> list[Any]:
        """What `attempt` returned on every rank; an error on all of them when it failed on one."""
        try:
            mine = {"result": attempt()}
        except (CommError, OSError, ValueError) as error:
            mine = {"reason": getattr(error, "sentence", None) or str(error)}
        answers = exchange(sockets, dict.fromkeys(sockets, mine), self._meeting.timeout_s) | {self.rank: mine}
        reasons = {r: answers[r]["reason"] for r in sorted(answers) if "reason" in answers[r]}
        if reasons:
            raise TransportUnavailableError("comm", "rdma", reasons, _REMEDY)
        return [answers[r]["result"] for r in sorted(answers)]

    def _offer(self) -> dict[str, Any]:
        """Open the device; what the others must know of it."""
        system = self._describe()
        problem = why_not(
            self.provider_name,
            self.device,
            self._gid_index,
            peers=self._meeting.size - 1,
            one_host=self._one_host,
            system=system,
            load=self._open_provider,
        )
        if problem is not None:
            raise ValueError(f"{problem.reason}; try: {problem.remedy}")
        provider = self._open_provider(self.provider_name)
        names = usable_devices(system, gid_index=self._gid_index, one_host=self._one_host)
        name = self.device or names[0]
        self.provider_name = provider.NAME
        self._context = provider.open_device(name)
        if self.provider_name == "pyverbs":
            from cktrain.comm.transport.caller_progress import CallerProgress

            self.driver = CallerProgress()
        self.device = name
        port = self._context.query_port()
        self._table = next(d for d in system.devices if d.name == name).ports[0].gids
        mine = families(self._table, one_host=self._one_host)
        return {
            "families": list(mine),
            "mtu": port.active_mtu,
            "host": self._meeting.members[self.rank]["host"],
        }

    def _agree(self, offers: list[dict[str, Any]]) -> Gid:
        """The GID to connect from, of a family that all ranks have."""
        common = common_families([tuple(f for f in FAMILIES if f in offer["families"]) for offer in offers])
        assert self.device is not None
        try:
            return choose_gid(
                self._table,
                device=self.device,
                gid_index=self._gid_index,
                allowed=common,
                one_host=self._one_host,
            )
        except NoUsableGid as none:
            reason = f"{none.problem.reason}. {none.problem.remedy}"
            raise TransportUnavailableError("comm", "rdma", {self.rank: reason}, _REMEDY) from none

    def _make_pairs(self, peers: list[int]) -> dict[str, list[Any]]:
        """A queue pair for each peer, and memory that a test message of each is written to; what the peers must know."""
        self._test = np.zeros(self._meeting.size * _TEST_BYTES * 2, np.uint8)
        self._test_region = self._context.register(self._test)
        self._queue = self._context.create_completion_queue(max(1, len(peers)) * (ONE_SIDED_SENDS + 2))
        for peer in peers:
            pair = self._context.create_queue_pair(self._queue, self._queue, ONE_SIDED_SENDS, 2)
            self._pairs[peer] = pair
            self._posted[peer] = self._ended[peer] = 0
            self._by_number[pair.number] = peer
        self._addresses = {
            p: local_address(self._context, self._pairs[p], self._gid, self.settings) for p in peers
        }
        place = [self._test_region.address, self._test_region.rkey]
        return {str(p): [self._addresses[p].pack().hex(), *place] for p in peers}

    def _connect_pairs(self, cards: list[dict[str, list[Any]]]) -> None:
        """Connect to what the peers have made."""
        self._tests: dict[int, tuple[int, int]] = {}
        for peer, pair in self._pairs.items():
            packed, address, key = cards[peer][str(self.rank)]
            self._tests[peer] = (int(address), int(key))
            pair.to_init(1, self.settings.pkey_index, verbs.ACCESS_ALL)
            pair.post_receive(self._test_region, 0, 0)
            theirs = Address.unpack(bytes.fromhex(packed))
            connect(pair, self._addresses[peer], theirs, self._gid, self.settings)

    def _send_and_compare(self) -> None:
        """A pattern to and from each peer, or an error that says what did not come."""
        half = self._meeting.size * _TEST_BYTES
        for peer, pair in self._pairs.items():
            at = half + peer * _TEST_BYTES
            self._test[at : at + _TEST_BYTES] = _pattern(self.rank, peer)
            address, key = self._tests[peer]
            pair.post_write(
                self._test_region, at, _TEST_BYTES, address + self.rank * _TEST_BYTES, key, imm_data=self.rank
            )
        sent, come = set(self._pairs), set(self._pairs)
        deadline = time.monotonic() + _TEST_S
        while sent or come:
            for completion in self._queue.poll(16, timeout_s=0.5):
                peer = self._by_number[completion.qp_num]
                verbs.check(completion, f"the test message to rank {peer}")
                (come if completion.opcode == verbs.WC_RECEIVE_IMM else sent).discard(peer)
            if time.monotonic() > deadline:
                raise ValueError(f"no test message came from ranks {sorted(come)} within {_TEST_S:g} s")
        for peer in self._pairs:
            at = peer * _TEST_BYTES
            if not np.array_equal(self._test[at : at + _TEST_BYTES], _pattern(peer, self.rank)):
                raise ValueError(f"the test message of rank {peer} came wrong")

    # Links.

    def links(self, peers: list[int], purpose: int) -> Links:
        """LANES links to each of `peers`, which make the same call with the same purpose."""
        opened = {r: found[0] for r, found in self._meeting.connect_all(peers, purpose, 1).items()}
        ring = ring_bytes(len(peers))
        chunk = min(ring // 2 if self.driver else ring // 4, 128 << 10)
        need = _engine.RdmaLink.bytes_needed(ring)
        count = len(peers) * LANES
        memory = allocate_alone(max(1, count) * need)
        region = self._context.register(memory)
        entries = _engine.RDMA_SENDS + _engine.RDMA_RECEIVES
        shared = self._context.create_completion_queue(max(1, count) * entries) if self.driver else None
        queues, pairs, made = [], {}, {}
        for i, (peer, lane) in enumerate((p, lane) for p in sorted(peers) for lane in range(LANES)):
            queue = shared or self._context.create_completion_queue(entries)
            pair = self._context.create_queue_pair(
                queue, queue, _engine.RDMA_SENDS, _engine.RDMA_RECEIVES, _INLINE_BYTES
            )
            pair.to_init(1, self.settings.pkey_index, verbs.ACCESS_ALL)
            port = self.driver.port(pair, region) if self.driver else pair.port()
            made[peer, lane] = _engine.RdmaLink(
                port, self.regions, region.address + i * need, region.lkey, ring,
                chunk_bytes=chunk, direct_bytes=max(ring // 4, min(2 * ring, 64 << 10)), inline_bytes=_INLINE_BYTES,
            )  # fmt: skip
            pairs[peer, lane] = pair
            if shared is None:
                queues.append(queue)
        if shared is not None:
            queues.append(shared)
            self.driver.add(shared)
        for link in made.values():
            link.open()
        if self.driver:
            self.driver.progress()
        self._connect_links(opened, pairs, made, region, need)
        capsules = {p: [made[p, lane].capsule for lane in range(LANES)] for p in peers}

        def close() -> None:
            _let_go(list(made.values()), self.driver)
            if shared is not None:
                self.driver.remove(shared, list(pairs.values()))
            for what in (*pairs.values(), *queues, region):
                what.close()

        def sent() -> tuple[int, int]:
            counts = [link.counts for link in made.values()]
            return sum(c[1] for c in counts), sum(c[2] for c in counts)

        return Links(capsules, self.allocate, self.driver, sent, close)

    def _connect_links(
        self,
        opened: dict[int, socket.socket],
        pairs: dict[tuple[int, int], Any],
        made: dict[tuple[int, int], Any],
        region: verbs.MemoryRegion,
        need: int,
    ) -> None:
        """Exchange addresses and connect; returns when the peers have, too."""
        addresses = {
            k: local_address(self._context, pair, self._gid, self.settings) for k, pair in pairs.items()
        }
        places = {k: region.address + i * need for i, k in enumerate(pairs)}
        cards = {
            p: [
                [addresses[p, lane].pack().hex(), places[p, lane], region.rkey, self.driver is not None]
                for lane in range(LANES)
            ]
            for p in opened
        }
        timeout_s = self._meeting.timeout_s
        try:
            theirs = exchange(opened, cards, timeout_s)
            for (peer, lane), pair in pairs.items():
                packed, place, key, looks = theirs[peer][lane]
                made[peer, lane].connect(int(place), int(key), bool(looks))
                connect(
                    pair,
                    addresses[peer, lane],
                    Address.unpack(bytes.fromhex(packed)),
                    self._gid,
                    self.settings,
                )
            # Nobody sends before the other side can receive.
            exchange(opened, dict.fromkeys(opened, "connected"), timeout_s)
        finally:
            for connection in opened.values():
                connection.close()

    # Memory.

    def allocate(self, nbytes: int) -> np.ndarray:
        """(nbytes,) uint8 zeros that travel without a copy; in ordinary memory where registering is refused."""
        memory = allocate_alone(1 << max(12, (nbytes - 1).bit_length()) if nbytes < 1 << 26 else nbytes)
        self.prepare(memory)
        return memory[:nbytes]

    def prepare(self, memory: np.ndarray) -> None:
        """Let memory (uint8) travel without a copy, if it may be registered; a warning says so where it may not."""
        try:
            self.register(memory)
        except verbs.VerbsError as error:
            log.warning("%s Operations on these %s bytes are copied.", error, f"{memory.nbytes:,}")

    def _add(self, memory: np.ndarray) -> verbs.MemoryRegion:
        region: verbs.MemoryRegion = self._context.register(memory)
        self.regions.add(region.address, region.length, region.lkey, region.rkey, memory)
        self._registered.append(region)
        return region

    def register(self, memory: np.ndarray) -> RemoteMemory:
        """Make memory known to the hardware, if it is not yet; what the other ranks need to write and read it."""
        address = memory.ctypes.data
        region = self._region_of(address, memory.nbytes) or self._add(memory)
        return RemoteMemory(self.rank, address, memory.nbytes, region.rkey)

    def _region_of(self, address: int, nbytes: int) -> verbs.MemoryRegion | None:
        for region in self._registered:
            if region.address <= address and address + nbytes <= region.address + region.length:
                return region
        return None

    # One-sided access.

    def write(self, local: np.ndarray, remote: RemoteMemory, offset: int = 0) -> None:
        """Write `local`, a part of registered memory, to remote memory; complete when `flush` returns."""
        self._post("post_write", local, remote, offset)

    def read(self, local: np.ndarray, remote: RemoteMemory, offset: int = 0) -> None:
        """Read remote memory into `local`, a part of registered memory; complete when `flush` returns."""
        self._post("post_read", local, remote, offset)

    def _post(self, what: str, local: np.ndarray, remote: RemoteMemory, offset: int) -> None:
        who = f"[comm.rdma] {what.replace('post', 'rdma')}"
        if remote.rank not in self._pairs:
            raise ValueError(
                f"{who}: rank {remote.rank} is no other rank of this world. Give another rank's memory."
            )
        if not local.flags.c_contiguous:
            raise ValueError(f"{who}: the array is not C-contiguous. Give a contiguous one.")
        if offset < 0 or offset + local.nbytes > remote.nbytes:
            raise ValueError(
                f"{who}: {local.nbytes:,} bytes at offset {offset:,} are not within the {remote.nbytes:,} bytes "
                f"of rank {remote.rank}. Give a part of them."
            )
        region = self._region_of(local.ctypes.data, local.nbytes)
        if region is None:
            raise ValueError(
                f"{who}: the array is in no registered memory. Register it, or allocate it with the group."
            )
        at, done = local.ctypes.data - region.address, 0
        largest = 1 << 22  # rxe, and some ports, take 8 MiB
        while done < local.nbytes:
            n = min(largest, local.nbytes - done)
            while self._posted[remote.rank] - self._ended[remote.rank] >= ONE_SIDED_SENDS:
                self._look(0.05)
            place = remote.address + offset + done
            getattr(self._pairs[remote.rank], what)(region, at + done, n, place, remote.key)
            self._posted[remote.rank] += 1
            done += n

    def flush(self, rank: int, timeout_s: float) -> None:
        """Wait until all writes to and reads from that rank are complete.

        Raises:
            WorkRequestError: one of them failed.
            CollectiveTimeoutError: the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while self._ended[rank] < self._posted[rank]:
            self._look(min(0.05, timeout_s))
            if self._ended[rank] < self._posted[rank] and time.monotonic() > deadline:
                raise CollectiveTimeoutError(
                    "comm.rdma", self.rank, f"flush to rank {rank}", timeout_s, [rank]
                )

    def _look(self, seconds: float) -> None:
        for completion in self._queue.poll(16, timeout_s=seconds):
            peer = self._by_number[completion.qp_num]
            self._ended[peer] += 1
            verbs.check(completion, f"rank {self.rank}: one-sided access to rank {peer}")

    def close(self) -> None:
        """Close the device and all that was made from it."""
        if self._context is not None:
            self._context.close()
            self._context = None
        self._registered.clear()


def _let_go(links: list[Any], driver: Any) -> None:
    """Wait until the peers have what was sent, for a queue pair that is gone sends nothing again."""
    deadline = time.monotonic() + _LAST_WORDS_S
    while not all([link.end() for link in links]) and time.monotonic() < deadline:
        if driver:
            driver.progress()
        os.sched_yield()


def _pattern(source: int, to: int) -> np.ndarray:
    return np.random.default_rng([source, to]).integers(0, 256, _TEST_BYTES, dtype=np.uint8)
