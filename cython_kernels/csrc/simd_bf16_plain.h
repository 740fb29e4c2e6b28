/* The bf16 functions of simd_avx512.h in plain C, for emulated AMX. Rounding as Intel's manual says of vdpbf16ps, tdpbf16ps
 * and vcvtneps2bf16: subnormal numbers count as zero and become zero, the rest is rounded to nearest even. */
#ifndef CK_SIMD_BF16_PLAIN_H
#define CK_SIMD_BF16_PLAIN_H

SIMD uint32_t ck_bits_of(float x) {
    const union { float value; uint32_t bits; } u = {.value = x};
    return u.bits;
}
SIMD float ck_float_of(uint32_t bits) {
    const union { uint32_t bits; float value; } u = {.bits = bits};
    return u.value;
}
SIMD uint32_t ck_flushed(uint32_t bits) { return bits & 0x7f800000 ? bits : bits & 0x80000000; }

/* v rounded to fp32; what is below the least normal number after rounding becomes zero of its sign. */
SIMD float ck_round_flushed(double v) {
    return v < 0x1.ffffffp-127 && v > -0x1.ffffffp-127 ? (float)(v * 0.0) : (float)v;
}
/* a b + c, the factors being bf16: the product is exact in fp64, and rounding the sum to fp64 first changes nothing (53
 * digits are at least twice 24 and two). */
SIMD float ck_bf16_fma(uint32_t a, uint32_t b, float c) {
    const uint32_t before = ck_flushed(ck_bits_of(c));
    a = ck_flushed(a);
    b = ck_flushed(b);
    const double v = (double)ck_float_of(a) * ck_float_of(b) + ck_float_of(before);
    if (v == v) return ck_round_flushed(v);
    /* the first operand that is a NaN, made quiet; or a new one */
    const uint32_t operands[3] = {a, b, before};
    for (int i = 0; i < 3; i++)
        if ((operands[i] & 0x7fffffff) > 0x7f800000) return ck_float_of(operands[i] | 0x400000);
    return ck_float_of(0xffc00000);
}

SIMD vi v_load_pairs_n(const uint16_t *p, int64_t n) {
    vi x = {0};
    memcpy(&x, p, (size_t)n * sizeof *p);
    return x;
}
SIMD uint16_t ck_bf16_flushed(float x) {
    const uint32_t bits = ck_flushed(ck_bits_of(x));
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
SIMD void v_store_bf16_flushed_n(uint16_t *p, vf x, int64_t n) {
    for (int64_t i = 0; i < n; i++) p[i] = ck_bf16_flushed(x[i]);
}
SIMD void v_stream_bf16_flushed(uint16_t *p, vf x) { v_store_bf16_flushed_n(p, x, VL); }
SIMD void v_pair_rows(vf *low, vf *high, const uint16_t *row0, const uint16_t *row1, const int apart) {
    vi first, second;
    for (int i = 0; i < VL; i++) {
        first[i] = row0[i] | (row1 ? (int32_t)((uint32_t)row1[i] << 16) : 0);
        second[i] = row0[apart + i] | (row1 ? (int32_t)((uint32_t)row1[apart + i] << 16) : 0);
    }
    *low = v_from_bits(first);
    *high = v_from_bits(second);
}
/* A function of its own, or the tiles that are unrolled around it would take minutes to compile. */
static __attribute__((noinline)) void ck_dot_pairs(const vi *a, const vi *b, vf *sum) {
    const vi x = *a, y = *b;
    vf s = *sum;
    for (int i = 0; i < VL; i++) {
        const uint32_t u = (uint32_t)x[i], v = (uint32_t)y[i];
        s[i] = ck_bf16_fma(u & 0xffff0000, v & 0xffff0000, s[i]);
        s[i] = ck_bf16_fma(u << 16, v << 16, s[i]);
    }
    *sum = s;
}
SIMD vf v_dot_pairs(vf a, vf b, vf sum) {
    const vi x = v_bits(a), y = v_bits(b);
    ck_dot_pairs(&x, &y, &sum);
    return sum;
}
SIMD vf v_pairs_along(vf low, vf high) {
    vf both;
    uint16_t halves[2 * VL];
    v_store_bf16_flushed_n(halves, low, VL);
    v_store_bf16_flushed_n(halves + VL, high, VL);
    memcpy(&both, halves, sizeof both);
    return both;
}
SIMD vf v_pairs_across(vf low, vf high) {
    vf both;
    uint16_t halves[2 * VL];
    for (int i = 0; i < VL; i++) {
        halves[2 * i] = ck_bf16_flushed(low[i]);
        halves[2 * i + 1] = ck_bf16_flushed(high[i]);
    }
    memcpy(&both, halves, sizeof both);
    return both;
}

#endif
