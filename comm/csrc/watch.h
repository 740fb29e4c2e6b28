/* The watch thread: it shows that this process runs, and sees when another one does not any more. */
#ifndef CKC_WATCH_H
#define CKC_WATCH_H

#include "world.h"

enum { CKC_WATCH_HANGUP, CKC_WATCH_PIDFD, CKC_WATCH_CONTROL };

/* What a rank tells another one four times a second over their control connection, and at once when it fails or leaves. */
typedef struct {
    uint64_t beat, activity, operation;
    uint32_t cause, left;
} ckc_frame;

/* A file descriptor that tells the end of a rank: a socket of its node is hung up, a pidfd becomes readable, a control
 * connection ends; or, after TCP_USER_TIMEOUT without an answer to our frames, breaks. */
typedef struct ckc_watched {
    int fd, rank, local_rank, kind, gone;
    ckc_frame frame;
    int have;
} ckc_watched;

void ckc_tell(ckc_world *world);        /* the state of this rank's seat, on all control connections */
int ckc_start_watch(ckc_world *world, ckc_watched *watched, int count);

#endif
