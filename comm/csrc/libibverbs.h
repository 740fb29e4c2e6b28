/* The part of libibverbs that cktrain calls, declared here: the library is opened at run time, so that cktrain is built
 * without it and finds it whenever it is there.
 *
 * A ckv_ type has the layout of the ibv_ type of the same name, under which ibv_create_qp(3) and its kin describe the
 * fields; what nobody reads here is called unused. The layouts belong to the library's stable binary interface
 * (libibverbs.so.1). Where its header is there at the build, libibverbs_layout.c holds every layout and number against it.
 *
 * Posting and polling are no symbols of the library: a context holds pointers to its driver's functions. */
#ifndef CKC_LIBIBVERBS_H
#define CKC_LIBIBVERBS_H

#include <stddef.h>
#include <stdint.h>

enum { CKV_PORT_ACTIVE = 4, CKV_LINK_LAYER_ETHERNET = 2, CKV_ATOMIC_NONE = 0, CKV_QPT_RC = 2 };
enum { CKV_QPS_INIT = 1, CKV_QPS_RTR, CKV_QPS_RTS, CKV_QPS_ERR = 6 };
enum {
    CKV_QP_STATE = 1 << 0,
    CKV_QP_ACCESS_FLAGS = 1 << 3,
    CKV_QP_PKEY_INDEX = 1 << 4,
    CKV_QP_PORT = 1 << 5,
    CKV_QP_AV = 1 << 7,
    CKV_QP_PATH_MTU = 1 << 8,
    CKV_QP_TIMEOUT = 1 << 9,
    CKV_QP_RETRY_CNT = 1 << 10,
    CKV_QP_RNR_RETRY = 1 << 11,
    CKV_QP_RQ_PSN = 1 << 12,
    CKV_QP_MAX_QP_RD_ATOMIC = 1 << 13,
    CKV_QP_MIN_RNR_TIMER = 1 << 15,
    CKV_QP_SQ_PSN = 1 << 16,
    CKV_QP_MAX_DEST_RD_ATOMIC = 1 << 17,
    CKV_QP_DEST_QPN = 1 << 20,
};
enum {
    CKV_WR_RDMA_WRITE,
    CKV_WR_RDMA_WRITE_WITH_IMM,
    CKV_WR_SEND,
    CKV_WR_SEND_WITH_IMM,
    CKV_WR_RDMA_READ,
    CKV_WR_ATOMIC_CMP_AND_SWP,
    CKV_WR_ATOMIC_FETCH_AND_ADD,
};
enum { CKV_SEND_SIGNALED = 1 << 1, CKV_SEND_INLINE = 1 << 3, CKV_WC_WITH_IMM = 1 << 1, CKV_WC_RECV = 1 << 7 };

typedef struct ckv_device ckv_device;
typedef struct ckv_pd ckv_pd;
typedef struct ckv_cq ckv_cq;
typedef struct ckv_qp ckv_qp;

typedef union {
    uint8_t raw[16];
    uint64_t unused[2];                 /* whose alignment it has */
} ckv_gid;

typedef struct {
    uint64_t addr;
    uint32_t length, lkey;
} ckv_sge;

typedef struct ckv_send_wr {
    uint64_t wr_id;
    struct ckv_send_wr *next;
    ckv_sge *sg_list;
    int num_sge, opcode;
    unsigned send_flags;
    uint32_t imm_data;                  /* in network order */
    union {
        struct { uint64_t remote_addr; uint32_t rkey; } rdma;
        struct { uint64_t remote_addr, compare_add, swap; uint32_t rkey; } atomic;
    } wr;
    uint64_t unused[7];
} ckv_send_wr;

typedef struct ckv_recv_wr {
    uint64_t wr_id;
    struct ckv_recv_wr *next;
    ckv_sge *sg_list;
    int num_sge;
} ckv_recv_wr;

typedef struct {
    uint64_t wr_id;
    int status, opcode;
    uint32_t unused, byte_len;
    uint32_t imm_data;                  /* in network order */
    uint32_t qp_num, unused_too;
    unsigned wc_flags;
    uint16_t unused_at_end[3];
} ckv_wc;

typedef struct {
    void *unused[11];
    int (*poll_cq)(ckv_cq *, int, ckv_wc *);
    int (*req_notify_cq)(ckv_cq *, int);
    void *unused_too[12];
    int (*post_send)(ckv_qp *, ckv_send_wr *, ckv_send_wr **);
    int (*post_recv)(ckv_qp *, ckv_recv_wr *, ckv_recv_wr **);
    void *unused_at_end[5];
} ckv_context_ops;

/* These five are made by the library and only looked at: they may be longer. */
typedef struct {
    ckv_device *device;
    ckv_context_ops ops;
    int cmd_fd, async_fd;
} ckv_context;

typedef struct {
    void *unused[3];
    size_t length;
    uint32_t handle, lkey, rkey;
} ckv_mr;

typedef struct {
    ckv_context *context;
    int fd;
} ckv_comp_channel;

struct ckv_cq {
    ckv_context *context;
    void *unused[2];
    uint32_t handle;
    int cqe;
};

struct ckv_qp {
    ckv_context *context;
    void *unused[5];
    uint32_t handle, qp_num;
};

typedef struct {
    char unused[64];
    uint64_t unused_too[2], max_mr_size, page_size_cap;
    uint32_t vendor[3];
    int max_qp, max_qp_wr;
    unsigned device_cap_flags;
    int max_sge[2], max_cq, max_cqe, max_mr, max_pd, max_qp_rd_atom, further_reads[4], atomic_cap;
    int unused_at_end[15];
} ckv_device_attr;

