/* Ops that treat every element alike: embedding, RoPE, SwiGLU, GELU, add, casts. */

static void FN(embedding_forward)(const void *args, const ck_team *team) {
    const ck_embedding_args *a = args;
    const ck_range rows = ck_split(a->n, ck_row_grain(a->c * sizeof(real)), team->size, team->index);
    for (int64_t r = rows.begin; r < rows.end; r++)
        memcpy((real *)a->y + r * a->y_row, (const real *)a->x + a->ids[r] * a->x_row,
               (size_t)a->c * sizeof(real));
}

/* Each thread takes a range of columns and walks all rows in order: no races, one order for any number of
 * threads. */
static void FN(embedding_backward)(const void *args, const ck_team *team) {
    const ck_embedding_args *a = args;
    const ck_range columns = ck_split(a->c, 16, team->size, team->index);
    const int64_t count = columns.end - columns.begin;
    for (int64_t r = 0; r < a->n; r++) {
        float *into = (float *)a->y + a->ids[r] * a->y_row + columns.begin;
        const real *dy = (const real *)a->x + r * a->x_row + columns.begin;
        EACH_VECTOR(i, m, count, v_store_n(into + i, v_add(v_load_n(into + i, m), r_load_n(dy + i, m)), m););
    }
}

/* Su et al. 2021, with the pairing (i, i + d/2) of Hugging Face. The inverse rotates by the negative
 * angle. */
static void FN(rope)(const void *args, const ck_team *team) {
    const ck_rope_args *a = args;
    const int64_t half = a->d / 2;
    const ck_range rows = ck_split(a->n, ck_row_grain(a->h * a->d * sizeof(real)), team->size, team->index);
    const vf sign = v_set1(a->inverse ? -1.0f : 1.0f);
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const float *cosine = a->cos + a->positions[r] * half, *sine = a->sin + a->positions[r] * half;
        for (int64_t h = 0; h < a->h; h++) {
            const real *x = (const real *)a->x + r * a->x_n + h * a->x_h;
            real *y = (real *)a->y + r * a->y_n + h * a->y_h;
            EACH_VECTOR(i, m, half,
                const vf c = v_load_n(cosine + i, m);
                const vf s = v_mul(v_load_n(sine + i, m), sign);
                const vf low = r_load_n(x + i, m);
                const vf high = r_load_n(x + half + i, m);
                r_store_n(y + i, v_sub(v_mul(low, c), v_mul(high, s)), m);
                r_store_n(y + half + i, v_fma(low, s, v_mul(high, c)), m););
        }
    }
}

/* y = silu(gate) up, silu(g) = g sigmoid(g) (Shazeer 2020). */
static void FN(swiglu_forward)(const void *args, const ck_team *team) {
    const ck_swiglu_args *a = args;
    const ck_range rows = ck_split(a->n, ck_row_grain(a->i * sizeof(real)), team->size, team->index);
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const real *gate = (const real *)a->gate_up + r * a->gate_up_row, *up = gate + a->i;
        real *y = (real *)a->y + r * a->y_row;
        EACH_VECTOR(i, m, a->i,
            const vf g = r_load_n(gate + i, m);
            r_store_n(y + i, v_mul(v_mul(g, v_sigmoid(g)), r_load_n(up + i, m)), m););
    }
}

/* dup = dy silu(g); dgate = dy up s (1 + g (1 - s)), s = sigmoid(g). */
static void FN(swiglu_backward)(const void *args, const ck_team *team) {
    const ck_swiglu_args *a = args;
    const ck_range rows = ck_split(a->n, ck_row_grain(a->i * sizeof(real)), team->size, team->index);
    const vf one = v_set1(1.0f);
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const real *gate = (const real *)a->gate_up + r * a->gate_up_row, *up = gate + a->i;
        const real *dy = (const real *)a->dy + r * a->dy_row;
        real *dgate = (real *)a->dgate_up + r * a->dgate_up_row, *dup = dgate + a->i;
        real *y = a->y ? (real *)a->y + r * a->y_row : NULL;
        EACH_VECTOR(i, m, a->i,
            const vf g = r_load_n(gate + i, m);
            const vf u = r_load_n(up + i, m);
            const vf d = r_load_n(dy + i, m);
            const vf s = v_sigmoid(g);
            const vf silu = v_mul(g, s);
            if (y) r_store_n(y + i, v_mul(silu, u), m);
            r_store_n(dup + i, v_mul(d, silu), m);
            r_store_n(dgate + i, v_mul(v_mul(d, u), v_mul(s, v_fma(g, v_sub(one, s), one))), m););
    }
}

/* GELU (Hendrycks & Gimpel 2016): x Phi(x), or the tanh form, which is x sigmoid(2 u), u = sqrt(2/pi)(x +
 * 0.044715 x^3). */
