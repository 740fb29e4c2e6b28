/* Causal attention in tiles, O(T) memory (Dao et al. 2022; Dao 2023): forward with the online softmax,
 * backward from the saved log-sum-exp. attention_tile.h has the words.
 *
 * Each output element belongs to one item and each item to one thread, so nothing races; tiles of keys
 * begin at multiples of CK_TILE whoever computes them, so forward's bits do not depend on the number of
 * threads. */

/* Row r of an array (B, S, H, D); key `key` of an array (B, T, K, D); row r's place in lse and delta (B,
 * H, S). */
#define QUERY_ROW(type, pointer, strides, r)                                                                \
    ((type *)(pointer) + t->batch * (strides).batch + ((r) / t->group) * (strides).row                      \
     + (t->head * t->group + (r) % t->group) * (strides).head)
#define KEY_ROW(type, pointer, strides, key)                                                                \
    ((type *)(pointer) + t->batch * (strides).batch + (key) * (strides).row + t->head * (strides).head)
#define ROW_INDEX(r) ((t->batch * t->a->h + t->head * t->group + (r) % t->group) * t->a->s + (r) / t->group)

/* One row into plain layout. */
INLINE void FN(widen)(float *dst, const real *src, const ck_heads *t) {
    EACH_VECTOR(i, m, t->d, v_store(dst + i, r_load_n(src + i, m)););
    for (int64_t i = ck_round_up(t->d, VL); i < t->padded; i += VL) v_store(dst + i, v_zero());
}

/* One row out of plain layout, times scale. */
INLINE void FN(narrow)(real *dst, const float *src, const ck_heads *t, float scale) {
    const vf factor = v_set1(scale);
    EACH_VECTOR(i, m, t->d, r_store_n(dst + i, v_mul(v_load_n(src + i, m), factor), m););
}

/* Tiles of rows (forward) or of keys (backward) that share one packing of the other side. */
#define CK_BLOCK_TILES 4

/* Rows [row0, row1) of one key/value head: loop over the tiles of keys, each packed once for all the
 * block's tiles. */
static void FN(attention_forward_block)(const ck_heads *t, int64_t row0, int64_t row1, char *cursor) {
    const ck_attention_args *a = t->a;
    const int64_t tiles = ck_ceil_div(row1 - row0, CK_TILE);
    float *keys_left = ck_floats(&cursor, CK_TILE * t->d), *values = ck_floats(&cursor, CK_TILE * t->padded);
    float *scores = ck_floats(&cursor, CK_TILE * CK_PITCH);
    float *begin = ck_floats(&cursor, CK_TILE), *end = ck_floats(&cursor, CK_TILE);
    float *shrink = ck_floats(&cursor, CK_TILE);
    float *query[CK_BLOCK_TILES], *out[CK_BLOCK_TILES], *largest[CK_BLOCK_TILES], *total[CK_BLOCK_TILES];
    for (int64_t i = 0; i < tiles; i++) {
        const int64_t first = row0 + i * CK_TILE, rows = ck_min(CK_TILE, row1 - first);
        query[i] = ck_floats(&cursor, CK_TILE * t->d);
        out[i] = ck_floats(&cursor, CK_TILE * t->padded);
        largest[i] = ck_floats(&cursor, CK_TILE);
        total[i] = ck_floats(&cursor, CK_TILE);
        for (int64_t r = 0; r < rows; r++)
            FN(widen)(values + r * t->padded, QUERY_ROW(const real, a->q, a->q_s, first + r), t);
        right_panels(query[i], values, rows, t, a->scale);
        memset(out[i], 0, (size_t)(CK_TILE * t->padded) * sizeof(float));
        for (int64_t r = 0; r < CK_TILE; r++) largest[i][r] = -INFINITY, total[i][r] = 0.0f;
    }
    const ck_range all = visible_to_any(t, row0, row1);
    for (int64_t k0 = all.begin / CK_TILE * CK_TILE; k0 < all.end; k0 += CK_TILE) {
        const int64_t keys = ck_min(CK_TILE, all.end - k0);
        FN(pack_a)(keys_left, KEY_ROW(const real, a->k, a->k_s, k0), a->k_s.row, 1, keys, t->d);
        for (int64_t key = 0; key < keys; key++)
            FN(widen)(values + key * t->padded, KEY_ROW(const real, a->v, a->v_s, k0 + key), t);
        for (int64_t i = 0; i < tiles; i++) {
            const int64_t first = row0 + i * CK_TILE, rows = ck_min(CK_TILE, row1 - first);
            const int sees = mask_of_tile(t, first, rows, k0, keys, begin, end);
            if (sees == CK_SEES_NONE) continue;
            scores_of_tile(scores, keys_left, query[i], keys, rows, t->d);
            const int masked = sees == CK_SEES_SOME;
            if (softmax_of_tile(scores, largest[i], total[i], shrink, keys, rows, masked, begin, end))
                scale_rows(out[i], shrink, rows, t->padded);
            add_by_rows(out[i], scores, values, rows, keys, t->padded);
        }
    }
    for (int64_t i = 0; i < tiles; i++)
        for (int64_t r = 0; r < ck_min(CK_TILE, row1 - row0 - i * CK_TILE); r++) {
            const int64_t row = row0 + i * CK_TILE + r;
            FN(narrow)(QUERY_ROW(real, a->o, a->o_s, row), out[i] + r * t->padded, t, 1.0f / total[i][r]);
            a->lse[ROW_INDEX(row)] = largest[i][r] + logf(total[i][r]);
        }
}

