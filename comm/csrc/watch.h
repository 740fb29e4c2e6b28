/* The watch thread: it shows that this process runs, and sees when another one does not any more. */
#ifndef CKC_WATCH_H
#define CKC_WATCH_H

#include "world.h"

enum { CKC_WATCH_HANGUP, CKC_WATCH_PIDFD, CKC_WATCH_CONTROL };

/* What a rank tells another one four times a second over their control connection, and at once when it fails or leaves.
 * A rank that is stopped reads nothing; so that its buffers never fill, which would look like a dead link, it is told no
 * more than CKC_UNHEARD_LIMIT frames beyond those that it has said to have `heard`. */
typedef struct {
    uint64_t beat, activity, operation, heard;
    uint32_t cause, left;
    ckc_waiting waiting;
    uint64_t differs;
    ckc_difference difference;
} ckc_frame;
#define CKC_UNHEARD_LIMIT 20

/* A file descriptor that tells the end of a rank: a socket of its node is hung up, a pidfd becomes readable, a control
 * connection ends; or, after TCP_USER_TIMEOUT without an answer to our frames or to the kernel's probes, breaks. */
typedef struct ckc_watched {
    int fd, rank, local_rank, kind;
    _Atomic int gone;
    ckc_frame frame;
    int have;
    uint64_t told;                          /* frames that were sent; under the lock of telling */
    _Atomic uint64_t heard, answered;       /* frames that came; of ours, how many the other one has heard */
} ckc_watched;

void ckc_tell(ckc_world *world);        /* the state of this rank's seat, on all control connections */
int ckc_start_watch(ckc_world *world, ckc_watched *watched, int count);

#endif
