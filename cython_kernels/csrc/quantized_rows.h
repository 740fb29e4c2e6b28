/* Few rows of x . w transposed, w quantized: the sums over blocks, for fp32 x and for x rounded to 8 bits.
 *
 * Eight rows of w stand side by side (simd_rows.h), so that a vector holds the scales of all of them and nothing is summed
 * across lanes but four to one in each group. Reading eight rows at once is what hardware does not foresee: the next eight
 * are asked for line by line, in their order in memory. A row's sum has the same order whatever stands beside it. */
#ifndef CK_QUANTIZED_ROWS_H
#define CK_QUANTIZED_ROWS_H

#include "quantized_blocks.h"
#include "simd_rows.h"

/* Rows of x at most that are multiplied without packing. */
#define CK_FEW_ROWS 8
/* Rows of w whose results are gathered before bias, residual and rounding. */
#define CK_FEW_OUT 16

/* What the scales of a block's groups are made of, of eight rows. */
typedef struct {
    vs scale, offset;
    vr of_scale[4], of_offset[2];  /* a byte for each group; in Q6_K for each half of one */
} ck_scales;

INLINE ck_scales ck_read_scales_of_rows(const int format, const uint8_t *block, int64_t w_row) {
    ck_scales s = {0};
    if (format == CK_Q8_0 || format == CK_Q4_0 || format == CK_Q4_1 || format == CK_Q5_0)
        s.scale = vs_from_f16(block, w_row);
    if (format == CK_Q4_1) s.offset = vs_from_f16(block + 2, w_row);
    if (format == CK_Q4_K) {
        vr word[4];
        vr_load(word, block, w_row);
        s.scale = vs_of_f16(word[0]);
        s.offset = -vs_of_f16(word[0] >> 16);
        s.of_scale[0] = word[1] & 0x3f3f3f3f;
        s.of_scale[1] = (word[3] & 0x0f0f0f0f) | (word[1] >> 6 & 0x03030303) << 4;
        s.of_offset[0] = word[2] & 0x3f3f3f3f;
        s.of_offset[1] = (word[3] >> 4 & 0x0f0f0f0f) | (word[2] >> 6 & 0x03030303) << 4;
    }
    if (format == CK_Q6_K) {
        vr_load(s.of_scale, block + 192, w_row);
        s.scale = vs_from_f16(block + 208, w_row);
    }
    if (format == CK_MXFP4) {
        const vr e = vr_from_bytes(block, w_row), subnormal = (vr)(e < 2);
        s.scale = (vs)((subnormal & 0x00200000 * (1 + (e & 1))) | (~subnormal & (e - 1) << 23));
    }
    if (format == CK_NF4) {
        vr word[4];
        vr_load(word, block, w_row);
        s.scale = (vs)word[0];
    }
    return s;
}

/* Scales of the halves of group `j`, which are one but in Q6_K, and its offsets. */
INLINE void ck_scales_of_group(const int format, const ck_scales *s, int64_t j, vs scale[2], vs *offset) {
    scale[0] = scale[1] = s->scale;
    *offset = s->offset;
    if (format == CK_Q4_K) {
        scale[0] = vs_mul(s->scale, vs_of_byte(s->of_scale[j / 4], j % 4));
        *offset = vs_mul(s->offset, vs_of_byte(s->of_offset[j / 4], j % 4));
    }
    if (format == CK_Q6_K)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++)
            scale[h] = vs_mul(s->scale, vs_of_signed_byte(s->of_scale[j / 2], 2 * (j % 2) + h));
}

/* Asks for the part of the next rows that stands where block `b` of these does. */
INLINE void ck_prefetch_rows(const uint8_t *w, int64_t w_row, int64_t b, const int rows, const int bytes) {
    const uint8_t *ahead = w + rows * w_row + b * rows * bytes;
#pragma GCC unroll 32
    for (int at = 0; at < rows * bytes; at += 64) ck_prefetch(ahead + at);
}

/* x (k) as vs_load_twice takes it beside vs_widen: of 16 values, those that stand first, second, third and fourth in their
 * lane of 4, divided by what vs_widen multiplies with. sums: of each group, or of each half of one. Where whole rows are
 * widened, of Q8_0 and of 16-bit numbers, x is left as it is. */
