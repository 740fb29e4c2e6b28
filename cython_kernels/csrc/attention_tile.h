/* The fp32 part of attention: tiles of CK_TILE keys by CK_TILE rows in the workspace, whatever the storage
 * type.
 *
 * The G = H / K query heads of a key/value head are taken together: row r of such a group is query s = r /
 * G, head r % G, so a tile of rows shares its keys and values and no head is copied. Scores are kept
 * transposed, [key][row]: the softmax runs down the keys with rows in the lanes and needs no horizontal
 * step. Every product is the register tile of gemm_tile.h, with a tile of scores as its left operand the
 * way it lies.
 *
 * Layouts of a tile of n <= CK_TILE rows of D elements, `padded` = D rounded up to CK_NR:
 *   plain        [row][padded], zeros after D          right operand over rows; also where results are summed
 *   left panels  [row / CK_MR][D][CK_MR]               left operand of scores (keys, values)
 *   right panels [row / CK_NR][D][CK_NR]               right operand of scores (queries, dout) */

#define CK_TILE 96    /* a multiple of every CK_MR and CK_NR */
#define CK_PITCH 112  /* floats from key to key in a tile of scores; odd in lines, to spread over sets */
_Static_assert(CK_TILE % CK_MR == 0 && CK_TILE % CK_NR == 0, "tiles hold whole panels");

typedef struct {
    const ck_attention_args *a;
    int64_t group, rows, d, padded;     /* G, G * S, D, D rounded up to CK_NR */
    int64_t batch, head;                /* head: the key/value head */
} ck_heads;

INLINE ck_heads heads_of(const ck_attention_args *a, int64_t pair) {
    const int64_t group = a->h / a->kv;
    return (ck_heads){a, group, group * a->s, a->d, ck_round_up(a->d, CK_NR), pair / a->kv, pair % a->kv};
}

/* The first and one past the last key that row r sees: one at least, its own (the door sees to `first`). */
INLINE ck_range visible_to(const ck_heads *t, int64_t r) {
    const ck_attention_args *a = t->a;
    const int64_t s = r / t->group, end = a->t - a->s + s + 1;
    int64_t begin = a->window > 0 ? ck_max(0, end - a->window) : 0;
    if (a->first) begin = ck_max(begin, a->first[t->batch * a->s + s]);
    return (ck_range){begin, end};
}

/* The smallest range of keys that holds what any of the rows sees. */
static ck_range visible_to_any(const ck_heads *t, int64_t row0, int64_t row1) {
    ck_range all = {t->a->t, 0};
    for (int64_t s = row0 / t->group; s <= (row1 - 1) / t->group; s++) {
        const ck_range one = visible_to(t, s * t->group);
        all = (ck_range){ck_min(all.begin, one.begin), ck_max(all.end, one.end)};
    }
    return all;
}

/* What each row sees of the keys [k0, k0 + keys), counted from k0, as floats (small whole numbers, exact).
 * Lanes past the last row see all. */
enum { CK_SEES_NONE, CK_SEES_SOME, CK_SEES_ALL };
static int mask_of_tile(const ck_heads *t, int64_t row0, int64_t rows, int64_t k0, int64_t keys, float *begin,
                        float *end) {
    int any = 0, all = 1;
    for (int64_t i = 0; i < CK_TILE; i++) {
        ck_range seen = {0, keys};
        if (i < rows) {
            seen = visible_to(t, row0 + i);
            seen = (ck_range){ck_max(0, ck_min(keys, seen.begin - k0)),
                              ck_max(0, ck_min(keys, seen.end - k0))};
            any |= seen.begin < seen.end;
            all &= seen.begin == 0 && seen.end == keys;
        }
        begin[i] = (float)seen.begin;
        end[i] = (float)seen.end;
    }
    return all ? CK_SEES_ALL : any ? CK_SEES_SOME : CK_SEES_NONE;
}

INLINE vf apply_mask(vf x, vf hidden, int64_t key, vf begin, vf end) {
    const vf at = v_set1((float)key);
    return v_select(v_less(at, begin), hidden, v_select(v_less(at, end), x, hidden));
}

/* Plain -> right panels, times scale. */
static void right_panels(float *dst, const float *plain, int64_t rows, const ck_heads *t, float scale) {
    const vf factor = v_set1(scale);
    for (int64_t j = 0; j < rows; j += CK_NR, dst += CK_NR * t->d) {
        pack_panel_f32(dst, CK_NR, plain + j * t->padded, t->padded, 1, ck_min(CK_NR, rows - j), t->d);
        if (scale != 1.0f)
            for (int64_t i = 0; i < CK_NR * t->d; i += VL) v_store(dst + i, v_mul(v_load(dst + i), factor));
    }
}

