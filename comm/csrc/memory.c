#define _GNU_SOURCE
#include "memory.h"

#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23      /* Linux 5.14 */
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25            /* Linux 6.1 */
#endif

void *ckc_map(int fd, int64_t bytes) {
    /* A reservation that is large enough to hold an aligned mapping; what is left over is given back. */
    const size_t huge = CKC_HUGE_BYTES, size = (size_t)bytes;
    char *reserved = mmap(NULL, size + huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED) return NULL;
    char *base = (char *)(((uintptr_t)reserved + huge - 1) / huge * huge);
    if (mmap(base, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
        munmap(reserved, size + huge);
        return NULL;
    }
    if (base > reserved) munmap(reserved, (size_t)(base - reserved));
    char *end = base + (size + 4095) / 4096 * 4096;
    if (end < reserved + size + huge) munmap(end, (size_t)(reserved + size + huge - end));
    return base;
}

void ckc_unmap(void *base, int64_t bytes) { munmap(base, (size_t)bytes); }

int64_t ckc_make_huge(void *base, int64_t bytes, int owner) {
    char *at = base;
    int64_t huge = 0;
    madvise(base, (size_t)bytes, MADV_HUGEPAGE);        /* heeded for a memfd where shmem_enabled is advise */
    if (madvise(base, (size_t)bytes, MADV_POPULATE_WRITE) != 0 && owner)
        for (int64_t i = 0; i < bytes; i += 4096) at[i] = 0;
    for (int64_t i = 0; i + CKC_HUGE_BYTES <= bytes; i += CKC_HUGE_BYTES)
        if (madvise(at + i, CKC_HUGE_BYTES, MADV_COLLAPSE) == 0) huge += CKC_HUGE_BYTES;
    return huge;
}
