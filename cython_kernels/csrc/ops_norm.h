/* RMSNorm (Zhang & Sennrich 2019) and LayerNorm (Ba et al. 2016). Rows are (n, h) pairs; each thread takes
 * a range of rows. Weight gradients are summed per thread in its workspace, then over threads in the order
 * of their index. */

#define ROW(pointer, prefix, r) ((pointer) + ((r) / a->h) * a->prefix##_n + ((r) % a->h) * a->prefix##_h)

/* The distance from a row to one that is asked for meanwhile. */
#define ROW_AHEAD(prefix) ck_rows_ahead(a->h == 1 ? a->prefix##_n : a->prefix##_h, sizeof(real))

/* Sum over a row of x - center, or of its square, in four parts so that no addition waits for the one before. `next`
 * is a row further on, asked for meanwhile. */
INLINE float FN(row_sum)(const real *x, const real *next, int64_t c, vf center, const int squared) {
    vf sum[4] = {v_zero(), v_zero(), v_zero(), v_zero()};
    const int64_t whole = c / (4 * VL) * (4 * VL);
    for (int64_t i = 0; i < whole; i += 4 * VL)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const vf v = v_sub(r_load_n(x + i + j * VL, VL), center);
            ck_prefetch(next + i + j * VL);
            sum[j] = squared ? v_fma(v, v, sum[j]) : v_add(sum[j], v);
        }
    EACH_VECTOR(i, m, c - whole,  /* lanes past the end hold zero, and so must the center there */
        const vf v = v_sub(r_load_n(x + whole + i, m), v_keep_n(center, m));
        sum[0] = squared ? v_fma(v, v, sum[0]) : v_add(sum[0], v););
    return v_sum(v_add(v_add(sum[0], sum[1]), v_add(sum[2], sum[3])));
}

/* The sum of squares of row `next`, and meanwhile, when `write`, y = x scale (w + offset) (+ residual, when `adds`):
 * memory is read and written line by line in turn, as fast as it is copied, where a row read and then written whole
 * leaves it waiting. `ahead` elements after next, memory is asked for. */
INLINE float FN(rms_norm_rows)(real *y, const real *x, const float *w, vf offset, vf scale, const real *residual, const real *next,
                               int64_t ahead, int64_t c, const int write, const int adds, const int streaming) {
    vf sum[4] = {v_zero(), v_zero(), v_zero(), v_zero()};
    const int64_t whole = c / (4 * VL) * (4 * VL);
    for (int64_t i = 0; i < whole; i += 4 * VL) {
        for (int64_t line = 0; line < 4 * VL; line += 64 / (int64_t)sizeof(real)) ck_prefetch(next + ahead + i + line);
        r_add_squares(sum[0], sum[1], next + i);
        r_add_squares(sum[2], sum[3], next + i + 2 * VL);
        if (!write) continue;
        for (int64_t j = i; j < i + 4 * VL; j += 2 * VL) {
            vf low = v_mul(v_mul(r_load_n(x + j, VL), scale), v_add(v_load(w + j), offset));
            vf high = v_mul(v_mul(r_load_n(x + j + VL, VL), scale), v_add(v_load(w + j + VL), offset));
            if (adds) {
                low = v_add(low, r_load_n(residual + j, VL));
                high = v_add(high, r_load_n(residual + j + VL, VL));
            }
            r_put_two(y + j, low, high, streaming);
        }
    }
    EACH_VECTOR(i, m, c - whole,
        const vf v = r_load_n(next + whole + i, m);
        sum[0] = v_fma(v, v, sum[0]);
        if (write) {
            const vf weight = v_add(v_load_n(w + whole + i, m), offset);
            vf value = v_mul(v_mul(r_load_n(x + whole + i, m), scale), weight);
            if (adds) value = v_add(value, r_load_n(residual + whole + i, m));
            r_put(y + whole + i, value, m, streaming);
        });
    return v_sum(v_add(v_add(sum[0], sum[1]), v_add(sum[2], sum[3])));
}

static void FN(rms_norm_forward)(const void *args, const ck_team *team) {
    const ck_norm_forward_args *a = args;
    const ck_range rows = ck_split(a->n * a->h, ck_row_grain(a->c * sizeof(real)), team->size, team->index);
    const int streaming = a->y != a->x && a->y != a->residual
        && ck_streams(team, a->y, a->n * a->h * a->c * sizeof(real), (a->y_n | a->y_h) * sizeof(real));
    if (rows.begin >= rows.end) return;
    const vf offset = v_set1(a->offset);
    const real *x = ROW((const real *)a->x, x, rows.begin);
    float squares = FN(rms_norm_rows)(NULL, NULL, NULL, v_zero(), v_zero(), NULL, x, ROW_AHEAD(x), a->c, 0, 0, 0);
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const float rstd = 1.0f / sqrtf(squares / (float)a->c + a->eps);
        const real *next = r + 1 < rows.end ? ROW((const real *)a->x, x, r + 1) : x;
        real *y = ROW((real *)a->y, y, r);
        a->rstd[r] = rstd;
        if (a->residual) {
            const real *residual = ROW((const real *)a->residual, residual, r);
            if (streaming)
                squares = FN(rms_norm_rows)(y, x, a->w, offset, v_set1(rstd), residual, next, ROW_AHEAD(x), a->c, 1, 1, 1);
            else squares = FN(rms_norm_rows)(y, x, a->w, offset, v_set1(rstd), residual, next, ROW_AHEAD(x), a->c, 1, 1, 0);
        } else if (streaming)
            squares = FN(rms_norm_rows)(y, x, a->w, offset, v_set1(rstd), NULL, next, ROW_AHEAD(x), a->c, 1, 0, 1);
        else squares = FN(rms_norm_rows)(y, x, a->w, offset, v_set1(rstd), NULL, next, ROW_AHEAD(x), a->c, 1, 0, 0);
        x = next;
    }
    if (streaming) ck_store_fence();
}

