/* Attention in tiles, O(T) memory (Dao et al. 2022; Dao 2023): forward with the online softmax, backward from the saved
 * log-sum-exp. attention_tile.h has the words, attention_scores.h and attention_sinks.h what some families add.
 *
 * Each output element belongs to one item and each item to one thread, so nothing races; tiles of keys begin at
 * multiples of CK_TILE whoever computes them, so forward's bits do not depend on the number of threads. */

/* Key `key` of an array (B, T, K, D). */
#define KEY_ROW(type, pointer, strides, key)                                                                \
    ((type *)(pointer) + t->batch * (strides).batch + (key) * (strides).row + t->head * (strides).head)

/* The places of the rows [row0, row0 + rows) in lse and delta (B, H, S). */
static void FN(find_places)(int64_t *found, const ck_heads *t, int64_t row0, int64_t rows) {
    const int64_t first = (t->batch * t->a->h + t->head * t->group) * t->a->s;
    int64_t s = row0 / t->group, head = row0 % t->group;
    for (int64_t r = 0; r < rows; r++) {
        found[r] = first + head * t->a->s + s;
        if (++head == t->group) s++, head = 0;
    }
}

static int64_t FN(tile_bytes)(int64_t d) { return CK_TILE * ck_round_up(d, VL) * (int64_t)sizeof(float) + 64; }

