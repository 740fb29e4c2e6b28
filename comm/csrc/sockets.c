#include "sockets.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define STRIPE (128 << 10)

static int64_t result_of(ssize_t n) {
    if (n > 0) return n;
    return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) ? 0 : -1;
}

static int64_t socket_push(ckc_link *link, const struct iovec *parts, int count) {
    const struct msghdr message = {.msg_iov = (struct iovec *)parts, .msg_iovlen = (size_t)count};
    return result_of(sendmsg(link->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT));
}

static int64_t socket_pull(ckc_link *link, void *into, int64_t bytes) {
    return result_of(recv(link->fd, into, (size_t)bytes, MSG_DONTWAIT));
}

void ckc_make_socket_link(ckc_link *link, int fd) {
    *link = (ckc_link){.push = socket_push, .pull = socket_pull, .fd = fd, .can_push = POLLOUT};
}

/* ---------------------------------------------------------------------------------------------- several sockets */

static int socket_of(const ckc_stripes *s, int64_t at) { return (int)(at / STRIPE % s->count); }
static int64_t left_of_stripe(int64_t at) { return STRIPE - at % STRIPE; }

static int64_t stripes_push(ckc_link *link, const struct iovec *parts, int count) {
    ckc_stripes *s = (ckc_stripes *)link;
    int64_t total = 0;
    for (;;) {
        const int64_t done = total, room = left_of_stripe(s->out);
        struct iovec some[2];
        int used = 0;
        int64_t wanted = 0, before = 0;
        for (int k = 0; k < count && used < 2 && wanted < room; k++) {     /* what is left of the parts, up to `room` */
            const int64_t length = (int64_t)parts[k].iov_len;
            const int64_t skip = done - before < 0 ? 0 : done - before < length ? done - before : length;
            const int64_t take = length - skip < room - wanted ? length - skip : room - wanted;
            before += length;
            if (take <= 0) continue;
            some[used++] = (struct iovec){(char *)parts[k].iov_base + skip, (size_t)take};
            wanted += take;
        }
        if (wanted == 0) break;
        const struct msghdr message = {.msg_iov = some, .msg_iovlen = (size_t)used};
        const int64_t n = result_of(sendmsg(s->fds[socket_of(s, s->out)], &message, MSG_NOSIGNAL | MSG_DONTWAIT));
        if (n <= 0) return total ? total : n;
        s->out += n;
        total += n;
        if (n < wanted) break;
    }
    return total;
}

static int64_t stripes_pull(ckc_link *link, void *into, int64_t bytes) {
    ckc_stripes *s = (ckc_stripes *)link;
    int64_t total = 0;
    while (total < bytes) {
        const int64_t room = left_of_stripe(s->in), wanted = bytes - total < room ? bytes - total : room;
        const int64_t n = result_of(recv(s->fds[socket_of(s, s->in)], (char *)into + total, (size_t)wanted, MSG_DONTWAIT));
        if (n <= 0) return total ? total : n;
        s->in += n;
        total += n;
        if (n < wanted) break;
    }
    return total;
}

/* Only the sockets whose turn it is are waited for. */
static int stripes_arm(ckc_link *link, int waits_for) {
    ckc_stripes *s = (ckc_stripes *)link;
    for (int i = 0; i < s->count; i++) {
        const uint32_t events = (waits_for & CKC_FOR_PULL && i == socket_of(s, s->in) ? (uint32_t)EPOLLIN : 0) |
                                (waits_for & CKC_FOR_PUSH && i == socket_of(s, s->out) ? (uint32_t)EPOLLOUT : 0);
        if (events == s->armed[i]) continue;
        struct epoll_event event = {.events = events};
        if (epoll_ctl(link->fd, EPOLL_CTL_MOD, s->fds[i], &event)) return 1;
        s->armed[i] = events;
    }
    return 0;
}

int ckc_make_stripes(ckc_stripes *s, const int *fds, int count) {
    *s = (ckc_stripes){.link = {.push = stripes_push, .pull = stripes_pull, .arm = stripes_arm, .can_push = POLLIN},
                       .count = count};
    s->link.fd = epoll_create1(EPOLL_CLOEXEC);
    if (s->link.fd < 0) return errno;
    for (int i = 0; i < count; i++) {
        struct epoll_event event = {.events = 0};
        s->fds[i] = fds[i];
        if (epoll_ctl(s->link.fd, EPOLL_CTL_ADD, fds[i], &event)) return errno;
    }
    return 0;
}

void ckc_free_stripes(ckc_stripes *s) {
    if (s->link.fd >= 0) close(s->link.fd);
}
