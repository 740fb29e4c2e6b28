/* Softmax cross-entropy over a shard of the vocabulary. Forward leaves what the shards' group must
 * combine: the row's maximum, the sum of exp(l - maximum), the target's logit. Each thread takes a range
 * of rows. */

#define CK_LOGITS_BLOCK 2048  /* read twice, so kept small enough for the first-level cache */

static void FN(cross_entropy_forward)(const void *args, const ck_team *team) {
    const ck_cross_entropy_args *a = args;
    const ck_range rows = ck_split(a->n, 1, team->size, team->index);
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const real *logits = (const real *)a->logits + r * a->logits_row;
        float largest = -INFINITY, total = 0.0f;
        for (int64_t begin = 0; begin < a->v; begin += CK_LOGITS_BLOCK) {
            const real *block = logits + begin;
            const int64_t count = ck_min(CK_LOGITS_BLOCK, a->v - begin), whole = count / VL * VL;
            vf max = v_set1(-INFINITY), sum = v_zero();
            for (int64_t i = 0; i < whole; i += VL) max = v_max(r_load_n(block + i, VL), max);
            float block_max = v_largest(max);
            for (int64_t i = whole; i < count; i++)  /* with fmaxf GCC 12 fails for AArch64 */
                if (r_get(block + i) > block_max) block_max = r_get(block + i);
            const float before = largest;
            largest = fmaxf(largest, block_max);
            /* -Inf - -Inf would be NaN */
            const vf factor = v_set1(CK_LOG2_E), shift = v_set1(largest == -INFINITY ? 0.0f : largest * -CK_LOG2_E);
            EACH_VECTOR(i, m, count,
                sum = v_add(sum, v_keep_n(v_exp2(v_fma(r_load_n(block + i, m), factor, shift), 5), m)););
            total = total * (before == largest ? 1.0f : expf(before - largest)) + v_sum(sum);
        }
        const int64_t target = a->targets[r] - a->vocab_start;
        a->row_max[r] = largest;
        a->row_sum[r] = total;
        a->target_logit[r] = target >= 0 && target < a->v ? r_get(logits + target) : 0.0f;
    }
}

/* dlogits = exp(l - lse) - onehot(target), unnormalised; an ignored row is zero. dlogits may be logits, which are
 * fp32 or real: bf16 written from left to right over the fp32 that were read. Where the logits are capped, l = c tanh(x
 * / c), the gradient of x is written: times 1 - (l / c)^2. */
INLINE void FN(cross_entropy_backward_rows)(const ck_cross_entropy_args *a, const ck_team *team, const int from_f32,
                                            const int capped) {
    const ck_range rows = ck_split(a->n, ck_row_grain(a->v * sizeof(real)), team->size, team->index);
    const int streaming = a->dlogits != a->logits
        && ck_streams(team, a->dlogits, a->n * a->v * sizeof(real), a->dlogits_row * sizeof(real));
    const vf factor = v_set1(CK_LOG2_E), one = v_set1(1.0f), to_cap = v_set1(capped ? 1.0f / a->softcap : 0.0f);
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const int64_t at = r * a->logits_row;
        const float *wide = (const float *)a->logits + at;
        const real *narrow = (const real *)a->logits + at;
        real *dlogits = (real *)a->dlogits + r * a->dlogits_row;
        if (a->targets[r] == a->ignore_index) {
            memset(dlogits, 0, (size_t)a->v * sizeof(real));
            continue;
        }
        const int64_t target = a->targets[r] - a->vocab_start;
        const int here = target >= 0 && target < a->v;
        float logit = 0.0f;
        if (here && from_f32) memcpy(&logit, wide + target, sizeof logit);  /* not `=`: bf16 may be written there */
        else if (here) logit = r_get(narrow + target);
        const vf shift = v_set1(a->lse[r] * -CK_LOG2_E);
        EACH_VECTOR(i, m, a->v,
            const vf l = from_f32 ? v_load_n(wide + i, m) : r_load_n(narrow + i, m);
            vf d = v_exp2(v_fma(l, factor, shift), CK_DEGREE);
            if (capped) {
                const vf bent = v_mul(l, to_cap);
                d = v_mul(d, v_sub(one, v_mul(bent, bent)));
            }
            r_put(dlogits + i, d, m, streaming););
        if (streaming) ck_store_fence();
        if (!here) continue;
        const float bent = capped ? logit / a->softcap : 0.0f;
        r_store_n(dlogits + target, v_set1((expf(logit - a->lse[r]) - 1.0f) * (1.0f - bent * bent)), 1);
    }
}

static void FN(cross_entropy_backward)(const void *args, const ck_team *team) {
    if (((const ck_cross_entropy_args *)args)->softcap > 0.0f)
        FN(cross_entropy_backward_rows)(args, team, CK_STORAGE == CK_F32, 1);
    else FN(cross_entropy_backward_rows)(args, team, CK_STORAGE == CK_F32, 0);
}

/* From fp32 logits, whatever dlogits are. */
static void FN(cross_entropy_backward_from_f32)(const void *args, const ck_team *team) {
    if (((const ck_cross_entropy_args *)args)->softcap > 0.0f) FN(cross_entropy_backward_rows)(args, team, 1, 1);
    else FN(cross_entropy_backward_rows)(args, team, 1, 0);
}
