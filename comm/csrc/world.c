/* Waiting, waking, failing, and the engine's thread. */
#define _GNU_SOURCE
#include "watch.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LOOKS 64                    /* between two looks at the clock */
#define SPIN_NS 3000                /* with a core of its own a thread spins so long ... */
#define YIELD_NS 200000             /* ... yields between looks so long, since its peer may share the core after all, */
#define SOCKET_SPIN_NS 30000
#define CROWDED_YIELD_NS 20000      /* (where ranks outnumber cores it never spins) and then sleeps, ever longer */
#define ENGINE_SPIN_NS 20000        /* the engine shares its core with the rank's computing threads */
#define LAST_WORDS_NS 50000000      /* after a loss, what others sent before it may still tell why (a mismatch) */
#define FIRST_SLEEP_NS 500000       /* a bell ends any sleep; these only bound what a lost peer costs */
#define LAST_SLEEP_NS 20000000

#if defined(__x86_64__) || defined(__i386__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

static int64_t clock_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

int64_t ckc_now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

/* A sequence lock (Boehm 2012, "Can seqlocks get along with programming language memory models?"). */
void ckc_show_waiting(ckc_seat *seat, const ckc_waiting *waiting) {
    uint64_t words[CKC_WAITING_WORDS];
    memcpy(words, waiting, sizeof words);
    const uint64_t stamp = atomic_load_explicit(&seat->waiting_stamp, memory_order_relaxed);
    atomic_store_explicit(&seat->waiting_stamp, stamp + 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    for (size_t i = 0; i < CKC_WAITING_WORDS; i++) atomic_store_explicit(&seat->waiting[i], words[i], memory_order_relaxed);
    atomic_store_explicit(&seat->waiting_stamp, stamp + 2, memory_order_release);
}

int ckc_read_waiting(ckc_seat *seat, ckc_waiting *into) {
    uint64_t words[CKC_WAITING_WORDS];
    const uint64_t stamp = atomic_load_explicit(&seat->waiting_stamp, memory_order_acquire);
    for (size_t i = 0; i < CKC_WAITING_WORDS; i++) words[i] = atomic_load_explicit(&seat->waiting[i], memory_order_relaxed);
    atomic_thread_fence(memory_order_acquire);
    if (stamp & 1 || stamp != atomic_load_explicit(&seat->waiting_stamp, memory_order_relaxed)) return 0;
    memcpy(into, words, sizeof words);
    return 1;
}

void ckc_show_difference(ckc_seat *seat, const ckc_difference *difference) {
    if (atomic_load_explicit(&seat->differs, memory_order_relaxed)) return;
    seat->difference = *difference;
    atomic_store_explicit(&seat->differs, 1, memory_order_release);
}

const ckc_difference *ckc_difference_of(const ckc_seat *seat) {
    return atomic_load_explicit(&seat->differs, memory_order_acquire) ? &seat->difference : NULL;
}

void ckc_ring_seat(ckc_seat *seat) {
    atomic_fetch_add_explicit(&seat->bell, 1, memory_order_release);
    syscall(SYS_futex, &seat->bell, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static void wake(int eventfd) {
    const uint64_t one = 1;
    if (write(eventfd, &one, sizeof one) < 0) return;   /* a full counter wakes as well */
}

void ckc_ring(ckc_world *w, const int *seats, int count) {
    atomic_thread_fence(memory_order_seq_cst);
    for (int i = 0; i < count; i++) {
        ckc_seat *seat = w->seats[seats[i]];
        if (seats[i] == w->local_rank || !atomic_load_explicit(&seat->sleepers, memory_order_relaxed)) continue;
        ckc_ring_seat(seat);
        if (w->bells[seats[i]] > 0) wake(w->bells[seats[i]]);
    }
}

static void ring_self(ckc_world *w) {
    ckc_seat *seat = w->seats[w->local_rank];
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&seat->sleepers, memory_order_relaxed)) ckc_ring_seat(seat);
    if (w->wake_fd >= 0) wake(w->wake_fd);
}

static int fail(ckc_world *w, int cause, int rank, int witness, const char *how) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    const int first = !atomic_load_explicit(&w->failure, memory_order_relaxed);
    if (first) {
        w->failed_rank = rank;
        w->failed_ns = ckc_now_ns();
        snprintf(w->failed_how, sizeof w->failed_how, "%s", how);
        if (cause == CKC_LOST)
            atomic_store_explicit(&w->seats[w->local_rank]->cause, (uint32_t)witness << 16 | ((uint32_t)rank + 1),
                                  memory_order_release);
        atomic_store_explicit(&w->failure, cause, memory_order_release);
    }
    pthread_mutex_unlock(&lock);
    if (first) ckc_tell(w);
    ring_self(w);
    return first;
}

