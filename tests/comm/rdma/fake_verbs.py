"""A provider of verbs (`cktrain.comm.transport.verbs`) without a device, for ranks that are threads of one process.

Writes and reads copy memory in the call that posts them; completions are lists under one lock. It is strict where
soft-RoCE is: an arrival without a posted receive, a key that is not known and a full queue are errors.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import threading
import time
from collections import deque
from typing import Any

from cktrain.comm.transport import verbs
from cktrain.comm.transport.verbs import Completion, VerbsError

NAME = "pyverbs"  # driven by the caller, as pyverbs is
_lock = threading.Lock()
_numbers = itertools.count(1)
_pairs: dict[int, Pair] = {}
_regions: dict[int, Region] = {}


def device_names() -> list[str]:
    return ["fake0"]


def open_device(name: str) -> Context:
    return Context(name)


class Region:
    def __init__(self, buffer: Any):
        self.bytes = verbs.bytes_of(buffer)
        self.address, self.length = int(self.bytes.ctypes.data), self.bytes.size
        self.lkey = self.rkey = next(_numbers)
        _regions[self.rkey] = self

    def close(self) -> None:
        _regions.pop(self.rkey, None)


class Queue:
    def __init__(self, entries: int):
        self.entries = entries
        self.found: deque[Completion] = deque()

    def poll(self, max_entries: int = 16, timeout_s: float = 0.0) -> list[Completion]:
        deadline = time.monotonic() + timeout_s
        while not self.found and time.monotonic() < deadline:
            time.sleep(1e-4)
        with _lock:
            return [self.found.popleft() for _ in range(min(max_entries, len(self.found)))]

    def close(self) -> None:
        pass


class Pair:
    def __init__(self, send_queue: Queue, receive_queue: Queue, send_entries: int):
        self.sends, self.arrivals, self.room = send_queue, receive_queue, send_entries
        self.number = next(_numbers)
        self.receives = self.used = 0
        self.state = "RESET"
        self.peer = 0
        _pairs[self.number] = self

    def to_init(self, port: int, pkey_index: int, access: int) -> None:
        self.state = "INIT"

    def to_rtr(self, *, peer_number: int, **others: Any) -> None:
        self.peer, self.state = peer_number, "RTR"

    def to_rts(self, **others: Any) -> None:
        self.state = "RTS"

    def post_receive(self, region: Region, offset: int, length: int, wr_id: int = 0, count: int = 1) -> None:
        with _lock:
            self.receives += count

    def post_write(
        self, region: Region, offset: int, length: int, remote_address: int, remote_key: int,
        wr_id: int = 0, imm_data: int | None = None, signaled: bool = True, inline: bool = False,
    ) -> None:  # fmt: skip
        with _lock:
            peer = _pairs.get(self.peer)
            self.used += 1
            if self.used > self.room:
                raise VerbsError("ibv_post_send", errno.ENOMEM, "fake")
            status = 0
            there = _regions.get(remote_key)
            if peer is None or peer.state != "RTS":
                status = 12
            elif (
                there is None or not there.address <= remote_address <= there.address + there.length - length
            ):
                status = 10
            elif imm_data is not None and peer.receives == 0:
                status = 13
            if status:
                self.state = "ERR"
                self.sends.found.append(Completion(wr_id, status, 0, 0, None, self.number))
                return
            assert peer is not None
            ctypes.memmove(remote_address, region.address + offset, length)
            if imm_data is not None:
                peer.receives -= 1
                arrival = Completion(0, 0, verbs.WC_RECEIVE_IMM, length, imm_data, peer.number)
                peer.arrivals.found.append(arrival)
            if signaled:
                self.used = 0
                self.sends.found.append(Completion(wr_id, 0, verbs.WC_WRITE, 0, None, self.number))

    def post_row(
        self, address: int, length: int, local_key: int, remote_address: int, remote_key: int,
        wr_id: int, imm_data: int | None, signaled: bool, inline: bool,
    ) -> None:  # fmt: skip
        region = _regions[local_key]
        offset = address - region.address
        assert 0 <= offset <= offset + length <= region.length
        self.post_write(region, offset, length, remote_address, remote_key, wr_id, imm_data, signaled, inline)

    def post_read(
        self, region: Region, offset: int, length: int, remote_address: int, remote_key: int,
        wr_id: int = 0, signaled: bool = True,
    ) -> None:  # fmt: skip
        with _lock:
            ctypes.memmove(region.address + offset, remote_address, length)
            self.sends.found.append(Completion(wr_id, 0, verbs.WC_READ, length, None, self.number))

    def close(self) -> None:
        self.state = "RESET"
        _pairs.pop(self.number, None)


class Context:
    def __init__(self, name: str):
        self.name = name

    def query_device(self) -> verbs.DeviceLimits:
        return verbs.DeviceLimits(1 << 14, 1 << 15, 1 << 40, 16, True)

    def query_port(self, port: int = 1) -> verbs.Port:
        return verbs.Port(True, 4096, 0, True, 1 << 23)

    def register(self, buffer: Any, access: int = verbs.ACCESS_ALL) -> Region:
        return Region(buffer)

    def create_completion_queue(self, entries: int) -> Queue:
        return Queue(entries)

    def create_queue_pair(
        self, send_queue: Queue, receive_queue: Queue, send_entries: int, receive_entries: int, inline_bytes: int = 64
    ) -> Pair:  # fmt: skip
        return Pair(send_queue, receive_queue, send_entries)

    def close(self) -> None:
        pass
