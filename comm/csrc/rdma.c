#include "rdma.h"

#include <stdio.h>
#include <string.h>

#define BATCH 16
#define SIGNAL_EVERY 16             /* a send that is not signaled leaves the queue with the next one that is */
#define CONTROL_SENDS 16            /* entries of the send queue that only credit and grants may take */
#define DIRECT_CHUNK (INT64_C(1) << 20)
#define FROM_NOTE 2                 /* in arrivals, where RING and DIRECT have their own numbers */

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static int broke(ckc_rdma_link *l, int status) {
    if (!l->status) l->status = status ? status : -1;
    return -1;
}

static void credit(ckc_rdma_link *l, uint32_t imm) {
    for (uint32_t k = imm >> 24 & 63; k > 0; k--) l->freed += l->lengths[l->credited++ % CKC_RDMA_MESSAGES];
}

/* Bytes of a note as they lie in its slot: to its end, and as whole words. */
static uint32_t padded(uint32_t bytes) { return (bytes + 7) & ~7u; }

static uint64_t checksum(const ckc_note *note) {
    const uint32_t from = (CKC_RDMA_NOTE_BYTES - padded(note->imm & 0xffffff)) / 8;
    uint64_t sum = (uint64_t)note->number << 32 | note->imm;
    for (uint32_t i = from; i < CKC_RDMA_NOTE_BYTES / 8; i++) {
        uint64_t word;
        memcpy(&word, note->bytes + 8 * i, 8);
        sum = (sum ^ word) * UINT64_C(0x9e3779b97f4a7c15);      /* odd: no word's change is lost */
        sum ^= sum >> 29;
    }
    return sum;
}

/* Take the notes that have come whole and that no other message is missing before. */
static void look(ckc_rdma_link *l) {
    for (;;) {
        const volatile uint64_t *slot = (const volatile uint64_t *)&l->noted[l->arrived % CKC_RDMA_MESSAGES];
        const int last = sizeof(ckc_note) / 8 - 1;
        union { uint64_t words[sizeof(ckc_note) / 8]; ckc_note note; } seen;
        seen.words[last] = slot[last];
        if (seen.note.number != (uint32_t)(l->arrived + 1)) return;
        const uint32_t bytes = seen.note.imm & 0xffffff;
        if (bytes == 0 || bytes > CKC_RDMA_NOTE_BYTES) return;
        for (int i = 0; i < last; i++) seen.words[i] = slot[i];
        if (seen.note.check != checksum(&seen.note)) return;
        atomic_thread_fence(memory_order_acquire);
        credit(l, seen.note.imm);
        l->arrivals[l->arrived++ % CKC_RDMA_MESSAGES] = FROM_NOTE << 24 | bytes;
    }
}

/* Take note of all that has come. Below 0 when the queue pair broke, now or earlier. */
static int settle(ckc_rdma_link *l) {
    ckc_completion found[BATCH];
    int n;
    if (l->status) return -1;
    look(l);
    do {
        n = l->port->poll(l->port, found, BATCH);
        if (n < 0) return broke(l, n);
        for (int i = 0; i < n; i++) {
            const uint32_t imm = found[i].imm, bytes = imm & 0xffffff;
            if (found[i].status) return broke(l, found[i].status);
            if (!found[i].arrival) {
                l->complete = found[i].id;
                continue;
            }
            l->used++;
            credit(l, imm);
            if (imm >> 30 == CKC_RDMA_END) l->peer_ended = 1;
            else if (imm >> 30 == CKC_RDMA_GRANT) l->grant = l->granted[l->grants_come++ % CKC_RDMA_GRANTS];
            else if (bytes) {
                look(l);        /* at what was written before it */
                l->arrivals[l->arrived++ % CKC_RDMA_MESSAGES] = (imm >> 30) << 24 | bytes;
            }
        }
    } while (n == BATCH);
    look(l);
    if (l->used < CKC_RDMA_AT_ONCE) return 0;
    const int used = l->used;
    l->used = 0;
    return l->port->receive(l->port, used) ? broke(l, 0) : 0;
}

static int64_t entries_left(const ckc_rdma_link *l) { return CKC_RDMA_SENDS - (int64_t)(l->posted - l->complete); }

