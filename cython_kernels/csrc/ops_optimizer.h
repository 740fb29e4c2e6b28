/* Optimizer steps on flat fp32 buffers, one element independent of the next, and the sum of squares that clipping
 * needs. */

/* fp64 sums: each thread one, added by the first in the order of the threads. */
static void FN(sum_of_squares)(const void *args, const ck_team *team) {
    const ck_sum_of_squares_args *a = args;
    const ck_range part = ck_split(a->n, 64, team->size, team->index);
    const real *x = (const real *)a->x + part.begin;
    const int64_t n = part.end - part.begin, whole = n / (4 * VL) * (4 * VL);
    vd sum[4] = {vd_zero(), vd_zero(), vd_zero(), vd_zero()};
    for (int64_t i = 0; i < whole; i += 4 * VL)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) sum[j] = vd_add_squares(sum[j], r_load_n(x + i + j * VL, VL));
    EACH_VECTOR(i, m, n - whole, sum[0] = vd_add_squares(sum[0], r_load_n(x + whole + i, m)););
    *(double *)team->scratch = (vd_sum(sum[0]) + vd_sum(sum[1])) + (vd_sum(sum[2]) + vd_sum(sum[3]));
    ck_barrier(team);
    if (team->index == 0) {
        double total = 0.0;
        for (int t = 0; t < team->size; t++) total += *(const double *)ck_scratch_of(team, t);
        *a->sum = total;
    }
}

#if CK_STORAGE == CK_F32  /* of fp32 whatever the storage type: once */
/* What one step's numbers make of a weight and its moments. */
typedef struct { vf scale, keep, beta1, rest1, beta2, rest2, step_size, correction2, eps; } ck_adamw;
SIMD ck_adamw ck_adamw_of(double lr, double beta1, double beta2, double eps, double weight_decay, int64_t step,
                          double grad_scale) {
    return (ck_adamw){
        .scale = v_set1((float)grad_scale), .keep = v_set1((float)(1.0 - lr * weight_decay)),
        .beta1 = v_set1((float)beta1), .rest1 = v_set1((float)(1.0 - beta1)),
        .beta2 = v_set1((float)beta2), .rest2 = v_set1((float)(1.0 - beta2)),
        .step_size = v_set1((float)(lr / (1.0 - pow(beta1, (double)step)))),
        .correction2 = v_set1((float)(1.0 / sqrt(1.0 - pow(beta2, (double)step)))), .eps = v_set1((float)eps)};
}
/* The new weight; m and v become the new moments. */
SIMD vf ck_adamw_update(const ck_adamw *c, vf p, vf grad, vf *m, vf *v) {
    const vf g = v_mul(grad, c->scale);
    *m = v_fma(c->beta1, *m, v_mul(c->rest1, g));
    *v = v_fma(c->beta2, *v, v_mul(c->rest2, v_mul(g, g)));
    const vf denominator = v_fma(v_sqrt(*v), c->correction2, c->eps);
    return v_sub(v_mul(p, c->keep), v_div(v_mul(c->step_size, *m), denominator));
}

/* The update of n weights and of their moments, which go to `first` and `second`; in bf16 the weights go to `copy` too, where
 * there is one. */
SIMD void ck_adamw_put(const ck_adamw *c, vf m, vf v, float *first, float *second, float *param, const float *grad,
                       uint16_t *copy, int streaming, int64_t n) {
    const vf p = ck_adamw_update(c, v_load_n(param, n), v_load_n(grad, n), &m, &v);
    v_store_n(first, m, n);
    v_store_n(second, v, n);
    v_store_n(param, p, n);
    if (!copy) return;
    if (streaming && n == VL) v_stream_bf16(copy, p);
    else v_store_bf16_n(copy, p, n);
}

/* AdamW (Loshchilov & Hutter 2019): decoupled decay, bias-corrected moments. The bf16 copy of the parameters rides along,
 * which would be a pass over memory of its own. */
static void adamw_step(const void *args, const ck_team *team) {
    const ck_optimizer_args *a = args;
    const ck_range part = ck_split(a->n, 64, team->size, team->index);
    float *param = a->param + part.begin, *first = a->m + part.begin, *second = a->v + part.begin;
    const float *grad = a->grad + part.begin;
    uint16_t *copy = a->copy ? a->copy + part.begin : NULL;
    const int streaming = copy && ck_streams(team, a->copy, a->n * sizeof *copy, 0);
    const ck_adamw c = ck_adamw_of(a->lr, a->beta1, a->beta2, a->eps, a->weight_decay, a->step, a->grad_scale);
    EACH_VECTOR(i, n, part.end - part.begin,
        ck_adamw_put(&c, v_load_n(first + i, n), v_load_n(second + i, n), first + i, second + i, param + i, grad + i,
                     copy ? copy + i : NULL, streaming, n););
    if (streaming) ck_store_fence();
}

/* Numbers x of a block as bytes, each the nearest number of the map times the scale, which is returned: the number of the
 * largest magnitude, with its sign, so that it is kept exactly and the same bytes come of the numbers that they stand for.
 * `zero` is the map's byte of 0, beyond which negative numbers count down. A block whose numbers are all below CK_VANISHING
 * becomes zeros: no product of a scale and a number of the map is subnormal. */
