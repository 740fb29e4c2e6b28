"""The seam to RDMA: what the rdma transport needs of verbs, in small objects that two providers implement.

    provider = load_provider()                          # "native", else "pyverbs"
    context = provider.open_device("rxe0")
    region = context.register(array)                    # any writable contiguous buffer; it stays alive
    queue = context.create_completion_queue(256)
    pair = context.create_queue_pair(queue, queue, send_entries=64, receive_entries=64)
    ...                                                 # connect: cktrain.comm.transport.queue_pair
    pair.post_write(region, 0, 4096, remote_address, remote_key, wr_id=7)
    for completion in queue.poll(16, timeout_s=1.0):
        check(completion, "rank 3")                     # raises WorkRequestError
    context.close()

| provider | module | what it is |
|---|---|---|
| native | `_verbs_native` | Cython over libibverbs' C interface, which it opens when it is imported; without the GIL |
| pyverbs | `verbs_pyverbs` | rdma-core's own Python package (44 and newer); every call holds the GIL |

Both keep the same rules, and one test suite runs on both:

- `open_device` also makes the protection domain. `close` of a context closes all that was made from it, queue
  pairs first; nothing is closed by garbage collection. Close a queue pair and its regions before the memory is
  given to anyone else: a living peer may still write.
- A completion queue is never overrun: a queue pair reserves its entries on its queues when it is made.
- Only signaled sends give a completion when they succeed; every failed one does. At least one in `send_entries`
  must be signaled and polled, since only that frees the entries before it.
- `imm_data` is a number of 32 bits in the host's order; the seam turns it into network order and back.
- On an error completion only wr_id, status and qp_num mean something (InfiniBand Architecture, ibv_poll_cq(3)).
- None of the objects may be used in a forked child.
"""

from __future__ import annotations

import errno as errno_names
import importlib
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from cktrain.comm.errors import CommError
from cktrain.comm.transport import verbs_problems
from cktrain.comm.transport.verbs_problems import Problem

PROVIDERS = ("native", "pyverbs")
"""In the order in which `load_provider("auto")` tries them."""

SPIN_S = 1e-3
"""How long `CompletionQueue.poll` looks again and again before it sleeps, in seconds.

Its value decides little. A wait that is shorter never sleeps; a longer one lasts longer by one wake-up, which emulated is
0.07 ms natively and 0.34 ms with pyverbs' naps (docs/benchmarks/rdma_zen5_2cores_2026-11-20.md), and burns a processor
for no more than this, which it yields at each look. So it is a few wake-ups long.
"""

# The values below are those of <infiniband/verbs.h>, part of libibverbs' stable interface.
ACCESS_LOCAL_WRITE, ACCESS_REMOTE_WRITE, ACCESS_REMOTE_READ, ACCESS_REMOTE_ATOMIC = 1, 2, 4, 8
ACCESS_ALL = ACCESS_LOCAL_WRITE | ACCESS_REMOTE_WRITE | ACCESS_REMOTE_READ | ACCESS_REMOTE_ATOMIC

WC_SEND, WC_WRITE, WC_READ, WC_COMPARE_SWAP, WC_FETCH_ADD = 0, 1, 2, 3, 4
WC_RECEIVE, WC_RECEIVE_IMM = 128, 129
"""`Completion.opcode`: RECEIVE_IMM is the arrival of a write with immediate data."""

SUCCESS = 0
STATUS_NAMES = (
    *("SUCCESS", "LOC_LEN_ERR", "LOC_QP_OP_ERR", "LOC_EEC_OP_ERR", "LOC_PROT_ERR", "WR_FLUSH_ERR"),
    *("MW_BIND_ERR", "BAD_RESP_ERR", "LOC_ACCESS_ERR", "REM_INV_REQ_ERR", "REM_ACCESS_ERR", "REM_OP_ERR"),
    *("RETRY_EXC_ERR", "RNR_RETRY_EXC_ERR", "LOC_RDD_VIOL_ERR", "REM_INV_RD_REQ_ERR", "REM_ABORT_ERR"),
    *("INV_EECN_ERR", "INV_EEC_STATE_ERR", "FATAL_ERR", "RESP_TIMEOUT_ERR", "GENERAL_ERR", "TM_ERR"),
    "TM_RNDV_INCOMPLETE",
)
"""Name of each `Completion.status`."""

STATE_NAMES = ("RESET", "INIT", "RTR", "RTS", "SQD", "SQE", "ERR", "UNKNOWN")
"""Name of each queue pair state."""

