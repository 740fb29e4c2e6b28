/* Blocked matmul (Goto & van de Geijn 2008) around the register tile of gemm_kernel.h; the blocks are those of
 * gemm_plan.h. b's block is packed once, panel by panel, into the team's shared workspace, by whoever first needs a
 * panel; a's rows by the thread that takes them, into its own. What will be packed is fetched while tiles are
 * multiplied. Who finds no more items of a block packs panels of the next one, into the other of two places, until
 * all have come. Included once per storage type. */

/* The function of a register tile of so many rows and columns. */
#if CK_TILED
#define CK_GEMM_TILE(high, wide) gemm_tiles_amx[(wide) > VL][(high) > CK_AMX_ROWS]
#elif CK_PAIRED
#define CK_GEMM_TILE(high, wide) gemm_tiles_paired[ck_ceil_div(wide, VL) - 1][(high) - 1]
#else
#define CK_GEMM_TILE(high, wide) gemm_tiles_f32[ck_ceil_div(wide, VL) - 1][(high) - 1]
#endif

/* What all threads know of one step along k of one block of C. */
typedef struct {
    int64_t number;                     /* of the step, from 0 */
    int64_t row0, rows, col0, cols;     /* the block of C */
    int64_t k0, k;                      /* the step along k, in elements */
    float *b;                           /* packed */
    uint32_t *panels;                   /* of each panel of b: how far it is */
    float *sums;                        /* (rows, cols) fp32, or NULL */
    int64_t sums_row;
} FN(gemm_step);

#ifndef CK_GEMM_SHARED
#define CK_GEMM_SHARED
/* What the threads of a team share beside the packed blocks of b. */
typedef struct {
    int64_t item[2];        /* the next item of a step, of two steps in turn */
    int64_t arrived;        /* threads that found no more items, over all steps */
    _Alignas(64) uint32_t panels[2][CK_GEMM_PANELS];  /* 2 number + 1: being packed for that step; one more: packed */
} ck_gemm_shared;
_Static_assert(sizeof(ck_gemm_shared) <= CK_GEMM_NOTES, "what threads tell each other has its room");

typedef struct { int64_t i, m, j, n; } ck_gemm_item;  /* rows and columns of a step's block */

/* Wait a little, for the i-th time. */
INLINE void ck_pause(int i) {
    if (i >= 1000) sched_yield();
#if defined(__x86_64__)
    else __builtin_ia32_pause();
#endif
}
#endif

/* Up to so many units along k, C's traffic outweighs the products: tiles follow one another along C's rows, and the
 * next tile of C is asked for before this one is multiplied. Deeper, they go down, so that b's panel stays near. */
#define CK_GEMM_SHALLOW 64

