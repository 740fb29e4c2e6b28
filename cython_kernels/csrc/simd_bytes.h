/* Vectors of 32 bytes, which quantized weights are read in: one set of names, for AVX2 and AVX-512, NEON, and in plain C. Bytes
 * become VL fp32 lanes at a time: part i of them are the bytes from i VL on. simd_rows.h multiplies them. */
#ifndef CK_SIMD_BYTES_H
#define CK_SIMD_BYTES_H

#include <string.h>

#include "simd.h"

SIMD float ck_f32_from_bits(uint32_t bits) {
    const union { uint32_t bits; float value; } u = {.bits = bits};
    return u.value;
}
SIMD uint16_t ck_u16(const uint8_t *p) {  /* blocks are not aligned */
    uint16_t x;
    memcpy(&x, p, 2);
    return x;
}
SIMD uint32_t ck_u32(const uint8_t *p) {
    uint32_t x;
    memcpy(&x, p, 4);
    return x;
}

#if defined(CK_ISA_AVX2) || defined(CK_ISA_AVX512)
typedef __m256i vq;
SIMD vq vq_set1(int x) { return _mm256_set1_epi8((char)x); }
SIMD vq vq_load(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
/* 16 bytes at p, then those that lie `apart` bytes further on. */
SIMD vq vq_load_two(const uint8_t *p, int64_t apart) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)p)),
                                   _mm_loadu_si128((const __m128i *)(p + apart)), 1);
}
/* The first 16 bytes of a, then those of b. */
SIMD vq vq_join(vq a, vq b) { return _mm256_inserti128_si256(a, _mm256_castsi256_si128(b), 1); }
SIMD vq vq_sub(vq a, int x) { return _mm256_sub_epi8(a, vq_set1(x)); }
SIMD vq vq_or(vq a, vq b) { return _mm256_or_si256(a, b); }
SIMD vq vq_low_nibbles(vq a) { return _mm256_and_si256(a, vq_set1(15)); }
SIMD vq vq_high_nibbles(vq a) { return _mm256_and_si256(_mm256_srli_epi16(a, 4), vq_set1(15)); }
/* `value` where the bit of the byte's number is set: of 32 bits at p and of those `apart` bytes further on, the lower 16 or
 * the upper ones. */