EVENT_NAMES = (
    *("CQ_ERR", "QP_FATAL", "QP_REQ_ERR", "QP_ACCESS_ERR", "COMM_EST", "SQ_DRAINED", "PATH_MIG"),
    *("PATH_MIG_ERR", "DEVICE_FATAL", "PORT_ACTIVE", "PORT_ERR", "LID_CHANGE", "PKEY_CHANGE", "SM_CHANGE"),
    *("SRQ_ERR", "SRQ_LIMIT_REACHED", "QP_LAST_WQE_REACHED", "CLIENT_REREGISTER", "GID_CHANGE", "WQ_FATAL"),
)
"""Name of each asynchronous event."""

# What a failed completion means to the rank that sees it, and the one thing to do.
_STATUS_MEANING = {
    "LOC_LEN_ERR": (
        "a message did not fit the buffer that was posted for it",
        "Make both ranks agree on the length",
    ),
    "LOC_QP_OP_ERR": (
        "the local device could not send, which on soft-RoCE means that its interface has no link or no route",
        "Check them: ip -brief link; ip route",
    ),
    "LOC_PROT_ERR": (
        "the local buffer is not registered, or not for this use",
        "Register it with local write access",
    ),
    "WR_FLUSH_ERR": (
        "the queue pair was already broken or closed",
        "Look for the first error of this queue pair",
    ),
    "REM_INV_REQ_ERR": (
        "the peer refused the request as invalid",
        "Compare the message's length with the peer's buffer",
    ),
    "REM_ACCESS_ERR": (
        "the peer's memory region does not allow this access",
        "Check its rkey, its bounds, and that it was registered with the remote access flags",
    ),
    "REM_OP_ERR": ("the peer could not complete the operation", "Read the peer's log"),
    "RETRY_EXC_ERR": (
        "the peer did not answer, and the retries are used up",
        "Check that the peer is alive and that UDP port 4791 (RoCEv2) passes between the hosts",
    ),
    "RNR_RETRY_EXC_ERR": (
        "the peer had no receive posted, and the retries are used up",
        "Post receives before the peer sends",
    ),
}

# What a failed call most often means; the key is (function, errno name).
_MAY_NOT_OPEN = "Give this user read and write access to /dev/infiniband/uverbs* (udev rules of rdma-core)"
_CALL_MEANING = {
    ("ibv_open_device", "EACCES"): _MAY_NOT_OPEN,
    (
        "ibv_open_device",
        "ENOENT",
    ): _MAY_NOT_OPEN,  # what libibverbs says when every way to the device is refused
    ("ibv_reg_mr", "ENOMEM"): "Raise the limit of locked memory: ulimit -l unlimited",
    ("ibv_reg_mr", "EFAULT"): "Register memory that is mapped and writable",
    ("ibv_create_qp", "ENOMEM"): "Ask for fewer entries, or close queue pairs that are not needed",
    ("ibv_create_cq", "EINVAL"): "Ask for fewer entries",
    ("ibv_post_send", "ENOMEM"): "Poll completions before posting more, or make the send queue longer",
    ("ibv_post_recv", "ENOMEM"): "Post fewer receives, or make the receive queue longer",
}


class Completion(NamedTuple):
    """One finished work request."""

    wr_id: int
    """The number given when it was posted."""
    status: int
    """0, or an index into STATUS_NAMES."""
    opcode: int
    """WC_*."""
    byte_len: int
    """Bytes received or read."""
    imm_data: int | None
    """Immediate data of the peer's write or send, if it carried any."""
    qp_num: int
    """`QueuePair.number` of the queue pair that it belongs to."""


class Write(NamedTuple):
    """One of the writes that `QueuePair.post_writes` posts; the fields are the arguments of `post_write`."""

    offset: int
    length: int
    remote_address: int
    remote_key: int
    wr_id: int = 0
    imm_data: int | None = None
    signaled: bool = True


class Port(NamedTuple):
    """State of a device's port."""

    active: bool
    active_mtu: int
    """Bytes of payload in a packet: 256 to 4096."""
    lid: int
    """InfiniBand's local identifier; 0 on Ethernet."""
    ethernet: bool
    """RoCE, as opposed to InfiniBand."""
    max_message: int
    """Bytes of the longest message."""


class DeviceLimits(NamedTuple):
    """What a device can do at most."""

    max_queue_entries: int
    """Entries of a send or receive queue."""
    max_completion_entries: int
    """Entries of a completion queue."""
    max_region_bytes: int
    """Bytes of a memory region."""
    max_reads: int
    """Reads and atomics in flight on a queue pair."""
    atomics: bool
    """Whether 8-byte atomics are supported."""


class MemoryRegion(Protocol):
    """Registered memory. `address` and `rkey` are what a peer needs to write or read it."""

    address: int
    length: int
    lkey: int
    rkey: int

    def close(self) -> None:
        """Take the registration back and let go of the buffer."""


