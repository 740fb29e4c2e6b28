/* Ops between the matmuls that treat every element alike: GELU, SwiGLU and GEGLU, add, softcap, dropout. */

/* GELU (Hendrycks & Gimpel 2016): x Phi(x), or the tanh form, which is x sigmoid(2 u), u = sqrt(2/pi)(x +
 * 0.044715 x^3). */
INLINE vf FN(gelu)(vf x, const int tanh) {
    vf unused;
    if (!tanh) return v_mul(x, v_normal_cdf(x, &unused, CK_DEGREE));
    const vf u2 = v_mul(v_set1(1.5957691216f), v_mul(x, v_fma(v_mul(x, x), v_set1(0.044715f), v_set1(1.0f))));
    return v_mul(x, v_sigmoid(u2, CK_DEGREE));
}

INLINE vf FN(gelu_slope)(vf x, const int tanh) {
    if (!tanh) {  /* Phi(x) + x phi(x) */
        vf exponential;
        const vf cdf = v_normal_cdf(x, &exponential, CK_DEGREE);
        return v_fma(v_mul(x, v_set1(0.3989422804f)), exponential, cdf);
    }
    const vf one = v_set1(1.0f), k = v_set1(1.5957691216f), square = v_mul(x, x);
    const vf s = v_sigmoid(v_mul(k, v_mul(x, v_fma(square, v_set1(0.044715f), one))), CK_DEGREE);
    const vf du2 = v_mul(k, v_fma(square, v_set1(3.0f * 0.044715f), one));
    return v_fma(v_mul(v_mul(x, s), v_sub(one, s)), du2, s);
}

/* What a gate lets through: silu(g) = g sigmoid(g), or with `gelu` the tanh form; and its slope. */
INLINE vf FN(gate)(vf g, vf *slope, const int gelu) {
    const vf one = v_set1(1.0f);
    if (gelu) {
        *slope = FN(gelu_slope)(g, 1);
        return FN(gelu)(g, 1);
    }
    const vf s = v_sigmoid(g, CK_DEGREE);
    *slope = v_mul(s, v_fma(g, v_sub(one, s), one));
    return v_mul(g, s);
}

/* y = f(gate) up (Shazeer 2020). */
INLINE void FN(gated_forward)(const ck_gated_args *a, const ck_team *team, const int gelu) {
    vf slope;
    const ck_range rows = ck_split(a->n, ck_row_grain(a->i * sizeof(real)), team->size, team->index);
    const int streaming = ck_streams(team, a->y, a->n * a->i * sizeof(real), a->y_row * sizeof(real));
    const int64_t ahead = ck_rows_ahead(a->gate_up_row, sizeof(real));
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const real *gate = (const real *)a->gate_up + r * a->gate_up_row, *up = gate + a->i;
        real *y = (real *)a->y + r * a->y_row;
        const int64_t two = a->i / (2 * VL) * (2 * VL);
        for (int64_t i = 0; i < two; i += 2 * VL) {
            vf g0, g1, u0, u1;
            for (int64_t at = i; at < i + 2 * VL; at += 64 / (int64_t)sizeof(real)) {
                ck_prefetch(gate + at + ahead);
                ck_prefetch(up + at + ahead);
            }
            r_load_split(g0, g1, gate + i);
            r_load_split(u0, u1, up + i);
            r_put_split(y + i, v_mul(FN(gate)(g0, &slope, gelu), u0), v_mul(FN(gate)(g1, &slope, gelu), u1), streaming);
        }
        EACH_VECTOR(i, m, a->i - two,
            const vf g = r_load_n(gate + two + i, m);
            r_put(y + two + i, v_mul(FN(gate)(g, &slope, gelu), r_load_n(up + two + i, m)), m, streaming););
    }
    if (streaming) ck_store_fence();
}

