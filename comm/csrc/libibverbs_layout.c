/* Compiles only where our declarations of libibverbs are those of its header, if that is there. */
#ifdef __has_include
#if __has_include(<infiniband/verbs.h>)
#include <infiniband/verbs.h>

#include "libibverbs.h"

#define SAME(ours, theirs) _Static_assert((ours) == (theirs), #ours " is not " #theirs)
#define FIELD_AT(type, field) SAME(offsetof(ckv_##type, field), offsetof(struct ibv_##type, field)); \
    SAME(sizeof((ckv_##type){0}.field), sizeof((struct ibv_##type){0}.field))
#define WHOLE(type) SAME(sizeof(ckv_##type), sizeof(struct ibv_##type)); \
    SAME(_Alignof(ckv_##type), _Alignof(struct ibv_##type))
#define NUMBER(name) SAME((int)CKV_##name, (int)IBV_##name)

SAME(sizeof(ckv_gid), sizeof(union ibv_gid));
WHOLE(sge); FIELD_AT(sge, addr); FIELD_AT(sge, length); FIELD_AT(sge, lkey);
WHOLE(send_wr); FIELD_AT(send_wr, wr_id); FIELD_AT(send_wr, next); FIELD_AT(send_wr, sg_list);
FIELD_AT(send_wr, num_sge); FIELD_AT(send_wr, opcode); FIELD_AT(send_wr, send_flags); FIELD_AT(send_wr, imm_data);
FIELD_AT(send_wr, wr.rdma.remote_addr); FIELD_AT(send_wr, wr.rdma.rkey); FIELD_AT(send_wr, wr.atomic.remote_addr);
FIELD_AT(send_wr, wr.atomic.compare_add); FIELD_AT(send_wr, wr.atomic.swap); FIELD_AT(send_wr, wr.atomic.rkey);
WHOLE(recv_wr); FIELD_AT(recv_wr, wr_id); FIELD_AT(recv_wr, next); FIELD_AT(recv_wr, sg_list);
FIELD_AT(recv_wr, num_sge);
WHOLE(wc); FIELD_AT(wc, wr_id); FIELD_AT(wc, status); FIELD_AT(wc, opcode); FIELD_AT(wc, byte_len);
FIELD_AT(wc, imm_data); FIELD_AT(wc, qp_num); FIELD_AT(wc, wc_flags);
WHOLE(context_ops); FIELD_AT(context_ops, poll_cq); FIELD_AT(context_ops, req_notify_cq);
FIELD_AT(context_ops, post_send); FIELD_AT(context_ops, post_recv); FIELD_AT(context, ops);
FIELD_AT(context, async_fd); FIELD_AT(mr, lkey); FIELD_AT(mr, rkey); FIELD_AT(comp_channel, fd);
FIELD_AT(cq, context); FIELD_AT(cq, cqe); FIELD_AT(qp, context); FIELD_AT(qp, qp_num);
WHOLE(device_attr); FIELD_AT(device_attr, max_mr_size); FIELD_AT(device_attr, max_qp_wr);
FIELD_AT(device_attr, max_cqe); FIELD_AT(device_attr, max_qp_rd_atom); FIELD_AT(device_attr, atomic_cap);
WHOLE(port_attr); FIELD_AT(port_attr, state); FIELD_AT(port_attr, active_mtu); FIELD_AT(port_attr, max_msg_sz);
FIELD_AT(port_attr, lid); FIELD_AT(port_attr, link_layer);
WHOLE(async_event); FIELD_AT(async_event, event_type);
WHOLE(qp_cap); FIELD_AT(qp_cap, max_send_wr); FIELD_AT(qp_cap, max_recv_wr); FIELD_AT(qp_cap, max_send_sge);
FIELD_AT(qp_cap, max_recv_sge); FIELD_AT(qp_cap, max_inline_data);
WHOLE(qp_init_attr); FIELD_AT(qp_init_attr, send_cq); FIELD_AT(qp_init_attr, recv_cq); FIELD_AT(qp_init_attr, cap);
FIELD_AT(qp_init_attr, qp_type); FIELD_AT(qp_init_attr, sq_sig_all);
WHOLE(global_route); FIELD_AT(global_route, dgid); FIELD_AT(global_route, sgid_index);
FIELD_AT(global_route, hop_limit); FIELD_AT(global_route, traffic_class);
WHOLE(ah_attr); FIELD_AT(ah_attr, grh); FIELD_AT(ah_attr, dlid); FIELD_AT(ah_attr, sl);
FIELD_AT(ah_attr, is_global); FIELD_AT(ah_attr, port_num);
WHOLE(qp_attr); FIELD_AT(qp_attr, qp_state); FIELD_AT(qp_attr, path_mtu); FIELD_AT(qp_attr, rq_psn);
FIELD_AT(qp_attr, sq_psn); FIELD_AT(qp_attr, dest_qp_num); FIELD_AT(qp_attr, qp_access_flags);
FIELD_AT(qp_attr, ah_attr); FIELD_AT(qp_attr, pkey_index); FIELD_AT(qp_attr, max_rd_atomic);
FIELD_AT(qp_attr, max_dest_rd_atomic); FIELD_AT(qp_attr, min_rnr_timer); FIELD_AT(qp_attr, port_num);
FIELD_AT(qp_attr, timeout); FIELD_AT(qp_attr, retry_cnt); FIELD_AT(qp_attr, rnr_retry);

NUMBER(PORT_ACTIVE); NUMBER(LINK_LAYER_ETHERNET); NUMBER(ATOMIC_NONE); NUMBER(QPT_RC); NUMBER(QPS_INIT);
NUMBER(QPS_RTR); NUMBER(QPS_RTS); NUMBER(QPS_ERR); NUMBER(QP_STATE); NUMBER(QP_ACCESS_FLAGS);
NUMBER(QP_PKEY_INDEX); NUMBER(QP_PORT); NUMBER(QP_AV); NUMBER(QP_PATH_MTU); NUMBER(QP_TIMEOUT);
NUMBER(QP_RETRY_CNT); NUMBER(QP_RNR_RETRY); NUMBER(QP_RQ_PSN); NUMBER(QP_MAX_QP_RD_ATOMIC);
NUMBER(QP_MIN_RNR_TIMER); NUMBER(QP_SQ_PSN); NUMBER(QP_MAX_DEST_RD_ATOMIC); NUMBER(QP_DEST_QPN);
NUMBER(WR_RDMA_WRITE); NUMBER(WR_RDMA_WRITE_WITH_IMM); NUMBER(WR_SEND); NUMBER(WR_SEND_WITH_IMM);
NUMBER(WR_RDMA_READ); NUMBER(WR_ATOMIC_CMP_AND_SWP); NUMBER(WR_ATOMIC_FETCH_AND_ADD); NUMBER(SEND_SIGNALED);
NUMBER(SEND_INLINE); NUMBER(WC_WITH_IMM); NUMBER(WC_RECV);
#endif
#endif
