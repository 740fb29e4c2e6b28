#include "postbox.h"

#include <errno.h>

enum { ROOM = CKC_RDMA_SENDS + CKC_RDMA_RECEIVES };

static void wait(ckc_postbox *box) {
    if (box->is_waiting) return;
    box->is_waiting = 1;
    box->next = box->room->waiting;
    box->room->waiting = box;
}

static int post(ckc_port *port, const ckc_write *write) {
    ckc_postbox *box = (ckc_postbox *)port;
    if (box->write_count == CKC_RDMA_SENDS) return ENOMEM;
    box->writes[box->write_count++] = *write;
    wait(box);
    return 0;
}

static int receive(ckc_port *port, int count) {
    ckc_postbox *box = (ckc_postbox *)port;
    box->receives += count;
    wait(box);
    return 0;
}

static int take(ckc_port *port, ckc_completion *into, int limit) {
    ckc_postbox *box = (ckc_postbox *)port;
    int n = 0;
    for (; n < limit && box->come_count > 0; box->come_count--) {
        into[n++] = box->come[box->come_first];
        box->come_first = (box->come_first + 1) % ROOM;
    }
    return n;
}

static int arm(ckc_port *port) {
    (void)port;
    return 0;
}

void ckc_make_postbox(ckc_postbox *box, ckc_postroom *room, int index) {
    *box = (ckc_postbox){.port = {.post = post, .receive = receive, .poll = take, .arm = arm, .fd = -1},
                         .room = room, .index = index};
}

void ckc_deliver(ckc_postbox *box, const ckc_completion *completion) {
    if (box->come_count < ROOM) box->come[(box->come_first + box->come_count++) % ROOM] = *completion;
}
