/* Panels of b (gemm_pack.h) from quantized weights: the blocks are read where they lie, some groups of some rows at a time,
 * into a few KiB that stay in the first-level cache, and packed from there. Included once per kind of units: fp32, which
 * both storage types have where bf16 has no products of its own, and pairs of bf16. */
#if CK_STORAGE == CK_F32 || CK_PAIRED

/* Values of a row that are read before the next row's. */
#define CK_BLOCK_SLICE 128
/* Rows of w, which are k, that are read before they are packed. */
#define CK_BLOCK_ROWS 32

/* b = w transposed, n <= CK_GEMM_NR rows of w: k values of each, from k0 on; both are whole groups. */
INLINE void FN(pack_rows_of_blocks)(const int format, float *dst, const uint8_t *w, int64_t w_row, int64_t k0, int64_t n,
                                    int64_t k) {
    _Alignas(64) real stage[CK_GEMM_NR * CK_BLOCK_SLICE];
    const int64_t groups = ck_block_groups(format);
    for (int64_t from = 0; from < k; from += CK_BLOCK_SLICE) {
        const int64_t count = ck_min(CK_BLOCK_SLICE, k - from), first = (k0 + from) / CK_GROUP;
        for (int64_t j = 0; j < n; j++) {
            const uint8_t *row = w + j * w_row;
            for (int64_t g = 0; g < count / CK_GROUP; g++) {
                ck_group group;
                ck_read_group(format, ck_block_of(format, row, first + g), (first + g) % groups, &group);
#pragma GCC unroll 8
                for (int i = 0; i < CK_GROUP_PARTS; i++)
                    r_store_n(stage + j * CK_BLOCK_SLICE + g * CK_GROUP + i * VL, ck_group_values(format, &group, i), VL);
            }
        }
        FN(pack_right)(dst + FN(units)(from) * CK_GEMM_NR, stage, 1, CK_BLOCK_SLICE, n, count);
    }
}

/* b = w: CK_GEMM_NR columns, a part of a group, of k rows of w. */
INLINE void FN(pack_columns_of_blocks)(const int format, float *dst, const uint8_t *w, int64_t w_row, int64_t col,
                                       int64_t k) {
    _Alignas(64) real stage[CK_BLOCK_ROWS * CK_GEMM_NR];
    const int64_t j = col / CK_GROUP % ck_block_groups(format), within = col % CK_GROUP;
    const uint8_t *block = ck_block_of(format, w, col / CK_GROUP);
    for (int64_t from = 0; from < k; from += CK_BLOCK_ROWS, block += CK_BLOCK_ROWS * w_row) {
        const int64_t count = ck_min(CK_BLOCK_ROWS, k - from);
#pragma GCC unroll 4
        for (int part = 0; part < CK_GROUP; part += CK_GEMM_NR) {
            if (part != within) continue;
            for (int64_t p = 0; p < count; p++) {
                ck_group group;
                ck_prefetch(block + (p + CK_BLOCK_ROWS) * w_row);
                ck_read_group(format, block + p * w_row, j, &group);
#pragma GCC unroll 8
                for (int i = 0; i < CK_GEMM_NR / VL; i++)
                    r_store_n(stage + p * CK_GEMM_NR + i * VL, ck_group_values(format, &group, part / VL + i), VL);
            }
        }
        FN(pack_right)(dst + FN(units)(from) * CK_GEMM_NR, stage, CK_GEMM_NR, 1, CK_GEMM_NR, count);
    }
}

#define CK_PACK_FUNCTIONS(format, groups, bytes)                                                            \
    static __attribute__((noinline)) void FN(pack_rows_##format)(float *dst, const uint8_t *w, int64_t w_row, \
                                                                 int64_t k0, int64_t n, int64_t k) {        \
        FN(pack_rows_of_blocks)(format, dst, w, w_row, k0, n, k);                                           \
    }                                                                                                       \
    static __attribute__((noinline)) void FN(pack_columns_##format)(float *dst, const uint8_t *w, int64_t w_row, \
                                                                    int64_t col, int64_t k) {               \
        FN(pack_columns_of_blocks)(format, dst, w, w_row, col, k);                                          \
    }
CK_EACH_FORMAT(CK_PACK_FUNCTIONS)
#undef CK_PACK_FUNCTIONS

/* Columns [col, col + n) of b, k elements of each from k0 on, packed. */
static void FN(pack_blocks)(float *dst, const ck_gemm_args *g, int64_t k0, int64_t col, int64_t n, int64_t k) {
    const uint8_t *w = g->b;
    const int64_t w_row = g->block_row;
    switch (g->format) {
#define CK_PACK_CASE(name, groups, bytes)                                                                   \
    case name:                                                                                              \
        if (g->b_row == 1) FN(pack_rows_##name)(dst, w + col * w_row, w_row, k0, n, k);                     \
        else FN(pack_columns_##name)(dst, w + k0 * w_row, w_row, col, k);                                   \
        break;
        CK_EACH_FORMAT(CK_PACK_CASE)
#undef CK_PACK_CASE
    }
}
#undef CK_BLOCK_SLICE
#undef CK_BLOCK_ROWS
#else
/* fp32 units here too. */
INLINE void FN(pack_blocks)(float *dst, const ck_gemm_args *g, int64_t k0, int64_t col, int64_t n, int64_t k) {
    pack_blocks_f32(dst, g, k0, col, n, k);
}
#endif
