/* 16 lanes, AVX-512 F, BW, DQ and VL. */
#include <immintrin.h>

#define VL 16
#define CK_GEMM_MR 14
#define CK_GEMM_NV 2

typedef __m512 vf;
typedef __m512i vi;
typedef __mmask16 vmask;

SIMD __mmask16 v_tail(int64_t n) { return (__mmask16)((1u << n) - 1); }
SIMD vf v_set1(float x) { return _mm512_set1_ps(x); }
SIMD vf v_load(const float *p) { return _mm512_loadu_ps(p); }
SIMD void v_store(float *p, vf x) { _mm512_storeu_ps(p, x); }
SIMD vf v_load_n(const float *p, int64_t n) {
    return n == VL ? v_load(p) : _mm512_maskz_loadu_ps(v_tail(n), p);
}
SIMD void v_store_n(float *p, vf x, int64_t n) {
    if (n == VL) v_store(p, x);
    else _mm512_mask_storeu_ps(p, v_tail(n), x);
}
SIMD vf v_keep_n(vf x, int64_t n) { return _mm512_maskz_mov_ps(v_tail(n), x); }  /* zero from lane n on */
SIMD vi v_load_u16_n(const uint16_t *p, int64_t n) {
    return _mm512_cvtepu16_epi32(n == VL ? _mm256_loadu_si256((const __m256i *)p)
                                         : _mm256_maskz_loadu_epi16(v_tail(n), p));
}
SIMD void v_store_u16_n(uint16_t *p, vi x, int64_t n) {
    if (n == VL) _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(x));
    else _mm256_mask_storeu_epi16(p, v_tail(n), _mm512_cvtepi32_epi16(x));
}

SIMD vi v_bits(vf x) { return _mm512_castps_si512(x); }
SIMD vf v_from_bits(vi x) { return _mm512_castsi512_ps(x); }
SIMD vi vi_set1(int32_t x) { return _mm512_set1_epi32(x); }
SIMD vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
SIMD vi vi_and(vi a, vi b) { return _mm512_and_si512(a, b); }
SIMD vi vi_or(vi a, vi b) { return _mm512_or_si512(a, b); }
SIMD vi vi_shift_left(vi a, int n) { return _mm512_slli_epi32(a, (unsigned)n); }
SIMD vi vi_shift_right(vi a, int n) { return _mm512_srli_epi32(a, (unsigned)n); }