int ckc_fail(ckc_world *w, int cause, int rank, const char *how) { return fail(w, cause, rank, w->rank, how); }

int ckc_fail_as_told(ckc_world *w, int rank, int witness, const char *how) {
    return fail(w, CKC_LOST, rank, witness, how);
}

/* One nap of a thread whose wait `ready(arg)` ends with anything but CKC_PENDING. The look between joining the sleepers
 * and sleeping is what makes a lost wake-up impossible (world.h). */
static int nap(ckc_world *w, int (*ready)(void *), void *arg, int64_t ns) {
    ckc_seat *seat = w->seats[w->local_rank];
    const uint32_t bell = atomic_load_explicit(&seat->bell, memory_order_acquire);
    atomic_fetch_add_explicit(&seat->sleepers, 1, memory_order_seq_cst);
    atomic_thread_fence(memory_order_seq_cst);
    const int got = ready(arg);
    if (got == CKC_PENDING && !atomic_load_explicit(&w->failure, memory_order_acquire)) {
        const struct timespec limit = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
        syscall(SYS_futex, &seat->bell, FUTEX_WAIT, bell, &limit, NULL, 0);
    }
    atomic_fetch_sub_explicit(&seat->sleepers, 1, memory_order_relaxed);
    return got;
}

/* Sleep until one of the sockets that the operation waits for is ready. A failure is seen after 20 ms at most. */
static int nap_on_sockets(ckc_op *op) {
    struct pollfd fds[CKC_MAX_RANKS];
    const int count = op->wanted(op, fds, CKC_MAX_RANKS);
    if (count < 0) sched_yield();
    else poll(fds, (nfds_t)count, LAST_SLEEP_NS / 1000000);
    return CKC_PENDING;
}

/* Whether waiting is over because a rank is lost. */
static int given_up(ckc_world *w) {
    return atomic_load_explicit(&w->failure, memory_order_acquire) && ckc_now_ns() - w->failed_ns > LAST_WORDS_NS;
}

/* `op` is the operation that `ready` moves, or NULL: while it gets on, the wait is a young one, which does not sleep. */
static int wait_until(ckc_world *w, int (*ready)(void *), void *arg, int64_t slice_ns, const ckc_op *op,
                      ckc_op *on_sockets) {
    int got = ready(arg);
    /* A short wait ends before it has asked for the time. */
    for (int i = w->spin ? LOOKS : 0; i > 0 && got == CKC_PENDING; i--) {
        PAUSE();
        got = ready(arg);
    }
    if (got != CKC_PENDING) return got;
    /* What is burnt is the time itself while the thread spins; the processor's clock is a system call, as long as a short
     * wait, so it is asked only where the thread gives up its core. */
    const int64_t began = ckc_now_ns();
    int64_t sleep = FIRST_SLEEP_NS, young = began, moved = op ? op->moved : 0, burnt = 0, cpu = -1;
    /* A socket's wake-up needs no yielding: the kernel knows who waits, and runs that thread at once. */
    const int64_t spin = !w->spin ? 0 : on_sockets ? SOCKET_SPIN_NS : SPIN_NS;
    const int64_t yield = on_sockets ? 0 : w->spin ? YIELD_NS : CROWDED_YIELD_NS;
    for (;;) {
        /* Looked at before the last try: what was complete before the failure counts as complete. */
        const int failed = given_up(w);
        for (int i = w->spin ? LOOKS : 1; i > 0 && got == CKC_PENDING; i--) {
            got = ready(arg);
            if (w->spin) PAUSE();
        }
        if (got == CKC_PENDING && failed) got = CKC_LOST;
        const int64_t now = ckc_now_ns();
        if (cpu < 0) burnt = now - began;
        if (got != CKC_PENDING || now - began > slice_ns) break;
        if (op && op->moved != moved) {
            moved = op->moved;
            young = now;
            sleep = FIRST_SLEEP_NS;
        }
        if (now - young < spin) continue;
        if (cpu < 0) cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID);
        if (now - young < spin + yield) {
            sched_yield();
            continue;
        }
        got = on_sockets ? nap_on_sockets(on_sockets) : nap(w, ready, arg, sleep);
        if (got != CKC_PENDING) break;
        sleep = 2 * sleep < LAST_SLEEP_NS ? 2 * sleep : LAST_SLEEP_NS;
    }
    if (cpu >= 0) burnt += clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
    atomic_fetch_add_explicit(&w->waited_ns, (uint64_t)burnt, memory_order_relaxed);
    return got;
}

