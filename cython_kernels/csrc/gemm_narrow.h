/* Matmul for a few rows of a: b is read where it lies, since packing it would cost as much as the products. b's
 * vectors are transposed, or paired, in registers and used at once. Sums run in the same order as in gemm.h, so a
 * row's result does not depend on which of the two computed it. Included once per storage type. */

#ifndef CK_NARROW_ROWS
#define CK_NARROW_ROWS 16
#endif

#if CK_TILED
/* t (CK_MR, CK_GEMM_NR) = a . b over k elements; b's columns are packed into `room`, which stays near. */
INLINE void FN(narrow_product)(int64_t rows, float *t, const float *pa, const real *b, int64_t j_stride,
                               int64_t p_stride, int64_t count, int64_t k, float *room) {
    ck_tile_out out = {.c = t, .c_row = CK_GEMM_NR, .store = CK_TILE_WRITE};
    FN(pack_right)(room, b, p_stride, j_stride, count, k);
    gemm_tiles_amx[count > VL][rows > CK_AMX_ROWS](FN(units)(k), pa, room, &out);
}
#else
/* `VL` units from u on of a row of b that is contiguous along k: bf16 as they lie, two of them to a lane. */
#undef CK_NARROW_UNITS
#if CK_STORAGE == CK_BF16 && !CK_PAIRED
#define CK_NARROW_UNITS (2 * VL)
#else
#define CK_NARROW_UNITS VL
#endif

/* `columns` of t (rows, CK_GEMM_NR), at most `groups` times VL: b is contiguous along k. Where bf16 is widened, it is
 * transposed before, in half as many vectors. */
INLINE void FN(narrow_columns)(const int rows, const int groups, float *t, const float *pa, const real *b, int64_t j_stride,
                               int64_t columns, int64_t k) {
    const int64_t units = FN(units)(k), step = CK_PAIRED ? 2 : 1;
    vf sum[CK_GEMM_NV][CK_GEMM_MR];
#pragma GCC unroll 4
    for (int g = 0; g < groups; g++)
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) sum[g][i] = v_zero();
    int64_t u = 0;
    if (columns == groups * VL)
        for (; u + CK_NARROW_UNITS <= units && k - u * step >= CK_NARROW_UNITS * step; u += CK_NARROW_UNITS) {
            const float *factors = pa + u * CK_GEMM_MR;
#pragma GCC unroll 4
            for (int g = 0; g < groups; g++) {
                const real *from = b + g * VL * j_stride + u * step;
                vf block[VL];
#pragma GCC unroll 16
                for (int i = 0; i < VL; i++) {
                    ck_prefetch(from + (i + groups * VL) * j_stride);
                    if (CK_NARROW_UNITS == VL) block[i] = FN(load_along)(from + i * j_stride, VL, VL * step);
                    else block[i] = v_load((const float *)(from + i * j_stride));
                }
                v_transpose(block);
#pragma GCC unroll 16
                for (int p = 0; p < VL; p++) {
                    if (CK_NARROW_UNITS == VL) {
#pragma GCC unroll 16
                        for (int i = 0; i < rows; i++)
                            sum[g][i] = v_add_products(sum[g][i], v_set1(factors[p * CK_GEMM_MR + i]), block[p], CK_PAIRED);
                        continue;
                    }
                    const vf even = v_from_bits(vi_shift_left(v_bits(block[p]), 16));
                    const vf odd = v_from_bits(vi_and(v_bits(block[p]), vi_set1((int32_t)0xffff0000)));
#pragma GCC unroll 16
                    for (int i = 0; i < rows; i++) {
                        sum[g][i] = v_add_products(sum[g][i], v_set1(factors[2 * p * CK_GEMM_MR + i]), even, 0);
                        sum[g][i] = v_add_products(sum[g][i], v_set1(factors[(2 * p + 1) * CK_GEMM_MR + i]), odd, 0);
                    }
                }
            }
        }
    for (; u < units; u += VL) {
        const int64_t here = ck_min(VL, units - u), left = k - u * step;
        const float *factors = pa + u * CK_GEMM_MR;
#pragma GCC unroll 4
        for (int g = 0; g < groups; g++) {
            vf block[VL];
            for (int i = 0; i < VL; i++) {
                const int64_t column = g * VL + i;
                block[i] = column < columns ? FN(load_along)(b + column * j_stride + u * step, here, left) : v_zero();
            }
            v_transpose(block);
            for (int64_t p = 0; p < here; p++)
#pragma GCC unroll 16
                for (int i = 0; i < rows; i++)
                    sum[g][i] = v_add_products(sum[g][i], v_set1(factors[p * CK_GEMM_MR + i]), block[p], CK_PAIRED);
        }
    }
#pragma GCC unroll 4
    for (int g = 0; g < groups; g++)
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) v_store(t + i * CK_GEMM_NR + g * VL, sum[g][i]);
}

/* t (rows, CK_GEMM_NR) = a . b over k elements, the lanes from `count` on undefined; pa is packed. Column j, element
 * p of b stands at j * j_stride + p * p_stride, one of the strides being 1. */
