/* 4 lanes in GCC vector types: SSE2 on x86-64, NEON on aarch64, no intrinsics. Multiply and add are two
 * roundings. */
#include <string.h>

#define VL 4
#define CK_GEMM_MR 4
#define CK_GEMM_NV 2

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
typedef vi vmask;
typedef float vf_unaligned __attribute__((vector_size(16), aligned(4), may_alias));

SIMD vf v_set1(float x) { return (vf){x, x, x, x}; }
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
    vi x = {0, 0, 0, 0};
    for (int64_t i = 0; i < n; i++) x[i] = p[i];
    return x;
}
SIMD void v_store_u16_n(uint16_t *p, vi x, int64_t n) {
    for (int64_t i = 0; i < n; i++) p[i] = (uint16_t)x[i];
}

SIMD vi v_bits(vf x) { return (vi)x; }
SIMD vf v_from_bits(vi x) { return (vf)x; }
SIMD vi vi_set1(int32_t x) { return (vi){x, x, x, x}; }
SIMD vi vi_add(vi a, vi b) { return a + b; }
SIMD vi vi_and(vi a, vi b) { return a & b; }
SIMD vi vi_or(vi a, vi b) { return a | b; }
SIMD vi vi_shift_left(vi a, int n) { return a << n; }
SIMD vi vi_shift_right(vi a, int n) {  /* logical */
    typedef uint32_t vu __attribute__((vector_size(16)));
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
    return (vf){sqrtf(a[0]), sqrtf(a[1]), sqrtf(a[2]), sqrtf(a[3])};
}
/* x * 2^n for a whole number n in [-250, 250], in two steps so that neither power leaves the exponent's
 * range. */
SIMD vf v_scale(vf x, vf n) {
    const vi whole = v_bits(n + v_set1(12582912.0f)) - vi_set1(0x4b400000);
    const vi half = whole >> 1;
    return x * (vf)((half + 127) << 23) * (vf)((whole - half + 127) << 23);
}
/* The 4 x 4 matrix of these rows, transposed in place. */
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
/* Past the caches, where the instruction set can. */
SIMD void v_stream(float *p, vf x) {
#if defined(__SSE__)
    __builtin_ia32_movntps(p, x);
#else
    v_store(p, x);
#endif
}
SIMD float v_sum(vf x) { return (x[0] + x[2]) + (x[1] + x[3]); }
SIMD float v_largest(vf x) {
    const float a = x[0] > x[2] ? x[0] : x[2], b = x[1] > x[3] ? x[1] : x[3];
    return a > b ? a : b;
}
typedef double vd_half __attribute__((vector_size(16)));
typedef struct { vd_half low, high; } vd;
SIMD vd vd_zero(void) { return (vd){{0.0, 0.0}, {0.0, 0.0}}; }
SIMD vd vd_add_squares(vd sum, vf x) {
    const vd_half a = {x[0], x[1]}, b = {x[2], x[3]};
    return (vd){sum.low + a * a, sum.high + b * b};
}
SIMD double vd_sum(vd x) { return (x.low[0] + x.low[1]) + (x.high[0] + x.high[1]); }

SIMD void v_stream_u16(uint16_t *p, vi x) { v_store_u16_n(p, x, VL); }

/* 1 / x; `rough` allows an error of 2^-14. */
SIMD vf v_reciprocal(vf x, const int rough) {
    (void)rough;
    return v_div(v_set1(1.0f), x);
}