/* Post a write that carries what credit is owed. */
static int post(ckc_rdma_link *l, ckc_write *write, uint32_t kind, int signaled) {
    write->imm = kind << 30 | l->owed << 24 | (kind == CKC_RDMA_GRANT ? 0 : write->bytes);
    write->id = ++l->posted;
    write->signaled = signaled || l->posted % SIGNAL_EVERY == 0;
    write->rkey = write->rkey ? write->rkey : l->remote_key;
    write->lkey = write->lkey ? write->lkey : l->own_key;
    write->inlined = write->bytes > 0 && (int64_t)write->bytes <= l->inline_bytes;
    l->owed = l->owed_bytes = 0;
    return l->port->post(l->port, write) ? broke(l, 0) : 0;
}

static const ckc_region *region_of(const ckc_rdma_link *l, const void *at, int64_t bytes) {
    const uint64_t begin = (uint64_t)(uintptr_t)at;
    if (l->regions == NULL) return NULL;
    for (int i = atomic_load_explicit(&l->regions->count, memory_order_acquire) - 1; i >= 0; i--) {
        const ckc_region *region = &l->regions->at[i];
        if (region->begin <= begin && begin + (uint64_t)bytes <= region->end) return region;
    }
    return NULL;
}

/* --------------------------------------------------------------------------------------------------- outwards */

static int64_t ring_room(const ckc_rdma_link *l) { return l->ring_bytes - (int64_t)(l->put - l->freed); }

static int may_send(const ckc_rdma_link *l) {
    return l->sent - l->credited < CKC_RDMA_MESSAGES && entries_left(l) > CONTROL_SENDS;
}

/* What is left of the buffer that the peer granted. */
static int64_t granted(const ckc_rdma_link *l) {
    const uint64_t end = l->grant.position + l->grant.bytes;
    return l->grant.position <= l->pushed && l->pushed < end ? (int64_t)(end - l->pushed) : 0;
}

/* `bytes` of the parts, from `skip` on, to one place. */
static void gather(char *to, const struct iovec *parts, int64_t skip, int64_t bytes) {
    for (; bytes > 0; parts++) {
        const int64_t length = (int64_t)parts->iov_len - skip;
        if (length <= 0) {
            skip = -length;
            continue;
        }
        const int64_t n = smaller(length, bytes);
        memcpy(to, (const char *)parts->iov_base + skip, (size_t)n);
        to += n;
        bytes -= n;
        skip = 0;
    }
}

static int64_t push_direct(ckc_rdma_link *l, const char *from, int64_t bytes, const ckc_region *region) {
    int64_t done = 0;
    while (done < bytes) {
        if (!may_send(l) && (settle(l) || !may_send(l))) break;
        const int64_t n = smaller(bytes - done, DIRECT_CHUNK);
        ckc_write write = {.local = (uint64_t)(uintptr_t)(from + done), .lkey = region->lkey, .bytes = (uint32_t)n,
                           .remote = l->grant.address + (l->pushed - l->grant.position), .rkey = l->grant.key};
        l->lengths[l->sent++ % CKC_RDMA_MESSAGES] = 0;
        if (post(l, &write, CKC_RDMA_DIRECT, 1)) break;
        l->borrowed = l->posted;
        l->direct += (uint64_t)n;
        l->pushed += (uint64_t)n;
        done += n;
    }
    return done;
}

/* The whole of a short message, or nothing. */
static int64_t push_note(ckc_rdma_link *l, const struct iovec *parts, int64_t bytes) {
    if (!may_send(l) && (settle(l) || !may_send(l))) return 0;
    const uint64_t slot = l->sent % CKC_RDMA_MESSAGES;
    const int64_t at = CKC_RDMA_NOTE_BYTES - padded((uint32_t)bytes);
    ckc_note *note = &l->notes[slot];
    note->number = (uint32_t)(l->sent + 1);
    note->imm = (uint32_t)CKC_RDMA_RING << 30 | l->owed << 24 | (uint32_t)bytes;
    gather(note->bytes + at, parts, 0, bytes);
    note->check = checksum(note);
    ckc_write write = {.local = (uint64_t)(uintptr_t)(note->bytes + at), .bytes = (uint32_t)(sizeof(ckc_note) - at),
                       .remote = l->remote_noted + slot * sizeof(ckc_note) + (uint64_t)at, .silent = 1};
    l->lengths[l->sent++ % CKC_RDMA_MESSAGES] = 0;
    if (post(l, &write, CKC_RDMA_RING, 0)) return 0;
    l->pushed += (uint64_t)bytes;
    return bytes;
}