INLINE void ck_arrange(const int format, float *y, float *sums, const float *x, int64_t k) {
    const int span = ck_has_two_scales(format) ? 16 : CK_GROUP;
    for (int64_t at = 0; at < k; at += span, x += span) {
        float sum = 0.0f;
        for (int v = 0; v < span; v++) sum += x[v];
        *sums++ = sum;
        for (int h = 0; h < span; h += 16)
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                const float factor = format == CK_NF4 || i == 3 ? 1.0f : ck_f32_from_bits((uint32_t)(127 - 8 * i) << 23);
#pragma GCC unroll 4
                for (int lane = 0; lane < 4; lane++) *y++ = x[h + 4 * lane + i] * factor;
            }
    }
}

/* part[i][0]: of rows p and p + 4, the products of a group of Q8_0 with that of each of n rows of x. */
INLINE void ck_multiply_bytes(const int n, const uint8_t *block, int64_t w_row, const float *x, int64_t x_row, const int p,
                              vs part[4][2][4]) {
    vs of_row[2][4];
#pragma GCC unroll 2
    for (int r = 0; r < 2; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) {
            const vs numbers = vs_load_i8(block + (p + 4 * r) * w_row + 2 + 8 * v);
#pragma GCC unroll 4
            for (int i = 0; i < n; i++) {
                const vs factors = vs_load(x + i * x_row + 8 * v);
                of_row[r][i] = v ? vs_fma(numbers, factors, of_row[r][i]) : vs_mul(numbers, factors);
            }
        }
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) part[i][0][p] = vs_fold(of_row[0][i], of_row[1][i]);
}

/* out[i * CK_FEW_OUT + r] = row r of eight . row i of n of x, which is arranged. */
INLINE void ck_dots_of_rows(const int format, const int n, const uint8_t *w, int64_t w_row, const float *x, int64_t x_row,
                            const float *sums, int64_t blocks, float *out) {
    const int64_t groups = ck_block_groups(format), bytes = ck_block_bytes(format);
    const int scales = ck_has_two_scales(format) ? 2 : 1;
    const int64_t sums_row = blocks * groups * scales;
    const uint8_t *block = w;
    vs sum[4];
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) sum[i] = vs_set1(0.0f);
    for (int64_t b = 0; b < blocks; b++, block += bytes) {
        ck_prefetch_rows(w, w_row, b, CK_ROWS, ck_block_bytes(format));
        const ck_scales of_block = ck_read_scales_of_rows(format, block, w_row);
#pragma GCC unroll 8
        for (int64_t j = 0; j < groups; j++, x += CK_GROUP, sums += scales) {
            vs part[4][2][4], scale[2], offset;
#pragma GCC unroll 4
            for (int p = 0; p < 4; p++) {
                if (format == CK_Q8_0) {
                    ck_multiply_bytes(n, block, w_row, x, x_row, p, part);
                    continue;
                }
                vq half[2];
                ck_read_halves(format, block + p * w_row, 4 * w_row, j, half);
#pragma GCC unroll 2
                for (int h = 0; h < 2; h++)
#pragma GCC unroll 4
                    for (int v = 0; v < 4; v++) {
                        const vs numbers = format == CK_NF4 ? vs_pick(ck_normal_float, half[h], v)
                                                            : vs_widen(half[h], v);
#pragma GCC unroll 4
                        for (int i = 0; i < n; i++) {
                            const vs factors = vs_load_twice(x + i * x_row + 16 * h + 4 * v);
                            part[i][h][p] = v ? vs_fma(numbers, factors, part[i][h][p]) : vs_mul(numbers, factors);
                        }
                    }
                if (scales == 1)
#pragma GCC unroll 4
                    for (int i = 0; i < n; i++) part[i][0][p] = vs_add(part[i][0][p], part[i][1][p]);
            }
            ck_scales_of_group(format, &of_block, j, scale, &offset);
#pragma GCC unroll 4
            for (int i = 0; i < n; i++) {
#pragma GCC unroll 2
                for (int h = 0; h < scales; h++) {
                    vs dot = vs_sums(part[i][h]);
                    if (ck_bias(format))
                        dot = vs_fma(vs_set1(-(float)ck_bias(format)), vs_set1(sums[i * sums_row + h]), dot);
                    sum[i] = vs_fma(dot, scale[h], sum[i]);
                }
                if (ck_has_offset(format)) sum[i] = vs_fma(offset, vs_set1(sums[i * sums_row]), sum[i]);
            }
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) vs_store(out + i * CK_FEW_OUT, sum[i]);
}

