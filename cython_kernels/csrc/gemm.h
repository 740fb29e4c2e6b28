/* Blocked matmul (Goto & van de Geijn 2008) around the register tile of gemm_kernel.h; the blocks are those of
 * gemm_plan.h. b's block is packed once, by all threads, into the team's shared workspace; a's rows by the
 * thread that takes them, into its own. Included once per storage type. */

#if CK_PAIRED
#define CK_GEMM_TILES gemm_tiles_paired
#else
#define CK_GEMM_TILES gemm_tiles_f32
#endif

/* What all threads know of one step along k of one block of C. */
typedef struct {
    int64_t row0, rows, col0, cols;     /* the block of C */
    int64_t units;                      /* of this step along k */
    int first, last;                    /* step along k */
    const float *b;                     /* packed */
    float *sums;                        /* (rows, cols) fp32, or NULL */
    int64_t sums_row;
} FN(gemm_step);

/* Up to so many units along k, C's traffic outweighs the products: tiles follow one another along C's rows, and the
 * next tile of C is asked for before this one is multiplied. Deeper, they go down, so that b's panel stays near. */
#define CK_GEMM_SHALLOW 64

/* One tile of C at (row, col), `high` x `wide`, from the packed a and b. i, j: its place in the step's block. */
INLINE void FN(gemm_one_tile)(const ck_gemm_args *g, const FN(gemm_step) *s, const int c_is_f32, const float *a,
                              const float *b, int64_t i, int64_t j, int64_t high, int64_t wide) {
    _Alignas(64) float tile[CK_GEMM_MR * CK_GEMM_NR];
    const int64_t row = s->row0 + i, col = s->col0 + j;
    const int64_t c_bytes = c_is_f32 ? 4 : sizeof(real), near_row = g->c_row * c_bytes;
    const gemm_tile_fn multiply = CK_GEMM_TILES[ck_ceil_div(wide, VL) - 1][high - 1];
    const char *near = (const char *)g->c + (row * g->c_row + col) * c_bytes;
    if (c_is_f32) {
        float *c = (float *)g->c + row * g->c_row + col;
        const int add = !s->first || g->accumulate, extras = s->first && (g->bias || g->residual);
        if (wide % VL == 0 && !extras) {
            multiply(s->units, a, b, c, g->c_row, add, near, near_row);
        } else {
            multiply(s->units, a, b, tile, CK_GEMM_NR, 0, near, near_row);
            FN(finish)(c, 1, g->c_row, tile, CK_GEMM_NR, high, wide, add,
                       s->first && g->bias ? g->bias + col : NULL,
                       s->first && g->residual ? (const float *)g->residual + row * g->residual_row + col : NULL,
                       g->residual_row);
        }
        return;
    }
    float *t = s->sums ? s->sums + i * s->sums_row + j : tile;
    const int64_t t_row = s->sums ? s->sums_row : CK_GEMM_NR;
    if (!s->last) near = (const char *)t;
    multiply(s->units, a, b, t, t_row, !s->first, near, s->last ? near_row : t_row * 4);
    if (s->last)
        FN(finish)((real *)g->c + row * g->c_row + col, 0, g->c_row, t, t_row, high, wide, g->accumulate,
                   g->bias ? g->bias + col : NULL,
                   g->residual ? (const real *)g->residual + row * g->residual_row + col : NULL, g->residual_row);
}

/* Rows [i0, i0 + m) and columns [j0, j0 + n) of the step's block, a's rows packed in pa. */
INLINE void FN(gemm_item)(const ck_gemm_args *g, const FN(gemm_step) *s, const int c_is_f32, const float *pa, int64_t i0,
                          int64_t m, int64_t j0, int64_t n) {
    if (s->units > CK_GEMM_SHALLOW) {
        for (int64_t j = 0; j < n; j += CK_GEMM_NR)
            for (int64_t i = 0; i < m; i += CK_GEMM_MR)
                FN(gemm_one_tile)(g, s, c_is_f32, pa + i * s->units, s->b + (j0 + j) * s->units, i0 + i, j0 + j,
                                  ck_min(CK_GEMM_MR, m - i), ck_min(CK_GEMM_NR, n - j));
        return;
    }
    const int64_t c_bytes = c_is_f32 ? 4 : sizeof(real);
    for (int64_t i = 0; i < m; i += CK_GEMM_MR) {
        const int64_t high = ck_min(CK_GEMM_MR, m - i);
        const char *c = (const char *)g->c + ((s->row0 + i0 + i) * g->c_row + s->col0 + j0) * c_bytes;
        for (int64_t j = 0; j < n; j += CK_GEMM_NR) {
            for (int64_t r = 0; r < high; r++)
                for (int64_t at = 0; at < CK_GEMM_NR * c_bytes; at += 64)
                    ck_prefetch(c + (r * g->c_row + j + CK_GEMM_NR) * c_bytes + at);
            FN(gemm_one_tile)(g, s, c_is_f32, pa + i * s->units, s->b + (j0 + j) * s->units, i0 + i, j0 + j, high,
                              ck_min(CK_GEMM_NR, n - j));
        }
    }
}

