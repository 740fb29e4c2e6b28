/* Products with quantized weights. Many rows, and input gradients: the packed matmul (gemm.h), whose panels of b are read
 * from the blocks (quantized_pack.h). Few rows, as in decoding, are bound by memory: each thread streams its rows of w once,
 * and sums in fp32 registers. Included once per storage type. */

/* Rows of x at most that are multiplied without packing. */
#define CK_FEW_ROWS 8
/* Rows of w whose results are gathered before bias, residual and rounding. */
#define CK_FEW_OUT 16

#ifndef CK_QUANTIZED_DOTS
#define CK_QUANTIZED_DOTS
/* out[i * CK_FEW_OUT + r] = row r of w . row i of x, for `pair` (1 or 2) rows of w and n of x. sums: of each group of x.
 * The order of additions to an element depends on the format alone. */
INLINE void ck_dots(const int format, const int n, const int pair, const uint8_t *w, int64_t w_row, const float *x,
                    int64_t x_row, const float *sums, int64_t blocks, float *out) {
    const int ways = ck_has_scale(format) ? 1 : 2;  /* of adding up, where each vector is added by itself */
    const int64_t groups = ck_block_groups(format), sums_row = blocks * groups;
    const int scales = ck_has_two_scales(format) ? 2 : 1, each = CK_GROUP_PARTS / scales;
    vf sum[2][4][2];
    float offsets[2][4];
#pragma GCC unroll 2
    for (int r = 0; r < pair; r++)
#pragma GCC unroll 4
        for (int i = 0; i < n; i++) {
            sum[r][i][0] = sum[r][i][1] = v_zero();
            offsets[r][i] = 0.0f;
        }
    for (int64_t b = 0; b < blocks; b++, w += ck_block_bytes(format)) {
        ck_prefetch(w + 1024);
#pragma GCC unroll 8
        for (int64_t j = 0; j < groups; j++) {
            const float *xs = x + (b * groups + j) * CK_GROUP;
#pragma GCC unroll 2
            for (int r = 0; r < pair; r++) {
                ck_group group;
                ck_read_group(format, w + r * w_row, j, &group);
#pragma GCC unroll 4
                for (int i = 0; i < n; i++) {
                    const float *at = xs + i * x_row;
                    if (!ck_has_scale(format)) {
#pragma GCC unroll 8
                        for (int v = 0; v < CK_GROUP_PARTS; v++)
                            sum[r][i][v % ways] = v_fma(group.number[v], v_load(at + v * VL), sum[r][i][v % ways]);
                        continue;
                    }
#pragma GCC unroll 2
                    for (int h = 0; h < scales; h++) {
                        const int from = h * each;
                        vf part = v_mul(group.number[from], v_load(at + from * VL));
#pragma GCC unroll 8
                        for (int v = from + 1; v < from + each; v++)
                            part = v_fma(group.number[v], v_load(at + v * VL), part);
                        sum[r][i][0] = v_fma(part, v_set1(group.scale[h]), sum[r][i][0]);
                    }
                    if (ck_has_offset(format)) offsets[r][i] += group.offset * sums[i * sums_row + b * groups + j];
                }
            }
        }
    }
#pragma GCC unroll 2
    for (int r = 0; r < pair; r++)
#pragma GCC unroll 4
        for (int i = 0; i < n; i++)
            out[i * CK_FEW_OUT + r] =
                v_sum(ways == 2 ? v_add(sum[r][i][0], sum[r][i][1]) : sum[r][i][0]) + offsets[r][i];
}

/* The same for `rows` rows of w and any n. */
INLINE void ck_dots_of(const int format, int64_t rows, int64_t n, const uint8_t *w, int64_t w_row, const float *x,
                       int64_t x_row, const float *sums, int64_t blocks, float *out) {
    const int64_t sums_row = blocks * ck_block_groups(format);
    while (n) {
        int64_t r = 0;
        const int64_t some = n >= 4 ? 4 : 1;
        if (some == 4) for (; r < rows; r++) ck_dots(format, 4, 1, w + r * w_row, w_row, x, x_row, sums, blocks, out + r);
        else for (; r + 2 <= rows; r += 2) ck_dots(format, 1, 2, w + r * w_row, w_row, x, x_row, sums, blocks, out + r);
        if (r < rows) ck_dots(format, 1, 1, w + r * w_row, w_row, x, x_row, sums, blocks, out + r);
        n -= some;
        x += some * x_row;
        sums += some * sums_row;
        out += some * CK_FEW_OUT;
    }
}

