"""Group over MPI, by mpi4py's nonblocking buffer operations.

**MPI moves bytes; the arithmetic is ours.** MPI does not promise that an all-reduce gives the same bits for
another length or on all ranks; Open MPI 5.0 in fact sums in an order that changes with the length and the
number of ranks. Every reduction here is `reduce_in_rank_order` on the rank that owns the element. That also
gives bf16 (which MPI does not know) its fp32 accumulation, and lengths beyond MPI's 2^31 counts, since long
messages are cut.

| operation | how | bytes sent per rank (S = whole array) |
|---|---|---|
| all_reduce, small | all-gather, then every rank reduces all | (size-1)·S |
| all_reduce | reduce-scatter, then all-gather | 2·S·(size-1)/size |
| reduce_scatter | segments straight to their owner, reduced while the next ones travel | S·(size-1)/size |
| all_gather, all_to_all | each part straight to each rank | S·(size-1)/size |

**Nothing blocks inside MPI.** An operation is a generator that posts nonblocking requests, yields them, and
goes on when they are complete; `_Progress` tests them until the deadline. The collectives of one group run
one after another in the order of the calls, which all ranks share; those of different groups, and send/recv,
run beside each other, and a wait for any of them moves all of them.

**Set-up.** MPI is initialized for THREAD_SERIALIZED: a Work may be waited for by another thread than the one
that started it, never by two at once, and no MPI pays for locks. mpi4py's own finalization at exit is
switched off: it would make a rank that dies of an exception wait in MPI_Finalize for ranks that wait for it.
`close` finalizes; a process that exits without it is taken for dead by mpirun, which then stops the others.
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import NoReturn

import mpi4py
import numpy as np

from cktrain.comm.all_to_all import spell_pair
from cktrain.comm.errors import CollectiveMismatchError, CollectiveTimeoutError, CommError
from cktrain.comm.group import Group, even_counts, offsets_of
from cktrain.comm.reduction import reduce_in_rank_order
from cktrain.comm.solo_group import SoloGroup
from cktrain.comm.work import Work

mpi4py.rc(initialize=False, finalize=False)
from mpi4py import MPI  # noqa: E402  (rc must be set first)

# Requests to complete before the generator goes on.
_Steps = Generator[list[MPI.Request], None, None]

_WHERE = "comm.mpi"
_COLLECTIVE_TAG = 0
_MESSAGE_TAG = 1
# MPI counts are 32-bit; 1 GiB pieces stay clear of that in any datatype.
_MAX_MESSAGE_BYTES = 1 << 30
# Up to here one round trip is taken to cost less than two with less traffic; the border is not measured.
_SMALL_BYTES = 16 << 10
# Two buffers of one segment per rank: at most 1 MiB each, and 16 MiB in all however many ranks. With two
# ranks and 64 MB that was faster than 256 KiB and than no segments, and about a tenth slower than 4 MiB.
_WORKSPACE_BYTES = 16 << 20
_MAX_SEGMENT_BYTES = 1 << 20
_FINGERPRINT_BYTES = 128

# A waiting rank yields its core at each test for the first while, then sleeps ever longer between tests.
_SPIN_S = 500e-6
_FIRST_SLEEP_S = 50e-6
_LAST_SLEEP_S = 500e-6
# A test that took longer than this has moved data (an empty one takes about 1 us), so more is on its way.
_BUSY_TEST_S = 10e-6


def start() -> bool:
    """Initialize MPI; False where the program has done so, and will also finalize it."""
    if MPI.Is_initialized():
        return False
    MPI.Init_thread(MPI.THREAD_SERIALIZED)
    return True


def init_world(timeout_s: float, check: bool, *, started: bool = False) -> MPIGroup:
    """Return the group of all ranks; closing it finalizes MPI if this, or a `start` before it, initialized MPI."""
    owner = start() or started
    # A communicator of our own: its messages cannot meet the program's. Idup, because Dup has no deadline.
    comm, request = MPI.COMM_WORLD.Idup()
    deadline = time.monotonic() + timeout_s
    while not request.Test():
        if time.monotonic() > deadline:
            raise CollectiveTimeoutError(_WHERE, MPI.COMM_WORLD.rank, "joining the world", timeout_s)
        time.sleep(_FIRST_SLEEP_S)
    return MPIGroup(comm, "world", timeout_s, check=check, finalize=owner)


def library() -> str:
    """Name and version of the MPI that mpi4py has loaded."""
    return MPI.Get_library_version().split(",")[0].splitlines()[0].strip()


def spread(data: bytes | None) -> bytes:
    """Give rank 0's `data` (at most 1 KiB) to all ranks of MPI's world, before there is a group."""
    start()
    buffer = np.zeros(1024 + 2, np.uint8)
    if data is not None:
        assert len(data) <= 1024
        buffer[:2] = np.frombuffer(struct.pack("<H", len(data)), np.uint8)
        buffer[2 : 2 + len(data)] = np.frombuffer(data, np.uint8)
    MPI.COMM_WORLD.Bcast([buffer, MPI.BYTE], root=0)
    (length,) = struct.unpack("<H", buffer[:2].tobytes())
    return buffer[2 : 2 + length].tobytes()


def gather(data: bytes) -> list[bytes]:
    """Every rank's `data`, in the order of ranks, before there is a group; MPI must have been started."""
    lengths = np.zeros(MPI.COMM_WORLD.size, np.int32)
    MPI.COMM_WORLD.Allgather(np.array([len(data)], np.int32), lengths)
    every = np.zeros(int(lengths.sum()), np.uint8)
    MPI.COMM_WORLD.Allgatherv([np.frombuffer(data, np.uint8), MPI.BYTE], [every, lengths, MPI.BYTE])
    return [part.tobytes() for part in np.split(every, np.cumsum(lengths)[:-1])]


