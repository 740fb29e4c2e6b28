/* The matmul's innermost loop by AMX: c (32, 32) = or += a . b over k units of bf16 pairs, in four of the eight tiles.
 *
 * b is packed as for the other kernels, [k][CK_GEMM_NR] units: sixteen of them are the right operand's tile as it stands.
 * a's panel is [k / 16][CK_AMX_MR][16], rows of 64 bytes along k. Per sixteen units two tiles of each are loaded for four
 * products. Zeros fill up k to whole tiles, and a's rows to whole panels. A sum takes its products in the order that
 * simd_amx.h tells; it depends on k alone. */
#define CK_AMX_MR (2 * CK_AMX_ROWS)
#define CK_AMX_BLOCK (CK_AMX_MR * CK_AMX_UNITS)     /* units of a's panel, and of b's, to one step along k */

/* Lines of C, of the residual and of the sums before, asked for during the last steps along k, two rows at a time. */
INLINE void amx_fetch_rows(const ck_tile_out *out, int64_t row) {
    for (int64_t i = row; i < row + 2; i++) {
        const char *near = out->near + i * out->near_row;
        __builtin_prefetch(near, 1);
        if (out->near_bytes > 64) __builtin_prefetch(near + 64, 1);
        if (out->beside) {
            __builtin_prefetch(out->beside + i * out->beside_row);
            if (out->near_bytes > 64) __builtin_prefetch(out->beside + i * out->beside_row + 64);
        }
        if (out->before) {
            __builtin_prefetch(out->before + i * out->before_row);
            __builtin_prefetch(out->before + i * out->before_row + 16);
        }
    }
}

/* Some of the lines that will be packed next. */
INLINE void amx_fetch_lines(ck_fetch *f, int64_t times) {
    for (int64_t q = times * f->each; q > 0; q--) {
        __builtin_prefetch(f->row + f->line * 64, 0, 2);
        if (++f->line == f->lines) {
            f->line = 0;
            f->row += f->row_bytes;
        }
    }
    for (int64_t q = times * f->into_each; q > 0; q--, f->into += 64) __builtin_prefetch(f->into, 1, 2);
}

/* Rows of bf16 c = before + t + residual. */
INLINE void amx_round(const ck_tile_out *out, const float *t, int64_t t_row, int64_t rows) {
    for (int64_t i = 0; i < rows; i++, t += t_row) {
        vf low = v_load(t), high = v_load(t + VL);
        if (out->before) {
            const float *before = out->before + i * out->before_row;
            low = v_add(v_load(before), low);
            high = v_add(v_load(before + VL), high);
        }
        if (out->residual) {
            const uint16_t *residual = (const uint16_t *)out->residual + i * out->residual_row;
            low = v_add(low, v_load_bf16_n(residual, VL));
            high = v_add(high, v_load_bf16_n(residual + VL, VL));
        }
        v_store((float *)((uint16_t *)out->c + i * out->c_row), v_pairs_along(low, high));
    }
}

INLINE void gemm_tile_amx(const int below, const int right, int64_t k, const float *a, const float *b,
                          ck_tile_out *out) {
    _Alignas(64) float sums[CK_AMX_MR * CK_GEMM_NR];
    ck_tiles t;
    ck_fetch f = out->fetch;
    (void)t;
    t_see_memory();
    t_zero(&t, 0);
    if (right) t_zero(&t, 1);
    if (below) t_zero(&t, 2);
    if (below && right) t_zero(&t, 3);
    for (int64_t left = k / CK_AMX_UNITS; left > 0; left--, a += CK_AMX_BLOCK, b += CK_AMX_BLOCK) {
        if (out->near && left <= CK_AMX_ROWS) amx_fetch_rows(out, CK_AMX_MR - 2 * left);
        amx_fetch_lines(&f, CK_AMX_UNITS / 8);
        t_load(&t, 4, a, 64);
        t_load(&t, 6, b, CK_GEMM_NR * 4);
        t_dot(&t, 0, 4, 6);
        if (right) {
            t_load(&t, 7, b + CK_AMX_UNITS, CK_GEMM_NR * 4);
            t_dot(&t, 1, 4, 7);
        }
        if (below) {
            t_load(&t, 5, a + CK_AMX_BLOCK / 2, 64);
            t_dot(&t, 2, 5, 6);
            if (right) t_dot(&t, 3, 5, 7);
        }
    }
    out->fetch = f;
    const int through = out->store != CK_TILE_WRITE;
    float *to = through ? sums : out->c;
    const int64_t row = through ? CK_GEMM_NR : out->c_row;
    t_store(&t, 0, to, row * 4);
    if (right) t_store(&t, 1, to + VL, row * 4);
    if (below) t_store(&t, 2, to + CK_AMX_ROWS * row, row * 4);
    if (below && right) t_store(&t, 3, to + CK_AMX_ROWS * row + VL, row * 4);
    if (!through) return;
    const int64_t rows = below ? out->rows : ck_min(out->rows, CK_AMX_ROWS);
    if (out->store == CK_TILE_BF16) {
        amx_round(out, sums, CK_GEMM_NR, rows);
        return;
    }
    float *c = out->c;
    for (int64_t i = 0; i < rows; i++, c += out->c_row)
#pragma GCC unroll 2
        for (int j = 0; j <= right; j++)
            v_store(c + j * VL, v_add(v_load(c + j * VL), v_load(sums + i * CK_GEMM_NR + j * VL)));
}

