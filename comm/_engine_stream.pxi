# Messages through memory (csrc/stream.c); a part of _engine.pyx.

@cython.no_gc_clear
cdef class Stream:
    """A rank's end of a ring of csrc/stream.c: messages to (or from) one peer, in their order."""

    cdef ckc_stream *s
    cdef World world
    cdef object memory

    def __cinit__(self):
        self.s = <ckc_stream *> calloc(1, sizeof(ckc_stream))
        if self.s == NULL:
            raise MemoryError()

    def __init__(self, World world, Mapping memory, int64_t offset, int64_t ring_bytes, int seat):
        """The ring lies at `offset` of `memory`; `seat` is the other end's."""
        assert offset + ckc_ring_memory_bytes(ring_bytes) <= memory.nbytes
        self.world, self.memory = world, memory
        self.s.world, self.s.ring_bytes, self.s.seat = world.w, ring_bytes, seat
        self.s.ring = <ckc_ring_memory *> (memory.base + offset)

    @staticmethod
    def bytes_needed(int64_t ring_bytes):
        """Memory of one ring."""
        return (ckc_ring_memory_bytes(ring_bytes) + 4095) // 4096 * 4096

    def make(self, bint sends, int dtype, int64_t count, uintptr_t address, kept):
        """A send or a recv of `count` elements at `address`."""
        cdef Op op = Op.__new__(Op)
        op.w, op.holder = self.world.w, self
        op.o.on = self.s
        op.o.queue = &self.s.queue
        op.o.advance = ckc_stream_send if sends else ckc_stream_recv
        op.o.call.kind = CKC_SEND if sends else CKC_RECV
        op.o.call.dtype, op.o.call.count, op.o.call.root = dtype, count, -1
        op.o.inp, op.o.out, op.kept = <const char *> address, <char *> address, kept
        return op

    @property
    def pending(self):
        """Operations that the engine has not completed; with none the caller may run the next one itself."""
        return CKC_LOAD(self.s.queue.pending)

    @property
    def begun(self):
        """How many messages this end has begun."""
        return CKC_PEEK(self.s.messages)

    @property
    def refused(self):
        """(dtype, count) that the reader wanted, after a mismatch."""
        return self.s.ring.refused.dtype, self.s.ring.refused.count

    def break_off(self):
        """End the operations that the engine has."""
        CKC_STORE(self.s.queue.broken, 1)

    @property
    def idle(self):
        """Whether the engine is through with all that it was given."""
        return not CKC_LOAD(self.s.queue.active) and not CKC_LOAD(self.s.queue.pending)

    def __dealloc__(self):
        if self.s != NULL and self.s.world != NULL:
            with nogil:
                ckc_retire(self.s.world, &self.s.queue)
        free(self.s)