INLINE vf FN(gelu)(vf x, const int tanh) {
    vf unused;
    if (!tanh) return v_mul(x, v_normal_cdf(x, &unused));
    const vf u2 = v_mul(v_set1(1.5957691216f), v_mul(x, v_fma(v_mul(x, x), v_set1(0.044715f), v_set1(1.0f))));
    return v_mul(x, v_sigmoid(u2));
}

INLINE vf FN(gelu_slope)(vf x, const int tanh) {
    if (!tanh) {  /* Phi(x) + x phi(x) */
        vf exponential;
        const vf cdf = v_normal_cdf(x, &exponential);
        return v_fma(v_mul(x, v_set1(0.3989422804f)), exponential, cdf);
    }
    const vf one = v_set1(1.0f), k = v_set1(1.5957691216f), square = v_mul(x, x);
    const vf s = v_sigmoid(v_mul(k, v_mul(x, v_fma(square, v_set1(0.044715f), one))));
    const vf du2 = v_mul(k, v_fma(square, v_set1(3.0f * 0.044715f), one));
    return v_fma(v_mul(v_mul(x, s), v_sub(one, s)), du2, s);
}

#define ROWS_OF_POINTWISE(body)                                                                             \
    const ck_pointwise_args *a = args;                                                                      \
    const ck_range rows = ck_split(a->n, ck_row_grain(a->c * sizeof(real)), team->size, team->index);       \
    for (int64_t r = rows.begin; r < rows.end; r++) {                                                       \
        const real *x = (const real *)a->a + r * a->a_row, *other = (const real *)a->b + r * a->b_row;      \
        real *out = (real *)a->out + r * a->out_row;                                                        \
        (void)other;                                                                                        \
        body                                                                                                \
    }

static void FN(gelu_forward)(const void *args, const ck_team *team) {
    ROWS_OF_POINTWISE(
        if (a->tanh) EACH_VECTOR(i, m, a->c, r_store_n(out + i, FN(gelu)(r_load_n(x + i, m), 1), m););
        else EACH_VECTOR(i, m, a->c, r_store_n(out + i, FN(gelu)(r_load_n(x + i, m), 0), m););)
}

static void FN(gelu_backward)(const void *args, const ck_team *team) {
    ROWS_OF_POINTWISE(  /* a is x, b is dy */
        if (a->tanh)
            EACH_VECTOR(i, m, a->c,
                r_store_n(out + i, v_mul(r_load_n(other + i, m), FN(gelu_slope)(r_load_n(x + i, m), 1)), m););
        else
            EACH_VECTOR(i, m, a->c,
                r_store_n(out + i, v_mul(r_load_n(other + i, m), FN(gelu_slope)(r_load_n(x + i, m), 0)),
                          m););)
}

static void FN(add)(const void *args, const ck_team *team) {
    ROWS_OF_POINTWISE(
        EACH_VECTOR(i, m, a->c, r_store_n(out + i, v_add(r_load_n(x + i, m), r_load_n(other + i, m)), m););)
}

#undef ROWS_OF_POINTWISE

static void FN(cast_to_f32)(const void *args, const ck_team *team) {
    const ck_cast_args *a = args;
    const ck_range part = ck_split(a->n, 64, team->size, team->index);
    float *dst = (float *)a->dst + part.begin;
    const real *src = (const real *)a->src + part.begin;
    EACH_VECTOR(i, m, part.end - part.begin, v_store_n(dst + i, r_load_n(src + i, m), m););
}

static void FN(cast_to_bf16)(const void *args, const ck_team *team) {
    const ck_cast_args *a = args;
    const ck_range part = ck_split(a->n, 64, team->size, team->index);
    uint16_t *dst = (uint16_t *)a->dst + part.begin;
    const real *src = (const real *)a->src + part.begin;
    EACH_VECTOR(i, m, part.end - part.begin, v_store_bf16_n(dst + i, r_load_n(src + i, m), m););
}

/* fp64 sums: each thread one, added by the first in the order of the threads. */
static void FN(sum_of_squares)(const void *args, const ck_team *team) {
    const ck_sum_of_squares_args *a = args;
    const ck_range part = ck_split(a->n, 64, team->size, team->index);
    const real *x = (const real *)a->x + part.begin;
    vd sum = vd_zero();
    EACH_VECTOR(i, m, part.end - part.begin, sum = vd_add_squares(sum, r_load_n(x + i, m)););
    *(double *)team->scratch = vd_sum(sum);
    ck_barrier(team);
    if (team->index == 0) {
        double total = 0.0;
        for (int t = 0; t < team->size; t++) total += *(const double *)ck_scratch_of(team, t);
        *a->sum = total;
    }
}