static void FN(layer_norm_forward)(const void *args, const ck_team *team) {
    const ck_norm_forward_args *a = args;
    const ck_range rows = ck_split(a->n * a->h, ck_row_grain(a->c * sizeof(real)), team->size, team->index);
    const int streaming = a->y != a->x && a->y != a->residual
        && ck_streams(team, a->y, a->n * a->h * a->c * sizeof(real), (a->y_n | a->y_h) * sizeof(real));
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const real *x = ROW((const real *)a->x, x, r), *next = x + ROW_AHEAD(x);
        real *y = ROW((real *)a->y, y, r);
        const float mean = FN(row_sum)(x, next, a->c, v_zero(), 0) / (float)a->c;
        const vf center = v_set1(mean);
        const float squares = FN(row_sum)(x, next, a->c, center, 1);
        const float rstd = 1.0f / sqrtf(squares / (float)a->c + a->eps);
        const vf scale = v_set1(rstd);
        if (a->residual) {
            const real *residual = ROW((const real *)a->residual, residual, r);
            EACH_VECTOR(i, m, a->c,
                const vf v = v_mul(v_sub(r_load_n(x + i, m), center), scale);
                const vf value = v_fma(v, v_load_n(a->w + i, m), v_load_n(a->b + i, m));
                r_put(y + i, v_add(value, r_load_n(residual + i, m)), m, streaming););
        } else
            EACH_VECTOR(i, m, a->c,
                const vf v = v_mul(v_sub(r_load_n(x + i, m), center), scale);
                r_put(y + i, v_fma(v, v_load_n(a->w + i, m), v_load_n(a->b + i, m)), m, streaming););
        a->mean[r] = mean;
        a->rstd[r] = rstd;
    }
    if (streaming) ck_store_fence();
}

/* into[i] += the threads' partial sums, in the order of the threads; the columns are divided among them. */
static void FN(norm_sum_partials)(float *into, int64_t offset, int64_t c, const ck_team *team) {
    const ck_range columns = ck_split(c, 16, team->size, team->index);
    for (int t = 0; t < team->size; t++) {
        const float *partial = (const float *)ck_scratch_of(team, t) + offset;
        for (int64_t i = columns.begin; i < columns.end; i += VL) {
            const int64_t m = ck_min(VL, columns.end - i);
            v_store_n(into + i, v_add(v_load_n(into + i, m), v_load_n(partial + i, m)), m);
        }
    }
}

/* With xh = (x - mean) rstd and g = dy (w + offset): dx = rstd (g - mean(g) - xh mean(g xh)); RMSNorm has no mean(g)
 * and no mean. A row is read whole before dx is written, and each element once more just before, so dx may be dy or x. */
INLINE void FN(norm_backward)(const ck_norm_backward_args *a, const ck_team *team, const int centered) {
    float *dw = (float *)team->scratch, *db = dw + a->c;
    memset(dw, 0, (size_t)a->c * sizeof(float) * (centered ? 2 : 1));
    const ck_range rows = ck_split(a->n * a->h, ck_row_grain(a->c * sizeof(real)), team->size, team->index);
    const vf offset = v_set1(a->offset);
    for (int64_t r = rows.begin; r < rows.end; r++) {
        const real *x = ROW((const real *)a->x, x, r), *dy = ROW((const real *)a->dy, dy, r);
        const real *next = x + ROW_AHEAD(x), *next_dy = dy + ROW_AHEAD(dy);
        real *dx = ROW((real *)a->dx, dx, r);
        const vf center = v_set1(centered ? a->mean[r] : 0.0f), rstd = v_set1(a->rstd[r]);
        vf sum_g = v_zero(), sum_g_xh = v_zero();
        EACH_VECTOR(i, m, a->c,
            ck_prefetch(next + i);
            ck_prefetch(next_dy + i);
            const vf grad = r_load_n(dy + i, m);
            const vf xh = v_mul(v_sub(r_load_n(x + i, m), center), rstd);
            const vf g = v_mul(grad, v_add(v_load_n(a->w + i, m), offset));
            v_store_n(dw + i, v_fma(grad, xh, v_load_n(dw + i, m)), m);
            if (centered) {
                v_store_n(db + i, v_add(grad, v_load_n(db + i, m)), m);
                sum_g = v_add(sum_g, g);
            }
            sum_g_xh = v_fma(g, xh, sum_g_xh););
        const vf mean_g = v_set1(v_sum(sum_g) / (float)a->c);
        const vf mean_g_xh = v_set1(v_sum(sum_g_xh) / (float)a->c);
        EACH_VECTOR(i, m, a->c,
            const vf xh = v_mul(v_sub(r_load_n(x + i, m), center), rstd);
            vf d = v_mul(r_load_n(dy + i, m), v_add(v_load_n(a->w + i, m), offset));
            if (centered) d = v_sub(d, mean_g);
            d = v_mul(rstd, v_sub(d, v_mul(xh, mean_g_xh)));
            if (a->accumulate) d = v_add(d, r_load_n(dx + i, m));
            r_store_n(dx + i, d, m););
    }
    ck_barrier(team);
    FN(norm_sum_partials)(a->dw, 0, a->c, team);
    if (centered) FN(norm_sum_partials)(a->db, a->c, a->c, team);
}

static void FN(rms_norm_backward)(const void *args, const ck_team *team) {
    FN(norm_backward)(args, team, 0);
}

static void FN(layer_norm_backward)(const void *args, const ck_team *team) {
    FN(norm_backward)(args, team, 1);
}

#undef ROW
#undef ROW_AHEAD
