/* Collectives among the ranks of a node, through memory that all of them map.
 *
 * A channel is a lane of operations of one group, which run one after another; a group has one for synchronous and one
 * for asynchronous operations. Each rank owns a block of it: a tick (how far it is), two slots (what it calls, and a
 * small array itself), two stages (pieces of arrays on their way).
 *
 * Operation s:
 *  1. Arrival. The rank fills its slot s % 2 (in all_to_all also its parts) and stores s to the slot's seq (release). It
 *     waits until every peer's slot has seq s (acquire) and compares the calls, before any payload moves.
 *     A slot is written again by operation s + 2, which its owner begins after the arrival of all at s + 1, so after
 *     all had finished reading s. The same argument frees the stages and the arrays: when all have arrived at an
 *     operation, nobody reads anything of the one before.
 *  2. Steps. The owner does a step (copies in, reduces) and adds one to its tick (release); a peer that needs it waits
 *     for the tick (acquire). All ranks do the same number of steps in an operation, so ticks are compared directly.
 *
 * Large all-reduce with arrays in shared arenas: rank r reduces part r, reading all arrays in place and writing the
 * result to all of them; one tick at the end. Traffic per rank and byte of the array: 1 read and 1 write, whatever the
 * number of ranks. Other arrays go through the stages in chunks that stay in the caches. */
#ifndef CKC_SHM_H
#define CKC_SHM_H

#include "world.h"

#define CKC_INLINE_BYTES (64 << 10)         /* arrays up to this travel in the slots */

typedef struct {
    _Alignas(64) _Atomic uint64_t tick;
    _Alignas(64) ckc_call call[2];
} ckc_block_head;

typedef struct {                            /* of an all_to_all: first elements of the parts, as in ckc_op */
    int64_t begins[CKC_MAX_RANKS + 1], received[CKC_MAX_RANKS + 1];
    int64_t longest;                        /* part of the input */
} ckc_parts;

typedef struct ckc_channel {
    ckc_queue queue;                        /* first: an operation's queue is its channel */
    ckc_world *world;
    int rank, size;
    int seats[CKC_MAX_RANKS];               /* member -> seat in the node */
    char *blocks[CKC_MAX_RANKS];
    int64_t inline_bytes, stage_bytes;
    uint64_t seq, tick;                     /* of the last operation that was begun; of this rank */
    int64_t begins[CKC_MAX_RANKS + 1];      /* of the operation that runs */
} ckc_channel;

int64_t ckc_block_bytes(int64_t inline_bytes, int64_t stage_bytes);
const ckc_call *ckc_call_of(const ckc_channel *channel, int rank, uint64_t seq);
const ckc_parts *ckc_parts_of(const ckc_channel *channel, int rank, uint64_t seq);
/* Have begun operation seq: 1 for each rank in `here`. */
void ckc_who_is_here(const ckc_channel *channel, uint64_t seq, uint64_t tick, uint8_t *here);
extern int (*const ckc_shm_advance[])(ckc_op *);        /* by kind, CKC_BARRIER ... CKC_ALL_TO_ALL */

/* Messages from one rank to another: a ring of bytes with one writer and one reader. A message is its call (one cache
 * line) and its bytes, padded to a line. head and tail only grow; the writer owns head, the reader tail. */
typedef struct {
    _Alignas(64) _Atomic uint64_t head;     /* bytes that the writer has put in */
    _Alignas(64) _Atomic uint64_t tail;     /* bytes that the reader has taken out */
    _Alignas(64) ckc_call refused;          /* seq 1: what the reader wanted instead; both ends fail */
    _Alignas(64) char data[];
} ckc_ring_memory;

typedef struct ckc_stream {                 /* this rank's end of a ring */
    ckc_queue queue;
    ckc_world *world;
    ckc_ring_memory *ring;
    int64_t ring_bytes;
    int seat;                               /* the other end's */
    uint64_t messages;                      /* begun here */
} ckc_stream;

int64_t ckc_ring_memory_bytes(int64_t ring_bytes);
int ckc_stream_send(ckc_op *op);
int ckc_stream_recv(ckc_op *op);

#endif