/* out [key][row] = left panels (keys, D) . right panels (rows, D). */
static void scores_of_tile(float *out, const float *left, const float *right, int64_t keys, int64_t rows,
                           int64_t d) {
    for (int64_t j = 0; j < rows; j += CK_NR)
        for (int64_t i = 0; i < keys; i += CK_MR)
            tile_packed(d, left + i * d, right + j * d, CK_NR, out + i * CK_PITCH + j, CK_PITCH, 0);
}

static __attribute__((noinline)) void tile_by_rows(int64_t k, const float *a, const float *b, int64_t b_row,
                                                   float *c, int64_t c_row) {
    tile(k, a, 1, CK_PITCH, b, b_row, c, c_row, 1);
}

static __attribute__((noinline)) void tile_by_keys(int64_t k, const float *a, const float *b, int64_t b_row,
                                                   float *c, int64_t c_row) {
    tile(k, a, CK_PITCH, 1, b, b_row, c, c_row, 1);
}

/* out [row][padded] += scores^T (rows, keys) . plain (keys, D). */
static void add_by_rows(float *out, const float *scores, const float *plain, int64_t rows, int64_t keys,
                        int64_t padded) {
    for (int64_t j = 0; j < padded; j += CK_NR)
        for (int64_t i = 0; i < rows; i += CK_MR)
            tile_by_rows(keys, scores + i, plain + j, padded, out + i * padded + j, padded);
}

/* out [key][padded] += scores (keys, rows) . plain (rows, D). */
static void add_by_keys(float *out, const float *scores, const float *plain, int64_t keys, int64_t rows,
                        int64_t padded) {
    for (int64_t j = 0; j < padded; j += CK_NR)
        for (int64_t i = 0; i < keys; i += CK_MR)
            tile_by_keys(rows, scores + i * CK_PITCH, plain + j, padded, out + i * padded + j, padded);
}

/* Online softmax (Milakov & Gimelshein 2018) over the keys of a tile: scores become exp(score - largest);
 * largest and total are brought up to date; what was summed before must be multiplied by `shrink`. Returns
 * whether any of it is not 1. A row that has seen nothing keeps largest = -Inf and total = 0. */
static int softmax_of_tile(float *scores, float *largest, float *total, float *shrink, int64_t keys,
                           int64_t rows, int masked, const float *begin, const float *end) {
    const vf hidden = v_set1(-INFINITY), lowest = v_set1(-3.4e38f);
    for (int64_t j = 0; j < rows; j += VL) {
        const vf before = v_load(largest + j), from = v_load(begin + j), to = v_load(end + j);
        vf max = before, sum = v_zero();
        for (int64_t key = 0; key < keys; key++) {
            float *at = scores + key * CK_PITCH + j;
            vf x = v_load(at);
            if (masked) {
                x = apply_mask(x, hidden, key, from, to);
                v_store(at, x);
            }
            max = v_max(x, max);
        }
        const vf shift = v_max(max, lowest);  /* -Inf - -Inf would be NaN */
        for (int64_t key = 0; key < keys; key++) {
            float *at = scores + key * CK_PITCH + j;
            const vf p = v_exp(v_sub(v_load(at), shift));
            v_store(at, p);
            sum = v_add(sum, p);
        }
        const vf factor = v_exp(v_sub(before, shift));
        v_store(largest + j, max);
        v_store(shrink + j, factor);
        v_store(total + j, v_fma(v_load(total + j), factor, sum));
    }
    for (int64_t i = 0; i < rows; i++)
        if (shrink[i] != 1.0f) return 1;
    return 0;
}

static void scale_rows(float *plain, const float *factors, int64_t rows, int64_t padded) {
    for (int64_t r = 0; r < rows; r++, plain += padded) {
        const vf factor = v_set1(factors[r]);
        for (int64_t i = 0; i < padded; i += VL) v_store(plain + i, v_mul(v_load(plain + i), factor));
    }
}

/* scores -> probabilities p = exp(score - lse); dscores: d(p) -> p (d(p) - delta) scale. */
static void softmax_backward_of_tile(float *scores, float *dscores, const float *lse, const float *delta,
                                     float scale, int64_t keys, int64_t rows, int masked,
                                     const float *begin, const float *end) {
    const vf factor = v_set1(scale);
    for (int64_t j = 0; j < rows; j += VL) {
        const vf shift = v_load(lse + j), center = v_load(delta + j);
        const vf from = v_load(begin + j), to = v_load(end + j);
        for (int64_t key = 0; key < keys; key++) {
            const int64_t at = key * CK_PITCH + j;
            vf p = v_exp(v_sub(v_load(scores + at), shift));
            if (masked) p = apply_mask(p, v_zero(), key, from, to);
            v_store(scores + at, p);
            v_store(dscores + at, v_mul(v_mul(p, v_sub(v_load(dscores + at), center)), factor));
        }
    }
}

/* The workspace is handed out in whole cache lines. */
INLINE float *ck_floats(char **cursor, int64_t count) {
    float *p = (float *)*cursor;
    *cursor += ck_round_up((count + CK_PACK_SLACK) * (int64_t)sizeof(float), 64);
    return p;
}