static int advance(void *op) { return ((ckc_op *)op)->advance(op); }
static int state_of(void *op) { return atomic_load_explicit(&((ckc_op *)op)->state, memory_order_acquire); }

int ckc_move(ckc_world *w, ckc_op *op) {
    const int failed = given_up(w), got = op->advance(op);
    return got == CKC_PENDING && failed ? CKC_LOST : got;
}

int ckc_run(ckc_world *w, ckc_op *op, int64_t slice_ns) {
    return wait_until(w, advance, op, slice_ns, op, op->wanted ? op : NULL);
}

int ckc_wait(ckc_world *w, ckc_op *op, int64_t slice_ns) {
    const int got = wait_until(w, state_of, op, slice_ns, NULL, NULL);
    if (got != CKC_LOST) return got;
    /* The engine sees the same failure at once, finds out how this operation ends and lets go of its memory. */
    for (int i = 0; i < 2000 && state_of(op) == CKC_PENDING; i++) usleep(1000);
    return state_of(op) != CKC_PENDING ? state_of(op) : got;
}

/* -------------------------------------------------------------------------------------------------- the engine
 *
 * Operations come through the inbox, a stack that callers push to (compare and swap, release) and the engine empties
 * whole (exchange, acquire), so there is no ABA problem. The engine appends each to its queue and moves the head of
 * every queue: queues do not hold each other up, operations of one queue run in their order. */

void ckc_submit(ckc_world *w, ckc_op *op) {
    atomic_store_explicit(&op->state, CKC_PENDING, memory_order_relaxed);
    atomic_fetch_add_explicit(&op->queue->pending, 1, memory_order_relaxed);
    op->next = atomic_load_explicit(&w->inbox, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&w->inbox, &op->next, op, memory_order_release, memory_order_relaxed)) {}
    ring_self(w);
}

static int accept_new(ckc_world *w) {
    ckc_op *latest = atomic_exchange_explicit(&w->inbox, NULL, memory_order_acquire), *first = NULL;
    if (latest == NULL) return 0;
    while (latest != NULL) {        /* the stack has the latest on top */
        ckc_op *next = latest->next;
        latest->next = first;
        first = latest;
        latest = next;
    }
    while (first != NULL) {
        ckc_op *op = first;
        ckc_queue *queue = op->queue;
        first = op->next;
        op->next = NULL;
        if (queue->head == NULL) queue->head = op;
        else queue->tail->next = op;
        queue->tail = op;
        if (!atomic_load_explicit(&queue->active, memory_order_relaxed)) {
            atomic_store_explicit(&queue->active, 1, memory_order_relaxed);
            queue->next = w->active;
            w->active = queue;
        }
    }
    return 1;
}

/* CKC_DONE when the operation may go on; CKC_PENDING while the one before it in its chain has not ended. If that one
 * failed so does this one, and its peers, who know nothing of the chain, are told of a mismatch. */
static int may_begin(ckc_op *op) {
    if (op->after == NULL) return CKC_DONE;
    const int before = state_of(op->after);
    if (before == CKC_DONE) op->after = NULL;       /* which need not live any longer */
    if (before >= 0) return before;
    const ckc_op *first = op->after;
    while (first->after != NULL && state_of((ckc_op *)first->after) < 0) first = first->after;
    if (op->spoil != NULL && state_of((ckc_op *)first) == CKC_MISMATCH) op->spoil(op, first);
    return CKC_BROKEN;
}

/* Move the head of every queue as far as it goes. CKC_DONE when anything ended, began or got on. */
static int move_all(void *world) {
    ckc_world *w = world;
    const int failed = given_up(w);
    int moved = accept_new(w), got_on = 0;
    for (ckc_queue **at = &w->active; *at != NULL;) {
        ckc_queue *queue = *at;
        while (queue->head != NULL) {
            ckc_op *op = queue->head;
            const int64_t before = op->moved;
            int got = may_begin(op);        /* also of a broken queue: peers may have to be told */
            if (atomic_load_explicit(&queue->broken, memory_order_acquire)) got = CKC_BROKEN;
            if (got == CKC_DONE) got = op->advance(op);
            if (got == CKC_PENDING && failed) got = CKC_LOST;
            if (got == CKC_PENDING) {
                got_on |= op->moved != before;
                break;
            }
            if (got < 0) atomic_store_explicit(&queue->broken, 1, memory_order_release);
            queue->head = op->next;
            moved = 1;
            /* The order matters: once state is set the caller may free op, once pending is 0 it may run the next
             * operation of the queue itself, and must then see all that this one wrote. */
            atomic_fetch_sub_explicit(&queue->pending, 1, memory_order_release);
            atomic_store_explicit(&op->state, got, memory_order_release);
        }
        if (queue->head == NULL) {
            *at = queue->next;
            atomic_store_explicit(&queue->active, 0, memory_order_release);
        } else {
            at = &queue->next;
        }
    }
    if (moved) ring_self(w);
    if (atomic_load_explicit(&w->stop, memory_order_acquire)) return CKC_BROKEN;
    return moved || got_on ? CKC_DONE : CKC_PENDING;
}

