/* simd_bytes.h for NEON: 32 bytes are two registers of 16. */
typedef struct { uint8x16_t half[2]; } vq;
#define EACH_HALF(value)                                                                                    \
    vq y;                                                                                                   \
    _Pragma("GCC unroll 2") for (int h = 0; h < 2; h++) y.half[h] = (value);                                \
    return y
SIMD vq vq_load(const uint8_t *p) { EACH_HALF(vld1q_u8(p + 16 * h)); }
/* 16 bytes at p, then those that lie `apart` bytes further on. */
SIMD vq vq_load_two(const uint8_t *p, int64_t apart) { EACH_HALF(vld1q_u8(p + apart * h)); }
/* The first 16 bytes of a, then those of b. */
SIMD vq vq_join(vq a, vq b) { EACH_HALF(h ? b.half[0] : a.half[0]); }
SIMD vq vq_sub(vq a, int x) { EACH_HALF(vsubq_u8(a.half[h], vdupq_n_u8((uint8_t)x))); }
SIMD vq vq_or(vq a, vq b) { EACH_HALF(vorrq_u8(a.half[h], b.half[h])); }
SIMD vq vq_low_nibbles(vq a) { EACH_HALF(vandq_u8(a.half[h], vdupq_n_u8(15))); }
SIMD vq vq_high_nibbles(vq a) { EACH_HALF(vshrq_n_u8(a.half[h], 4)); }
/* `value` where the bit of the byte's number is set: of 32 bits at p and of those `apart` bytes further on, the lower 16 or
 * the upper ones. */
SIMD vq vq_from_bits(const uint8_t *p, int64_t apart, const int upper, int value) {
    static const uint8_t bit[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8_t *bits = p + 2 * upper;
    EACH_HALF(vandq_u8(vtstq_u8(vcombine_u8(vdup_n_u8(bits[apart * h]), vdup_n_u8(bits[apart * h + 1])), vld1q_u8(bit)),
                       vdupq_n_u8((uint8_t)value)));
}
/* Bits 2 i and 2 i + 1 of each byte, as its bits 4 and 5. */
SIMD vq vq_pair_of_bits(vq a, const int i) {
    EACH_HALF(vshlq_u8(vandq_u8(a.half[h], vdupq_n_u8((uint8_t)(3 << 2 * i))), vdupq_n_s8((int8_t)(4 - 2 * i))));
}
/* table[index] for indices below 16. */
SIMD vq vq_pick(const int8_t table[16], vq index) {
    EACH_HALF(vreinterpretq_u8_s8(vqtbl1q_s8(vld1q_s8(table), index.half[h])));
}
#undef EACH_HALF
SIMD float ck_from_f16(uint16_t x) {
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(x))), 0);
}
SIMD vi vq_part(vq a, const int i) {
    const int8x16_t bytes = vreinterpretq_s8_u8(a.half[i / 4]);
    const int16x8_t eight = i & 2 ? vmovl_high_s8(bytes) : vmovl_s8(vget_low_s8(bytes));
    return i & 1 ? vmovl_high_s16(eight) : vmovl_s16(vget_low_s16(eight));
}
SIMD vf v_from_i32(vi x) { return vcvtq_f32_s32(x); }
SIMD vi v_to_i32(vf x) { return vcvtnq_s32_f32(x); }
SIMD vf v_load_i8(const uint8_t *p) {
    const int8x8_t bytes = vreinterpret_s8_u32(vdup_n_u32(ck_u32(p)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
}
SIMD vf v_load_f16(const uint8_t *p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
/* By the four bytes of each number: index 4 i, 4 i + 1 ... of 64. */
SIMD vf v_pick(const float table[16], vi index) {
    uint8x16x4_t bytes;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) bytes.val[i] = vreinterpretq_u8_f32(v_load(table + 4 * i));
    const uint32x4_t at = vaddq_u32(vmulq_n_u32(vreinterpretq_u32_s32(index), 0x04040404), vdupq_n_u32(0x03020100));
    return vreinterpretq_f32_u8(vqtbl4q_u8(bytes, vreinterpretq_u8_u32(at)));
}
