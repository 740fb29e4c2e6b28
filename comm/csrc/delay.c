#define _GNU_SOURCE
#include "delay.h"

#include <errno.h>
#include <string.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

/* How many of `bytes` the clock lets through now. */
static int64_t through(const ckc_delay *d, ckc_direction *way, int64_t bytes, int64_t latency_ns) {
    const int64_t now = ckc_now_ns();
    if (way->wanted == 0 && now - way->since_ns > latency_ns) way->since_ns = now + latency_ns;  /* it was idle */
    const int64_t passed = now - way->since_ns;
    int64_t n = passed <= 0 ? 0 : (int64_t)((double)passed / d->ns_per_byte);
    if (n > bytes) n = bytes;
    way->wanted = bytes - n;
    way->since_ns += (int64_t)((double)n * d->ns_per_byte);
    way->at += n;
    return n;
}

static int64_t delay_push(ckc_link *link, const struct iovec *parts, int count) {
    ckc_delay *d = (ckc_delay *)link;
    int64_t bytes = 0;
    for (int i = 0; i < count; i++) bytes += (int64_t)parts[i].iov_len;
    if ((int64_t)parts[0].iov_len == CKC_DELAY_HEADER && d->out.at != d->header_at) {
        memcpy(d->header, parts[0].iov_base, sizeof d->header);
        d->header_at = d->out.at;
    }
    return through(d, &d->out, bytes, 0);
}

static int64_t delay_pull(ckc_link *link, void *into, int64_t bytes) {
    ckc_delay *d = (ckc_delay *)link;
    const int64_t from = d->in.at - d->header_at;
    const int64_t n = through(d, &d->in, bytes, d->latency_ns);
    if (from >= 0 && from < CKC_DELAY_HEADER)
        memcpy(into, d->header + from, (size_t)(n < CKC_DELAY_HEADER - from ? n : CKC_DELAY_HEADER - from));
    return n;
}

static int delay_arm(ckc_link *link, int waits_for) {
    const ckc_delay *d = (const ckc_delay *)link;
    const ckc_direction *ways[] = {waits_for & CKC_FOR_PUSH ? &d->out : NULL, waits_for & CKC_FOR_PULL ? &d->in : NULL};
    int64_t next = 0;
    for (int i = 0; i < 2; i++) {
        if (ways[i] == NULL) continue;
        const int64_t due = ways[i]->since_ns + (int64_t)((double)ways[i]->wanted * d->ns_per_byte) + 1000;
        if (next == 0 || due < next) next = due;
    }
    if (next <= ckc_now_ns()) return 1;
    const struct itimerspec at = {.it_value = {.tv_sec = next / 1000000000, .tv_nsec = next % 1000000000}};
    return timerfd_settime(link->fd, TFD_TIMER_ABSTIME, &at, NULL) != 0;
}

int ckc_make_delay(ckc_delay *d, int64_t latency_ns, double bytes_per_s) {
    *d = (ckc_delay){.link = {.push = delay_push, .pull = delay_pull, .arm = delay_arm, .can_push = POLLIN},
                     .latency_ns = latency_ns,
                     .ns_per_byte = 1e9 / bytes_per_s,
                     .header_at = -1};
    d->link.fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    return d->link.fd < 0 ? errno : 0;
}

void ckc_free_delay(ckc_delay *d) {
    if (d->link.fd >= 0) close(d->link.fd);
}
