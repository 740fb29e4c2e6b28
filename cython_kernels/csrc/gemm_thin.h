/* Matmul whose result is thin, as those of low-rank adapters are (LoRA), with many units along k. The operand that is large
 * meets few others, so packing it would cost as much as the products: it is read where it lies, once. fp32 alone. Sums run
 * in the same order as in gemm.h, so the bits are the same.
 *
 *   thin_rows      a (m, k) contiguous along k, few columns n: x . a^T, dy . b      b is packed, rows of a are read side by side
 *   thin_columns   a (k, m), b (k, n) as they lie, m few: u^T . x                   some rows of both at a time */
#if CK_STORAGE == CK_F32
#ifndef CK_GEMM_THIN_H
#define CK_GEMM_THIN_H

/* Columns that are few; units along k and the other dimension that are many. */
#define CK_THIN_COLUMNS 64
#define CK_THIN_LONG 128

/* Rows of both operands that are multiplied before the next ones, which are asked for meanwhile: those of b, of a thread's
 * columns, stay in the second level, and so do the sums. */
#define CK_THIN_ROWS 64
#define CK_THIN_SUMS (128 << 10)

/* What is asked for while a tile is multiplied: `next` at each unit, a row of b further each time, and as many lines of
 * later rows as `later` says. */
typedef struct {
    const float *next;
    ck_fetch later;
} ck_thin_fetch;

/* sums (rows, nv * VL) = or += a . b over k units. `along`: a is contiguous along k, and its rows after these are asked for. */
INLINE void thin_tile(const int rows, const int nv, const int along, int64_t k, const float *a, int64_t a_row, const float *b,
                      int64_t b_row, ck_thin_fetch *fetch, float *sums, int64_t sums_row, int go_on) {
    const float *next = along ? NULL : fetch->next;
    vf sum[CK_GEMM_MR][CK_GEMM_NV];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) sum[i][j] = go_on ? v_load(sums + i * sums_row + j * VL) : v_zero();
    for (int64_t p0 = 0; p0 < k; p0 += 16) {
        if (along) {
#pragma GCC unroll 16
            for (int i = 0; i < rows; i++) ck_prefetch(a + (i + rows) * a_row);
        } else {
            ck_fetch *f = &fetch->later;
            for (int64_t q = 0; q < f->each; q++) {
                __builtin_prefetch(f->row + f->line * 64, 0, 2);
                if (++f->line == f->lines) {
                    f->line = 0;
                    f->row += f->row_bytes;
                }
            }
        }
        const int64_t p1 = ck_min(k, p0 + 16);
        for (int64_t p = p0; p < p1; p++) {
            vf row[CK_GEMM_NV];
            if (!along) {
                ck_prefetch(next);
                next += b_row;
            }
#pragma GCC unroll 4
            for (int j = 0; j < nv; j++) row[j] = v_load(b + j * VL);
#pragma GCC unroll 16
            for (int i = 0; i < rows; i++) {
                const vf factor = v_set1(along ? a[i * a_row] : a[i]);
#pragma GCC unroll 4
                for (int j = 0; j < nv; j++) sum[i][j] = v_fma(factor, row[j], sum[i][j]);
            }
            a += along ? 1 : a_row;
            b += b_row;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) v_store(sums + i * sums_row + j * VL, sum[i][j]);
}

typedef void (*thin_tile_fn)(int64_t k, const float *a, int64_t a_row, const float *b, int64_t b_row, ck_thin_fetch *fetch,
                             float *sums, int64_t sums_row, int go_on);
#define CK_THIN_FUNCTION(kind, along, rows, nv)                                                             \
    static __attribute__((noinline)) void thin_##kind##_##rows##x##nv(                                      \
        int64_t k, const float *a, int64_t a_row, const float *b, int64_t b_row, ck_thin_fetch *fetch,      \
        float *sums, int64_t sums_row, int go_on) {                                                         \
        thin_tile(rows, nv, along, k, a, a_row, b, b_row, fetch, sums, sums_row, go_on);                    \
    }
#define CK_THIN_ENTRY(kind, along, rows, nv) thin_##kind##_##rows##x##nv,
#define CK_THIN_TILES(kind, along)                                                                          \
    CK_EACH_ROWS(CK_THIN_FUNCTION, kind, along, 1)                                                          \
    CK_EACH_ROWS(CK_THIN_FUNCTION, kind, along, 2)                                                          \
    static const thin_tile_fn thin_tiles_##kind[CK_GEMM_NV][CK_GEMM_MR] = {                                 \
        {CK_EACH_ROWS(CK_THIN_ENTRY, kind, along, 1)}, {CK_EACH_ROWS(CK_THIN_ENTRY, kind, along, 2)}};
CK_THIN_TILES(rows, 1)
CK_THIN_TILES(columns, 0)
#undef CK_THIN_TILES
#undef CK_THIN_ENTRY
#undef CK_THIN_FUNCTION

