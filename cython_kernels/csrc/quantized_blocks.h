/* Quantized weights: what the blocks of each format hold (docs/quantized.md), read in groups of 32 values.
 *
 * A row of w is a run of blocks; a block has one group, or 2 (NF4) or 8 (the K formats). A group's value is
 * scale * number + offset, of numbers that are small integers, those of a table, or the values themselves. Layouts are
 * those of ggml (ggml-common.h), little-endian; that of NF4 is ours: an fp32 scale, then each group's 16 bytes. */
#ifndef CK_QUANTIZED_BLOCKS_H
#define CK_QUANTIZED_BLOCKS_H

#include "simd_bytes.h"

#define CK_GROUP 32                     /* values */
#define CK_GROUP_PARTS (CK_GROUP / VL)  /* vectors */

/* Formats in the order of block_formats.py, with groups and bytes of a block. */
#define CK_EACH_FORMAT(X)                                                                                   \
    X(CK_Q8_0, 1, 34) X(CK_Q4_0, 1, 18) X(CK_Q4_1, 1, 20) X(CK_Q5_0, 1, 22) X(CK_Q4_K, 8, 144) X(CK_Q6_K, 8, 210)   \
    X(CK_MXFP4, 1, 17) X(CK_NF4, 2, 36) X(CK_STORED_BF16, 1, 64) X(CK_STORED_F16, 1, 64)
#define CK_FORMAT_NAME(format, groups, bytes) format,
enum { CK_NOT_QUANTIZED, CK_EACH_FORMAT(CK_FORMAT_NAME) CK_FORMATS };
#undef CK_FORMAT_NAME

INLINE int ck_block_groups(const int format) {
    return format == CK_Q4_K || format == CK_Q6_K ? 8 : format == CK_NF4 ? 2 : 1;
}
INLINE int ck_block_bytes(const int format) {
#define CK_FORMAT_BYTES(name, groups, bytes) if (format == name) return bytes;
    CK_EACH_FORMAT(CK_FORMAT_BYTES)
#undef CK_FORMAT_BYTES
    return 0;
}
INLINE int ck_has_offset(const int format) { return format == CK_Q4_1 || format == CK_Q4_K; }
INLINE int ck_has_scale(const int format) { return format != CK_STORED_BF16 && format != CK_STORED_F16; }
INLINE int ck_has_integers(const int format) { return ck_has_scale(format) && format != CK_NF4; }
INLINE int ck_has_two_scales(const int format) { return format == CK_Q6_K; }

/* E2M1 of the OCP Microscaling Formats, doubled, and 12, so that none is negative; scales are halved. */
static const int8_t ck_e2m1[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
/* NormalFloat 4 (Dettmers et al. 2023, appendix E). */
static const float ck_normal_float[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
    -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f,
    0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

/* What is taken from each number as it is read; none but those of Q8_0 is negative before. */
INLINE int ck_bias(const int format) {
    return format == CK_Q4_0 ? 8 : format == CK_MXFP4 ? 12 : format == CK_Q5_0 ? 16 : format == CK_Q6_K ? 32 : 0;
}

/* The numbers of group `j` of a block, and of that of another row, whose block stands `apart` bytes further on, before the
 * bias is taken off (NF4: codes): half h has values 16 h to 16 h + 15 of the first row, then those of the other. */
INLINE void ck_read_halves(const int format, const uint8_t *block, int64_t apart, int64_t j, vq half[2]) {
    if (format == CK_Q8_0 || format == CK_Q4_K || format == CK_Q6_K) {
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            if (format == CK_Q8_0) half[h] = vq_load_two(block + 2 + 16 * h, apart);
            else if (format == CK_Q4_K) {
                const vq both = vq_load_two(block + 16 + 32 * (j / 2) + 16 * h, apart);
                half[h] = j & 1 ? vq_high_nibbles(both) : vq_low_nibbles(both);
            } else {
                const int64_t quarter = j % 4;
                const vq low = vq_load_two(block + 64 * (j / 4) + 32 * (quarter & 1) + 16 * h, apart);
                const vq high = vq_load_two(block + 128 + 32 * (j / 4) + 16 * h, apart);
                const vq two = quarter == 0   ? vq_pair_of_bits(high, 0)
                               : quarter == 1 ? vq_pair_of_bits(high, 1)
                               : quarter == 2 ? vq_pair_of_bits(high, 2)
                                              : vq_pair_of_bits(high, 3);
                half[h] = vq_or(quarter < 2 ? vq_low_nibbles(low) : vq_high_nibbles(low), two);
            }
        }
        return;
    }
    const vq both = vq_load_two(block + (format == CK_Q4_0   ? 2
                                         : format == CK_Q5_0 ? 6
                                         : format == CK_MXFP4 ? 1
                                         : format == CK_NF4   ? 4 + 16 * j
                                                              : 4), apart);
    half[0] = vq_low_nibbles(both);
    half[1] = vq_high_nibbles(both);
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        if (format == CK_MXFP4) half[h] = vq_pick(ck_e2m1, half[h]);
        if (format == CK_Q5_0) half[h] = vq_or(half[h], vq_from_bits(block + 2, apart, h, 16));
    }
}

