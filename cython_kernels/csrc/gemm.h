/* Blocked matmul around the register tile (Goto & van de Geijn 2008).
 *
 * The threads stand on a grid over C; each packs what it needs of a and b into its own workspace, so none
 * waits for another. Per thread: blocks of CK_NC columns, of CK_KC along k; b's block is packed in panels
 * of CK_NR columns (one stays in the first-level cache), a's in panels of CK_MR rows, CK_MC rows at a time
 * (they stay in the second level). Transposes happen in packing. A bf16 result is summed over all of k in
 * fp32 in the workspace, then rounded once. */

INLINE v4 FN(load4)(const real *p) {
#if CK_STORAGE == CK_BF16
    return (v4){r_get(p), r_get(p + 1), r_get(p + 2), r_get(p + 3)};
#else
    return *(const v4_unaligned *)p;
#endif
}

/* One panel: dst[p * width + j] = src[j * j_stride + p * p_stride] for p < k, j < count, zero for count <=
 * j < width. One of the two strides is 1. Up to CK_PACK_SLACK floats past the end of the panel may be
 * written. */
INLINE void FN(pack_panel)(float *dst, const int width, const real *src, int64_t j_stride, int64_t p_stride,
                           int64_t count, int64_t k) {
    if (j_stride == 1) {
        for (int64_t p = 0; p < k; p++, dst += width, src += p_stride)
            for (int64_t j = 0; j < width; j += VL)
                v_store_n(dst + j, r_load_n(src + j, ck_max(0, ck_min(VL, count - j))),
                          ck_min(VL, width - j));
        return;
    }
    /* Groups of four columns, the last first: where the panel's width is no multiple of four, the last
     * group spills into the next p's first lanes, which are written after it. */
    for (int64_t j = (width - 1) / 4 * 4; j >= 0; j -= 4) {
        const real *rows[4];
        for (int64_t i = 0; i < 4; i++) rows[i] = src + ck_min(j + i, count - 1) * j_stride;
        int64_t p = 0;
        if (j + 4 <= count || (count == width && j < count)) {
            for (; p + 4 <= k; p += 4) {
                v4 block[4] = {FN(load4)(rows[0] + p), FN(load4)(rows[1] + p), FN(load4)(rows[2] + p),
                               FN(load4)(rows[3] + p)};
                transpose4(block);
                for (int64_t i = 0; i < 4; i++) *(v4_unaligned *)(dst + (p + i) * width + j) = block[i];
            }
        }
        for (; p < k; p++)
            for (int64_t i = 0; i < 4 && j + i < width; i++)
                dst[p * width + j + i] = j + i < count ? r_get(rows[i] + p * p_stride) : 0.0f;
    }
}

static __attribute__((noinline)) void FN(pack_a)(float *dst, const real *a, int64_t a_row, int64_t a_col,
                                                 int64_t m, int64_t k) {
    for (int64_t i = 0; i < m; i += CK_MR, dst += CK_MR * k)
        FN(pack_panel)(dst, CK_MR, a + i * a_row, a_row, a_col, ck_min(CK_MR, m - i), k);
}

static __attribute__((noinline)) void FN(pack_b)(float *dst, const real *b, int64_t b_row, int64_t b_col,
                                                 int64_t k, int64_t n) {
    for (int64_t j = 0; j < n; j += CK_NR, dst += CK_NR * k)
        FN(pack_panel)(dst, CK_NR, b + j * b_col, b_col, b_row, ck_min(CK_NR, n - j), k);
}

/* c (rows, cols) = t + bias + residual (+ c), from fp32 t to real or fp32 c. */
INLINE void FN(finish)(void *c, const int c_is_f32, int64_t c_row, const float *t, int64_t t_row,
                       int64_t rows, int64_t cols, int add, const real *bias, const real *residual,
                       int64_t residual_row) {
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < cols; j += VL) {
            const int64_t m = ck_min(VL, cols - j), at = i * c_row + j;
            vf x = v_load_n(t + i * t_row + j, m);
            if (add) x = v_add(x, c_is_f32 ? v_load_n((float *)c + at, m) : r_load_n((real *)c + at, m));
            if (bias) x = v_add(x, r_load_n(bias + j, m));
            if (residual) x = v_add(x, r_load_n(residual + i * residual_row + j, m));
            if (c_is_f32) v_store_n((float *)c + at, x, m);
            else r_store_n((real *)c + at, x, m);
        }
    }
}

