/* Attention's register tile, its two packings and the softmax of a tile of scores.
 *
 * The G = H / K query heads of a key/value head are taken together: row r of such a group is query s = r / G, head r
 * % G, so a tile of rows shares its keys and values and no head is copied. Scores are kept transposed, [key][row]:
 * the softmax runs down the keys with rows in the lanes and needs no horizontal step.
 *
 * Operands are made of 32-bit units along the contraction: one fp32 (CK_UNIT 1), or a pair of bf16 (CK_UNIT 2, where
 * the CPU multiplies them and has no AMX: such CPUs take longer for pairs than for fp32), so one register tile serves both. A tile of CK_TILE queries, keys, values or gradients
 * is packed in either of two ways, depending on what is summed over:
 *   by D      [D / unit][CK_TILE]      sums over D: scores and their gradient
 *   by items  [CK_TILE / unit][padded] sums over the tile's rows or keys; padded = D rounded up to VL, zeros after D
 * Either stands left (broadcast) or right (in vectors). Sums over rows or keys whose result is [D][CK_TILE], out and
 * dq, need no padding of D; dk and dv are [CK_TILE][padded]. */

#undef CK_UNIT
#undef CK_EXP2_DEGREE
#if CK_STORAGE == CK_BF16 && defined(CK_ISA_BF16) && !defined(CK_ISA_AMX)
#define CK_UNIT 2
#define CK_EXP2_DEGREE 4
#else
#define CK_UNIT 1
#define CK_EXP2_DEGREE 5
#endif

#ifndef CK_ATTENTION_TILE_H
#define CK_ATTENTION_TILE_H

#define CK_TILE 64  /* a whole number of vector pairs */

typedef struct {
    const ck_attention_args *a;
    int64_t group, rows, d, padded;     /* G, G * S, D, D rounded up to VL */
    int64_t batch, head;                /* head: the key/value head */
    int64_t batches_on, heads_on;       /* how far on the pair is that this thread takes next */
} ck_heads;

/* Of the pairs (batch, key/value head), the one computed and the one that this thread will probably take next. */
INLINE ck_heads heads_of(const ck_attention_args *a, int64_t pair, int64_t next) {
    const int64_t group = a->h / a->kv, batch = pair / a->kv, head = pair % a->kv;
    return (ck_heads){a, group, group * a->s, a->d, ck_round_up(a->d, VL), batch, head, next / a->kv - batch,
                      next % a->kv - head};
}

/* Where the next pair's rows stand, seen from this one's, in an array of these strides with `each` heads to a pair. */
INLINE int64_t next_pair(const ck_heads *t, ck_strides strides, int64_t each) {
    return t->batches_on * strides.batch + t->heads_on * each * strides.head;
}

/* What the rows of a tile see: row i the keys [begin[i], end[i]), or none. The extremes over the tile decide without a
 * look at the rows whether a tile of keys is seen wholly or not at all; a row that sees no key lets none be seen wholly
 * and none be met for its sake. */
typedef struct {
    int64_t begin[CK_TILE], end[CK_TILE];
    int64_t least_begin, most_begin, least_end, most_end;
} ck_sight;

static void see(ck_sight *sight, const ck_heads *t, int64_t row0, int64_t rows) {
    const ck_attention_args *a = t->a;
    sight->least_begin = sight->least_end = INT64_MAX;
    sight->most_begin = sight->most_end = 0;
    int64_t s = row0 / t->group, left = t->group - row0 % t->group;
    for (int64_t i = 0; i < rows; i++) {
        const int64_t position = a->t - a->s + s;
        int64_t begin = a->window > 0 ? ck_max(0, position + 1 - a->window) : 0;
        int64_t end = a->causal ? position + 1 : a->window > 0 ? ck_min(a->t, position + a->window) : a->t;
        if (a->first) begin = ck_max(begin, a->first[t->batch * a->s + s]);
        if (a->end) end = ck_min(end, a->end[t->batch * a->s + s]);
        if (begin >= end) begin = end = 0;
        sight->begin[i] = begin;
        sight->end[i] = end;
        sight->least_begin = end ? ck_min(sight->least_begin, begin) : sight->least_begin;
        sight->most_begin = ck_max(sight->most_begin, begin);
        sight->least_end = ck_min(sight->least_end, end);
        sight->most_end = ck_max(sight->most_end, end);
        if (--left == 0) s++, left = t->group;
    }
    for (int64_t i = rows; i < CK_TILE; i++) sight->begin[i] = 0, sight->end[i] = INT64_MAX;
}