/* A row of x, rounded: 32 integers, their scale, and the sums of the integers of each half. */
typedef struct { int8_t number[CK_GROUP]; float scale, sum[2]; } ck_rounded;

/* out[r] = row r of eight . x. */
INLINE void ck_rounded_dots_of_rows(const int format, const uint8_t *w, int64_t w_row, const ck_rounded *x, int64_t blocks,
                                    float *out) {
    const int64_t groups = ck_block_groups(format), bytes = ck_block_bytes(format);
    const int two = ck_has_two_scales(format);
    const uint8_t *block = w;
    vs sum = vs_set1(0.0f);
    for (int64_t b = 0; b < blocks; b++, block += bytes) {
        ck_prefetch_rows(w, w_row, b, CK_ROWS, ck_block_bytes(format));
        const ck_scales of_block = ck_read_scales_of_rows(format, block, w_row);
#pragma GCC unroll 8
        for (int64_t j = 0; j < groups; j++, x++) {
            vq half[4][2];
            vs dot[2], scale[2], offset;
#pragma GCC unroll 4
            for (int p = 0; p < 4; p++) ck_read_halves(format, block + p * w_row, 4 * w_row, j, half[p]);
            vq_dots(dot, half, x->number, format == CK_Q8_0, two);
            ck_scales_of_group(format, &of_block, j, scale, &offset);
            const float all = x->sum[0] + x->sum[1];
#pragma GCC unroll 2
            for (int h = 0; h <= two; h++) {
                if (ck_bias(format))
                    dot[h] = vs_fma(vs_set1(-(float)ck_bias(format)), vs_set1(two ? x->sum[h] : all), dot[h]);
                sum = vs_fma(dot[h], vs_mul(scale[h], vs_set1(x->scale)), sum);
            }
            if (ck_has_offset(format)) sum = vs_fma(offset, vs_set1(x->scale * all), sum);
        }
    }
    vs_store(out, sum);
}

/* Numbers of 16 bits as they are stored: out[i * CK_FEW_OUT + r] = row r of w . row i of x, for `pair` (1 or 2) rows of w
 * and n of x. */
INLINE void ck_stored_dots(const int format, const int n, const int pair, const uint8_t *w, int64_t w_row, const float *x,
                           int64_t x_row, int64_t blocks, float *out) {
    vf sum[2][4][2];
#pragma GCC unroll 2
    for (int r = 0; r < pair; r++)
#pragma GCC unroll 4
        for (int i = 0; i < n; i++) sum[r][i][0] = sum[r][i][1] = v_zero();
    for (int64_t b = 0; b < blocks; b++, x += CK_GROUP) {
        ck_prefetch_rows(w, w_row, b, pair, ck_block_bytes(format));
#pragma GCC unroll 2
        for (int r = 0; r < pair; r++) {
            ck_group group;
            ck_read_group(format, w + r * w_row + b * ck_block_bytes(format), 0, &group);
#pragma GCC unroll 4
            for (int i = 0; i < n; i++)
#pragma GCC unroll 8
                for (int v = 0; v < CK_GROUP_PARTS; v++)
                    sum[r][i][v % 2] = v_fma(group.number[v], v_load(x + i * x_row + v * VL), sum[r][i][v % 2]);
        }
    }
#pragma GCC unroll 2
    for (int r = 0; r < pair; r++)
#pragma GCC unroll 4
        for (int i = 0; i < n; i++) out[i * CK_FEW_OUT + r] = v_sum(v_add(sum[r][i][0], sum[r][i][1]));
}

/* `some` (1 or 4) rows of x and any number of w: those that are fewer than eight are multiplied one by one, eight times
 * side by side. */
