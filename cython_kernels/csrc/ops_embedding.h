/* Rows of a table, and their gradient added back. */

static void FN(embedding_forward)(const void *args, const ck_team *team) {
    const ck_embedding_args *a = args;
    const ck_range rows = ck_split(a->n, ck_row_grain(a->c * sizeof(real)), team->size, team->index);
    const int streaming = ck_streams(team, a->y, a->n * a->c * sizeof(real), a->y_row * sizeof(real));
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const real *x = (const real *)a->x + a->ids[r] * a->x_row;
        real *y = (real *)a->y + r * a->y_row;
        if (!streaming) {
            memcpy(y, x, (size_t)a->c * sizeof(real));
            continue;
        }
        enum { PER = 4 / sizeof(real) };  /* elements in a 32-bit lane, copied as they are */
        const real *next = (const real *)a->x + a->ids[ck_min(r + 2, a->n - 1)] * a->x_row;
        int64_t i = 0;
        for (; i + PER * VL <= a->c; i += PER * VL) {
            ck_prefetch(next + i);
            v_stream((float *)(y + i), v_load((const float *)(x + i)));
        }
        memcpy(y + i, x + i, (size_t)(a->c - i) * sizeof(real));
    }
    if (streaming) ck_store_fence();
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
        const float *next = (const float *)a->y + a->ids[ck_min(r + 1, a->n - 1)] * a->y_row + columns.begin;
        EACH_VECTOR(i, m, count,
            ck_prefetch(next + i);
            ck_prefetch(dy + a->x_row + i);
            v_store_n(into + i, v_add(v_load_n(into + i, m), r_load_n(dy + i, m)), m););
    }
}
