# What _engine.pyx uses of csrc: the same names, in Cython's words. Comments stand in the headers.

cdef extern from "reduce.h" nogil:
    ctypedef void (*ckc_reduce_n)(void **dst, int n_dst, const void **src, int n_src, int64_t count,
                                  int dtype, int op) noexcept
    void ckc_plain_reduce_n(void **dst, int n_dst, const void **src, int n_src, int64_t count, int dtype,
                            int op) noexcept
    const char *CKC_REDUCE_CAPSULE
    const int CKC_F32, CKC_BF16, CKC_F64, CKC_I32, CKC_I64, CKC_BYTES
    int64_t ckc_item_bytes(int dtype)

cdef extern from "poll.h" nogil:
    ctypedef struct pollfd "struct pollfd":
        int fd

cdef extern from "world.h" nogil:
    const int CKC_MAX_RANKS, CKC_MAX_ARENAS
    const int CKC_PENDING, CKC_DONE, CKC_MISMATCH, CKC_LOST, CKC_BROKEN
    const int CKC_BARRIER, CKC_ALL_REDUCE, CKC_SEND, CKC_RECV
    ctypedef struct ckc_seat:
        uint64_t beat, activity, operation
        uint32_t left
    ctypedef struct ckc_waiting:
        uint64_t group, whole, number
        uint64_t needs[4]
        uint64_t held[4]
        uint64_t extra
        int64_t count
        int32_t root
        uint8_t kind, dtype, op, lane
        uint64_t certain
    ctypedef struct ckc_told:
        uint64_t extra
        int64_t count
        int32_t root
        uint8_t kind, dtype, op
    ctypedef struct ckc_difference:
        uint64_t group, whole, number
        uint32_t lane, seat
        ckc_told mine, theirs
    ctypedef struct ckc_span:
        char *base
        int64_t bytes
    ctypedef struct ckc_queue:
        int pending, broken, active
    ctypedef struct ckc_call:
        uint64_t seq
        uint8_t kind, dtype, op, zero
        int32_t root
        int64_t count
        uint64_t extra
        int64_t offset
        int32_t arena, pad
    ctypedef struct ckc_op:
        int (*advance)(ckc_op *) noexcept
        int (*wanted)(ckc_op *, pollfd *fds, int limit) noexcept
        void *extra
        ckc_queue *queue
        void *on
        int pc
        ckc_call call
        const char *inp "in"
        char *out
        const int64_t *begins
        const int64_t *received
        uint64_t seq, base
        ckc_op *after
        void (*spoil)(ckc_op *, const ckc_op *after) noexcept
        int state
    ctypedef struct ckc_world:
        int rank, local_rank, local_size, spin
        ckc_seat *seats[256]
        int bells[256]
        ckc_span arenas[256][64]
        int64_t stream_bytes
        ckc_reduce_n reduce
        int failure, failed_rank
        char failed_how[120]
        int engine_core, wake_fd
    void ckc_show_waiting(ckc_seat *seat, const ckc_waiting *waiting)
    int ckc_read_waiting(ckc_seat *seat, ckc_waiting *into)
    void ckc_show_difference(ckc_seat *seat, const ckc_difference *difference)
    const ckc_difference *ckc_difference_of(const ckc_seat *seat)
    int64_t ckc_now_ns()
    int ckc_fail(ckc_world *world, int cause, int rank, const char *how)
    int ckc_run(ckc_world *world, ckc_op *op, int64_t slice_ns)
    int ckc_move(ckc_world *world, ckc_op *op)
    int ckc_start_engine(ckc_world *world)
    void ckc_submit(ckc_world *world, ckc_op *op)
    int ckc_wait(ckc_world *world, ckc_op *op, int64_t slice_ns)
    void ckc_retire(ckc_world *world, ckc_queue *queue)
    void ckc_stop_threads(ckc_world *world)

cdef extern from "watch.h" nogil:
    ctypedef struct ckc_frame:
        uint64_t beat
    ctypedef struct ckc_watched:
        int fd, rank, local_rank, kind
    const int CKC_WATCH_HANGUP, CKC_WATCH_PIDFD, CKC_WATCH_CONTROL
    void ckc_tell(ckc_world *world)
    int ckc_start_watch(ckc_world *world, ckc_watched *watched, int count)

cdef extern from "shm.h" nogil:
    const int CKC_INLINE_BYTES
    ctypedef struct ckc_channel:
        ckc_queue queue
        ckc_world *world
        int rank, size
        int seats[256]
        char *blocks[256]
        int64_t inline_bytes, stage_bytes
        uint64_t seq, tick
    ctypedef struct ckc_ring_memory:
        ckc_call refused
    ctypedef struct ckc_stream:
        ckc_queue queue
        ckc_world *world
        ckc_ring_memory *ring
        int64_t ring_bytes
        int seat
        uint64_t messages
    ctypedef struct ckc_parts:
        int64_t begins[257]
        int64_t received[257]
    int64_t ckc_block_bytes(int64_t inline_bytes, int64_t stage_bytes)
    int64_t ckc_ring_memory_bytes(int64_t ring_bytes)
    const ckc_call *ckc_call_of(const ckc_channel *channel, int rank, uint64_t seq)
    const ckc_parts *ckc_parts_of(const ckc_channel *channel, int rank, uint64_t seq)
    void ckc_who_is_here(const ckc_channel *channel, uint64_t seq, uint64_t tick, uint8_t *here)
    int (*ckc_shm_advance[6])(ckc_op *) noexcept
    int ckc_stream_send(ckc_op *op) noexcept
    int ckc_stream_recv(ckc_op *op) noexcept