#define CK_AMX_TILE(below, right)                                                                           \
    static __attribute__((noinline)) void gemm_tile_amx_##below##right(int64_t k, const float *a,           \
                                                                       const float *b, ck_tile_out *out) {  \
        gemm_tile_amx(below, right, k, a, b, out);                                                          \
    }
CK_AMX_TILE(0, 0)
CK_AMX_TILE(0, 1)
CK_AMX_TILE(1, 0)
CK_AMX_TILE(1, 1)
/* [more than 16 columns][more than 16 rows] */
static const gemm_tile_fn gemm_tiles_amx[2][2] = {{gemm_tile_amx_00, gemm_tile_amx_10},
                                                  {gemm_tile_amx_01, gemm_tile_amx_11}};

/* v_pair_rows of n columns, the rest zero. */
INLINE void amx_pair_rows_n(vf *low, vf *high, const uint16_t *row0, const uint16_t *row1, int64_t n) {
    vf *const half[2] = {low, high};
    for (int h = 0; h < 2; h++) {
        const int64_t here = ck_max(0, ck_min(VL, n - h * VL));
        const vi first = v_load_u16_n(row0 + h * VL, here);
        *half[h] = v_from_bits(row1 ? vi_or(first, vi_shift_left(v_load_u16_n(row1 + h * VL, here), 16)) : first);
    }
}

/* m rows of a, k elements deep, in panels. */
static __attribute__((noinline)) void pack_left_bf16(float *dst, const uint16_t *a, int64_t a_row, int64_t a_col,
                                                     int64_t m, int64_t k) {
    const int64_t units = ck_round_up(ck_ceil_div(k, 2), CK_AMX_UNITS), panel = ck_panel_units(CK_AMX_MR, units);
    for (int64_t i0 = 0; i0 < m; i0 += CK_AMX_MR, dst += panel) {
        const int64_t rows = ck_min(CK_AMX_MR, m - i0);
        float *to = dst;
        for (int64_t p = 0; p < k; p += 2 * CK_AMX_UNITS, to += CK_AMX_BLOCK) {
            const int64_t here = ck_min(2 * CK_AMX_UNITS, k - p);
            const uint16_t *from = a + i0 * a_row + p * a_col;
            if (a_row != 1) {
                for (int64_t i = 0; i < rows; i++, from += a_row)
                    v_store(to + i * CK_AMX_UNITS, v_from_bits(v_load_pairs_n(from, here)));
            } else {
                vf low[VL], high[VL];
                for (int u = 0; u < VL; u++, from += 2 * a_col) {
                    const uint16_t *second = 2 * u + 1 < here ? from + a_col : NULL;
                    if (2 * u >= here) low[u] = high[u] = v_zero();
                    else if (rows == CK_AMX_MR) v_pair_rows(&low[u], &high[u], from, second, VL);
                    else amx_pair_rows_n(&low[u], &high[u], from, second, rows);
                }
                v_transpose(low);
                v_transpose(high);
                for (int i = 0; i < VL; i++) {
                    v_store(to + i * CK_AMX_UNITS, low[i]);
                    v_store(to + (VL + i) * CK_AMX_UNITS, high[i]);
                }
                continue;
            }
            for (int64_t i = rows; i < CK_AMX_MR; i++) v_store(to + i * CK_AMX_UNITS, v_zero());
        }
    }
}