static int64_t push_by_ring(ckc_rdma_link *l, const struct iovec *parts, int64_t bytes) {
    int64_t done = 0;
    while (done < bytes) {
        if ((!may_send(l) || ring_room(l) == 0) && (settle(l) || !may_send(l) || ring_room(l) == 0)) break;
        if (bytes - done >= l->direct_bytes && done && settle(l)) break;
        if (granted(l) >= l->direct_bytes) break;       /* it came just now */
        const int64_t at = (int64_t)(l->put % (uint64_t)l->ring_bytes);
        const int64_t fits = smaller(ring_room(l), l->ring_bytes - at);
        const int64_t n = smaller(smaller(bytes - done, l->chunk_bytes), fits);
        gather(l->stage + at, parts, done, n);
        ckc_write write = {.local = (uint64_t)(uintptr_t)(l->stage + at), .remote = l->remote_ring + (uint64_t)at,
                           .bytes = (uint32_t)n};
        l->lengths[l->sent++ % CKC_RDMA_MESSAGES] = (uint32_t)n;
        if (post(l, &write, CKC_RDMA_RING, 0)) break;
        l->put += (uint64_t)n;
        l->pushed += (uint64_t)n;
        done += n;
    }
    return done;
}

static int64_t push(ckc_link *link, const struct iovec *parts, int count) {
    ckc_rdma_link *l = (ckc_rdma_link *)link;
    int64_t bytes = 0, done = 0;
    for (int i = 0; i < count; i++) bytes += (int64_t)parts[i].iov_len;
    if (l->status) return -1;
    if (bytes >= l->direct_bytes && settle(l)) return -1;       /* perhaps a grant is there */
    /* The peer has all that comes before the buffer that it granted: a push that begins in it is of that buffer alone. */
    if (granted(l) >= l->direct_bytes) {
        const struct iovec *last = &parts[count - 1];
        const ckc_region *region = region_of(l, last->iov_base, (int64_t)last->iov_len);
        if (region == NULL) l->grant.bytes = 0;     /* not for us: what we push is not registered */
        else done = push_direct(l, last->iov_base, smaller(bytes, granted(l)), region);
    }
    if (done == 0 && bytes > 0 && granted(l) < l->direct_bytes)
        done = l->peer_looks && bytes <= CKC_RDMA_NOTE_BYTES ? push_note(l, parts, bytes) : push_by_ring(l, parts, bytes);
    return done == 0 && l->status ? -1 : done;
}

static int flushed(ckc_link *link) {
    ckc_rdma_link *l = (ckc_rdma_link *)link;
    return l->complete >= l->borrowed || settle(l) || l->complete >= l->borrowed;
}

/* ---------------------------------------------------------------------------------------------------- inwards */

static int64_t known(const ckc_rdma_link *l) {
    int64_t bytes = -(int64_t)l->taken_of;
    for (uint64_t i = l->taken; i < l->arrived; i++) bytes += l->arrivals[i % CKC_RDMA_MESSAGES] & 0xffffff;
    return bytes;
}

/* Tell the peer to write the rest of a large buffer where it belongs, if it is registered. */
static void grant(ckc_rdma_link *l, void *into, int64_t bytes) {
    if (bytes < l->direct_bytes || l->pulled < l->granted_to || entries_left(l) == 0
        || bytes - known(l) < l->direct_bytes) return;
    const ckc_region *region = region_of(l, into, bytes);
    if (region == NULL) return;
    const uint64_t slot = l->grants_given++ % CKC_RDMA_GRANTS;
    l->grants[slot] = (ckc_grant){.position = l->pulled, .address = (uint64_t)(uintptr_t)into, .bytes = (uint64_t)bytes,
                                  .key = region->rkey};
    l->granted_to = l->pulled + (uint64_t)bytes;
    ckc_write write = {.local = (uint64_t)(uintptr_t)&l->grants[slot], .bytes = sizeof(ckc_grant),
                       .remote = l->remote_granted + slot * sizeof(ckc_grant)};
    post(l, &write, CKC_RDMA_GRANT, 0);
}

