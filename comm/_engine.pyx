"""The compiled core of comm as Python objects: the world of a process, lanes of collectives, messages.

Nothing here blocks with the GIL held, and nothing here raises for what happens between ranks: operations end
with a number (`DONE`, `MISMATCH`, ...), which `cktrain.comm.engine_group` turns into an error with words. The
protocols and why they are right stand in csrc/world.h, csrc/shm.h and csrc/wire.h.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

cimport cython
cimport numpy as cnp

import os
import weakref

import numpy as np

cnp.import_array()

include "_engine_c.pxi"

HANGUP, PIDFD, CONTROL = CKC_WATCH_HANGUP, CKC_WATCH_PIDFD, CKC_WATCH_CONTROL
PENDING, DONE, MISMATCH, LOST, BROKEN = CKC_PENDING, CKC_DONE, CKC_MISMATCH, CKC_LOST, CKC_BROKEN
SEAT_BYTES = sizeof(ckc_seat)
CALL_BYTES, FRAME_BYTES = sizeof(ckc_call), sizeof(ckc_frame)
MAX_RANKS = CKC_MAX_RANKS
MAX_ARENAS = CKC_MAX_ARENAS
KINDS = ("barrier", "all_reduce", "reduce_scatter", "all_gather", "broadcast", "all_to_all", "send", "recv")
BYTES_DTYPE = CKC_BYTES
# What threads use by its descriptor: the garbage collector finalizes (closes) a socket before it frees what refers to
# it, so the owners are held here, from where it collects nothing, until the threads are through. By address of the user.
cdef dict in_use = {}
cdef int64_t SLICE_NS = 50000000    # a call without the GIL: then signals are looked at

# numpy's type number -> our dtype; bf16's number is given by the process's ml_dtypes (World).
cdef int8_t[1024] dtype_of_type_number
memset(dtype_of_type_number, -1, sizeof(dtype_of_type_number))


def register_dtypes(type_numbers):
    """Tell the dtype codes of reduce.h to numpy's type numbers, in the order f32, bf16, f64, i32, i64."""
    for code, numbers in enumerate(type_numbers):
        for number in numbers:
            dtype_of_type_number[<int> number] = code


def plain_reduction():
    """The capsule of the plain reduction."""
    return PyCapsule_New(<void *> &ckc_plain_reduce_n, CKC_REDUCE_CAPSULE, NULL)


def reduce_n(capsule, outputs, inputs, int dtype, int op):
    """Call a reduction on contiguous arrays of one length (for tests and measurements)."""
    cdef ckc_reduce_n function = <ckc_reduce_n> PyCapsule_GetPointer(capsule, CKC_REDUCE_CAPSULE)
    cdef void *dst[64]
    cdef const void *src[64]
    cdef int n_dst = len(outputs), n_src = len(inputs), i
    cdef int64_t count = inputs[0].size
    assert n_dst <= 64 and n_src <= 64
    for i in range(n_dst):
        dst[i] = cnp.PyArray_DATA(<cnp.ndarray> outputs[i])
    for i in range(n_src):
        src[i] = cnp.PyArray_DATA(<cnp.ndarray> inputs[i])
    with nogil:
        function(dst, n_dst, src, n_src, count, dtype, op)


cdef class Mapping:
    """`nbytes` of a memfd, mapped shared, 2 MiB aligned; a writable buffer. Unmapped with its last view."""

    cdef char *base
    cdef readonly int64_t nbytes
    cdef readonly int64_t huge_bytes

    def __init__(self, int fd, int64_t nbytes):
        self.base = <char *> ckc_map(fd, nbytes)
        if self.base == NULL:
            raise MemoryError(
                f"[comm.shm] mapping {nbytes:,} bytes of shared memory was refused. Free some memory."
            )
        self.nbytes = nbytes

    @property
    def address(self):
        """Where it begins in this process."""
        return <uintptr_t> self.base

    def make_huge(self, bint owner):
        """Touch all pages and gather them into huge ones; returns the bytes that are huge."""
        with nogil:
            self.huge_bytes = ckc_make_huge(self.base, self.nbytes, owner)
        return self.huge_bytes

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.base, self.nbytes, 0, flags)

    def __dealloc__(self):
        if self.base != NULL:
            ckc_unmap(self.base, self.nbytes)


