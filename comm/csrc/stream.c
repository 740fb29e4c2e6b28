/* Messages through a ring of bytes with one writer and one reader. Each side publishes its counter with release when it
 * is through with the bytes and reads the other's with acquire before it touches them; a counter has one writer. */
#include "shm.h"

#include <string.h>

#define LINE 64
#define PIECE (32 << 10)            /* published at a time, so that both ends copy at once */

int64_t ckc_ring_memory_bytes(int64_t ring_bytes) { return (int64_t)sizeof(ckc_ring_memory) + ring_bytes; }

static int64_t padded(int64_t n) { return (n + LINE - 1) / LINE * LINE; }

static void put(ckc_stream *s, uint64_t at, const void *from, int64_t bytes) {
    const int64_t begin = (int64_t)(at % (uint64_t)s->ring_bytes), first = s->ring_bytes - begin;
    memcpy(s->ring->data + begin, from, (size_t)(bytes < first ? bytes : first));
    if (bytes > first) memcpy(s->ring->data, (const char *)from + first, (size_t)(bytes - first));
}

static void get(const ckc_stream *s, uint64_t at, void *to, int64_t bytes) {
    const int64_t begin = (int64_t)(at % (uint64_t)s->ring_bytes), first = s->ring_bytes - begin;
    memcpy(to, s->ring->data + begin, (size_t)(bytes < first ? bytes : first));
    if (bytes > first) memcpy((char *)to + first, s->ring->data, (size_t)(bytes - first));
}

static void advance_counter(ckc_stream *s, _Atomic uint64_t *counter, int64_t bytes) {
    const uint64_t now = atomic_load_explicit(counter, memory_order_relaxed);
    atomic_store_explicit(counter, now + (uint64_t)bytes, memory_order_release);
    ckc_ring(s->world, &s->seat, 1);
}

static int64_t filled(const ckc_stream *s) {
    return (int64_t)(atomic_load_explicit(&s->ring->head, memory_order_acquire) -
                     atomic_load_explicit(&s->ring->tail, memory_order_acquire));
}

static int refused(const ckc_stream *s) {
    return atomic_load_explicit(&s->ring->refused.seq, memory_order_acquire) != 0;
}

static void note(ckc_op *o) {
    ckc_stream *s = o->on;
    CKC_PUT(s->messages, s->messages + 1);
    atomic_store_explicit(&s->world->seats[s->world->local_rank]->operation,
                          (uint64_t)o->call.kind << 56 | s->messages, memory_order_relaxed);
}

static int64_t piece(const ckc_op *o, int64_t available) {
    const int64_t rest = o->call.count * ckc_item_bytes(o->call.dtype) - o->moved;
    const int64_t limit = available < PIECE ? available : PIECE;
    return rest < limit ? rest : limit;
}

int ckc_stream_send(ckc_op *o) {
    ckc_stream *s = o->on;
    CKC_BEGIN(o);
    note(o);
    CKC_AWAIT(o, s->ring_bytes - filled(s) >= LINE);
    char line[LINE] = {0};
    memcpy(line, &o->call, sizeof o->call);
    put(s, atomic_load_explicit(&s->ring->head, memory_order_relaxed), line, LINE);
    advance_counter(s, &s->ring->head, LINE);
    for (o->moved = 0; o->moved < o->call.count * ckc_item_bytes(o->call.dtype);) {
        CKC_AWAIT(o, s->ring_bytes - filled(s) >= LINE || refused(s));
        if (refused(s)) return CKC_MISMATCH;
        const int64_t bytes = piece(o, s->ring_bytes - filled(s));
        put(s, atomic_load_explicit(&s->ring->head, memory_order_relaxed), o->in + o->moved, bytes);
        o->moved += bytes;
        advance_counter(s, &s->ring->head, padded(bytes));
    }
    if (refused(s)) return CKC_MISMATCH;
    CKC_END(o);
}

int ckc_stream_recv(ckc_op *o) {
    ckc_stream *s = o->on;
    CKC_BEGIN(o);
    note(o);
    CKC_AWAIT(o, filled(s) >= LINE);
    ckc_call theirs;
    get(s, atomic_load_explicit(&s->ring->tail, memory_order_relaxed), &theirs, sizeof theirs);
    if (theirs.dtype != o->call.dtype || theirs.count != o->call.count) {
        memcpy((char *)&s->ring->refused + offsetof(ckc_call, kind), (char *)&o->call + offsetof(ckc_call, kind),
               sizeof o->call - offsetof(ckc_call, kind));
        o->call.extra = (uint64_t)theirs.count;     /* for the message: what came instead */
        o->call.zero = theirs.dtype;
        atomic_store_explicit(&s->ring->refused.seq, 1, memory_order_release);
        ckc_ring(s->world, &s->seat, 1);
        return CKC_MISMATCH;
    }
    advance_counter(s, &s->ring->tail, LINE);
    for (o->moved = 0; o->moved < o->call.count * ckc_item_bytes(o->call.dtype);) {
        /* The writer publishes whole pieces of this message, each padded to a line. */
        CKC_AWAIT(o, filled(s) >= LINE);
        const int64_t bytes = piece(o, filled(s));
        get(s, atomic_load_explicit(&s->ring->tail, memory_order_relaxed), o->out + o->moved, bytes);
        o->moved += bytes;
        advance_counter(s, &s->ring->tail, padded(bytes));
    }
    CKC_END(o);
}