def plain_all_reduce(array: np.ndarray) -> Callable[[], None]:
    """MPI's own Allreduce of an fp32 array, in place over all ranks, as a call to be measured beside ours."""
    start()
    comm = MPI.COMM_WORLD
    return lambda: comm.Allreduce(MPI.IN_PLACE, [array, MPI.FLOAT])


def finalize_plain() -> None:
    """Let the process end under mpirun after `spread`, `gather` or `plain_all_reduce`; nothing where MPI does not run."""
    if MPI.Is_initialized() and not MPI.Is_finalized():
        MPI.Finalize()


class MPIGroup(Group):
    """A group whose bytes travel by MPI."""

    def __init__(
        self,
        comm: MPI.Intracomm,
        name: str,
        timeout_s: float,
        *,
        check: bool = False,
        finalize: bool = False,
        progress: _Progress | None = None,
        max_message_bytes: int = _MAX_MESSAGE_BYTES,
        segment_bytes: int | None = None,
    ):
        """Make a group of the ranks of `comm`, which from now on belongs to the group.

        Args:
            comm: a communicator that nobody else uses.
            name: for messages.
            timeout_s: deadline of every wait, seconds.
            check: compare the calls of all ranks before each collective.
            finalize: `close` finalizes MPI.
            progress: the process's pending operations, shared by its groups; None for the first group.
            max_message_bytes: longer messages are cut.
            segment_bytes: what a rank receives at a time from each other in a reduction; None: by size.
        """
        super().__init__(comm.Get_rank(), comm.Get_size(), name, timeout_s)
        self._comm = comm
        self._check = check
        self._finalize = finalize
        self._max_message_bytes = max_message_bytes
        self._segment_bytes = segment_bytes or min(_MAX_SEGMENT_BYTES, _WORKSPACE_BYTES // (2 * self.size))
        self._progress = _Progress() if progress is None else progress
        self._queue: deque[_Operation] = deque()
        self._progress.queues.append(self._queue)
        self._workspace = np.empty(0, np.uint8)
        self._failure: CommError | None = None
        # Operations that failed in MPI: their requests may still write, so their arrays must live on.
        self._failed: list[_Operation] = []
        self._closed = False

    # Control data.

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """Return every rank's `data`, in the order of ranks."""
        result: list[bytes] = []
        self._start("all_gather_bytes", self._gather_bytes_steps(bytes(data), result)).wait()
        return result

    def broadcast_bytes(self, data: bytes, root: int = 0) -> bytes:
        """Return rank `root`'s `data` on every rank."""
        self._check_rank("broadcast_bytes", "root", root)
        result: list[bytes] = []
        self._start(f"broadcast_bytes(root={root})", self._broadcast_bytes_steps(data, root, result)).wait()
        return result[0]

    # Membership and lifetime.

    def split(self, color: int, key: int = 0) -> Group:
        """Return the group of the ranks that gave the same `color`, ordered by (key, rank)."""
        self._check_color(color)
        answers = [struct.unpack("<qq", x) for x in self.all_gather_bytes(struct.pack("<qq", color, key))]
        members = sorted((k, rank) for rank, (c, k) in enumerate(answers) if c == color)
        name = f"{self.name}.{color}"
        if len(members) == 1:
            return SoloGroup(name, self.timeout_s)
        world = self._comm.Get_group()
        part = world.Incl([rank for _, rank in members])
        # This one call blocks inside MPI; all members have just taken part in the exchange above.
        comm = self._comm.Create_group(part, tag=0)
        part.Free()
        world.Free()
        return MPIGroup(
            comm,
            name,
            self.timeout_s,
            check=self._check,
            progress=self._progress,
            max_message_bytes=self._max_message_bytes,
            segment_bytes=self._segment_bytes,
        )

    def close(self) -> None:
        """End the use of this group; the world's close also finalizes MPI."""
        if self._closed:
            return
        self.barrier()
        self._closed = True
        # By identity: two empty queues are equal.
        self._progress.queues = [queue for queue in self._progress.queues if queue is not self._queue]
        self._comm.Free()
        if self._finalize:
            MPI.Finalize()

    def abort(self, code: int) -> NoReturn:
        """End all ranks of the job, through MPI_Abort."""
        if MPI.Is_finalized():
            os._exit(code)
        MPI.COMM_WORLD.Abort(code)
        raise AssertionError("MPI_Abort returned")

    # Start the operations.

    def _all_reduce(self, array: np.ndarray, op: str) -> Work:
        if array.nbytes <= _SMALL_BYTES:
            steps = self._small_all_reduce_steps(array, op)
        else:
            steps = self._all_reduce_steps(array, op)
        return self._start(f"all_reduce({_spell(array)}, {op})", steps)

    def _reduce_scatter(self, output: np.ndarray, input: np.ndarray, op: str, counts: list[int]) -> Work:
        call = f"reduce_scatter({_spell(input)}, {op}, {_spell_counts(counts)})"
        return self._start(call, self._reduce_scatter_steps(output, input, op, counts))

    def _all_gather(self, output: np.ndarray, input: np.ndarray, counts: list[int]) -> Work:
        call = f"all_gather({_spell(output)}, {_spell_counts(counts)})"
        return self._start(call, self._all_gather_steps(output, input, counts))

    def _broadcast(self, array: np.ndarray, root: int) -> Work:
        return self._start(f"broadcast({_spell(array)}, root={root})", self._broadcast_steps(array, root))

    def _all_to_all(
        self, output: np.ndarray, input: np.ndarray, output_counts: list[int], input_counts: list[int]
    ) -> Work:
        operation = _Operation(self, f"all_to_all({_spell(input)})", [])
        operation.steps = self._all_to_all_steps(operation, output, input, output_counts, input_counts)
        if self._check:  # lengths are each pair's own, so what all ranks compare first has none
            operation.steps = self._checked_steps(f"all_to_all({input.dtype})", operation.steps)
        return self._launch(operation, message=False)

    def _barrier(self) -> Work:
        return self._start("barrier", self._barrier_steps())

    def _send(self, array: np.ndarray, to: int) -> Work:
        call = f"send({_spell(array)}, to={to})"
        return self._start(call, self._send_steps(array, to), message=True)

    def _recv(self, array: np.ndarray, source: int) -> Work:
        call = f"recv({_spell(array)}, source={source})"
        statuses: list[MPI.Status] = []
        operation = _Operation(self, call, statuses)
        operation.steps = self._recv_steps(array, source, call, statuses)
        return self._launch(operation, message=True)

    def _start(self, call: str, steps: _Steps, message: bool = False) -> Work:
        operation = _Operation(self, call)
        operation.steps = steps if message else self._checked_steps(call, steps)
        return self._launch(operation, message)

    def _launch(self, operation: _Operation, message: bool) -> Work:
        self._raise_if_unusable(operation.call)
        if message:
            self._progress.messages.append(operation)
        else:
            self._queue.append(operation)
        # Post the first requests now, so that they travel while the caller computes.
        self._progress.poll()
        return operation

    def _raise_if_unusable(self, call: str) -> None:
        if self._closed:
            raise ValueError(f"[comm.{self.name}] {call}: the group is closed. Call it before close().")
        if self._failure is not None:
            raise self._failure

    # The operations, each a generator of requests.

    def _checked_steps(self, call: str, steps: _Steps) -> _Steps:
        """Compare what the ranks called, when asked to, before any payload moves."""
        if self._check:
            mine = np.zeros(_FINGERPRINT_BYTES, np.uint8)
            text = call.encode()[:_FINGERPRINT_BYTES]
            mine[: len(text)] = np.frombuffer(text, np.uint8)
            every = np.empty((self.size, _FINGERPRINT_BYTES), np.uint8)
            yield [self._comm.Iallgather([mine, MPI.BYTE], [every, MPI.BYTE])]
            calls = [bytes(row).rstrip(b"\0").decode() for row in every]
            differing = {rank: other for rank, other in enumerate(calls) if other != calls[self.rank]}
            if differing:
                raise CollectiveMismatchError(_WHERE, self.rank, calls[self.rank], differing)
        yield from steps

    def _small_all_reduce_steps(self, array: np.ndarray, op: str) -> _Steps:
        rows = self._scratch(array.dtype, self.size * array.size).reshape(self.size, array.size)
        yield [self._comm.Iallgather([_octets(array), MPI.BYTE], [_octets(rows), MPI.BYTE])]
        reduce_in_rank_order(array, list(rows), op)

    def _all_reduce_steps(self, array: np.ndarray, op: str) -> _Steps:
        counts = even_counts(array.size, self.size)
        part = _part(array, counts, self.rank)
        yield from self._reduce_scatter_steps(part, array, op, counts)
        yield from self._all_gather_steps(array, part, counts)

    def _reduce_scatter_steps(
        self, output: np.ndarray, input: np.ndarray, op: str, counts: Sequence[int]
    ) -> _Steps:
        segment = max(1, self._segment_bytes // input.itemsize)
        # Two receive buffers (size, segment): one is reduced while the other one fills. The own row stays
        # empty.
        rows = self._scratch(input.dtype, 2 * self.size * segment).reshape(2, self.size, segment)
        offsets = offsets_of(counts)

        def post(begin: int) -> list[MPI.Request]:
            """Exchange elements begin .. begin+segment of every rank's part."""
            lengths = [max(0, min(segment, count - begin)) for count in counts]
            buffer = rows[(begin // segment) % 2]
            return self._exchange(
                [input[o + begin : o + begin + n] for o, n in zip(offsets, lengths, strict=True)],
                [buffer[r, : lengths[self.rank]] for r in range(self.size)],
            )

        begins = range(0, max(counts), segment)
        posted = post(0)
        for begin in begins:
            following = post(begin + segment) if begin + segment < max(counts) else []
            yield posted
            posted = following
            out = output[begin : begin + segment]
            own = _part(input, counts, self.rank)[begin : begin + segment]
            buffer = rows[(begin // segment) % 2]
            contributions = [own if r == self.rank else buffer[r, : out.size] for r in range(self.size)]
            reduce_in_rank_order(out, contributions, op)

    def _all_gather_steps(self, output: np.ndarray, input: np.ndarray, counts: Sequence[int]) -> _Steps:
        parts = [_part(output, counts, r) for r in range(self.size)]
        requests = self._exchange([input] * self.size, parts)
        if input.ctypes.data != parts[self.rank].ctypes.data:
            parts[self.rank][:] = input
        yield requests

    def _all_to_all_steps(
        self,
        operation: _Operation,
        output: np.ndarray,
        input: np.ndarray,
        received: list[int],
        sent: list[int],
    ) -> _Steps:
        if self._check:
            yield from self._compare_counts_steps(operation.call, input.dtype, received, sent)
        theirs = [_part(output, received, r) for r in range(self.size)]
        ours = [_part(input, sent, r) for r in range(self.size)]
        # An empty part is an empty message, which tells the receiver so.
        requests = self._exchange(ours, theirs, empty=True)
        theirs[self.rank][:] = ours[self.rank]
        yield requests
        statuses = iter(operation.statuses or [])
        for distance in range(1, self.size):
            peer = (self.rank - distance) % self.size
            pieces = self._pieces(theirs[peer]) or [theirs[peer]]
            got = sum(next(statuses).Get_count(MPI.BYTE) for _ in pieces) // input.itemsize
            if got != received[peer]:
                mine = spell_pair(str(input.dtype), sent[peer], received[peer], peer)
                call = {peer: f"all_to_all({input.dtype}, {got:,} to rank {self.rank})"}
                raise CollectiveMismatchError(_WHERE, self.rank, mine, call)

    def _compare_counts_steps(
        self, call: str, dtype: np.dtype, received: list[int], sent: list[int]
    ) -> _Steps:
        """Let every rank see the counts of all, before any payload moves."""
        every = np.empty((self.size, 2, self.size), np.int64)
        yield [self._comm.Iallgather([np.array([sent, received]), MPI.INT64_T], [every, MPI.INT64_T])]
        for a, b in zip(*np.nonzero(every[:, 0] != every[:, 1].T), strict=True):
            called = {
                r: spell_pair(str(dtype), int(every[r, 0, peer]), int(every[r, 1, peer]), peer)
                for r, peer in ((int(a), int(b)), (int(b), int(a)))
            }
            raise CollectiveMismatchError(_WHERE, self.rank, called.pop(self.rank, call), called)

    def _broadcast_steps(self, array: np.ndarray, root: int) -> _Steps:
        for piece in self._pieces(array):
            yield [self._comm.Ibcast([piece, MPI.BYTE], root=root)]

    def _barrier_steps(self) -> _Steps:
        yield [self._comm.Ibarrier()]

    def _send_steps(self, array: np.ndarray, to: int) -> _Steps:
        # An empty array is one empty message, so that it cannot be taken for the next one.
        pieces = self._pieces(array) or [_octets(array)]
        yield [self._comm.Isend([piece, MPI.BYTE], to, _MESSAGE_TAG) for piece in pieces]

    def _recv_steps(self, array: np.ndarray, source: int, call: str, statuses: list[MPI.Status]) -> _Steps:
        pieces = self._pieces(array) or [_octets(array)]
        yield [self._comm.Irecv([piece, MPI.BYTE], source, _MESSAGE_TAG) for piece in pieces]
        received = sum(status.Get_count(MPI.BYTE) for status in statuses)
        if received != array.nbytes:
            theirs = {source: f"send of {received:,} bytes"}
            raise CollectiveMismatchError(_WHERE, self.rank, f"{call} of {array.nbytes:,} bytes", theirs)

    def _gather_bytes_steps(self, data: bytes, result: list[bytes]) -> _Steps:
        lengths = np.empty(self.size, np.int64)
        yield [self._comm.Iallgather([np.array([len(data)], np.int64), MPI.INT64_T], [lengths, MPI.INT64_T])]
        counts = lengths.tolist()
        every = np.empty(sum(counts), np.uint8)
        yield from self._all_gather_steps(every, np.frombuffer(data, np.uint8), counts)
        result += [_part(every, counts, r).tobytes() for r in range(self.size)]

    def _broadcast_bytes_steps(self, data: bytes, root: int, result: list[bytes]) -> _Steps:
        length = np.array([len(data)], np.int64)
        yield [self._comm.Ibcast([length, MPI.INT64_T], root=root)]
        buffer = np.frombuffer(data, np.uint8) if self.rank == root else np.empty(int(length[0]), np.uint8)
        yield from self._broadcast_steps(buffer, root)
        result.append(buffer.tobytes())

    # Messages and memory.

    def _exchange(
        self, sends: Sequence[np.ndarray], receives: Sequence[np.ndarray], empty: bool = False
    ) -> list[MPI.Request]:
        """Post sends[r] to and receives[r] from every other rank r, the receives first; each rank begins with its
        neighbour, so that not all of them press on rank 0 at once. With `empty`, empty arrays are messages, too.
        """

        def pieces(array: np.ndarray) -> list[np.ndarray]:
            return self._pieces(array) or [_octets(array)] * empty

        requests = []
        for distance in range(1, self.size):
            peer = (self.rank - distance) % self.size
            for piece in pieces(receives[peer]):
                requests.append(self._comm.Irecv([piece, MPI.BYTE], peer, _COLLECTIVE_TAG))
        for distance in range(1, self.size):
            peer = (self.rank + distance) % self.size
            for piece in pieces(sends[peer]):
                requests.append(self._comm.Isend([piece, MPI.BYTE], peer, _COLLECTIVE_TAG))
        return requests

    def _pieces(self, array: np.ndarray) -> list[np.ndarray]:
        """Cut the array's bytes into messages; none for an empty array."""
        octets = _octets(array)
        step = self._max_message_bytes
        return [octets[begin : begin + step] for begin in range(0, octets.size, step)]

    def _scratch(self, dtype: np.dtype, count: int) -> np.ndarray:
        """Return `count` elements of the workspace. One is enough: a group's collectives run one by one."""
        nbytes = count * dtype.itemsize
        if self._workspace.size < nbytes:
            self._workspace = np.empty(nbytes, np.uint8)
        return self._workspace[:nbytes].view(dtype)


class _Operation(Work):
    """An operation of an MPIGroup: a generator, and the requests that it waits for."""

    def __init__(self, group: MPIGroup, call: str, statuses: list[MPI.Status] | None = None):
        self.group = group
        self.call = call
        self.statuses = statuses
        # The generator's frame holds the operation's arrays, so they live until it ends.
        self.steps: _Steps | None = None
        self._requests: list[MPI.Request] = []
        self._error: CommError | None = None

    def advance(self) -> bool:
        """Go on as far as possible without waiting; True when complete or failed."""
        if self.steps is None:
            return True
        try:
            while MPI.Request.Testall(self._requests, self.statuses):
                self._requests = next(self.steps)
        except StopIteration:
            self.steps = None
        except CommError as error:
            self._fail(error)
        except MPI.Exception as error:
            self._fail(self._translate(error))
        return self.steps is None

    def done(self) -> bool:
        """Move all pending operations on and say whether this one is complete."""
        if self.steps is not None:
            self.group._progress.poll()
        if self._error is not None:
            raise self._error
        return self.steps is None

    def wait(self, timeout: float | None = None) -> None:
        """Block until complete, at most `timeout` seconds, or the group's deadline."""
        limit = self.group.timeout_s if timeout is None else timeout
        if not self.group._progress.wait(self, limit):
            error = CollectiveTimeoutError(
                _WHERE, self.group.rank, f"{self.call} on group {self.group.name}", limit
            )
            if timeout is None:
                self.group._failure = error
            raise error
        if self._error is not None:
            raise self._error

    def _fail(self, error: CommError) -> None:
        self._error = error
        self.group._failure = error
        self.group._failed.append(self)
        self.steps = None

    def _translate(self, error: MPI.Exception) -> CommError:
        rank, text = self.group.rank, error.Get_error_string()
        codes = {error.Get_error_class()} | {MPI.Get_error_class(s.error) for s in self.statuses or []}
        if MPI.ERR_TRUNCATE in codes:
            return CollectiveMismatchError(_WHERE, rank, self.call, {})
        return CommError(
            _WHERE, f"rank {rank}: {self.call} failed in MPI: {text}", "Read the other ranks' logs"
        )


class _Progress:
    """All pending operations of the process.

    They are moved together, because a rank that waits for one group's operation may hold up a rank that waits
    for another's.
    """

    def __init__(self) -> None:
        self.queues: list[deque[_Operation]] = []
        self.messages: list[_Operation] = []

    def poll(self) -> None:
        """Move on what can be moved."""
        for queue in self.queues:
            while queue and queue[0].advance():
                queue.popleft()
        self.messages = [message for message in self.messages if not message.advance()]

    def wait(self, operation: _Operation, timeout: float) -> bool:
        """Move operations until this one is complete; False when `timeout` seconds have passed before."""
        began = busy = time.perf_counter()
        sleep = _FIRST_SLEEP_S
        while True:
            # The thread's own time: one that others keep from its core has moved nothing.
            before = time.thread_time()
            self.poll()
            if operation.steps is None:
                return True
            now = time.perf_counter()
            if now - began > timeout:
                return False
            if time.thread_time() - before > _BUSY_TEST_S:
                busy, sleep = now, _FIRST_SLEEP_S
            if now - busy < _SPIN_S:
                os.sched_yield()
            else:
                time.sleep(sleep)
                sleep = min(2 * sleep, _LAST_SLEEP_S)


def _octets(array: np.ndarray) -> np.ndarray:
    """View the array as bytes: MPI knows no bf16, and here it only moves memory."""
    return array.reshape(-1).view(np.uint8)


def _part(array: np.ndarray, counts: Sequence[int], rank: int) -> np.ndarray:
    offset = offsets_of(counts)[rank]
    return array[offset : offset + counts[rank]]


def _spell(array: np.ndarray) -> str:
    return f"{array.dtype}[{array.size:,}]"


def _spell_counts(counts: Sequence[int]) -> str:
    """Counts in a few characters; the checksum tells different lists of one length apart."""
    return f"counts #{zlib.crc32(np.asarray(counts, np.int64).tobytes()):08x}"
