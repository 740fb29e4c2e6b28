/* Rotary position embedding. */

/* Su et al. 2021, with the pairing (i, i + d/2) of Hugging Face. The inverse rotates by the negative
 * angle. */
static void FN(rope)(const void *args, const ck_team *team) {
    const ck_rope_args *a = args;
    const int64_t half = a->d / 2;
    const ck_range rows = ck_split(a->n, ck_row_grain(a->h * a->d * sizeof(real)), team->size, team->index);
    const vf sign = v_set1(a->inverse ? -1.0f : 1.0f);
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const float *cosine = a->cos + a->positions[r] * half, *sine = a->sin + a->positions[r] * half;
        const real *x = (const real *)a->x + r * a->x_n;
        real *y = (real *)a->y + r * a->y_n;
        EACH_VECTOR(i, m, half,
            const vf c = v_load_n(cosine + i, m);
            const vf s = v_mul(v_load_n(sine + i, m), sign);
            for (int64_t h = 0; h < a->h; h++) {
                const real *from = x + h * a->x_h + i;
                real *to = y + h * a->y_h + i;
                ck_prefetch(from + a->x_n);
                ck_prefetch(from + a->x_n + half);
                const vf low = r_load_n(from, m);
                const vf high = r_load_n(from + half, m);
                r_store_n(to, v_sub(v_mul(low, c), v_mul(high, s)), m);
                r_store_n(to + half, v_fma(low, s, v_mul(high, c)), m);
            });
    }
}
