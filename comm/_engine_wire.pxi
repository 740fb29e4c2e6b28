# Operations over links (csrc/wire.h); a part of _engine.pyx.

@cython.no_gc_clear
cdef class WireOp(Op):
    """An operation of a wire: a schedule under way."""

    cdef ckc_run_state run_state
    cdef object moved
    cdef tuple plan

    @property
    def wire(self):
        """The wire that it runs on."""
        return self.plan[3]

    def run_again(self, double seconds):
        """Make a complete operation a new one with the same arguments, and run it as `run` does."""
        cdef ckc_run_state *run = &self.run_state
        cdef int64_t ns = <int64_t> (seconds * 1e9)
        cdef int got
        run.next = run.round_end = 0
        run.begun = run.agreed = 0
        memset(run.moved, 0, run.step_count * sizeof(int64_t))
        memset(run.sent, 0, sizeof(run.sent))
        memset(run.received, 0, sizeof(run.received))
        self.o.pc = 0
        CKC_STORE(self.o.state, CKC_PENDING)
        if self.driver is not None:
            return self.driver.run(self, seconds)
        with nogil:
            got = ckc_run(self.w, &self.o, ns)
        return got

    def tell_of(self, Op met):
        """Instead of running it in the caller: tell its peers of the mismatch that `met`, inside the node, ended with."""
        with nogil:
            ckc_wire_spoil(&self.o, &met.o)

    @property
    def sends(self):
        """Of a message: whether it is a send (both ends call it so, for the headers to agree)."""
        return self.run_state.steps[0].kind == 0

    @property
    def came(self):
        """After a mismatch in recv: (dtype, count) of the message that came."""
        cdef int peer = self.run_state.steps[0].peer
        return self.run_state.theirs[peer].dtype, self.run_state.theirs[peer].count


