/* Attention of one new token per sequence beside cached keys and values, which are read once: bound by memory. The token's
 * own key and value are first written to the cache.
 *
 * Keys are taken in chunks of CK_CACHED_KEYS or more, all heads of a chunk by one thread, so memory is read in order. A chunk
 * gives for each head its greatest score, the sum of the exponentials and the weighted values; then the chunks of a head
 * are added up in their order (as attention_merge.h does). How keys are cut depends on their number alone, so the bits do
 * not depend on the number of threads. */

#ifndef CK_CACHED_KEYS
#define CK_CACHED_KEYS 64       /* keys of a chunk at least, a multiple of CK_CACHED_BLOCK */
#define CK_CACHED_BLOCK 32      /* keys whose scores are had at a time, a multiple of every VL */
#define CK_CACHED_GROUP 4       /* query heads that share a pass over the keys */
#define CK_CACHED_VECTORS 4     /* of values that are summed up at a time */

INLINE vf cached_load(const void *p, int64_t i, int64_t m, const int is_bf16) {
    return is_bf16 ? v_load_bf16_n((const uint16_t *)p + i, m) : v_load_n((const float *)p + i, m);
}

INLINE const void *cached_row(const void *p, int64_t element, const int is_bf16) {
    return (const char *)p + element * (is_bf16 ? 2 : 4);
}

/* The keys that sequence b's new token sees stand in rows [from, from + count) of the ring, counted on past its end. */
INLINE ck_range cached_keys(const ck_attention_cached_args *a, int64_t b) {
    const int64_t position = a->lengths[b], most = a->window > 0 ? ck_min(a->window, a->p) : a->p;
    return (ck_range){ck_max(0, position + 1 - most), position + 1};
}

/* Keys of a chunk of a sequence with `count` visible keys: as many chunks as partial results have room. */
INLINE int64_t cached_chunk(const ck_attention_cached_args *a, int64_t count) {
    return ck_round_up(ck_max(CK_CACHED_KEYS, ck_ceil_div(count, a->chunks)), CK_CACHED_KEYS);
}

/* scores[head][key] = q_head . key, over `count` <= CK_CACHED_BLOCK keys of one key/value head, `heads` a constant. */
INLINE void cached_scores(const int heads, const int is_bf16, const float *q, int64_t q_row, int64_t d,
                          const void *const *keys, int64_t count, float *scores) {
    float sums[CK_CACHED_GROUP][VL * VL];
    for (int64_t key = 0; key < count; key += VL) {
        const int64_t here = ck_min(VL, count - key);
        for (int64_t i = 0; i < here; i++) {
            const void *row = keys[key + i];
            vf sum[CK_CACHED_GROUP];
#pragma GCC unroll 4
            for (int h = 0; h < heads; h++) sum[h] = v_zero();
            for (int64_t j = 0; j + VL <= d; j += VL) {
                const vf x = cached_load(row, j, VL, is_bf16);
#pragma GCC unroll 4
                for (int h = 0; h < heads; h++) sum[h] = v_fma(v_load(q + h * q_row + j), x, sum[h]);
            }
            if (d % VL) {
                const int64_t j = d / VL * VL, m = d - j;
                const vf x = cached_load(row, j, m, is_bf16);
#pragma GCC unroll 4
                for (int h = 0; h < heads; h++) sum[h] = v_fma(v_load_n(q + h * q_row + j, m), x, sum[h]);
            }
#pragma GCC unroll 4
            for (int h = 0; h < heads; h++) v_store(sums[h] + i * VL, sum[h]);
        }
#pragma GCC unroll 4
        for (int h = 0; h < heads; h++) {
            vf rows[VL];
            for (int i = 0; i < VL; i++) rows[i] = i < here ? v_load(sums[h] + i * VL) : v_zero();
            v_transpose(rows);
            vf sum = rows[0];
            for (int i = 1; i < VL; i++) sum = v_add(sum, rows[i]);
            v_store(scores + h * CK_CACHED_BLOCK + key, sum);
        }
    }
}