/* The keys [k0, k0 + keys) as a tile of rows sees them; when SOME, each row's limits counted from k0, as floats
 * (small whole numbers, exact). A key without a partner counts as unseen twice: its pair's other half is no key. */
enum { CK_SEES_NONE, CK_SEES_SOME, CK_SEES_ALL };
static int mask_of_tile(const ck_sight *sight, int64_t k0, int64_t keys, float *begin, float *end) {
    if (sight->most_end <= k0 || sight->least_begin >= k0 + keys) return CK_SEES_NONE;
    if (sight->most_begin <= k0 && sight->least_end >= k0 + keys && keys % 2 == 0) return CK_SEES_ALL;
    for (int64_t i = 0; i < CK_TILE; i++) {
        begin[i] = (float)ck_max(0, ck_min(keys, sight->begin[i] - k0));
        end[i] = (float)ck_max(0, ck_min(keys, sight->end[i] - k0));
    }
    return CK_SEES_SOME;
}

INLINE vf apply_mask(vf x, vf hidden, int64_t key, vf begin, vf end) {
    const vf at = v_set1((float)key);
    return v_select(v_less(at, begin), hidden, v_select(v_less(at, end), x, hidden));
}

/* The workspace is handed out in whole cache lines. */
INLINE float *ck_floats(char **cursor, int64_t count) {
    float *p = (float *)*cursor;
    *cursor += ck_round_up(count * (int64_t)sizeof(float), 64);
    return p;
}

static float greatest(const float *p, int64_t n) {
    float found = p[0];
    for (int64_t i = 1; i < n; i++) found = p[i] > found ? p[i] : found;
    return found;
}

static void fill(float *p, float x, int64_t n) {
    for (int64_t i = 0; i < n; i++) p[i] = x;
}

/* A score below it hides its key: -Inf, or the least fp32 number, which stands for it in many masks. */
#define CK_HIDDEN (-3e38f)

/* What the sums of a tile's rows are multiplied by at the end: 1 / total, and 0 for a row that has seen no key. */
static void last_factors(float *factors, const float *largest, const float *total) {
    for (int64_t j = 0; j < CK_TILE; j += VL) {
        const vf sum = v_load(total + j), inverse = v_div(v_set1(1.0f), sum);
        const vf seen = v_select(v_less(v_set1(CK_HIDDEN), v_load(largest + j)), inverse, v_zero());
        v_store(factors + j, v_select(v_is_nan(sum), inverse, seen));
    }
}

#endif

INLINE vf FN(multiply_add)(vf a, vf b, vf sum) {
#if CK_UNIT == 2
    return v_dot_pairs(a, b, sum);
#else
    return v_fma(a, b, sum);
#endif
}

/* c (mr, nv vectors) = or += a (mr, k) . b (k, nv vectors), k in units. a[i * a_row + p * a_col]; a_row or a_col is
 * a constant of the call, so that all rows are addressed from one pointer. */