/* Rows [row0, row1) of one key/value head: loop over the tiles of keys, each packed once for all the block's tiles. */
static void FN(attention_forward_block)(const ck_heads *t, int64_t row0, int64_t row1, char *cursor) {
    const ck_attention_args *a = t->a;
    const int64_t tiles = ck_ceil_div(row1 - row0, CK_TILE), d_even = ck_round_up(t->d, 2);
    const int64_t units = ck_ceil_div(t->d, CK_UNIT), size = CK_TILE * t->padded;
    float *keys_by_d = ck_floats(&cursor, size), *values = ck_floats(&cursor, size);
    float *scores = ck_floats(&cursor, CK_TILE * CK_TILE);
    float *p = CK_UNIT == 1 ? scores : ck_floats(&cursor, CK_TILE * CK_TILE);
    float *begin = ck_floats(&cursor, CK_TILE), *end = ck_floats(&cursor, CK_TILE);
    float *shrink = ck_floats(&cursor, CK_TILE);
    float *bias = a->bias ? ck_floats(&cursor, CK_TILE * CK_TILE) : NULL;
    const int adjusts = adjusts_scores(a);
    const float unit = left_of_scale(a);
    float *query[CK_BLOCK_TILES], *out[CK_BLOCK_TILES], *largest[CK_BLOCK_TILES], *total[CK_BLOCK_TILES];
    ck_sight sight[CK_BLOCK_TILES];
    real *found[CK_TILE];
    int64_t first_key = INT64_MAX, end_key = 0;
    for (int64_t i = 0; i < tiles; i++) {
        const int64_t first = row0 + i * CK_TILE, rows = ck_min(CK_TILE, row1 - first);
        query[i] = ck_floats(&cursor, size);
        out[i] = ck_floats(&cursor, size);
        largest[i] = ck_floats(&cursor, CK_TILE);
        total[i] = ck_floats(&cursor, CK_TILE);
        FN(find_rows)(found, t, (void *)a->q, a->q_s, first, rows);
        FN(pack_by_d)(query[i], (const real *const *)found, rows, t->d);
        memset(out[i], 0, (size_t)(CK_TILE * d_even) * sizeof(float));
        fill(largest[i], -INFINITY, CK_TILE);
        fill(total[i], 0.0f, CK_TILE);
        see(&sight[i], t, first, rows);
        first_key = ck_min(first_key, sight[i].least_begin);
        end_key = ck_max(end_key, sight[i].most_end);
    }
    for (int64_t k0 = first_key / CK_TILE * CK_TILE; k0 < end_key; k0 += CK_TILE) {
        const int64_t keys = ck_min(CK_TILE, end_key - k0);
        for (int64_t i = 0; i < keys; i++) found[i] = KEY_ROW(real, a->k, a->k_s, k0 + i);
        FN(pack_by_d)(keys_by_d, (const real *const *)found, keys, t->d);
        if (k0 + CK_TILE < end_key) FN(fetch)((const real *const *)found, keys, t->d, CK_TILE * a->k_s.row);
        for (int64_t i = 0; i < keys; i++) found[i] = KEY_ROW(real, a->v, a->v_s, k0 + i);
        FN(pack_by_items)(values, (const real *const *)found, keys, t->d);
        if (k0 + CK_TILE < end_key) FN(fetch)((const real *const *)found, keys, t->d, CK_TILE * a->v_s.row);
        for (int64_t i = 0; i < tiles; i++) {
            const int64_t rows = ck_round_up(ck_min(CK_TILE, row1 - row0 - i * CK_TILE), 2 * VL);
            const int sees = mask_of_tile(&sight[i], k0, keys, begin, end);
            if (sees == CK_SEES_NONE) continue;
            if (bias) load_bias(bias, t, row0 + i * CK_TILE, ck_min(CK_TILE, row1 - row0 - i * CK_TILE), k0, keys);
            /* On the diagonal each half of the rows has its own last key. */
            const int64_t step = sees == CK_SEES_SOME ? CK_TILE / 2 : CK_TILE;
            for (int64_t r = 0; r < rows; r += step) {
                const int64_t wide = ck_min(step, rows - r);
                const int64_t seen = sees == CK_SEES_SOME ? (int64_t)greatest(end + r, wide) : keys;
                if (seen == 0) continue;
                FN(product)(ck_round_up(seen, 2), wide, units, keys_by_d, CK_TILE, query[i] + r, CK_TILE, scores + r,
                            CK_TILE, 0);
                if (adjusts) adjust_scores(scores + r, NULL, bias ? bias + r : NULL, a, ck_round_up(seen, 2), wide);
                if (FN(softmax)(p + r, scores + r, largest[i] + r, total[i] + r, shrink + r, unit * CK_LOG2_E, seen, wide,
                                sees == CK_SEES_SOME, begin + r, end + r))
                    for (int64_t j = r; j < r + wide; j += VL) {
                        const vf factor = v_load(shrink + j);
                        for (float *at = out[i] + j; at < out[i] + t->d * CK_TILE; at += CK_TILE)
                            v_store(at, v_mul(v_load(at), factor));
                    }
                FN(product)(d_even, wide, ck_ceil_div(seen, CK_UNIT), values, t->padded, p + r, CK_TILE, out[i] + r,
                            CK_TILE, 1);
            }
        }
    }
    for (int64_t i = 0; i < tiles; i++) {
        const int64_t first = row0 + i * CK_TILE, rows = ck_min(CK_TILE, row1 - first);
        int64_t places[CK_TILE];
        FN(find_places)(places, t, first, rows);
        last_factors(shrink, largest[i], total[i]);
        for (int64_t r = 0; r < rows; r++) {
            float lse = shrink[r] != 0.0f ? largest[i][r] * unit + logf(total[i][r]) : -INFINITY;
            if (a->sinks) shrink[r] *= stand_beside_sink(&lse, a->sinks[t->head * t->group + (first + r) % t->group]);
            a->lse[places[r]] = lse;
        }
        FN(find_rows)(found, t, a->o, a->o_s, first, rows);
        FN(unpack)(found, out[i], rows, t->d, shrink, 0);
    }
}

static void FN(attention_forward)(const void *args, const ck_team *team) {
    const ck_attention_args *a = args;
    const int64_t pairs = a->b * a->kv, rows = a->h / a->kv * a->s, tiles = ck_ceil_div(rows, CK_TILE);
    const int64_t each = ck_attention_tiles(pairs, tiles, CK_BLOCK_TILES, team->size);
    const int64_t blocks = ck_ceil_div(tiles, each);
    for (int64_t item = 0; item < pairs * blocks; item++) {
        if (ck_deal(item, team->size) != team->index) continue;
        const int64_t row0 = (blocks - 1 - item / pairs) * each * CK_TILE;  /* the last rows see most keys */
        const ck_heads t = heads_of(a, item % pairs, item % pairs);
        FN(attention_forward_block)(&t, row0, ck_min(row0 + each * CK_TILE, rows), team->scratch);
    }
}