/* Scales of the first 16 values of group `j` and of the others, which are two in Q6_K alone, and the offset. */
INLINE void ck_read_scales(const int format, const uint8_t *block, int64_t j, float scale[2], float *offset) {
    *offset = 0.0f;
    switch (format) {
    case CK_Q8_0:
    case CK_Q4_0:
    case CK_Q5_0:
        scale[0] = ck_from_f16(ck_u16(block));
        break;
    case CK_Q4_1:
        scale[0] = ck_from_f16(ck_u16(block));
        *offset = ck_from_f16(ck_u16(block + 2));
        break;
    case CK_Q4_K: {
        const uint8_t *s = block + 4;
        const int of_scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        const int of_offset = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4;
        scale[0] = ck_from_f16(ck_u16(block)) * (float)of_scale;
        *offset = -(ck_from_f16(ck_u16(block + 2)) * (float)of_offset);
        break;
    }
    case CK_Q6_K: {
        const float all = ck_from_f16(ck_u16(block + 208));
        scale[0] = all * (float)(int8_t)block[192 + 2 * j];
        scale[1] = all * (float)(int8_t)block[193 + 2 * j];
        return;
    }
    case CK_MXFP4: {
        const uint32_t e = block[0];
        scale[0] = ck_f32_from_bits(e < 2 ? 0x00200000u << e : (e - 1) << 23);
        break;
    }
    case CK_NF4:
        scale[0] = ck_f32_from_bits(ck_u32(block));
        break;
    default:
        scale[0] = 1.0f;
    }
    scale[1] = scale[0];
}

typedef struct {
    vf number[CK_GROUP_PARTS];
    float scale[2], offset;  /* of the first 16 values, and of the others */
} ck_group;

/* Group `j` of a block. */
INLINE void ck_read_group(const int format, const uint8_t *block, int64_t j, ck_group *group) {
    vq q;
    if (!ck_has_scale(format)) q = vq_load(block);
    else {
        vq half[2];
        ck_read_halves(format, block, 0, j, half);
        q = vq_join(half[0], half[1]);
        if (ck_bias(format)) q = vq_sub(q, ck_bias(format));
    }
    ck_read_scales(format, block, j, group->scale, &group->offset);
#pragma GCC unroll 8
    for (int i = 0; i < CK_GROUP_PARTS; i++)
        group->number[i] = format == CK_Q8_0            ? v_load_i8(block + 2 + i * VL)
                           : format == CK_STORED_BF16   ? v_load_bf16_n((const uint16_t *)block + i * VL, VL)
                           : format == CK_STORED_F16    ? v_load_f16(block + 2 * i * VL)
                           : format == CK_NF4           ? v_pick(ck_normal_float, vq_part(q, i))
                                                        : v_from_i32(vq_part(q, i));
}

/* The group's values from i VL on, with the two roundings of the specification. */
INLINE vf ck_group_values(const int format, const ck_group *group, const int i) {
    vf x = group->number[i];
    if (ck_has_scale(format)) x = v_mul(x, v_set1(group->scale[i * VL / 16 % 2]));
    if (ck_has_offset(format)) x = v_add(x, v_set1(group->offset));
    return x;
}

/* The place of group g of a row, and its number in its block. */
INLINE const uint8_t *ck_block_of(const int format, const uint8_t *row, int64_t g) {
    return row + g / ck_block_groups(format) * ck_block_bytes(format);
}

#endif