INLINE void FN(tile)(const int mr, const int nv, int64_t k, const float *a, const int64_t a_row,
                     const int64_t a_col, const float *b, int64_t b_row, float *c, int64_t c_row, int add) {
    vf sum[12][4];
#pragma GCC unroll 12
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) sum[i][j] = v_zero();
    for (; k > 0; k--) {
        vf row[4];
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) row[j] = v_load(b + j * VL);
#pragma GCC unroll 12
        for (int i = 0; i < mr; i++) {
            const vf factor = v_set1(a[i * a_row]);
#pragma GCC unroll 4
            for (int j = 0; j < nv; j++) sum[i][j] = FN(multiply_add)(factor, row[j], sum[i][j]);
        }
        a += a_col;
        b += b_row;
    }
    if (add) {
#pragma GCC unroll 12
        for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
            for (int j = 0; j < nv; j++) sum[i][j] = v_add(v_load(c + i * c_row + j * VL), sum[i][j]);
    }
#pragma GCC unroll 12
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) v_store(c + i * c_row + j * VL, sum[i][j]);
}

/* The tiles: CK_TILE_ROWS_<nv> rows by nv vectors, and the shorter ones for what is left of an even number of rows. */
#ifndef CK_ATTENTION_TILES
#if defined(CK_ISA_AVX512)
#define CK_ATTENTION_TILES(X) X(6, 4) X(4, 4) X(2, 4) X(8, 3) X(4, 3) X(2, 3) X(12, 2) X(4, 2) X(2, 2) X(12, 1) X(4, 1) X(2, 1)
#define CK_TILE_VECTORS 4
#define CK_TILE_ROWS {0, 12, 12, 8, 6}
#elif defined(CK_ISA_NEON)
#define CK_ATTENTION_TILES(X) X(4, 4) X(2, 4) X(4, 3) X(2, 3) X(8, 2) X(4, 2) X(2, 2) X(8, 1) X(4, 1) X(2, 1)
#define CK_TILE_VECTORS 4
#define CK_TILE_ROWS {0, 8, 8, 4, 4}
#elif VL == 8
#define CK_ATTENTION_TILES(X) X(4, 3) X(2, 3) X(6, 2) X(4, 2) X(2, 2) X(8, 1) X(4, 1) X(2, 1)
#define CK_TILE_VECTORS 2
#define CK_TILE_ROWS {0, 8, 6, 4}
#else
#define CK_ATTENTION_TILES(X) X(4, 2) X(2, 2) X(4, 1) X(2, 1)
#define CK_TILE_VECTORS 2
#define CK_TILE_ROWS {0, 4, 4}
#endif
#endif

typedef void (*FN(tile_kernel))(int64_t k, const float *a, int64_t a_col, const float *b, int64_t b_row, float *c,
                                int64_t c_row, int add);

/* Left operands lie by D or by items (rows one unit apart), or are scores, [key][row] (columns one unit apart). */
#define CK_DEFINE_TILE(mr, nv)                                                                                       \
    static __attribute__((noinline)) void FN(tile_packed_##mr##x##nv)(                                               \
        int64_t k, const float *a, int64_t a_col, const float *b, int64_t b_row, float *c, int64_t c_row, int add) { \
        FN(tile)(mr, nv, k, a, 1, a_col, b, b_row, c, c_row, add);                                                   \
    }                                                                                                                \
    static __attribute__((noinline)) void FN(tile_scores_##mr##x##nv)(                                               \
        int64_t k, const float *a, int64_t a_col, const float *b, int64_t b_row, float *c, int64_t c_row, int add) { \
        (void)a_col;                                                                                                 \
        FN(tile)(mr, nv, k, a, CK_TILE / CK_UNIT, 1, b, b_row, c, c_row, add);                                       \
    }
CK_ATTENTION_TILES(CK_DEFINE_TILE)
#undef CK_DEFINE_TILE