/* What backward keeps of a tile of keys, and of a tile of rows. */
typedef struct {
    int64_t k0, keys;
    float *keys_by_d, *keys_by_items, *values_by_d, *dk, *dv;
} FN(key_tile);

typedef struct {
    int64_t row0, rows;
    float *query_by_d, *query_by_items, *dout_by_d, *dout_by_items, *shift, *delta, *dq;
    ck_sight sight;
} FN(row_tile);

static FN(key_tile) FN(new_key_tile)(const ck_heads *t, char **cursor) {
    const int64_t n = CK_TILE * t->padded;
    FN(key_tile) tile = {0};
    tile.keys_by_d = ck_floats(cursor, n);
    tile.keys_by_items = ck_floats(cursor, n);
    tile.values_by_d = ck_floats(cursor, n);
    tile.dk = ck_floats(cursor, n);
    tile.dv = ck_floats(cursor, n);
    return tile;
}

static void FN(new_row_tile)(FN(row_tile) *tile, const ck_heads *t, char **cursor) {
    const int64_t n = CK_TILE * t->padded;
    tile->query_by_d = ck_floats(cursor, n);
    tile->query_by_items = ck_floats(cursor, n);
    tile->dout_by_d = ck_floats(cursor, n);
    tile->dout_by_items = ck_floats(cursor, n);
    tile->dq = ck_floats(cursor, n);
    tile->shift = ck_floats(cursor, CK_TILE);
    tile->delta = ck_floats(cursor, CK_TILE);
}

static void FN(load_keys)(const ck_heads *t, FN(key_tile) *tile, int64_t k0) {
    const ck_attention_args *a = t->a;
    real *found[CK_TILE];
    tile->k0 = k0;
    tile->keys = ck_min(CK_TILE, a->t - k0);
    for (int64_t i = 0; i < tile->keys; i++) found[i] = KEY_ROW(real, a->k, a->k_s, k0 + i);
    FN(pack_by_d)(tile->keys_by_d, (const real *const *)found, tile->keys, t->d);
    FN(pack_by_items)(tile->keys_by_items, (const real *const *)found, tile->keys, t->d);
    FN(fetch)((const real *const *)found, tile->keys, t->d, next_pair(t, a->k_s, 1));
    for (int64_t i = 0; i < tile->keys; i++) found[i] = KEY_ROW(real, a->v, a->v_s, k0 + i);
    FN(pack_by_d)(tile->values_by_d, (const real *const *)found, tile->keys, t->d);
    FN(fetch)((const real *const *)found, tile->keys, t->d, next_pair(t, a->v_s, 1));
    memset(tile->dk, 0, (size_t)(CK_TILE * t->padded) * sizeof(float));
    memset(tile->dv, 0, (size_t)(CK_TILE * t->padded) * sizeof(float));
}

static void FN(load_rows)(const ck_heads *t, FN(row_tile) *tile) {
    const ck_attention_args *a = t->a;
    real *found[CK_TILE];
    int64_t places[CK_TILE];
    FN(find_places)(places, t, tile->row0, tile->rows);
    for (int64_t r = 0; r < CK_TILE; r++) {
        const int here = r < tile->rows;  /* a lane of no row, a row that saw no key: 2^(score - Inf) = 0 */
        tile->shift[r] = here && a->lse[places[r]] != -INFINITY ? a->lse[places[r]] * -CK_LOG2_E : -INFINITY;
        tile->delta[r] = here ? a->delta[places[r]] : 0.0f;
    }
    FN(find_rows)(found, t, (void *)a->q, a->q_s, tile->row0, tile->rows);
    FN(pack_by_d)(tile->query_by_d, (const real *const *)found, tile->rows, t->d);
    FN(pack_by_items)(tile->query_by_items, (const real *const *)found, tile->rows, t->d);
    FN(fetch)((const real *const *)found, tile->rows, t->d, next_pair(t, a->q_s, t->group));
    FN(find_rows)(found, t, (void *)a->dout, a->dout_s, tile->row0, tile->rows);
    FN(pack_by_d)(tile->dout_by_d, (const real *const *)found, tile->rows, t->d);
    FN(pack_by_items)(tile->dout_by_items, (const real *const *)found, tile->rows, t->d);
    FN(fetch)((const real *const *)found, tile->rows, t->d, next_pair(t, a->dout_s, t->group));
}