#define CK_VANISHING 0x1p-100f
static float ck_to_bytes(uint8_t *bytes, const float *x, int64_t n, const ck_dynamic_map *map, int zero) {
    vf up = v_zero(), down = v_zero();
    EACH_VECTOR(i, k, n,
        const vf y = v_load_n(x + i, k);  /* lanes beyond k are 0 */
        up = v_max(up, y);
        down = v_max(down, v_sub(v_zero(), y)););
    const float most = v_largest(up), least = v_largest(down), scale = most >= least ? most : -least;
    if (!(fabsf(scale) >= CK_VANISHING)) {
        memset(bytes, zero, n);
        return 0.0f;
    }
    const vf inverse = v_set1(1.0f / scale);
    float ratio[CK_DYNAMIC_BLOCK];
    int32_t bits[CK_DYNAMIC_BLOCK], rank[CK_DYNAMIC_BLOCK];
    EACH_VECTOR(i, k, n, v_store_n(ratio + i, v_mul(v_load_n(x + i, k), inverse), k););
    memcpy(bits, ratio, n * sizeof *bits);  /* of magnitudes they are in the same order as integers */
    for (int64_t i = 0; i < n; i++) {
        const int32_t cell = ((bits[i] & 0x7fffffff) >> 16) - (103 << 7);  /* 2^-24 and less are in the first one */
        rank[i] = cell < 0 ? 0 : cell < CK_DYNAMIC_CELLS ? cell : CK_DYNAMIC_CELLS - 1;
    }
    for (int64_t i = 0; i < n; i++) {
        const int32_t found = map->cells[rank[i]];
        rank[i] = found + ((bits[i] & 0x7fffffff) > map->limits[found]);
    }
    for (int64_t i = 0; i < n; i++) {  /* a negative number counts down, as far as there are bytes */
        const int32_t minus = -(int32_t)((uint32_t)bits[i] >> 31), far = rank[i] + (minus & -(rank[i] > zero));
        bytes[i] = (uint8_t)(zero + (far ^ minus) - minus);
    }
    return scale;
}

/* AdamW with moments of 8 bits (Dettmers et al. 2022): the blocks of a thread, one after the other. */
static void adamw_8bit_step(const void *args, const ck_team *team) {
    const ck_adamw_8bit_args *a = args;
    const ck_range part = ck_split(a->n, CK_DYNAMIC_BLOCK, team->size, team->index);
    const int streaming = a->copy && ck_streams(team, a->copy, a->n * sizeof *a->copy, 0);
    const ck_adamw c = ck_adamw_of(a->lr, a->beta1, a->beta2, a->eps, a->weight_decay, a->step, a->grad_scale);
    float first[CK_DYNAMIC_BLOCK], second[CK_DYNAMIC_BLOCK];
    for (int64_t begin = part.begin; begin < part.end; begin += CK_DYNAMIC_BLOCK) {
        const int64_t length = ck_min(CK_DYNAMIC_BLOCK, part.end - begin), block = begin / CK_DYNAMIC_BLOCK;
        float *param = a->param + begin;
        const float *grad = a->grad + begin;
        uint16_t *copy = a->copy ? a->copy + begin : NULL;
        const uint8_t *m_bytes = a->m + begin, *v_bytes = a->v + begin;
        for (int64_t i = 0; i < length; i++) first[i] = a->m_map.values[m_bytes[i]];
        for (int64_t i = 0; i < length; i++) second[i] = a->v_map.values[v_bytes[i]];
        const vf m_scale = v_set1(a->m_scale[block]), v_scale = v_set1(a->v_scale[block]);
        EACH_VECTOR(i, n, length,
            ck_adamw_put(&c, v_mul(v_load_n(first + i, n), m_scale), v_mul(v_load_n(second + i, n), v_scale),
                         first + i, second + i, param + i, grad + i, copy ? copy + i : NULL, streaming, n););
        a->m_scale[block] = ck_to_bytes(a->m + begin, first, length, &a->m_map, 127);
        a->v_scale[block] = ck_to_bytes(a->v + begin, second, length, &a->v_map, 0);
    }
    if (streaming) ck_store_fence();
}

/* SGD with momentum as in PyTorch: decay is added to the gradient; the buffer starts at zero. */
static void sgd_step(const void *args, const ck_team *team) {
    const ck_optimizer_args *a = args;
    const ck_range part = ck_split(a->n, 64, team->size, team->index);
    float *param = a->param + part.begin, *buffer = a->m + part.begin;
    const float *grad = a->grad + part.begin;
    const vf scale = v_set1((float)a->grad_scale), decay = v_set1((float)a->weight_decay);
    const vf momentum = v_set1((float)a->beta1), lr = v_set1((float)a->lr);
    EACH_VECTOR(i, n, part.end - part.begin,
        const vf p = v_load_n(param + i, n);
        const vf g = v_fma(decay, p, v_mul(v_load_n(grad + i, n), scale));
        const vf b = v_fma(momentum, v_load_n(buffer + i, n), g);
        v_store_n(buffer + i, b, n);
        v_store_n(param + i, v_sub(p, v_mul(lr, a->nesterov ? v_fma(momentum, b, g) : b)), n););
}
#endif