INLINE void ck_exact_dots(const int format, const int some, int64_t rows, const uint8_t *w, int64_t w_row, const float *x,
                          int64_t x_row, const float *sums, int64_t blocks, float *out) {
    int64_t r = 0;
    if (!ck_has_scale(format)) {
        if (some == 1)
            for (; r + 2 <= rows; r += 2) ck_stored_dots(format, 1, 2, w + r * w_row, w_row, x, x_row, blocks, out + r);
        for (; r < rows; r++) ck_stored_dots(format, some, 1, w + r * w_row, w_row, x, x_row, blocks, out + r);
        return;
    }
    float same[4 * CK_FEW_OUT];
    while (r < rows) {
        const int whole = r + CK_ROWS <= rows;
        ck_dots_of_rows(format, some, w + r * w_row, whole ? w_row : 0, x, x_row, sums, blocks, whole ? out + r : same);
        if (!whole)
            for (int i = 0; i < some; i++) out[i * CK_FEW_OUT + r] = same[i * CK_FEW_OUT];
        r += whole ? CK_ROWS : 1;
    }
}

/* As ck_exact_dots for one row of rounded x. */
INLINE void ck_rounded_dots(const int format, int64_t rows, const uint8_t *w, int64_t w_row, const ck_rounded *x,
                            int64_t blocks, float *out) {
    float same[CK_ROWS];
    int64_t r = 0;
    while (r < rows) {
        const int whole = r + CK_ROWS <= rows;
        ck_rounded_dots_of_rows(format, w + r * w_row, whole ? w_row : 0, x, blocks, whole ? out + r : same);
        if (!whole) out[r] = same[0];
        r += whole ? CK_ROWS : 1;
    }
}

#define CK_DOTS_FUNCTIONS(format, groups, bytes)                                                            \
    static __attribute__((noinline)) void ck_dots_##format(int64_t rows, int64_t n, const uint8_t *w, int64_t w_row, \
                                                           const float *x, int64_t x_row, const float *sums, \
                                                           int64_t blocks, float *out) {                    \
        const int64_t sums_row = blocks * groups * (ck_has_two_scales(format) ? 2 : 1);                     \
        for (; n >= 4; n -= 4, x += 4 * x_row, sums += 4 * sums_row, out += 4 * CK_FEW_OUT)                 \
            ck_exact_dots(format, 4, rows, w, w_row, x, x_row, sums, blocks, out);                          \
        for (; n; n--, x += x_row, sums += sums_row, out += CK_FEW_OUT)                                     \
            ck_exact_dots(format, 1, rows, w, w_row, x, x_row, sums, blocks, out);                          \
    }                                                                                                       \
    static __attribute__((noinline)) void ck_rounded_##format(int64_t rows, const uint8_t *w, int64_t w_row, \
                                                              const ck_rounded *x, int64_t blocks, float *out) { \
        if (ck_has_integers(format)) ck_rounded_dots(format, rows, w, w_row, x, blocks, out);               \
    }                                                                                                       \
    static void ck_arrange_##format(float *y, float *sums, const float *x, int64_t k) {                     \
        if (ck_has_scale(format) && format != CK_Q8_0) ck_arrange(format, y, sums, x, k);                   \
        else memcpy(y, x, (size_t)k * sizeof *y);                                                           \
    }
CK_EACH_FORMAT(CK_DOTS_FUNCTIONS)
#undef CK_DOTS_FUNCTIONS

/* What one format takes. */
typedef struct {
    void (*dots)(int64_t rows, int64_t n, const uint8_t *w, int64_t w_row, const float *x, int64_t x_row, const float *sums,
                 int64_t blocks, float *out);
    void (*rounded)(int64_t rows, const uint8_t *w, int64_t w_row, const ck_rounded *x, int64_t blocks, float *out);
    void (*arrange)(float *y, float *sums, const float *x, int64_t k);
} ck_few;
#define CK_FEW_ENTRY(format, groups, bytes) {ck_dots_##format, ck_rounded_##format, ck_arrange_##format},
static const ck_few ck_all_few[CK_FORMATS] = {{NULL, NULL, NULL}, CK_EACH_FORMAT(CK_FEW_ENTRY)};
#undef CK_FEW_ENTRY

#endif