/* Keys whose scores are computed and turned into probabilities at a time: they stay in the first-level cache. */
#define CK_STRIP 6

/* One tile of keys against one of rows: dk, dv of the keys, with them dbias, and dq of the rows, whichever are wanted. dq
 * goes to `dq`, [D][CK_TILE]. dq and dk still lack the factor `scale`. */
static void FN(backward_tile)(const ck_heads *t, FN(key_tile) *k, FN(row_tile) *q, int want_keys, float *dq,
                              char *cursor) {
    const int64_t units = ck_ceil_div(t->d, CK_UNIT), even = ck_round_up(k->keys, 2);
    const int64_t rows = ck_round_up(q->rows, 2 * VL), row_units = ck_ceil_div(q->rows, CK_UNIT);
    float *scores = ck_floats(&cursor, CK_STRIP * CK_TILE), *dscores = ck_floats(&cursor, CK_STRIP * CK_TILE);
    float *p = ck_floats(&cursor, CK_TILE * CK_TILE), *dp = ck_floats(&cursor, CK_TILE * CK_TILE);
    float *dp_by_items = CK_UNIT == 1 ? dp : ck_floats(&cursor, CK_TILE * CK_TILE);
    float *begin = ck_floats(&cursor, CK_TILE), *end = ck_floats(&cursor, CK_TILE);
    const ck_attention_args *a = t->a;
    const int adjusts = adjusts_scores(a), sees = mask_of_tile(&q->sight, k->k0, k->keys, begin, end);
    const float factor = left_of_scale(a) * CK_LOG2_E;
    if (sees == CK_SEES_NONE) return;
    float *slope = a->softcap > 0.0f ? ck_floats(&cursor, CK_STRIP * CK_TILE) : NULL;
    float *bias = a->bias ? ck_floats(&cursor, CK_TILE * CK_TILE) : NULL;
    float *dbias = a->dbias && want_keys ? ck_floats(&cursor, CK_TILE * CK_TILE) : NULL;
    if (bias) load_bias(bias, t, q->row0, q->rows, k->k0, k->keys);
    if (dbias) memset(dbias, 0, CK_TILE * CK_TILE * sizeof(float));
    if (adjusts && sees == CK_SEES_ALL) {
        fill(begin, 0.0f, CK_TILE);
        fill(end, (float)k->keys, CK_TILE);
    }
    /* On the diagonal the first half of the rows sees none of the second half of the keys. */
    const int64_t half = CK_TILE / 2;
    const int halves = sees == CK_SEES_SOME && rows > half && k->keys > half && greatest(end, half) <= (float)half;
    for (int64_t key = 0; key < even; key += CK_STRIP) {
        const int64_t keys = ck_min(CK_STRIP, even - key), r = halves && key >= half ? half : 0;
        FN(product)(keys, rows - r, units, k->keys_by_d + key, CK_TILE, q->query_by_d + r, CK_TILE, scores + r, CK_TILE,
                    0);
        FN(product)(keys, rows - r, units, k->values_by_d + key, CK_TILE, q->dout_by_d + r, CK_TILE, dscores + r,
                    CK_TILE, 0);
        if (adjusts) {
            adjust_scores(scores + r, slope ? slope + r : NULL, bias ? bias + key * CK_TILE + r : NULL, a, keys, rows - r);
            FN(softmax_backward)(p, dp, dp_by_items, scores, dscores, q->shift, q->delta, factor, key, keys, r, rows, 1,
                                 begin, end, 1, slope, dbias);
        } else if (sees == CK_SEES_SOME) {
            FN(softmax_backward)(p, dp, dp_by_items, scores, dscores, q->shift, q->delta, factor, key, keys, r, rows, 1,
                                 begin, end, 0, NULL, NULL);
        } else {
            FN(softmax_backward)(p, dp, dp_by_items, scores, dscores, q->shift, q->delta, factor, key, keys, r, rows, 0,
                                 begin, end, 0, NULL, NULL);
        }
    }
    if (dbias) add_to_dbias(dbias, t, q->row0, q->rows, k->k0, k->keys);
    for (int64_t key = 0; want_keys && key < even; key += half) {
        if (!halves && key > 0) break;
        const int64_t keys = halves ? ck_min(half, even - key) : even, r = key > 0 ? half / CK_UNIT : 0;
        const int64_t from = key * (CK_TILE / CK_UNIT) + r, to = key * t->padded;
        FN(product)(keys, t->padded, row_units - r, p + from, 0, q->dout_by_items + r * t->padded, t->padded,
                    k->dv + to, t->padded, 1);
        FN(product)(keys, t->padded, row_units - r, dp + from, 0, q->query_by_items + r * t->padded, t->padded,
                    k->dk + to, t->padded, 1);
    }
    const int64_t d_even = ck_round_up(t->d, 2), key_units = ck_ceil_div(k->keys, CK_UNIT);
    if (dq && halves) {
        FN(product)(d_even, half, half / CK_UNIT, k->keys_by_items, t->padded, dp_by_items, CK_TILE, dq, CK_TILE, 1);
        FN(product)(d_even, rows - half, key_units, k->keys_by_items, t->padded, dp_by_items + half, CK_TILE, dq + half,
                    CK_TILE, 1);
    } else if (dq) {
        FN(product)(d_even, rows, key_units, k->keys_by_items, t->padded, dp_by_items, CK_TILE, dq, CK_TILE, 1);
    }
}

