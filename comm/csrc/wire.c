#include "wire.h"

#include "shm.h"

#include <string.h>

#define GRACE_NS 1000000000         /* the watch thread finds the cause of a closed connection; then we do not wait on */
#define SPOIL_NS 50000000           /* the socket may still be full of the operation before */
#define HEADER ((int64_t)sizeof(ckc_call))

static char *place(const ckc_op *o, int64_t which, int64_t at) {
    const ckc_run_state *run = o->extra;
    char *base = which == CKC_PLACE_IN ? (char *)o->in : which == CKC_PLACE_OUT ? o->out : run->scratch;
    return base + at * ckc_item_bytes(o->call.dtype);
}

/* A closed or broken socket is no verdict: the watch thread knows whether the peer ended, and of what. */
static int64_t closed(ckc_op *o, int peer) {
    ckc_wire *wire = o->on;
    ckc_link *link = wire->links[peer];
    if (!wire->gone_ns[peer]) wire->gone_ns[peer] = ckc_now_ns();
    if (ckc_now_ns() - wire->gone_ns[peer] > GRACE_NS)
        ckc_fail(wire->world, CKC_LOST, wire->names[peer], link->why ? link->why(link) : "its connection broke");
    return 0;
}

static int64_t outcome(ckc_op *o, int peer, int64_t n) {
    if (n < 0) return closed(o, peer);
    o->moved += n;
    return n;
}

/* The header that goes to a peer or, with `theirs`, the one that must come from it. */
static ckc_call header(const ckc_op *o, int peer, int theirs) {
    ckc_call call;
    memcpy(&call, &o->call, sizeof call);
    if (o->received == NULL || o->call.zero) return call;
    const int64_t sends = o->begins[peer + 1] - o->begins[peer], receives = o->received[peer + 1] - o->received[peer];
    call.count = theirs ? receives : sends;
    call.extra = (uint64_t)(theirs ? sends : receives);
    call.offset = (int64_t)o->call.extra;
    return call;
}

/* Send what is left of the header and of a payload in one call; bytes of the payload that went. */
static int64_t push(ckc_op *o, int peer, const char *payload, int64_t bytes) {
    ckc_wire *wire = o->on;
    ckc_run_state *run = o->extra;
    const int64_t head = run->partners[peer] & CKC_HEADER_SENT ? HEADER - run->sent[peer] : 0;
    if (head + bytes == 0) return 0;
    ckc_call call;
    if (head) call = header(o, peer, 0);
    struct iovec parts[2] = {{(char *)&call + (HEADER - head), (size_t)head}, {(char *)payload, (size_t)bytes}};
    ckc_link *link = wire->links[peer];
    const int64_t n = outcome(o, peer, link->push(link, head ? parts : parts + 1, head && bytes ? 2 : 1));
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
        ckc_link *link = wire->links[peer];
        const int64_t n = outcome(o, peer, link->pull(link, (char *)&run->theirs[peer] + run->received[peer],
                                                      HEADER - run->received[peer]));
        CKC_PUT(run->received[peer], (uint8_t)(run->received[peer] + n));
        if (run->received[peer] < HEADER) return CKC_PENDING;
        const ckc_call wanted = header(o, peer, 1);
        if (memcmp((char *)&run->theirs[peer] + offsetof(ckc_call, kind), (char *)&wanted + offsetof(ckc_call, kind),
                   CKC_CALL_COMPARED))
            return CKC_MISMATCH;
    }
    return CKC_DONE;
}

/* Whether what was sent in this round has left its buffers, which local steps and later rounds may overwrite. */
static int all_flushed(const ckc_op *o) {
    const ckc_wire *wire = o->on;
    for (int peer = 0; peer < wire->size; peer++) {
        ckc_link *link = wire->links[peer];
        if (link != NULL && link->flushed != NULL && !link->flushed(link)) return 0;
    }
    return 1;
}

