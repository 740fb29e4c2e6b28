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
/* AdamW (Loshchilov & Hutter 2019): decoupled decay, bias-corrected moments. The bf16 copy of the parameters rides along,
 * which would be a pass over memory of its own. */
static void adamw_step(const void *args, const ck_team *team) {
    const ck_optimizer_args *a = args;
    const ck_range part = ck_split(a->n, 64, team->size, team->index);
    float *param = a->param + part.begin, *first = a->m + part.begin, *second = a->v + part.begin;
    const float *grad = a->grad + part.begin;
    uint16_t *copy = a->copy ? a->copy + part.begin : NULL;
    const int streaming = copy && ck_streams(team, a->copy, a->n * sizeof *copy, 0);
    const vf scale = v_set1((float)a->grad_scale), keep = v_set1((float)(1.0 - a->lr * a->weight_decay));
    const vf beta1 = v_set1((float)a->beta1), rest1 = v_set1((float)(1.0 - a->beta1));
    const vf beta2 = v_set1((float)a->beta2), rest2 = v_set1((float)(1.0 - a->beta2));
    const vf step_size = v_set1((float)(a->lr / (1.0 - pow(a->beta1, (double)a->step))));
    const vf correction2 = v_set1((float)(1.0 / sqrt(1.0 - pow(a->beta2, (double)a->step))));
    const vf eps = v_set1((float)a->eps);
    EACH_VECTOR(i, n, part.end - part.begin,
        const vf g = v_mul(v_load_n(grad + i, n), scale);
        const vf m = v_fma(beta1, v_load_n(first + i, n), v_mul(rest1, g));
        const vf v = v_fma(beta2, v_load_n(second + i, n), v_mul(rest2, v_mul(g, g)));
        const vf denominator = v_fma(v_sqrt(v), correction2, eps);
        const vf p = v_sub(v_mul(v_load_n(param + i, n), keep), v_div(v_mul(step_size, m), denominator));
        v_store_n(first + i, m, n);
        v_store_n(second + i, v, n);
        v_store_n(param + i, p, n);
        if (copy) {
            if (streaming && n == VL) v_stream_bf16(copy + i, p);
            else v_store_bf16_n(copy + i, p, n);
        });
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