/* dup = dy f(g); dgate = dy up f'(g). */
INLINE void FN(gated_backward)(const ck_gated_args *a, const ck_team *team, const int gelu) {
    const ck_range rows = ck_split(a->n, ck_row_grain(a->i * sizeof(real)), team->size, team->index);
    const int64_t bytes = a->n * a->i * sizeof(real);
    const int64_t ahead = ck_rows_ahead(a->gate_up_row, sizeof(real)), dy_ahead = ck_rows_ahead(a->dy_row, sizeof(real));
    const int fresh = a->dgate_up != a->gate_up;
    const int streams_d = fresh && a->i * sizeof(real) % 64 == 0
        && ck_streams(team, a->dgate_up, 2 * bytes, a->dgate_up_row * sizeof(real));
    const int streams_y = a->y && ck_streams(team, a->y, bytes, a->y_row * sizeof(real));
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const real *gate = (const real *)a->gate_up + r * a->gate_up_row, *up = gate + a->i;
        const real *dy = (const real *)a->dy + r * a->dy_row;
        real *dgate = (real *)a->dgate_up + r * a->dgate_up_row, *dup = dgate + a->i;
        real *y = a->y ? (real *)a->y + r * a->y_row : NULL;
        EACH_VECTOR(i, m, a->i,
            ck_prefetch(gate + i + ahead);
            ck_prefetch(up + i + ahead);
            ck_prefetch(dy + i + dy_ahead);
            const vf g = r_load_n(gate + i, m);
            const vf u = r_load_n(up + i, m);
            const vf d = r_load_n(dy + i, m);
            vf slope;
            const vf open = FN(gate)(g, &slope, gelu);
            if (y) r_put(y + i, v_mul(open, u), m, streams_y);
            r_put(dup + i, v_mul(d, open), m, streams_d);
            r_put(dgate + i, v_mul(v_mul(d, u), slope), m, streams_d););
    }
    if (streams_d || streams_y) ck_store_fence();
}

static void FN(swiglu_forward)(const void *args, const ck_team *team) { FN(gated_forward)(args, team, 0); }
static void FN(swiglu_backward)(const void *args, const ck_team *team) { FN(gated_backward)(args, team, 0); }
static void FN(geglu_forward)(const void *args, const ck_team *team) { FN(gated_forward)(args, team, 1); }
static void FN(geglu_backward)(const void *args, const ck_team *team) { FN(gated_backward)(args, team, 1); }

#define ROWS_OF_POINTWISE(body)                                                                             \
    const ck_pointwise_args *a = args;                                                                      \
    const ck_range rows = ck_split(a->n, ck_row_grain(a->c * sizeof(real)), team->size, team->index);       \
    const int streaming = a->out != a->a && a->out != a->b                                                  \
        && ck_streams(team, a->out, a->n * a->c * sizeof(real), a->out_row * sizeof(real));                       \
    for (int64_t r = rows.begin; r < rows.end; r++) {                                                       \
        const real *x = (const real *)a->a + r * a->a_row, *other = (const real *)a->b + r * a->b_row;      \
        real *out = (real *)a->out + r * a->out_row;                                                        \
        (void)other;                                                                                        \
        body                                                                                                \
    }                                                                                                       \
    if (streaming) ck_store_fence();

static void FN(gelu_forward)(const void *args, const ck_team *team) {
    ROWS_OF_POINTWISE(
        if (a->tanh) EACH_VECTOR(i, m, a->c, r_put(out + i, FN(gelu)(r_load_n(x + i, m), 1), m, streaming););
        else EACH_VECTOR(i, m, a->c, r_put(out + i, FN(gelu)(r_load_n(x + i, m), 0), m, streaming););)
}

static void FN(gelu_backward)(const void *args, const ck_team *team) {
    ROWS_OF_POINTWISE(  /* a is x, b is dy */
        if (a->tanh)
            EACH_VECTOR(i, m, a->c,
                r_put(out + i, v_mul(r_load_n(other + i, m), FN(gelu_slope)(r_load_n(x + i, m), 1)), m,
                      streaming););
        else
            EACH_VECTOR(i, m, a->c,
                r_put(out + i, v_mul(r_load_n(other + i, m), FN(gelu_slope)(r_load_n(x + i, m), 0)), m,
                      streaming););)
}

