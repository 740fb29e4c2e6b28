/* Eight rows of quantized weights side by side, each in a lane of fp32: 32 bytes are 16 of a row and 16 of the fourth row
 * after it (vq_load_two), so that four such vectors are the eight rows, and one vector is their sums. For AVX2 and AVX-512,
 * NEON, and in plain C. */
#ifndef CK_SIMD_ROWS_H
#define CK_SIMD_ROWS_H

#include "simd_bytes.h"

#define CK_ROWS 8
typedef uint32_t vr __attribute__((vector_size(4 * CK_ROWS)));  /* of each row 32 bits */
typedef int32_t vr_signed __attribute__((vector_size(4 * CK_ROWS)));

#if defined(CK_ISA_AVX2) || defined(CK_ISA_AVX512)
typedef __m256 vs;
SIMD vs vs_set1(float x) { return _mm256_set1_ps(x); }
SIMD vs vs_load(const float *p) { return _mm256_loadu_ps(p); }
SIMD void vs_store(float *p, vs x) { _mm256_storeu_ps(p, x); }
/* 4 numbers, then the same 4. */
SIMD vs vs_load_twice(const float *p) { return _mm256_broadcast_ps((const __m128 *)p); }
SIMD vs vs_add(vs a, vs b) { return _mm256_add_ps(a, b); }
SIMD vs vs_mul(vs a, vs b) { return _mm256_mul_ps(a, b); }
SIMD vs vs_fma(vs a, vs b, vs c) { return _mm256_fmadd_ps(a, b, c); }
/* fp16 at p, p + apart ... */
SIMD vs vs_from_f16(const uint8_t *p, int64_t apart) {
    __m128i x = _mm_cvtsi32_si128(ck_u16(p));
    x = _mm_insert_epi16(x, ck_u16(p + apart), 1);
    x = _mm_insert_epi16(x, ck_u16(p + 2 * apart), 2);
    x = _mm_insert_epi16(x, ck_u16(p + 3 * apart), 3);
    x = _mm_insert_epi16(x, ck_u16(p + 4 * apart), 4);
    x = _mm_insert_epi16(x, ck_u16(p + 5 * apart), 5);
    x = _mm_insert_epi16(x, ck_u16(p + 6 * apart), 6);
    return _mm256_cvtph_ps(_mm_insert_epi16(x, ck_u16(p + 7 * apart), 7));
}
/* The lower 16 bits of each row, an fp16. */
SIMD vs vs_of_f16(vr a) {
    const __m256i low = (__m256i)(a & 0xffff);
    return _mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1)));
}
/* 16 bytes of each row, the first 4 in word[0]. */
SIMD void vr_load(vr word[4], const uint8_t *p, int64_t apart) {
    const vq a = vq_load_two(p, 4 * apart), b = vq_load_two(p + apart, 4 * apart);
    const vq c = vq_load_two(p + 2 * apart, 4 * apart), d = vq_load_two(p + 3 * apart, 4 * apart);
    const vq low = _mm256_unpacklo_epi32(a, b), high = _mm256_unpackhi_epi32(a, b);
    const vq low2 = _mm256_unpacklo_epi32(c, d), high2 = _mm256_unpackhi_epi32(c, d);
    word[0] = (vr)_mm256_unpacklo_epi64(low, low2);
    word[1] = (vr)_mm256_unpackhi_epi64(low, low2);
    word[2] = (vr)_mm256_unpacklo_epi64(high, high2);
    word[3] = (vr)_mm256_unpackhi_epi64(high, high2);
}
/* A byte at p, p + apart ... */
SIMD vr vr_from_bytes(const uint8_t *p, int64_t apart) {
    __m128i x = _mm_cvtsi32_si128(p[0]);
    x = _mm_insert_epi8(x, p[apart], 1);
    x = _mm_insert_epi8(x, p[2 * apart], 2);
    x = _mm_insert_epi8(x, p[3 * apart], 3);
    x = _mm_insert_epi8(x, p[4 * apart], 4);
    x = _mm_insert_epi8(x, p[5 * apart], 5);
    x = _mm_insert_epi8(x, p[6 * apart], 6);
    return (vr)_mm256_cvtepu8_epi32(_mm_insert_epi8(x, p[7 * apart], 7));
}
/* Byte i of each 32-bit lane, times 2^(8 i) but for the last one: nothing is moved further than it must be. */
SIMD vs vs_widen(vq a, const int i) {
    return _mm256_cvtepi32_ps(i == 3 ? _mm256_srli_epi32(a, 24) : _mm256_and_si256(a, _mm256_set1_epi32(0xff << 8 * i)));
}
/* 8 signed bytes. */
SIMD vs vs_load_i8(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
/* The lanes 0 to 3 of a and of b, plus their lanes 4 to 7. */
SIMD vs vs_fold(vs a, vs b) {
    return vs_add(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}
/* table[byte i of each 32-bit lane], for bytes below 16. */
SIMD vs vs_pick(const float table[16], vq a, const int i) {
    const __m256i index = _mm256_srli_epi32(a, 8 * i);
    const vs low = _mm256_permutevar8x32_ps(vs_load(table), index);
    const vs high = _mm256_permutevar8x32_ps(vs_load(table + 8), index);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));  /* by bit 3 */
}
/* Lane r: the sum of the 4 lanes that d[r % 4] has of row r. */
SIMD vs vs_sums(const vs d[4]) {
    const vs a = vs_add(_mm256_unpacklo_ps(d[0], d[1]), _mm256_unpackhi_ps(d[0], d[1]));
    const vs b = vs_add(_mm256_unpacklo_ps(d[2], d[3]), _mm256_unpackhi_ps(d[2], d[3]));
    return vs_add(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
}
SIMD vs vs_int_sums(const __m256i d[4]) {
    const __m256i a = _mm256_add_epi32(_mm256_unpacklo_epi32(d[0], d[1]), _mm256_unpackhi_epi32(d[0], d[1]));
    const __m256i b = _mm256_add_epi32(_mm256_unpacklo_epi32(d[2], d[3]), _mm256_unpackhi_epi32(d[2], d[3]));
    return _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b)));
}
/* Sums of the products of 4 neighbouring bytes of a and b, b in [-127, 127]. No pair of products leaves 16 bits. */
SIMD __m256i vq_products(vq a, vq b, const int a_is_signed) {
    const __m256i pairs = a_is_signed ? _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a))
                                      : _mm256_maddubs_epi16(a, b);
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
/* dot[h]: of each row, the products with the 16 bytes of x from 16 h on; of bytes up to 63 that are not signed four products
 * fit in 16 bits. Or dot[0] alone: with all 32. */
