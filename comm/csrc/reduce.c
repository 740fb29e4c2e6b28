/* The plain reduction: blocks that stay in the first-level cache, one accumulator, sources added in their order. */
#include "reduce.h"

#include <string.h>

#define BLOCK 1024

static inline float from_bf16(uint16_t x) {
    const union { uint32_t bits; float value; } u = {.bits = (uint32_t)x << 16};
    return u.value;
}

static inline uint16_t to_bf16(float x) {
    const union { float value; uint32_t bits; } u = {.value = x};
    const uint16_t nan = (uint16_t)((u.bits >> 16 & 0x8000) | 0x7fc0);
    const uint16_t rounded = (uint16_t)((u.bits + 0x7fff + (u.bits >> 16 & 1)) >> 16);
    return x != x ? nan : rounded;
}

#define LARGER(a, b) ((a) >= (b) || (a) != (a) ? (a) : (b))
#define SMALLER(a, b) ((a) <= (b) || (a) != (a) ? (a) : (b))

/* One function per dtype: LOAD reads a stored element, wide is the accumulator's type, SUM adds two of them. */
#define DEFINE_REDUCTION(name, stored, wide, LOAD, STORE, SUM, MEAN)                                                 \
    static void name(void *const *dst, int n_dst, const void *const *src, int n_src, int64_t begin, int n, int op) { \
        wide acc[BLOCK];                                                                                             \
        const stored *x = (const stored *)src[0] + begin;                                                            \
        int s = 1;                                                                                                   \
        if (n_src > 1 && (op == CKC_SUM || op == CKC_MEAN)) {                                                        \
            const stored *y = (const stored *)src[s++] + begin;                                                      \
            for (int i = 0; i < n; i++) { const wide a = LOAD(x[i]), b = LOAD(y[i]); acc[i] = SUM(a, b); }           \
        } else for (int i = 0; i < n; i++) acc[i] = LOAD(x[i]);                                                      \
        for (; s < n_src; s++) {                                                                                     \
            x = (const stored *)src[s] + begin;                                                                      \
            if (op == CKC_MAX) for (int i = 0; i < n; i++) { const wide b = LOAD(x[i]); acc[i] = LARGER(acc[i], b); } \
            else if (op == CKC_MIN)                                                                                  \
                for (int i = 0; i < n; i++) { const wide b = LOAD(x[i]); acc[i] = SMALLER(acc[i], b); }               \
            else for (int i = 0; i < n; i++) { const wide b = LOAD(x[i]); acc[i] = SUM(acc[i], b); }                  \
        }                                                                                                            \
        if (op == CKC_MEAN) for (int i = 0; i < n; i++) acc[i] = MEAN(acc[i], n_src);                                \
        for (int d = 0; d < n_dst; d++) {                                                                            \
            stored *y = (stored *)dst[d] + begin;                                                                    \
            for (int i = 0; i < n; i++) y[i] = STORE(acc[i]);                                                        \
        }                                                                                                            \
    }

#define SAME(x) (x)
#define ADD(a, b) ((a) + (b))
#define WRAP_I32(a, b) ((int32_t)((uint32_t)(a) + (uint32_t)(b)))
#define WRAP_I64(a, b) ((int64_t)((uint64_t)(a) + (uint64_t)(b)))
#define OVER_F32(a, n) ((a) / (float)(n))
#define OVER_F64(a, n) ((a) / (double)(n))
#define NO_MEAN(a, n) (a)

DEFINE_REDUCTION(reduce_f32, float, float, SAME, SAME, ADD, OVER_F32)
DEFINE_REDUCTION(reduce_bf16, uint16_t, float, from_bf16, to_bf16, ADD, OVER_F32)
DEFINE_REDUCTION(reduce_f64, double, double, SAME, SAME, ADD, OVER_F64)
DEFINE_REDUCTION(reduce_i32, int32_t, int32_t, SAME, SAME, WRAP_I32, NO_MEAN)
DEFINE_REDUCTION(reduce_i64, int64_t, int64_t, SAME, SAME, WRAP_I64, NO_MEAN)

void ckc_plain_reduce_n(void *const *dst, int n_dst, const void *const *src, int n_src, int64_t count, int dtype,
                        int op) {
    static void (*const by_dtype[])(void *const *, int, const void *const *, int, int64_t, int, int) = {
        reduce_f32, reduce_bf16, reduce_f64, reduce_i32, reduce_i64};
    for (int64_t begin = 0; begin < count; begin += BLOCK) {
        const int n = (int)(count - begin < BLOCK ? count - begin : BLOCK);
        by_dtype[dtype](dst, n_dst, src, n_src, begin, n, op & ~CKC_STREAM);
    }
}
