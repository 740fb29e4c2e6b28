/* Blocked matmul (Goto & van de Geijn 2008) around the register tile of gemm_kernel.h; the blocks are those of
 * gemm_plan.h. b's block is packed once, by all threads, into the team's shared workspace; a's rows by the
 * thread that takes them, into its own. Who finds no more items of a block packs columns of the next one, into the
 * other of two places, so that threads wait once for a block, and little. Included once per storage type. */

#if CK_PAIRED
#define CK_GEMM_TILES gemm_tiles_paired
#else
#define CK_GEMM_TILES gemm_tiles_f32
#endif

/* What all threads know of one step along k of one block of C. */
typedef struct {
    int64_t row0, rows, col0, cols;     /* the block of C */
    int64_t k0, k;                      /* the step along k, in elements */
    const float *b;                     /* packed */
    float *sums;                        /* (rows, cols) fp32, or NULL */
    int64_t sums_row;
} FN(gemm_step);

/* Where the next item and the next columns to pack begin, of two steps in turn. */
typedef struct { int64_t item[2], column[2]; } FN(gemm_counters);

/* Up to so many units along k, C's traffic outweighs the products: tiles follow one another along C's rows, and the
 * next tile of C is asked for before this one is multiplied. Deeper, they go down, so that b's panel stays near. */
#define CK_GEMM_SHALLOW 64

/* One tile of C at (row, col), `high` x `wide`, from the packed a and b. i, j: its place in the step's block. */
INLINE void FN(gemm_one_tile)(const ck_gemm_args *g, const FN(gemm_step) *s, const int c_is_f32, const float *a,
                              const float *b, int64_t i, int64_t j, int64_t high, int64_t wide) {
    _Alignas(64) float tile[CK_GEMM_MR * CK_GEMM_NR];
    const int64_t row = s->row0 + i, col = s->col0 + j, units = FN(units)(s->k);
    const int first = s->k0 == 0, last = s->k0 + s->k >= g->k;
    const int64_t c_bytes = c_is_f32 ? 4 : sizeof(real), near_row = g->c_row * c_bytes;
    const gemm_tile_fn multiply = CK_GEMM_TILES[ck_ceil_div(wide, VL) - 1][high - 1];
    const char *near = (const char *)g->c + (row * g->c_row + col) * c_bytes;
    if (c_is_f32) {
        float *c = (float *)g->c + row * g->c_row + col;
        const int add = !first || g->accumulate, extras = first && (g->bias || g->residual);
        if (wide % VL == 0 && !extras) {
            multiply(units, a, b, c, g->c_row, add, near, near_row);
        } else {
            multiply(units, a, b, tile, CK_GEMM_NR, 0, near, near_row);
            FN(finish)(c, 1, g->c_row, tile, CK_GEMM_NR, high, wide, add,
                       first && g->bias ? g->bias + col : NULL,
                       first && g->residual ? (const float *)g->residual + row * g->residual_row + col : NULL,
                       g->residual_row);
        }
        return;
    }
    float *t = s->sums ? s->sums + i * s->sums_row + j : tile;
    const int64_t t_row = s->sums ? s->sums_row : CK_GEMM_NR;
    if (!last) near = (const char *)t;
    multiply(units, a, b, t, t_row, !first, near, last ? near_row : t_row * 4);
    if (last)
        FN(finish)((real *)g->c + row * g->c_row + col, 0, g->c_row, t, t_row, high, wide, g->accumulate,
                   g->bias ? g->bias + col : NULL,
                   g->residual ? (const real *)g->residual + row * g->residual_row + col : NULL, g->residual_row);
}

/* Rows [i0, i0 + m) and columns [j0, j0 + n) of the step's block, a's rows packed in pa. */
INLINE void FN(gemm_item)(const ck_gemm_args *g, const FN(gemm_step) *s, const int c_is_f32, const float *pa, int64_t i0,
                          int64_t m, int64_t j0, int64_t n) {
    const int64_t units = FN(units)(s->k);
    if (units > CK_GEMM_SHALLOW) {
        for (int64_t j = 0; j < n; j += CK_GEMM_NR)
            for (int64_t i = 0; i < m; i += CK_GEMM_MR)
                FN(gemm_one_tile)(g, s, c_is_f32, pa + i * units, s->b + (j0 + j) * units, i0 + i, j0 + j,
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
            FN(gemm_one_tile)(g, s, c_is_f32, pa + i * units, s->b + (j0 + j) * units, i0 + i, j0 + j, high,
                              ck_min(CK_GEMM_NR, n - j));
        }
    }
}

