"""Two ends of a connection on a real device, for the tests and for the programs that they start."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
import time
from types import TracebackType

import numpy as np

from cktrain.comm.transport import verbs
from cktrain.comm.transport.gid import Gid, choose_gid
from cktrain.comm.transport.queue_pair import Address, RemoteRegion, Settings, connect, local_address
from cktrain.comm.transport.rdma_device import describe_system, read_counters
from cktrain.comm.transport.verbs import Completion, check

# Breaks after 7 * 67 ms, so that a test of failure is short; too short for work on a loaded machine.
HASTY = Settings(timeout=14, rnr_retry=2)
ADDRESSES = {"A": "10.8.0.1", "B": "10.8.0.2"}
"""Of two joined machines."""
WAIT_S = 60.0
"""How long a completion may take: the guest is emulated, and its host may be busy."""
TURN_S = 300.0
"""How long one of two processes waits for the other: the other may be in a test's longest step, and whoever gave up would
be out of step in all tests that follow."""


def gid_of(device: str) -> Gid:
    """The GID that connections of a device start from."""
    (found,) = (d for d in describe_system().devices if d.name == device)
    return choose_gid(found.ports[0].gids, device=device)


class End:
    """A context, a region over a memfd, a queue for sends and one for receives, and a queue pair."""

    def __init__(
        self,
        provider: verbs.Provider,
        device: str,
        *,
        size: int = 1 << 20,
        entries: int = 64,
        settings: Settings | None = None,
        region_access: int = verbs.ACCESS_ALL,
    ):
        self.settings = settings or Settings()
        self.context = provider.open_device(device)
        self.memory = memfd_array(size)
        self.region = self.context.register(self.memory, region_access)
        self.sends = self.context.create_completion_queue(entries)
        self.receives = self.context.create_completion_queue(entries)
        self.pair = self.context.create_queue_pair(self.sends, self.receives, entries, entries)
        self.gid = gid_of(device)
        self.address = local_address(self.context, self.pair, self.gid, self.settings)
        self.remote = RemoteRegion.of(self.region)
        self.peer: RemoteRegion

    def card(self) -> bytes:
        """What the other end must know."""
        return self.address.pack() + self.remote.pack()

    def connect(self, card: bytes, access: int = verbs.ACCESS_ALL) -> None:
        """Connect to the end whose card this is."""
        split = len(self.address.pack())
        self.peer = RemoteRegion.unpack(card[split:])
        connect(self.pair, self.address, Address.unpack(card[:split]), self.gid, self.settings, access)

    def write(self, offset: int, length: int, to: int = 0, **options: object) -> None:
        """Post a write of this end's bytes at `offset` to the peer's at `to`."""
        self.pair.post_write(
            self.region,
            offset,
            length,
            self.peer.address + to,
            self.peer.rkey,
            **options,  # type: ignore[arg-type]
        )

    def read(self, offset: int, length: int, source: int = 0) -> None:
        """Post a read of the peer's bytes at `source` to this end's at `offset`."""
        self.pair.post_read(self.region, offset, length, self.peer.address + source, self.peer.rkey)

    def finished(self, count: int = 1, *, good: bool = True) -> list[Completion]:
        """Wait for so many sends to end; good: each of them must have succeeded."""
        return wait_for(self.sends, count, good)

    def received(self, count: int = 1, *, good: bool = True) -> list[Completion]:
        """Wait for so many arrivals."""
        return wait_for(self.receives, count, good)

    def close(self) -> None:
        """Close the context and all that is in it."""
        self.context.close()


def wait_for(queue: verbs.CompletionQueue, count: int, good: bool) -> list[Completion]:
    """Poll until `count` completions are there, or the test has waited too long."""
    found: list[Completion] = []
    deadline = time.monotonic() + WAIT_S
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} completions after {WAIT_S} s"
        found += queue.poll(count - len(found), timeout_s=1.0)
    if good:
        for completion in found:
            check(completion, "test")
    return found


def loopback(provider: verbs.Provider, device: str, **options: object) -> tuple[End, End]:
    """Two connected ends on one device."""
    a, b = (End(provider, device, **options) for _ in range(2))  # type: ignore[arg-type]
    a.connect(b.card())
    b.connect(a.card())
    return a, b


def memfd_array(size: int) -> np.ndarray:
    """Bytes of a memfd, as the gradient arena's are: shared memory that other processes may map."""
    descriptor = os.memfd_create("test")
    os.ftruncate(descriptor, size)
    mapped = mmap.mmap(descriptor, size)
    os.close(descriptor)
    return np.frombuffer(mapped, np.uint8)


def counters(device: str) -> dict[str, int]:
    """The device's counters now: the kernel reads them anew only every 10 ms."""
    time.sleep(0.05)
    return read_counters(device)


class Meeting:
    """A TCP connection by which two processes exchange short messages in turn."""

    def __init__(self, role: str, host: str = "127.0.0.1", port: int = 29500):
        if role == "A":
            with socket.create_server(("", port)) as server:
                server.settimeout(TURN_S)
                self._socket = server.accept()[0]
        else:
            deadline = time.monotonic() + TURN_S
            while True:
                try:
                    self._socket = socket.create_connection((host, port), timeout=5)
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)
        self._socket.settimeout(TURN_S)

    def __enter__(self) -> Meeting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def exchange(self, message: bytes = b"") -> bytes:
        """Send a message, and return the other side's; without content it is a barrier of two."""
        self._socket.sendall(struct.pack("!I", len(message)) + message)
        (length,) = struct.unpack("!I", self._exactly(4))
        assert length < 65536
        return self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            if not part:
                raise ConnectionError("the other side is gone")
            data += part
        return data


def die_with_parent() -> None:
    """Let this process be killed when its parent ends."""
    ctypes.CDLL(None).prctl(1, 9)
