"""The verbs seam (`verbs.py`) over pyverbs, rdma-core's Python package: version 44 (Debian 12) and newer.

What this module takes care of, so that nobody else must:

- pyverbs configures the root logger when it is imported; the handlers and level of before are put back.
- It looks a logger up for each object that it makes, so for each completion, which takes more than half of the time that
  one costs: it is given one that remembers (`_remember_loggers`).
- A pyverbs work request, once made, may never be freed (before version 65), so each queue pair makes one send
  request and changes it for every post: `ibv_post_send` copies what it needs before it returns.
- The binding has no scatter entry that can be changed in a receive request: they are kept by (address, length).
- No call releases the GIL, so none that may wait is made before it is known that it won't.
- A closed pyverbs object crashes the process when it is used: what is closed is dropped at once, and the
  `AttributeError` of using None becomes the seam's error.
- `PD.pd` and `Context.context` of old versions treat a C pointer as a Python object: they are not touched.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import importlib
import logging
import os
import select
import threading
import time
import types
from collections.abc import Sequence
from socket import htonl, ntohl
from typing import Any

from cktrain.comm.transport import verbs
from cktrain.comm.transport.verbs import Completion, VerbsError

_handlers, _level = logging.root.handlers[:], logging.root.level
try:
    from pyverbs.addr import GID, AHAttr, GlobalRoute
    from pyverbs.cq import CQ
    from pyverbs.device import Context as PyverbsContext
    from pyverbs.device import get_device_list
    from pyverbs.mr import MR
    from pyverbs.pd import PD
    from pyverbs.pyverbs_error import PyverbsError, PyverbsRDMAError
    from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
    from pyverbs.wr import SGE, RecvWR, SendWR
finally:
    logging.root.handlers[:] = _handlers
    logging.root.setLevel(_level)


def _remember_loggers() -> None:
    base: Any = importlib.import_module("pyverbs.base")
    if hasattr(base, "logging"):
        remembering = functools.lru_cache(maxsize=None)(logging.getLogger)
        base.logging = types.SimpleNamespace(**{**vars(logging), "getLogger": remembering})


_remember_loggers()
NAME = "pyverbs"

# Values of <infiniband/verbs.h>: written out, since pyverbs renamed the module that holds them.
_RC = 2
_WR_WRITE, _WR_WRITE_IMM, _WR_SEND, _WR_SEND_IMM, _WR_READ, _WR_COMPARE_SWAP, _WR_FETCH_ADD = range(7)
_SIGNALED, _INLINE = 2, 8
_WITH_IMM = 2
_PORT_ACTIVE, _ETHERNET = 4, 2
_QP_STATE, _QP_ERR = 1, 6
_NAP_S = 100e-6

_new_tuple = tuple.__new__


def device_names() -> list[str]:
    """Names of the RDMA devices that libibverbs sees; none where the kernel has no RDMA."""
    try:
        return [device.name.decode() for device in get_device_list()]
    except PyverbsRDMAError:
        return []


def open_device(name: str) -> Context:
    """Open a device and make its protection domain."""
    if name not in device_names():
        raise VerbsError("ibv_open_device", errno.ENODEV, name)
    return Context(name)


def _failed(call: str, about: str, error: PyverbsError) -> VerbsError:
    return VerbsError(call, max(getattr(error, "error_code", 0), 0), about)


class Context:
    """An open device and its protection domain."""

    # Two threads that open devices at once would take each other's event descriptors for their own.
    _opening = threading.Lock()

    def __init__(self, name: str):
        self.name = name
        self._queue_pairs: list[Any] = []
        self._queues: list[Any] = []
        self._regions: list[Any] = []
        with Context._opening:
            before = _event_descriptors()
            try:
                self._context: Any = PyverbsContext(name=name)
            except PyverbsError as error:
                raise _failed("ibv_open_device", name, error) from error
            opened = _event_descriptors() - before
        # pyverbs does not tell the descriptor that asynchronous events come by; it is the one that is new.
        self._event_descriptor = opened.pop() if len(opened) == 1 else None
        self._domain = PD(self._context)

    def _open(self) -> None:
        if self._context is None:
            raise verbs.closed(f"the context of {self.name}")

    def query_device(self) -> verbs.DeviceLimits:
        """Return the device's limits."""
        self._open()
        found = self._context.query_device()
        return verbs.DeviceLimits(
            found.max_qp_wr, found.max_cqe, found.max_mr_size, found.max_qp_rd_atom, found.atomic_caps != 0
        )

    def query_port(self, port: int = 1) -> verbs.Port:
        """Return a port's state now."""
        self._open()
        try:
            found = self._context.query_port(port)
        except PyverbsError as error:
            raise _failed("ibv_query_port", f"port {port} of {self.name}", error) from error
        return verbs.Port(
            found.state == _PORT_ACTIVE,
            128 << found.active_mtu,
            found.lid,
            found.link_layer == _ETHERNET,
            found.max_msg_sz,
        )

    def register(self, buffer: Any, access: int = verbs.ACCESS_ALL) -> MemoryRegion:
        """Register a writable, contiguous buffer."""
        self._open()
        return MemoryRegion(self, buffer, access)

    def create_completion_queue(self, entries: int) -> CompletionQueue:
        """Return a queue with room for at least `entries` completions."""
        self._open()
        return CompletionQueue(self, entries)

    def create_queue_pair(
        self,
        send_queue: CompletionQueue,
        receive_queue: CompletionQueue,
        send_entries: int,
        receive_entries: int,
        inline_bytes: int = 64,
    ) -> QueuePair:
        """Return a reliable-connection queue pair in state RESET."""
        self._open()
        return QueuePair(self, send_queue, receive_queue, send_entries, receive_entries, inline_bytes)

    def events(self) -> list[str]:
        """Return the names of the asynchronous events since the last call; none where they cannot be told."""
        self._open()
        names: list[str] = []
        while self._event_descriptor is not None and select.select([self._event_descriptor], [], [], 0)[0]:
            event = self._context.get_async_event()
            event.ack()
            names.append(verbs.event_name(event.event_type))
        return names

    def close(self) -> None:
        """Close what was made from this context, queue pairs first, then the device."""
        if self._context is None:
            return
        children: list[Any] = [*self._regions, *self._queues, *self._queue_pairs]
        for child in reversed(children):
            child.close()
        self._domain.close()
        self._context.close()
        self._context = self._event_descriptor = None