static int on_sockets(const ckc_op *op) {
    return op->wanted != NULL && (op->after == NULL || state_of(op->after) != CKC_PENDING);
}

/* Where a queue's head waits for sockets, the engine sleeps on all of them and on the eventfd. It joins the sleepers too,
 * and looks once more, as in `nap`: another queue's head may wait for a bell, and the ranks of the node that ring it
 * then write to the eventfd. */
static int nap_on_all_sockets(ckc_world *w) {
    ckc_seat *seat = w->seats[w->local_rank];
    atomic_fetch_add_explicit(&seat->sleepers, 1, memory_order_seq_cst);
    atomic_thread_fence(memory_order_seq_cst);
    const int got = move_all(w);
    struct pollfd fds[4 * CKC_MAX_RANKS];
    int count = 1, more = 0;
    fds[0] = (struct pollfd){.fd = w->wake_fd, .events = POLLIN};
    for (const ckc_queue *queue = w->active; got == CKC_PENDING && queue != NULL && more >= 0; queue = queue->next) {
        if (!on_sockets(queue->head)) continue;
        more = queue->head->wanted(queue->head, fds + count, 4 * CKC_MAX_RANKS - count);
        count += more;
    }
    if (more < 0) sched_yield();
    else if (got == CKC_PENDING) poll(fds, (nfds_t)count, LAST_SLEEP_NS / 1000000);
    atomic_fetch_sub_explicit(&seat->sleepers, 1, memory_order_relaxed);
    uint64_t rung;
    if (fds[0].revents && read(w->wake_fd, &rung, sizeof rung) < 0) return got;
    return got;
}

static int any_on_sockets(const ckc_world *w) {
    for (const ckc_queue *queue = w->active; queue != NULL; queue = queue->next)
        if (on_sockets(queue->head)) return 1;
    return 0;
}

static void *run_engine(void *world) {
    ckc_world *w = world;
    int64_t idle_since = ckc_now_ns(), sleep = FIRST_SLEEP_NS;
    for (;;) {
        int got = move_all(w);
        if (got == CKC_BROKEN) return NULL;
        if (got == CKC_PENDING) {
            const int64_t idle = ckc_now_ns() - idle_since;
            if (w->spin && idle < ENGINE_SPIN_NS) {
                PAUSE();
                continue;
            }
            if (w->active != NULL && idle < 3 * ENGINE_SPIN_NS) {
                sched_yield();
                continue;
            }
            got = any_on_sockets(w) ? nap_on_all_sockets(w)
                                    : nap(w, move_all, w, w->active == NULL ? INT64_C(1000000000) : sleep);
            if (got == CKC_BROKEN) return NULL;
            if (got == CKC_PENDING) {
                sleep = 2 * sleep < LAST_SLEEP_NS ? 2 * sleep : LAST_SLEEP_NS;
                continue;
            }
        }
        idle_since = ckc_now_ns();
        sleep = FIRST_SLEEP_NS;
    }
}

int ckc_start_engine(ckc_world *w) {
    if (w->engine_runs) return 0;
    const int error = pthread_create(&w->engine, NULL, run_engine, w);
    if (error) return error;
    w->engine_runs = 1;
    pthread_setname_np(w->engine, "cktrain-comm");
    if (w->engine_core >= 0) {
        cpu_set_t core;
        CPU_ZERO(&core);
        CPU_SET(w->engine_core, &core);
        pthread_setaffinity_np(w->engine, sizeof core, &core);      /* a core outside of the cgroup is not granted */
    }
    return 0;
}

void ckc_retire(ckc_world *w, ckc_queue *queue) {
    atomic_store_explicit(&queue->broken, 1, memory_order_release);
    while (w->engine_runs && (atomic_load_explicit(&queue->pending, memory_order_acquire) ||
                              atomic_load_explicit(&queue->active, memory_order_acquire))) {
        ring_self(w);
        usleep(200);
    }
}

void ckc_stop_threads(ckc_world *w) {
    if (!w->engine_runs && !w->watch_runs) return;
    atomic_store_explicit(&w->stop, 1, memory_order_release);
    ring_self(w);
    if (w->engine_runs) pthread_join(w->engine, NULL);
    if (w->watch_runs) pthread_join(w->watch, NULL);
    w->engine_runs = w->watch_runs = 0;
}
