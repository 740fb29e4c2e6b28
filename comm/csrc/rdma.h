/* Links (link.h) over RDMA: a ring of bytes in the receiver's memory, which the sender writes.
 *
 * Ring. Each direction has `ring_bytes` in the receiver's registered memory and as many in the sender's (the stage, at
 * the same offsets). The sender copies bytes into its stage and writes them to the peer's ring with immediate data; the
 * receiver learns of each message by its completion queue, copies it out, and gives credit. A message never wraps.
 *
 * Direct. A receiver that waits for a large buffer in registered memory tells the sender where it lies (a grant). What
 * is pushed from registered memory from then on is written there from where it lies: no copy on either side. What was
 * pushed before the grant came went through the ring, so nobody waits for a grant. Positions in the stream of bytes
 * (the same on both sides) say where in the buffer the sender stands.
 *
 * Notes. A peer that looks at its memory anyway, since a completion costs it more (pyverbs makes Python objects of them),
 * gets what is short without immediate data: the bytes, the number of the message and a checksum in a slot of its own,
 * one for each message that may be under way. The peer takes it for come when number and checksum are right: in which
 * order the bytes of one write become visible nobody promises. Numbers join notes and other messages to one order: a note is
 * taken when all before it have come, and when a completion comes, all notes before that message are there.
 *
 * Credit. The sender has at most MESSAGES messages and `ring_bytes` bytes that it got no credit for. Credit travels with
 * messages, and alone when a quarter of either is owed, so at most 8 such messages are under way; likewise at most
 * GRANTS grants, since a buffer worth one is at least a quarter of a ring. A receive is posted for each of all these:
 * the device never finds none ("receiver not ready"). One more is for the END, the last message of each side, and AT_ONCE since
 * so many are posted again at once.
 *
 * immediate data = kind << 30 | messages credited << 24 | bytes */
#ifndef CKC_RDMA_H
#define CKC_RDMA_H

#include <stdatomic.h>

#include "link.h"

#define CKC_PORT_CAPSULE "cktrain.port"

enum { CKC_RDMA_MESSAGES = 32, CKC_RDMA_GRANTS = 8, CKC_RDMA_REGIONS = 256 };
/* SENDS: soft-RoCE's queue has one entry more, rounded up to a power of two. */
enum { CKC_RDMA_AT_ONCE = 8, CKC_RDMA_SENDS = 63, CKC_RDMA_NOTE_BYTES = 112 };
enum { CKC_RDMA_RECEIVES = CKC_RDMA_MESSAGES + 8 + CKC_RDMA_GRANTS + 1 + CKC_RDMA_AT_ONCE };
enum { CKC_RDMA_RING, CKC_RDMA_DIRECT, CKC_RDMA_GRANT, CKC_RDMA_END };

/* A write to the peer's memory with immediate data, or without (silent: its completion queue does not hear of it). */
typedef struct {
    uint64_t local, remote, id;
    uint32_t lkey, rkey, bytes, imm;
    int signaled, inlined, silent;
} ckc_write;

typedef struct {
    uint64_t id;                /* of a write; those before it are complete as well */
    uint32_t imm;               /* of an arrival */
    int arrival, status;        /* status: 0, or what libibverbs gave */
} ckc_completion;

/* A queue pair and its completion queue, whatever drives them. */
typedef struct ckc_port ckc_port;
struct ckc_port {
    int (*post)(ckc_port *port, const ckc_write *write);        /* 0 or an errno */
    int (*receive)(ckc_port *port, int count);                  /* post empty receives; 0 or an errno */
    int (*poll)(ckc_port *port, ckc_completion *into, int limit);   /* how many; below 0 when the queue is broken */
    int (*arm)(ckc_port *port);         /* the next completion shall make fd readable; 0 or an errno */
    int fd;                             /* -1: there is nothing to sleep on */
};

/* Where the receiver's buffer lies: what it writes into the sender's slot. */
typedef struct {
    uint64_t position, address, bytes;
    uint32_t key, zero;
} ckc_grant;

/* A slot for a short message, whose bytes end where `check` begins. */
typedef struct {
    char bytes[CKC_RDMA_NOTE_BYTES];
    uint64_t check;
    uint32_t number, imm;               /* the first message's number is 1; as immediate data */
} ckc_note;

typedef struct {
    uint64_t begin, end;
    uint32_t lkey, rkey;
} ckc_region;

/* Registered memory of the process. It only grows while links are used: another thread may be looking. */
typedef struct {
    ckc_region at[CKC_RDMA_REGIONS];
    _Atomic int count;
} ckc_regions;

typedef struct {
    ckc_link link;                      /* first */
    ckc_port *port;
    const ckc_regions *regions;
    int64_t ring_bytes, chunk_bytes, inline_bytes, direct_bytes;
    int status;                         /* 0, or how the queue pair broke */
    int used;                           /* receives to be posted again */

    char *stage;                        /* ours: what is pushed */
    ckc_grant *granted;                 /* ours: (GRANTS) slots that the peer writes */
    ckc_grant *grants;                  /* ours: (GRANTS) what is written into the peer's slots */
    ckc_note *noted;                    /* ours: (MESSAGES) slots that the peer writes */
    ckc_note *notes;                    /* ours: (MESSAGES) what is written into the peer's slots */
    uint32_t own_key;                   /* of all of ours */
    uint64_t remote_ring, remote_granted, remote_noted;
    uint32_t remote_key;
    int peer_looks;                     /* it takes notes */

    uint64_t pushed;                    /* position of the stream that goes out */
    uint64_t put, freed;                /* bytes of it that went through the ring; those credited */
    uint64_t direct;                    /* bytes of it that went straight to where they belong */
    uint64_t sent, credited;            /* messages, of either kind */
    uint32_t lengths[CKC_RDMA_MESSAGES];    /* in the ring, of those not credited */
    uint64_t posted, complete;          /* entries of the send queue */
    int ending, peer_ended;             /* END was posted; has come */
    uint64_t borrowed;                  /* `posted` after the last write from memory that is not ours */
    ckc_grant grant;                    /* the latest one that came */
    uint64_t grants_come;

    char *ring;
    uint64_t pulled;                    /* position of the stream that comes in */
    uint64_t got;                       /* bytes of it that came out of the ring */
    uint64_t arrived, taken;            /* messages */
    uint32_t arrivals[CKC_RDMA_MESSAGES];   /* where from and bytes of those that arrived and are not taken */
    uint32_t taken_of;                  /* bytes of the first of them that are */
    uint32_t owed, owed_bytes;          /* credit that the peer is to get */
    uint64_t granted_to;                /* end of the last grant given */
    uint64_t grants_given;
} ckc_rdma_link;

/* The fields that are given are set, the others 0. Post the receives before the peer may send; 0 or an errno. */
int ckc_open_rdma_link(ckc_rdma_link *link);

/* The last use of a link, on both sides, called until it returns 1: the peer has all that was sent and says that it will
 * send no more, so neither needs the other's queue pair. Below 0 when the queue pair broke. */
int ckc_end_rdma_link(ckc_rdma_link *link);
#endif
