/* What stands between the product q . k and the softmax: score = softcap(scale q . k) + bias, where softcap(x) = c
 * tanh(x / c) (Gemma 2) and the bias is an array of numbers for pairs of a query and a key (T5, ALiBi).
 *
 * A positive scale alone costs nothing: it is part of the exponent, and scores stay raw products. All else, also a scale
 * that is not positive, under which the greatest product is not the greatest score, is applied to a tile of scores
 * [key][row] between its product and its softmax. Biases lie along the keys, scores along the rows, so a tile of biases
 * is packed by the transpose that packs queries, and its gradient goes back by the one that writes dq. */
#ifndef CK_ATTENTION_SCORES_H
#define CK_ATTENTION_SCORES_H

INLINE int adjusts_scores(const ck_attention_args *a) {
    return !(a->scale > 0.0f) || a->softcap > 0.0f || a->bias != NULL;
}

/* What the numbers that meet the softmax are multiplied by to be scores. */
INLINE float left_of_scale(const ck_attention_args *a) { return adjusts_scores(a) ? 1.0f : a->scale; }

/* Where the entries of rows [row0, row0 + rows) for keys from k0 on lie, in bias or dbias. */
static void find_biases(float **found, const ck_heads *t, const float *bias, ck_strides strides, int64_t row0,
                        int64_t rows, int64_t k0) {
    find_rows_f32(found, t, (void *)bias, strides, row0, rows);
    for (int64_t r = 0; r < rows; r++) found[r] += k0;
}

/* The biases of a tile, [key][row]. */
static void load_bias(float *tile, const ck_heads *t, int64_t row0, int64_t rows, int64_t k0, int64_t keys) {
    float *found[CK_TILE];
    find_biases(found, t, t->a->bias, t->a->bias_s, row0, rows, k0);
    pack_by_d_f32(tile, (const float *const *)found, rows, keys);
}

/* dbias += a tile of gradients, [key][row]: row after row, since rows that share a bias share its gradient. */
static void add_to_dbias(const float *tile, const ck_heads *t, int64_t row0, int64_t rows, int64_t k0, int64_t keys) {
    float *found[CK_TILE], ones[CK_TILE];
    fill(ones, 1.0f, CK_TILE);
    find_biases(found, t, t->a->dbias, t->a->dbias_s, row0, rows, k0);
    unpack_f32(found, tile, rows, keys, ones, 1);
}

/* Products, `keys` by `rows`, become scores; `bias` (or NULL) lies as they do. slope, unless NULL, becomes the
 * derivative of softcap, 1 - tanh^2. */
static void adjust_scores(float *scores, float *slope, const float *bias, const ck_attention_args *a, int64_t keys,
                          int64_t rows) {
    const vf scale = v_set1(a->scale), cap = v_set1(a->softcap), one = v_set1(1.0f);
    const vf to_cap = v_set1(a->softcap > 0.0f ? a->scale / a->softcap : 0.0f);
    for (int64_t key = 0; key < keys; key++)
        for (int64_t j = 0; j < rows; j += VL) {
            const int64_t at = key * CK_TILE + j;
            vf x = v_load(scores + at);
            if (a->softcap > 0.0f) {
                const vf bent = v_tanh(v_mul(x, to_cap));
                if (slope) v_store(slope + at, v_sub(one, v_mul(bent, bent)));
                x = v_mul(bent, cap);
            } else {
                x = v_mul(x, scale);
            }
            v_store(scores + at, bias ? v_add(x, v_load(bias + at)) : x);
        }
}

#endif