SIMD vf v_add(vf a, vf b) { return _mm512_add_ps(a, b); }
SIMD vf v_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
SIMD vf v_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
SIMD vf v_div(vf a, vf b) { return _mm512_div_ps(a, b); }
SIMD vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
SIMD vmask v_less(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
SIMD vmask v_is_nan(vf a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
SIMD vf v_select(vmask m, vf yes, vf no) { return _mm512_mask_blend_ps(m, no, yes); }
SIMD vi vi_select(vmask m, vi yes, vi no) { return _mm512_mask_blend_epi32(m, no, yes); }
SIMD vf v_max(vf a, vf b) { return _mm512_max_ps(a, b); }
SIMD vf v_min(vf a, vf b) { return _mm512_min_ps(a, b); }
SIMD vf v_abs(vf a) { return _mm512_abs_ps(a); }
SIMD vf v_sqrt(vf a) { return _mm512_sqrt_ps(a); }
/* x * 2^n for a whole number n. */
SIMD vf v_scale(vf x, vf n) { return _mm512_scalef_ps(x, n); }
/* n bf16 as they lie, two to a lane, the rest zero. */
SIMD vi v_load_pairs_n(const uint16_t *p, int64_t n) {
    return n == 2 * VL ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16((__mmask32)((1ull << n) - 1), p);
}
/* The 16 x 16 matrix of these rows, transposed in place. */
SIMD void v_transpose(vf r[16]) {
    vf t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#define PD(op, x, y) _mm512_castpd_ps(_mm512_##op##_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)))
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {  /* r[i + c]: columns c, c + 4, c + 8, c + 12 of rows i to i + 3 */
        r[i] = PD(unpacklo, t[i], t[i + 2]);
        r[i + 1] = PD(unpackhi, t[i], t[i + 2]);
        r[i + 2] = PD(unpacklo, t[i + 1], t[i + 3]);
        r[i + 3] = PD(unpackhi, t[i + 1], t[i + 3]);
    }
#undef PD
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        t[c] = _mm512_shuffle_f32x4(r[c], r[c + 4], 0x88);
        t[c + 4] = _mm512_shuffle_f32x4(r[c], r[c + 4], 0xdd);
        t[c + 8] = _mm512_shuffle_f32x4(r[c + 8], r[c + 12], 0x88);
        t[c + 12] = _mm512_shuffle_f32x4(r[c + 8], r[c + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        r[c] = _mm512_shuffle_f32x4(t[c], t[c + 8], 0x88);
        r[c + 8] = _mm512_shuffle_f32x4(t[c], t[c + 8], 0xdd);
        r[c + 4] = _mm512_shuffle_f32x4(t[c + 4], t[c + 12], 0x88);
        r[c + 12] = _mm512_shuffle_f32x4(t[c + 4], t[c + 12], 0xdd);
    }
}
/* Past the caches; p is 64-byte aligned. */
SIMD void v_stream(float *p, vf x) { _mm512_stream_ps(p, x); }
SIMD float v_sum(vf x) { return _mm512_reduce_add_ps(x); }
SIMD float v_largest(vf x) { return _mm512_reduce_max_ps(x); }
typedef __m512d vd;
SIMD vd vd_zero(void) { return _mm512_setzero_pd(); }
SIMD vd vd_add_squares(vd sum, vf x) {
    const __m512d a = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
    const __m512d b = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
    return _mm512_fmadd_pd(b, b, _mm512_fmadd_pd(a, a, sum));
}
SIMD double vd_sum(vd x) { return _mm512_reduce_add_pd(x); }

SIMD void v_stream_u16(uint16_t *p, vi x) { _mm256_stream_si256((__m256i *)p, _mm512_cvtepi32_epi16(x)); }

/* 1 / x for x in [1, 2^126], to 1.5 units of the last place; rough: to 2^-14, also for an infinity. */
SIMD vf v_reciprocal(vf x, const int rough) {
    const vf y = _mm512_rcp14_ps(x);
    return rough ? y : _mm512_fmadd_ps(y, _mm512_fnmadd_ps(x, y, _mm512_set1_ps(1.0f)), y);
}

/* The nearest whole number. */
SIMD vf v_whole(vf x) { return _mm512_roundscale_ps(x, 0x08); }

#ifdef CK_ISA_BF16
/* Rounded to nearest even; subnormals become zero. */
SIMD void v_store_bf16_flushed_n(uint16_t *p, vf x, int64_t n) {
    const __m256i half = (__m256i)_mm512_cvtneps_pbh(x);
    if (n == VL) _mm256_storeu_si256((__m256i *)p, half);
    else _mm256_mask_storeu_epi16(p, v_tail(n), half);
}
SIMD void v_stream_bf16_flushed(uint16_t *p, vf x) {
    _mm256_stream_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh(x));
}
/* Lane i of low: the pair (row0[i], row1[i]); of high: that of column `apart` + i. 2 VL columns are read of each row;
 * row1 NULL counts as zeros. */
SIMD void v_pair_rows(vf *low, vf *high, const uint16_t *row0, const uint16_t *row1, const int apart) {
    const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                           5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i a = _mm512_loadu_si512(row0), b = row1 ? _mm512_loadu_si512(row1) : _mm512_setzero_si512();
    *low = v_from_bits(_mm512_permutex2var_epi16(a, order, b));
    *high = v_from_bits(_mm512_permutex2var_epi16(a, _mm512_add_epi16(order, _mm512_set1_epi16((short)apart)), b));
}
/* Pairs of bf16 in 32-bit lanes: sum + a.low b.low + a.high b.high. Subnormals count as zero. */
SIMD vf v_dot_pairs(vf a, vf b, vf sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)v_bits(a), (__m512bh)v_bits(b));
}
/* 2 VL bf16, rounded to nearest even: the lanes of low, then those of high. Subnormals become zero. */
SIMD vf v_pairs_along(vf low, vf high) { return v_from_bits((__m512i)_mm512_cvtne2ps_pbh(high, low)); }
/* The same with lane i holding the pair (low[i], high[i]). */
SIMD vf v_pairs_across(vf low, vf high) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                           6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return v_from_bits(_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(high, low)));
}
#endif