#define CK_DOTS_FUNCTION(format, groups, bytes)                                                             \
    static __attribute__((noinline)) void ck_dots_##format(int64_t rows, int64_t n, const uint8_t *w, int64_t w_row, \
                                                           const float *x, int64_t x_row, const float *sums, \
                                                           int64_t blocks, float *out) {                    \
        ck_dots_of(format, rows, n, w, w_row, x, x_row, sums, blocks, out);                                 \
    }
CK_EACH_FORMAT(CK_DOTS_FUNCTION)
#undef CK_DOTS_FUNCTION
#define CK_DOTS_ENTRY(format, groups, bytes) ck_dots_##format,
static void (*const ck_all_dots[CK_FORMATS])(int64_t, int64_t, const uint8_t *, int64_t, const float *, int64_t,
                                             const float *, int64_t, float *) = {NULL, CK_EACH_FORMAT(CK_DOTS_ENTRY)};
#undef CK_DOTS_ENTRY

/* A row of x, rounded: 32 integers, and their scale, in each group. */
typedef struct { int8_t number[CK_GROUP]; float scale, sum; } ck_rounded;

/* x . w transposed with x's groups of 32 rounded to 8 bits, for `pair` rows of w: products of integers. */
INLINE void ck_rounded_dots(const int format, const int pair, const uint8_t *w, int64_t w_row, const ck_rounded *x,
                            int64_t blocks, float *out) {
    vs sum[2] = {vs_zero(), vs_zero()};
    float offsets[2] = {0.0f, 0.0f};
    const int64_t groups = ck_block_groups(format);
    for (int64_t b = 0; b < blocks; b++, w += ck_block_bytes(format)) {
        ck_prefetch(w + 1024);
#pragma GCC unroll 8
        for (int64_t j = 0; j < groups; j++) {
            const ck_rounded *at = x + b * groups + j;
            const vq numbers = vq_load((const uint8_t *)at->number);
#pragma GCC unroll 2
            for (int r = 0; r < pair; r++) {
                ck_group group;
                ck_read_group(format, w + r * w_row, j, &group);
                sum[r] = vs_add_dots(sum[r], group.integer, numbers, ck_has_offset(format), group.scale[0] * at->scale,
                                     ck_has_two_scales(format), group.scale[1] * at->scale);
                if (ck_has_offset(format)) offsets[r] += group.offset * at->sum;
            }
        }
    }
#pragma GCC unroll 2
    for (int r = 0; r < pair; r++) out[r] = vs_sum(sum[r]) + offsets[r];
}
#define CK_ROUNDED_FUNCTION(format, groups, bytes)                                                          \
    static __attribute__((noinline)) void ck_rounded_##format(int64_t rows, const uint8_t *w, int64_t w_row, \
                                                              const ck_rounded *x, int64_t blocks, float *out) { \
        if (!ck_has_integers(format)) return;                                                               \
        int64_t r = 0;                                                                                      \
        for (; r + 2 <= rows; r += 2) ck_rounded_dots(format, 2, w + r * w_row, w_row, x, blocks, out + r); \
        if (r < rows) ck_rounded_dots(format, 1, w + r * w_row, w_row, x, blocks, out + r);                 \
    }
CK_EACH_FORMAT(CK_ROUNDED_FUNCTION)
#undef CK_ROUNDED_FUNCTION
#define CK_ROUNDED_ENTRY(format, groups, bytes) ck_rounded_##format,
static void (*const ck_all_rounded[CK_FORMATS])(int64_t, const uint8_t *, int64_t, const ck_rounded *, int64_t, float *) = {
    NULL, CK_EACH_FORMAT(CK_ROUNDED_ENTRY)};
#undef CK_ROUNDED_ENTRY

