"""The verbs seam (`verbs.py`) over libibverbs' public C interface, for any Python and without the GIL.

Every call on the data path is made with the GIL released: on soft-RoCE a post runs the whole transfer in the
caller's context, and a poll may wait.
"""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.pycapsule cimport PyCapsule_New
from libc.errno cimport EINTR, ENODEV, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

from cktrain.comm.transport import verbs
from cktrain.comm.transport.verbs import Completion, VerbsError

NAME = "native"


include "_libibverbs.pxi"


cdef const char *_no_library = ckv_open()
if _no_library != NULL:
    raise ImportError(_no_library.decode())


# Completions that one look at a queue takes at most.
cdef enum:
    BATCH = 64

cdef double SPIN_S = verbs.SPIN_S


cdef double _now() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return t.tv_sec + t.tv_nsec * 1e-9


def device_names():
    """Names of the RDMA devices that libibverbs sees; none where the kernel has no RDMA."""
    cdef int count = 0
    cdef ckv_device **devices = ckv_get_device_list(&count)
    if devices == NULL:
        return []
    try:
        return [ckv_get_device_name(devices[i]).decode() for i in range(count)]
    finally:
        ckv_free_device_list(devices)


def open_device(str name):
    """Open a device and make its protection domain."""
    return Context(name)


cdef class Context:
    """An open device and its protection domain."""

    cdef ckv_context *context
    cdef ckv_pd *domain
    cdef readonly str name
    cdef list queue_pairs, queues, regions

    def __init__(self, str name):
        cdef int count = 0
        cdef int code = ENODEV
        cdef ckv_device **devices = ckv_get_device_list(&count)
        self.name = name
        self.queue_pairs, self.queues, self.regions = [], [], []
        if devices != NULL:
            for i in range(count):
                if ckv_get_device_name(devices[i]).decode() == name:
                    self.context = ckv_open_device(devices[i])
                    code = errno
            ckv_free_device_list(devices)
        if self.context == NULL:
            raise VerbsError("ibv_open_device", code, name)
        # Events are asked for, never waited for.
        fcntl(self.context.async_fd, F_SETFL, fcntl(self.context.async_fd, F_GETFL) | O_NONBLOCK)
        self.domain = ckv_alloc_pd(self.context)
        if self.domain == NULL:
            code = errno
            ckv_close_device(self.context)
            self.context = NULL
            raise VerbsError("ibv_alloc_pd", code, name)

    cdef _open(self):
        if self.context == NULL:
            raise verbs.closed(f"the context of {self.name}")

    def query_device(self):
        """Return the device's limits."""
        cdef ckv_device_attr found
        self._open()
        _check(ckv_query_device(self.context, &found), "ibv_query_device", self.name)
        return verbs.DeviceLimits(
            found.max_qp_wr, found.max_cqe, found.max_mr_size, found.max_qp_rd_atom,
            found.atomic_cap != CKV_ATOMIC_NONE,
        )

    def query_port(self, int port=1):
        """Return a port's state now."""
        cdef ckv_port_attr found
        self._open()
        _check(ckv_query_port(self.context, port, &found), "ibv_query_port", f"port {port} of {self.name}")
        return verbs.Port(
            found.state == CKV_PORT_ACTIVE, 128 << found.active_mtu, found.lid,
            found.link_layer == CKV_LINK_LAYER_ETHERNET, found.max_msg_sz,
        )

    def register(self, buffer, unsigned int access=verbs.ACCESS_ALL):
        """Register a writable, contiguous buffer."""
        self._open()
        return MemoryRegion(self, buffer, access)

    def create_completion_queue(self, int entries):
        """Return a queue with room for at least `entries` completions."""
        self._open()
        return CompletionQueue(self, entries)

    def create_queue_pair(
        self, CompletionQueue send_queue not None, CompletionQueue receive_queue not None,
        uint32_t send_entries, uint32_t receive_entries, uint32_t inline_bytes=64,
    ):
        """Return a reliable-connection queue pair in state RESET."""
        self._open()
        return QueuePair(self, send_queue, receive_queue, send_entries, receive_entries, inline_bytes)

    def events(self):
        """Return the names of the asynchronous events since the last call."""
        cdef ckv_async_event event
        cdef list names = []
        self._open()
        while ckv_get_async_event(self.context, &event) == 0:
            ckv_ack_async_event(&event)
            names.append(verbs.event_name(event.event_type))
        return names

    def close(self):
        """Close what was made from this context, queue pairs first, then the device."""
        if self.context == NULL:
            return
        for child in reversed([*self.regions, *self.queues, *self.queue_pairs]):
            child.close()
        _check(ckv_dealloc_pd(self.domain), "ibv_dealloc_pd", self.name)
        _check(ckv_close_device(self.context), "ibv_close_device", self.name)
        self.context = NULL