/* Rows [m0, m1) and columns [n0, n1) of C by one thread. */
INLINE void FN(gemm_part)(const ck_gemm_args *g, const ck_team *team, const int c_is_f32, ck_range rows,
                          ck_range cols) {
    float *packed_b = (float *)team->scratch;
    float *packed_a = packed_b + CK_KC * CK_NC + CK_PACK_SLACK;
    /* a bf16 result's block, CK_MC x CK_NC; for an fp32 one a single register tile */
    float *sums = packed_a + CK_MC * CK_KC + CK_PACK_SLACK;
    const int64_t rows_step = c_is_f32 ? ck_max(1, rows.end - rows.begin) : CK_MC;
    const real *a = g->a, *b = g->b, *bias = g->bias, *residual = g->residual;

    for (int64_t row0 = rows.begin; row0 < rows.end; row0 += rows_step)
    for (int64_t col0 = cols.begin; col0 < cols.end; col0 += CK_NC) {
        const int64_t row1 = ck_min(row0 + rows_step, rows.end), n = ck_min(CK_NC, cols.end - col0);
        int64_t k0 = 0;
        do {  /* once even when k = 0: c is still written */
            const int64_t k = ck_min(CK_KC, g->k - k0);
            const int first = k0 == 0;
            FN(pack_b)(packed_b, b + k0 * g->b_row + col0 * g->b_col, g->b_row, g->b_col, k, n);
            for (int64_t i0 = row0; i0 < row1; i0 += CK_MC) {
                const int64_t m = ck_min(CK_MC, row1 - i0);
                FN(pack_a)(packed_a, a + i0 * g->a_row + k0 * g->a_col, g->a_row, g->a_col, m, k);
                for (int64_t j = 0; j < n; j += CK_NR)
                    for (int64_t i = 0; i < m; i += CK_MR) {
                        const float *pa = packed_a + i * k, *pb = packed_b + j * k;
                        if (!c_is_f32) {
                            tile_packed(k, pa, pb, CK_NR, sums + i * CK_NC + j, CK_NC, !first);
                            continue;
                        }
                        float *c = (float *)g->c + (i0 + i) * g->c_row + col0 + j;
                        const int add = !first || g->accumulate;
                        const int64_t high = ck_min(CK_MR, m - i), wide = ck_min(CK_NR, n - j);
                        if (high == CK_MR && wide == CK_NR && !(first && (bias || residual))) {
                            tile_packed(k, pa, pb, CK_NR, c, g->c_row, add);
                            continue;
                        }
                        tile_packed(k, pa, pb, CK_NR, sums, CK_NR, 0);
                        const real *beside = residual + (i0 + i) * g->residual_row + col0 + j;
                        FN(finish)(c, 1, g->c_row, sums, CK_NR, high, wide, add,
                                   first && bias ? bias + col0 + j : NULL,
                                   first && residual ? beside : NULL, g->residual_row);
                    }
            }
            k0 += CK_KC;
        } while (k0 < g->k);
        if (!c_is_f32)
            FN(finish)((real *)g->c + row0 * g->c_row + col0, 0, g->c_row, sums, CK_NC, row1 - row0, n,
                       g->accumulate, bias ? bias + col0 : NULL,
                       residual ? residual + row0 * g->residual_row + col0 : NULL, g->residual_row);
    }
}

/* column_sums[i] += sum over p of a[i, p], where a's rows are contiguous along i; each thread takes a
 * range of i. */
static void FN(add_column_sums)(const ck_gemm_args *g, const ck_team *team) {
    const ck_range part = ck_split(g->m, 64, team->size, team->index);
    for (int64_t i = part.begin; i < part.end; i += VL) {
        const int64_t m = ck_min(VL, part.end - i);
        vf sum = v_zero();
        for (int64_t p = 0; p < g->k; p++)
            sum = v_add(sum, r_load_n((const real *)g->a + p * g->a_col + i, m));
        v_store_n(g->column_sums + i, v_add(v_load_n(g->column_sums + i, m), sum), m);
    }
}

INLINE void FN(gemm_team)(const ck_gemm_args *g, const ck_team *team, const int c_is_f32) {
    const int64_t grain = ck_max(CK_NR, 32);  /* columns: no cache line of C is shared, were C aligned */
    int row_parts = 1, col_parts = 1;
    ck_split_grid(ck_ceil_div(g->m, CK_MR), ck_ceil_div(g->n, grain), team->size, &row_parts, &col_parts);
    if (team->index < row_parts * col_parts)
        FN(gemm_part)(g, team, c_is_f32, ck_split(g->m, CK_MR, row_parts, team->index / col_parts),
                      ck_split(g->n, grain, col_parts, team->index % col_parts));
    if (g->column_sums) FN(add_column_sums)(g, team);
}

/* a, b, c real. */
static void FN(gemm)(const void *args, const ck_team *team) {
    FN(gemm_team)(args, team, CK_STORAGE == CK_F32);
}
/* a, b real, c fp32. */
static void FN(gemm_f32)(const void *args, const ck_team *team) {
    FN(gemm_team)(args, team, 1);
}