/* c (m, n) = or += a . b. m is even, n a multiple of VL; a_col is 0 for scores. */
static void FN(product)(int64_t m, int64_t n, int64_t k, const float *a, int64_t a_col, const float *b,
                        int64_t b_row, float *c, int64_t c_row, int add) {
#define CK_ENTRY(mr, nv) [nv][mr] = {FN(tile_packed_##mr##x##nv), FN(tile_scores_##mr##x##nv)},
    static const FN(tile_kernel) kernels[5][13][2] = {CK_ATTENTION_TILES(CK_ENTRY)};
#undef CK_ENTRY
    static const int most_rows[] = CK_TILE_ROWS;
    const int64_t a_row = a_col ? 1 : CK_TILE / CK_UNIT;
    for (int64_t j = 0; j < n;) {
        const int64_t vectors = ck_min(CK_TILE_VECTORS, (n - j) / VL);
        for (int64_t i = 0; i < m;) {
            const int64_t left = m - i, most = most_rows[vectors];
            const int64_t rows = left >= most ? most : left >= 4 ? 4 : 2;
            kernels[vectors][rows][a_col == 0](k, a + i * a_row, a_col, b + j, b_row, c + i * c_row + j, c_row, add);
            i += rows;
        }
        j += vectors * VL;
    }
}

/* n <= VL units of src, of which `elements` are left, zero after them. */
INLINE vf FN(load_units)(const real *src, int64_t elements) {
#if CK_UNIT == 2
    return v_from_bits(v_load_pairs_n(src, ck_max(0, ck_min(2 * VL, elements))));
#else
    return r_load_n(src, ck_max(0, ck_min(VL, elements)));
#endif
}

/* Where the rows [row0, row0 + rows) of an array (B, S, H, D) lie. */
static void FN(find_rows)(real **found, const ck_heads *t, void *pointer, ck_strides strides, int64_t row0,
                          int64_t rows) {
    real *first = (real *)pointer + t->batch * strides.batch + t->head * t->group * strides.head;
    int64_t s = row0 / t->group, head = row0 % t->group;  /* counted on: a division takes longer than a row's copy */
    for (int64_t r = 0; r < rows; r++) {
        found[r] = first + s * strides.row + head * strides.head;
        if (++head == t->group) s++, head = 0;
    }
}

/* Asks for `count` rows, `offset` elements from where `rows` say. A head's rows stand far apart, so that nothing else
 * sees them coming: those of the next tile or head are asked for while this one is computed. */
INLINE void FN(fetch)(const real *const *rows, int64_t count, int64_t d, int64_t offset) {
    for (int64_t r = 0; r < count; r++) {
        const real *row = rows[r] + offset;
        for (int64_t i = 0; i < d; i += 64 / (int64_t)sizeof(real)) __builtin_prefetch(row + i, 0, 2);
    }
}

/* A tile of `count` rows by D. Zeros after the last row. */
static void FN(pack_by_d)(float *dst, const real *const *rows, int64_t count, int64_t d) {
    const int64_t units = ck_ceil_div(d, CK_UNIT);
    for (int64_t r = 0; r < ck_round_up(count, 2 * VL); r += VL)
        for (int64_t u = 0; u < units; u += VL) {
            vf block[VL];
#pragma GCC unroll 16
            for (int64_t i = 0; i < VL; i++)
                block[i] = r + i < count ? FN(load_units)(rows[r + i] + u * CK_UNIT, d - u * CK_UNIT) : v_zero();
            v_transpose(block);
            const int64_t most = ck_min(VL, units - u);
            for (int64_t i = 0; i < most; i++) v_store(dst + (u + i) * CK_TILE + r, block[i]);
        }
}

/* The same by items. */
static void FN(pack_by_items)(float *dst, const real *const *rows, int64_t count, int64_t d) {
    const int64_t padded = ck_round_up(d, VL);
    for (int64_t r = 0; r < count; r += CK_UNIT, dst += padded)
        for (int64_t i = 0; i < padded; i += VL) {
            const int64_t m = ck_min(VL, d - i);
#if CK_UNIT == 2
            const vi low = v_load_u16_n(rows[r] + i, m);
            const vi high = r + 1 < count ? v_load_u16_n(rows[r + 1] + i, m) : vi_set1(0);
            v_store(dst + i, v_from_bits(vi_or(low, vi_shift_left(high, 16))));
#else
            v_store(dst + i, r_load_n(rows[r] + i, m));
#endif
        }
}