cdef class MemoryRegion:
    """Registered memory."""

    cdef ckv_mr *region
    cdef Context context
    cdef object bytes
    cdef readonly uint64_t address, length
    cdef readonly uint32_t lkey, rkey

    def __init__(self, Context context, buffer, unsigned int access):
        cdef int code
        self.bytes = verbs.bytes_of(buffer)
        self.address = self.bytes.ctypes.data
        self.length = self.bytes.size
        with nogil:
            self.region = ckv_reg_mr(context.domain, <void *><uintptr_t>self.address, self.length, access)
            code = errno
        if self.region == NULL:
            raise VerbsError("ibv_reg_mr", code, f"{self.length:,} bytes for {context.name}")
        self.lkey, self.rkey = self.region.lkey, self.region.rkey
        self.context = context
        context.regions.append(self)

    def close(self):
        """Take the registration back and let go of the buffer."""
        cdef int code = 0
        if self.region == NULL:
            return
        with nogil:
            code = ckv_dereg_mr(self.region)
        _check(code, "ibv_dereg_mr", f"{self.length:,} bytes for {self.context.name}")
        self.region = NULL
        self.bytes = None
        self.context.regions.remove(self)


cdef class CompletionQueue:
    """Where finished work requests are reported."""

    cdef ckv_cq *queue
    cdef ckv_comp_channel *channel
    cdef Context context
    cdef readonly int entries
    cdef int reserved

    def __init__(self, Context context, int entries):
        cdef int code
        self.channel = ckv_create_comp_channel(context.context)
        if self.channel == NULL:
            raise VerbsError("ibv_create_comp_channel", errno, context.name)
        fcntl(self.channel.fd, F_SETFL, fcntl(self.channel.fd, F_GETFL) | O_NONBLOCK)
        self.queue = ckv_create_cq(context.context, entries, NULL, self.channel, 0)
        if self.queue == NULL:
            code = errno
            ckv_destroy_comp_channel(self.channel)
            raise VerbsError("ibv_create_cq", code, f"{context.name} with {entries} entries")
        self.entries = self.queue.cqe
        self.context = context
        context.queues.append(self)

    def poll(self, int max_entries=16, double timeout_s=0.0):
        """Return finished work requests: as soon as there are any, at the latest after `timeout_s`."""
        cdef ckv_wc found[BATCH]
        cdef int count
        if self.queue == NULL:
            raise verbs.closed("the completion queue")
        if max_entries > BATCH:
            max_entries = BATCH
        with nogil:
            count = ckv_poll_cq(self.queue, max_entries, found)
            if count == 0 and timeout_s > 0:
                count = _wait(self.queue, self.channel, max_entries, found, timeout_s)
        if count < 0:
            raise VerbsError("ibv_poll_cq", -count, "a completion queue")
        return [_completion(&found[i]) for i in range(count)]

    def close(self):
        """Destroy the queue; its queue pairs must be closed."""
        if self.queue == NULL:
            return
        _check(ckv_destroy_cq(self.queue), "ibv_destroy_cq", "a completion queue")
        self.queue = NULL
        _check(ckv_destroy_comp_channel(self.channel), "ibv_destroy_comp_channel", "a completion queue")
        self.context.queues.remove(self)