static void FN(attention_forward)(const void *args, const ck_team *team) {
    const ck_attention_args *a = args;
    const int64_t pairs = a->b * a->kv, rows = a->h / a->kv * a->s, tiles = ck_ceil_div(rows, CK_TILE);
    int64_t each = CK_BLOCK_TILES;  /* fewer when there would be too few items to share out evenly */
    while (each > 1 && pairs * ck_ceil_div(tiles, each) < 4 * team->size) each--;
    const int64_t blocks = ck_ceil_div(tiles, each);
    for (int64_t item = 0; item < pairs * blocks; item++) {
        if (ck_deal(item, team->size) != team->index) continue;
        const int64_t row0 = (blocks - 1 - item / pairs) * each * CK_TILE;  /* the last rows see most keys */
        const ck_heads t = heads_of(a, item % pairs);
        FN(attention_forward_block)(&t, row0, ck_min(row0 + each * CK_TILE, rows), team->scratch);
    }
}

/* What backward keeps of a tile of keys, and of a tile of rows. */
typedef struct {
    int64_t k0, keys;
    float *keys_left, *keys_plain, *values_left, *dk, *dv;
} FN(key_tile);

typedef struct {
    int64_t row0, rows;
    float *query_plain, *query_right, *dout_plain, *dout_right, *lse, *delta, *dq;
} FN(row_tile);

static FN(key_tile) FN(new_key_tile)(const ck_heads *t, char **cursor) {
    const int64_t n = CK_TILE * t->d, p = CK_TILE * t->padded;
    FN(key_tile) tile = {0, 0, ck_floats(cursor, n), ck_floats(cursor, p), ck_floats(cursor, n), NULL, NULL};
    tile.dk = ck_floats(cursor, p);
    tile.dv = ck_floats(cursor, p);
    return tile;
}

static FN(row_tile) FN(new_row_tile)(const ck_heads *t, char **cursor) {
    const int64_t n = CK_TILE * t->d, p = CK_TILE * t->padded;
    FN(row_tile) tile = {0};
    tile.query_plain = ck_floats(cursor, p);
    tile.query_right = ck_floats(cursor, n);
    tile.dout_plain = ck_floats(cursor, p);
    tile.dout_right = ck_floats(cursor, n);
    tile.lse = ck_floats(cursor, CK_TILE);
    tile.delta = ck_floats(cursor, CK_TILE);
    tile.dq = ck_floats(cursor, p);
    return tile;
}

static void FN(load_keys)(const ck_heads *t, FN(key_tile) *tile, int64_t k0) {
    const ck_attention_args *a = t->a;
    tile->k0 = k0;
    tile->keys = ck_min(CK_TILE, a->t - k0);
    FN(pack_a)(tile->keys_left, KEY_ROW(const real, a->k, a->k_s, k0), a->k_s.row, 1, tile->keys, t->d);
    FN(pack_a)(tile->values_left, KEY_ROW(const real, a->v, a->v_s, k0), a->v_s.row, 1, tile->keys, t->d);
    for (int64_t key = 0; key < tile->keys; key++)
        FN(widen)(tile->keys_plain + key * t->padded, KEY_ROW(const real, a->k, a->k_s, k0 + key), t);
    memset(tile->dk, 0, (size_t)(CK_TILE * t->padded) * sizeof(float));
    memset(tile->dv, 0, (size_t)(CK_TILE * t->padded) * sizeof(float));
}

static void FN(load_rows)(const ck_heads *t, FN(row_tile) *tile, int64_t row0) {
    const ck_attention_args *a = t->a;
    tile->row0 = row0;
    tile->rows = ck_min(CK_TILE, t->rows - row0);
    for (int64_t r = 0; r < CK_TILE; r++) {
        const int64_t row = row0 + r;
        if (r >= tile->rows) {  /* a lane of no row: exp(score - Inf) = 0 */
            tile->lse[r] = INFINITY;
            tile->delta[r] = 0.0f;
            continue;
        }
        tile->lse[r] = a->lse[ROW_INDEX(row)];
        tile->delta[r] = a->delta[ROW_INDEX(row)];
        FN(widen)(tile->query_plain + r * t->padded, QUERY_ROW(const real, a->q, a->q_s, row), t);
        FN(widen)(tile->dout_plain + r * t->padded, QUERY_ROW(const real, a->dout, a->dout_s, row), t);
    }
    right_panels(tile->query_right, tile->query_plain, tile->rows, t, a->scale);
    right_panels(tile->dout_right, tile->dout_plain, tile->rows, t, 1.0f);
    memset(tile->dq, 0, (size_t)(CK_TILE * t->padded) * sizeof(float));
}