/* What either takes: whole vectors along n, and nothing added to c but what stands there. */
INLINE int thin_is_plain(const ck_gemm_args *g) {
    return !g->format && !g->lower && !g->bias && !g->residual && g->n % VL == 0 && g->k >= CK_THIN_LONG;
}
INLINE int thin_is_rows(const ck_gemm_args *g) {
    return thin_is_plain(g) && g->a_col == 1 && g->n <= CK_THIN_COLUMNS && g->m >= CK_THIN_LONG;
}
/* Rows of b a multiple of 4 KB apart would be in one set of the first-level cache. */
INLINE int thin_is_columns(const ck_gemm_args *g) {
    return thin_is_plain(g) && g->a_row == 1 && g->b_col == 1 && g->m <= CK_NARROW_ROWS && g->n >= CK_THIN_LONG
           && g->b_row % 1024 != 0;
}

/* c (m, n) = or += sums. */
INLINE void thin_store(float *c, int64_t c_row, const float *sums, int64_t sums_row, int64_t m, int64_t n, int add) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j += VL) {
            const vf sum = v_load(sums + i * sums_row + j);
            v_store(c + i * c_row + j, add ? v_add(v_load(c + i * c_row + j), sum) : sum);
        }
}

/* Each thread has a range of a's rows. `depth`: units along k between two visits to c. */
static void thin_rows(const ck_gemm_args *g, const ck_team *team, int64_t depth) {
    _Alignas(64) float sums[CK_GEMM_MR * CK_GEMM_NR];
    const ck_range part = ck_split(g->m, CK_GEMM_MR, team->size, team->index);
    float *packed = (float *)team->scratch, *c = g->c;
    for (int64_t k0 = 0; k0 < g->k && part.begin < part.end; k0 += depth) {
        const int64_t k = ck_min(depth, g->k - k0), panel = ck_panel_units(CK_GEMM_NR, k);
        pack_right_f32(packed, (const float *)g->b + k0 * g->b_row, g->b_row, g->b_col, g->n, k);
        for (int64_t i = part.begin; i < part.end; i += CK_GEMM_MR) {
            const int64_t rows = ck_min(CK_GEMM_MR, part.end - i);
            const float *a = (const float *)g->a + i * g->a_row + k0;
            for (int64_t j = 0; j < g->n; j += CK_GEMM_NR) {
                const int64_t cols = ck_min(CK_GEMM_NR, g->n - j);
                thin_tiles_rows[cols / VL - 1][rows - 1](k, a, g->a_row, packed + j / CK_GEMM_NR * panel, CK_GEMM_NR, NULL,
                                                         sums, CK_GEMM_NR, 0);
                thin_store(c + i * g->c_row + j, g->c_row, sums, CK_GEMM_NR, rows, cols, k0 > 0 || g->accumulate);
            }
        }
    }
}

/* Each thread has a range of b's columns, and takes as many of them at a time as its sums have room for. */
static void thin_columns(const ck_gemm_args *g, const ck_team *team, int64_t depth) {
    const int64_t most = CK_THIN_SUMS / 4 / CK_NARROW_ROWS / CK_GEMM_NR * CK_GEMM_NR;
    const ck_range part = ck_split(g->n, CK_GEMM_NR, team->size, team->index);
    float *sums = (float *)team->scratch, *c = g->c;
    for (int64_t from = part.begin; from < part.end; from += most) {
        const int64_t n = ck_min(most, part.end - from), lines = n * 4 / 64 + 1;
        const int64_t tiles = ck_ceil_div(g->m, CK_GEMM_MR) * ck_ceil_div(n, CK_GEMM_NR);
        for (int64_t k0 = 0; k0 < g->k; k0 += depth) {
            const int64_t k1 = ck_min(g->k, k0 + depth);
            for (int64_t p = k0; p < k1; p += CK_THIN_ROWS) {
                const int64_t k = ck_min(CK_THIN_ROWS, k1 - p);
                const float *a = (const float *)g->a + p * g->a_col, *b = (const float *)g->b + p * g->b_row + from;
                ck_thin_fetch fetch = {.later = {.row = (const char *)(b + k * g->b_row), .row_bytes = g->b_row * 4,
                                                 .lines = lines,
                                                 .each = ck_ceil_div(k * lines, tiles * ck_ceil_div(k, 16))}};
                for (int64_t j = 0; j < n; j += CK_GEMM_NR)
                    for (int64_t i = 0; i < g->m; i += CK_GEMM_MR) {
                        const int64_t rows = ck_min(CK_GEMM_MR, g->m - i), cols = ck_min(CK_GEMM_NR, n - j);
                        fetch.next = b + j + CK_GEMM_NR;
                        thin_tiles_columns[cols / VL - 1][rows - 1](k, a + i, g->a_col, b + j, g->b_row, &fetch,
                                                                    sums + i * n + j, n, p > k0);
                    }
            }
            thin_store(c + from, g->c_row, sums, n, g->m, n, k0 > 0 || g->accumulate);
        }
    }
}
#endif
#endif
