/* simd_rows.h for NEON: rows 0 to 3 in one register, 4 to 7 in the other. */
typedef float vs __attribute__((vector_size(32)));
typedef union { vs whole; vr bits; float32x4_t half[2]; uint32x4_t bits_of[2]; } ck_eight;
#define EACH_HALF(value)                                                                                    \
    ck_eight y;                                                                                             \
    _Pragma("GCC unroll 2") for (int h = 0; h < 2; h++) y.half[h] = (value);                                \
    return y.whole
SIMD float32x4_t vs_half(vs a, const int h) { return ((ck_eight){.whole = a}).half[h]; }
SIMD uint32x4_t vr_half(vr a, const int h) { return ((ck_eight){.bits = a}).bits_of[h]; }
SIMD vs vs_set1(float x) { EACH_HALF(vdupq_n_f32(x)); }
SIMD vs vs_load(const float *p) { EACH_HALF(vld1q_f32(p + 4 * h)); }
SIMD void vs_store(float *p, vs x) {
    vst1q_f32(p, vs_half(x, 0));
    vst1q_f32(p + 4, vs_half(x, 1));
}
/* 4 numbers, then the same 4. */
SIMD vs vs_load_twice(const float *p) { EACH_HALF(vld1q_f32(p)); }
SIMD vs vs_add(vs a, vs b) { return a + b; }
SIMD vs vs_mul(vs a, vs b) { return a * b; }
SIMD vs vs_fma(vs a, vs b, vs c) { EACH_HALF(vfmaq_f32(vs_half(c, h), vs_half(a, h), vs_half(b, h))); }
/* fp16 at p, p + apart ... */
SIMD vs vs_from_f16(const uint8_t *p, int64_t apart) {
    uint16_t x[CK_ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < CK_ROWS; r++) x[r] = ck_u16(p + r * apart);
    EACH_HALF(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x + 4 * h))));
}
/* The lower 16 bits of each row, an fp16. */
SIMD vs vs_of_f16(vr a) { EACH_HALF(vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(vr_half(a, h))))); }
/* 16 bytes of each row, the first 4 in word[0]. */
SIMD void vr_load(vr word[4], const uint8_t *p, int64_t apart) {
    ck_eight y[4];
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        vf row[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) row[i] = vreinterpretq_f32_u8(vld1q_u8(p + (4 * h + i) * apart));
        v_transpose(row);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) y[i].half[h] = row[i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) word[i] = y[i].bits;
}
/* A byte at p, p + apart ... */
SIMD vr vr_from_bytes(const uint8_t *p, int64_t apart) {
    vr y;
#pragma GCC unroll 8
    for (int r = 0; r < CK_ROWS; r++) y[r] = p[r * apart];
    return y;
}
/* Byte i of each 32-bit lane, times 2^(8 i) but for the last one: nothing is moved further than it must be. */
SIMD vs vs_widen(vq a, const int i) {
#define LANES vreinterpretq_u32_u8(a.half[h])
    EACH_HALF(vcvtq_f32_u32(i == 3 ? vshrq_n_u32(LANES, 24) : vandq_u32(LANES, vdupq_n_u32(0xffu << 8 * i))));
}
/* table[byte i of each 32-bit lane], for bytes below 16. */
SIMD vs vs_pick(const float table[16], vq a, const int i) {
    EACH_HALF(v_pick(table, vreinterpretq_s32_u32(vandq_u32(vshlq_u32(LANES, vdupq_n_s32(-8 * i)), vdupq_n_u32(15)))));
#undef LANES
}
/* 8 signed bytes. */
SIMD vs vs_load_i8(const uint8_t *p) {
    const int16x8_t x = vmovl_s8(vreinterpret_s8_u8(vld1_u8(p)));
    EACH_HALF(vcvtq_f32_s32(h ? vmovl_high_s16(x) : vmovl_s16(vget_low_s16(x))));
}
/* The lanes 0 to 3 of a and of b, plus their lanes 4 to 7. */
SIMD vs vs_fold(vs a, vs b) {
    EACH_HALF(h ? vaddq_f32(vs_half(b, 0), vs_half(b, 1)) : vaddq_f32(vs_half(a, 0), vs_half(a, 1)));
}
/* Lane r: the sum of the 4 lanes that d[r % 4] has of row r. */
SIMD vs vs_sums(const vs d[4]) {
    EACH_HALF(vpaddq_f32(vpaddq_f32(vs_half(d[0], h), vs_half(d[1], h)), vpaddq_f32(vs_half(d[2], h), vs_half(d[3], h))));
}
/* Sums of the products of neighbouring bytes of a and b, b in [-127, 127]: no two products leave 16 bits. */
SIMD int32x4_t vq_products(uint8x16_t a, int8x16_t b) {
    const int8x16_t x = vreinterpretq_s8_u8(a);
    return vpaddlq_s16(vmlal_high_s8(vmull_s8(vget_low_s8(x), vget_low_s8(b)), x, b));
}
/* dot[h]: of each row, the products with the 16 bytes of x from 16 h on. Or dot[0] alone: with all 32. Bytes that are not
 * signed are below 64. */
SIMD void vq_dots(vs dot[2], const vq half[4][2], const int8_t *x, const int is_signed, const int apart) {
    (void)is_signed;
    const int8x16_t first = vld1q_s8(x), second = vld1q_s8(x + 16);
    ck_eight low, high;
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        int32x4_t a[4], b[4];
#pragma GCC unroll 4
        for (int p = 0; p < 4; p++) {
            a[p] = vq_products(half[p][0].half[h], first);
            b[p] = vq_products(half[p][1].half[h], second);
            if (!apart) a[p] = vaddq_s32(a[p], b[p]);
        }
        low.half[h] = vcvtq_f32_s32(vpaddq_s32(vpaddq_s32(a[0], a[1]), vpaddq_s32(a[2], a[3])));
        high.half[h] = vcvtq_f32_s32(vpaddq_s32(vpaddq_s32(b[0], b[1]), vpaddq_s32(b[2], b[3])));
    }
    dot[0] = low.whole;
    if (apart) dot[1] = high.whole;
}
#undef EACH_HALF