/* One tile of keys against one of rows: dk, dv of the keys and dq of the rows, whichever are wanted. */
static void FN(backward_tile)(const ck_heads *t, FN(key_tile) *k, FN(row_tile) *q, int want_keys,
                              int want_rows, char *cursor) {
    float *scores = ck_floats(&cursor, CK_TILE * CK_PITCH), *dscores = ck_floats(&cursor, CK_TILE * CK_PITCH);
    float *begin = ck_floats(&cursor, CK_TILE), *end = ck_floats(&cursor, CK_TILE);
    const int sees = mask_of_tile(t, q->row0, q->rows, k->k0, k->keys, begin, end);
    if (sees == CK_SEES_NONE) return;
    scores_of_tile(scores, k->keys_left, q->query_right, k->keys, q->rows, t->d);
    scores_of_tile(dscores, k->values_left, q->dout_right, k->keys, q->rows, t->d);
    softmax_backward_of_tile(scores, dscores, q->lse, q->delta, t->a->scale, k->keys, q->rows,
                             sees == CK_SEES_SOME, begin, end);
    if (want_keys) {
        add_by_keys(k->dv, scores, q->dout_plain, k->keys, q->rows, t->padded);
        add_by_keys(k->dk, dscores, q->query_plain, k->keys, q->rows, t->padded);
    }
    if (want_rows) add_by_rows(q->dq, dscores, k->keys_plain, q->rows, k->keys, t->padded);
}

/* dk and dv of `tiles` tiles of keys from key k0 on. With dq_sum, an fp32 array (rows, dq_row apart by row
 * and dq_head by head within a group), the rows' dq is added to it too. */
static void FN(backward_keys)(const ck_heads *t, int64_t k0, int64_t tiles, float *dq_sum, int64_t dq_row,
                              int64_t dq_head, char *cursor) {
    const ck_attention_args *a = t->a;
    FN(key_tile) k[CK_BLOCK_TILES];
    for (int64_t i = 0; i < tiles; i++) {
        k[i] = FN(new_key_tile)(t, &cursor);
        FN(load_keys)(t, &k[i], k0 + i * CK_TILE);
    }
    FN(row_tile) q = FN(new_row_tile)(t, &cursor);
    const int64_t k1 = ck_min(k0 + tiles * CK_TILE, a->t);
    for (int64_t row0 = 0; row0 < t->rows; row0 += CK_TILE) {
        const ck_range seen = visible_to_any(t, row0, ck_min(row0 + CK_TILE, t->rows));
        if (seen.end <= k0 || seen.begin >= k1) continue;
        FN(load_rows)(t, &q, row0);
        for (int64_t i = 0; i < tiles; i++) FN(backward_tile)(t, &k[i], &q, 1, dq_sum != NULL, cursor);
        if (!dq_sum) continue;
        for (int64_t r = 0; r < q.rows; r++) {
            float *into = dq_sum + (row0 + r) / t->group * dq_row + (row0 + r) % t->group * dq_head;
            const float *from = q.dq + r * t->padded;
            EACH_VECTOR(i, m, t->d,
                v_store_n(into + i, v_add(v_load_n(into + i, m), v_load_n(from + i, m)), m););
        }
    }
    for (int64_t i = 0; i < tiles; i++)
        for (int64_t key = 0; key < k[i].keys; key++) {
            FN(narrow)(KEY_ROW(real, a->dk, a->dk_s, k[i].k0 + key), k[i].dk + key * t->padded, t, 1.0f);
            FN(narrow)(KEY_ROW(real, a->dv, a->dv_s, k[i].k0 + key), k[i].dv + key * t->padded, t, 1.0f);
        }
}

/* dq of one tile of rows. */
static void FN(backward_rows)(const ck_heads *t, int64_t row0, char *cursor) {
    FN(key_tile) k = FN(new_key_tile)(t, &cursor);
    FN(row_tile) q = FN(new_row_tile)(t, &cursor);
    FN(load_rows)(t, &q, row0);
    const ck_range seen = visible_to_any(t, row0, row0 + q.rows);
    for (int64_t k0 = seen.begin / CK_TILE * CK_TILE; k0 < seen.end; k0 += CK_TILE) {
        FN(load_keys)(t, &k, k0);
        FN(backward_tile)(t, &k, &q, 0, 1, cursor);
    }
    for (int64_t r = 0; r < q.rows; r++)
        FN(narrow)(QUERY_ROW(real, t->a->dq, t->a->dq_s, row0 + r), q.dq + r * t->padded, t, 1.0f);
}

