/* 4 lanes, NEON of AArch64 (Armv8-A), where multiply-add is fused; with bf16 products where CK_ISA_BF16 says so
 * (FEAT_BF16, Armv8.6-A). NEON's own maximum and minimum give NaN when either is NaN; here b is wanted, so they select. */
#include <arm_neon.h>

#define VL 4
#define CK_GEMM_MR 8  /* 16 sums, as many as four pipes of latency 4 need; of 24, GCC 12 keeps some on the stack */
#define CK_GEMM_NV 2

typedef float32x4_t vf;
typedef int32x4_t vi;
typedef uint32x4_t vmask;

SIMD vmask v_first_n(int64_t n) {
    const int32x4_t lane = {0, 1, 2, 3};
    return vcltq_s32(lane, vdupq_n_s32((int32_t)n));
}
SIMD vf v_set1(float x) { return vdupq_n_f32(x); }
SIMD vf v_load(const float *p) { return vld1q_f32(p); }
SIMD void v_store(float *p, vf x) { vst1q_f32(p, x); }
SIMD vf v_load_n(const float *p, int64_t n) {
    if (n == VL) return v_load(p);
    float lanes[VL] = {0.0f};
    for (int64_t i = 0; i < n; i++) lanes[i] = p[i];
    return v_load(lanes);
}
SIMD void v_store_n(float *p, vf x, int64_t n) {
    if (n == VL) { v_store(p, x); return; }
    float lanes[VL];
    v_store(lanes, x);
    for (int64_t i = 0; i < n; i++) p[i] = lanes[i];
}
SIMD vf v_keep_n(vf x, int64_t n) {  /* the first n lanes, zero in the rest */
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x), v_first_n(n)));
}
SIMD vi v_load_u16_n(const uint16_t *p, int64_t n) {
    if (n == VL) return vreinterpretq_s32_u32(vmovl_u16(vld1_u16(p)));
    uint16_t lanes[VL] = {0};
    for (int64_t i = 0; i < n; i++) lanes[i] = p[i];
    return vreinterpretq_s32_u32(vmovl_u16(vld1_u16(lanes)));
}
SIMD void v_store_u16_n(uint16_t *p, vi x, int64_t n) {
    const uint16x4_t half = vmovn_u32(vreinterpretq_u32_s32(x));
    if (n == VL) { vst1_u16(p, half); return; }
    uint16_t lanes[VL];
    vst1_u16(lanes, half);
    for (int64_t i = 0; i < n; i++) p[i] = lanes[i];
}

SIMD vi v_bits(vf x) { return vreinterpretq_s32_f32(x); }
SIMD vf v_from_bits(vi x) { return vreinterpretq_f32_s32(x); }
SIMD vi vi_set1(int32_t x) { return vdupq_n_s32(x); }
SIMD vi vi_add(vi a, vi b) { return vaddq_s32(a, b); }
SIMD vi vi_and(vi a, vi b) { return vandq_s32(a, b); }
SIMD vi vi_or(vi a, vi b) { return vorrq_s32(a, b); }
SIMD vi vi_shift_left(vi a, int n) { return vshlq_s32(a, vdupq_n_s32(n)); }
SIMD vi vi_shift_right(vi a, int n) {  /* logical */
    return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), vdupq_n_s32(-n)));
}

SIMD vf v_add(vf a, vf b) { return vaddq_f32(a, b); }
SIMD vf v_sub(vf a, vf b) { return vsubq_f32(a, b); }
SIMD vf v_mul(vf a, vf b) { return vmulq_f32(a, b); }
SIMD vf v_div(vf a, vf b) { return vdivq_f32(a, b); }
SIMD vf v_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
SIMD vmask v_less(vf a, vf b) { return vcltq_f32(a, b); }
SIMD vmask v_is_nan(vf a) { return vmvnq_u32(vceqq_f32(a, a)); }
SIMD vf v_select(vmask m, vf yes, vf no) { return vbslq_f32(m, yes, no); }
SIMD vi vi_select(vmask m, vi yes, vi no) { return vbslq_s32(m, yes, no); }
SIMD vf v_max(vf a, vf b) { return v_select(vcgtq_f32(a, b), a, b); }
SIMD vf v_min(vf a, vf b) { return v_select(vcltq_f32(a, b), a, b); }
SIMD vf v_abs(vf a) { return vabsq_f32(a); }
SIMD vf v_sqrt(vf a) { return vsqrtq_f32(a); }
/* x * 2^n for a whole number n in [-250, 250], in two steps so that neither power leaves the exponent's
 * range. */