def _event_descriptors() -> set[int]:
    """This process's open descriptors that are event channels of verbs."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[infinibandevent]":
                found.add(int(name))
        except OSError:
            pass  # closed meanwhile: the descriptor of the listing itself
    return found


class MemoryRegion:
    """Registered memory."""

    def __init__(self, context: Context, buffer: Any, access: int):
        self._bytes: Any = verbs.bytes_of(buffer)
        self.address = int(self._bytes.ctypes.data)
        self.length = self._bytes.size
        try:
            self._region: Any = MR(context._domain, self.length, access, address=self.address)
        except PyverbsError as error:
            raise _failed("ibv_reg_mr", f"{self.length:,} bytes for {context.name}", error) from error
        self.lkey = self._region.lkey
        self.rkey = self._region.rkey
        self._made = context._regions
        self._made.append(self)

    def close(self) -> None:
        """Take the registration back and let go of the buffer."""
        if self._region is not None:
            self._made.remove(self)
            self._region.close()
            self._region = self._bytes = None


class CompletionQueue:
    """Where finished work requests are reported."""

    def __init__(self, context: Context, entries: int):
        try:
            self._queue: Any = CQ(context._context, entries)
        except PyverbsError as error:
            raise _failed("ibv_create_cq", f"{context.name} with {entries} entries", error) from error
        self.entries = self._queue.cqe
        self._reserved = 0
        self._made = context._queues
        self._made.append(self)

    def reserve(self, entries: int) -> None:
        """Set room aside for a queue pair."""
        if self._reserved + entries > self.entries:
            raise verbs.no_room(self.entries, self._reserved, entries)
        self._reserved += entries

    def release(self, entries: int) -> None:
        """Give the room of a closed queue pair back."""
        self._reserved -= entries

    def poll(self, max_entries: int = 16, timeout_s: float = 0.0) -> list[Completion]:
        """Return finished work requests: as soon as there are any, at the latest after `timeout_s`."""
        count, found = self._poll(max_entries)
        if count == 0 and timeout_s > 0:
            began = time.monotonic()
            while count == 0:
                waited = time.monotonic() - began
                if waited >= timeout_s:
                    return []
                if waited < verbs.SPIN_S:
                    os.sched_yield()
                else:
                    time.sleep(_NAP_S)
                count, found = self._poll(max_entries)
        return [_completion(entry) for entry in found] if count else []

    def _poll(self, max_entries: int) -> tuple[int, list[Any]]:
        try:
            return self._queue.poll(max_entries)
        except PyverbsError as error:
            raise _failed("ibv_poll_cq", "a completion queue", error) from error
        except AttributeError:
            raise verbs.closed("the completion queue") from None

    def close(self) -> None:
        """Destroy the queue."""
        if self._queue is not None:
            self._made.remove(self)
            self._queue.close()
            self._queue = None


def _completion(entry: Any) -> Completion:
    status = entry.status
    if status:
        return _new_tuple(Completion, (entry.wr_id, status, 0, 0, None, entry.qp_num))
    carried = ntohl(entry.imm_data) if entry.wc_flags & _WITH_IMM else None
    return _new_tuple(Completion, (entry.wr_id, 0, entry.opcode, entry.byte_len, carried, entry.qp_num))


class _ScatterEntry(ctypes.Structure):
    """struct ibv_sge, with the attribute names of pyverbs' SGE."""

    _fields_ = (("addr", ctypes.c_uint64), ("length", ctypes.c_uint32), ("lkey", ctypes.c_uint32))


