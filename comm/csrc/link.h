/* One direction-pair of ordered bytes to one peer, for one wire: what a transport gives csrc/wire.h. TCP's is a socket.
 *
 * A transport may carry the bytes as it likes. `pull` is called again and again with what is left of the same buffer, and
 * `push` likewise, so a transport with one-sided writes can tell the peer where a large buffer lies on the first call,
 * and let it write there; what comes before the buffer is known, or is small, goes through buffers of its own. */
#ifndef CKC_LINK_H
#define CKC_LINK_H

#include <poll.h>
#include <stdint.h>
#include <sys/uio.h>

#define CKC_LINK_CAPSULE "cktrain.link"

enum { CKC_FOR_PUSH = 1, CKC_FOR_PULL = 2, CKC_FOR_FLUSH = 4 };

typedef struct ckc_link ckc_link;
struct ckc_link {
    /* Take up to all bytes of the parts, in their order; how many, 0 when none can be taken now, below 0 when the link is
     * gone. What was taken may still be on its way: the caller must not change it before `flushed`. */
    int64_t (*push)(ckc_link *link, const struct iovec *parts, int count);
    /* Put up to `bytes` that have come into `into`; as above. */
    int64_t (*pull)(ckc_link *link, void *into, int64_t bytes);
    /* 1 when all that was pushed has left its buffers; NULL where push copies. */
    int (*flushed)(ckc_link *link);
    /* About to sleep until `fd` shows events, in wait for CKC_FOR_*: 1 if that came just now, so that nobody should.
     * NULL: nothing to do. */
    int (*arm)(ckc_link *link, int waits_for);
    const char *(*why)(ckc_link *link);     /* once it is gone: how, in words; NULL: its connection broke */
    int fd;                                 /* -1: there is nothing to sleep on */
    short can_push;                         /* the event of fd that push waits for; pull waits for POLLIN */
};

#endif
