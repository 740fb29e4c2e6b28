/* Vectors of fp32 lanes: one set of names, one header per instruction set. An op is written once over
 * these.
 *
 * VL is the number of lanes, CK_GEMM_MR x (CK_GEMM_NV * VL) the tile that matmul keeps in registers. The _n forms touch n <= VL elements; with n the constant VL they become
 * the plain ones. v_max(a, b) and v_min(a, b) give b when either is NaN, so v_max(limit, x) lets a NaN in x
 * through. */
#ifndef CK_SIMD_H
#define CK_SIMD_H

#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
#define SIMD __attribute__((unused)) INLINE

#if defined(CK_ISA_AVX512)
#include "simd_avx512.h"
#elif defined(CK_ISA_AVX2)
#include "simd_avx2.h"
#elif defined(CK_ISA_NEON)
#include "simd_neon.h"
#else
#include "simd_generic.h"
#endif

/* Orders v_stream's writes before those that follow. */
SIMD void ck_store_fence(void) {
#if defined(__x86_64__)
    __builtin_ia32_sfence();
#else
    __sync_synchronize();
#endif
}

SIMD vf v_zero(void) { return v_set1(0.0f); }

/* bf16 is the upper half of an fp32. Stores round to nearest even; a NaN keeps its sign and becomes quiet. */
SIMD vf v_load_bf16_n(const uint16_t *p, int64_t n) {
    return v_from_bits(vi_shift_left(v_load_u16_n(p, n), 16));
}
SIMD vi v_round_bf16(vf x) {  /* in the lower halves */
    const vi bits = v_bits(x), upper = vi_shift_right(bits, 16);
    const vi rounding = vi_add(vi_set1(0x7fff), vi_and(upper, vi_set1(1)));
    const vi rounded = vi_shift_right(vi_add(bits, rounding), 16);
    return vi_select(v_is_nan(x), vi_or(upper, vi_set1(0x40)), rounded);
}
SIMD void v_store_bf16_n(uint16_t *p, vf x, int64_t n) { v_store_u16_n(p, v_round_bf16(x), n); }
SIMD void v_stream_bf16(uint16_t *p, vf x) { v_stream_u16(p, v_round_bf16(x)); }

/* Asks for the cache line of p; an address that is nobody's is harmless. Where rows are short or read twice, the
 * hardware's own prefetch does not see the next one coming. */
SIMD void ck_prefetch(const void *p) { __builtin_prefetch(p, 0, 3); }

SIMD float ck_from_bf16(uint16_t x) {
    const union { uint32_t bits; float value; } u = {.bits = (uint32_t)x << 16};
    return u.value;
}

#endif