cdef int _wait(
    ckv_cq *queue, ckv_comp_channel *channel, int max_entries, ckv_wc *found, double timeout_s
) noexcept nogil:
    """Poll until something is found or the time is over: spin, then sleep on the completion channel."""
    cdef double began = _now()
    cdef double waited = 0.0
    cdef int count = 0
    cdef pollfd waiting
    cdef ckv_cq *woken = NULL
    cdef void *unused = NULL
    while waited < SPIN_S and waited < timeout_s:
        count = ckv_poll_cq(queue, max_entries, found)
        if count != 0:
            return count
        sched_yield()
        waited = _now() - began
    waiting.fd = channel.fd
    waiting.events = POLLIN
    while waited < timeout_s:
        # A completion that comes between the last look and this request would wake nobody: look once more.
        count = ckv_req_notify_cq(queue, 0)
        if count != 0:
            return -count if count > 0 else -errno
        count = ckv_poll_cq(queue, max_entries, found)
        if count != 0:
            return count
        if c_poll(&waiting, 1, <int>((timeout_s - waited) * 1000) + 1) < 0 and errno != EINTR:
            return -errno
        if ckv_get_cq_event(channel, &woken, &unused) == 0:
            ckv_ack_cq_events(queue, 1)
        count = ckv_poll_cq(queue, max_entries, found)
        if count != 0:
            return count
        waited = _now() - began
    return 0


cdef object _completion(ckv_wc *found):
    if found.status != 0:
        return tuple.__new__(Completion, (found.wr_id, found.status, 0, 0, None, found.qp_num))
    return tuple.__new__(
        Completion,
        (
            found.wr_id, 0, found.opcode, found.byte_len,
            ntohl(found.imm_data) if found.wc_flags & CKV_WC_WITH_IMM else None, found.qp_num,
        ),
    )