static void FN(add)(const void *args, const ck_team *team) {
    const vf alpha = v_set1(((const ck_pointwise_args *)args)->alpha);
    ROWS_OF_POINTWISE(
        if (a->alpha == 1.0f)
            EACH_VECTOR(i, m, a->c, r_put(out + i, v_add(r_load_n(x + i, m), r_load_n(other + i, m)), m, streaming););
        else
            EACH_VECTOR(i, m, a->c,
                r_put(out + i, v_fma(alpha, r_load_n(other + i, m), r_load_n(x + i, m)), m, streaming););)
}

/* c tanh(x / c). */
static void FN(softcap)(const void *args, const ck_team *team) {
    const vf cap = v_set1(((const ck_pointwise_args *)args)->alpha);
    const vf to_cap = v_set1(1.0f / ((const ck_pointwise_args *)args)->alpha);
    ROWS_OF_POINTWISE(
        EACH_VECTOR(i, m, a->c, r_put(out + i, v_mul(cap, v_tanh(v_mul(r_load_n(x + i, m), to_cap))), m, streaming););)
}

#undef ROWS_OF_POINTWISE

/* A mixer of 32 bits whose output bits flip for half of the inputs when any input bit does: xor-shifts and two odd
 * multipliers (the family of MurmurHash3's finaliser, with multipliers found by search for the least bias). */
#ifndef CK_MASK_CHUNK
#define CK_MASK_CHUNK 256
INLINE uint32_t ck_mix32(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7feb352dU;
    x = (x ^ (x >> 15)) * 0x846ca68bU;
    return x ^ (x >> 16);
}
/* `scale` where the hash of a column's counter is at least `threshold`, 0 elsewhere. Over integers alone and not
 * inlined the compiler makes vectors of it. */
static __attribute__((noinline)) void ck_mask(uint32_t *restrict mask, uint32_t first, uint32_t threshold,
                                              float scale) {
    uint32_t kept;
    memcpy(&kept, &scale, sizeof kept);
    for (int i = 0; i < CK_MASK_CHUNK; i++)
        mask[i] = ck_mix32(first + (uint32_t)i * 0x9e3779b9U) >= threshold ? kept : 0;
}
#endif

/* out = or += x mask, some columns of the mask at a time. */
static void FN(dropout)(const void *args, const ck_team *team) {
    const ck_dropout_args *a = args;
    const ck_range rows = ck_split(a->n, ck_row_grain(a->c * sizeof(real)), team->size, team->index);
    union { uint32_t bits[CK_MASK_CHUNK]; float factors[CK_MASK_CHUNK]; } mask;
    for (int64_t r = rows.begin; r < rows.end; r++) {
        for (int64_t start = 0; start < a->c; start += CK_MASK_CHUNK) {
            const real *x = (const real *)a->x + r * a->x_row + start;
            real *out = (real *)a->out + r * a->out_row + start;
            const int64_t count = ck_min(CK_MASK_CHUNK, a->c - start);
            const uint32_t first = (uint32_t)a->keys[r] + (uint32_t)(a->first_column + start) * 0x9e3779b9U;
            ck_mask(mask.bits, first, a->threshold, a->scale);
            if (a->accumulate)
                EACH_VECTOR(i, m, count,
                    const vf kept = v_load_n(mask.factors + i, m);
                    r_store_n(out + i, v_fma(r_load_n(x + i, m), kept, r_load_n(out + i, m)), m););
            else
                EACH_VECTOR(i, m, count,
                    r_store_n(out + i, v_mul(r_load_n(x + i, m), v_load_n(mask.factors + i, m)), m););
        }
    }
}