/* out_head = or += the sum over keys of weight[head][key] times its value. */
INLINE void cached_values(const int heads, const int is_bf16, float *out, int64_t d, const void *const *values,
                          int64_t count, const float *weights) {
    for (int64_t j = 0; j < d; j += CK_CACHED_VECTORS * VL) {
        const int64_t left = d - j;
        if (left >= CK_CACHED_VECTORS * VL) {
            vf sum[CK_CACHED_GROUP][CK_CACHED_VECTORS];
#pragma GCC unroll 4
            for (int h = 0; h < heads; h++)
#pragma GCC unroll 4
                for (int v = 0; v < CK_CACHED_VECTORS; v++) sum[h][v] = v_load(out + h * d + j + v * VL);
            for (int64_t key = 0; key < count; key++)
#pragma GCC unroll 4
                for (int v = 0; v < CK_CACHED_VECTORS; v++) {
                    const vf x = cached_load(values[key], j + v * VL, VL, is_bf16);
#pragma GCC unroll 4
                    for (int h = 0; h < heads; h++)
                        sum[h][v] = v_fma(v_set1(weights[h * CK_CACHED_BLOCK + key]), x, sum[h][v]);
                }
#pragma GCC unroll 4
            for (int h = 0; h < heads; h++)
#pragma GCC unroll 4
                for (int v = 0; v < CK_CACHED_VECTORS; v++) v_store(out + h * d + j + v * VL, sum[h][v]);
            continue;
        }
        for (int64_t i = j; i < d; i += VL) {
            const int64_t m = ck_min(VL, d - i);
            for (int h = 0; h < heads; h++) {
                vf sum = v_load_n(out + h * d + i, m);
                for (int64_t key = 0; key < count; key++)
                    sum = v_fma(v_set1(weights[h * CK_CACHED_BLOCK + key]), cached_load(values[key], i, m, is_bf16), sum);
                v_store_n(out + h * d + i, sum, m);
            }
        }
    }
}

/* The softmax goes on over a block of scores, [key] of one head, which become weights; returns what the sums before it are
 * to be multiplied by. A NaN among the scores makes the total, and so the output, NaN. */
INLINE float cached_softmax(const ck_attention_cached_args *a, float *scores, int64_t count, float *most, float *total) {
    const vf scale = v_set1(a->scale), hidden = v_set1(-INFINITY);
    vf largest = hidden;
    for (int64_t key = 0; key < count; key += VL) {
        const int64_t m = ck_min(VL, count - key);
        vf x = v_mul(v_load(scores + key), scale);
        if (a->softcap > 0.0f) x = v_mul(v_tanh(v_div(x, v_set1(a->softcap))), v_set1(a->softcap));
        if (m < VL) {
            float lanes[VL];
            v_store(lanes, x);
            for (int64_t i = m; i < VL; i++) lanes[i] = -INFINITY;
            x = v_load(lanes);
        }
        v_store(scores + key, x);
        largest = v_max(x, largest);
    }
    const float before = *most, here = v_largest(largest), now = here > before ? here : before;
    vf sum = v_zero();
    for (int64_t key = 0; key < count; key += VL) {
        const int64_t m = ck_min(VL, count - key);
        const vf e = v_exp(v_sub(v_load(scores + key), v_set1(now)));
        v_store(scores + key, e);
        sum = v_add(sum, m < VL ? v_keep_n(e, m) : e);
    }
    const float shrink = before == -INFINITY ? 0.0f : expf(before - now);
    *total = *total * shrink + v_sum(sum);
    *most = now;
    return shrink;
}

