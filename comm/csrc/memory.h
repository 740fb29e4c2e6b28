/* Memory that the ranks of a node share: 2 MiB aligned mappings of a memfd, in huge pages where the kernel gives them. */
#ifndef CKC_MEMORY_H
#define CKC_MEMORY_H

#include <stdint.h>

#define CKC_HUGE_BYTES (2 << 20)

/* Map the first `bytes` of fd, shared; NULL with errno set. */
void *ckc_map(int fd, int64_t bytes);
void ckc_unmap(void *base, int64_t bytes);
/* Touch every page (as the owner, before anybody else does) and gather them into huge ones; bytes that are huge now. */
int64_t ckc_make_huge(void *base, int64_t bytes, int owner);

#endif
