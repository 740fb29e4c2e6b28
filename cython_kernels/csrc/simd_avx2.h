/* 8 lanes, AVX2 and FMA. */
#include <immintrin.h>

#define VL 8
#define CK_GEMM_MR 6
#define CK_GEMM_NV 2

typedef __m256 vf;
typedef __m256i vi;
typedef __m256 vmask;

static const int32_t ck_tail_mask[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

SIMD vi v_tail(int64_t n) { return _mm256_loadu_si256((const __m256i *)(ck_tail_mask + 8 - n)); }
SIMD vf v_set1(float x) { return _mm256_set1_ps(x); }
SIMD vf v_load(const float *p) { return _mm256_loadu_ps(p); }
SIMD void v_store(float *p, vf x) { _mm256_storeu_ps(p, x); }
SIMD vf v_load_n(const float *p, int64_t n) { return n == VL ? v_load(p) : _mm256_maskload_ps(p, v_tail(n)); }
SIMD void v_store_n(float *p, vf x, int64_t n) {
    if (n == VL) v_store(p, x);
    else _mm256_maskstore_ps(p, v_tail(n), x);
}
SIMD vf v_keep_n(vf x, int64_t n) {  /* the first n lanes, zero in the rest */
    return _mm256_and_ps(x, _mm256_castsi256_ps(v_tail(n)));
}
SIMD vi v_load_u16_n(const uint16_t *p, int64_t n) {
    if (n == VL) return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    uint16_t lanes[VL] = {0};
    for (int64_t i = 0; i < n; i++) lanes[i] = p[i];
    return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)lanes));
}
SIMD void v_store_u16_n(uint16_t *p, vi x, int64_t n) {
    const __m128i half = _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    if (n == VL) { _mm_storeu_si128((__m128i *)p, half); return; }
    uint16_t lanes[VL];
    _mm_storeu_si128((__m128i *)lanes, half);
    for (int64_t i = 0; i < n; i++) p[i] = lanes[i];
}

SIMD vi v_bits(vf x) { return _mm256_castps_si256(x); }
SIMD vf v_from_bits(vi x) { return _mm256_castsi256_ps(x); }
SIMD vi vi_set1(int32_t x) { return _mm256_set1_epi32(x); }
SIMD vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
SIMD vi vi_and(vi a, vi b) { return _mm256_and_si256(a, b); }
SIMD vi vi_or(vi a, vi b) { return _mm256_or_si256(a, b); }
SIMD vi vi_shift_left(vi a, int n) { return _mm256_slli_epi32(a, n); }
SIMD vi vi_shift_right(vi a, int n) { return _mm256_srli_epi32(a, n); }

SIMD vf v_add(vf a, vf b) { return _mm256_add_ps(a, b); }
SIMD vf v_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
SIMD vf v_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
SIMD vf v_div(vf a, vf b) { return _mm256_div_ps(a, b); }
SIMD vf v_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
SIMD vmask v_less(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
SIMD vmask v_is_nan(vf a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
SIMD vf v_select(vmask m, vf yes, vf no) { return _mm256_blendv_ps(no, yes, m); }
SIMD vi vi_select(vmask m, vi yes, vi no) { return v_bits(v_select(m, v_from_bits(yes), v_from_bits(no))); }
SIMD vf v_max(vf a, vf b) { return _mm256_max_ps(a, b); }
SIMD vf v_min(vf a, vf b) { return _mm256_min_ps(a, b); }
SIMD vf v_abs(vf a) { return v_from_bits(vi_and(v_bits(a), vi_set1(0x7fffffff))); }
SIMD vf v_sqrt(vf a) { return _mm256_sqrt_ps(a); }
/* x * 2^n for a whole number n in [-250, 250], in two steps so that neither power leaves the exponent's
 * range. */
SIMD vf v_scale(vf x, vf n) {
    const vi whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1), bias = vi_set1(127);
    const vi low = vi_shift_left(vi_add(half, bias), 23);
    const vi high = vi_shift_left(vi_add(_mm256_sub_epi32(whole, half), bias), 23);
    return v_mul(v_mul(x, v_from_bits(low)), v_from_bits(high));
}
/* The 8 x 8 matrix of these rows, transposed in place. */
SIMD void v_transpose(vf r[8]) {
    vf t[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {  /* r[i + c]: columns c, c + 4 of rows i to i + 3 */
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        const vf low = r[c], high = r[c + 4];
        r[c] = _mm256_permute2f128_ps(low, high, 0x20);
        r[c + 4] = _mm256_permute2f128_ps(low, high, 0x31);
    }
}
/* Past the caches; p is 32-byte aligned. */
SIMD void v_stream(float *p, vf x) { _mm256_stream_ps(p, x); }
SIMD float v_sum(vf x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
SIMD float v_largest(vf x) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
typedef __m256d vd;
SIMD vd vd_zero(void) { return _mm256_setzero_pd(); }
SIMD vd vd_add_squares(vd sum, vf x) {
    const __m256d a = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
    const __m256d b = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
    return _mm256_fmadd_pd(b, b, _mm256_fmadd_pd(a, a, sum));
}
SIMD double vd_sum(vd x) {
    const __m128d t = _mm_add_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
    return _mm_cvtsd_f64(_mm_add_sd(t, _mm_unpackhi_pd(t, t)));
}

SIMD void v_stream_u16(uint16_t *p, vi x) {
    _mm_stream_si128((__m128i *)p,
                     _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)));
}

/* 1 / x; `rough` allows an error of 2^-14. */
SIMD vf v_reciprocal(vf x, const int rough) {
    (void)rough;
    return v_div(v_set1(1.0f), x);
}