class QueuePair:
    """A reliable connection."""

    def __init__(
        self,
        context: Context,
        send_queue: CompletionQueue,
        receive_queue: CompletionQueue,
        send_entries: int,
        receive_entries: int,
        inline_bytes: int,
    ):
        self._rooms = ((send_queue, send_entries), (receive_queue, receive_entries))
        send_queue.reserve(send_entries)
        try:
            receive_queue.reserve(receive_entries)
        except ValueError:
            send_queue.release(send_entries)
            raise
        room = QPCap(
            max_send_wr=send_entries,
            max_recv_wr=receive_entries,
            max_send_sge=1,
            max_recv_sge=1,
            max_inline_data=inline_bytes,
        )
        wanted = QPInitAttr(
            qp_type=_RC, scq=send_queue._queue, rcq=receive_queue._queue, cap=room, sq_sig_all=0
        )
        try:
            self._pair: Any = QP(context._domain, wanted)
        except PyverbsError as error:
            self._release()
            raise _failed("ibv_create_qp", f"{context.name} with {send_entries} sends", error) from error
        self.number = self._pair.qp_num
        entry = SGE(0, 0, 0)
        self._send = SendWR(num_sge=1, sg=[entry], opcode=_WR_WRITE)
        self._entry = _entry_of(self._send, entry)
        self._receives: dict[tuple[int, int, int], Any] = {}
        self._made = context._queue_pairs
        self._made.append(self)

    def _release(self) -> None:
        for queue, entries in self._rooms:
            queue.release(entries)

    @property
    def state(self) -> str:
        """One of STATE_NAMES, asked of the device."""
        if self._pair is None:
            raise verbs.closed(self._about())
        return verbs.STATE_NAMES[self._pair.query(_QP_STATE)[0].qp_state]

    def to_init(self, port: int, pkey_index: int, access: int) -> None:
        """RESET -> INIT."""
        wanted = QPAttr()
        wanted.port_num, wanted.pkey_index, wanted.qp_access_flags = port, pkey_index, access
        self._modify(self._pair.to_init, wanted, "INIT")

    def to_rtr(
        self,
        *,
        peer_number: int,
        peer_psn: int,
        mtu: int,
        port: int,
        peer_lid: int,
        peer_gid: bytes | None,
        gid_index: int,
        traffic_class: int,
        hop_limit: int,
        service_level: int,
        max_reads: int,
        min_rnr_timer: int,
    ) -> None:
        """INIT -> RTR: name the peer."""
        if self.state != "INIT":  # pyverbs would try to go there by itself
            raise VerbsError("ibv_modify_qp to RTR", errno.EINVAL, self._about())
        wanted = QPAttr()
        wanted.dest_qp_num, wanted.rq_psn = peer_number, peer_psn
        wanted.path_mtu = mtu.bit_length() - 8  # 256 -> 1, 4096 -> 5
        wanted.max_dest_rd_atomic, wanted.min_rnr_timer = max_reads, min_rnr_timer
        route = None
        if peer_gid is not None:
            words = ":".join(peer_gid[i : i + 2].hex() for i in range(0, 16, 2))
            route = GlobalRoute(
                dgid=GID(words), sgid_index=gid_index, hop_limit=hop_limit, traffic_class=traffic_class
            )
        wanted.ah_attr = AHAttr(
            dlid=peer_lid, sl=service_level, port_num=port, is_global=int(route is not None), gr=route
        )
        self._modify(self._pair.to_rtr, wanted, "RTR")

    def to_rts(self, *, psn: int, timeout: int, retry_count: int, rnr_retry: int, max_reads: int) -> None:
        """RTR -> RTS: say how patiently to send."""
        if self.state != "RTR":
            raise VerbsError("ibv_modify_qp to RTS", errno.EINVAL, self._about())
        wanted = QPAttr()
        wanted.sq_psn, wanted.timeout = psn, timeout
        wanted.retry_cnt, wanted.rnr_retry, wanted.max_rd_atomic = retry_count, rnr_retry, max_reads
        self._modify(self._pair.to_rts, wanted, "RTS")

    def to_error(self) -> None:
        """Any state -> ERR."""
        wanted = QPAttr()
        wanted.qp_state = _QP_ERR
        self._modify(lambda attr: self._pair.modify(attr, _QP_STATE), wanted, "ERR")

    def _modify(self, change: Any, wanted: Any, state: str) -> None:
        try:
            change(wanted)
        except PyverbsError as error:
            raise _failed(f"ibv_modify_qp to {state}", self._about(), error) from error

    def _about(self) -> str:
        return f"queue pair {self.number}"

    def post_write(
        self,
        region: MemoryRegion,
        offset: int,
        length: int,
        remote_address: int,
        remote_key: int,
        wr_id: int = 0,
        imm_data: int | None = None,
        signaled: bool = True,
        inline: bool = False,
    ) -> None:
        """Write bytes of `region` to the peer's memory."""
        _check_inside(region, offset, length)
        place, key = region.address + offset, region.lkey
        self.post_row(place, length, key, remote_address, remote_key, wr_id, imm_data, signaled, inline)

    def post_row(
        self,
        address: int,
        length: int,
        local_key: int,
        remote_address: int,
        remote_key: int,
        wr_id: int,
        imm_data: int | None,
        signaled: bool,
        inline: bool,
    ) -> None:
        """As `post_write`, unchecked, of memory by address and key: for links, which know what is registered."""
        self._send.set_wr_rdma(remote_key, remote_address)
        opcode = _WR_WRITE if imm_data is None else _WR_WRITE_IMM
        self._post(opcode, address, length, local_key, wr_id, imm_data, signaled, inline)

    def post_writes(self, region: MemoryRegion, writes: Sequence[verbs.Write]) -> None:
        """Post several writes, in order."""
        for write in writes:
            self.post_write(region, *write)

    def post_read(
        self,
        region: MemoryRegion,
        offset: int,
        length: int,
        remote_address: int,
        remote_key: int,
        wr_id: int = 0,
        signaled: bool = True,
    ) -> None:
        """Read the peer's memory into `region`."""
        _check_inside(region, offset, length)
        self._send.set_wr_rdma(remote_key, remote_address)
        self._post(_WR_READ, region.address + offset, length, region.lkey, wr_id, None, signaled, False)

    def post_send(
        self,
        region: MemoryRegion,
        offset: int,
        length: int,
        wr_id: int = 0,
        imm_data: int | None = None,
        signaled: bool = True,
        inline: bool = False,
    ) -> None:
        """Send bytes into the buffer of the peer's next posted receive."""
        _check_inside(region, offset, length)
        opcode = _WR_SEND if imm_data is None else _WR_SEND_IMM
        self._post(opcode, region.address + offset, length, region.lkey, wr_id, imm_data, signaled, inline)

    def post_fetch_add(
        self,
        region: MemoryRegion,
        offset: int,
        remote_address: int,
        remote_key: int,
        add: int,
        wr_id: int = 0,
    ) -> None:
        """Add to 8 aligned bytes of the peer."""
        _check_inside(region, offset, 8)
        self._send.set_wr_atomic(remote_key, remote_address, add, 0)
        self._post(_WR_FETCH_ADD, region.address + offset, 8, region.lkey, wr_id, None, True, False)

    def post_compare_swap(
        self,
        region: MemoryRegion,
        offset: int,
        remote_address: int,
        remote_key: int,
        compare: int,
        swap: int,
        wr_id: int = 0,
    ) -> None:
        """Set 8 aligned bytes of the peer to `swap` if they equal `compare`."""
        _check_inside(region, offset, 8)
        self._send.set_wr_atomic(remote_key, remote_address, compare, swap)
        self._post(_WR_COMPARE_SWAP, region.address + offset, 8, region.lkey, wr_id, None, True, False)

    def _post(
        self,
        opcode: int,
        address: int,
        length: int,
        local_key: int,
        wr_id: int,
        imm_data: int | None,
        signaled: bool,
        inline: bool,
    ) -> None:
        entry, send = self._entry, self._send
        entry.addr = address
        entry.length = length
        entry.lkey = local_key
        send.num_sge = 1 if length else 0
        send.opcode = opcode
        send.wr_id = wr_id
        send.send_flags = (_SIGNALED if signaled else 0) | (_INLINE if inline else 0)
        if imm_data is not None:
            send.imm_data = htonl(imm_data)
        try:
            self._pair.post_send(send)
        except PyverbsError as error:
            raise _failed("ibv_post_send", self._about(), error) from error
        except AttributeError:
            raise verbs.closed(self._about()) from None

    def post_receive(
        self, region: MemoryRegion, offset: int, length: int, wr_id: int = 0, count: int = 1
    ) -> None:
        """Post `count` equal receives."""
        key = (region.address + offset, length, region.lkey)
        receive = self._receives.get(key)
        if receive is None:
            _check_inside(region, offset, length)
            receive = self._receives[key] = RecvWR(num_sge=1, sg=[SGE(*key)])
            receive.num_sge = 1 if length else 0
        receive.wr_id = wr_id
        try:
            for _ in range(count):
                self._pair.post_recv(receive)
        except PyverbsError as error:
            raise _failed("ibv_post_recv", self._about(), error) from error
        except AttributeError:
            raise verbs.closed(self._about()) from None

    def close(self) -> None:
        """Destroy the queue pair."""
        if self._pair is not None:
            self._made.remove(self)
            self._pair.close()
            self._pair = None
            self._release()


def _check_inside(region: MemoryRegion, offset: int, length: int) -> None:
    if offset < 0 or length < 0 or offset + length > region.length:
        raise verbs.outside(offset, length, region.length)


def _entry_of(send: Any, entry: Any) -> Any:
    """The scatter entry that `send` posts, with settable addr, length and lkey.

    Versions that tell its address own and free it, so it is changed in place; older ones can only be given
    another one, which they never free.
    """
    try:
        return _ScatterEntry.from_address(send.sg_list)
    except AttributeError:
        send.sg_list = entry
        return entry
