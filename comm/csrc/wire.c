#include "wire.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define GRACE_NS 1000000000         /* the watch thread finds the cause of a closed connection; then we do not wait on */
#define HEADER ((int64_t)sizeof(ckc_call))

static char *place(const ckc_op *o, int64_t which, int64_t at) {
    const ckc_run_state *run = o->extra;
    char *base = which == CKC_PLACE_IN ? (char *)o->in : which == CKC_PLACE_OUT ? o->out : run->scratch;
    return base + at * ckc_item_bytes(o->call.dtype);
}

/* A closed or broken socket is no verdict: the watch thread knows whether the peer ended, and of what. */
static int64_t closed(ckc_op *o, int peer) {
    ckc_wire *wire = o->on;
    if (!wire->gone_ns[peer]) wire->gone_ns[peer] = ckc_now_ns();
    if (ckc_now_ns() - wire->gone_ns[peer] > GRACE_NS)
        ckc_fail(wire->world, CKC_LOST, wire->names[peer], "its connection broke");
    return 0;
}

static int64_t outcome(ckc_op *o, int peer, ssize_t n) {
    if (n > 0) return n;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return 0;
    return closed(o, peer);
}

/* Send what is left of the header and of a payload in one call; bytes of the payload that went. */
static int64_t push(ckc_op *o, int peer, const char *payload, int64_t bytes) {
    ckc_wire *wire = o->on;
    ckc_run_state *run = o->extra;
    const int64_t head = run->partners[peer] & CKC_HEADER_SENT ? HEADER - run->sent[peer] : 0;
    if (head + bytes == 0) return 0;
    struct iovec parts[2] = {{(char *)&o->call + (HEADER - head), (size_t)head}, {(char *)payload, (size_t)bytes}};
    struct msghdr message = {.msg_iov = head ? parts : parts + 1, .msg_iovlen = head && bytes ? 2 : 1};
    const int64_t n = outcome(o, peer, sendmsg(wire->fds[peer], &message, MSG_NOSIGNAL | MSG_DONTWAIT));
    const int64_t of_head = n < head ? n : head;
    run->sent[peer] = (uint8_t)(run->sent[peer] + of_head);
    return n - of_head;
}

/* Take the header; CKC_DONE once it is there and agrees. */
static int take_header(ckc_op *o, int peer) {
    ckc_wire *wire = o->on;
    ckc_run_state *run = o->extra;
    if (!(run->partners[peer] & CKC_HEADER_RECEIVED)) return CKC_DONE;
    if (run->received[peer] < HEADER) {
        const int64_t n = outcome(o, peer, recv(wire->fds[peer], (char *)&run->theirs[peer] + run->received[peer],
                                                (size_t)(HEADER - run->received[peer]), MSG_DONTWAIT));
        run->received[peer] = (uint8_t)(run->received[peer] + n);
        if (run->received[peer] < HEADER) return CKC_PENDING;
        if (memcmp((char *)&run->theirs[peer] + offsetof(ckc_call, kind), (char *)&o->call + offsetof(ckc_call, kind),
                   CKC_CALL_COMPARED))
            return CKC_MISMATCH;
    }
    return CKC_DONE;
}

/* Move every transfer of the round; CKC_DONE when all are complete. */
static int transfer(ckc_op *o) {
    ckc_wire *wire = o->on;
    ckc_run_state *run = o->extra;
    uint8_t busy_out[CKC_MAX_RANKS] = {0}, busy_in[CKC_MAX_RANKS] = {0};
    int complete = 1;
    for (int64_t i = run->next; i < run->round_end; i++) {
        const ckc_step *step = &run->steps[i];
        if (step->kind > CKC_STEP_RECV) continue;
        const int peer = (int)step->peer;
        const int64_t bytes = step->count * ckc_item_bytes(o->call.dtype);
        uint8_t *busy = step->kind == CKC_STEP_SEND ? busy_out : busy_in;   /* one after another on a socket */
        if (run->moved[i] == bytes) continue;
        if (!busy[peer]) {
            char *at = place(o, step->place, step->at) + run->moved[i];
            if (step->kind == CKC_STEP_SEND) {
                run->moved[i] += push(o, peer, at, bytes - run->moved[i]);
            } else {
                const int header = take_header(o, peer);
                if (header < 0) return header;
                if (header == CKC_DONE)
                    run->moved[i] += outcome(o, peer, recv(wire->fds[peer], at, (size_t)(bytes - run->moved[i]),
                                                           MSG_DONTWAIT));
            }
        }
        if (run->moved[i] < bytes) {
            busy[peer] = 1;
            complete = 0;
        }
    }
    return complete;
}