/* The items of one step, taken in turn by whichever thread is free: a run of tiles that go down, at most the plan's
 * item, and a share of what is left towards the end, so that the threads end together. */
INLINE void FN(gemm_items)(const ck_gemm_args *g, const ck_team *team, const ck_gemm_plan *plan,
                           const FN(gemm_step) *s, const int c_is_f32, int64_t *next) {
    float *pa = (float *)team->scratch;
    const int64_t down = ck_ceil_div(s->rows, CK_GEMM_MR), all = down * ck_ceil_div(s->cols, plan->item_cols);
    int64_t begin = 0, count = 0;
    for (;;) {
        if (team->size > 1) {
            begin = __atomic_load_n(next, __ATOMIC_RELAXED);
            do count = ck_item_tiles(plan, CK_GEMM_MR, begin, down, all, team->size);
            while (!__atomic_compare_exchange_n(next, &begin, begin + count, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
        } else {
            begin += count;
            count = ck_item_tiles(plan, CK_GEMM_MR, begin, down, all, 1);
        }
        if (count == 0) return;
        const int64_t i0 = begin % down * CK_GEMM_MR, j0 = begin / down * plan->item_cols;
        const int64_t m = ck_min(count * CK_GEMM_MR, s->rows - i0), n = ck_min(plan->item_cols, s->cols - j0);
        FN(pack_left)(pa, (const real *)g->a + (s->row0 + i0) * g->a_row + s->k0 * g->a_col, g->a_row, g->a_col, m,
                      s->k);
        FN(gemm_item)(g, s, c_is_f32, pa, i0, m, j0, n);
    }
}

/* Go on along k, then down, then to the right; false at the end. */
INLINE int FN(gemm_next_step)(const ck_gemm_args *g, const ck_gemm_plan *plan, int64_t depth, FN(gemm_step) *s) {
    s->k0 += s->k;
    if (s->k0 >= g->k) {
        s->k0 = 0;
        s->row0 += s->rows;
    }
    if (s->row0 >= g->m) {
        s->row0 = 0;
        s->col0 += s->cols;
    }
    s->rows = ck_min(plan->rows, g->m - s->row0);
    s->cols = ck_min(plan->cols, g->n - s->col0);
    s->k = ck_min(depth, g->k - s->k0);
    return s->col0 < g->n;
}

/* Some columns of the step's block of b into their place. */
INLINE void FN(pack_columns)(const ck_gemm_args *g, const FN(gemm_step) *s, float *packed, ck_range columns) {
    FN(pack_right)(packed, (const real *)g->b + s->k0 * g->b_row + s->col0 * g->b_col, g->b_row, g->b_col,
                   columns.begin, columns.end, s->k);
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
    FN(gemm_counters) *next = (FN(gemm_counters) *)team->shared;
    const int64_t block = ck_round_up(plan.cols * plan.depth + VL, 16);
    float *const packed_b[2] = {(float *)(team->shared + 64), (float *)(team->shared + 64) + block};
    const int several = !c_is_f32 && depth < g->k;

    FN(gemm_step) s = {.rows = ck_min(plan.rows, g->m), .cols = ck_min(plan.cols, g->n), .k = ck_min(depth, g->k),
                       .sums = several ? packed_b[1] + block : NULL, .sums_row = plan.cols};
    FN(pack_columns)(g, &s, packed_b[0], ck_split(s.cols, CK_GEMM_NR, team->size, team->index));
    if (team->index == 0) *next = (FN(gemm_counters)){{0, 0}, {0, 0}};
    ck_barrier(team);
    for (int now = 0;; now = 1 - now) {
        if (team->index == 0) next->item[1 - now] = next->column[now] = 0;  /* those of the step after, and of this one */
        s.b = packed_b[now];
        FN(gemm_items)(g, team, &plan, &s, c_is_f32, &next->item[now]);
        if (!FN(gemm_next_step)(g, &plan, depth, &s)) return;
        const int64_t some = CK_GEMM_NR * ck_max(1, s.cols / CK_GEMM_NR / (8 * team->size));
        for (int64_t begin; (begin = __atomic_fetch_add(&next->column[1 - now], some, __ATOMIC_RELAXED)) < s.cols;)
            FN(pack_columns)(g, &s, packed_b[1 - now], (ck_range){begin, ck_min(s.cols, begin + some)});
        ck_barrier(team);
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
