/* The reduction of n_src arrays into n_dst arrays, as comm calls it: by the plain code of reduce.c, or by a faster one
 * that the caller of comm lends it in a capsule of this name.
 *
 * Element i of every dst is ((src[0][i] op src[1][i]) op src[2][i]) ..., in the order of the list. bf16 is accumulated
 * in fp32 and rounded once, to nearest even; mean is the sum divided by n_src (in fp32 for bf16) and is not for
 * integers; integer sums wrap around; max and min give NaN where any src holds NaN. A dst may be one of the src, or
 * share no memory with it. */
#ifndef CKC_REDUCE_H
#define CKC_REDUCE_H

#include <stdint.h>

#define CKC_REDUCE_CAPSULE "cktrain.reduce_n"

enum { CKC_F32, CKC_BF16, CKC_F64, CKC_I32, CKC_I64, CKC_BYTES };           /* CKC_BYTES is moved, never reduced */
enum { CKC_SUM, CKC_MEAN, CKC_MAX, CKC_MIN, CKC_STREAM = 256 };             /* | CKC_STREAM: write past the caches */

typedef void (*ckc_reduce_n)(void *const *dst, int n_dst, const void *const *src, int n_src, int64_t count, int dtype,
                             int op);

void ckc_plain_reduce_n(void *const *dst, int n_dst, const void *const *src, int n_src, int64_t count, int dtype, int op);

static inline int64_t ckc_item_bytes(int dtype) {
    static const int8_t bytes[] = {4, 2, 8, 4, 8, 1};
    return bytes[dtype];
}

#endif