static void compute(ckc_op *o) {
    const ckc_run_state *run = o->extra;
    for (int64_t i = run->next; i < run->round_end; i++) {
        const ckc_step *step = &run->steps[i];
        const int64_t bytes = step->count * ckc_item_bytes(o->call.dtype);
        const ckc_source *from = run->sources + step->first;
        if (step->kind == CKC_STEP_COPY) {
            memmove(place(o, step->place, step->at), place(o, from->place, from->at), (size_t)bytes);
        } else if (step->kind == CKC_STEP_REDUCE && step->count) {
            const ckc_wire *wire = o->on;
            const void *src[CKC_MAX_RANKS];
            void *dst = place(o, step->place, step->at);
            for (int64_t s = 0; s < step->sources; s++) src[s] = place(o, from[s].place, from[s].at);
            wire->world->reduce(&dst, 1, src, (int)step->sources, step->count, o->call.dtype, o->call.op);
        }
    }
}

static void find_round(ckc_run_state *run) {
    run->round_end = run->next;
    while (run->round_end < run->step_count && run->steps[run->round_end].round == run->steps[run->next].round)
        run->round_end++;
}

/* Headers that no payload has taken along. */
static int exchange_headers(ckc_op *o) {
    const ckc_wire *wire = o->on;
    ckc_run_state *run = o->extra;
    int complete = 1;
    for (int peer = 0; peer < wire->size; peer++) {
        if (run->partners[peer] & CKC_HEADER_SENT && run->sent[peer] < HEADER) push(o, peer, NULL, 0);
        const int got = run->received[peer] < HEADER ? take_header(o, peer) : CKC_DONE;
        if (got < 0) return got;
        if (got == CKC_PENDING || (run->partners[peer] & CKC_HEADER_SENT && run->sent[peer] < HEADER)) complete = 0;
    }
    return complete;
}

int ckc_wire_advance(ckc_op *o) {
    ckc_wire *wire = o->on;
    ckc_run_state *run = o->extra;
    if (!run->begun) {
        run->begun = 1;
        o->seq = ++wire->seq;
        atomic_store_explicit(&wire->world->seats[wire->world->local_rank].operation,
                              (uint64_t)o->call.kind << 56 | o->seq, memory_order_relaxed);
        find_round(run);
    }
    while (run->next < run->step_count) {
        const int got = transfer(o);
        if (got <= 0) {
            /* A peer that waits for our header alone must not wait for a round that waits for it. */
            const int headers = exchange_headers(o);
            return headers < 0 ? headers : got;
        }
        compute(o);
        run->next = run->round_end;
        find_round(run);
    }
    return exchange_headers(o);
}

int ckc_wire_wanted(ckc_op *o, struct pollfd *fds, int limit) {
    const ckc_wire *wire = o->on;
    const ckc_run_state *run = o->extra;
    short events[CKC_MAX_RANKS] = {0};
    for (int64_t i = run->next; i < run->round_end; i++) {
        const ckc_step *step = &run->steps[i];
        if (step->kind > CKC_STEP_RECV || run->moved[i] == step->count * ckc_item_bytes(o->call.dtype)) continue;
        events[step->peer] |= step->kind == CKC_STEP_SEND ? POLLOUT : POLLIN;
    }
    int count = 0;
    for (int peer = 0; peer < wire->size; peer++) {
        if (run->partners[peer] & CKC_HEADER_SENT && run->sent[peer] < HEADER) events[peer] |= POLLOUT;
        if (run->partners[peer] & CKC_HEADER_RECEIVED && run->received[peer] < HEADER) events[peer] |= POLLIN;
        /* A closed socket is always ready: polling it would spin until the watch thread knows the cause. */
        if (events[peer] && !wire->gone_ns[peer] && count < limit)
            fds[count++] = (struct pollfd){.fd = wire->fds[peer], .events = events[peer]};
    }
    return count;
}
