/* Packing for the matmul kernel: a panel is [k][width] 4-byte units (gemm_kernel.h), from an operand that is
 * contiguous along either of its dimensions. Transposes, the widening of bf16 and the pairing of its
 * neighbours along k happen here. Included once per storage type.
 *
 * CK_PAIRED: units are pairs of bf16. Otherwise units are fp32. */
#undef CK_PAIRED
#if CK_STORAGE == CK_BF16 && defined(CK_ISA_BF16)
#define CK_PAIRED 1
#else
#define CK_PAIRED 0
#endif

/* CK_TILED: products of pairs by AMX (gemm_amx.h). The register tile has CK_MR rows and CK_GEMM_NR columns; packing fills up
 * with zeros to CK_KR units along k. */
#undef CK_TILED
#undef CK_MR
#undef CK_KR
#if CK_PAIRED && defined(CK_ISA_AMX)
#define CK_TILED 1
#define CK_MR CK_AMX_MR
#define CK_KR CK_AMX_UNITS
#else
#define CK_TILED 0
#define CK_MR CK_GEMM_MR
#define CK_KR 1
#endif

/* Where rows are read as they lie, all panels take so many units before the next ones, which are fetched meanwhile.
 * Rows a multiple of 4 KB apart are all in one set of the first-level cache, which holds the rows of few units. */
#define CK_PACK_UNITS 16
#define CK_PACK_UNITS_ONE_SET 2

/* Units of k elements, packed. */
INLINE int64_t FN(units)(int64_t k) { return ck_round_up(CK_PAIRED ? ck_ceil_div(k, 2) : k, CK_KR); }

/* `count` units that follow one another along k, the rest zero. `whole` elements of the row are left: the last
 * unit of an odd row has one. */
INLINE vf FN(load_along)(const real *src, int64_t count, int64_t whole) {
#if CK_PAIRED
    if (count == VL && whole >= 2 * VL) return v_from_bits(v_load_pairs_n(src, 2 * VL));
    return v_from_bits(v_load_pairs_n(src, ck_min(2 * count, whole)));
#else
    (void)whole;
    return r_load_n(src, count);
#endif
}

/* The same unit along k of `count` neighbours across the panel, the rest zero. `second`: whether the unit has a
 * second element, p_stride further. */
INLINE vf FN(load_across)(const real *src, int64_t count, int64_t p_stride, int second) {
#if CK_PAIRED
    const vi low = v_load_u16_n(src, count);
    if (!second) return v_from_bits(low);
    return v_from_bits(vi_or(low, vi_shift_left(v_load_u16_n(src + p_stride, count), 16)));
#else
    (void)p_stride;
    (void)second;
    return r_load_n(src, count);
#endif
}

/* n columns of src, which lie side by side, in panels of `width`. Whole vectors are stored; what they write past a unit
 * is the next one's place, or the gap. */
INLINE void FN(pack_across)(float *dst, const int width, const real *src, int64_t p_stride, int64_t n, int64_t k) {
    const int64_t panel = ck_panel_units(width, FN(units)(k)), step = CK_PAIRED ? 2 : 1;
    const int64_t units = ck_ceil_div(k, step);
    const int64_t some = p_stride * sizeof(real) % 4096 ? CK_PACK_UNITS : CK_PACK_UNITS_ONE_SET;
    const int64_t near = some * step * p_stride;
    for (int64_t u0 = 0; u0 < units; u0 += some) {
        const int64_t u1 = ck_min(units, u0 + some);
        float *to = dst + u0 * width;
        int64_t j = 0;
#if CK_PAIRED
        const int both = width < VL ? 2 * width : 2 * VL;  /* columns of two vectors of units */
        for (; j + 2 * VL <= n; j += both, to += width < VL ? 2 * panel : panel) {
            const real *from = src + step * u0 * p_stride + j;
            for (int64_t u = u0; u < u1; u++, from += 2 * p_stride) {
                vf low, high;
                __builtin_prefetch(from + near);
                __builtin_prefetch(from + near + p_stride);
                v_pair_rows(&low, &high, from, 2 * u + 1 < k ? from + p_stride : NULL, both / 2);
                float *at = to + (u - u0) * width;
                v_store(at, low);
                v_store(width < VL ? at + panel : at + VL, high);
            }
        }
#endif
        for (; j < n; j += width, to += panel) {
            const real *from = src + step * u0 * p_stride + j;
            for (int64_t u = u0; u < u1; u++, from += step * p_stride)
#pragma GCC unroll 4
                for (int i = 0; i < width; i += VL) {
                    const int64_t have = ck_max(0, ck_min(ck_min(VL, width - i), n - j - i));
                    float *at = to + (u - u0) * width + i;
                    __builtin_prefetch(from + near + i);
                    if (CK_PAIRED) __builtin_prefetch(from + near + p_stride + i);
                    if (!CK_PAIRED && j + i + VL <= n) v_store(at, r_load_n(from + i, VL));
                    else v_store(at, FN(load_across)(from + i, have, p_stride, step * u + 1 < k));
                }
        }
    }
    if (CK_KR > 1)
        for (int64_t j = 0; j < n; j += width, dst += panel)
            memset(dst + units * width, 0, (size_t)((FN(units)(k) - units) * width) * sizeof *dst);
}