@cython.no_gc_clear     # its threads use what it keeps until __dealloc__ has stopped them
cdef class World:
    """The process among the ranks of its node: seats, arenas, the first failure, and two threads."""

    cdef ckc_world *w
    cdef ckc_watched *watched
    cdef Mapping seat_memory
    cdef list kept
    cdef int[64] arena_group
    cdef int arena_count
    cdef object reduction
    cdef readonly object groups     # those that the process is in, by what all their ranks call them

    def __cinit__(self):
        self.w = <ckc_world *> calloc(1, sizeof(ckc_world))
        if self.w == NULL:
            raise MemoryError()
        self.w.wake_fd = -1

    def __init__(self, int rank, int local_rank, int local_size, Mapping seats, *, bint spin,
                 int engine_core=-1,
                 int64_t stream_bytes=32 << 20):
        """Take seat `local_rank` of `local_size`; `rank` is the world's name of it."""
        cdef int i
        assert seats.nbytes >= local_size * <int64_t> sizeof(ckc_seat) and local_size <= CKC_MAX_RANKS
        self.w.rank, self.w.local_rank, self.w.local_size = rank, local_rank, local_size
        self.w.spin, self.w.engine_core, self.w.stream_bytes = spin, engine_core, stream_bytes
        for i in range(local_size):
            self.w.seats[i] = <ckc_seat *> seats.base + i
        self.w.reduce = ckc_plain_reduce_n
        self.seat_memory, self.kept, self.groups = seats, [], weakref.WeakValueDictionary()

    @property
    def rank(self):
        """The rank in the world."""
        return self.w.rank

    @property
    def local_rank(self):
        """The seat."""
        return self.w.local_rank

    def set_reduction(self, capsule):
        """Use another reduction than the plain one, from now on."""
        self.w.reduce = <ckc_reduce_n> PyCapsule_GetPointer(capsule, CKC_REDUCE_CAPSULE)
        self.reduction = capsule

    def watch(self, watched, owners=()):
        """Start the watch thread on `watched`: (fd, world rank, seat, HANGUP, PIDFD or CONTROL).

        Their `owners` (sockets) live until the thread has ended, unless they are closed by name.
        """
        cdef int i, error
        self.watched = <ckc_watched *> calloc(max(1, len(watched)), sizeof(ckc_watched))
        for i, (fd, rank, seat, kind) in enumerate(watched):
            self.watched[i].fd, self.watched[i].rank = fd, rank
            self.watched[i].local_rank, self.watched[i].kind = seat, kind
        in_use[<uintptr_t> self.w] = list(owners)
        error = ckc_start_watch(self.w, self.watched, len(watched))
        if error:
            raise OSError(error, "the watch thread cannot start: " + os.strerror(error))

    def failure(self):
        """(rank, how) of the first failure, or None."""
        if not CKC_LOAD(self.w.failure):
            return None
        return self.w.failed_rank, self.w.failed_how.decode()

    def fail(self, int rank, str how):
        """Record a failure that was learnt elsewhere; all waiting in this process ends."""
        ckc_fail(self.w, CKC_LOST, rank, how.encode()[:119])

    def seat(self, int local_rank):
        """(beat, activity, kind of the last operation, its number, left) of a rank of the node."""
        cdef ckc_seat *seat = self.w.seats[local_rank]
        cdef uint64_t operation = CKC_LOAD64(seat.operation)
        return (CKC_LOAD64(seat.beat), CKC_LOAD64(seat.activity), KINDS[operation >> 56],
                operation & ((<uint64_t> 1 << 56) - 1), bool(CKC_LOAD(seat.left)))

    def leave(self):
        """Say that this process ends in order."""
        CKC_STORE(self.w.seats[self.w.local_rank].left, 1)
        ckc_tell(self.w)

    def share_seats(self, Mapping memory, numbers):
        """The seats of these numbers stand in `memory`, one after another: of the ranks that share this node.
        Before `watch`."""
        cdef int i
        for i in range(len(numbers)):
            self.w.seats[<int> numbers[i]] = <ckc_seat *> memory.base + i
        self.kept.append(memory)

    def bell(self, int seat, int eventfd):
        """Who rings a rank of this node that sleeps also writes to its eventfd: its engine may sleep on sockets."""
        self.w.bells[seat] = eventfd

    def wake_by(self, int eventfd):
        """The engine sleeps on sockets: this eventfd wakes it."""
        self.w.wake_fd = eventfd

    def next_arena(self):
        """The number that this rank's next arena will have."""
        if self.arena_count == CKC_MAX_ARENAS:
            raise ValueError(
                f"[comm.shm] allocate: {CKC_MAX_ARENAS} arenas are in use. Allocate fewer, larger ones."
            )
        return self.arena_count

    def put_arena(self, int seat, int number, Mapping mapping):
        """Arena `number` of the rank in `seat`, as it is mapped here."""
        self.w.arenas[seat][number].base, self.w.arenas[seat][number].bytes = mapping.base, mapping.nbytes
        self.kept.append(mapping)

    def add_arena(self, Mapping own, int group):
        """The next arena of this rank, which the ranks of `group` have mapped."""
        self.put_arena(self.w.local_rank, self.arena_count, own)
        self.arena_group[self.arena_count] = group
        self.arena_count += 1

    def stop(self):
        """End the threads."""
        with nogil:
            ckc_stop_threads(self.w)
        in_use.pop(<uintptr_t> self.w, None)

    def __dealloc__(self):
        if self.w != NULL:
            with nogil:
                ckc_stop_threads(self.w)
            if in_use is not None:      # it is, at the interpreter's end
                in_use.pop(<uintptr_t> self.w, None)
            free(self.w)
        free(self.watched)