cdef extern from "<sys/uio.h>" nogil:
    ctypedef struct iovec "struct iovec":
        void *iov_base
        size_t iov_len

cdef extern from "wire.h" nogil:
    const int CKC_HEADER_SENT, CKC_HEADER_RECEIVED, CKC_STEP_SEND, CKC_STEP_RECV
    ctypedef struct ckc_step:
        int64_t round, kind, peer, place, at, count, first, sources
    ctypedef struct ckc_source:
        int64_t place, at
    ctypedef struct ckc_link:
        int64_t (*push)(ckc_link *link, const iovec *parts, int count) noexcept
        int64_t (*pull)(ckc_link *link, void *into, int64_t bytes) noexcept
        int (*flushed)(ckc_link *link) noexcept
        const char *(*why)(ckc_link *link) noexcept
        int fd
        int (*arm)(ckc_link *link, int waits_for) noexcept
    const char *CKC_LINK_CAPSULE
    ctypedef struct ckc_wire:
        ckc_queue queue
        ckc_world *world
        int rank, size
        ckc_link *links[256]
        int names[256]
        uint64_t seq
    ctypedef struct ckc_run_state:
        const ckc_step *steps
        const ckc_source *sources
        int64_t step_count, round_end, next
        int64_t *moved
        char *scratch
        uint8_t partners[256]
        uint8_t sent[256]
        uint8_t received[256]
        int begun, agreed
        ckc_call theirs[256]
    int ckc_wire_advance(ckc_op *op) noexcept
    void ckc_wire_spoil(ckc_op *op, const ckc_op *met) noexcept
    int ckc_wire_wanted(ckc_op *op, pollfd *fds, int limit) noexcept

cdef extern from "delay.h" nogil:
    ctypedef struct ckc_delay:
        ckc_link link
    int ckc_make_delay(ckc_delay *delay, int64_t latency_ns, double bytes_per_s)
    void ckc_free_delay(ckc_delay *delay)

cdef extern from "sockets.h" nogil:
    const int CKC_MAX_STRIPES
    ctypedef struct ckc_stripes:
        ckc_link link
    void ckc_make_socket_link(ckc_link *link, int fd)
    int ckc_make_stripes(ckc_stripes *stripes, const int *fds, int count)
    void ckc_free_stripes(ckc_stripes *stripes)

cdef extern from "rdma.h" nogil:
    const int CKC_RDMA_SENDS, CKC_RDMA_RECEIVES, CKC_RDMA_GRANTS, CKC_RDMA_REGIONS, CKC_RDMA_MESSAGES
    const char *CKC_PORT_CAPSULE
    ctypedef struct ckc_write:
        uint64_t local, remote, id
        uint32_t lkey, rkey, bytes, imm
        int signaled, inlined, silent
    ctypedef struct ckc_completion:
        uint64_t id
        uint32_t imm
        int arrival, status
    ctypedef struct ckc_port:
        int fd
    ctypedef struct ckc_grant:
        uint64_t position
    ctypedef struct ckc_note:
        uint64_t check
    ctypedef struct ckc_region:
        uint64_t begin, end
        uint32_t lkey, rkey
    ctypedef struct ckc_regions:
        ckc_region at[256]
        int count
    ctypedef struct ckc_rdma_link:
        ckc_link link
        ckc_port *port
        const ckc_regions *regions
        int64_t ring_bytes, chunk_bytes, inline_bytes, direct_bytes
        int status
        char *stage
        char *ring
        ckc_grant *granted
        ckc_grant *grants
        ckc_note *noted
        ckc_note *notes
        uint32_t own_key, remote_key
        uint64_t remote_ring, remote_granted, remote_noted, sent, pushed, direct
        int peer_looks
    int ckc_open_rdma_link(ckc_rdma_link *link)
    int ckc_end_rdma_link(ckc_rdma_link *link)

cdef extern from "postbox.h" nogil:
    ctypedef struct ckc_postbox
    ctypedef struct ckc_postroom:
        ckc_postbox *waiting
    ctypedef struct ckc_postbox:
        ckc_port port
        ckc_postbox *next
        int index, is_waiting, receives, write_count
        ckc_write writes[64]
    void ckc_make_postbox(ckc_postbox *box, ckc_postroom *room, int index)
    void ckc_deliver(ckc_postbox *box, const ckc_completion *completion)

cdef extern from "memory.h" nogil:
    void *ckc_map(int fd, int64_t bytes)
    void ckc_unmap(void *base, int64_t bytes)
    int64_t ckc_make_huge(void *base, int64_t bytes, int owner)

cdef extern from *:
    """
    #define CKC_LOAD(x) atomic_load_explicit(&(x), memory_order_acquire)
    #define CKC_STORE(x, value) atomic_store_explicit(&(x), (value), memory_order_release)
    #define CKC_ADD(x, value) atomic_fetch_add_explicit(&(x), (value), memory_order_release)
    """
    int CKC_LOAD(...) nogil
    uint64_t CKC_LOAD64 "CKC_LOAD"(...) nogil
    int64_t CKC_PEEK(...) nogil
    void CKC_STORE(...) nogil
    void CKC_ADD(...) nogil