/* dq of a tile of rows = or += sums, [D][CK_TILE], times scale. */
static void FN(store_dq)(const ck_heads *t, int64_t row0, int64_t rows, const float *sums, int add) {
    float scale[CK_TILE];
    real *found[CK_TILE];
    fill(scale, t->a->scale, CK_TILE);
    FN(find_rows)(found, t, t->a->dq, t->a->dq_s, row0, rows);
    if (add) FN(unpack)(found, sums, rows, t->d, scale, 1);
    else FN(unpack)(found, sums, rows, t->d, scale, 0);
}

/* dk and dv of `tiles` tiles of keys from key k0 on; the rows' dq is summed up too, when wanted: in fp32 in dq
 * itself, which is zero at first, in bf16 in dq_sums, a [D][CK_TILE] for each tile of rows. */
static void FN(backward_keys)(const ck_heads *t, int64_t k0, int64_t tiles, int want_rows, float *dq_sums,
                              char *cursor) {
    const ck_attention_args *a = t->a;
    const int64_t dq_size = ck_round_up(t->d, 2) * CK_TILE;
    FN(key_tile) k[CK_BLOCK_TILES];
    FN(row_tile) q;
    for (int64_t i = 0; i < tiles; i++) {
        k[i] = FN(new_key_tile)(t, &cursor);
        FN(load_keys)(t, &k[i], k0 + i * CK_TILE);
    }
    FN(new_row_tile)(&q, t, &cursor);
    const int64_t k1 = ck_min(k0 + tiles * CK_TILE, a->t);
    for (q.row0 = 0; q.row0 < t->rows; q.row0 += CK_TILE) {
        q.rows = ck_min(CK_TILE, t->rows - q.row0);
        see(&q.sight, t, q.row0, q.rows);
        if (q.sight.most_end <= k0 || q.sight.least_begin >= k1) continue;
        FN(load_rows)(t, &q);
        float *dq = !want_rows ? NULL : CK_STORAGE == CK_F32 ? q.dq : dq_sums + q.row0 / CK_TILE * dq_size;
        if (want_rows && CK_STORAGE == CK_F32) memset(dq, 0, (size_t)dq_size * sizeof(float));
        for (int64_t i = 0; i < tiles; i++) FN(backward_tile)(t, &k[i], &q, 1, dq, cursor);
        if (want_rows && CK_STORAGE == CK_F32) FN(store_dq)(t, q.row0, q.rows, dq, 1);
    }
    const vf scale = v_set1(a->scale);
    for (int64_t i = 0; i < tiles; i++)
        for (int64_t key = 0; key < k[i].keys; key++) {
            real *dk = KEY_ROW(real, a->dk, a->dk_s, k[i].k0 + key), *dv = KEY_ROW(real, a->dv, a->dv_s, k[i].k0 + key);
            const float *dk_sum = k[i].dk + key * t->padded, *dv_sum = k[i].dv + key * t->padded;
            EACH_VECTOR(j, m, t->d,
                r_store_n(dk + j, v_mul(v_load(dk_sum + j), scale), m);
                r_store_n(dv + j, v_load(dv_sum + j), m););
        }
}