@cython.no_gc_clear     # as long as the engine has it, what it runs on must live
cdef class Op:
    """One operation. It keeps its arrays alive; the memory that C reads stands in this object."""

    cdef ckc_op o
    cdef ckc_world *w
    cdef int64_t begins[257]
    cdef object kept
    cdef object parts       # of an all_to_all; errors tell them after its end
    cdef object driver
    cdef object holder      # of its queue
    cdef bint submitted

    def __dealloc__(self):
        if self.submitted and self.driver is None and CKC_LOAD(self.o.state) == CKC_PENDING:
            with nogil:
                ckc_retire(self.w, self.o.queue)

    def run(self, double seconds):
        """In the caller: move it on, at most so long; returns its state."""
        cdef int64_t ns = <int64_t> (seconds * 1e9)
        cdef int got
        if self.driver is not None:
            return self.driver.run(self, seconds)
        with nogil:
            got = ckc_run(self.w, &self.o, ns)
        if got != CKC_PENDING:
            self.kept = None
        return got

    def submit(self):
        """Hand it over to the engine, which is started for it."""
        cdef int error
        if self.driver is not None:
            self.submitted = True
            CKC_ADD(self.o.queue.pending, 1)
            self.driver.submit(self)
            return
        error = ckc_start_engine(self.w)
        if error:
            raise OSError(error, "the comm thread cannot start: " + os.strerror(error))
        self.submitted = True
        ckc_submit(self.w, &self.o)

    def wait(self, double seconds):
        """Handed over: wait for its end, at most so long; returns its state."""
        cdef int64_t ns = <int64_t> (seconds * 1e9)
        cdef int got
        if self.driver is not None:
            return self.driver.run(self, seconds)
        with nogil:
            got = ckc_wait(self.w, &self.o, ns)
        return got

    def speak(self, int kind, int dtype, int reduction, int root, int64_t count, uint64_t extra):
        """Before it begins: what peers compare and messages show, where this operation is a part of a larger call.
        A count that the operation needs must be the same; dtype always."""
        self.o.call.kind, self.o.call.dtype, self.o.call.op = kind, dtype, reduction
        self.o.call.root, self.o.call.count, self.o.call.extra = root, count, extra

    def follow(self, Op before):
        """On the engine, begin when `before` is done; it must live until then."""
        self.o.after = &before.o

    def step(self):
        """For a driver: move it once, without waiting; returns its state."""
        return self.move(NULL, 1)

    cdef int move(self, const ckc_postroom *room, int times):
        cdef int got = CKC_LOAD(self.o.state)
        if got != CKC_PENDING:
            return got
        if CKC_LOAD(self.o.queue.broken):
            got = CKC_BROKEN
        else:
            with nogil:
                while True:
                    got = ckc_move(self.w, &self.o)
                    times -= 1
                    if got != CKC_PENDING or times <= 0 or room.waiting != NULL:
                        break
        if got != CKC_PENDING:
            if self.submitted:
                CKC_ADD(self.o.queue.pending, -1)
                if got < 0:
                    CKC_STORE(self.o.queue.broken, 1)
            CKC_STORE(self.o.state, got)
            self.kept = None
        return got

    @property
    def queued(self):
        """Whether it was handed over and is not complete."""
        return self.submitted and CKC_LOAD(self.o.state) == CKC_PENDING

    @property
    def state(self):
        """PENDING, DONE, or how it failed."""
        if self.driver is not None and CKC_LOAD(self.o.state) == CKC_PENDING:
            self.driver.progress()
        return CKC_LOAD(self.o.state)

    @property
    def call(self):
        """(kind, dtype, op, root, count, extra)."""
        return (self.o.call.kind, self.o.call.dtype, self.o.call.op, self.o.call.root, self.o.call.count,
                self.o.call.extra)

    cdef void exchange(self, cnp.ndarray parts, int size):
        """An all_to_all: parts (2, size + 1) int64, where those of the input and of the output begin."""
        self.parts = parts
        self.o.begins = <const int64_t *> cnp.PyArray_DATA(parts)
        self.o.received = self.o.begins + size + 1

    def pair(self, int rank):
        """Of an all_to_all: elements to and from that rank; None for other operations."""
        if self.o.received == NULL:
            return None
        return (self.o.begins[rank + 1] - self.o.begins[rank], self.o.received[rank + 1] - self.o.received[rank])

    @property
    def sends(self):
        """Whether it is a send."""
        return self.o.call.kind == CKC_SEND

    @property
    def came(self):
        """After a mismatch in recv: (dtype, count) of the message that came."""
        return self.o.call.zero, self.o.call.extra