/* delta = sum over D of dout * o, for the rows of one key/value head that are this thread's. */
static void FN(attention_delta)(const ck_attention_args *a, const ck_team *team) {
    const ck_range part = ck_split(a->b * a->h * a->s, 16, team->size, team->index);
    for (int64_t at = part.begin; at < part.end; at++) {
        const int64_t s = at % a->s, h = at / a->s % a->h, b = at / a->s / a->h;
        const real *o = (const real *)a->o + b * a->o_s.batch + s * a->o_s.row + h * a->o_s.head;
        const real *dout = (const real *)a->dout + b * a->dout_s.batch + s * a->dout_s.row
            + h * a->dout_s.head;
        vf sum = v_zero();
        EACH_VECTOR(i, m, a->d, sum = v_fma(r_load_n(o + i, m), r_load_n(dout + i, m), sum););
        a->delta[at] = v_sum(sum);
    }
}

/* Two ways. By heads: one thread takes all of a key/value head and sums dq as it goes: five products per
 * tile. By tiles, when the heads do not share out evenly or a bf16 head's dq sums do not fit the
 * workspace: items are blocks of keys, then tiles of rows, and the scores are computed twice: seven
 * products. */
static void FN(attention_backward)(const void *args, const ck_team *team) {
    const ck_attention_args *a = args;
    const int64_t pairs = a->b * a->kv, rows = a->h / a->kv * a->s;
    const int64_t key_tiles = ck_ceil_div(a->t, CK_TILE), row_tiles = ck_ceil_div(rows, CK_TILE);
    const int64_t padded = ck_round_up(a->d, CK_NR), tile_bytes = 5 * (CK_TILE * padded * 4 + 128);
    const int64_t tiles = ck_max(1, ck_min(CK_BLOCK_TILES, (int64_t)CK_SCRATCH_BYTES / 3 / tile_bytes));
    const int64_t sums_bytes = CK_STORAGE == CK_F32 ? 0 : (rows * a->d + 64) * 4;
    const int64_t left = CK_SCRATCH_BYTES - (tiles + 1) * tile_bytes - 2 * CK_TILE * CK_PITCH * 4 - 8192;
    FN(attention_delta)(a, team);
    ck_barrier(team);
    if (ck_ceil_div(pairs, team->size) * team->size * 5 <= pairs * 7 && sums_bytes <= left) {
        for (int64_t pair = team->index; pair < pairs; pair += team->size) {
            const ck_heads heads = heads_of(a, pair), *t = &heads;
            char *cursor = team->scratch;
#if CK_STORAGE == CK_F32
            float *dq = QUERY_ROW(float, a->dq, a->dq_s, 0);
            const int64_t dq_row = a->dq_s.row, dq_head = a->dq_s.head;
#else
            float *dq = ck_floats(&cursor, t->rows * t->d);
            const int64_t dq_row = t->group * t->d, dq_head = t->d;
#endif
            for (int64_t r = 0; r < t->rows; r++)
                memset(dq + r / t->group * dq_row + r % t->group * dq_head, 0, (size_t)t->d * sizeof(float));
            for (int64_t i = 0; i < key_tiles; i += tiles)
                FN(backward_keys)(t, i * CK_TILE, ck_min(tiles, key_tiles - i), dq, dq_row, dq_head, cursor);
#if CK_STORAGE != CK_F32
            for (int64_t r = 0; r < t->rows; r++)
                FN(narrow)(QUERY_ROW(real, a->dq, a->dq_s, r),
                           dq + r / t->group * dq_row + r % t->group * dq_head, t, 1.0f);
#endif
        }
        return;
    }
    const int64_t blocks = ck_ceil_div(key_tiles, tiles);
    for (int64_t item = 0; item < pairs * blocks; item++) {  /* the first keys are seen by most rows */
        if (ck_deal(item, team->size) != team->index) continue;
        const ck_heads t = heads_of(a, item % pairs);
        const int64_t i = item / pairs * tiles;
        FN(backward_keys)(&t, i * CK_TILE, ck_min(tiles, key_tiles - i), NULL, 0, 0, team->scratch);
    }
    for (int64_t item = 0; item < pairs * row_tiles; item++) {  /* the last rows see most keys */
        if (ck_deal(item, team->size) != team->index) continue;
        const ck_heads t = heads_of(a, item % pairs);
        FN(backward_rows)(&t, (row_tiles - 1 - item / pairs) * CK_TILE, team->scratch);
    }
}

#undef QUERY_ROW
#undef KEY_ROW
#undef ROW_INDEX