/* dq of one tile of rows. */
static void FN(backward_rows)(const ck_heads *t, int64_t row0, char *cursor) {
    FN(key_tile) k = FN(new_key_tile)(t, &cursor);
    FN(row_tile) q;
    FN(new_row_tile)(&q, t, &cursor);
    q.row0 = row0;
    q.rows = ck_min(CK_TILE, t->rows - row0);
    see(&q.sight, t, row0, q.rows);
    FN(load_rows)(t, &q);
    memset(q.dq, 0, (size_t)(ck_round_up(t->d, 2) * CK_TILE) * sizeof(float));
    for (int64_t k0 = q.sight.least_begin / CK_TILE * CK_TILE; k0 < q.sight.most_end; k0 += CK_TILE) {
        FN(load_keys)(t, &k, k0);
        FN(backward_tile)(t, &k, &q, 0, q.dq, cursor);
    }
    FN(store_dq)(t, row0, q.rows, q.dq, 0);
}

/* delta = sum over D of dout * o, for the rows that are this thread's. */
static void FN(attention_delta)(const ck_attention_args *a, const ck_team *team) {
    const ck_range part = ck_split(a->b * a->h * a->s, 16, team->size, team->index);
    if (part.begin == part.end) return;
    int64_t h = part.begin % a->h, s = part.begin / a->h % a->s, b = part.begin / a->h / a->s;  /* as o and dout lie */
    for (int64_t at = part.begin; at < part.end; at++) {
        const real *o = (const real *)a->o + b * a->o_s.batch + s * a->o_s.row + h * a->o_s.head;
        const real *dout = (const real *)a->dout + b * a->dout_s.batch + s * a->dout_s.row
            + h * a->dout_s.head;
        vf sum = v_zero();
        EACH_VECTOR(i, m, a->d, sum = v_fma(r_load_n(o + i, m), r_load_n(dout + i, m), sum););
        a->delta[(b * a->h + h) * a->s + s] = v_sum(sum);
        if (++h < a->h) continue;
        h = 0;
        if (++s < a->s) continue;
        s = 0;
        b++;
    }
}

/* Two ways. By heads: one thread takes all of a key/value head and sums dq as it goes: five products per tile. By
 * tiles, when the heads do not share out evenly or a bf16 head's dq sums do not fit the workspace: items are blocks
 * of keys, then tiles of rows, and the scores are computed twice: seven products. So it is with dbias, too: all batches
 * and heads that share a bias are then one item, so that each sum is one thread's and has one order. */
