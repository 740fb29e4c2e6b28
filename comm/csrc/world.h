/* What one process knows of its world: the seats of its node's ranks, the failure that ends all waiting, the operations
 * in flight and the two ways to run one (in the caller, or on the engine's thread).
 *
 * Sleeping and waking. Each rank has a seat in memory that all ranks of the node map. A thread that waits spins, then
 * yields, then sleeps in a futex on its own rank's `bell`. Who changes something that others may wait for calls
 * ckc_ring_*: it stores, then a sequentially consistent fence, then reads `sleepers`. Who goes to sleep reads `bell`,
 * adds itself to `sleepers` (sequentially consistent), looks once more at what it waits for, and only then sleeps if
 * `bell` is still what it read. Either the last look sees the store, or the fence makes the storer see the sleeper and
 * change the bell: no wake-up is lost (Dekker's argument). */
#ifndef CKC_WORLD_H
#define CKC_WORLD_H

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "reduce.h"

#define CKC_MAX_RANKS 256           /* of one group */
#define CKC_MAX_ARENAS 64           /* of one rank */

enum { CKC_BARRIER, CKC_ALL_REDUCE, CKC_REDUCE_SCATTER, CKC_ALL_GATHER, CKC_BROADCAST, CKC_ALL_TO_ALL, CKC_SEND,
       CKC_RECV };
/* What advance and run return: below zero is the end of the operation. */
enum { CKC_PENDING = 0, CKC_DONE = 1, CKC_MISMATCH = -1, CKC_LOST = -2, CKC_BROKEN = -3 };

/* What the caller of a rank waits in, and cannot leave before it is complete; shown once that has lasted a while, and of
 * use to ranks that find out that they wait for each other in a circle (comm/standstill.py). Sets are of seats. */
typedef struct {
    uint64_t group, whole;          /* 0: it does not wait; the group that it is a part of, for messages */
    uint64_t number;                /* of the operation on its lane, or of one before it that is not complete */
    uint64_t needs[CKC_MAX_RANKS / 64];     /* from whom something must come */
    uint64_t held[CKC_MAX_RANKS / 64];      /* who waits for this rank, directly or not */
    uint64_t extra;
    int64_t count;
    int32_t root;
    uint8_t kind, dtype, op, lane;
    uint64_t certain;               /* it will never be complete */
} ckc_waiting;
#define CKC_WAITING_WORDS (sizeof(ckc_waiting) / sizeof(uint64_t))

/* What a rank calls, as ranks that take no part in the operation are told of it. */
typedef struct {
    uint64_t extra;
    int64_t count;
    int32_t root;
    uint8_t kind, dtype, op, zero;
} ckc_told;

/* The first mismatch that a rank has met, shown before it raises and ends: comm/mismatch.py says why. */
typedef struct {
    uint64_t group, whole, number;  /* of the operation on its lane, as in ckc_waiting */
    uint32_t lane, seat;            /* seat: of the rank that differs */
    ckc_told mine, theirs;
} ckc_difference;

typedef struct {
    _Alignas(64) _Atomic uint32_t bell;     /* futex word: any change wakes the rank's sleepers */
    _Atomic uint32_t sleepers;              /* threads of the rank that sleep or are about to */
    _Alignas(64) _Atomic uint64_t beat;     /* grows while the process runs: by its watch thread, every 100 ms */
    _Atomic uint64_t activity;              /* grows while the process computes, or writes files, outside of comm's waits */
    _Atomic uint64_t operation;             /* kind << 56 | number of the last operation that was begun */
    _Atomic uint32_t left;                  /* closed in order: the end of the process is no failure */
    _Atomic uint32_t cause;                 /* 1 + the world rank whose loss this rank knows of | the rank that saw it << 16 */
    _Alignas(64) _Atomic uint64_t waiting_stamp;       /* odd while `waiting` is being written */
    _Atomic uint64_t waiting[CKC_WAITING_WORDS];  /* a ckc_waiting */
    _Atomic uint32_t differs;               /* `difference` is there, and will not change */
    ckc_difference difference;
} ckc_seat;

typedef struct {
    char *base;
    int64_t bytes;
} ckc_span;

typedef struct ckc_op ckc_op;

/* Operations that must run one after another; they wait in the engine. */
typedef struct ckc_queue {
    ckc_op *head, *tail;            /* the engine's */
    _Atomic int pending;            /* handed over and not yet complete */
    _Atomic int broken;             /* operations end with CKC_BROKEN: no thread will touch their memory again */
    _Atomic int active;             /* stands in the engine's list; until it is 0 the queue may not be freed */
    struct ckc_queue *next;
} ckc_queue;

/* What a rank calls, as its peers see it; compared from `kind` to `extra`. */
typedef struct {
    _Atomic uint64_t seq;
    uint8_t kind, dtype, op, zero;
    int32_t root;
    int64_t count;
    uint64_t extra;                 /* checksum of the counts per rank; in all_to_all all ranks' sum to 0 (below) */
    int64_t offset;                 /* where the array that peers read lies in the arena */
    int32_t arena;                  /* -1: in no arena that the group shares */
    int32_t pad;
} ckc_call;
#define CKC_CALL_COMPARED (offsetof(ckc_call, offset) - offsetof(ckc_call, kind))
/* In all_to_all each pair has lengths of its own, which the two compare. So that the other ranks see a difference as well,
 * each adds up its counts, times a number per pair and direction: what it sends, less what it receives (comm/all_to_all.py).
 * Where all counts agree, all ranks' sums are 0 together. */
