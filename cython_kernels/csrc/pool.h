/* The process's one thread pool. See pool.c. */
#ifndef CK_POOL_H
#define CK_POOL_H

#include "kernels.h"
#include "recording.h"

/* Number of threads that a kernel may use, the caller's included; at least 1. */
int ck_pool_threads(void);

/* Stop the workers, then start n - 1 and reserve n workspaces. 0, or an errno with the pool left at one
 * thread. */
int ck_pool_set_threads(int n);

/* The caches' sizes, read at the first ck_pool_set_threads. */
const ck_caches *ck_pool_caches(void);

/* How often the threads of a team have waited for each other since the pool was started, in the range of an unsigned. */
unsigned ck_pool_barriers(void);

/* Run kernel(args, team) on a team as large as `work` is worth; returns when all its threads are done. */
void ck_pool_run(ck_kernel kernel, const void *args, int64_t work);

/* Run all calls of a recording, each as ck_pool_run does; no other call comes between them. */
void ck_pool_replay(const ck_recording *recording);

#endif