/* `groups` groups of a row, from `first` on, as fp32. */
INLINE void ck_row_values(const int format, float *y, const uint8_t *row, int64_t first, int64_t groups) {
    for (int64_t g = first; g < first + groups; g++, y += CK_GROUP) {
        ck_group group;
        ck_read_group(format, ck_block_of(format, row, g), g % ck_block_groups(format), &group);
#pragma GCC unroll 8
        for (int i = 0; i < CK_GROUP_PARTS; i++) v_store(y + i * VL, ck_group_values(format, &group, i));
    }
}
#define CK_VALUES_FUNCTION(format, groups, bytes)                                                           \
    static __attribute__((noinline)) void ck_values_##format(float *y, const uint8_t *row, int64_t first,   \
                                                             int64_t count) {                               \
        ck_row_values(format, y, row, first, count);                                                        \
    }
CK_EACH_FORMAT(CK_VALUES_FUNCTION)
#undef CK_VALUES_FUNCTION
#define CK_VALUES_ENTRY(format, groups, bytes) ck_values_##format,
static void (*const ck_all_values[CK_FORMATS])(float *, const uint8_t *, int64_t, int64_t) = {
    NULL, CK_EACH_FORMAT(CK_VALUES_ENTRY)};
#undef CK_VALUES_ENTRY
#endif

/* y = x . w transposed + bias + residual for few rows of x. */
INLINE void FN(few_rows)(const ck_gemm_args *g, const ck_team *team, const int c_is_f32) {
    _Alignas(64) float tile[CK_FEW_ROWS * CK_FEW_OUT];
    const int64_t groups = g->k / CK_GROUP;
    float *sums = (float *)team->scratch, *widened = sums + ck_round_up(g->m * groups, 16);
    const float *x = CK_STORAGE == CK_F32 ? (const float *)g->a : widened;
    const int64_t x_row = CK_STORAGE == CK_F32 ? g->a_row : g->k;
    const ck_range range = ck_split(g->n, CK_FEW_OUT, team->size, team->index);
    if (range.begin == range.end) return;
    for (int64_t i = 0; i < g->m; i++)
        for (int64_t at = 0; at < g->k; at += CK_GROUP) {
            vf sum = v_zero();
#pragma GCC unroll 8
            for (int v = 0; v < CK_GROUP; v += VL) {
                const vf part = r_load_n((const real *)g->a + i * g->a_row + at + v, VL);
                if (CK_STORAGE != CK_F32) v_store(widened + i * g->k + at + v, part);
                sum = v_add(sum, part);
            }
            sums[i * groups + at / CK_GROUP] = v_sum(sum);
        }
    const int64_t blocks = g->k / g->block_values;
    for (int64_t o = range.begin; o < range.end; o += CK_FEW_OUT) {
        const int64_t rows = ck_min(CK_FEW_OUT, range.end - o);
        ck_all_dots[g->format](rows, g->m, (const uint8_t *)g->b + o * g->block_row, g->block_row, x, x_row, sums, blocks,
                               tile);
        const int64_t c_bytes = c_is_f32 ? 4 : sizeof(real);
        FN(finish)((char *)g->c + o * c_bytes, c_is_f32, g->c_row, tile, CK_FEW_OUT, g->m, rows, 0,
                   g->bias ? g->bias + o : NULL, g->residual ? (const char *)g->residual + o * c_bytes : NULL,
                   g->residual_row);
    }
}

/* 32 of x to 8 bits: the largest magnitude is 127. What is no number makes the scale one, too. */
INLINE void FN(round_group)(ck_rounded *y, const real *x) {
    vf part[CK_GROUP_PARTS], largest = v_zero(), nothing = v_zero();
#pragma GCC unroll 8
    for (int v = 0; v < CK_GROUP_PARTS; v++) {
        part[v] = r_load_n(x + v * VL, VL);
        largest = v_max(v_abs(part[v]), largest);
        nothing = v_fma(part[v], v_zero(), nothing);
    }
    const float most = v_largest(largest);
    const vf inverse = v_set1(most > 0.0f ? 127.0f / most : 0.0f);
    int32_t numbers[CK_GROUP], sum = 0;
#pragma GCC unroll 8
    for (int v = 0; v < CK_GROUP_PARTS; v++)
        v_store((float *)numbers + v * VL, v_from_bits(v_to_i32(v_mul(part[v], inverse))));
    for (int i = 0; i < CK_GROUP; i++) {
        y->number[i] = (int8_t)numbers[i];
        sum += numbers[i];
    }
    y->scale = most / 127.0f + v_sum(nothing);
    y->sum = y->scale * (float)sum;
}

