/* TCP's links (link.h): a socket, or several that carry one stream of bytes in turns. */
#ifndef CKC_SOCKETS_H
#define CKC_SOCKETS_H

#include "link.h"

#define CKC_MAX_STRIPES 16

/* The stream is cut into stripes of equal length; stripe i travels on socket i modulo their number, so both ends know
 * where each byte goes without a word about it. While one socket's buffer is full the others' are still being drained. */
typedef struct {
    ckc_link link;
    int count, fds[CKC_MAX_STRIPES];
    uint32_t armed[CKC_MAX_STRIPES];        /* events of each that the epoll descriptor (link.fd) shows */
    int64_t out, in;                        /* bytes of the stream that went and came */
} ckc_stripes;

void ckc_make_socket_link(ckc_link *link, int fd);
/* 0, or an errno. */
int ckc_make_stripes(ckc_stripes *stripes, const int *fds, int count);
void ckc_free_stripes(ckc_stripes *stripes);

#endif