@cython.no_gc_clear
cdef class Wire:
    """A lane of operations over sockets (csrc/wire.h)."""

    cdef ckc_wire *wire
    cdef ckc_stripes *own
    cdef World world
    cdef object scratch
    cdef object allocate
    cdef object driver

    def __cinit__(self):
        self.wire = <ckc_wire *> calloc(1, sizeof(ckc_wire))
        if self.wire == NULL:
            raise MemoryError()

    def __init__(self, World world, int rank, links, list names, allocate=None, driver=None):
        """Make a lane over links, which live as long as it.

        Args:
            links: by member: connected sockets, a capsule with a ckc_link (csrc/link.h), None for this one.
            names: world ranks.
            allocate: gives an array of so many bytes to work in; None: ordinary memory.
            driver: moves the operations in the caller instead of the engine: `run(op, seconds)` to an operation's end,
                `submit(op)`, `progress()`; all use `Op.step`.
        """
        cdef int r, i, error
        cdef int[16] fds
        assert len(links) <= CKC_MAX_RANKS
        self.world, in_use[<uintptr_t> self.wire] = world, links
        self.allocate, self.driver = allocate, driver
        self.wire.world, self.wire.rank, self.wire.size = world.w, rank, len(links)
        self.own = <ckc_stripes *> calloc(len(links), sizeof(ckc_stripes))
        if self.own == NULL:
            raise MemoryError()
        for r in range(self.wire.size):
            self.own[r].link.fd = -1
        for r, link in enumerate(links):
            self.wire.names[r] = names[r]
            if link is None:
                continue
            if PyCapsule_IsValid(link, CKC_LINK_CAPSULE):
                self.wire.links[r] = <ckc_link *> PyCapsule_GetPointer(link, CKC_LINK_CAPSULE)
                continue
            self.wire.links[r] = &self.own[r].link
            if len(link) == 1:
                ckc_make_socket_link(&self.own[r].link, link[0].fileno())
                continue
            assert len(link) <= CKC_MAX_STRIPES
            for i in range(len(link)):
                fds[i] = link[i].fileno()
            error = ckc_make_stripes(&self.own[r], fds, len(link))
            if error:
                raise OSError(error, "several sockets to one peer: " + os.strerror(error))
        self.scratch = None

    def make(self, int kind, int dtype, int reduction, int root, int64_t count, uint64_t extra, uintptr_t inp,
             uintptr_t out, cnp.ndarray steps, cnp.ndarray sources, int64_t scratch_bytes, partners, kept, parts=None):
        """An operation that carries out a schedule.

        Args: steps (n, 8), sources (m, 2) int64, rows of csrc/wire.h; partners: by member, which headers; parts: as in
        `Op.exchange`.
        """
        cdef WireOp op = WireOp.__new__(WireOp)
        cdef ckc_run_state *run = &op.run_state
        cdef int r
        op.w, op.driver = self.world.w, self.driver
        op.o.on, op.o.queue, op.o.extra = self.wire, &self.wire.queue, run
        op.o.advance, op.o.wanted, op.o.spoil = ckc_wire_advance, ckc_wire_wanted, ckc_wire_spoil
        op.o.call.kind, op.o.call.dtype, op.o.call.op = kind, dtype, reduction
        op.o.call.root, op.o.call.count, op.o.call.extra = root, count, extra
        op.o.inp, op.o.out = <const char *> inp, <char *> out
        if scratch_bytes and (self.scratch is None or self.scratch.size < scratch_bytes):
            # Operations before this one keep theirs.
            self.scratch = np.empty(scratch_bytes, np.uint8) if self.allocate is None else self.allocate(scratch_bytes)
        op.moved = np.zeros(len(steps), np.int64)
        op.kept, op.plan = kept, (steps, sources, self.scratch, self)
        run.steps = <const ckc_step *> cnp.PyArray_DATA(steps)
        run.sources = <const ckc_source *> cnp.PyArray_DATA(sources)
        run.step_count = len(steps)
        run.moved = <int64_t *> cnp.PyArray_DATA(<cnp.ndarray> op.moved)
        run.scratch = NULL if self.scratch is None else <char *> cnp.PyArray_DATA(<cnp.ndarray> self.scratch)
        for r in range(self.wire.size):
            run.partners[r] = partners[r]
        if parts is not None:
            op.exchange(parts, self.wire.size)
        return op

    def calls(self, WireOp op):
        """What each rank whose header has come calls, and this rank. In all_to_all as `Lane.calls`."""
        found = {self.wire.rank: op.call}
        for r in range(self.wire.size):
            if op.run_state.received[r] == sizeof(ckc_call):
                call = op.run_state.theirs[r]
                if call.zero and op.o.received != NULL:
                    continue                # it has passed on another one's
                found[r] = (call.kind, call.dtype, call.op, call.root, call.count, call.extra)
        return found

    def passed_on(self, WireOp op):
        """Differing calls that peers were told of inside their nodes: {seat: (kind, dtype, op, root, count, extra)}."""
        cdef uint32_t word
        found = {}
        for r in range(self.wire.size):
            if op.run_state.received[r] == sizeof(ckc_call) and op.run_state.theirs[r].zero:
                call = op.run_state.theirs[r]
                word = <uint32_t> call.arena
                found[call.pad] = (word >> 24, (word >> 16) & 255, (word >> 8) & 255, <int> (word & 255) - 1,
                                   call.offset, call.seq)
        return found

    cdef list _lacking(self, WireOp op, bint sends):
        """Whose header or payload has yet to come, and with `sends` also to whom something has yet to go. The engine may
        be moving the operation meanwhile."""
        cdef ckc_run_state *run = &op.run_state
        cdef int64_t i, bytes
        found = set()
        for r in range(self.wire.size):
            if run.partners[r] & CKC_HEADER_RECEIVED and CKC_PEEK(run.received[r]) < <int64_t> sizeof(ckc_call):
                found.add(r)
        for i in range(CKC_PEEK(run.next), CKC_PEEK(run.round_end)):
            bytes = run.steps[i].count * ckc_item_bytes(op.o.call.dtype)
            if (run.steps[i].kind == CKC_STEP_RECV or sends and run.steps[i].kind == CKC_STEP_SEND) \
                    and CKC_PEEK(run.moved[i]) < bytes:
                found.add(run.steps[i].peer)
        return sorted(found)

    def missing(self, WireOp op):
        """The ranks that the operation waits for."""
        return self._lacking(op, True)

    def needs(self, WireOp op):
        """Those of them from whom something must come: what goes to the others may be on its way, wherever they are."""
        return self._lacking(op, False)

    @property
    def begun(self):
        """How many operations this rank has begun."""
        return CKC_PEEK(self.wire.seq)

    @property
    def pending(self):
        """Operations that the engine has not completed."""
        return CKC_LOAD(self.wire.queue.pending)

    def break_off(self):
        """End the operations that the engine has, and refuse new ones."""
        CKC_STORE(self.wire.queue.broken, 1)

    @property
    def idle(self):
        """Whether the engine is through with all that it was given."""
        return not CKC_LOAD(self.wire.queue.active) and not CKC_LOAD(self.wire.queue.pending)

    def __dealloc__(self):
        cdef int r
        if self.wire != NULL and self.wire.world != NULL and self.driver is None:
            with nogil:
                ckc_retire(self.wire.world, &self.wire.queue)
        if in_use is not None:
            in_use.pop(<uintptr_t> self.wire, None)
        if self.own != NULL:
            for r in range(self.wire.size):
                if self.own[r].link.arm != NULL:
                    ckc_free_stripes(&self.own[r])
        free(self.own)
        free(self.wire)


cdef void free_delay(object capsule) noexcept:
    cdef ckc_delay *delay = <ckc_delay *> PyCapsule_GetPointer(capsule, CKC_LINK_CAPSULE)
    ckc_free_delay(delay)
    free(delay)


def delay_link(double latency_s, double bytes_per_s):
    """A link to a peer that does not exist (csrc/delay.h), as a capsule."""
    cdef ckc_delay *delay = <ckc_delay *> calloc(1, sizeof(ckc_delay))
    cdef int error
    if delay == NULL:
        raise MemoryError()
    error = ckc_make_delay(delay, <int64_t> (latency_s * 1e9), bytes_per_s)
    if error:
        free(delay)
        raise OSError(error, "a delayed link: " + os.strerror(error))
    return PyCapsule_New(delay, CKC_LINK_CAPSULE, free_delay)