cdef class QueuePair:
    """A reliable connection."""

    cdef ckv_qp *pair
    cdef Context context
    cdef CompletionQueue send_queue, receive_queue
    cdef uint32_t send_entries, receive_entries
    cdef readonly uint32_t number
    cdef ckc_verbs_port driven

    def __init__(
        self, Context context, CompletionQueue send_queue, CompletionQueue receive_queue,
        uint32_t send_entries, uint32_t receive_entries, uint32_t inline_bytes,
    ):
        cdef ckv_qp_init_attr wanted
        cdef int code
        self.context = context
        self.send_queue, self.receive_queue = send_queue, receive_queue
        self.send_entries, self.receive_entries = send_entries, receive_entries
        _reserve(send_queue, send_entries)
        try:
            _reserve(receive_queue, receive_entries)
        except ValueError:
            send_queue.reserved -= send_entries
            raise
        memset(&wanted, 0, sizeof(wanted))
        wanted.send_cq, wanted.recv_cq = send_queue.queue, receive_queue.queue
        wanted.qp_type = CKV_QPT_RC
        wanted.cap.max_send_wr, wanted.cap.max_recv_wr = send_entries, receive_entries
        wanted.cap.max_send_sge = wanted.cap.max_recv_sge = 1
        wanted.cap.max_inline_data = inline_bytes
        with nogil:
            self.pair = ckv_create_qp(context.domain, &wanted)
            code = errno
        if self.pair == NULL:
            self._release()
            raise VerbsError("ibv_create_qp", code, f"{context.name} with {send_entries} sends")
        self.number = self.pair.qp_num
        context.queue_pairs.append(self)

    cdef _release(self):
        self.send_queue.reserved -= self.send_entries
        self.receive_queue.reserved -= self.receive_entries

    cdef _open(self):
        if self.pair == NULL:
            raise verbs.closed(f"queue pair {self.number}")

    def port(self):
        """The queue pair as a capsule with a ckc_port (csrc/rdma.h), for a link to drive. It must outlive the link,
        and its queue must serve no other queue pair."""
        assert self.send_queue is self.receive_queue
        self._open()
        ckc_make_verbs_port(&self.driven, self.pair, self.send_queue.queue, self.send_queue.channel)
        return PyCapsule_New(&self.driven.port, CKC_PORT_CAPSULE, NULL)

    @property
    def state(self):
        """One of STATE_NAMES, asked of the device."""
        cdef ckv_qp_attr found
        cdef ckv_qp_init_attr unused
        self._open()
        _check(ckv_query_qp(self.pair, &found, CKV_QP_STATE, &unused), "ibv_query_qp", self._about())
        return verbs.STATE_NAMES[found.qp_state]

    cdef str _about(self):
        return f"queue pair {self.number}"

    cdef _modify(self, ckv_qp_attr *wanted, int mask, str state):
        cdef int code
        self._open()
        with nogil:
            code = ckv_modify_qp(self.pair, wanted, mask | CKV_QP_STATE)
        _check(code, f"ibv_modify_qp to {state}", self._about())

    def to_init(self, int port, int pkey_index, unsigned int access):
        """RESET -> INIT."""
        cdef ckv_qp_attr wanted
        memset(&wanted, 0, sizeof(wanted))
        wanted.qp_state = CKV_QPS_INIT
        wanted.port_num, wanted.pkey_index, wanted.qp_access_flags = port, pkey_index, access
        self._modify(&wanted, CKV_QP_PKEY_INDEX | CKV_QP_PORT | CKV_QP_ACCESS_FLAGS, "INIT")

    def to_rtr(
        self, *, uint32_t peer_number, uint32_t peer_psn, int mtu, int port, int peer_lid, bytes peer_gid,
        int gid_index, int traffic_class, int hop_limit, int service_level, int max_reads, int min_rnr_timer,
    ):
        """INIT -> RTR: name the peer."""
        cdef ckv_qp_attr wanted
        memset(&wanted, 0, sizeof(wanted))
        wanted.qp_state = CKV_QPS_RTR
        wanted.dest_qp_num, wanted.rq_psn = peer_number, peer_psn
        wanted.path_mtu = mtu.bit_length() - 8  # 256 -> 1, 4096 -> 5
        wanted.max_dest_rd_atomic, wanted.min_rnr_timer = max_reads, min_rnr_timer
        wanted.ah_attr.dlid, wanted.ah_attr.sl, wanted.ah_attr.port_num = peer_lid, service_level, port
        if peer_gid is not None:
            assert len(peer_gid) == 16
            wanted.ah_attr.is_global = 1
            memcpy(wanted.ah_attr.grh.dgid.raw, <const char *>peer_gid, 16)
            wanted.ah_attr.grh.sgid_index, wanted.ah_attr.grh.hop_limit = gid_index, hop_limit
            wanted.ah_attr.grh.traffic_class = traffic_class
        self._modify(
            &wanted,
            CKV_QP_AV | CKV_QP_PATH_MTU | CKV_QP_DEST_QPN | CKV_QP_RQ_PSN | CKV_QP_MAX_DEST_RD_ATOMIC
            | CKV_QP_MIN_RNR_TIMER,
            "RTR",
        )

    def to_rts(self, *, uint32_t psn, int timeout, int retry_count, int rnr_retry, int max_reads):
        """RTR -> RTS: say how patiently to send."""
        cdef ckv_qp_attr wanted
        memset(&wanted, 0, sizeof(wanted))
        wanted.qp_state = CKV_QPS_RTS
        wanted.sq_psn, wanted.timeout = psn, timeout
        wanted.retry_cnt, wanted.rnr_retry, wanted.max_rd_atomic = retry_count, rnr_retry, max_reads
        self._modify(
            &wanted,
            CKV_QP_SQ_PSN | CKV_QP_TIMEOUT | CKV_QP_RETRY_CNT | CKV_QP_RNR_RETRY | CKV_QP_MAX_QP_RD_ATOMIC,
            "RTS",
        )

    def to_error(self):
        """Any state -> ERR."""
        cdef ckv_qp_attr wanted
        memset(&wanted, 0, sizeof(wanted))
        wanted.qp_state = CKV_QPS_ERR
        self._modify(&wanted, 0, "ERR")

    def post_write(
        self, MemoryRegion region not None, uint64_t offset, uint64_t length, uint64_t remote_address,
        uint32_t remote_key, uint64_t wr_id=0, imm_data=None, bint signaled=True, bint inline=False,
    ):
        """Write bytes of `region` to the peer's memory."""
        cdef ckv_send_wr request
        cdef ckv_sge entry
        _fill(&request, &entry, region, offset, length, wr_id, signaled, inline)
        _fill_write(&request, remote_address, remote_key, imm_data)
        self._post(&request)

    def post_writes(self, MemoryRegion region not None, writes):
        """Post several writes, in order, as one chain."""
        cdef Py_ssize_t count = len(writes)
        cdef Py_ssize_t i
        cdef ckv_send_wr *requests
        cdef ckv_sge *entries
        if count == 0:
            return
        requests = <ckv_send_wr *>PyMem_Malloc(count * (sizeof(ckv_send_wr) + sizeof(ckv_sge)))
        if requests == NULL:
            raise MemoryError()
        entries = <ckv_sge *>(requests + count)
        try:
            for i in range(count):
                write = writes[i]
                _fill(&requests[i], &entries[i], region, write[0], write[1], write[4], write[6], False)
                _fill_write(&requests[i], write[2], write[3], write[5])
                if i:
                    requests[i - 1].next = &requests[i]
            self._post(requests)
        finally:
            PyMem_Free(requests)

    def post_read(
        self, MemoryRegion region not None, uint64_t offset, uint64_t length, uint64_t remote_address,
        uint32_t remote_key, uint64_t wr_id=0, bint signaled=True,
    ):
        """Read the peer's memory into `region`."""
        cdef ckv_send_wr request
        cdef ckv_sge entry
        _fill(&request, &entry, region, offset, length, wr_id, signaled, False)
        request.opcode = CKV_WR_RDMA_READ
        request.wr.rdma.remote_addr, request.wr.rdma.rkey = remote_address, remote_key
        self._post(&request)

    def post_send(
        self, MemoryRegion region not None, uint64_t offset, uint64_t length, uint64_t wr_id=0, imm_data=None,
        bint signaled=True, bint inline=False,
    ):
        """Send bytes into the buffer of the peer's next posted receive."""
        cdef ckv_send_wr request
        cdef ckv_sge entry
        _fill(&request, &entry, region, offset, length, wr_id, signaled, inline)
        request.opcode = CKV_WR_SEND
        if imm_data is not None:
            request.opcode = CKV_WR_SEND_WITH_IMM
            request.imm_data = htonl(imm_data)
        self._post(&request)

    def post_fetch_add(
        self, MemoryRegion region not None, uint64_t offset, uint64_t remote_address, uint32_t remote_key,
        uint64_t add, uint64_t wr_id=0,
    ):
        """Add to 8 aligned bytes of the peer."""
        cdef ckv_send_wr request
        cdef ckv_sge entry
        _fill(&request, &entry, region, offset, 8, wr_id, True, False)
        request.opcode = CKV_WR_ATOMIC_FETCH_AND_ADD
        request.wr.atomic.remote_addr, request.wr.atomic.rkey = remote_address, remote_key
        request.wr.atomic.compare_add = add
        self._post(&request)

    def post_compare_swap(
        self, MemoryRegion region not None, uint64_t offset, uint64_t remote_address, uint32_t remote_key,
        uint64_t compare, uint64_t swap, uint64_t wr_id=0,
    ):
        """Set 8 aligned bytes of the peer to `swap` if they equal `compare`."""
        cdef ckv_send_wr request
        cdef ckv_sge entry
        _fill(&request, &entry, region, offset, 8, wr_id, True, False)
        request.opcode = CKV_WR_ATOMIC_CMP_AND_SWP
        request.wr.atomic.remote_addr, request.wr.atomic.rkey = remote_address, remote_key
        request.wr.atomic.compare_add, request.wr.atomic.swap = compare, swap
        self._post(&request)

    cdef _post(self, ckv_send_wr *requests):
        cdef ckv_send_wr *refused = NULL
        cdef int code
        self._open()
        with nogil:
            code = ckv_post_send(self.pair, requests, &refused)
        _check(code, "ibv_post_send", self._about())

    def post_receive(
        self, MemoryRegion region not None, uint64_t offset, uint64_t length, uint64_t wr_id=0, int count=1,
    ):
        """Post `count` equal receives, as one chain."""
        cdef ckv_recv_wr requests[BATCH]
        cdef ckv_sge entry
        cdef ckv_recv_wr *refused = NULL
        cdef int code = 0
        cdef int batch, i
        self._open()
        if length > region.length or offset > region.length - length:
            raise verbs.outside(offset, length, region.length)
        entry.addr, entry.length, entry.lkey = region.address + offset, length, region.lkey
        with nogil:
            while count > 0 and code == 0:
                batch = min(count, <int>BATCH)
                for i in range(batch):
                    requests[i].wr_id = wr_id
                    requests[i].next = &requests[i + 1] if i + 1 < batch else NULL
                    requests[i].sg_list = &entry
                    requests[i].num_sge = 1 if length else 0
                code = ckv_post_recv(self.pair, requests, &refused)
                count -= batch
        _check(code, "ibv_post_recv", self._about())

    def close(self):
        """Destroy the queue pair."""
        cdef int code
        if self.pair == NULL:
            return
        with nogil:
            code = ckv_destroy_qp(self.pair)
        _check(code, "ibv_destroy_qp", self._about())
        self.pair = NULL
        self._release()
        self.context.queue_pairs.remove(self)