/* One chunk of keys, for `heads` query heads of one key/value head: o (heads, d) unnormalised, most, total. */
INLINE void cached_heads(const int heads, const int is_bf16, const ck_attention_cached_args *a, int64_t b, int64_t kv,
                         const float *q, ck_range keys, float *out, float *most, float *total) {
    float scores[CK_CACHED_GROUP * CK_CACHED_BLOCK];
    const void *rows[CK_CACHED_BLOCK], *values[CK_CACHED_BLOCK];
    memset(out, 0, (size_t)(heads * a->d) * sizeof *out);
    for (int h = 0; h < heads; h++) most[h] = -INFINITY, total[h] = 0.0f;
    for (int64_t k0 = keys.begin; k0 < keys.end; k0 += CK_CACHED_BLOCK) {
        const int64_t count = ck_min(CK_CACHED_BLOCK, keys.end - k0);
        for (int64_t i = 0; i < count; i++) {
            const int64_t row = (k0 + i) % a->p;
            rows[i] = cached_row(a->keys, b * a->keys_s.batch + row * a->keys_s.row + kv * a->keys_s.head, is_bf16);
            values[i] = cached_row(a->values, b * a->values_s.batch + row * a->values_s.row + kv * a->values_s.head, is_bf16);
        }
        cached_scores(heads, is_bf16, q, a->d, a->d, rows, count, scores);
        for (int h = 0; h < heads; h++) {
            const float shrink = cached_softmax(a, scores + h * CK_CACHED_BLOCK, count, most + h, total + h);
            if (k0 == keys.begin) continue;
            const vf factor = v_set1(shrink);
            EACH_VECTOR(j, m, a->d, v_store_n(out + h * a->d + j, v_mul(v_load_n(out + h * a->d + j, m), factor), m););
        }
        cached_values(heads, is_bf16, out, a->d, values, count, scores);
    }
}

#define CK_CACHED_FUNCTION(heads)                                                                               \
    static void cached_heads_##heads(const ck_attention_cached_args *a, int64_t b, int64_t kv, const float *q,  \
                                     ck_range keys, float *out, float *most, float *total) {                    \
        if (a->cache_is_bf16) cached_heads(heads, 1, a, b, kv, q, keys, out, most, total);                      \
        else cached_heads(heads, 0, a, b, kv, q, keys, out, most, total);                                       \
    }
CK_CACHED_FUNCTION(1)
CK_CACHED_FUNCTION(2)
CK_CACHED_FUNCTION(3)
CK_CACHED_FUNCTION(4)
static void (*const cached_functions[CK_CACHED_GROUP])(const ck_attention_cached_args *, int64_t, int64_t, const float *,
                                                       ck_range, float *, float *, float *) = {
    cached_heads_1, cached_heads_2, cached_heads_3, cached_heads_4};
#undef CK_CACHED_FUNCTION

/* Where a chunk leaves its results: (h, d) sums, then h greatest scores and h totals. */
INLINE float *cached_place(const ck_attention_cached_args *a, const ck_team *team, int64_t b, int64_t chunk) {
    return (float *)team->shared + (b * a->chunks + chunk) * a->h * (a->d + 2);
}
#endif

/* The new token's key and value, where they belong in the cache. */
static void FN(cached_append)(const ck_attention_cached_args *a, int64_t b) {
    const int64_t row = a->lengths[b] % a->p;
    for (int64_t kv = 0; kv < a->kv; kv++) {
        const real *k = (const real *)a->k + b * a->k_s.batch + kv * a->k_s.head;
        const real *v = (const real *)a->v + b * a->v_s.batch + kv * a->v_s.head;
        void *key = (void *)cached_row(a->keys, b * a->keys_s.batch + row * a->keys_s.row + kv * a->keys_s.head,
                                       a->cache_is_bf16);
        void *value = (void *)cached_row(a->values, b * a->values_s.batch + row * a->values_s.row + kv * a->values_s.head,
                                         a->cache_is_bf16);
        if (a->cache_is_bf16) {
            EACH_VECTOR(j, m, a->d, {
                v_store_bf16_n((uint16_t *)key + j, r_load_n(k + j, m), m);
                v_store_bf16_n((uint16_t *)value + j, r_load_n(v + j, m), m);
            });
        } else {
            EACH_VECTOR(j, m, a->d, {
                v_store_n((float *)key + j, r_load_n(k + j, m), m);
                v_store_n((float *)value + j, r_load_n(v + j, m), m);
            });
        }
    }
}

