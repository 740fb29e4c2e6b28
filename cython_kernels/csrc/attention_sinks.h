/* Sinks (Xiao et al. 2023; gpt-oss): a learned logit per query head stands beside the keys' scores in the softmax and has
 * no value, so that a row's probabilities may sum to less than 1. It changes the denominator alone: lse' = log(exp(lse) +
 * exp(sink)). Backward, which starts from lse', is the same as without; the sink's own gradient is - sum over its rows of
 * p_sink delta, with p_sink = exp(sink - lse') and delta the sum of dout o. A sink of -Inf is none. */
#ifndef CK_ATTENTION_SINKS_H
#define CK_ATTENTION_SINKS_H

/* lse becomes lse'; returns what the probabilities of the keys are multiplied by for it. */
static float stand_beside_sink(float *lse, float sink) {
    const float most = *lse > sink ? *lse : sink;
    if (sink == -INFINITY) return 1.0f;
    const float keys = expf(*lse - most), all = keys + expf(sink - most);
    *lse = most + logf(all);
    return keys / all;
}

/* dsinks += their gradients; a head's sum is one thread's, and has one order. */
static void add_to_dsinks(const ck_attention_args *a, const ck_team *team) {
    const ck_range part = ck_split(a->h, 1, team->size, team->index);
    for (int64_t h = part.begin; h < part.end; h++) {
        if (a->sinks[h] == -INFINITY) continue;
        vf sum = v_zero();
        for (int64_t b = 0; b < a->b; b++) {
            const float *lse = a->lse + (b * a->h + h) * a->s, *delta = a->delta + (b * a->h + h) * a->s;
            EACH_VECTOR(i, m, a->s,
                const vf p = v_exp(v_sub(v_set1(a->sinks[h]), v_load_n(lse + i, m)));
                sum = v_fma(v_keep_n(p, m), v_load_n(delta + i, m), sum););
        }
        a->dsinks[h] -= v_sum(sum);
    }
}

#endif
