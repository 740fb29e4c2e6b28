/* The storage type of one instantiation. The op headers are included once per type (table.h), each time
 * after this file: CK_STORAGE says which. Loads widen to fp32, stores round. */
#undef real
#undef FN
#undef r_load_n
#undef r_store_n
#undef r_stream
#undef r_put_two
#undef r_add_squares
#undef r_load_split
#undef r_put_split
#undef CK_DEGREE
#undef CK_ROUGH
#undef r_get

#if CK_STORAGE == CK_BF16
#define real uint16_t
#define FN(name) name##_bf16
#define r_load_n v_load_bf16_n
#ifdef CK_ISA_BF16
#define r_store_n v_store_bf16_flushed_n
#define r_stream v_stream_bf16_flushed
#else
#define r_store_n v_store_bf16_n
#define r_stream v_stream_bf16
#endif
/* Of vmath.h's functions: an error of 1e-4 is lost in the rounding of the result, 2e-3. */
#define CK_DEGREE 3
#define CK_ROUGH 1
#define r_get(p) ck_from_bf16(*(p))
#ifdef CK_ISA_BF16
/* A whole line at a time: the VL elements of low, then those of high. */
#define r_put_two(p, low, high, streaming)                                                                  \
    do {                                                                                                    \
        const vf both = v_pairs_along(low, high);                                                           \
        if (streaming) v_stream((float *)(p), both);                                                        \
        else v_store((float *)(p), both);                                                                   \
    } while (0)
/* Adds the squares of 2 VL elements to two sums, or to the first one alone. */
#define r_add_squares(sum, other, p)                                                                        \
    do {                                                                                                    \
        const vf pairs = v_from_bits(v_load_pairs_n(p, 2 * VL));                                            \
        sum = v_dot_pairs(pairs, pairs, sum);                                                               \
    } while (0)
/* 2 VL elements as those of even and of odd place, which takes a shift and a mask instead of two widening loads. */
#define r_load_split(even, odd, p)                                                                          \
    do {                                                                                                    \
        const vi pairs = v_load_pairs_n(p, 2 * VL);                                                         \
        even = v_from_bits(vi_shift_left(pairs, 16));                                                       \
        odd = v_from_bits(vi_and(pairs, vi_set1((int32_t)0xffff0000)));                                     \
    } while (0)
#define r_put_split(p, even, odd, streaming)                                                                \
    do {                                                                                                    \
        const vf both = v_pairs_across(even, odd);                                                          \
        if (streaming) v_stream((float *)(p), both);                                                        \
        else v_store((float *)(p), both);                                                                   \
    } while (0)
#endif
#else
#define real float
#define FN(name) name##_f32
#define r_load_n v_load_n
#define r_store_n v_store_n
#define r_stream v_stream
#define CK_DEGREE 5
#define CK_ROUGH 0
#define r_get(p) (*(p))
#endif

#ifndef r_put_two
#define r_put_two(p, low, high, streaming)                                                                  \
    do {                                                                                                    \
        r_put(p, low, VL, streaming);                                                                       \
        r_put((p) + VL, high, VL, streaming);                                                               \
    } while (0)
#define r_add_squares(sum, other, p)                                                                        \
    do {                                                                                                    \
        const vf low = r_load_n(p, VL), high = r_load_n((p) + VL, VL);                                      \
        sum = v_fma(low, low, sum);                                                                         \
        other = v_fma(high, high, other);                                                                   \
    } while (0)
#define r_load_split(low, high, p)                                                                          \
    do {                                                                                                    \
        low = r_load_n(p, VL);                                                                              \
        high = r_load_n((p) + VL, VL);                                                                      \
    } while (0)
#define r_put_split r_put_two
#endif

/* The body runs for i = 0, VL, 2 VL ... < n, with m lanes each time: the constant VL, and the rest at the
 * end. */
#ifndef r_put
/* Whether to write past the caches: an output of that many bytes in all, more than the last of them holds, of which
 * every row begins on a cache line. What is smaller may be read again from the cache by the next op. */
INLINE int ck_streams(const ck_team *team, const void *out, int64_t bytes, int64_t row_bytes) {
    return bytes >= team->caches->l3 && (((int64_t)(intptr_t)out | row_bytes) & 63) == 0;
}
/* How many elements further on to ask for memory: whole rows, some 12 KB of them. One row of 1.5 KB comes too late. */
#define CK_FETCH_AHEAD 12288
INLINE int64_t ck_rows_ahead(int64_t row, int64_t size) {
    return ck_max(1, CK_FETCH_AHEAD / ck_max(1, row * size)) * row;
}
/* A store of m lanes, past the caches when `streaming`. */
#define r_put(p, x, m, streaming)                                                                           \
    do {                                                                                                    \
        if ((streaming) && (m) == VL) r_stream(p, x);                                                       \
        else r_store_n(p, x, m);                                                                            \
    } while (0)
#endif
#ifndef EACH_VECTOR
#define EACH_VECTOR(i, m, n, ...)                                                                           \
    do {                                                                                                    \
        int64_t i = 0;                                                                                      \
        for (; i + VL <= (n); i += VL) {                                                                    \
            enum { m = VL };                                                                                \
            __VA_ARGS__                                                                                     \
        }                                                                                                   \
        if (i < (n)) {                                                                                      \
            const int64_t m = (n) - i;                                                                      \
            __VA_ARGS__                                                                                     \
        }                                                                                                   \
    } while (0)
#endif
