/* A port (rdma.h) over libibverbs: one queue pair with a completion queue and channel of its own. */
#ifndef CKC_VERBS_PORT_H
#define CKC_VERBS_PORT_H

#include "libibverbs.h"
#include "rdma.h"

typedef struct {
    ckc_port port;                      /* first */
    ckv_qp *pair;
    ckv_cq *queue;
    ckv_comp_channel *channel;          /* its descriptor does not block */
} ckc_verbs_port;

void ckc_make_verbs_port(ckc_verbs_port *port, ckv_qp *pair, ckv_cq *queue, ckv_comp_channel *channel);
#endif
