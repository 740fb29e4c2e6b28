/* The pool: n - 1 worker threads and whoever calls.
 *
 * A call holds the pool's lock from beginning to end, so calls from several Python threads take turns and
 * the size of a team depends on the work alone, never on timing. The caller publishes the job and raises
 * `epoch`; a worker spins on `epoch` for a while, then sleeps on it (futex). Every worker answers every
 * epoch, whether it is in the team or not, so that the job can be overwritten once `pending` is zero.
 * Where there are more threads than CPUs nobody spins.
 *
 * Workers block all signals: Python's handlers run in the main thread. A forked child has no workers; it
 * falls back to one thread, and may call ck_pool_set_threads for its own.
 *
 * Workspaces are one anonymous mapping, CK_SHARED_BYTES and then CK_SCRATCH_BYTES per thread, on huge pages
 * where the kernel grants them, and touched first by the thread that uses each. */
#define _GNU_SOURCE
#include "pool.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "split.h"

#define HUGE_PAGE ((size_t)2 << 20)
#define SPINS 10000  /* some 120 us of waiting before the first sleep: more than Python takes between two kernels */

typedef struct { _Alignas(64) atomic_uint value; atomic_uint sleepers; } event;

static struct {
    pthread_mutex_t lock;
    pthread_t *workers;
    int threads;            /* 1 + number of workers */
    int spins;
    char *shared, *scratch; /* the beginning of the mapping, and where the threads' workspaces begin in it */
    size_t mapped;
    ck_caches caches;
    ck_kernel kernel;       /* the job; NULL tells the workers to end */
    const void *args;
    int team_size;
    event epoch;            /* raised for each job */
    event pending;          /* workers that have not answered yet */
    event arrived;          /* the team barrier's generation */
    atomic_uint waiting;    /* threads that stand at the barrier */
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .threads = 1};

