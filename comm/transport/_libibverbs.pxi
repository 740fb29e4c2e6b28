"""What `_verbs_native.pyx` uses of libibverbs (csrc/libibverbs.h) and the C library."""

cdef extern from "<arpa/inet.h>" nogil:
    uint32_t htonl(uint32_t)
    uint32_t ntohl(uint32_t)


cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int c_poll "poll"(pollfd *, unsigned long, int)
    short POLLIN


cdef extern from "<fcntl.h>" nogil:
    int fcntl(int, int, ...)
    int F_GETFL, F_SETFL, O_NONBLOCK


cdef extern from "<sched.h>" nogil:
    int sched_yield()


cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int, timespec *)
    int CLOCK_MONOTONIC


cdef extern from "libibverbs.h" nogil:
    ctypedef union ckv_gid:
        uint8_t raw[16]

    ctypedef struct ckv_device:
        pass

    ctypedef struct ckv_context:
        int async_fd

    ctypedef struct ckv_pd:
        pass

    ctypedef struct ckv_mr:
        uint32_t lkey
        uint32_t rkey

    ctypedef struct ckv_comp_channel:
        int fd

    ctypedef struct ckv_cq:
        int cqe

    ctypedef struct ckv_qp:
        uint32_t qp_num

    ctypedef struct ckv_device_attr:
        uint64_t max_mr_size
        int max_qp_wr
        int max_cqe
        int max_qp_rd_atom
        int atomic_cap

    ctypedef struct ckv_port_attr:
        int state
        int active_mtu
        uint32_t max_msg_sz
        uint16_t lid
        uint8_t link_layer

    ctypedef struct ckv_qp_cap:
        uint32_t max_send_wr
        uint32_t max_recv_wr
        uint32_t max_send_sge
        uint32_t max_recv_sge
        uint32_t max_inline_data

    ctypedef struct ckv_qp_init_attr:
        ckv_cq *send_cq
        ckv_cq *recv_cq
        ckv_qp_cap cap
        int qp_type
        int sq_sig_all

    ctypedef struct ckv_global_route:
        ckv_gid dgid
        uint8_t sgid_index
        uint8_t hop_limit
        uint8_t traffic_class

    ctypedef struct ckv_ah_attr:
        ckv_global_route grh
        uint16_t dlid
        uint8_t sl
        uint8_t is_global
        uint8_t port_num

    ctypedef struct ckv_qp_attr:
        int qp_state
        int path_mtu
        uint32_t rq_psn
        uint32_t sq_psn
        uint32_t dest_qp_num
        unsigned int qp_access_flags
        ckv_ah_attr ah_attr
        uint16_t pkey_index
        uint8_t max_rd_atomic
        uint8_t max_dest_rd_atomic
        uint8_t min_rnr_timer
        uint8_t port_num
        uint8_t timeout
        uint8_t retry_cnt
        uint8_t rnr_retry

    ctypedef struct ckv_sge:
        uint64_t addr
        uint32_t length
        uint32_t lkey

    struct rdma_of_send_wr "":
        uint64_t remote_addr
        uint32_t rkey

    struct atomic_of_send_wr "":
        uint64_t remote_addr
        uint64_t compare_add
        uint64_t swap
        uint32_t rkey

    union union_of_send_wr "":
        rdma_of_send_wr rdma
        atomic_of_send_wr atomic

    ctypedef struct ckv_send_wr:
        uint64_t wr_id
        ckv_send_wr *next
        ckv_sge *sg_list
        int num_sge
        int opcode
        unsigned int send_flags
        uint32_t imm_data
        union_of_send_wr wr

    ctypedef struct ckv_recv_wr:
        uint64_t wr_id
        ckv_recv_wr *next
        ckv_sge *sg_list
        int num_sge

    ctypedef struct ckv_wc:
        uint64_t wr_id
        int status
        int opcode
        uint32_t byte_len
        uint32_t imm_data
        uint32_t qp_num
        unsigned int wc_flags

    ctypedef struct ckv_async_event:
        int event_type

    int CKV_PORT_ACTIVE, CKV_LINK_LAYER_ETHERNET, CKV_ATOMIC_NONE, CKV_QPT_RC
    int CKV_QPS_INIT, CKV_QPS_RTR, CKV_QPS_RTS, CKV_QPS_ERR
    int CKV_QP_STATE, CKV_QP_PKEY_INDEX, CKV_QP_PORT, CKV_QP_ACCESS_FLAGS, CKV_QP_AV, CKV_QP_PATH_MTU
    int CKV_QP_DEST_QPN, CKV_QP_RQ_PSN, CKV_QP_MAX_DEST_RD_ATOMIC, CKV_QP_MIN_RNR_TIMER, CKV_QP_SQ_PSN
    int CKV_QP_TIMEOUT, CKV_QP_RETRY_CNT, CKV_QP_RNR_RETRY, CKV_QP_MAX_QP_RD_ATOMIC
    int CKV_WR_RDMA_WRITE, CKV_WR_RDMA_WRITE_WITH_IMM, CKV_WR_RDMA_READ, CKV_WR_SEND, CKV_WR_SEND_WITH_IMM
    int CKV_WR_ATOMIC_CMP_AND_SWP, CKV_WR_ATOMIC_FETCH_AND_ADD
    int CKV_SEND_SIGNALED, CKV_SEND_INLINE, CKV_WC_WITH_IMM

    const char *ckv_open()
    ckv_device **ckv_get_device_list(int *)
    void ckv_free_device_list(ckv_device **)
    const char *ckv_get_device_name(ckv_device *)
    ckv_context *ckv_open_device(ckv_device *)
    int ckv_close_device(ckv_context *)
    int ckv_query_device(ckv_context *, ckv_device_attr *)
    int ckv_query_port(ckv_context *, uint8_t, ckv_port_attr *)
    int ckv_get_async_event(ckv_context *, ckv_async_event *)
    void ckv_ack_async_event(ckv_async_event *)
    ckv_pd *ckv_alloc_pd(ckv_context *)
    int ckv_dealloc_pd(ckv_pd *)
    ckv_mr *ckv_reg_mr(ckv_pd *, void *, size_t, unsigned int)
    int ckv_dereg_mr(ckv_mr *)
    ckv_comp_channel *ckv_create_comp_channel(ckv_context *)
    int ckv_destroy_comp_channel(ckv_comp_channel *)
    ckv_cq *ckv_create_cq(ckv_context *, int, void *, ckv_comp_channel *, int)
    int ckv_destroy_cq(ckv_cq *)
    int ckv_poll_cq(ckv_cq *, int, ckv_wc *)
    int ckv_req_notify_cq(ckv_cq *, int)
    int ckv_get_cq_event(ckv_comp_channel *, ckv_cq **, void **)
    void ckv_ack_cq_events(ckv_cq *, unsigned int)
    ckv_qp *ckv_create_qp(ckv_pd *, ckv_qp_init_attr *)
    int ckv_modify_qp(ckv_qp *, ckv_qp_attr *, int)
    int ckv_query_qp(ckv_qp *, ckv_qp_attr *, int, ckv_qp_init_attr *)
    int ckv_destroy_qp(ckv_qp *)
    int ckv_post_send(ckv_qp *, ckv_send_wr *, ckv_send_wr **)
    int ckv_post_recv(ckv_qp *, ckv_recv_wr *, ckv_recv_wr **)


cdef extern from "verbs_port.h" nogil:
    const char *CKC_PORT_CAPSULE
    ctypedef struct ckc_port:
        int fd
    ctypedef struct ckc_verbs_port:
        ckc_port port
    void ckc_make_verbs_port(ckc_verbs_port *, ckv_qp *, ckv_cq *, ckv_comp_channel *)