/* One row of a [D][CK_TILE] result, for `count` rows of dst, `stride` apart: dst = or += t^T, lane i times factors[i]. */
INLINE void FN(unpack)(real *const *rows, const float *t, int64_t count, int64_t d, const float *factors,
                       const int add) {
    for (int64_t r = 0; r < count; r += VL) {
        const vf factor = v_load(factors + r);
        for (int64_t j = 0; j < d; j += VL) {
            vf block[VL];
            const int64_t wide = ck_min(VL, d - j), high = ck_min(VL, count - r);
#pragma GCC unroll 16
            for (int64_t i = 0; i < VL; i++)
                block[i] = i < wide ? v_mul(v_load(t + (j + i) * CK_TILE + r), factor) : v_zero();
            v_transpose(block);
            for (int64_t i = 0; i < high; i++) {
                real *at = rows[r + i] + j;
                r_store_n(at, add ? v_add(r_load_n(at, wide), block[i]) : block[i], wide);
            }
        }
    }
}

/* Online softmax (Milakov & Gimelshein 2018) over the keys of a tile, with x = factor * score as exponent of 2:
 * scores become 2^(x - largest), in `p` by items; largest (of the scores) and total are brought up to date; what was
 * summed before must be multiplied by `shrink`. Returns whether any of it is not 1. A row that has seen nothing keeps
 * largest = -Inf and total = 0. */
static int FN(softmax)(float *p, float *scores, float *largest, float *total, float *shrink, float factor,
                       int64_t keys, int64_t rows, int masked, const float *begin, const float *end) {
    const vf hidden = v_set1(-INFINITY), most = v_set1(3.4e38f), scale = v_set1(factor);
    const int64_t even = ck_round_up(keys, 2);
    vf least = v_set1(1.0f);  /* of what shrinks */
    for (int64_t j = 0; j < rows; j += VL) {
        const vf before = v_load(largest + j);
        vf max0 = before, max1 = before, sum0 = v_zero(), sum1 = v_zero();
        if (masked) {
            const vf from = v_load(begin + j), to = v_load(end + j);
            for (int64_t key = 0; key < even; key++) {
                float *at = scores + key * CK_TILE + j;
                v_store(at, apply_mask(v_load(at), hidden, key, from, to));
            }
        }
        for (int64_t key = 0; key < even; key += 2) {
            max0 = v_max(v_load(scores + key * CK_TILE + j), max0);
            max1 = v_max(v_load(scores + (key + 1) * CK_TILE + j), max1);
        }
        const vf max = v_max(max1, max0);
        const vf shift = v_min(most, v_mul(max, v_set1(-factor)));  /* -Inf + Inf would be NaN */
        for (int64_t key = 0; key < even; key += 2) {
            float *at = scores + key * CK_TILE + j;
            const vf p0 = v_exp2(v_fma(v_load(at), scale, shift), CK_EXP2_DEGREE);
            const vf p1 = v_exp2(v_fma(v_load(at + CK_TILE), scale, shift), CK_EXP2_DEGREE);
            sum0 = v_add(sum0, p0);
            sum1 = v_add(sum1, p1);
#if CK_UNIT == 2
            v_store(p + key / 2 * CK_TILE + j, v_pairs_across(p0, p1));
#else
            v_store(p + key * CK_TILE + j, p0);
            v_store(p + (key + 1) * CK_TILE + j, p1);
#endif
        }
        const vf rest = v_exp2(v_fma(before, scale, shift), CK_EXP2_DEGREE);
        v_store(largest + j, max);
        v_store(shrink + j, rest);
        v_store(total + j, v_fma(v_load(total + j), rest, v_add(sum0, sum1)));
        least = v_min(rest, least);
    }
    return v_largest(v_sub(v_set1(1.0f), least)) > 0.0f;
}