/* Move the round's transfers of one kind; CKC_DONE when all are complete. Nothing is taken before all headers agree. */
static int transfer_kind(ckc_op *o, int64_t kind) {
    ckc_wire *wire = o->on;
    ckc_run_state *run = o->extra;
    uint8_t busy[CKC_MAX_RANKS] = {0};
    int complete = 1;
    for (int64_t i = run->next; i < run->round_end; i++) {
        const ckc_step *step = &run->steps[i];
        const int64_t bytes = step->count * ckc_item_bytes(o->call.dtype);
        if (step->kind != kind || run->moved[i] == bytes) continue;
        const int peer = (int)step->peer;
        if (!busy[peer]) {      /* one after another on a link */
            char *at = place(o, step->place, step->at) + run->moved[i];
            if (kind == CKC_STEP_SEND) {
                CKC_PUT(run->moved[i], run->moved[i] + push(o, peer, at, bytes - run->moved[i]));
            } else if (run->agreed) {
                ckc_link *link = wire->links[peer];
                CKC_PUT(run->moved[i], run->moved[i] + outcome(o, peer, link->pull(link, at, bytes - run->moved[i])));
            }
        }
        if (run->moved[i] < bytes) {
            busy[peer] = 1;
            complete = 0;
        }
    }
    return complete;
}

/* Receives first: a link may tell the peer where a large one belongs, before the peer sends it another way. */
static int transfer(ckc_op *o) {
    const int received = transfer_kind(o, CKC_STEP_RECV);
    return transfer_kind(o, CKC_STEP_SEND) && received;
}