static void give_credit(ckc_rdma_link *l) {
    if ((int64_t)l->owed_bytes < l->ring_bytes / 4 && l->owed < CKC_RDMA_MESSAGES / 4) return;
    if (entries_left(l) == 0 && (settle(l) || entries_left(l) == 0)) return;
    ckc_write write = {.local = (uint64_t)(uintptr_t)l->stage, .remote = l->remote_ring};
    post(l, &write, CKC_RDMA_RING, 0);
}

static int64_t pull(ckc_link *link, void *into, int64_t bytes) {
    ckc_rdma_link *l = (ckc_rdma_link *)link;
    int64_t done = 0;
    if (l->taken == l->arrived) settle(l);
    grant(l, into, bytes);
    while (done < bytes && l->taken < l->arrived) {
        const uint32_t front = l->arrivals[l->taken % CKC_RDMA_MESSAGES], length = front & 0xffffff;
        const int64_t n = smaller(bytes - done, (int64_t)(length - l->taken_of));
        if (front >> 24 == CKC_RDMA_RING) {
            memcpy((char *)into + done, l->ring + l->got % (uint64_t)l->ring_bytes, (size_t)n);
            l->got += (uint64_t)n;
            l->owed_bytes += (uint32_t)n;
        } else if (front >> 24 == FROM_NOTE) {
            const ckc_note *note = &l->noted[l->taken % CKC_RDMA_MESSAGES];
            memcpy((char *)into + done, note->bytes + CKC_RDMA_NOTE_BYTES - padded(length) + l->taken_of, (size_t)n);
        }
        done += n;
        l->pulled += (uint64_t)n;
        l->taken_of += (uint32_t)n;
        if (l->taken_of == length) {
            l->taken++;
            l->owed++;
            l->taken_of = 0;
        }
    }
    if (done) give_credit(l);
    return done == 0 && l->status ? -1 : done;
}

/* --------------------------------------------------------------------------------------------------- sleeping */

static int came(const ckc_rdma_link *l, int waits_for) {
    if (l->status) return 1;
    if (waits_for & CKC_FOR_PULL && l->taken < l->arrived) return 1;
    if (waits_for & CKC_FOR_PUSH && may_send(l) && (ring_room(l) > 0 || granted(l) > 0)) return 1;
    return waits_for & CKC_FOR_FLUSH && l->complete >= l->borrowed;
}

static int arm(ckc_link *link, int waits_for) {
    ckc_rdma_link *l = (ckc_rdma_link *)link;
    if (came(l, waits_for) || l->port->arm(l->port)) return 1;
    settle(l);
    return came(l, waits_for);
}

static const char *why(ckc_link *link) {
    switch (((ckc_rdma_link *)link)->status) {
    case 5: return "its queue pair was closed (WR_FLUSH_ERR)";
    case 9: return "it refused a request (REM_INV_REQ_ERR)";
    case 10: return "its memory was not to be written (REM_ACCESS_ERR)";
    case 12: return "it did not answer, and the retries are used up (RETRY_EXC_ERR)";
    case 13: return "it had no receive posted (RNR_RETRY_EXC_ERR)";
    default: return "the queue pair to it broke";
    }
}

int ckc_open_rdma_link(ckc_rdma_link *l) {
    l->link = (ckc_link){.push = push, .pull = pull, .flushed = flushed, .arm = arm, .why = why, .fd = l->port->fd,
                         .can_push = POLLIN};
    return l->port->receive(l->port, CKC_RDMA_RECEIVES);
}

int ckc_end_rdma_link(ckc_rdma_link *l) {
    if (!l->status && !l->ending && entries_left(l) > 0) {
        ckc_write write = {.local = (uint64_t)(uintptr_t)l->stage, .remote = l->remote_ring};
        l->ending = 1;
        post(l, &write, CKC_RDMA_END, 1);
    }
    return settle(l) ? -1 : l->ending && l->peer_ended && l->complete == l->posted;
}
