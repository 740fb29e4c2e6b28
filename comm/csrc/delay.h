/* A link (link.h) to a peer that does not exist: bytes take the time of a network, by the clock, and no processor's.
 *
 * What is sent goes nowhere at the rate given. What comes has the same rate, begins `latency` after it is first waited
 * for where the direction was idle, and leaves the memory as it is, except that the peer's header is this rank's own: the
 * peer is a twin that makes the same calls. Both directions go on at the same time. For two ranks with equal parts. */
#ifndef CKC_DELAY_H
#define CKC_DELAY_H

#include "link.h"
#include "world.h"

#define CKC_DELAY_HEADER ((int64_t)sizeof(ckc_call))

typedef struct {
    int64_t at;                             /* bytes of the stream so far */
    int64_t wanted;                         /* bytes of the transfer under way that are missing; 0: none is */
    int64_t since_ns;                       /* the bytes so far were through then; the next ones begin */
} ckc_direction;

typedef struct {
    ckc_link link;
    int64_t latency_ns;
    double ns_per_byte;
    ckc_direction out, in;
    int64_t header_at;                      /* where in the stream out the last header began */
    char header[sizeof(ckc_call)];
} ckc_delay;

/* 0, or an errno. */
int ckc_make_delay(ckc_delay *delay, int64_t latency_ns, double bytes_per_s);
void ckc_free_delay(ckc_delay *delay);

#endif