/* One tile of C at (row, col), `high` x `wide`, from the packed a and b. i, j: its place in the step's block. */
INLINE void FN(gemm_one_tile)(const ck_gemm_args *g, const FN(gemm_step) *s, const int c_is_f32, const float *a,
                              const float *b, int64_t i, int64_t j, int64_t high, int64_t wide, ck_tile_out *out) {
    _Alignas(64) float tile[CK_MR * CK_GEMM_NR];
    const int64_t row = s->row0 + i, col = s->col0 + j, units = FN(units)(s->k);
    const int first = s->k0 == 0, last = s->k0 + s->k >= g->k;
    const int64_t c_bytes = c_is_f32 ? 4 : sizeof(real), at = row * g->c_row + col;
    const gemm_tile_fn multiply = CK_GEMM_TILE(high, wide);
    out->rows = high;
    out->near = (const char *)g->c + at * c_bytes;
    out->near_row = g->c_row * c_bytes;
    out->near_bytes = CK_GEMM_NR * c_bytes;
    out->beside = g->residual && g->residual != g->c && (c_is_f32 ? first : last)
                      ? (const char *)g->residual + (row * g->residual_row + col) * c_bytes : NULL;
    out->beside_row = g->residual_row * c_bytes;
    if (c_is_f32) {
        float *c = (float *)g->c + at;
        const int add = !first || g->accumulate, extras = first && (g->bias || g->residual);
        const int whole = CK_TILED ? high == CK_MR && wide == CK_GEMM_NR : wide % VL == 0, direct = whole && !extras;
        out->c = direct ? c : tile;
        out->c_row = direct ? g->c_row : CK_GEMM_NR;
        out->store = direct && add ? CK_TILE_ADD : CK_TILE_WRITE;
        multiply(units, a, b, out);
        if (!direct)
            FN(finish)(c, 1, g->c_row, tile, CK_GEMM_NR, high, wide, add, first && g->bias ? g->bias + col : NULL,
                       first && g->residual ? (const float *)g->residual + row * g->residual_row + col : NULL,
                       g->residual_row);
        return;
    }
    real *c = (real *)g->c + at;
    const real *beside = g->residual ? (const real *)g->residual + row * g->residual_row + col : NULL;
    out->before = NULL;
    if (CK_PAIRED && last && wide == CK_GEMM_NR && !g->bias && !g->accumulate) {
        out->before = first ? NULL : s->sums + i * s->sums_row + j;
        out->before_row = s->sums_row;
        out->c = c;
        out->c_row = g->c_row;
        out->residual = beside;
        out->residual_row = g->residual_row;
        out->store = CK_TILE_BF16;
        multiply(units, a, b, out);
        return;
    }
    float *t = out->c = s->sums ? s->sums + i * s->sums_row + j : tile;
    const int64_t t_row = out->c_row = s->sums ? s->sums_row : CK_GEMM_NR;
    out->store = first ? CK_TILE_WRITE : CK_TILE_ADD;
    if (!last) {
        out->near = (const char *)t;
        out->near_row = t_row * 4;
        out->near_bytes = CK_GEMM_NR * 4;
    }
    multiply(units, a, b, out);
    if (last)
        FN(finish)(c, 0, g->c_row, t, t_row, high, wide, g->accumulate, g->bias ? g->bias + col : NULL, beside,
                   g->residual_row);
}

/* The first of the item's rows, in whole tiles, that panel p of b's block is multiplied with: all, but for tiles that are
 * left out above the diagonal. */
INLINE int64_t FN(gemm_first_row)(const ck_gemm_args *g, const FN(gemm_step) *s, ck_gemm_item item, int64_t p) {
    if (!g->lower) return 0;
    const int64_t beyond = s->col0 + p * CK_GEMM_NR - (s->row0 + item.i);
    return ck_max(0, beyond / CK_MR * CK_MR);
}

/* The lines of `count` columns of k elements, to be asked for in `times` parts. */
INLINE ck_fetch FN(lines_of)(const real *src, int64_t j_stride, int64_t p_stride, int64_t count, int64_t k,
                             int64_t times) {
    const int64_t rows = j_stride == 1 ? k : count, bytes = (j_stride == 1 ? count : k) * (int64_t)sizeof(real);
    const int64_t row = (j_stride == 1 ? p_stride : j_stride) * (int64_t)sizeof(real);
    const int64_t lines = ck_ceil_div(bytes, 64) + ((((int64_t)(intptr_t)src | row) & 63) != 0);
    return (ck_fetch){(const char *)src, NULL, row, lines, 0, ck_ceil_div(rows * lines, times), 0};
}

/* Panel p of the step's b. */
INLINE const real *FN(gemm_source)(const ck_gemm_args *g, const FN(gemm_step) *s, int64_t p) {
    return (const real *)g->b + s->k0 * g->b_row + (s->col0 + p * CK_GEMM_NR) * g->b_col;
}

