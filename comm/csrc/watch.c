#define _GNU_SOURCE
#include "watch.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PERIOD_MS 100
#define TELL_NS 250000000
#define BUSY_NS 5000000             /* CPU time in one period that counts as computing: 5 % */

/* A process computes when it burns CPU time outside of comm's waits, or writes (a checkpoint on a slow disk burns
 * little). Nanoseconds and bytes need not be told apart: the number only has to grow. */
static uint64_t written_bytes(int fd) {
    char text[512];
    const ssize_t n = pread(fd, text, sizeof text - 1, 0);
    if (n <= 0) return 0;
    text[n] = 0;
    const char *at = strstr(text, "wchar: ");
    return at ? strtoull(at + 7, NULL, 10) : 0;
}

static void tell(ckc_world *w, uint64_t limit) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    ckc_seat *mine = w->seats[w->local_rank];
    ckc_frame frame = {
        .beat = atomic_load_explicit(&mine->beat, memory_order_relaxed),
        .activity = atomic_load_explicit(&mine->activity, memory_order_relaxed),
        .operation = atomic_load_explicit(&mine->operation, memory_order_relaxed),
        .cause = atomic_load_explicit(&mine->cause, memory_order_acquire),
        .left = atomic_load_explicit(&mine->left, memory_order_acquire),
    };
    ckc_read_waiting(mine, &frame.waiting);       /* where it is being changed the next frame tells */
    const ckc_difference *difference = ckc_difference_of(mine);
    if (difference != NULL) {
        frame.differs = 1;
        frame.difference = *difference;
    }
    pthread_mutex_lock(&lock);
    for (int i = 0; i < w->watched_count; i++) {
        ckc_watched *it = &w->watched[i];
        if (it->kind != CKC_WATCH_CONTROL || it->gone) continue;
        if (it->told - atomic_load_explicit(&it->answered, memory_order_relaxed) >= limit) continue;
        frame.heard = atomic_load_explicit(&it->heard, memory_order_relaxed);
        it->told++;
        (void)!send(it->fd, &frame, sizeof frame, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    pthread_mutex_unlock(&lock);
}

void ckc_tell(ckc_world *w) { tell(w, UINT64_MAX); }

static void hear(ckc_world *w, ckc_watched *it);

static void ended(ckc_world *w, ckc_watched *it, const char *how) {
    ckc_seat *theirs = w->seats[it->local_rank];
    it->gone = 1;
    if (atomic_load_explicit(&theirs->left, memory_order_acquire)) return;
    /* A rank that ended because of another one is not the cause. Unless that is this one, which lives: then the rank that
     * saw it has lost the link to this one. */
    const uint32_t told = atomic_load_explicit(&theirs->cause, memory_order_acquire);
    const int cause = (int)(told & 0xffff) - 1, witness = (int)(told >> 16);
    /* What the cause said last came before its end, on its own connection. */
    for (int i = 0; cause >= 0 && i < w->watched_count; i++)
        if (w->watched[i].rank == cause && w->watched[i].kind == CKC_WATCH_CONTROL && !w->watched[i].gone)
            hear(w, &w->watched[i]);
    if (cause == w->rank) ckc_fail(w, CKC_LOST, witness, "it had lost this rank: the link between them is down");
    else if (cause >= 0) ckc_fail_as_told(w, cause, witness, "as another rank has seen");
    else ckc_fail(w, CKC_LOST, it->rank, how);
}

static void hear(ckc_world *w, ckc_watched *it) {
    ckc_seat *theirs = w->seats[it->local_rank];
    for (;;) {
        const ssize_t n = recv(it->fd, (char *)&it->frame + it->have, sizeof it->frame - (size_t)it->have, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return;
        if (n <= 0) {
            const int silent = n < 0 && (errno == ETIMEDOUT || errno == EHOSTUNREACH || errno == ENETUNREACH);
            ended(w, it, silent ? "its control connection had no answer for 5 s: its host or the link to it is down"
                                : "its process ended");
            return;
        }
        it->have += (int)n;
        if (it->have < (int)sizeof it->frame) continue;
        it->have = 0;
        atomic_fetch_add_explicit(&it->heard, 1, memory_order_relaxed);
        atomic_store_explicit(&it->answered, it->frame.heard, memory_order_relaxed);
        atomic_store_explicit(&theirs->beat, it->frame.beat, memory_order_relaxed);
        atomic_store_explicit(&theirs->activity, it->frame.activity, memory_order_relaxed);
        atomic_store_explicit(&theirs->operation, it->frame.operation, memory_order_relaxed);
        ckc_show_waiting(theirs, &it->frame.waiting);
        if (it->frame.differs) ckc_show_difference(theirs, &it->frame.difference);
        atomic_store_explicit(&theirs->cause, it->frame.cause, memory_order_release);
        atomic_store_explicit(&theirs->left, it->frame.left, memory_order_release);
    }
}

static void *run_watch(void *world) {
    ckc_world *w = world;
    ckc_seat *seat = w->seats[w->local_rank];
    struct pollfd *fds = calloc((size_t)w->watched_count + 1, sizeof *fds);
    if (fds == NULL) return NULL;
    const int io = open("/proc/self/io", O_RDONLY | O_CLOEXEC);
    uint64_t last_cpu = 0, last_written = 0;
    int64_t last_told = 0, last_looked = 0;
    while (!atomic_load_explicit(&w->stop, memory_order_acquire)) {
        for (int i = 0; i < w->watched_count; i++) {
            fds[i].fd = w->watched[i].gone ? -1 : w->watched[i].fd;     /* poll skips negative ones */
            fds[i].events = w->watched[i].kind == CKC_WATCH_HANGUP ? POLLRDHUP : POLLIN;
        }
        const int ready = poll(fds, (nfds_t)w->watched_count, PERIOD_MS);
        for (int i = 0; ready > 0 && i < w->watched_count; i++) {
            if (!fds[i].revents || w->watched[i].gone) continue;
            if (w->watched[i].kind == CKC_WATCH_CONTROL) hear(w, &w->watched[i]);
            else ended(w, &w->watched[i], "its process ended");
        }
        const int64_t now = ckc_now_ns();
        if (now - last_told >= TELL_NS) {
            last_told = now;
            tell(w, CKC_UNHEARD_LIMIT);
        }
        if (now - last_looked < PERIOD_MS * INT64_C(1000000)) continue;
        last_looked = now;
        struct timespec t;
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
        const uint64_t cpu = (uint64_t)(t.tv_sec * INT64_C(1000000000) + t.tv_nsec)
                             - atomic_load_explicit(&w->waited_ns, memory_order_relaxed);
        const uint64_t written = io >= 0 ? written_bytes(io) : 0;
        if ((int64_t)(cpu - last_cpu) > BUSY_NS || written > last_written + 65536)
            atomic_fetch_add_explicit(&seat->activity, 1, memory_order_relaxed);
        last_cpu = cpu;
        last_written = written;
        atomic_fetch_add_explicit(&seat->beat, 1, memory_order_relaxed);
    }
    if (io >= 0) close(io);
    free(fds);
    return NULL;
}

int ckc_start_watch(ckc_world *w, ckc_watched *watched, int count) {
    w->watched = watched;
    w->watched_count = count;
    const int error = pthread_create(&w->watch, NULL, run_watch, w);
    w->watch_runs = !error;
    if (!error) pthread_setname_np(w->watch, "cktrain-watch");
    return error;
}