static void pause_cpu(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Wait until e differs from `old`; returns what it is then. */
static unsigned wait_until_not(event *e, unsigned old) {
    for (int i = 0; i < pool.spins; i++) {
        const unsigned now = atomic_load_explicit(&e->value, memory_order_acquire);
        if (now != old) return now;
        pause_cpu();
    }
    atomic_fetch_add(&e->sleepers, 1);
    unsigned now;
    while ((now = atomic_load(&e->value)) == old)
        syscall(SYS_futex, &e->value, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    atomic_fetch_sub(&e->sleepers, 1);
    return now;
}

/* Call after the value has changed. Sequentially consistent, so either the sleeper sees the value or we
 * see the sleeper. */
static void wake(event *e) {
    if (atomic_load(&e->sleepers)) syscall(SYS_futex, &e->value, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void wait_for_team(const ck_team *team) {
    const unsigned generation = atomic_load(&pool.arrived.value);
    if (atomic_fetch_add(&pool.waiting, 1) + 1 == (unsigned)team->size) {
        atomic_store(&pool.waiting, 0);
        atomic_fetch_add(&pool.arrived.value, 1);
        wake(&pool.arrived);
    } else {
        wait_until_not(&pool.arrived, generation);
    }
}

static void run_as(int index) {
    const ck_team team = {index, pool.team_size, pool.scratch + (size_t)index * CK_SCRATCH_BYTES,
                          pool.shared, &pool.caches, wait_for_team};
    pool.kernel(pool.args, &team);
}

static void *work(void *index_as_pointer) {
    const int index = (int)(intptr_t)index_as_pointer;
    unsigned epoch = 0;
    for (;;) {
        epoch = wait_until_not(&pool.epoch, epoch);
        const int end = pool.kernel == NULL;
        if (!end && index < pool.team_size) run_as(index);
        if (atomic_fetch_sub(&pool.pending.value, 1) == 1) wake(&pool.pending);
        if (end) return NULL;
    }
}

static void publish(ck_kernel kernel, const void *args, int team_size) {
    pool.kernel = kernel;
    pool.args = args;
    pool.team_size = team_size;
    atomic_store(&pool.pending.value, (unsigned)(pool.threads - 1));
    atomic_fetch_add(&pool.epoch.value, 1);
    wake(&pool.epoch);
}

static void wait_for_workers(void) {
    unsigned left;
    while ((left = atomic_load(&pool.pending.value)) != 0) wait_until_not(&pool.pending, left);
}

/* The mapping is aligned to huge pages by hand: what sticks out at either end is given back. */
static int reserve_scratch(int threads) {
    const size_t bytes = ck_round_up(CK_SHARED_BYTES + (int64_t)threads * CK_SCRATCH_BYTES, HUGE_PAGE);
    char *mapping = mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) return errno;
    char *begin = (char *)ck_round_up((int64_t)(intptr_t)mapping, HUGE_PAGE);
    if (begin > mapping) munmap(mapping, (size_t)(begin - mapping));
    if (mapping + HUGE_PAGE > begin) munmap(begin + bytes, (size_t)(mapping + HUGE_PAGE - begin));
    madvise(begin, bytes, MADV_HUGEPAGE);  /* advice: without huge pages it only runs slower */
    if (pool.shared) munmap(pool.shared, pool.mapped);
    pool.shared = begin;
    pool.scratch = begin + CK_SHARED_BYTES;
    pool.mapped = bytes;
    return 0;
}

/* The size of the data cache of a level, as the first CPU's files tell; `usual` where they are hidden. (The C
 * library's sysconf gives the sum over a socket for the third level of some processors.) */
static int64_t cache_bytes(int level, int64_t usual) {
    for (int index = 0; index < 8; index++) {
        char path[96], type[16] = "";
        int found = 0;
        long long size = 0;
        static const char *const names[] = {"level", "type", "size"};
        for (int name = 0; name < 3; name++) {
            snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/%s", index, names[name]);
            FILE *file = fopen(path, "re");
            if (file == NULL) return usual;
            const int read = name == 0 ? fscanf(file, "%d", &found)
                           : name == 1 ? fscanf(file, "%15s", type) : fscanf(file, "%lldK", &size);
            fclose(file);
            if (read != 1) return usual;
        }
        if (found == level && type[0] != 'I' && size > 0) return size << 10;
    }
    return usual;
}

static void read_caches(void) {
    pool.caches.l1 = cache_bytes(1, 32 << 10);
    pool.caches.l2 = cache_bytes(2, 512 << 10);
    pool.caches.l3 = cache_bytes(3, 16 << 20);
}

static void stop_workers(void) {
    const int workers = pool.threads - 1;
    if (workers > 0) publish(NULL, NULL, 0);
    for (int i = 0; i < workers; i++) pthread_join(pool.workers[i], NULL);
    free(pool.workers);
    pool.workers = NULL;
    pool.threads = 1;
}

static void before_fork(void) { pthread_mutex_lock(&pool.lock); }
static void in_parent(void) { pthread_mutex_unlock(&pool.lock); }
static void in_child(void) {
    pthread_mutex_init(&pool.lock, NULL);
    pool.workers = NULL;  /* the array leaks: free() after fork is not safe everywhere */
    pool.threads = 1;
    atomic_store(&pool.epoch.sleepers, 0);
    atomic_store(&pool.pending.value, 0);
    atomic_store(&pool.pending.sleepers, 0);
    atomic_store(&pool.arrived.sleepers, 0);
}

static int start_workers(int n) {
    cpu_set_t cpus;
    const int known = sched_getaffinity(0, sizeof cpus, &cpus) == 0;
    pool.spins = known && n <= CPU_COUNT(&cpus) ? SPINS : 0;
    atomic_store(&pool.epoch.value, 0);
    pool.workers = calloc((size_t)n, sizeof *pool.workers);
    if (pool.workers == NULL) return ENOMEM;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = 0;
    for (int i = 1; i < n && error == 0; i++) {
        error = pthread_create(&pool.workers[i - 1], NULL, work, (void *)(intptr_t)i);
        if (error == 0) pool.threads = i + 1;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) stop_workers();
    return error;
}

int ck_pool_threads(void) { return pool.threads; }

unsigned ck_pool_barriers(void) { return atomic_load(&pool.arrived.value); }

const ck_caches *ck_pool_caches(void) { return &pool.caches; }

int ck_pool_set_threads(int n) {
    static int registered;
    pthread_mutex_lock(&pool.lock);
    if (!registered) {
        pthread_atfork(before_fork, in_parent, in_child);
        read_caches();
        registered = 1;
    }
    stop_workers();
    int error = reserve_scratch(n);
    if (error == 0 && n > 1) error = start_workers(n);
    pthread_mutex_unlock(&pool.lock);
    return error;
}

static void run_locked(ck_kernel kernel, const void *args, int64_t work_items) {
    const int size = ck_team_size(work_items, pool.threads);
    if (size == 1) {
        const ck_team alone = {0, 1, pool.scratch, pool.shared, &pool.caches, wait_for_team};
        kernel(args, &alone);
    } else {
        publish(kernel, args, size);
        run_as(0);
        wait_for_workers();
    }
}

void ck_pool_run(ck_kernel kernel, const void *args, int64_t work_items) {
    pthread_mutex_lock(&pool.lock);
    run_locked(kernel, args, work_items);
    pthread_mutex_unlock(&pool.lock);
}

void ck_pool_replay(const ck_recording *recording) {
    pthread_mutex_lock(&pool.lock);
    for (int64_t i = 0; i < recording->count; i++) {
        const ck_call *call = &recording->calls[i];
        run_locked(call->kernel, recording->arguments + call->at, call->work);
    }
    pthread_mutex_unlock(&pool.lock);
}