class CompletionQueue(Protocol):
    """Where finished work requests are reported."""

    entries: int

    def poll(self, max_entries: int = 16, timeout_s: float = 0.0) -> list[Completion]:
        """Return finished work requests: as soon as there are any, at the latest after `timeout_s`.

        It spins for SPIN_S, yielding the processor at each turn, and then sleeps: the native provider on the
        completion channel, pyverbs (which has none that can wait with a deadline) in naps of 100 us.

        Raises:
            VerbsError: the queue is broken.
        """

    def close(self) -> None:
        """Destroy the queue; its queue pairs must be closed."""


class QueuePair(Protocol):
    """A reliable connection (RC). RESET -> INIT -> RTR (may receive) -> RTS (may send); ERR after a failure."""

    number: int
    """24 bits; what the peer addresses."""

    @property
    def state(self) -> str:
        """One of STATE_NAMES, asked of the device."""

    def to_init(self, port: int, pkey_index: int, access: int) -> None:
        """RESET -> INIT: from here on receives may be posted. `access` is what peers may do: ACCESS_*."""

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
        """INIT -> RTR: name the peer. Without `peer_gid` (InfiniBand in one subnet) the LID is the address."""

    def to_rts(self, *, psn: int, timeout: int, retry_count: int, rnr_retry: int, max_reads: int) -> None:
        """RTR -> RTS: say how patiently to send."""

    def to_error(self) -> None:
        """Any state -> ERR: whatever is posted completes with WR_FLUSH_ERR."""

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
        """Write `length` bytes of `region` at `offset` to the peer's memory.

        With `imm_data` the peer's completion queue hears of it, and one of its posted receives is used up.
        With `inline` the bytes are copied while posting, and the buffer may be changed at once.

        Raises:
            ValueError: the bytes are not within the region.
            VerbsError: the send queue is full (ENOMEM) or the queue pair is not in RTS.
        """

    def post_writes(self, region: MemoryRegion, writes: Sequence[Write]) -> None:
        """Post several writes, in order, with one call into the library (native)."""

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
        """Read `length` bytes of the peer's memory into `region` at `offset`."""

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

    def post_receive(
        self, region: MemoryRegion, offset: int, length: int, wr_id: int = 0, count: int = 1
    ) -> None:
        """Post `count` equal receives. Length 0 will do for writes with immediate data."""

    def post_fetch_add(
        self,
        region: MemoryRegion,
        offset: int,
        remote_address: int,
        remote_key: int,
        add: int,
        wr_id: int = 0,
    ) -> None:
        """Add to 8 aligned bytes of the peer; their old value comes to `offset`. Atomic among RDMA peers only."""

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
        """Set 8 aligned bytes of the peer to `swap` if they equal `compare`; the old value comes to `offset`."""

    def close(self) -> None:
        """Destroy the queue pair. What it had posted is never reported."""


class Context(Protocol):
    """An open device and its protection domain."""

    name: str

    def query_device(self) -> DeviceLimits:
        """Return the device's limits."""

    def query_port(self, port: int = 1) -> Port:
        """Return a port's state now."""

    def register(self, buffer: Any, access: int = ACCESS_ALL) -> MemoryRegion:
        """Register a writable, contiguous buffer (numpy array, memoryview of a memfd's mapping).

        The region keeps the buffer alive and pins its pages, which count against RLIMIT_MEMLOCK.

        Raises:
            ValueError: the buffer is empty, read-only or not contiguous.
            VerbsError: too much locked memory (ENOMEM), or the device refuses.
        """

    def create_completion_queue(self, entries: int) -> CompletionQueue:
        """Return a queue with room for at least `entries` completions."""

    def create_queue_pair(
        self,
        send_queue: CompletionQueue,
        receive_queue: CompletionQueue,
        send_entries: int,
        receive_entries: int,
        inline_bytes: int = 64,
    ) -> QueuePair:
        """Return a reliable-connection queue pair in state RESET.

        Raises:
            ValueError: the completion queues have no room left for that many entries.
            VerbsError: the device refuses.
        """

    def events(self) -> list[str]:
        """Return the names of the asynchronous events since the last call (see EVENT_NAMES); never waits."""

    def close(self) -> None:
        """Close the queue pairs, completion queues and regions made from it, then the device."""


class Provider(Protocol):
    """A module that opens devices."""

    NAME: str

    def device_names(self) -> list[str]:
        """Names of the RDMA devices that libibverbs sees."""

    def open_device(self, name: str) -> Context:
        """Open a device and make its protection domain.

        Raises:
            VerbsError: there is no such device (ENODEV), or this user may not open it (EACCES).
        """


# ------------------------------------------------------------------------------------------------------- errors