#define CKC_CALL_COMPARED_IN_EXCHANGE (offsetof(ckc_call, count) - offsetof(ckc_call, kind))

struct ckc_op {
    int (*advance)(ckc_op *);       /* never blocks; CKC_PENDING, CKC_DONE or the failure */
    ckc_queue *queue;
    void *on;                       /* the channel or stream that it runs on */
    int pc, cursor;                 /* where advance goes on; which peer it looks at */
    ckc_call call;
    const char *in;
    char *out;
    const int64_t *begins;          /* (size + 1) first element of each rank's part */
    const int64_t *received;        /* all_to_all: the same of the output, whose parts come from the ranks; else NULL */
    int64_t chunk, chunks, c;
    int64_t moved;                  /* grows while the operation gets on */
    uint64_t seq, base;
    int (*wanted)(ckc_op *, struct pollfd *fds, int limit);     /* sockets it waits for (-1: it must not
                                     * sleep); NULL where a bell wakes it */
    ckc_op *after;                  /* on the engine: begins when that one is done, and fails with it */
    void (*spoil)(ckc_op *, const ckc_op *after);   /* tell this one's peers that `after` met a mismatch; or NULL */
    void *extra;                    /* csrc/wire.h: what it has moved */
    _Atomic int state;              /* CKC_PENDING until the engine is through with it */
    ckc_op *next;
};

typedef struct {
    int rank, local_rank, local_size;
    int spin;                               /* cores are at least as many as ranks: waiting may burn one */
    ckc_seat *seats[CKC_MAX_RANKS];         /* of each rank: where it shows what it does */
    int bells[CKC_MAX_RANKS];               /* eventfd of a rank whose engine sleeps on sockets; 0: it has none */
    ckc_span arenas[CKC_MAX_RANKS][CKC_MAX_ARENAS];     /* of each rank of the node, where this process maps them */
    int64_t stream_bytes;                   /* reductions that touch more than this write past the caches */
    ckc_reduce_n reduce;

    _Atomic int failure;                    /* 0; the first failure's cause, set once */
    int failed_rank;                        /* world rank; this and the next two are valid once failure is set */
    int64_t failed_ns;
    char failed_how[120];

    _Atomic(ckc_op *) inbox;                /* handed to the engine, latest first */
    _Atomic int stop;
    int engine_runs, watch_runs, engine_core;
    pthread_t engine, watch;
    ckc_queue *active;
    int wake_fd;                            /* eventfd that wakes the engine where it sleeps on sockets; or -1 */
    struct ckc_watched *watched;
    int watched_count;
    _Atomic uint64_t waited_ns;             /* CPU time that waiting burnt, not to be counted as activity */
} ckc_world;

/* One thread shows what a rank waits in; any may read it: 0 when it was being changed. */
void ckc_show_waiting(ckc_seat *seat, const ckc_waiting *waiting);
int ckc_read_waiting(ckc_seat *seat, ckc_waiting *into);

/* One thread shows the first difference that a rank met; any may read it: NULL while there is none. */
void ckc_show_difference(ckc_seat *seat, const ckc_difference *difference);
const ckc_difference *ckc_difference_of(const ckc_seat *seat);

int64_t ckc_now_ns(void);
void ckc_ring_seat(ckc_seat *seat);
void ckc_ring(ckc_world *world, const int *seats, int count);

/* Record the first failure and wake everything that waits in this process. 1 when it was the first. */
int ckc_fail(ckc_world *world, int cause, int rank, const char *how);
/* The same for a loss that rank `witness` has seen. */
int ckc_fail_as_told(ckc_world *world, int rank, int witness, const char *how);

/* In the caller: move the operation on until its end, or until slice_ns have passed (CKC_PENDING). */
int ckc_run(ckc_world *world, ckc_op *op, int64_t slice_ns);

/* In the caller: move the operation once, without waiting. */
int ckc_move(ckc_world *world, ckc_op *op);

/* On the engine: hand over, and wait for the end for at most slice_ns. */
int ckc_start_engine(ckc_world *world);
void ckc_submit(ckc_world *world, ckc_op *op);
int ckc_wait(ckc_world *world, ckc_op *op, int64_t slice_ns);
/* Before an operation or its queue is freed: wait until the engine has dropped all that it has of the queue. */
void ckc_retire(ckc_world *world, ckc_queue *queue);
void ckc_stop_threads(ckc_world *world);

/* How far an operation is: written by the thread that moves it, while the caller that waits may look at it. Any value of
 * the past will do (comm/standstill.py says why), so the order is relaxed; on x86 and arm these are plain moves. */
#define CKC_PUT(field, value) __atomic_store_n(&(field), (value), __ATOMIC_RELAXED)
#define CKC_PEEK(field) __atomic_load_n(&(field), __ATOMIC_RELAXED)

/* Protothreads (Dunkels et al. 2006): advance is written as straight code; AWAIT leaves it and comes back to the same
 * place. Variables that must live across it stand in the operation. */
#define CKC_BEGIN(o) switch ((o)->pc) { case 0:
#define CKC_AWAIT(o, condition) do { CKC_PUT((o)->pc, __LINE__); case __LINE__: if (!(condition)) return CKC_PENDING; } while (0)
#define CKC_AWAIT_CHECKED(o, expression)                                                                             \
    do { CKC_PUT((o)->pc, __LINE__); case __LINE__: { const int got = (expression); if (got <= 0) return got; } } while (0)
#define CKC_END(o) } return CKC_DONE

#endif