SIMD void vq_dots(vs dot[2], const vq half[4][2], const int8_t *x, const int is_signed, const int apart) {
    const vq first = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)x));
    const vq second = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(x + 16)));
    __m256i low[4], high[4];
#pragma GCC unroll 4
    for (int p = 0; p < 4; p++) {
        if (!is_signed && !apart) {
            low[p] = _mm256_madd_epi16(_mm256_add_epi16(_mm256_maddubs_epi16(half[p][0], first),
                                                        _mm256_maddubs_epi16(half[p][1], second)), _mm256_set1_epi16(1));
            continue;
        }
        low[p] = vq_products(half[p][0], first, is_signed);
        high[p] = vq_products(half[p][1], second, is_signed);
        if (!apart) low[p] = _mm256_add_epi32(low[p], high[p]);
    }
    dot[0] = vs_int_sums(low);
    if (apart) dot[1] = vs_int_sums(high);
}
#elif defined(CK_ISA_NEON)
#include "simd_neon_rows.h"
#else
typedef float vs __attribute__((vector_size(32)));
#define EACH_ROW(value)                                                                                     \
    vs y;                                                                                                   \
    for (int r = 0; r < CK_ROWS; r++) y[r] = (value);                                                       \
    return y
SIMD vs vs_set1(float x) { EACH_ROW(x); }
SIMD vs vs_load(const float *p) { EACH_ROW(p[r]); }
SIMD void vs_store(float *p, vs x) {
    for (int r = 0; r < CK_ROWS; r++) p[r] = x[r];
}
/* 4 numbers, then the same 4. */
PLAIN vs vs_load_twice(const float *p) { EACH_ROW(p[r % 4]); }
SIMD vs vs_add(vs a, vs b) { return a + b; }
SIMD vs vs_mul(vs a, vs b) { return a * b; }
SIMD vs vs_fma(vs a, vs b, vs c) { return a * b + c; }
/* fp16 at p, p + apart ... */
PLAIN vs vs_from_f16(const uint8_t *p, int64_t apart) { EACH_ROW(ck_from_f16(ck_u16(p + r * apart))); }
/* The lower 16 bits of each row, an fp16. */
PLAIN vs vs_of_f16(vr a) { EACH_ROW(ck_from_f16((uint16_t)a[r])); }
/* 16 bytes of each row, the first 4 in word[0]. */
PLAIN void vr_load(vr word[4], const uint8_t *p, int64_t apart) {
    for (int c = 0; c < 4; c++)
        for (int r = 0; r < CK_ROWS; r++) word[c][r] = ck_u32(p + r * apart + 4 * c);
}
/* 8 signed bytes. */
PLAIN vs vs_load_i8(const uint8_t *p) { EACH_ROW((float)(int8_t)p[r]); }
/* The lanes 0 to 3 of a and of b, plus their lanes 4 to 7. */
PLAIN vs vs_fold(vs a, vs b) { EACH_ROW(r < 4 ? a[r] + a[r + 4] : b[r - 4] + b[r]); }
/* A byte at p, p + apart ... */
PLAIN vr vr_from_bytes(const uint8_t *p, int64_t apart) {
    vr y;
    for (int r = 0; r < CK_ROWS; r++) y[r] = p[r * apart];
    return y;
}
/* Byte i of each 32-bit lane, times 2^(8 i) but for the last one. */
PLAIN vs vs_widen(vq a, const int i) { EACH_ROW((float)((uint32_t)(uint8_t)a.byte[4 * r + i] << (i < 3 ? 8 * i : 0))); }
/* table[byte i of each 32-bit lane], for bytes below 16. */
PLAIN vs vs_pick(const float table[16], vq a, const int i) { EACH_ROW(table[a.byte[4 * r + i]]); }
/* Lane r: the sum of the 4 lanes that d[r % 4] has of row r. */
PLAIN vs vs_sums(const vs d[4]) {
    EACH_ROW((d[r % 4][r / 4 * 4] + d[r % 4][r / 4 * 4 + 2]) + (d[r % 4][r / 4 * 4 + 1] + d[r % 4][r / 4 * 4 + 3]));
}
#undef EACH_ROW
/* dot[h]: of each row, the products with the 16 bytes of x from 16 h on. Or dot[0] alone: with all 32. */
PLAIN void vq_dots(vs dot[2], const vq half[4][2], const int8_t *x, const int is_signed, const int apart) {
    (void)is_signed;
    for (int r = 0; r < CK_ROWS; r++) {
        int sum[2] = {0, 0};
        for (int h = 0; h < 2; h++)
            for (int i = 0; i < 16; i++) sum[h] += half[r % 4][h].byte[r / 4 * 16 + i] * x[16 * h + i];
        dot[0][r] = (float)(apart ? sum[0] : sum[0] + sum[1]);
        if (apart) dot[1][r] = (float)sum[1];
    }
}
#endif

/* Byte i of each row. */
SIMD vs vs_of_byte(vr a, const int i) { return __builtin_convertvector((vr_signed)(a >> 8 * i & 0xff), vs); }
SIMD vs vs_of_signed_byte(vr a, const int i) {
    return __builtin_convertvector((vr_signed)(a << (24 - 8 * i)) >> 24, vs);
}

#endif