static void compute(ckc_op *o) {
    const ckc_run_state *run = o->extra;
    for (int64_t i = run->next; i < run->round_end; i++) {
        const ckc_step *step = &run->steps[i];
        const int64_t bytes = step->count * ckc_item_bytes(o->call.dtype);
        const ckc_source *from = run->sources + step->first;
        if (step->kind == CKC_STEP_COPY) {
            char *to = place(o, step->place, step->at), *source = place(o, from->place, from->at);
            if (to != source) memmove(to, source, (size_t)bytes);
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
    int64_t end = run->next;
    while (end < run->step_count && run->steps[end].round == run->steps[run->next].round) end++;
    CKC_PUT(run->round_end, end);
}

/* Headers that no payload has taken along; CKC_DONE when all have gone and come and agree. */
static int exchange_headers(ckc_op *o) {
    const ckc_wire *wire = o->on;
    ckc_run_state *run = o->extra;
    int complete = 1;
    uint64_t sum = o->call.extra;
    for (int peer = 0; peer < wire->size; peer++) {
        if (run->partners[peer] & CKC_HEADER_SENT && run->sent[peer] < HEADER) push(o, peer, NULL, 0);
        const int got = run->received[peer] < HEADER ? take_header(o, peer) : CKC_DONE;
        if (got < 0) return got;
        if (got == CKC_PENDING || (run->partners[peer] & CKC_HEADER_SENT && run->sent[peer] < HEADER)) complete = 0;
        if (run->partners[peer]) sum += (uint64_t)run->theirs[peer].offset;
    }
    if (complete && o->received != NULL && sum != 0) return CKC_MISMATCH;
    return complete;
}

static int move_on(ckc_op *o) {
    ckc_wire *wire = o->on;
    ckc_run_state *run = o->extra;
    if (!run->begun) {
        run->begun = 1;
        CKC_PUT(wire->seq, wire->seq + 1);
        o->seq = wire->seq;
        atomic_store_explicit(&wire->world->seats[wire->world->local_rank]->operation,
                              (uint64_t)o->call.kind << 56 | o->seq, memory_order_relaxed);
        find_round(run);
    }
    while (run->next < run->step_count) {
        const int got = transfer(o);
        if (!run->agreed) {             /* after the sends, which take headers along */
            const int headers = exchange_headers(o);
            if (headers <= 0) return headers;
            run->agreed = 1;
            continue;
        }
        if (got <= 0) return got;
        if (!all_flushed(o)) return CKC_PENDING;
        compute(o);
        CKC_PUT(run->next, run->round_end);
        find_round(run);
    }
    return run->agreed ? CKC_DONE : exchange_headers(o);
}

int ckc_wire_advance(ckc_op *o) {
    const ckc_wire *wire = o->on;
    const ckc_run_state *run = o->extra;
    const int got = move_on(o);
    /* The others must see what this rank calls before it fails and goes. */
    if (got == CKC_MISMATCH)
        for (int peer = 0; peer < wire->size; peer++)
            if (run->partners[peer] & CKC_HEADER_SENT && run->sent[peer] < HEADER) push(o, peer, NULL, 0);
    return got;
}

void ckc_wire_spoil(ckc_op *o, const ckc_op *met) {
    const ckc_wire *wire = o->on;
    ckc_run_state *run = o->extra;
    const ckc_channel *ch = met->on;
    if (met->wanted != NULL || run->begun) return;
    for (int r = 0; r < ch->size; r++) {
        const ckc_call *call = ckc_call_of(ch, r, met->seq);
        if (r == ch->rank || atomic_load_explicit(&call->seq, memory_order_acquire) != met->seq ||
            !memcmp((const char *)call + offsetof(ckc_call, kind), (const char *)&met->call + offsetof(ckc_call, kind),
                    CKC_CALL_COMPARED))
            continue;
        atomic_store_explicit(&o->call.seq, call->extra, memory_order_relaxed);
        o->call.offset = call->count;
        o->call.arena = (int32_t)((uint32_t)call->kind << 24 | (uint32_t)call->dtype << 16 | (uint32_t)call->op << 8 |
                                  (uint32_t)((call->root + 1) & 255));
        o->call.pad = ch->seats[r];
        o->call.zero = 1;
    }
    if (!o->call.zero) return;      /* the calls of `met` agree: it was no operation of its group that differed */
    const int64_t until = ckc_now_ns() + SPOIL_NS;
    for (int peer = 0, all = 0; !all && ckc_now_ns() < until;) {
        for (peer = 0, all = 1; peer < wire->size; peer++) {
            if (!(run->partners[peer] & CKC_HEADER_SENT) || run->sent[peer] == HEADER) continue;
            push(o, peer, NULL, 0);
            all &= run->sent[peer] == HEADER;
        }
    }
}

int ckc_wire_wanted(ckc_op *o, struct pollfd *fds, int limit) {
    const ckc_wire *wire = o->on;
    const ckc_run_state *run = o->extra;
    uint8_t pushes[CKC_MAX_RANKS] = {0}, pulls[CKC_MAX_RANKS] = {0};
    for (int64_t i = run->next; i < run->round_end; i++) {
        const ckc_step *step = &run->steps[i];
        if (step->kind > CKC_STEP_RECV || run->moved[i] == step->count * ckc_item_bytes(o->call.dtype)) continue;
        if (step->kind == CKC_STEP_SEND) pushes[step->peer] = 1;
        else if (run->agreed) pulls[step->peer] = 1;
    }
    int count = 0;
    for (int peer = 0; peer < wire->size; peer++) {
        ckc_link *link = wire->links[peer];
        if (run->partners[peer] & CKC_HEADER_SENT && run->sent[peer] < HEADER) pushes[peer] = 1;
        if (run->partners[peer] & CKC_HEADER_RECEIVED && run->received[peer] < HEADER) pulls[peer] = 1;
        /* A closed link is always ready: polling it would spin until the watch thread knows the cause. */
        if (link == NULL || wire->gone_ns[peer] || count == limit) continue;
        const int waits_for = (pushes[peer] ? CKC_FOR_PUSH : 0) | (pulls[peer] ? CKC_FOR_PULL : 0)
                              | (link->flushed != NULL && !link->flushed(link) ? CKC_FOR_FLUSH : 0);
        if (!waits_for) continue;
        if (link->arm != NULL && link->arm(link, waits_for)) return -1;
        if (link->fd < 0) return -1;
        const short events = (short)((waits_for & CKC_FOR_PUSH ? link->can_push : 0) | (waits_for > 1 ? POLLIN : 0));
        fds[count++] = (struct pollfd){.fd = link->fd, .events = events};
    }
    return count;
}