/* Packs panel p of the step's b unless another thread has begun to. */
INLINE void FN(gemm_pack_panel)(const ck_gemm_args *g, const FN(gemm_step) *s, int64_t p) {
    const uint32_t begun = 2 * (uint32_t)s->number + 1;
    uint32_t state = __atomic_load_n(s->panels + p, __ATOMIC_RELAXED);
    if (state >= begun
        || !__atomic_compare_exchange_n(s->panels + p, &state, begun, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return;
    float *const panel = s->b + p * ck_panel_units(CK_GEMM_NR, FN(units)(s->k));
    const int64_t wide = ck_min(CK_GEMM_NR, s->cols - p * CK_GEMM_NR);
    if (g->format) FN(pack_blocks)(panel, g, s->k0, g->first_col + s->col0 + p * CK_GEMM_NR, wide, s->k);
    else FN(pack_right)(panel, FN(gemm_source)(g, s, p), g->b_row, g->b_col, wide, s->k);
    __atomic_store_n(s->panels + p, begun + 1, __ATOMIC_RELEASE);
}

/* Panel p is packed when this returns. */
INLINE void FN(gemm_need)(const ck_gemm_args *g, const FN(gemm_step) *s, int64_t p) {
    const uint32_t packed = 2 * (uint32_t)s->number + 2;
    if (__atomic_load_n(s->panels + p, __ATOMIC_ACQUIRE) == packed) return;
    FN(gemm_pack_panel)(g, s, p);
    for (int i = 0; __atomic_load_n(s->panels + p, __ATOMIC_ACQUIRE) != packed; i++) ck_pause(i);
}

/* The next item of the step; count is 0 when there is none. */
INLINE ck_gemm_item FN(gemm_take)(const ck_team *team, const ck_gemm_plan *plan, const FN(gemm_step) *s,
                                  int64_t *next) {
    const int64_t down = ck_ceil_div(s->rows, CK_MR), all = down * ck_ceil_div(s->cols, plan->item_cols);
    int64_t begin = __atomic_load_n(next, __ATOMIC_RELAXED), count;
    do count = ck_item_tiles(plan, CK_MR, begin, down, all, team->size);
    while (!__atomic_compare_exchange_n(next, &begin, begin + count, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    ck_gemm_item item = {begin % down * CK_MR, 0, begin / down * plan->item_cols, 0};
    if (count == 0) return item;
    item.m = ck_min(count * CK_MR, s->rows - item.i);
    item.n = ck_min(plan->item_cols, s->cols - item.j);
    return item;
}

INLINE const real *FN(gemm_rows)(const ck_gemm_args *g, const FN(gemm_step) *s, ck_gemm_item item) {
    return (const real *)g->a + (s->row0 + item.i) * g->a_row + s->k0 * g->a_col;
}

/* Multiplies the item, a's rows packed in pa, and takes the next one, whose rows are asked for meanwhile; b's panels
 * are packed when they are first needed, and asked for one panel before. */
INLINE ck_gemm_item FN(gemm_do_item)(const ck_gemm_args *g, const ck_team *team, const ck_gemm_plan *plan,
                                     const FN(gemm_step) *s, const int c_is_f32, const float *pa, ck_gemm_item item,
                                     int64_t *next) {
    const int64_t units = FN(units)(s->k), first = item.j / CK_GEMM_NR, panels = ck_ceil_div(item.n, CK_GEMM_NR);
    const int64_t a_panel = ck_panel_units(CK_MR, units), b_panel = ck_panel_units(CK_GEMM_NR, units);
    const int64_t start = panels * team->index / team->size;  /* threads begin at different panels */
    ck_tile_out out = {0};
    if (units > CK_GEMM_SHALLOW) {
        const int64_t times = ck_ceil_div(item.m, CK_MR) * (units / 8);
        ck_gemm_item following = {0, 0, 0, 0};
        for (int64_t c = 0; c < panels; c++) {
            const int64_t p = first + (start + c) % panels, from = FN(gemm_first_row)(g, s, item, p);
            if (from < item.m) FN(gemm_need)(g, s, p);
            out.fetch.each = out.fetch.into_each = 0;
            if (c + 1 == panels) {
                following = FN(gemm_take)(team, plan, s, next);
                if (following.m)
                    out.fetch = FN(lines_of)(FN(gemm_rows)(g, s, following), g->a_row, g->a_col, following.m, s->k,
                                             times);
            } else {
                const int64_t then = first + (start + c + 1) % panels;
                if (!g->format && __atomic_load_n(s->panels + then, __ATOMIC_RELAXED) < 2 * (uint32_t)s->number + 1) {
                    out.fetch = FN(lines_of)(FN(gemm_source)(g, s, then), g->b_col, g->b_row,
                                             ck_min(CK_GEMM_NR, s->cols - then * CK_GEMM_NR), s->k, times);
                    out.fetch.into = (const char *)(s->b + then * b_panel);
                    out.fetch.into_each = ck_ceil_div(b_panel * (int64_t)sizeof(float) / 64, times);
                }
            }
            for (int64_t i = from; i < item.m; i += CK_MR)
                FN(gemm_one_tile)(g, s, c_is_f32, pa + i / CK_MR * a_panel, s->b + p * b_panel, item.i + i,
                                  p * CK_GEMM_NR, ck_min(CK_MR, item.m - i),
                                  ck_min(CK_GEMM_NR, s->cols - p * CK_GEMM_NR), &out);
        }
        return following;
    }
    const int64_t c_bytes = c_is_f32 ? 4 : sizeof(real);
    for (int64_t i = 0; i < item.m; i += CK_MR) {
        const int64_t high = ck_min(CK_MR, item.m - i);
        const char *row = (const char *)g->c + ((s->row0 + item.i + i) * g->c_row + s->col0) * c_bytes;
        for (int64_t c = 0; c < panels; c++) {
            const int64_t p = first + (start + c) % panels;
            if (FN(gemm_first_row)(g, s, item, p) > i) continue;
            FN(gemm_need)(g, s, p);
            for (int64_t r = 0; r < high; r++)
                for (int64_t at = 0; at < CK_GEMM_NR * c_bytes; at += 64)
                    ck_prefetch(row + (r * g->c_row + (p + 1) * CK_GEMM_NR) * c_bytes + at);
            FN(gemm_one_tile)(g, s, c_is_f32, pa + i / CK_MR * a_panel, s->b + p * b_panel, item.i + i,
                              p * CK_GEMM_NR, high, ck_min(CK_GEMM_NR, s->cols - p * CK_GEMM_NR), &out);
        }
    }
    return FN(gemm_take)(team, plan, s, next);
}

/* The items of one step, taken in turn by whichever thread is free: a run of tiles that go down, at most the plan's
 * item, and a share of what is left towards the end, so that the threads end together. */
INLINE void FN(gemm_items)(const ck_gemm_args *g, const ck_team *team, const ck_gemm_plan *plan,
                           const FN(gemm_step) *s, const int c_is_f32, int64_t *next) {
    float *pa = (float *)team->scratch;
    ck_gemm_item item = FN(gemm_take)(team, plan, s, next);
    while (item.m) {
        FN(pack_left)(pa, FN(gemm_rows)(g, s, item), g->a_row, g->a_col, item.m, s->k);
        item = FN(gemm_do_item)(g, team, plan, s, c_is_f32, pa, item, next);
    }
}

/* Go on along k, then down, then to the right; false at the end. */
INLINE int FN(gemm_next_step)(const ck_gemm_args *g, const ck_gemm_plan *plan, int64_t depth, FN(gemm_step) *s) {
    s->number++;
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

/* column_sums[i] = or += sum over p of a[i, p], where a's rows are contiguous along i; each thread takes a
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
            v_store_n(g->column_sums + at, g->accumulate ? v_add(v_load_n(g->column_sums + at, m), sum[v]) : sum[v], m);
        }
    }
}

/* All steps of a product. b's packed blocks stand in two places in turn, which one thread alone has the same. */
INLINE void FN(gemm_steps)(const ck_gemm_args *g, const ck_team *team, const ck_gemm_plan *plan, const int c_is_f32,
                           float *const place[2], float *sums) {
    ck_gemm_shared *shared = (ck_gemm_shared *)team->shared;
    int64_t depth = plan->depth * (CK_PAIRED ? 2 : 1);  /* in elements */
    if (g->format && depth < g->k) depth = ck_max(CK_GROUP, depth / CK_GROUP * CK_GROUP);
    if (team->index == 0) {
        shared->item[0] = shared->arrived = 0;
        for (int i = 0; i < 2; i++)
            memset(shared->panels[i], 0, (size_t)(plan->cols / CK_GEMM_NR) * sizeof **shared->panels);
    }
    FN(gemm_step) s = {.rows = ck_min(plan->rows, g->m), .cols = ck_min(plan->cols, g->n), .k = ck_min(depth, g->k),
                       .b = place[0], .panels = shared->panels[0],
                       .sums = !c_is_f32 && depth < g->k ? sums : NULL, .sums_row = plan->cols};
    for (;;) {
        ck_barrier(team);
        const int now = s.number & 1;
        if (team->index == 0) shared->item[1 - now] = 0;
        FN(gemm_items)(g, team, plan, &s, c_is_f32, &shared->item[now]);
        const int64_t all = (s.number + 1) * team->size;
        if (!FN(gemm_next_step)(g, plan, depth, &s)) return;
        s.b = place[1 - now];
        s.panels = shared->panels[1 - now];
        /* until all are here, some panels of the next step */
        const int64_t panels = ck_ceil_div(s.cols, CK_GEMM_NR), start = panels * team->index / team->size;
        __atomic_fetch_add(&shared->arrived, 1, __ATOMIC_RELAXED);
        for (int64_t c = 0; c < panels && __atomic_load_n(&shared->arrived, __ATOMIC_RELAXED) < all; c++)
            FN(gemm_pack_panel)(g, &s, (start + c) % panels);
    }
}

/* This thread's part of C, alone. */
INLINE void FN(gemm_alone)(const ck_gemm_args *g, const ck_team *team, const int c_is_f32, ck_gemm_grid grid) {
    const ck_range rows = ck_split(g->m, CK_MR, grid.down, team->index / grid.across);
    const ck_range cols = ck_split(g->n, CK_GEMM_NR, grid.across, team->index % grid.across);
    const int64_t c_bytes = c_is_f32 ? 4 : sizeof(real);
    if (rows.begin == rows.end || cols.begin == cols.end) return;
    ck_gemm_args part = *g;
    part.m = rows.end - rows.begin;
    part.n = cols.end - cols.begin;
    part.a = (const real *)g->a + rows.begin * g->a_row;
    part.first_col += cols.begin;
    if (!g->format) part.b = (const real *)g->b + cols.begin * g->b_col;
    part.c = (char *)g->c + (rows.begin * g->c_row + cols.begin) * c_bytes;
    if (g->bias) part.bias = g->bias + cols.begin;
    if (g->residual)
        part.residual = (const char *)g->residual + (rows.begin * g->residual_row + cols.begin) * c_bytes;
    ck_team one = *team;
    one.index = 0;
    one.size = 1;
    one.shared = team->shared + team->index * CK_GEMM_NOTES;
    const ck_gemm_plan plan = ck_plan_gemm(part.m, part.n, FN(units)(g->k), CK_MR, CK_GEMM_NR, CK_KR, c_is_f32,
                                           team->size, 1, team->caches);
    const ck_gemm_room room = ck_room_alone(team->size, team->caches);
    char *const blocks = team->shared + team->size * CK_GEMM_NOTES;
    char *const sums = blocks + (room.shared ? team->size * room.block : 0) + team->index * room.sums;
    float *const packed = (float *)(room.shared ? blocks + team->index * room.block
                                                : team->scratch + ck_left_bytes(team->caches));
    FN(gemm_steps)(&part, &one, &plan, c_is_f32, (float *const[2]){packed, packed}, (float *)sums);
}

INLINE void FN(gemm_team)(const ck_gemm_args *g, const ck_team *team, const int c_is_f32) {
    if (g->column_sums) FN(add_column_sums)(g, team);
    if (g->m == 0 || g->n == 0) return;
    ck_gemm_args onto_itself;  /* the same sum, from registers */
    if (c_is_f32 && g->residual == g->c && g->residual_row == g->c_row && !g->bias && !g->accumulate) {
        onto_itself = *g;
        onto_itself.residual = NULL;
        onto_itself.accumulate = 1;
        g = &onto_itself;
    }
    const int64_t units = FN(units)(g->k);
    const ck_gemm_plan plan = ck_plan_gemm(g->m, g->n, units, CK_MR, CK_GEMM_NR, CK_KR, c_is_f32, team->size, 0,
                                           team->caches);
    if (CK_STORAGE == CK_F32 && (thin_is_rows(g) || thin_is_columns(g))) {
        if (thin_is_rows(g)) thin_rows(g, team, plan.depth);
        else thin_columns(g, team, plan.depth);
        return;
    }
    if (g->m <= CK_NARROW_ROWS && !g->format && units * CK_MR * 4 <= CK_SCRATCH_BYTES / 2) {
        FN(gemm_narrow)(g, team, c_is_f32, plan.depth * (CK_PAIRED ? 2 : 1));
        return;
    }
    const ck_gemm_grid grid = ck_cut_gemm(g->m, g->n, units, CK_MR, CK_GEMM_NR, CK_KR, c_is_f32, team->size,
                                          team->caches);
    if (grid.down && (!g->lower || team->size == 1)) {  /* equal parts of C are unequal work where half is left out */
        FN(gemm_alone)(g, team, c_is_f32, grid);
        return;
    }
    float *const packed = (float *)(team->shared + CK_GEMM_NOTES);
    const int64_t block = ck_round_up(plan.cols / CK_GEMM_NR * ck_panel_units(CK_GEMM_NR, plan.depth), 16);
    FN(gemm_steps)(g, team, &plan, c_is_f32, (float *const[2]){packed, packed + block}, packed + 2 * block);
}

/* a, b, c real. */
static void FN(gemm)(const void *args, const ck_team *team) {
    if (CK_TILED) t_begin();
    FN(gemm_team)(args, team, CK_STORAGE == CK_F32);
    if (CK_TILED) t_end();
}
/* a, b real, c fp32. */
static void FN(gemm_f32)(const void *args, const ck_team *team) {
    if (CK_TILED) t_begin();
    FN(gemm_team)(args, team, 1);
    if (CK_TILED) t_end();
}

/* c = scale c + shift on the diagonal, from what stands there and below it, in squares of one vector's length. */
INLINE void FN(gemm_mirror)(const ck_symmetric_product_args *a, const ck_team *team) {
    const int64_t m = a->product.m, row = a->product.c_row, squares = ck_ceil_div(m, VL);
    real *c = a->product.c;
    const vf scale = v_set1(a->scale);
    for (int64_t i = 0; i < squares; i++) {
        if (ck_deal(i, team->size) != team->index) continue;
        for (int64_t j = 0; j <= i; j++) {
            real *below = c + i * VL * row + j * VL, *above = c + j * VL * row + i * VL;
            const int64_t high = ck_min(VL, m - i * VL), wide = ck_min(VL, m - j * VL);
            vf square[VL];
            for (int64_t r = 0; r < VL; r++)
                square[r] = r < high ? v_mul(r_load_n(below + r * row, wide), scale) : v_zero();
            if (i == j) {
                float whole[VL][VL];
                for (int64_t r = 0; r < VL; r++) v_store(whole[r], square[r]);
                for (int64_t r = 0; r < high; r++) {
                    whole[r][r] += a->shift;
                    for (int64_t q = 0; q < r; q++) whole[q][r] = whole[r][q];
                }
                for (int64_t r = 0; r < high; r++) r_store_n(below + r * row, v_load(whole[r]), wide);
                continue;
            }
            for (int64_t r = 0; r < high; r++) r_store_n(below + r * row, square[r], wide);
            v_transpose(square);
            for (int64_t r = 0; r < wide; r++) r_store_n(above + r * row, square[r], high);
        }
    }
}

/* a, c real. The tiles below the diagonal and on it are multiplied, and mirrored. */
static void FN(symmetric_product)(const void *args, const ck_team *team) {
    const ck_symmetric_product_args *a = args;
    if (CK_TILED) t_begin();
    FN(gemm_team)(&a->product, team, CK_STORAGE == CK_F32);
    if (CK_TILED) t_end();
    ck_barrier(team);
    FN(gemm_mirror)(a, team);
}
#undef CK_GEMM_TILE