SIMD vq vq_from_bits(const uint8_t *p, int64_t apart, const int upper, int value) {
    const __m256i bits = _mm256_set_m128i(_mm_set1_epi32((int)ck_u32(p + apart)), _mm_set1_epi32((int)ck_u32(p)));
    const __m256i one = _mm256_set_epi64x(0x0101010101010101, 0, 0x0101010101010101, 0);
    const __m256i bytes = _mm256_shuffle_epi8(bits, upper ? _mm256_add_epi8(one, vq_set1(2)) : one);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201);
    return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit), vq_set1(value));
}
/* Bits 2 i and 2 i + 1 of each byte, as its bits 4 and 5. */
SIMD vq vq_pair_of_bits(vq a, const int i) {
    const __m256i two = _mm256_and_si256(a, vq_set1(3 << 2 * i));
    return i < 2 ? _mm256_slli_epi16(two, 4 - 2 * i) : _mm256_srli_epi16(two, 2 * i - 4);
}
/* table[index] for indices below 16. */
SIMD vq vq_pick(const int8_t table[16], vq index) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table)), index);
}
SIMD float ck_from_f16(uint16_t x) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(x))); }
#if VL == 16
SIMD vi vq_part(vq a, const int i) {
    return _mm512_cvtepi8_epi32(i ? _mm256_extracti128_si256(a, 1) : _mm256_castsi256_si128(a));
}
SIMD vf v_from_i32(vi x) { return _mm512_cvtepi32_ps(x); }
SIMD vf v_load_i8(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
SIMD vi v_to_i32(vf x) { return _mm512_cvtps_epi32(x); }
SIMD vf v_load_f16(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
SIMD vf v_pick(const float table[16], vi index) { return _mm512_permutexvar_ps(index, v_load(table)); }
#else
SIMD vi vq_part(vq a, const int i) {
    const __m128i half = i & 2 ? _mm256_extracti128_si256(a, 1) : _mm256_castsi256_si128(a);
    return _mm256_cvtepi8_epi32(i & 1 ? _mm_srli_si128(half, 8) : half);
}
SIMD vf v_from_i32(vi x) { return _mm256_cvtepi32_ps(x); }
SIMD vf v_load_i8(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
SIMD vi v_to_i32(vf x) { return _mm256_cvtps_epi32(x); }
SIMD vf v_load_f16(const uint8_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
SIMD vf v_pick(const float table[16], vi index) {
    const vf low = _mm256_permutevar8x32_ps(v_load(table), index);
    const vf high = _mm256_permutevar8x32_ps(v_load(table + 8), index);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));  /* by bit 3 */
}
#endif
#elif defined(CK_ISA_NEON)
#include "simd_neon_bytes.h"
#else
typedef struct { int8_t byte[32]; } vq;
/* Functions of their own, or what is unrolled around them would take minutes to compile. */
#define PLAIN static __attribute__((noinline, unused))
#define EACH_BYTE(value)                                                                                    \
    vq y;                                                                                                   \
    for (int i = 0; i < 32; i++) y.byte[i] = (int8_t)(value);                                               \
    return y
PLAIN vq vq_load(const uint8_t *p) { EACH_BYTE(p[i]); }
/* 16 bytes at p, then those that lie `apart` bytes further on. */
PLAIN vq vq_load_two(const uint8_t *p, int64_t apart) { EACH_BYTE(i < 16 ? p[i] : p[apart + i - 16]); }
/* The first 16 bytes of a, then those of b. */
PLAIN vq vq_join(vq a, vq b) { EACH_BYTE(i < 16 ? a.byte[i] : b.byte[i - 16]); }
PLAIN vq vq_sub(vq a, int x) { EACH_BYTE(a.byte[i] - x); }
PLAIN vq vq_or(vq a, vq b) { EACH_BYTE(a.byte[i] | b.byte[i]); }
PLAIN vq vq_low_nibbles(vq a) { EACH_BYTE(a.byte[i] & 15); }
PLAIN vq vq_high_nibbles(vq a) { EACH_BYTE((uint8_t)a.byte[i] >> 4); }
/* `value` where the bit of the byte's number is set: of 32 bits at p and of those `apart` bytes further on, the lower 16 or
 * the upper ones. */
PLAIN vq vq_from_bits(const uint8_t *p, int64_t apart, const int upper, int value) {
    const uint32_t bits[2] = {ck_u32(p) >> 16 * upper, ck_u32(p + apart) >> 16 * upper};
    EACH_BYTE(bits[i / 16] >> i % 16 & 1 ? value : 0);
}
/* Bits 2 i and 2 i + 1 of each byte, as its bits 4 and 5. */
PLAIN vq vq_pair_of_bits(vq a, const int pair) { EACH_BYTE(((uint8_t)a.byte[i] >> 2 * pair & 3) << 4); }
/* table[index] for indices below 16. */
PLAIN vq vq_pick(const int8_t table[16], vq index) { EACH_BYTE(table[index.byte[i]]); }
#undef EACH_BYTE
/* IEEE 754 binary16; the multiplication gives subnormals their exponent. */
SIMD float ck_from_f16(uint16_t x) {
    const uint32_t sign = (uint32_t)(x & 0x8000) << 16, rest = (uint32_t)(x & 0x7fff) << 13;
    if (rest >= 0x0f800000) return ck_f32_from_bits(sign | 0x7f800000 | (rest & 0x007fffff));
    const union { float value; uint32_t bits; } u = {.value = ck_f32_from_bits(rest) * 0x1p112f};
    return ck_f32_from_bits(sign | u.bits);
}
SIMD vi vq_part(vq a, const int i) {
    vi x;
    for (int lane = 0; lane < VL; lane++) x[lane] = a.byte[i * VL + lane];
    return x;
}
SIMD vf v_from_i32(vi x) {
    vf y;
    for (int lane = 0; lane < VL; lane++) y[lane] = (float)x[lane];
    return y;
}
SIMD vi v_to_i32(vf x) { return v_bits(x + v_set1(12582912.0f)) - vi_set1(0x4b400000); }  /* below 2^22 */
SIMD vf v_load_i8(const uint8_t *p) {
    vf y;
    for (int lane = 0; lane < VL; lane++) y[lane] = (float)(int8_t)p[lane];
    return y;
}
SIMD vf v_load_f16(const uint8_t *p) {
    vf y;
    for (int lane = 0; lane < VL; lane++) y[lane] = ck_from_f16(ck_u16(p + 2 * lane));
    return y;
}
SIMD vf v_pick(const float table[16], vi index) {
    vf y;
    for (int lane = 0; lane < VL; lane++) y[lane] = table[index[lane]];
    return y;
}
#endif

#endif