/* y = x . w transposed + bias + residual, with x's groups rounded to 8 bits; rows of x go one by one over some of w's. */
INLINE void FN(rounded_rows)(const ck_gemm_args *g, const ck_team *team, const int c_is_f32) {
    _Alignas(64) float tile[CK_FEW_ROWS * CK_FEW_OUT];
    const int64_t groups = g->k / CK_GROUP, blocks = g->k / g->block_values, c_bytes = c_is_f32 ? 4 : sizeof(real);
    const int64_t fit = ck_max(1, ck_min(CK_FEW_ROWS, CK_SCRATCH_BYTES / ck_max(1, groups * (int64_t)sizeof(ck_rounded))));
    const ck_range range = ck_split(g->n, CK_FEW_OUT, team->size, team->index);
    ck_rounded *rounded = (ck_rounded *)team->scratch;
    for (int64_t first = 0; first < g->m; first += fit) {
        const int64_t m = ck_min(fit, g->m - first);
        for (int64_t i = 0; i < m * groups; i++)
            FN(round_group)(rounded + i,
                            (const real *)g->a + (first + i / groups) * g->a_row + i % groups * CK_GROUP);
        for (int64_t o = range.begin; o < range.end; o += CK_FEW_OUT) {
            const int64_t rows = ck_min(CK_FEW_OUT, range.end - o);
            for (int64_t i = 0; i < m; i++)
                ck_all_rounded[g->format](rows, (const uint8_t *)g->b + o * g->block_row, g->block_row,
                                          rounded + i * groups, blocks, tile + i * CK_FEW_OUT);
            FN(finish)((char *)g->c + (first * g->c_row + o) * c_bytes, c_is_f32, g->c_row, tile, CK_FEW_OUT, m, rows, 0,
                       g->bias ? g->bias + o : NULL,
                       g->residual ? (const char *)g->residual + (first * g->residual_row + o) * c_bytes : NULL,
                       g->residual_row);
        }
    }
}

INLINE int FN(are_few)(const ck_gemm_args *g) {
    return g->m <= CK_FEW_ROWS && g->k && (g->m * (g->k + g->k / CK_GROUP) + 16) * 4 <= CK_SCRATCH_BYTES;
}

/* a real, w quantized, c real. */
static void FN(quantized_forward)(const void *args, const ck_team *team) {
    if (FN(are_few)(args)) FN(few_rows)(args, team, CK_STORAGE == CK_F32);
    else FN(gemm)(args, team);
}
/* a real, w quantized, c fp32. */
static void FN(quantized_forward_f32)(const void *args, const ck_team *team) {
    if (FN(are_few)(args)) FN(few_rows)(args, team, 1);
    else FN(gemm_f32)(args, team);
}
/* As quantized_forward, with rows of a rounded to 8 bits in groups of 32. */
static void FN(quantized_forward_q8)(const void *args, const ck_team *team) {
    FN(rounded_rows)(args, team, CK_STORAGE == CK_F32);
}
static void FN(quantized_forward_q8_f32)(const void *args, const ck_team *team) { FN(rounded_rows)(args, team, 1); }
/* a, c real, w quantized. */
static void FN(quantized_backward_input)(const void *args, const ck_team *team) { FN(gemm)(args, team); }

/* y (n, k) = the rows of w that ids name, or all of them in their order. */
static void FN(dequantize)(const void *args, const ck_team *team) {
    const ck_dequantize_args *a = args;
    _Alignas(64) float values[256];
    const ck_range rows = ck_split(a->n, 1, team->size, team->index);
    for (int64_t i = rows.begin; i < rows.end; i++) {
        const uint8_t *row = a->w + (a->ids ? a->ids[i] : i) * a->w_row;
        real *y = (real *)a->y + i * a->y_row;
        for (int64_t at = 0; at < a->k; at += 256) {
            const int64_t count = ck_min(256, a->k - at);
            ck_all_values[a->format](values, row, at / CK_GROUP, count / CK_GROUP);
            for (int64_t v = 0; v < count; v += VL) r_store_n(y + at + v, v_load(values + v), VL);
        }
    }
}
#undef CK_FEW_ROWS
#undef CK_FEW_OUT
