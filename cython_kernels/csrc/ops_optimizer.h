/* Optimizer steps on flat fp32 buffers, one element independent of the next. */

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

/* dst = 0, of which n counts fp32. */
static void zero(const void *args, const ck_team *team) {
    const ck_cast_args *a = args;
    const ck_range part = ck_split(a->n, 64, team->size, team->index);
    float *dst = (float *)a->dst + part.begin;
    const int streaming = ck_streams(team, a->dst, a->n * sizeof *dst, 0);
    EACH_VECTOR(i, m, part.end - part.begin,
        if (streaming && m == VL) v_stream(dst + i, v_zero());
        else v_store_n(dst + i, v_zero(), m););
    if (streaming) ck_store_fence();
}