SIMD vf v_scale(vf x, vf n) {
    const vi whole = vcvtnq_s32_f32(n), half = vshrq_n_s32(whole, 1), bias = vi_set1(127);
    const vi low = vshlq_n_s32(vaddq_s32(half, bias), 23);
    const vi high = vshlq_n_s32(vaddq_s32(vsubq_s32(whole, half), bias), 23);
    return v_mul(v_mul(x, v_from_bits(low)), v_from_bits(high));
}
/* The 4 x 4 matrix of these rows, transposed in place. */
SIMD void v_transpose(vf r[4]) {
#define HALVES(op, x, y) vreinterpretq_f32_f64(op(vreinterpretq_f64_f32(x), vreinterpretq_f64_f32(y)))
    const vf a = vtrn1q_f32(r[0], r[1]), b = vtrn2q_f32(r[0], r[1]);
    const vf c = vtrn1q_f32(r[2], r[3]), d = vtrn2q_f32(r[2], r[3]);
    r[0] = HALVES(vtrn1q_f64, a, c);
    r[1] = HALVES(vtrn1q_f64, b, d);
    r[2] = HALVES(vtrn2q_f64, a, c);
    r[3] = HALVES(vtrn2q_f64, b, d);
#undef HALVES
}
/* NEON has no store past the caches. */
SIMD void v_stream(float *p, vf x) { v_store(p, x); }
SIMD float v_sum(vf x) { return vaddvq_f32(x); }
SIMD float v_largest(vf x) {
    const vf pairs = v_max(x, vextq_f32(x, x, 2));
    return vgetq_lane_f32(v_max(pairs, vextq_f32(pairs, pairs, 1)), 0);
}
typedef struct { float64x2_t low, high; } vd;
SIMD vd vd_zero(void) { return (vd){vdupq_n_f64(0.0), vdupq_n_f64(0.0)}; }
SIMD vd vd_add_squares(vd sum, vf x) {
    const float64x2_t a = vcvt_f64_f32(vget_low_f32(x)), b = vcvt_high_f64_f32(x);
    return (vd){vfmaq_f64(sum.low, a, a), vfmaq_f64(sum.high, b, b)};
}
SIMD double vd_sum(vd x) { return vaddvq_f64(vaddq_f64(x.low, x.high)); }

SIMD void v_stream_u16(uint16_t *p, vi x) { v_store_u16_n(p, x, VL); }

/* 1 / x; `rough` allows an error of 2^-14. */
SIMD vf v_reciprocal(vf x, const int rough) {
    (void)rough;
    return v_div(v_set1(1.0f), x);
}

#ifdef CK_ISA_BF16
SIMD vi v_load_pairs_n(const uint16_t *p, int64_t n) {
    if (n == 2 * VL) return vreinterpretq_s32_u16(vld1q_u16(p));
    uint16_t lanes[2 * VL] = {0};
    for (int64_t i = 0; i < n; i++) lanes[i] = p[i];
    return vreinterpretq_s32_u16(vld1q_u16(lanes));
}
/* Rounded to nearest even. Nothing is flushed here: subnormals stay. */
SIMD void v_store_bf16_flushed_n(uint16_t *p, vf x, int64_t n) {
    const uint16x4_t half = vreinterpret_u16_bf16(vcvt_bf16_f32(x));
    if (n == VL) { vst1_u16(p, half); return; }
    uint16_t lanes[VL];
    vst1_u16(lanes, half);
    for (int64_t i = 0; i < n; i++) p[i] = lanes[i];
}
SIMD void v_stream_bf16_flushed(uint16_t *p, vf x) { v_store_bf16_flushed_n(p, x, VL); }
/* Lane i of low: the pair (row0[i], row1[i]); of high: that of column `apart` + i. 2 VL columns are read of each row;
 * row1 NULL counts as zeros. */
SIMD void v_pair_rows(vf *low, vf *high, const uint16_t *row0, const uint16_t *row1, const int apart) {
    const uint16x4_t zero = vdup_n_u16(0);
    const uint16x4_t a = vld1_u16(row0), b = row1 ? vld1_u16(row1) : zero;
    const uint16x4_t c = vld1_u16(row0 + apart), d = row1 ? vld1_u16(row1 + apart) : zero;
    *low = vreinterpretq_f32_u16(vcombine_u16(vzip1_u16(a, b), vzip2_u16(a, b)));
    *high = vreinterpretq_f32_u16(vcombine_u16(vzip1_u16(c, d), vzip2_u16(c, d)));
}
/* Pairs of bf16 in 32-bit lanes: sum + a.low b.low + a.high b.high, rounded to odd in between (Arm's BFDOT). */
SIMD vf v_dot_pairs(vf a, vf b, vf sum) {
    return vbfdotq_f32(sum, vreinterpretq_bf16_f32(a), vreinterpretq_bf16_f32(b));
}
/* 2 VL bf16, rounded to nearest even: the lanes of low, then those of high. */
SIMD vf v_pairs_along(vf low, vf high) {
    return vreinterpretq_f32_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(low), high));
}
/* The same with lane i holding the pair (low[i], high[i]). */
SIMD vf v_pairs_across(vf low, vf high) {
    const uint16x8_t both = vreinterpretq_u16_f32(v_pairs_along(low, high));
    return vreinterpretq_f32_u16(vzip1q_u16(both, vextq_u16(both, both, 4)));
}
#endif