@cython.no_gc_clear
cdef class Lane:
    """A channel of csrc/shm.h: collectives of one group, one after another."""

    cdef ckc_channel *ch
    cdef World world
    cdef Op op
    cdef list kept
    cdef list works
    cdef int groups[16]
    cdef int group_count

    def __cinit__(self):
        self.ch = <ckc_channel *> calloc(1, sizeof(ckc_channel))
        if self.ch == NULL:
            raise MemoryError()

    def __init__(self, World world, int rank, list seats, Mapping memory, int64_t offset, int64_t stage_bytes,
                 list groups):
        """`memory` holds the members' blocks from `offset` on; `groups`: this one, those it was split from."""
        cdef int r
        cdef int64_t block = ckc_block_bytes(CKC_INLINE_BYTES, stage_bytes)
        assert len(seats) <= CKC_MAX_RANKS and offset + block * len(seats) <= memory.nbytes
        self.world, self.kept = world, [memory]
        self.ch.world, self.ch.rank, self.ch.size = world.w, rank, len(seats)
        self.ch.inline_bytes, self.ch.stage_bytes = CKC_INLINE_BYTES, stage_bytes
        for r in range(self.ch.size):
            self.ch.seats[r] = seats[r]
            self.ch.blocks[r] = memory.base + offset + r * block
        self.group_count = min(16, len(groups))
        for r in range(self.group_count):
            self.groups[r] = groups[r]
        self.op = self._make()

    @staticmethod
    def bytes_needed(int size, int64_t stage_bytes):
        """Memory of one lane of `size` ranks."""
        return size * ckc_block_bytes(CKC_INLINE_BYTES, stage_bytes)

    cdef Op _make(self):
        cdef Op op = Op.__new__(Op)
        op.w = self.world.w
        op.o.on = self.ch
        op.o.queue = &self.ch.queue
        return op

    cdef void _locate(self, Op op, const char *at, int64_t nbytes):
        """In which shared arena the array that peers may read lies."""
        cdef ckc_span *span
        cdef int i, k
        op.o.call.arena = -1
        for i in range(self.world.arena_count):
            span = &self.world.w.arenas[self.world.w.local_rank][i]
            if span.base <= at and at + nbytes <= span.base + span.bytes:
                for k in range(self.group_count):
                    if self.groups[k] == self.world.arena_group[i]:
                        op.o.call.arena = i
                        op.o.call.offset = at - span.base
                return

    def all_reduce(self, array, int op):
        """The short way of the most frequent call, in the caller: True when done, an Op to wait for, or None
        when the array is not a plain one and must be looked at closer."""
        cdef int dtype, got
        cdef cnp.ndarray x
        if not cnp.PyArray_CheckExact(array):
            return None
        x = <cnp.ndarray> array
        dtype = cnp.PyArray_TYPE(x)
        if not 0 <= dtype < 1024:
            return None
        dtype = dtype_of_type_number[dtype]
        if dtype < 0 or not cnp.PyArray_ISCARRAY(x) or (op == 1 and dtype >= 3):
            return None
        self._fill(self.op, CKC_ALL_REDUCE, dtype, op, -1, cnp.PyArray_SIZE(x), 0)
        self.op.o.inp = <const char *> cnp.PyArray_DATA(x)
        self.op.o.out = <char *> cnp.PyArray_DATA(x)
        if self.world.arena_count:
            self._locate(self.op, self.op.o.inp, cnp.PyArray_NBYTES(x))
        with nogil:
            got = ckc_run(self.op.w, &self.op.o, SLICE_NS)
        if got == CKC_DONE:
            return True
        self.op.kept = array
        return self.op

    cdef void _fill(self, Op op, int kind, int dtype, int reduction, int root, int64_t count, uint64_t extra):
        op.o.pc = 0
        op.o.advance = ckc_shm_advance[kind]
        op.o.call.kind, op.o.call.dtype, op.o.call.op = kind, dtype, reduction
        op.o.call.root, op.o.call.count, op.o.call.extra = root, count, extra
        op.o.call.arena = -1
        op.o.call.offset = 0
        op.o.received = NULL

    def make(self, int kind, int dtype, int reduction, int root, int64_t count, uint64_t extra, uintptr_t inp,
             uintptr_t out, begins, int64_t read_bytes, kept, bint own, parts=None):
        """A checked operation; `own` ones are handed to the engine, the others use the lane's only one.

        `inp` is what peers may read, `read_bytes` long; begins (size + 1) the first element of each part; parts: as in
        `Op.exchange`.
        """
        cdef Op op = self._make() if own else self.op
        cdef int r
        if own:
            op.holder = self
        self._fill(op, kind, dtype, reduction, root, count, extra)
        op.o.inp, op.o.out, op.kept = <const char *> inp, <char *> out, kept
        if read_bytes:
            self._locate(op, op.o.inp, read_bytes)
        if begins is not None:
            for r in range(self.ch.size + 1):
                op.begins[r] = begins[r]
            op.o.begins = op.begins
        if parts is not None:
            op.exchange(parts, self.ch.size)
        return op

    def calls(self, Op op):
        """What each rank that has arrived calls: {rank: (kind, dtype, op, root, count, extra)}.

        In all_to_all count and extra of another rank are its elements to and from this one.
        """
        cdef const ckc_call *call
        cdef const ckc_parts *parts
        cdef int r, mine = self.ch.rank
        found = {}
        for r in range(self.ch.size):
            call = ckc_call_of(self.ch, r, op.o.seq)
            if r == self.ch.rank:
                call = &op.o.call
            elif CKC_LOAD64(call.seq) != op.o.seq:
                continue
            found[r] = (call.kind, call.dtype, call.op, call.root, call.count, call.extra)
            if r != mine and op.o.received != NULL and call.kind == op.o.call.kind:
                parts = ckc_parts_of(self.ch, r, op.o.seq)
                found[r] = (call.kind, call.dtype, call.op, call.root, parts.begins[mine + 1] - parts.begins[mine],
                            parts.received[mine + 1] - parts.received[mine])
        return found

    def passed_on(self, Op op):
        """Calls that others told of: here all ranks see each other's."""
        return {}

    def missing(self, Op op):
        """The ranks that have not come as far as this one in the operation."""
        cdef uint8_t here[256]
        cdef uint64_t seq = CKC_PEEK(op.o.seq)
        if not CKC_PEEK(op.o.pc):         # it has not begun: one before it is the one that waits
            seq = CKC_PEEK(self.ch.seq)
        ckc_who_is_here(self.ch, seq, CKC_PEEK(self.ch.tick), here)
        return [r for r in range(self.ch.size) if not here[r]]

    needs = missing

    @property
    def begun(self):
        """How many operations this rank has begun."""
        return CKC_PEEK(self.ch.seq)

    @property
    def pending(self):
        """Operations that the engine has not completed."""
        return CKC_LOAD(self.ch.queue.pending)

    def break_off(self):
        """End the operations that the engine has, and refuse new ones."""
        CKC_STORE(self.ch.queue.broken, 1)

    @property
    def idle(self):
        """Whether the engine is through with all that it was given."""
        return not CKC_LOAD(self.ch.queue.active) and not CKC_LOAD(self.ch.queue.pending)

    def __dealloc__(self):
        if self.ch != NULL and self.ch.world != NULL:
            with nogil:
                ckc_retire(self.ch.world, &self.ch.queue)
        free(self.ch)


include "_engine_stream.pxi"
include "_engine_waits.pxi"
include "_engine_wire.pxi"
include "_engine_rdma.pxi"
