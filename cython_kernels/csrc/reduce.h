/* Element-wise reduction of n_src arrays into n_dst arrays, in the order of the list: what comm calls in
 * place of its own plain one, and to the same bits (comm/csrc/reduce.h says the rules). Memory-bound: a
 * round takes four vectors of every source, so that the loop over the sources costs little. */

enum { CK_SUM, CK_MEAN, CK_MAX, CK_MIN };

#define REDUCE_UNROLL 4
#define REDUCE_BLOCK 512

/* a where it is not smaller, or NaN; NaN where either is. */
INLINE vf reduce_larger(vf a, vf b) {
    const vf larger = v_select(v_less(a, b), b, a);
    return v_select(v_is_nan(a), a, v_select(v_is_nan(b), b, larger));
}

INLINE vf reduce_smaller(vf a, vf b) {
    const vf smaller = v_select(v_less(b, a), b, a);
    return v_select(v_is_nan(a), a, v_select(v_is_nan(b), b, smaller));
}

INLINE vf reduce_two(vf a, vf b, const int op) {
    return op == CK_MAX ? reduce_larger(a, b) : op == CK_MIN ? reduce_smaller(a, b) : v_add(a, b);
}

INLINE void reduce_f32(const ck_reduce_args *a, int64_t begin, int64_t end, const int op, const int stream) {
    const vf scale = v_set1((float)a->n_src);
    int64_t i = begin;
    for (; i + REDUCE_UNROLL * VL <= end; i += REDUCE_UNROLL * VL) {
        vf acc[REDUCE_UNROLL];
        for (int u = 0; u < REDUCE_UNROLL; u++) acc[u] = v_load((const float *)a->src[0] + i + u * VL);
        for (int s = 1; s < a->n_src; s++) {
            const float *x = (const float *)a->src[s] + i;
            for (int u = 0; u < REDUCE_UNROLL; u++) acc[u] = reduce_two(acc[u], v_load(x + u * VL), op);
        }
        if (op == CK_MEAN) for (int u = 0; u < REDUCE_UNROLL; u++) acc[u] = v_div(acc[u], scale);
        for (int d = 0; d < a->n_dst; d++) {
            float *y = (float *)a->dst[d] + i;
            for (int u = 0; u < REDUCE_UNROLL; u++) {
                if (stream) v_stream(y + u * VL, acc[u]);
                else v_store(y + u * VL, acc[u]);
            }
        }
    }
    for (; i < end; i += VL) {
        const int64_t m = end - i < VL ? end - i : VL;
        vf acc = v_load_n((const float *)a->src[0] + i, m);
        for (int s = 1; s < a->n_src; s++) acc = reduce_two(acc, v_load_n((const float *)a->src[s] + i, m), op);
        if (op == CK_MEAN) acc = v_div(acc, scale);
        for (int d = 0; d < a->n_dst; d++) v_store_n((float *)a->dst[d] + i, acc, m);
    }
}

INLINE void reduce_bf16(const ck_reduce_args *a, int64_t begin, int64_t end, const int op) {
    const vf scale = v_set1((float)a->n_src);
    for (int64_t i = begin; i < end; i += VL) {
        const int64_t m = end - i < VL ? end - i : VL;
        vf acc = v_load_bf16_n((const uint16_t *)a->src[0] + i, m);
        for (int s = 1; s < a->n_src; s++)
            acc = reduce_two(acc, v_load_bf16_n((const uint16_t *)a->src[s] + i, m), op);
        if (op == CK_MEAN) acc = v_div(acc, scale);
        for (int d = 0; d < a->n_dst; d++) v_store_bf16_n((uint16_t *)a->dst[d] + i, acc, m);
    }
}