/* Scores and the gradients of the probabilities, `keys` (even) by rows [first, rows), become p = 2^(factor score + shift) and dp (d -
 * delta) p: p and dp along the rows for dv and dk, dp by items for dq. `key` is the first one's place in the tile. Of
 * scores that were `adjusted` (attention_scores.h), dp is kept in the tile `dbias`, then multiplied by `slope`, where
 * they are not NULL, and -Inf gives exactly 0. */
INLINE void FN(softmax_backward)(float *p, float *dp, float *dp_by_items, const float *scores, const float *dscores,
                                 const float *shift, const float *delta, float factor, int64_t key, int64_t keys,
                                 int64_t first, int64_t rows, const int masked, const float *begin, const float *end,
                                 const int adjusted, const float *slope, float *dbias) {
    const vf scale = v_set1(factor), least = v_set1(-126.0f);
    for (int64_t j = first; j < rows; j += 2 * VL) {
        const vf shift0 = v_load(shift + j), center0 = v_load(delta + j);
        const vf shift1 = v_load(shift + j + VL), center1 = v_load(delta + j + VL);
        for (int64_t i = 0; i < keys; i += 2) {
            vf e[2][2], de[2][2];
#pragma GCC unroll 2
            for (int at = 0; at < 2; at++) {
                const int64_t from = (i + at) * CK_TILE + j;
                const vf x0 = v_fma(v_load(scores + from), scale, shift0);
                const vf x1 = v_fma(v_load(scores + from + VL), scale, shift1);
                e[at][0] = v_exp2(x0, CK_EXP2_DEGREE);
                e[at][1] = v_exp2(x1, CK_EXP2_DEGREE);
                if (adjusted) {
                    e[at][0] = v_select(v_less(x0, least), v_zero(), e[at][0]);
                    e[at][1] = v_select(v_less(x1, least), v_zero(), e[at][1]);
                }
                if (masked) {
                    e[at][0] = apply_mask(e[at][0], v_zero(), key + i + at, v_load(begin + j), v_load(end + j));
                    e[at][1] = apply_mask(e[at][1], v_zero(), key + i + at, v_load(begin + j + VL),
                                          v_load(end + j + VL));
                }
                de[at][0] = v_mul(e[at][0], v_sub(v_load(dscores + from), center0));
                de[at][1] = v_mul(e[at][1], v_sub(v_load(dscores + from + VL), center1));
                if (adjusted && dbias) {
                    v_store(dbias + key * CK_TILE + from, de[at][0]);
                    v_store(dbias + key * CK_TILE + from + VL, de[at][1]);
                }
                if (adjusted && slope) {
                    de[at][0] = v_mul(de[at][0], v_load(slope + from));
                    de[at][1] = v_mul(de[at][1], v_load(slope + from + VL));
                }
            }
#if CK_UNIT == 2
#pragma GCC unroll 2
            for (int at = 0; at < 2; at++) {
                const int64_t to = (key + i + at) * (CK_TILE / 2) + j / 2;
                v_store(p + to, v_pairs_along(e[at][0], e[at][1]));
                v_store(dp + to, v_pairs_along(de[at][0], de[at][1]));
                v_store(dp_by_items + (key + i) / 2 * CK_TILE + j + at * VL, v_pairs_across(de[0][at], de[1][at]));
            }
#else
            (void)dp_by_items;
#pragma GCC unroll 2
            for (int at = 0; at < 2; at++) {
                const int64_t to = (key + i + at) * CK_TILE + j;
                v_store(p + to, e[at][0]);
                v_store(p + to + VL, e[at][1]);
                v_store(dp + to, de[at][0]);
                v_store(dp + to + VL, de[at][1]);
            }
#endif
        }
    }
}