static void FN(attention_backward)(const void *args, const ck_team *team) {
    const ck_attention_args *a = args;
    const int64_t pairs = a->b * a->kv, rows = a->h / a->kv * a->s;
    const int64_t key_tiles = ck_ceil_div(a->t, CK_TILE), row_tiles = ck_ceil_div(rows, CK_TILE);
    const int64_t tile_bytes = 5 * FN(tile_bytes)(a->d), passing_bytes = (a->bias ? 7 : 5) * CK_TILE * CK_TILE * 4;
    const int64_t tiles = ck_max(1, ck_min(CK_BLOCK_TILES, (int64_t)CK_SCRATCH_BYTES * 5 / 8 / tile_bytes));
    const int64_t dq_size = ck_round_up(a->d, 2) * CK_TILE;
    const int64_t sums_bytes = CK_STORAGE == CK_F32 ? 0 : row_tiles * dq_size * 4;
    const int64_t left = CK_SCRATCH_BYTES - (tiles + 1) * tile_bytes - passing_bytes;
    FN(attention_delta)(a, team);
    ck_barrier(team);
    if (a->dsinks) add_to_dsinks(a, team);
    if (!a->dbias && ck_attention_by_pairs(pairs, team->size) && sums_bytes <= left) {
        for (int64_t pair = team->index; pair < pairs; pair += team->size) {
            const ck_heads heads = heads_of(a, pair, (pair + team->size) % pairs), *t = &heads;
            char *cursor = team->scratch;
            float *sums = ck_floats(&cursor, sums_bytes / 4);
            if (CK_STORAGE == CK_F32)
                for (int64_t r = 0; r < t->rows; r += CK_TILE) {
                    real *found[CK_TILE];
                    const int64_t here = ck_min(CK_TILE, t->rows - r);
                    FN(find_rows)(found, t, a->dq, a->dq_s, r, here);
                    for (int64_t i = 0; i < here; i++) memset(found[i], 0, (size_t)t->d * sizeof(real));
                }
            else memset(sums, 0, (size_t)sums_bytes);
            for (int64_t i = 0; i < key_tiles; i += tiles)
                FN(backward_keys)(t, i * CK_TILE, ck_min(tiles, key_tiles - i), 1, sums, cursor);
            if (CK_STORAGE != CK_F32)
                for (int64_t i = 0; i < row_tiles; i++)
                    FN(store_dq)(t, i * CK_TILE, ck_min(CK_TILE, t->rows - i * CK_TILE), sums + i * dq_size, 0);
        }
        return;
    }
    const int64_t batches = a->dbias && a->dbias_s.batch == 0 ? a->b : 1;  /* that share a bias */
    const int64_t heads = a->dbias && a->dbias_s.head == 0 ? a->kv : 1;
    const int64_t shared = ck_max(1, batches * heads), sharers = pairs / shared;
    const int64_t each = ck_attention_tiles(sharers, key_tiles, tiles, team->size);
    const int64_t blocks = ck_ceil_div(key_tiles, each);
    for (int64_t item = 0; item < sharers * blocks; item++) {  /* the first keys are seen by most rows */
        if (ck_deal(item, team->size) != team->index) continue;
        const int64_t i = item / sharers * each, sharer = item % sharers;
        for (int64_t own = 0; own < shared; own++) {
            const int64_t batch = sharer / (a->kv / heads) * batches + own / heads;
            const int64_t head = sharer % (a->kv / heads) * heads + own % heads;
            const ck_heads t = heads_of(a, batch * a->kv + head, (item + team->size) % pairs);
            FN(backward_keys)(&t, i * CK_TILE, ck_min(each, key_tiles - i), 0, NULL, team->scratch);
        }
    }
    for (int64_t item = 0; item < pairs * row_tiles; item++) {  /* the last rows see most keys */
        if (ck_deal(item, team->size) != team->index) continue;
        const ck_heads t = heads_of(a, item % pairs, (item + team->size) % pairs);
        FN(backward_rows)(&t, (row_tiles - 1 - item / pairs) * CK_TILE, team->scratch);
    }
}

#undef KEY_ROW
