/* Collectives over links (link.h): a schedule, which is plain data (comm/schedules), carried out without blocking.
 *
 * A wire is a lane of operations with one link to each peer; operations run one after another, so bytes on a link
 * have the order of the schedule and need no tags. Before its first payload to a peer an operation sends its call (a
 * header), and it compares the headers of all its partners before it takes any payload. In all_to_all the header to a peer
 * has the elements for it as `count`, those expected from it as `extra` and the own sum (world.h) as `offset`. Rounds follow each other; the transfers of a
 * round go on side by side, then its local steps run in their order. */
#ifndef CKC_WIRE_H
#define CKC_WIRE_H

#include "link.h"
#include "world.h"

enum { CKC_STEP_SEND, CKC_STEP_RECV, CKC_STEP_REDUCE, CKC_STEP_COPY };
enum { CKC_PLACE_IN, CKC_PLACE_OUT, CKC_PLACE_SCRATCH };
enum { CKC_HEADER_SENT = 1, CKC_HEADER_RECEIVED = 2 };

/* at and count are elements. REDUCE: place[at] = the sources [first, first + sources). COPY: from the one source. */
typedef struct {
    int64_t round, kind, peer, place, at, count, first, sources;
} ckc_step;

typedef struct {
    int64_t place, at;
} ckc_source;

typedef struct {
    ckc_queue queue;                        /* first: an operation's queue is its wire */
    ckc_world *world;
    int rank, size;
    ckc_link *links[CKC_MAX_RANKS];         /* to each member; NULL for this one */
    int64_t gone_ns[CKC_MAX_RANKS];         /* when a link was found closed; 0 */
    int names[CKC_MAX_RANKS];               /* member -> world rank */
    uint64_t seq;
} ckc_wire;

typedef struct {                            /* an operation's `extra` */
    const ckc_step *steps;
    const ckc_source *sources;
    int64_t step_count, round_end, next;    /* rows [next, round_end) are the round under way */
    int64_t *moved;                         /* bytes per row */
    char *scratch;
    uint8_t partners[CKC_MAX_RANKS];        /* CKC_HEADER_SENT | CKC_HEADER_RECEIVED */
    uint8_t sent[CKC_MAX_RANKS], received[CKC_MAX_RANKS];       /* bytes of the headers */
    ckc_call theirs[CKC_MAX_RANKS];
    int begun, agreed;                      /* agreed: all headers have come and are alike */
} ckc_run_state;

int ckc_wire_advance(ckc_op *op);
/* In place of this operation: tell its peers that `met`, an operation of csrc/shm.h on a group inside the node, met a
 * mismatch. The header then has `zero` set, so that it agrees with none, and names one of the differing calls: its root
 * (+ 1), op, dtype and kind as bytes of `arena`, its count in `offset`, its extra in `seq`, its seat in `pad`. */
void ckc_wire_spoil(ckc_op *op, const ckc_op *met);
int ckc_wire_wanted(ckc_op *op, struct pollfd *fds, int limit);

#endif