class VerbsError(CommError):
    """A call of libibverbs failed: `call`, `code` (errno) and what it was about."""

    def __init__(self, call: str, code: int, about: str):
        self.call = call
        self.code = code
        name = errno_names.errorcode.get(code, f"error {code}")
        text = f"{os.strerror(code)} ({name})" if code > 0 else "the library gave no reason"
        remedy = _CALL_MEANING.get((call, name), "Run `cktrain doctor`")
        super().__init__("comm.rdma", f"{call} on {about} failed: {text}", remedy)


class WorkRequestError(CommError):
    """A work request ended with an error; `status` names it, e.g. "REM_ACCESS_ERR". The queue pair is broken."""

    def __init__(self, completion: Completion, about: str):
        self.completion = completion
        self.status = status_name(completion.status)
        meaning, remedy = _STATUS_MEANING.get(
            self.status, ("the device reported an error", "Read the kernel's log: dmesg")
        )
        super().__init__(
            "comm.rdma",
            f"{about}: work request {completion.wr_id} on queue pair {completion.qp_num} failed with "
            f"{self.status}: {meaning}",
            remedy,
        )


def check(completion: Completion, about: str) -> None:
    """Raise WorkRequestError if `completion` is a failed one; `about` names the peer or the operation."""
    if completion[1] != SUCCESS:
        raise WorkRequestError(completion, about)


def status_name(status: int) -> str:
    """Return the name of a completion's status."""
    return STATUS_NAMES[status] if 0 <= status < len(STATUS_NAMES) else f"status {status}"


# ----------------------------------------------------------------------------------- what both providers check


def bytes_of(buffer: Any) -> np.ndarray:
    """Return an array of uint8 over a buffer that is to be registered; it keeps the buffer alive.

    Raises:
        ValueError: the buffer is empty, read-only or not contiguous.
    """
    if isinstance(buffer, np.ndarray):  # its own view, since some dtypes (bfloat16) have no memoryview
        contiguous, readonly, size = buffer.flags.c_contiguous, not buffer.flags.writeable, buffer.nbytes
    else:
        buffer = memoryview(buffer)
        contiguous, readonly, size = buffer.c_contiguous, buffer.readonly, buffer.nbytes
    if readonly or not contiguous or size == 0:
        raise ValueError(
            f"[comm.rdma] a buffer of {size:,} bytes (contiguous: {contiguous}, read-only: {readonly}) cannot be "
            "registered. Give a writable contiguous one."
        )
    if isinstance(buffer, np.ndarray):
        return buffer.reshape(-1).view(np.uint8)
    return np.frombuffer(buffer, np.uint8)


def outside(offset: int, length: int, region_length: int) -> ValueError:
    """Return the error of bytes that are not within their region."""
    return ValueError(
        f"[comm.rdma] {length:,} bytes at offset {offset:,} are not within a region of {region_length:,} bytes. "
        "Give bytes of the region."
    )


def closed(what: str) -> ValueError:
    """Return the error of using something after its `close`."""
    return ValueError(f"[comm.rdma] {what} is closed. Make a new one.")


def no_room(entries: int, taken: int, wanted: int) -> ValueError:
    """Return the error of a queue pair that its completion queue could not serve."""
    return ValueError(
        f"[comm.rdma] a completion queue of {entries} entries, {taken} of them taken, has no room for {wanted} "
        "more. Make it longer."
    )


def event_name(event: int) -> str:
    """Return the name of an asynchronous event."""
    return EVENT_NAMES[event] if 0 <= event < len(EVENT_NAMES) else f"event {event}"


# ---------------------------------------------------------------------------------------------------- providers


def load_provider(name: str = "auto") -> Provider:
    """Return the named provider, or with "auto" the first of PROVIDERS that loads.

    Raises:
        ValueError: there is no provider of that name.
        ProviderError: none loads; the message has the reason and the remedy of each.
    """
    if name != "auto" and name not in PROVIDERS:
        raise ValueError(
            f"[comm.rdma] provider {name!r} is unknown. Give one of auto, {', '.join(PROVIDERS)}."
        )
    problems = {}
    for candidate in PROVIDERS if name == "auto" else (name,):
        try:
            return _load(candidate)
        except ProviderError as error:
            problems.update(error.problems)
    raise ProviderError(problems)


def _load(name: str) -> Provider:
    module = {"native": "_verbs_native", "pyverbs": "verbs_pyverbs"}[name]
    try:
        return importlib.import_module(f"cktrain.comm.transport.{module}")
    except ImportError as error:
        raise ProviderError({name: verbs_problems.explain_import(name, error)}) from error


class ProviderError(CommError):
    """No provider of verbs loads; `problems` maps each that was tried to why, and what to do."""

    def __init__(self, problems: dict[str, Problem]):
        self.problems = problems
        super().__init__(
            "comm.rdma",
            "no RDMA verbs: " + "; ".join(f"{name}: {problem.reason}" for name, problem in problems.items()),
            "; or ".join(problem.remedy for problem in problems.values()),
        )