/* The other types, in blocks that stay in the first-level cache; the compiler makes the vectors. */
#define REDUCE_LARGER(a, b) ((a) >= (b) || (a) != (a) ? (a) : (b))
#define REDUCE_SMALLER(a, b) ((a) <= (b) || (a) != (a) ? (a) : (b))
#define REDUCE_PLAIN(name, type, SUM, MEAN)                                                                 \
    INLINE void name(const ck_reduce_args *a, int64_t begin, int64_t end, const int op) {                   \
        type acc[REDUCE_BLOCK];                                                                             \
        for (int64_t at = begin; at < end; at += REDUCE_BLOCK) {                                            \
            const int n = (int)(end - at < REDUCE_BLOCK ? end - at : REDUCE_BLOCK);                         \
            memcpy(acc, (const type *)a->src[0] + at, (size_t)n * sizeof(type));                            \
            for (int s = 1; s < a->n_src; s++) {                                                            \
                const type *x = (const type *)a->src[s] + at;                                               \
                for (int i = 0; i < n; i++)                                                                 \
                    acc[i] = op == CK_MAX ? REDUCE_LARGER(acc[i], x[i])                                     \
                             : op == CK_MIN ? REDUCE_SMALLER(acc[i], x[i])                                  \
                                            : SUM(acc[i], x[i]);                                            \
            }                                                                                               \
            if (op == CK_MEAN) for (int i = 0; i < n; i++) acc[i] = MEAN(acc[i], a->n_src);                 \
            for (int d = 0; d < a->n_dst; d++)                                                              \
                memcpy((type *)a->dst[d] + at, acc, (size_t)n * sizeof(type));                              \
        }                                                                                                   \
    }

#define REDUCE_ADD(a, b) ((a) + (b))
#define REDUCE_WRAP_I32(a, b) ((int32_t)((uint32_t)(a) + (uint32_t)(b)))
#define REDUCE_WRAP_I64(a, b) ((int64_t)((uint64_t)(a) + (uint64_t)(b)))
#define REDUCE_OVER(a, n) ((a) / (double)(n))
#define REDUCE_NO_MEAN(a, n) (a)
REDUCE_PLAIN(reduce_f64, double, REDUCE_ADD, REDUCE_OVER)
REDUCE_PLAIN(reduce_i32, int32_t, REDUCE_WRAP_I32, REDUCE_NO_MEAN)
REDUCE_PLAIN(reduce_i64, int64_t, REDUCE_WRAP_I64, REDUCE_NO_MEAN)

/* The operation is a constant in each branch, so no loop asks for it. */
#define REDUCE_BY_OP(call)                                                                                  \
    do {                                                                                                    \
        if (a->op == CK_SUM) { enum { op = CK_SUM }; call; }                                                \
        else if (a->op == CK_MEAN) { enum { op = CK_MEAN }; call; }                                         \
        else if (a->op == CK_MAX) { enum { op = CK_MAX }; call; }                                           \
        else { enum { op = CK_MIN }; call; }                                                                \
    } while (0)

/* Stores past the caches need whole aligned vectors: the part of each thread up to the first boundary is
 * stored the plain way, and so is everything when the outputs are not aligned alike. */
static void reduce_n(const void *args, const ck_team *team) {
    const ck_reduce_args *a = args;
    const ck_range part = ck_split(a->count, 64, team->size, team->index);
    const int64_t begin = part.begin, end = part.end;
    if (a->dtype == CK_REDUCE_F32) {
        const uintptr_t bytes = VL * sizeof(float), first = (uintptr_t)((float *)a->dst[0] + begin);
        int stream = a->stream && first % sizeof(float) == 0;
        for (int d = 1; d < a->n_dst; d++)
            if ((uintptr_t)((float *)a->dst[d] + begin) % bytes != first % bytes) stream = 0;
        if (stream) {
            int64_t aligned = begin + (int64_t)((bytes - first % bytes) % bytes / sizeof(float));
            if (aligned > end) aligned = end;
            REDUCE_BY_OP(reduce_f32(a, begin, aligned, op, 0));
            REDUCE_BY_OP(reduce_f32(a, aligned, end, op, 1));
            ck_store_fence();
        } else {
            REDUCE_BY_OP(reduce_f32(a, begin, end, op, 0));
        }
    } else if (a->dtype == CK_REDUCE_BF16) {
        REDUCE_BY_OP(reduce_bf16(a, begin, end, op));
    } else if (a->dtype == CK_REDUCE_F64) {
        REDUCE_BY_OP(reduce_f64(a, begin, end, op));
    } else if (a->dtype == CK_REDUCE_I32) {
        REDUCE_BY_OP(reduce_i32(a, begin, end, op));
    } else {
        REDUCE_BY_OP(reduce_i64(a, begin, end, op));
    }
}
