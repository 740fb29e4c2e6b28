/* A port (rdma.h) over libibverbs: one queue pair with a completion queue and channel of its own. */
#ifndef CKC_VERBS_PORT_H
#define CKC_VERBS_PORT_H

#include <infiniband/verbs.h>

#include "rdma.h"

typedef struct {
    ckc_port port;                      /* first */
    struct ibv_qp *pair;
    struct ibv_cq *queue;
    struct ibv_comp_channel *channel;   /* its descriptor does not block */
} ckc_verbs_port;

void ckc_make_verbs_port(ckc_verbs_port *port, struct ibv_qp *pair, struct ibv_cq *queue,
                         struct ibv_comp_channel *channel);
#endif