INLINE void FN(narrow_tile)(const int rows, float *t, const float *pa, const real *b, int64_t j_stride,
                            int64_t p_stride, int64_t count, int64_t k) {
    const int64_t units = FN(units)(k), step = CK_PAIRED ? 2 : 1;
    if (j_stride == 1) {
        vf sum[CK_GEMM_MR][CK_GEMM_NV];
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
            for (int j = 0; j < CK_GEMM_NV; j++) sum[i][j] = v_zero();
        for (int64_t u = 0; u < units; u++, pa += CK_GEMM_MR, b += step * p_stride) {
            const int second = CK_PAIRED && step * u + 1 < k;
            vf row[CK_GEMM_NV];
#pragma GCC unroll 4
            for (int j = 0; j < CK_GEMM_NV; j++)
                row[j] = FN(load_across)(b + j * VL, ck_max(0, ck_min(VL, count - j * VL)), p_stride, second);
#pragma GCC unroll 16
            for (int i = 0; i < rows; i++) {
                const vf factor = v_set1(pa[i]);
#pragma GCC unroll 4
                for (int j = 0; j < CK_GEMM_NV; j++)
                    sum[i][j] = v_add_products(sum[i][j], factor, row[j], CK_PAIRED);
            }
        }
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
            for (int j = 0; j < CK_GEMM_NV; j++) v_store(t + i * CK_GEMM_NR + j * VL, sum[i][j]);
        return;
    }
    /* bf16 comes faster than one sum for each of few rows takes it; of fp32, two rows 4 KiB apart push each other out. */
    const int most = CK_NARROW_UNITS > VL && rows <= CK_GEMM_MR / 2 ? CK_GEMM_NV : 1;
    for (int64_t j = 0; j < count; j += most * VL) {
        const int64_t columns = ck_min(most * VL, count - j);
        if (most > 1 && columns > VL)
            FN(narrow_columns)(rows, CK_GEMM_NV, t + j, pa, b + j * j_stride, j_stride, columns, k);
        else FN(narrow_columns)(rows, 1, t + j, pa, b + j * j_stride, j_stride, columns, k);
    }
}

#define CK_NARROW_FUNCTION(kind, paired, rows, nv)                                                          \
    static __attribute__((noinline)) void FN(narrow_tile_##rows)(                                           \
        float *t, const float *pa, const real *b, int64_t j_stride, int64_t p_stride, int64_t count,        \
        int64_t k) {                                                                                        \
        FN(narrow_tile)(rows, t, pa, b, j_stride, p_stride, count, k);                                      \
    }
#define CK_NARROW_ENTRY(kind, paired, rows, nv) FN(narrow_tile_##rows),
CK_EACH_ROWS(CK_NARROW_FUNCTION, , , )
static void (*const FN(narrow_tiles)[CK_GEMM_MR])(float *, const float *, const real *, int64_t, int64_t, int64_t,
                                                  int64_t) = {CK_EACH_ROWS(CK_NARROW_ENTRY, , , )};
#undef CK_NARROW_FUNCTION
#undef CK_NARROW_ENTRY
INLINE void FN(narrow_product)(int64_t rows, float *t, const float *pa, const real *b, int64_t j_stride,
                               int64_t p_stride, int64_t count, int64_t k, float *room) {
    (void)room;
    FN(narrow_tiles)[rows - 1](t, pa, b, j_stride, p_stride, count, k);
}
#endif

/* Each thread takes a range of columns; none waits for another. depth: elements along k from one rounding of the
 * sum to the next (gemm_plan.h). */
INLINE void FN(gemm_narrow)(const ck_gemm_args *g, const ck_team *team, const int c_is_f32, int64_t depth) {
    _Alignas(64) float tile[CK_MR * CK_GEMM_NR], sums[CK_MR * CK_GEMM_NR];
    float *pa = (float *)team->scratch, *room = pa + CK_SCRATCH_BYTES / 2 / sizeof *pa;
    const ck_range cols = ck_split(g->n, CK_GEMM_NR, team->size, team->index);
    for (int64_t i = 0; i < g->m; i += CK_MR) {
        const int64_t high = ck_min(CK_MR, g->m - i);
        /* all of k at once: a's panels of `depth` elements one after the other */
        int64_t k0 = 0, packed = 0;
        for (; k0 < g->k; k0 += depth) {
            const int64_t k = ck_min(depth, g->k - k0);
            FN(pack_left)(pa + packed, (const real *)g->a + i * g->a_row + k0 * g->a_col, g->a_row, g->a_col, high, k);
            packed += FN(units)(k) * CK_MR;
        }
        for (int64_t col = cols.begin; col < cols.end; col += CK_GEMM_NR) {
            const int64_t wide = ck_min(CK_GEMM_NR, cols.end - col), residual_at = i * g->residual_row + col;
            const float *a = pa;
            k0 = 0;
            do {  /* once even when k = 0: c is still written */
                const int64_t k = ck_min(depth, g->k - k0);
                const int first = k0 == 0, last = k0 + depth >= g->k;
                FN(narrow_product)(high, tile, a, (const real *)g->b + k0 * g->b_row + col * g->b_col, g->b_col,
                                   g->b_row, wide, k, room);
                a += FN(units)(k) * CK_MR;
                k0 += depth;
                if (c_is_f32) {
                    FN(finish)((float *)g->c + i * g->c_row + col, 1, g->c_row, tile, CK_GEMM_NR, high, wide,
                               !first || g->accumulate, first && g->bias ? g->bias + col : NULL,
                               first && g->residual ? (const float *)g->residual + residual_at : NULL,
                               g->residual_row);
                    continue;
                }
                for (int64_t at = 0; at < high * CK_GEMM_NR; at += VL)
                    v_store(sums + at, first ? v_load(tile + at) : v_add(v_load(sums + at), v_load(tile + at)));
                if (last)
                    FN(finish)((real *)g->c + i * g->c_row + col, 0, g->c_row, sums, CK_GEMM_NR, high, wide,
                               g->accumulate, g->bias ? g->bias + col : NULL,
                               g->residual ? (const real *)g->residual + residual_at : NULL, g->residual_row);
            } while (k0 < g->k);
        }
    }
}
