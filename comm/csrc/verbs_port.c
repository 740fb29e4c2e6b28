#include "verbs_port.h"

#include <arpa/inet.h>
#include <errno.h>

#define BATCH 16

static int post(ckc_port *port, const ckc_write *write) {
    ckc_verbs_port *p = (ckc_verbs_port *)port;
    ckv_sge entry = {.addr = write->local, .length = write->bytes, .lkey = write->lkey};
    ckv_send_wr request = {
        .wr_id = write->id,
        .sg_list = &entry,
        .num_sge = write->bytes ? 1 : 0,
        .opcode = write->silent ? CKV_WR_RDMA_WRITE : CKV_WR_RDMA_WRITE_WITH_IMM,
        .send_flags = (write->signaled ? CKV_SEND_SIGNALED : 0) | (write->inlined ? CKV_SEND_INLINE : 0),
        .imm_data = htonl(write->imm),
        .wr.rdma = {.remote_addr = write->remote, .rkey = write->rkey},
    };
    ckv_send_wr *refused;
    return ckv_post_send(p->pair, &request, &refused);
}

static int receive(ckc_port *port, int count) {
    ckc_verbs_port *p = (ckc_verbs_port *)port;
    ckv_recv_wr requests[BATCH], *refused;
    while (count > 0) {
        const int n = count < BATCH ? count : BATCH;
        for (int i = 0; i < n; i++)
            requests[i] = (ckv_recv_wr){.next = i + 1 < n ? &requests[i + 1] : NULL};
        const int code = ckv_post_recv(p->pair, requests, &refused);
        if (code) return code;
        count -= n;
    }
    return 0;
}

static int take(ckc_port *port, ckc_completion *into, int limit) {
    ckc_verbs_port *p = (ckc_verbs_port *)port;
    ckv_wc found[BATCH];
    const int n = ckv_poll_cq(p->queue, limit < BATCH ? limit : BATCH, found);
    for (int i = 0; i < n; i++)
        into[i] = (ckc_completion){.id = found[i].wr_id, .status = (int)found[i].status,
                                   .arrival = !found[i].status && (found[i].opcode & CKV_WC_RECV) != 0,
                                   .imm = ntohl(found[i].imm_data)};
    return n;
}

static int arm(ckc_port *port) {
    ckc_verbs_port *p = (ckc_verbs_port *)port;
    ckv_cq *queue;
    void *unused;
    while (ckv_get_cq_event(p->channel, &queue, &unused) == 0) ckv_ack_cq_events(queue, 1);
    return ckv_req_notify_cq(p->queue, 0);
}

void ckc_make_verbs_port(ckc_verbs_port *p, ckv_qp *pair, ckv_cq *queue, ckv_comp_channel *channel) {
    *p = (ckc_verbs_port){.port = {.post = post, .receive = receive, .poll = take, .arm = arm, .fd = channel->fd},
                          .pair = pair, .queue = queue, .channel = channel};
}