/* All heads of one chunk of a sequence's keys. */
static void FN(cached_part)(const ck_attention_cached_args *a, const ck_team *team, int64_t b, int64_t chunk,
                            ck_range keys) {
    float *out = cached_place(a, team, b, chunk), *most = out + a->h * a->d, *total = most + a->h;
    float *q = (float *)team->scratch;
    const int64_t group = a->h / a->kv;
    for (int64_t kv = 0; kv < a->kv; kv++)
        for (int64_t g = 0; g < group; g += CK_CACHED_GROUP) {
            const int64_t heads = ck_min(CK_CACHED_GROUP, group - g), h = kv * group + g;
            for (int64_t i = 0; i < heads; i++) {
                const real *from = (const real *)a->q + b * a->q_s.batch + (h + i) * a->q_s.head;
                EACH_VECTOR(j, m, a->d, v_store_n(q + i * a->d + j, r_load_n(from + j, m), m););
            }
            cached_functions[heads - 1](a, b, kv, q, keys, out + h * a->d, most + h, total + h);
        }
}

/* o of one head: the sum of its chunks, each weighed by what its greatest score is to that of all. */
static void FN(cached_sum)(const ck_attention_cached_args *a, const ck_team *team, int64_t b, int64_t h, int64_t chunks) {
    real *o = (real *)a->o + b * a->o_s.batch + h * a->o_s.head;
    float most = -INFINITY, total = 0.0f;
    for (int64_t c = 0; c < chunks; c++) {
        const float here = cached_place(a, team, b, c)[a->h * a->d + h];
        most = here > most ? here : most;
    }
    float *sums = (float *)team->scratch;
    memset(sums, 0, (size_t)a->d * sizeof *sums);
    for (int64_t c = 0; c < chunks; c++) {
        const float *part = cached_place(a, team, b, c);
        const float weight = expf(part[a->h * a->d + h] - most);
        total += weight * part[a->h * (a->d + 1) + h];
        const vf factor = v_set1(weight);
        EACH_VECTOR(j, m, a->d,
            v_store_n(sums + j, v_fma(factor, v_load_n(part + h * a->d + j, m), v_load_n(sums + j, m)), m););
    }
    const vf inverse = v_set1(1.0f / total);
    EACH_VECTOR(j, m, a->d, r_store_n(o + j, v_mul(v_load_n(sums + j, m), inverse), m););
}

static void FN(attention_cached)(const void *args, const ck_team *team) {
    const ck_attention_cached_args *a = args;
    if (team->index == 0)
        for (int64_t b = 0; b < a->b; b++) FN(cached_append)(a, b);
    ck_barrier(team);
    int64_t item = 0;
    for (int64_t b = 0; b < a->b; b++) {
        const ck_range seen = cached_keys(a, b);
        const int64_t chunk = cached_chunk(a, seen.end - seen.begin);
        for (int64_t k0 = seen.begin; k0 < seen.end; k0 += chunk, item++)
            if (item % team->size == team->index)
                FN(cached_part)(a, team, b, (k0 - seen.begin) / chunk, (ck_range){k0, ck_min(k0 + chunk, seen.end)});
    }
    ck_barrier(team);
    const ck_range mine = ck_split(a->b * a->h, 1, team->size, team->index);
    for (int64_t at = mine.begin; at < mine.end; at++) {
        const ck_range seen = cached_keys(a, at / a->h);
        const int64_t count = seen.end - seen.begin;
        FN(cached_sum)(a, team, at / a->h, at % a->h, ck_ceil_div(count, cached_chunk(a, count)));
    }
}
