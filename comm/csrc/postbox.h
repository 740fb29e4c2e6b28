/* A port (rdma.h) whose queue pair somebody else drives, who asks for what is to be posted and brings what came: the
 * pyverbs provider, which is Python, and tests. All in one thread. */
#ifndef CKC_POSTBOX_H
#define CKC_POSTBOX_H

#include "rdma.h"

typedef struct ckc_postbox ckc_postbox;

typedef struct {
    ckc_postbox *waiting;               /* those that have something to be posted */
} ckc_postroom;

struct ckc_postbox {
    ckc_port port;                      /* first */
    ckc_postroom *room;
    ckc_postbox *next;
    int index, is_waiting;
    int receives, write_count, come_first, come_count;
    ckc_write writes[CKC_RDMA_SENDS];
    ckc_completion come[CKC_RDMA_SENDS + CKC_RDMA_RECEIVES];    /* a ring */
};

void ckc_make_postbox(ckc_postbox *box, ckc_postroom *room, int index);
void ckc_deliver(ckc_postbox *box, const ckc_completion *completion);
#endif
