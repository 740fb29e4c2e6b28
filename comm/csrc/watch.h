/* The watch thread: it shows that this process runs, and sees when another one does not any more. */
#ifndef CKC_WATCH_H
#define CKC_WATCH_H

#include "world.h"

/* A file descriptor that tells the end of a rank of the node: a pidfd becomes readable, a socket is hung up. */
typedef struct ckc_watched {
    int fd, rank, local_rank, is_pidfd, gone;
} ckc_watched;

int ckc_start_watch(ckc_world *world, ckc_watched *watched, int count);

#endif
