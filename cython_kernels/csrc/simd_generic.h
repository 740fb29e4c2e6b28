/* 4 lanes in GCC vector types: SSE2 on x86-64, NEON on AArch64, no intrinsics. Multiply and add are two
 * roundings. Where AMX is emulated there are 16, so that panels and tiles have the shapes of the real ones. */
#include <string.h>

#ifdef CK_AMX_EMULATED
#define VL 16
#else
#define VL 4
#endif
#define CK_GEMM_MR 4
#define CK_GEMM_NV 2

typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef vi vmask;
typedef float vf_unaligned __attribute__((vector_size(4 * VL), aligned(4), may_alias));

SIMD vf v_set1(float x) {
    vf all;
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++) all[i] = x;
    return all;
}
SIMD vf v_load(const float *p) { return *(const vf_unaligned *)p; }
SIMD void v_store(float *p, vf x) { *(vf_unaligned *)p = x; }
SIMD vf v_load_n(const float *p, int64_t n) {
    if (n == VL) return v_load(p);
    vf x = v_set1(0.0f);
    for (int64_t i = 0; i < n; i++) x[i] = p[i];
    return x;
}
SIMD void v_store_n(float *p, vf x, int64_t n) {
    if (n == VL) v_store(p, x);
    else for (int64_t i = 0; i < n; i++) p[i] = x[i];
}
SIMD vf v_keep_n(vf x, int64_t n) {  /* the first n lanes, zero in the rest */
    for (int64_t i = n; i < VL; i++) x[i] = 0.0f;
    return x;
}
SIMD vi v_load_u16_n(const uint16_t *p, int64_t n) {
    vi x = {0};
    for (int64_t i = 0; i < n; i++) x[i] = p[i];
    return x;
}
SIMD void v_store_u16_n(uint16_t *p, vi x, int64_t n) {
    for (int64_t i = 0; i < n; i++) p[i] = (uint16_t)x[i];
}

SIMD vi v_bits(vf x) { return (vi)x; }
SIMD vf v_from_bits(vi x) { return (vf)x; }
SIMD vi vi_set1(int32_t x) {
    vi all;
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++) all[i] = x;
    return all;
}
SIMD vi vi_add(vi a, vi b) { return a + b; }
SIMD vi vi_and(vi a, vi b) { return a & b; }
SIMD vi vi_or(vi a, vi b) { return a | b; }
SIMD vi vi_shift_left(vi a, int n) { return a << n; }
SIMD vi vi_shift_right(vi a, int n) {  /* logical */
    typedef uint32_t vu __attribute__((vector_size(4 * VL)));
    return (vi)((vu)a >> n);
}

SIMD vf v_add(vf a, vf b) { return a + b; }
SIMD vf v_sub(vf a, vf b) { return a - b; }
SIMD vf v_mul(vf a, vf b) { return a * b; }
SIMD vf v_div(vf a, vf b) { return a / b; }
SIMD vf v_fma(vf a, vf b, vf c) { return a * b + c; }
SIMD vmask v_less(vf a, vf b) { return (vmask)(a < b); }
SIMD vmask v_is_nan(vf a) { return (vmask)(a != a); }
SIMD vf v_select(vmask m, vf yes, vf no) { return (vf)((m & (vi)yes) | (~m & (vi)no)); }
SIMD vi vi_select(vmask m, vi yes, vi no) { return (m & yes) | (~m & no); }
SIMD vf v_max(vf a, vf b) { return v_select((vmask)(a > b), a, b); }
SIMD vf v_min(vf a, vf b) { return v_select((vmask)(a < b), a, b); }
SIMD vf v_abs(vf a) { return (vf)((vi)a & vi_set1(0x7fffffff)); }
SIMD vf v_sqrt(vf a) {
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++) a[i] = sqrtf(a[i]);
    return a;
}
/* x * 2^n for a whole number n in [-250, 250], in two steps so that neither power leaves the exponent's
 * range. */
SIMD vf v_scale(vf x, vf n) {
    const vi whole = v_bits(n + v_set1(12582912.0f)) - vi_set1(0x4b400000);
    const vi half = whole >> 1;
    return x * (vf)((half + 127) << 23) * (vf)((whole - half + 127) << 23);
}
/* The VL x VL matrix of these rows, transposed in place. */
#if VL == 4
SIMD void v_transpose(vf r[4]) {
    const vf a = __builtin_shuffle(r[0], r[1], (vi){0, 4, 1, 5});
    const vf b = __builtin_shuffle(r[0], r[1], (vi){2, 6, 3, 7});
    const vf c = __builtin_shuffle(r[2], r[3], (vi){0, 4, 1, 5});
    const vf d = __builtin_shuffle(r[2], r[3], (vi){2, 6, 3, 7});
    r[0] = __builtin_shuffle(a, c, (vi){0, 1, 4, 5});
    r[1] = __builtin_shuffle(a, c, (vi){2, 3, 6, 7});
    r[2] = __builtin_shuffle(b, d, (vi){0, 1, 4, 5});
    r[3] = __builtin_shuffle(b, d, (vi){2, 3, 6, 7});
}
#else
SIMD void v_transpose(vf r[VL]) {
    for (int i = 0; i < VL; i++)
        for (int j = 0; j < i; j++) {
            const float x = r[i][j];
            r[i][j] = r[j][i];
            r[j][i] = x;
        }
}
#endif
/* Past the caches, where the instruction set can. */
SIMD void v_stream(float *p, vf x) {
#if defined(__SSE__) && VL == 4
    __builtin_ia32_movntps(p, x);
#else
    v_store(p, x);
#endif
}
/* Halves are added until one lane is left. */
SIMD float v_sum(vf x) {
#pragma GCC unroll 4
    for (int half = VL / 2; half; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; i++) x[i] = x[i] + x[i + half];
    return x[0];
}
SIMD float v_largest(vf x) {
#pragma GCC unroll 4
    for (int half = VL / 2; half; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; i++) x[i] = x[i] > x[i + half] ? x[i] : x[i + half];
    return x[0];
}
typedef double vd_pair __attribute__((vector_size(16)));
typedef struct { vd_pair pair[VL / 2]; } vd;
SIMD vd vd_zero(void) { return (vd){{{0.0, 0.0}}}; }
SIMD vd vd_add_squares(vd sum, vf x) {
#pragma GCC unroll 8
    for (int i = 0; i < VL / 2; i++) {
        const vd_pair two = {x[2 * i], x[2 * i + 1]};
        sum.pair[i] += two * two;
    }
    return sum;
}
SIMD double vd_sum(vd x) {
    double sum[VL / 2];
    for (int i = 0; i < VL / 2; i++) sum[i] = x.pair[i][0] + x.pair[i][1];
    for (int half = VL / 4; half; half /= 2)
        for (int i = 0; i < half; i++) sum[i] = sum[i] + sum[i + half];
    return sum[0];
}

SIMD void v_stream_u16(uint16_t *p, vi x) { v_store_u16_n(p, x, VL); }

/* 1 / x; `rough` allows an error of 2^-14. */
SIMD vf v_reciprocal(vf x, const int rough) {
    (void)rough;
    return v_div(v_set1(1.0f), x);
}

#ifdef CK_ISA_BF16
#include "simd_bf16_plain.h"
#endif
