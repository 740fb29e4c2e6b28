/* Conversion between fp32 and bf16, and setting to zero. */

static void FN(cast_to_f32)(const void *args, const ck_team *team) {
    const ck_cast_args *a = args;
    const ck_range part = ck_split(a->n, 64, team->size, team->index);
    float *dst = (float *)a->dst + part.begin;
    const real *src = (const real *)a->src + part.begin;
    const int streaming = ck_streams(team, a->dst, a->n * sizeof *dst, 0);
    EACH_VECTOR(i, m, part.end - part.begin,
        const vf x = r_load_n(src + i, m);
        if (streaming && m == VL) v_stream(dst + i, x);
        else v_store_n(dst + i, x, m););
    if (streaming) ck_store_fence();
}

static void FN(cast_to_bf16)(const void *args, const ck_team *team) {
    const ck_cast_args *a = args;
    const ck_range part = ck_split(a->n, 64, team->size, team->index);
    uint16_t *dst = (uint16_t *)a->dst + part.begin;
    const real *src = (const real *)a->src + part.begin;
    const int streaming = ck_streams(team, a->dst, a->n * sizeof *dst, 0);
    EACH_VECTOR(i, m, part.end - part.begin,
        const vf x = r_load_n(src + i, m);
        if (streaming && m == VL) v_stream_bf16(dst + i, x);
        else v_store_bf16_n(dst + i, x, m););
    if (streaming) ck_store_fence();
}

#if CK_STORAGE == CK_F32  /* of fp32 whatever the storage type: once */
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
#endif