typedef struct {
    int state, max_mtu, active_mtu, gid_tbl_len;
    uint32_t port_cap_flags, max_msg_sz, counters[2];
    uint16_t pkey_tbl_len, lid, sm_lid;
    uint8_t unused[8], link_layer, flags;
    uint16_t port_cap_flags2;
} ckv_port_attr;

typedef struct {
    void *element;
    int event_type;
} ckv_async_event;

typedef struct { uint32_t max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data; } ckv_qp_cap;

typedef struct {
    void *qp_context;
    ckv_cq *send_cq, *recv_cq;
    void *srq;
    ckv_qp_cap cap;
    int qp_type, sq_sig_all;
} ckv_qp_init_attr;

typedef struct {
    ckv_gid dgid;
    uint32_t flow_label;
    uint8_t sgid_index, hop_limit, traffic_class;
} ckv_global_route;

typedef struct {
    ckv_global_route grh;
    uint16_t dlid;
    uint8_t sl, src_path_bits, static_rate, is_global, port_num;
} ckv_ah_attr;

typedef struct {
    int qp_state, cur_qp_state, path_mtu, path_mig_state;
    uint32_t qkey, rq_psn, sq_psn, dest_qp_num;
    unsigned qp_access_flags;
    ckv_qp_cap cap;
    ckv_ah_attr ah_attr, alt_ah_attr;
    uint16_t pkey_index, alt_pkey_index;
    uint8_t en_sqd_async_notify, sq_draining, max_rd_atomic, max_dest_rd_atomic, min_rnr_timer, port_num, timeout;
    uint8_t retry_cnt, rnr_retry, alt_port_num, alt_timeout;
    uint32_t rate_limit;
} ckv_qp_attr;

/* result, name without ibv_, parameters, arguments. query_port fills the fields up to `flags`. */
#define CKV_API(X)                                                                                             \
    X(ckv_device **, get_device_list, (int *count), (count))                                                   \
    X(void, free_device_list, (ckv_device **devices), (devices))                                               \
    X(const char *, get_device_name, (ckv_device *device), (device))                                           \
    X(ckv_context *, open_device, (ckv_device *device), (device))                                              \
    X(int, close_device, (ckv_context *context), (context))                                                    \
    X(int, query_device, (ckv_context *context, ckv_device_attr *found), (context, found))                     \
    X(int, query_port, (ckv_context *context, uint8_t port, ckv_port_attr *found), (context, port, found))     \
    X(int, get_async_event, (ckv_context *context, ckv_async_event *event), (context, event))                  \
    X(void, ack_async_event, (ckv_async_event *event), (event))                                                \
    X(ckv_pd *, alloc_pd, (ckv_context *context), (context))                                                   \
    X(int, dealloc_pd, (ckv_pd *domain), (domain))                                                             \
    X(ckv_mr *, reg_mr, (ckv_pd *domain, void *address, size_t bytes, int access),                             \
      (domain, address, bytes, access))                                                                        \
    X(int, dereg_mr, (ckv_mr *region), (region))                                                               \
    X(ckv_comp_channel *, create_comp_channel, (ckv_context *context), (context))                              \
    X(int, destroy_comp_channel, (ckv_comp_channel *channel), (channel))                                       \
    X(ckv_cq *, create_cq,                                                                                     \
      (ckv_context *context, int entries, void *own, ckv_comp_channel *channel, int vector),                   \
      (context, entries, own, channel, vector))                                                                \
    X(int, destroy_cq, (ckv_cq *queue), (queue))                                                               \
    X(int, get_cq_event, (ckv_comp_channel *channel, ckv_cq **queue, void **own), (channel, queue, own))       \
    X(void, ack_cq_events, (ckv_cq *queue, unsigned count), (queue, count))                                    \
    X(ckv_qp *, create_qp, (ckv_pd *domain, ckv_qp_init_attr *wanted), (domain, wanted))                       \
    X(int, modify_qp, (ckv_qp *pair, ckv_qp_attr *wanted, int mask), (pair, wanted, mask))                     \
    X(int, query_qp, (ckv_qp *pair, ckv_qp_attr *found, int mask, ckv_qp_init_attr *made),                     \
      (pair, found, mask, made))                                                                               \
    X(int, destroy_qp, (ckv_qp *pair), (pair))

/* Opens the library, once; NULL, or why it cannot be had, as the dynamic linker says it. Before this nothing may be called. */
const char *ckv_open(void);

#define CKV_DECLARE(result, name, parameters, arguments) result ckv_##name parameters;
CKV_API(CKV_DECLARE)
#undef CKV_DECLARE

static inline int ckv_poll_cq(ckv_cq *queue, int limit, ckv_wc *into) {
    return queue->context->ops.poll_cq(queue, limit, into);
}
static inline int ckv_req_notify_cq(ckv_cq *queue, int solicited_only) {
    return queue->context->ops.req_notify_cq(queue, solicited_only);
}
static inline int ckv_post_send(ckv_qp *pair, ckv_send_wr *requests, ckv_send_wr **refused) {
    return pair->context->ops.post_send(pair, requests, refused);
}
static inline int ckv_post_recv(ckv_qp *pair, ckv_recv_wr *requests, ckv_recv_wr **refused) {
    return pair->context->ops.post_recv(pair, requests, refused);
}
#endif