/* The items of one step, taken in turn by whichever thread is free. */
INLINE void FN(gemm_items)(const ck_gemm_args *g, const ck_team *team, const ck_gemm_plan *plan,
                           const FN(gemm_step) *s, const int c_is_f32, int64_t k0, int64_t k, unsigned *next) {
    float *pa = (float *)team->scratch;
    const int64_t across = ck_ceil_div(s->cols, plan->item_cols);
    const int64_t items = across * ck_ceil_div(s->rows, plan->item_rows);
    int64_t packed = -1;
    for (int64_t mine = 0;; mine++) {
        const int64_t item = team->size > 1 ? (int64_t)__atomic_fetch_add(next, 1, __ATOMIC_RELAXED) : mine;
        if (item >= items) return;
        const int64_t i0 = item / across * plan->item_rows, j0 = item % across * plan->item_cols;
        const int64_t m = ck_min(plan->item_rows, s->rows - i0), n = ck_min(plan->item_cols, s->cols - j0);
        if (packed != i0)
            FN(pack_left)(pa, (const real *)g->a + (s->row0 + i0) * g->a_row + k0 * g->a_col, g->a_row, g->a_col, m, k);
        packed = i0;
        FN(gemm_item)(g, s, c_is_f32, pa, i0, m, j0, n);
    }
}

/* column_sums[i] += sum over p of a[i, p], where a's rows are contiguous along i; each thread takes a
 * range of i. */
static void FN(add_column_sums)(const ck_gemm_args *g, const ck_team *team) {
    enum { WIDE = 8 };  /* vectors at a time: several lines of a row of a */
    const ck_range part = ck_split(g->m, 64, team->size, team->index);
    for (int64_t i = part.begin; i < part.end; i += WIDE * VL) {
        const int64_t left = part.end - i;
        const real *a = (const real *)g->a + i;
        vf sum[WIDE];
        for (int v = 0; v < WIDE; v++) sum[v] = v_zero();
        if (left >= WIDE * VL) {
            for (int64_t p = 0; p < g->k; p++)
#pragma GCC unroll 8
                for (int v = 0; v < WIDE; v++) sum[v] = v_add(sum[v], r_load_n(a + p * g->a_col + v * VL, VL));
        } else {
            for (int64_t p = 0; p < g->k; p++)
                for (int v = 0; v * VL < left; v++)
                    sum[v] = v_add(sum[v], r_load_n(a + p * g->a_col + v * VL, ck_min(VL, left - v * VL)));
        }
        for (int v = 0; v * VL < left && v < WIDE; v++) {
            const int64_t at = i + v * VL, m = ck_min(VL, part.end - at);
            v_store_n(g->column_sums + at, v_add(v_load_n(g->column_sums + at, m), sum[v]), m);
        }
    }
}

INLINE void FN(gemm_team)(const ck_gemm_args *g, const ck_team *team, const int c_is_f32) {
    if (g->column_sums) FN(add_column_sums)(g, team);
    if (g->m == 0 || g->n == 0) return;
    const ck_gemm_plan plan = ck_plan_gemm(g->m, g->n, FN(units)(g->k), CK_GEMM_MR, CK_GEMM_NR, c_is_f32, team->size,
                                           team->caches);
    const int64_t depth = plan.depth * (CK_PAIRED ? 2 : 1);  /* in elements */
    if (g->m <= CK_NARROW_ROWS && FN(units)(g->k) * CK_GEMM_MR * 4 <= CK_SCRATCH_BYTES / 2) {
        FN(gemm_narrow)(g, team, c_is_f32, depth);
        return;
    }
    unsigned *next = (unsigned *)team->shared;
    float *packed_b = (float *)(team->shared + 64);
    float *sums = !c_is_f32 && depth < g->k
        ? (float *)(team->shared + 64 + ck_round_up(plan.cols * plan.depth * 4 + VL * 4, 64)) : NULL;

    for (int64_t col0 = 0; col0 < g->n; col0 += plan.cols)
    for (int64_t row0 = 0; row0 < g->m; row0 += plan.rows) {
        FN(gemm_step) s = {.row0 = row0, .rows = ck_min(plan.rows, g->m - row0),
                           .col0 = col0, .cols = ck_min(plan.cols, g->n - col0),
                           .b = packed_b, .sums = sums, .sums_row = plan.cols};
        int64_t k0 = 0;
        do {  /* once even when k = 0: c is still written */
            const int64_t k = ck_min(depth, g->k - k0);
            s.units = FN(units)(k);
            s.first = k0 == 0;
            s.last = k0 + k >= g->k;
            const ck_range mine = ck_split(s.cols, CK_GEMM_NR, team->size, team->index);
            FN(pack_right)(packed_b, (const real *)g->b + k0 * g->b_row + col0 * g->b_col, g->b_row, g->b_col,
                           mine.begin, mine.end, k);
            if (team->index == 0) __atomic_store_n(next, 0, __ATOMIC_RELAXED);
            ck_barrier(team);
            FN(gemm_items)(g, team, &plan, &s, c_is_f32, k0, k, next);
            k0 += depth;
            ck_barrier(team);
        } while (k0 < g->k);
    }
}

/* a, b, c real. */
static void FN(gemm)(const void *args, const ck_team *team) {
    FN(gemm_team)(args, team, CK_STORAGE == CK_F32);
}
/* a, b real, c fp32. */
static void FN(gemm_f32)(const void *args, const ck_team *team) {
    FN(gemm_team)(args, team, 1);
}
#undef CK_GEMM_TILES