/* n columns of src, each contiguous along k, in panels of `width`. */
INLINE void FN(pack_along)(float *dst, const int width, const real *src, int64_t j_stride, int64_t n, int64_t k) {
    const int64_t units = FN(units)(k), panel = ck_panel_units(width, units), step = CK_PAIRED ? 2 : 1;
    for (int64_t j0 = 0; j0 < n; j0 += width, dst += panel, src += width * j_stride) {
        const int64_t count = ck_min(width, n - j0);
        for (int64_t u = 0; u < units; u += VL) {
            const int64_t here = ck_min(VL, units - u), left = k - u * step;
            for (int j = 0; j < width; j += VL) {
                vf block[VL];
                const real *from = src + j * j_stride + u * step;
                float *to = dst + u * width + j;
                if (here == VL && left >= VL * step && j + ck_min(VL, width - j) <= count) {
#pragma GCC unroll 16
                    for (int i = 0; i < VL; i++) {
                        if (j + i < width) __builtin_prefetch(from + i * j_stride + 4 * VL * step);
                        block[i] = j + i < width ? FN(load_along)(from + i * j_stride, VL, VL * step) : v_zero();
                    }
                    v_transpose(block);
#pragma GCC unroll 16
                    for (int i = 0; i < VL; i++) v_store(to + i * width, block[i]);
                } else {
                    for (int i = 0; i < VL; i++)
                        block[i] = j + i < count ? FN(load_along)(from + i * j_stride, here, left) : v_zero();
                    v_transpose(block);
                    for (int i = 0; i < here; i++) v_store(to + i * width, block[i]);
                }
            }
        }
    }
}

/* n columns in panels of `width`, k elements deep, element p of column j at src[j * j_stride + p * p_stride], one of the
 * strides being 1: dst[u * width + j] = unit u of column j, zero for the columns that the last panel lacks. */
INLINE void FN(pack_panels)(float *dst, const int width, const real *src, int64_t j_stride, int64_t p_stride,
                            int64_t n, int64_t k) {
    if (j_stride == 1) FN(pack_across)(dst, width, src, p_stride, n, k);
    else FN(pack_along)(dst, width, src, j_stride, n, k);
}

/* n columns of b. */
static __attribute__((noinline)) void FN(pack_right)(float *dst, const real *b, int64_t b_row, int64_t b_col, int64_t n,
                                                     int64_t k) {
    FN(pack_panels)(dst, CK_GEMM_NR, b, b_col, b_row, n, k);
}

#if !CK_TILED
/* m rows of a. */
static __attribute__((noinline)) void FN(pack_left)(float *dst, const real *a, int64_t a_row, int64_t a_col, int64_t m,
                                                    int64_t k) {
    FN(pack_panels)(dst, CK_GEMM_MR, a, a_row, a_col, m, k);
}
#endif

/* c (rows, cols) = t + bias + residual (+ c), from fp32 t to real or fp32 c; residual is of c's type. */
INLINE void FN(finish)(void *c, const int c_is_f32, int64_t c_row, const float *t, int64_t t_row,
                       int64_t rows, int64_t cols, int add, const float *bias, const void *residual,
                       int64_t residual_row) {
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < cols; j += VL) {
            const int64_t m = ck_min(VL, cols - j), at = i * c_row + j, beside = i * residual_row + j;
            vf x = v_load_n(t + i * t_row + j, m);
            if (add) x = v_add(x, c_is_f32 ? v_load_n((float *)c + at, m) : r_load_n((real *)c + at, m));
            if (bias) x = v_add(x, v_load_n(bias + j, m));
            if (residual)
                x = v_add(x, c_is_f32 ? v_load_n((const float *)residual + beside, m)
                                      : r_load_n((const real *)residual + beside, m));
            if (c_is_f32) v_store_n((float *)c + at, x, m);
            else r_store_n((real *)c + at, x, m);
        }
    }
}
