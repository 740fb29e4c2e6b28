/* Two partial results of attention, over disjoint keys, become the one over all of them: weights e^(lse - lse') and
 * e^(part_lse - lse'), lse' = log(e^lse + e^part_lse) (as in Liu et al. 2023). A part that saw no key, lse -Inf, weighs
 * nothing; two such parts give one. */

static void FN(attention_merge)(const void *args, const ck_team *team) {
    const ck_attention_merge_args *a = args;
    const ck_range mine = ck_split(a->b * a->s, 1, team->size, team->index);
    for (int64_t at = mine.begin; at < mine.end; at++) {
        const int64_t b = at / a->s, s = at % a->s;
        for (int64_t h = 0; h < a->h; h++) {
            float *lse = a->lse + (b * a->h + h) * a->s + s;
            const float here = *lse, there = a->part_lse[(b * a->h + h) * a->s + s];
            const float most = here > there ? here : there;
            if (most == -INFINITY) continue;
            const float e_here = expf(here - most), e_there = expf(there - most), all = e_here + e_there;
            *lse = most + logf(all);
            const vf keep = v_set1(e_here / all), take = v_set1(e_there / all);
            const int64_t from = b * a->o_s.batch + s * a->o_s.row + h * a->o_s.head;
            const real *part = (const real *)a->part + b * a->part_s.batch + s * a->part_s.row + h * a->part_s.head;
            if (a->o_is_f32) {
                float *o = (float *)a->o + from;
                EACH_VECTOR(i, m, a->d,
                    v_store_n(o + i, v_fma(take, r_load_n(part + i, m), v_mul(keep, v_load_n(o + i, m))), m););
            } else {
                real *o = (real *)a->o + from;
                EACH_VECTOR(i, m, a->d,
                    r_store_n(o + i, v_fma(take, r_load_n(part + i, m), v_mul(keep, r_load_n(o + i, m))), m););
            }
        }
    }
}
