# Links over RDMA (csrc/rdma.h); a part of _engine.pyx.

RDMA_SENDS, RDMA_RECEIVES = CKC_RDMA_SENDS, CKC_RDMA_RECEIVES
cdef int64_t GRANT_BYTES = CKC_RDMA_GRANTS * sizeof(ckc_grant), NOTES_BYTES = CKC_RDMA_MESSAGES * sizeof(ckc_note)


cdef class Regions:
    """The registered memory of a process, where links find out what can travel without a copy."""

    cdef ckc_regions *regions
    cdef list kept

    def __cinit__(self):
        self.regions = <ckc_regions *> calloc(1, sizeof(ckc_regions))
        if self.regions == NULL:
            raise MemoryError()
        self.kept = []

    def add(self, uintptr_t address, int64_t nbytes, uint32_t lkey, uint32_t rkey, kept):
        """Memory that is registered from now on; False when there is no place for it in the table."""
        cdef int n = CKC_LOAD(self.regions.count)
        if n == CKC_RDMA_REGIONS:
            return False
        self.regions.at[n].begin, self.regions.at[n].end = address, address + nbytes
        self.regions.at[n].lkey, self.regions.at[n].rkey = lkey, rkey
        self.kept.append(kept)
        CKC_STORE(self.regions.count, n + 1)
        return True

    def __dealloc__(self):
        free(self.regions)


cdef class RdmaLink:
    """Bytes to and from one peer in one lane; `capsule` is what a Wire takes."""

    cdef ckc_rdma_link l
    cdef object port
    cdef Regions regions
    cdef readonly object capsule
    cdef readonly int64_t nbytes

    def __init__(self, port, Regions regions, uintptr_t memory, uint32_t key, int64_t ring_bytes, *,
                 int64_t chunk_bytes, int64_t direct_bytes, int64_t inline_bytes):
        """`port`: a capsule; `memory`, registered under `key`: `bytes_needed(ring_bytes)`, zeroed.

        Args:
            chunk_bytes: longest message through the ring.
            direct_bytes: shortest buffer that is written straight where it belongs.
            inline_bytes: longest message that is posted with its bytes.
        """
        assert direct_bytes >= ring_bytes // 4 and ring_bytes < 1 << 24 and memory % 8 == 0
        memset(&self.l, 0, sizeof(self.l))
        self.port, self.regions = port, regions
        self.l.port = <ckc_port *> PyCapsule_GetPointer(port, CKC_PORT_CAPSULE)
        self.l.regions = regions.regions
        self.l.ring_bytes, self.l.chunk_bytes = ring_bytes, chunk_bytes
        self.l.direct_bytes, self.l.inline_bytes = direct_bytes, inline_bytes
        self.l.own_key = key
        self.l.ring, self.l.stage = <char *> memory, <char *> memory + ring_bytes
        self.l.granted = <ckc_grant *> (memory + 2 * ring_bytes)
        self.l.grants = self.l.granted + <int> CKC_RDMA_GRANTS
        self.l.noted = <ckc_note *> (memory + 2 * ring_bytes + 2 * GRANT_BYTES)
        self.l.notes = self.l.noted + <int> CKC_RDMA_MESSAGES
        self.capsule = PyCapsule_New(&self.l.link, CKC_LINK_CAPSULE, NULL)

    @staticmethod
    def bytes_needed(int64_t ring_bytes):
        """Memory of one link; the peer writes into it."""
        return 2 * ring_bytes + 2 * GRANT_BYTES + 2 * NOTES_BYTES

    def open(self):
        """Post the receives, before the peer may send."""
        cdef int code = ckc_open_rdma_link(&self.l)
        if code:
            raise OSError(code, "receives cannot be posted: " + os.strerror(code))

    def connect(self, uint64_t memory, uint32_t key, bint looks):
        """Where the peer's memory of this link begins there, and whether it looks there for what is short."""
        self.l.remote_ring, self.l.remote_key, self.l.peer_looks = memory, key, looks
        self.l.remote_granted = memory + 2 * self.l.ring_bytes
        self.l.remote_noted = self.l.remote_granted + 2 * GRANT_BYTES

    def push(self, data):
        """Take what can be taken of some bytes; how many, below 0 when the link is gone (for tests)."""
        cdef const unsigned char[::1] view = data
        cdef iovec part
        part.iov_base, part.iov_len = <void *> &view[0], view.shape[0]
        return self.l.link.push(&self.l.link, &part, 1)

    def pull(self, unsigned char[::1] into):
        """What has come, at most as many bytes; below 0 when the link is gone (for tests)."""
        return self.l.link.pull(&self.l.link, &into[0], into.shape[0])

    @property
    def flushed(self):
        """Whether no memory of the caller's is being read."""
        return bool(self.l.link.flushed(&self.l.link))

    @property
    def broken(self):
        """How the queue pair broke, or None."""
        return self.l.link.why(&self.l.link).decode() if self.l.status else None

    def end(self):
        """The last use, until it returns True: each side has what the other sent, or the other is gone."""
        return ckc_end_rdma_link(&self.l) != 0

    @property
    def counts(self):
        """(messages sent, bytes written straight into the peer's buffers, bytes through the ring and in notes)."""
        return self.l.sent, self.l.direct, self.l.pushed - self.l.direct


cdef class Postroom:
    """Ports whose queue pairs are driven from Python (csrc/postbox.h)."""

    cdef ckc_postroom room
    cdef list boxes

    def __cinit__(self):
        self.room.waiting = NULL
        self.boxes = []

    def add(self):
        """Another port: (its number, its capsule)."""
        cdef Postbox box = Postbox.__new__(Postbox)
        ckc_make_postbox(&box.box, &self.room, len(self.boxes))
        self.boxes.append(box)
        return box.box.index, PyCapsule_New(&box.box.port, CKC_PORT_CAPSULE, NULL)

    @property
    def waiting(self):
        """Whether anything is to be posted."""
        return self.room.waiting != NULL

    def take(self):
        """What is to be posted, of each port in order: (number, receives, [write]); receives are to be posted first.

        A write is (local address, bytes, lkey, remote address, rkey, id, imm or None, signaled, inlined).
        """
        cdef ckc_postbox *box
        cdef const ckc_write *w
        cdef int i
        found = []
        while self.room.waiting != NULL:
            box = self.room.waiting
            self.room.waiting = box.next
            box.is_waiting = 0
            writes = []
            for i in range(box.write_count):
                w = &box.writes[i]
                writes.append((w.local, w.bytes, w.lkey, w.remote, w.rkey, w.id, None if w.silent else w.imm,
                               bool(w.signaled), bool(w.inlined)))
            found.append((box.index, box.receives, writes))
            box.receives = box.write_count = 0
        return found

    def look(self, Op op, int times):
        """Move an operation at most so often, until it has something to be posted; its state."""
        return op.move(&self.room, times)

    def arrived(self, int number, uint32_t imm):
        """The peer's write with this immediate data has arrived."""
        cdef ckc_completion c
        c.id, c.imm, c.arrival, c.status = 0, imm, 1, 0
        ckc_deliver(&(<Postbox> self.boxes[number]).box, &c)

    def ended(self, int number, uint64_t id, int status):
        """A signaled write has ended."""
        cdef ckc_completion c
        c.id, c.imm, c.arrival, c.status = id, 0, 0, status
        ckc_deliver(&(<Postbox> self.boxes[number]).box, &c)


cdef class Postbox:
    """The memory of a port."""

    cdef ckc_postbox box
