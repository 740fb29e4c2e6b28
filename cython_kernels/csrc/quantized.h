/* Products with quantized weights. Many rows, and input gradients: the packed matmul (gemm.h), whose panels of b are read
 * from the blocks (quantized_pack.h). Few rows, as in decoding, are bound by memory: each thread reads its rows of w once
 * (quantized_rows.h). Included once per storage type. */

#ifndef CK_QUANTIZED_VALUES
#define CK_QUANTIZED_VALUES
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

/* Sums of x that are kept: at most two of each group. */
INLINE int64_t FN(few_sums)(const ck_gemm_args *g) {
    return g->m * (g->k / CK_GROUP) * (ck_has_two_scales(g->format) ? 2 : 1);
}

/* y = x . w transposed + bias + residual for few rows of x. */
INLINE void FN(few_rows)(const ck_gemm_args *g, const ck_team *team, const int c_is_f32) {
    _Alignas(64) float tile[CK_FEW_ROWS * CK_FEW_OUT];
    const int64_t spans = FN(few_sums)(g) / g->m;
    float *sums = (float *)team->scratch, *x = sums + ck_round_up(g->m * spans, 16), *widened = x + g->m * g->k;
    const ck_range range = ck_split(g->n, CK_FEW_OUT, team->size, team->index);
    if (range.begin == range.end) return;
    for (int64_t i = 0; i < g->m; i++) {
        const real *row = (const real *)g->a + i * g->a_row;
        if (CK_STORAGE != CK_F32)
            for (int64_t at = 0; at < g->k; at += VL) v_store(widened + at, r_load_n(row + at, VL));
        ck_all_few[g->format].arrange(x + i * g->k, sums + i * spans,
                                      CK_STORAGE == CK_F32 ? (const float *)row : widened, g->k);
    }
    const int64_t blocks = g->k / g->block_values;
    for (int64_t o = range.begin; o < range.end; o += CK_FEW_OUT) {
        const int64_t rows = ck_min(CK_FEW_OUT, range.end - o);
        ck_all_few[g->format].dots(rows, g->m, (const uint8_t *)g->b + o * g->block_row, g->block_row, x, g->k, sums, blocks,
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
    int32_t numbers[CK_GROUP];
#pragma GCC unroll 8
    for (int v = 0; v < CK_GROUP_PARTS; v++)
        v_store((float *)numbers + v * VL, v_from_bits(v_to_i32(v_mul(part[v], inverse))));
    for (int h = 0; h < 2; h++) {
        int32_t sum = 0;
        for (int i = 16 * h; i < 16 * h + 16; i++) {
            y->number[i] = (int8_t)numbers[i];
            sum += numbers[i];
        }
        y->sum[h] = (float)sum;
    }
    y->scale = most / 127.0f + v_sum(nothing);
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
                ck_all_few[g->format].rounded(rows, (const uint8_t *)g->b + o * g->block_row, g->block_row,
                                              rounded + i * groups, blocks, tile + i * CK_FEW_OUT);
            FN(finish)((char *)g->c + (first * g->c_row + o) * c_bytes, c_is_f32, g->c_row, tile, CK_FEW_OUT, m, rows, 0,
                       g->bias ? g->bias + o : NULL,
                       g->residual ? (const char *)g->residual + (first * g->residual_row + o) * c_bytes : NULL,
                       g->residual_row);
        }
    }
}

INLINE int FN(are_few)(const ck_gemm_args *g) {
    return g->m && g->m <= CK_FEW_ROWS && g->k && ((g->m + 1) * g->k + FN(few_sums)(g) + 16) * 4 <= CK_SCRATCH_BYTES;
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