cdef _reserve(CompletionQueue queue, int entries):
    if queue.reserved + entries > queue.entries:
        raise verbs.no_room(queue.entries, queue.reserved, entries)
    queue.reserved += entries


cdef int _fill(
    ckv_send_wr *request, ckv_sge *entry, MemoryRegion region, uint64_t offset, uint64_t length,
    uint64_t wr_id, bint signaled, bint inline,
) except -1:
    """The fields that all sends have; the entry must live until the post returns."""
    if length > region.length or offset > region.length - length:
        raise verbs.outside(offset, length, region.length)
    entry.addr, entry.length, entry.lkey = region.address + offset, length, region.lkey
    memset(request, 0, sizeof(ckv_send_wr))
    request.wr_id = wr_id
    request.sg_list = entry
    request.num_sge = 1 if length else 0
    request.send_flags = (CKV_SEND_SIGNALED if signaled else 0) | (CKV_SEND_INLINE if inline else 0)
    return 0


cdef int _fill_write(ckv_send_wr *request, uint64_t remote_address, uint32_t remote_key, imm_data) except -1:
    request.opcode = CKV_WR_RDMA_WRITE
    if imm_data is not None:
        request.opcode = CKV_WR_RDMA_WRITE_WITH_IMM
        request.imm_data = htonl(imm_data)
    request.wr.rdma.remote_addr, request.wr.rdma.rkey = remote_address, remote_key
    return 0


cdef int _check(int code, str call, str about) except -1:
    """Raise what a call returned, unless it is 0; some versions return -1 and set errno."""
    if code != 0:
        raise VerbsError(call, code if code > 0 else errno, about)
    return 0
