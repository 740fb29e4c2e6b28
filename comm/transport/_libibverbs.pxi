"""What `_verbs_native.pyx` uses of libibverbs (its public header, <infiniband/verbs.h>) and the C library."""

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


cdef extern from "<infiniband/verbs.h>" nogil:
    union ibv_gid:
        uint8_t raw[16]

    struct ibv_device:
        pass

    struct ibv_context:
        int async_fd

    struct ibv_pd:
        pass

    struct ibv_mr:
        uint32_t lkey
        uint32_t rkey

    struct ibv_comp_channel:
        int fd

    struct ibv_cq:
        int cqe

    struct ibv_qp:
        uint32_t qp_num

    struct ibv_device_attr:
        uint64_t max_mr_size
        int max_qp_wr
        int max_cqe
        int max_qp_rd_atom
        int atomic_cap

    struct ibv_port_attr:
        int state
        int active_mtu
        uint32_t max_msg_sz
        uint16_t lid
        uint8_t link_layer

    struct ibv_qp_cap:
        uint32_t max_send_wr
        uint32_t max_recv_wr
        uint32_t max_send_sge
        uint32_t max_recv_sge
        uint32_t max_inline_data

    struct ibv_qp_init_attr:
        ibv_cq *send_cq
        ibv_cq *recv_cq
        ibv_qp_cap cap
        int qp_type
        int sq_sig_all

    struct ibv_global_route:
        ibv_gid dgid
        uint8_t sgid_index
        uint8_t hop_limit
        uint8_t traffic_class

    struct ibv_ah_attr:
        ibv_global_route grh
        uint16_t dlid
        uint8_t sl
        uint8_t is_global
        uint8_t port_num

    struct ibv_qp_attr:
        int qp_state
        int path_mtu
        uint32_t rq_psn
        uint32_t sq_psn
        uint32_t dest_qp_num
        unsigned int qp_access_flags
        ibv_ah_attr ah_attr
        uint16_t pkey_index
        uint8_t max_rd_atomic
        uint8_t max_dest_rd_atomic
        uint8_t min_rnr_timer
        uint8_t port_num
        uint8_t timeout
        uint8_t retry_cnt
        uint8_t rnr_retry

    struct ibv_sge:
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

    struct ibv_send_wr:
        uint64_t wr_id
        ibv_send_wr *next
        ibv_sge *sg_list
        int num_sge
        int opcode
        unsigned int send_flags
        uint32_t imm_data
        union_of_send_wr wr

    struct ibv_recv_wr:
        uint64_t wr_id
        ibv_recv_wr *next
        ibv_sge *sg_list
        int num_sge

    struct ibv_wc:
        uint64_t wr_id
        int status
        int opcode
        uint32_t byte_len
        uint32_t imm_data
        uint32_t qp_num
        unsigned int wc_flags

    struct ibv_async_event:
        int event_type

    int IBV_PORT_ACTIVE, IBV_LINK_LAYER_ETHERNET, IBV_ATOMIC_NONE, IBV_QPT_RC
    int IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS, IBV_QPS_ERR
    int IBV_QP_STATE, IBV_QP_PKEY_INDEX, IBV_QP_PORT, IBV_QP_ACCESS_FLAGS, IBV_QP_AV, IBV_QP_PATH_MTU
    int IBV_QP_DEST_QPN, IBV_QP_RQ_PSN, IBV_QP_MAX_DEST_RD_ATOMIC, IBV_QP_MIN_RNR_TIMER, IBV_QP_SQ_PSN
    int IBV_QP_TIMEOUT, IBV_QP_RETRY_CNT, IBV_QP_RNR_RETRY, IBV_QP_MAX_QP_RD_ATOMIC
    int IBV_WR_RDMA_WRITE, IBV_WR_RDMA_WRITE_WITH_IMM, IBV_WR_RDMA_READ, IBV_WR_SEND, IBV_WR_SEND_WITH_IMM
    int IBV_WR_ATOMIC_CMP_AND_SWP, IBV_WR_ATOMIC_FETCH_AND_ADD
    int IBV_SEND_SIGNALED, IBV_SEND_INLINE, IBV_WC_WITH_IMM

    ibv_device **ibv_get_device_list(int *)
    void ibv_free_device_list(ibv_device **)
    const char *ibv_get_device_name(ibv_device *)
    ibv_context *ibv_open_device(ibv_device *)
    int ibv_close_device(ibv_context *)
    int ibv_query_device(ibv_context *, ibv_device_attr *)
    int ibv_query_port(ibv_context *, uint8_t, ibv_port_attr *)
    int ibv_get_async_event(ibv_context *, ibv_async_event *)
    void ibv_ack_async_event(ibv_async_event *)
    ibv_pd *ibv_alloc_pd(ibv_context *)
    int ibv_dealloc_pd(ibv_pd *)
    ibv_mr *ibv_reg_mr(ibv_pd *, void *, size_t, unsigned int)
    int ibv_dereg_mr(ibv_mr *)
    ibv_comp_channel *ibv_create_comp_channel(ibv_context *)
    int ibv_destroy_comp_channel(ibv_comp_channel *)
    ibv_cq *ibv_create_cq(ibv_context *, int, void *, ibv_comp_channel *, int)
    int ibv_destroy_cq(ibv_cq *)
    int ibv_poll_cq(ibv_cq *, int, ibv_wc *)
    int ibv_req_notify_cq(ibv_cq *, int)
    int ibv_get_cq_event(ibv_comp_channel *, ibv_cq **, void **)
    void ibv_ack_cq_events(ibv_cq *, unsigned int)
    ibv_qp *ibv_create_qp(ibv_pd *, ibv_qp_init_attr *)
    int ibv_modify_qp(ibv_qp *, ibv_qp_attr *, int)
    int ibv_query_qp(ibv_qp *, ibv_qp_attr *, int, ibv_qp_init_attr *)
    int ibv_destroy_qp(ibv_qp *)
    int ibv_post_send(ibv_qp *, ibv_send_wr *, ibv_send_wr **)
    int ibv_post_recv(ibv_qp *, ibv_recv_wr *, ibv_recv_wr **)


cdef extern from "verbs_port.h" nogil:
    const char *CKC_PORT_CAPSULE
    ctypedef struct ckc_port:
        int fd
    ctypedef struct ckc_verbs_port:
        ckc_port port
    void ckc_make_verbs_port(ckc_verbs_port *, ibv_qp *, ibv_cq *, ibv_comp_channel *)
